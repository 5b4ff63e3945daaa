//! Listing objects: a walk through the folders in the order of keys, of what lies between the marker and the page's end.
//!
//! # Invariants
//! - Keys ascend by their bytes: names of a folder are sorted with the folders among them ending in `/`, as their keys go on.
//! - What is written or removed during the walk may be listed or not; what is there all the time is listed once, and no change
//!   makes a listing fail.
//! - Folders that cannot hold a key of the page are not opened: a page costs what it shows and its folders' names.

use std::fs::{self, Metadata};
use std::io;
use std::path::Path;

use crate::tree::{is_absence, is_key_part};

/// What to list.
#[derive(Clone, Debug)]
pub(crate) struct Query {
    /// Keys begin so.
    pub(crate) prefix: String,
    /// Keys that have it behind the prefix are listed by what comes up to it, once.
    pub(crate) delimiter: Option<String>,
    /// What is listed sorts behind it.
    pub(crate) after: Option<String>,
    /// At most so much.
    pub(crate) max: usize,
}

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Page {
    pub(crate) objects: Vec<(String, Metadata)>,
    /// Common beginnings of keys, up to the delimiter.
    pub(crate) beginnings: Vec<String>,
    /// There is more.
    pub(crate) is_truncated: bool,
    /// The last of both, where there is more.
    pub(crate) last: Option<String>,
}

/// A page of the objects in a bucket's folder. Blocks.
pub(crate) fn list(bucket: &Path, query: &Query) -> io::Result<Page> {
    let mut walk = Walk { query, page: Page::default(), last: None };
    let (folder, start) = match query.prefix.rfind('/') {
        Some(at) => query.prefix.split_at(at + 1),
        None => ("", query.prefix.as_str()),
    };
    // No key has such a part, and none may lead out of the bucket.
    if query.max > 0 && folder.split_terminator('/').all(is_key_part) {
        walk.folder(&bucket.join(folder), folder, start)?;
    }
    let Walk { mut page, last, .. } = walk;
    page.last = last.filter(|_| page.is_truncated);
    Ok(page)
}

struct Walk<'q> {
    query: &'q Query,
    page: Page,
    last: Option<String>,
}

impl Walk<'_> {
    /// Goes through a folder whose keys begin with `at`, of names that begin with `start`.
    fn folder(&mut self, dir: &Path, at: &str, start: &str) -> io::Result<()> {
        for name in names(dir, start)? {
            let key = format!("{at}{name}");
            match name.strip_suffix('/') {
                Some(_) if self.lies_before(&key) => {}
                Some(inner) if self.query.delimiter.as_deref() == Some("/") => {
                    if self.is_new(&key) && holds_a_file(&dir.join(inner))? {
                        self.beginning(key);
                    }
                }
                Some(inner) => self.folder(&dir.join(inner), &key, "")?,
                None => self.file(&dir.join(&name), key)?,
            }
            if self.page.is_truncated {
                break;
            }
        }
        Ok(())
    }

    fn file(&mut self, path: &Path, key: String) -> io::Result<()> {
        let (query, behind) = (self.query, &key[self.query.prefix.len()..]);
        let cut = query.delimiter.as_deref().and_then(|mark| behind.find(mark).map(|at| at + mark.len()));
        if let Some(cut) = cut {
            let beginning = key[..query.prefix.len() + cut].to_owned();
            if self.is_new(&beginning) {
                self.beginning(beginning);
            }
            return Ok(());
        }
        if !self.is_new(&key) {
            return Ok(());
        }
        match fs::metadata(path) {
            Ok(metadata) if self.has_room(&key) => self.page.objects.push((key, metadata)),
            Err(error) if !is_absence(&error) => return Err(error),
            _ => {}
        }
        Ok(())
    }

    fn beginning(&mut self, beginning: String) {
        if self.has_room(&beginning) {
            self.page.beginnings.push(beginning);
        }
    }

    /// Notes what is to be listed next, or that it has no room.
    fn has_room(&mut self, listed: &str) -> bool {
        if self.page.objects.len() + self.page.beginnings.len() == self.query.max {
            self.page.is_truncated = true;
            return false;
        }
        self.last = Some(listed.to_owned());
        true
    }

    /// It lies behind the marker and is not the beginning that was listed last.
    fn is_new(&self, listed: &str) -> bool {
        self.query.after.as_deref().is_none_or(|after| listed > after) && self.last.as_deref() != Some(listed)
    }

    /// No key of this folder lies behind the marker.
    fn lies_before(&self, folder: &str) -> bool {
        self.query.after.as_deref().is_some_and(|after| folder < after && !after.starts_with(folder))
    }
}

/// Names in a folder, those of folders with a slash behind, by their order in keys; none where it is gone.
fn names(dir: &Path, start: &str) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if is_absence(&error) => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry?;
        // Whatever has another name is no object of this server.
        let Ok(mut name) = entry.file_name().into_string() else { continue };
        if !name.starts_with(start) {
            continue;
        }
        match entry.file_type() {
            Ok(file_type) if file_type.is_dir() => name.push('/'),
            Ok(file_type) if file_type.is_file() => {}
            Err(error) if !is_absence(&error) => return Err(error),
            _ => continue,
        }
        names.push(name);
    }
    names.sort_unstable();
    Ok(names)
}

/// Somewhere in this folder lies an object.
fn holds_a_file(dir: &Path) -> io::Result<bool> {
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for name in names(&dir, "")? {
            match name.strip_suffix('/') {
                Some(inner) => dirs.push(dir.join(inner)),
                None => return Ok(true),
            }
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed test may say so by a panic")]

    use std::collections::BTreeSet;
    use std::sync::atomic::{AtomicBool, Ordering};

    use rand::RngExt as _;

    use super::*;

    /// Keys that sort otherwise than their folders do, that share beginnings, and lie at several depths.
    fn drawn(rng: &mut impl rand::Rng) -> BTreeSet<String> {
        let parts = ["a", "a-", "a.b", "ab", "b", "é", "0", "a b"];
        let mut keys = BTreeSet::new();
        for _ in 0..rng.random_range(0..40) {
            let mut key = parts[rng.random_range(0..parts.len())].to_owned();
            for _ in 0..rng.random_range(0..4) {
                key = format!("{key}/{}", parts[rng.random_range(0..parts.len())]);
            }
            let is_folder = keys.iter().any(|known: &String| known.starts_with(&format!("{key}/")));
            let has_folder_as_object = key.match_indices('/').any(|(at, _)| keys.contains(&key[..at]));
            if !is_folder && !has_folder_as_object {
                keys.insert(key);
            }
        }
        keys
    }

    fn write(dir: &Path, key: &str) {
        let path = dir.join(key);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, key).unwrap();
    }

    /// What S3 would list, of all keys: in order, beginnings once, behind the marker.
    fn wanted(keys: &BTreeSet<String>, query: &Query) -> Vec<(bool, String)> {
        let mut listed: Vec<(bool, String)> = Vec::new();
        for key in keys.iter().filter(|key| key.starts_with(&query.prefix)) {
            let behind = &key[query.prefix.len()..];
            let cut = query.delimiter.as_deref().and_then(|mark| behind.find(mark).map(|at| at + mark.len()));
            let found = match cut {
                Some(cut) => (true, key[..query.prefix.len() + cut].to_owned()),
                None => (false, key.clone()),
            };
            let behind_marker = query.after.as_ref().is_none_or(|after| found.1 > *after);
            if behind_marker && listed.last() != Some(&found) {
                listed.push(found);
            }
        }
        listed
    }

    /// All pages, each begun behind the last one's end.
    fn pages(dir: &Path, mut query: Query) -> Vec<(bool, String)> {
        let mut all = Vec::new();
        loop {
            let page = list(dir, &query).unwrap();
            assert!(page.objects.len() + page.beginnings.len() <= query.max);
            let mut listed: Vec<(bool, String)> =
                page.objects.into_iter().map(|(key, _)| (false, key)).collect();
            listed.extend(page.beginnings.into_iter().map(|beginning| (true, beginning)));
            listed.sort_by(|a, b| a.1.cmp(&b.1));
            assert_eq!(page.last.is_some(), page.is_truncated);
            all.extend(listed);
            match page.last {
                Some(last) => query.after = Some(last),
                None => return all,
            }
        }
    }

    #[test]
    fn pages_are_what_s3_would_list() {
        let mut rng = rand::rng();
        for _ in 0..300 {
            let dir = tempfile::tempdir().unwrap();
            let keys = drawn(&mut rng);
            keys.iter().for_each(|key| write(dir.path(), key));
            // A folder without objects is nothing.
            fs::create_dir_all(dir.path().join("empty/inside")).unwrap();
            for _ in 0..20 {
                let drawn_part = |rng: &mut rand::rngs::ThreadRng| {
                    let prefixes = ["", "a", "a/", "a/a", "a-/", "b/é", "ab/a b/", "../", "nothing/", "a//"];
                    prefixes[rng.random_range(0..prefixes.len())].to_owned()
                };
                let query = Query {
                    prefix: drawn_part(&mut rng),
                    delimiter: [None, Some("/"), Some("a"), Some("/a")][rng.random_range(0..4)]
                        .map(str::to_owned),
                    after: rng.random_bool(0.5).then(|| drawn_part(&mut rng)),
                    max: rng.random_range(1..8),
                };
                assert_eq!(pages(dir.path(), query.clone()), wanted(&keys, &query), "{query:?} of {keys:?}");
            }
        }
    }

    #[test]
    fn what_comes_and_goes_beside_makes_no_listing_fail() {
        let dir = tempfile::tempdir().unwrap();
        let stay: BTreeSet<String> =
            (0..200).map(|number| format!("shards/{}/{number:05}", number % 7)).collect();
        stay.iter().for_each(|key| write(dir.path(), key));
        let (done, query) =
            (AtomicBool::new(false), Query { prefix: String::new(), delimiter: None, after: None, max: 50 });
        /// The movers end, whatever became of the listings.
        struct Done<'d>(&'d AtomicBool);
        impl Drop for Done<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        std::thread::scope(|scope| {
            let _done = Done(&done);
            for mover in 0..2 {
                let (done, dir) = (&done, dir.path());
                scope.spawn(move || {
                    while !done.load(Ordering::Relaxed) {
                        for number in 0..50 {
                            write(dir, &format!("shards/{}/x{mover}/{number}", number % 7));
                        }
                        for number in 0..7 {
                            fs::remove_dir_all(dir.join(format!("shards/{number}/x{mover}"))).unwrap();
                        }
                    }
                });
            }
            for _ in 0..100 {
                let listed: BTreeSet<String> =
                    pages(dir.path(), query.clone()).into_iter().map(|(_, key)| key).collect();
                assert!(listed.is_superset(&stay), "{:?}", stay.difference(&listed).next());
            }
        });
    }
}
