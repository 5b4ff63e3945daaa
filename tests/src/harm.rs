//! Harm that is undone when it is dropped.

use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// A file that is not what it was.
#[derive(Debug)]
pub struct Harmed {
    path: PathBuf,
    before: Vec<u8>,
}

impl Harmed {
    fn of(path: &Path) -> Self {
        let before = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self { path: path.to_owned(), before }
    }

    /// One bit of one byte.
    pub fn flipped(path: &Path, offset: u64) -> Self {
        let harmed = Self::of(path);
        let mut file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
        let mut byte = [0];
        file.seek(SeekFrom::Start(offset)).unwrap();
        file.read_exact(&mut byte).unwrap();
        file.seek(SeekFrom::Start(offset)).unwrap();
        file.write_all(&[byte[0] ^ 0x10]).unwrap();
        harmed
    }

    /// Its second half is gone.
    pub fn truncated(path: &Path) -> Self {
        let harmed = Self::of(path);
        std::fs::write(path, &harmed.before[..harmed.before.len() / 2]).unwrap();
        harmed
    }

    /// It is gone.
    pub fn missing(path: &Path) -> Self {
        let harmed = Self::of(path);
        std::fs::remove_file(path).unwrap();
        harmed
    }

    /// Other text in it.
    pub fn replaced(path: &Path, from: &str, to: &str) -> Self {
        let harmed = Self::of(path);
        let text = String::from_utf8(harmed.before.clone()).unwrap();
        assert!(text.contains(from), "{} does not hold `{from}`", path.display());
        std::fs::write(path, text.replacen(from, to, 1)).unwrap();
        harmed
    }

    /// A later Muster wrote it: its `format` is 99.
    pub fn of_the_future(path: &Path) -> Self {
        let harmed = Self::of(path);
        let zipped = path.extension().is_some_and(|extension| extension == "zst");
        let text = if zipped { zstd::decode_all(&harmed.before[..]).unwrap() } else { harmed.before.clone() };
        let mut document: Value = serde_json::from_slice(&text).unwrap();
        document["format"] = 99.into();
        let text = serde_json::to_vec(&document).unwrap();
        std::fs::write(path, if zipped { zstd::encode_all(&text[..], 3).unwrap() } else { text }).unwrap();
        harmed
    }
}

impl Drop for Harmed {
    fn drop(&mut self) {
        // A test that has failed may have removed the folder.
        let _ = std::fs::write(&self.path, &self.before);
    }
}

/// A mount, taken away when dropped. Needs root, which CI has; elsewhere `unshare -rm` gives it.
#[derive(Debug)]
pub struct Mount(PathBuf);

impl Mount {
    /// A disk of so many KiB at a folder.
    #[track_caller]
    pub fn small_disk(at: &Path, kibibytes: u64) -> Self {
        std::fs::create_dir_all(at).unwrap();
        mount(&["-t", "tmpfs", "-o", &format!("size={kibibytes}k"), "tmpfs"], at);
        Self(at.to_owned())
    }

    /// Another size for it.
    #[track_caller]
    pub fn resize(&self, kibibytes: u64) {
        mount(&["-o", &format!("remount,size={kibibytes}k")], &self.0);
    }

    /// A file that nobody can write to.
    #[track_caller]
    pub fn read_only(file: &Path) -> Self {
        mount(&["--bind", &file.display().to_string()], file);
        let mounted = Self(file.to_owned());
        mount(&["-o", "remount,bind,ro"], file);
        mounted
    }
}

#[track_caller]
fn mount(args: &[&str], at: &Path) {
    let output = Command::new("mount").args(args).arg(at).output().expect("mount is installed");
    assert!(
        output.status.success(),
        "mount {} {}: {}\nthis test mounts: run it as root, or as `unshare -rm cargo test -p muster-tests`",
        args.join(" "),
        at.display(),
        String::from_utf8_lossy(&output.stderr)
    );
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Lazily: whoever still has a file open there keeps it until it ends.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
