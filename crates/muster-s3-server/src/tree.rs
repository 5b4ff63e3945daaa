//! Objects as files: names, conditions, and the steps that make a write durable. Everything here blocks.

use std::collections::HashSet;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use s3s::dto::{ETag, ETagCondition};
use s3s::{S3Error, S3ErrorCode, S3Result, s3_error};

use crate::lock::FolderLock;

/// Longest part of a key between slashes: the limit of a file name.
const KEY_PART_BYTES_MAX: usize = 255;

/// Folders remembered as durable; beyond it the memory is emptied and rebuilt at the cost of one sync each.
const KNOWN_DIRS_MAX: usize = 65_536;

/// What must hold of a key for a write to happen.
#[derive(Debug, Clone)]
pub(crate) enum Precondition {
    /// Nothing.
    None,
    /// `If-None-Match: *`
    Absent,
    /// `If-Match`
    Matches(ETagCondition),
}

impl Precondition {
    /// From the headers of a write.
    pub(crate) fn new(
        if_match: Option<ETagCondition>,
        if_none_match: Option<ETagCondition>,
    ) -> S3Result<Self> {
        match (if_match, if_none_match) {
            (None, None) => Ok(Self::None),
            (Some(condition), None) => Ok(Self::Matches(condition)),
            (None, Some(condition)) if condition.is_any() => Ok(Self::Absent),
            _ => Err(s3_error!(NotImplemented, "a write takes either If-Match or If-None-Match: *")),
        }
    }
}

/// A folder of buckets. Whoever holds it owns the folder.
#[derive(Debug)]
pub(crate) struct Tree {
    root: PathBuf,
    durable_dirs: Mutex<HashSet<PathBuf>>,
    newest_stamp: Mutex<SystemTime>,
    _lock: FolderLock,
}

impl Tree {
    pub(crate) fn new(root: PathBuf, lock: FolderLock) -> Self {
        Self {
            root,
            durable_dirs: Mutex::default(),
            newest_stamp: Mutex::new(SystemTime::UNIX_EPOCH),
            _lock: lock,
        }
    }

    /// The folder of a bucket, which is there.
    pub(crate) fn bucket(&self, bucket: &str) -> S3Result<PathBuf> {
        let path = self.bucket_path(bucket)?;
        if path.is_dir() { Ok(path) } else { Err(s3_error!(NoSuchBucket)) }
    }

    fn bucket_path(&self, bucket: &str) -> S3Result<PathBuf> {
        if s3s::path::check_bucket_name(bucket) {
            return Ok(self.root.join(bucket));
        }
        Err(s3_error!(InvalidBucketName))
    }

    /// The file of an object, which need not be there.
    pub(crate) fn object_path(&self, bucket: &str, key: &str) -> S3Result<PathBuf> {
        if !key.split('/').all(is_key_part) {
            return Err(s3_error!(
                InvalidArgument,
                "a key here is made of parts of 1 to 255 bytes between slashes, none of them `.` or `..`"
            ));
        }
        Ok(self.bucket(bucket)?.join(key))
    }

    pub(crate) fn create_bucket(&self, bucket: &str) -> S3Result<()> {
        let path = self.bucket_path(bucket)?;
        match fs::create_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(s3_error!(BucketAlreadyOwnedByYou))
            }
            Err(error) => Err(storage_error(error)),
            Ok(()) => sync_dir(&self.root).map_err(storage_error),
        }
    }

    /// Removes a bucket without objects.
    pub(crate) fn delete_bucket(&self, bucket: &str) -> S3Result<()> {
        let path = self.bucket(bucket)?;
        if holds_a_file(&path).map_err(storage_error)? {
            return Err(s3_error!(BucketNotEmpty));
        }
        self.durable_dirs.lock().unwrap_or_else(PoisonError::into_inner).clear();
        fs::remove_dir_all(&path).and_then(|()| sync_dir(&self.root)).map_err(storage_error)
    }

    /// What is stored under a key.
    pub(crate) fn find(path: &Path) -> S3Result<Option<Metadata>> {
        match fs::metadata(path) {
            Ok(metadata) => Ok(metadata.is_file().then_some(metadata)),
            Err(error) if is_absence(&error) => Ok(None),
            Err(error) => Err(storage_error(error)),
        }
    }

    /// Refuses unless the condition holds.
    pub(crate) fn check(path: &Path, precondition: &Precondition) -> S3Result<()> {
        match precondition {
            Precondition::None => Ok(()),
            Precondition::Absent => match Self::find(path)? {
                None => Ok(()),
                Some(_) => Err(s3_error!(PreconditionFailed, "the object exists")),
            },
            Precondition::Matches(condition) => {
                let found = Self::find(path)?.ok_or_else(|| s3_error!(NoSuchKey))?;
                if matches(condition, &etag(&found)) {
                    return Ok(());
                }
                Err(s3_error!(PreconditionFailed, "the object has another ETag"))
            }
        }
    }

    /// Gives the finished file `staged` its key, durably, and returns the new ETag. The caller holds the key.
    pub(crate) fn publish(&self, staged: &Path, path: &Path, precondition: &Precondition) -> S3Result<ETag> {
        Self::check(path, precondition)?;
        if path.is_dir() {
            return Err(s3_error!(
                InvalidArgument,
                "the key is the beginning of other keys, hence a folder here"
            ));
        }
        let file = File::options().write(true).open(staged).map_err(storage_error)?;
        file.set_modified(self.stamp()).map_err(storage_error)?;
        file.sync_all().map_err(storage_error)?;
        let metadata = file.metadata().map_err(storage_error)?;
        let dir = self.make_dirs(path)?;
        match precondition {
            // A link never replaces; a second guard beside the lock.
            Precondition::Absent => fs::hard_link(staged, path).map_err(link_error)?,
            _ => fs::rename(staged, path).map_err(storage_error)?,
        }
        sync_dir(&dir).map_err(storage_error)?;
        Ok(etag(&metadata))
    }

    /// Removes an object, durably; one that is not there is as good as removed.
    pub(crate) fn remove(path: &Path) -> S3Result<()> {
        match fs::symlink_metadata(path) {
            Ok(metadata) if metadata.is_dir() => return Ok(()),
            Err(error) if is_absence(&error) => return Ok(()),
            Err(error) => return Err(storage_error(error)),
            Ok(_) => fs::remove_file(path).map_err(storage_error)?,
        }
        path.parent().map_or(Ok(()), sync_dir).map_err(storage_error)
    }

    /// Makes the folders above `path`, each durable in its parent, and returns the innermost.
    fn make_dirs(&self, path: &Path) -> S3Result<PathBuf> {
        let inside = path.strip_prefix(&self.root).map_err(S3Error::internal_error)?;
        let mut dir = self.root.clone();
        for part in inside.parent().into_iter().flatten() {
            let parent = dir.clone();
            dir.push(part);
            self.make_dir(&parent, &dir)?;
        }
        Ok(dir)
    }

    fn make_dir(&self, parent: &Path, dir: &Path) -> S3Result<()> {
        let known = || self.durable_dirs.lock().unwrap_or_else(PoisonError::into_inner);
        if known().contains(dir) {
            return Ok(());
        }
        match fs::create_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(s3_error!(
                    InvalidArgument,
                    "a part of the key is an object, hence no folder here"
                ));
            }
            result => result.map_err(storage_error)?,
        }
        // Also when it was there: whoever made it may not have synced it yet.
        sync_dir(parent).map_err(storage_error)?;
        let mut known = known();
        if known.len() >= KNOWN_DIRS_MAX {
            known.clear();
        }
        known.insert(dir.to_owned());
        Ok(())
    }

    /// A moment that no object written by this process has, so that no two versions of a key share an ETag.
    fn stamp(&self) -> SystemTime {
        let mut newest = self.newest_stamp.lock().unwrap_or_else(PoisonError::into_inner);
        *newest = SystemTime::now().max(*newest + Duration::from_nanos(1));
        *newest
    }
}

/// Identifies a version of an object. Not an MD5 of the body: that would have to be kept beside it, and the two could
/// part in a crash.
pub(crate) fn etag(metadata: &Metadata) -> ETag {
    let modified_ns = i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
    ETag::Strong(format!("{modified_ns:x}-{:x}-{:x}", metadata.ino(), metadata.len()))
}

/// Whether an object with this ETag meets the condition.
pub(crate) fn matches(condition: &ETagCondition, etag: &ETag) -> bool {
    condition.is_any() || condition.as_etag().is_some_and(|wanted| wanted.strong_cmp(etag))
}

pub(crate) fn is_absence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// What may stand between the slashes of a key.
pub(crate) fn is_key_part(part: &str) -> bool {
    !matches!(part, "" | "." | "..") && part.len() <= KEY_PART_BYTES_MAX && !part.contains('\0')
}

fn link_error(error: io::Error) -> S3Error {
    match error.kind() {
        io::ErrorKind::AlreadyExists => s3_error!(PreconditionFailed, "the object exists"),
        _ => storage_error(error),
    }
}

/// An answer for a failure of the file system; a full disk has one that clients do not retry.
pub(crate) fn storage_error(error: io::Error) -> S3Error {
    if !matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
        tracing::warn!(%error, "the file system refused a request");
        return S3Error::internal_error(error);
    }
    let code = S3ErrorCode::Custom("StorageFull".into());
    let mut answer =
        S3Error::with_message(code, "the disk of the embedded S3 server is full; free space there");
    answer.set_status_code(hyper::StatusCode::INSUFFICIENT_STORAGE);
    answer
}

/// Somewhere below lies what is no folder.
fn holds_a_file(dir: &Path) -> io::Result<bool> {
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if !entry.file_type()?.is_dir() {
                return Ok(true);
            }
            dirs.push(entry.path());
        }
    }
    Ok(false)
}

pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
