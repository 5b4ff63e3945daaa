//! Folders, ports and locks.

use std::ffi::OsStr;
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::owner::Owner;

/// Ports below those that systems give to outgoing connections, so that a stopped server finds its port free again.
const PORTS: std::ops::Range<u16> = 21_000..31_000;

/// The ignored folder of this clone; `MUSTER_SERVICES` names another one.
pub(crate) fn shared_dir() -> Result<PathBuf> {
    let dir = std::env::var_os("MUSTER_SERVICES")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.services"), PathBuf::from);
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot create `{}`", dir.display()))?;
    dir.canonicalize().with_context(|| format!("cannot find `{}`", dir.display()))
}

/// A folder of the shared services that `owner` can reach: in [`shared_dir`], or in `/var/tmp` if that lies behind a
/// folder that is closed to others, such as root's home.
pub(crate) fn shared_dir_of(owner: &Owner, name: &str) -> Result<PathBuf> {
    let shared = shared_dir()?;
    let dir = if owner.can_reach(&shared) {
        shared.join(name)
    } else {
        Path::new("/var/tmp").join(format!("muster-services-{:016x}", hash(shared.as_os_str()))).join(name)
    };
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot create `{}`", dir.display()))?;
    Ok(dir)
}

/// A new temporary folder that `owner` can reach and owns. It stays until someone removes it.
pub(crate) fn temporary_dir(owner: &Owner, prefix: &str) -> Result<PathBuf> {
    let candidates = [std::env::temp_dir(), PathBuf::from("/var/tmp"), PathBuf::from("/tmp")];
    let Some(parent) = candidates.iter().find(|dir| dir.is_dir() && owner.can_reach(dir)) else {
        bail!("no temporary folder can be reached by user {owner}: set TMPDIR to one that can");
    };
    let dir = tempfile::Builder::new()
        .prefix(prefix)
        .tempdir_in(parent)
        .with_context(|| format!("cannot create a folder in `{}`", parent.display()))?
        .keep();
    owner.give(&dir)?;
    Ok(dir)
}

/// Holds everyone else out of `dir` until it is dropped.
pub(crate) fn lock(dir: &Path) -> Result<File> {
    let path = dir.join("lock");
    let file = File::create(&path).with_context(|| format!("cannot write `{}`", path.display()))?;
    file.lock().with_context(|| format!("cannot lock `{}`", path.display()))?;
    Ok(file)
}

/// The port that `dir` remembers if it is free, else a free one, which it remembers from now on.
pub(crate) fn settle_port(dir: &Path) -> Result<u16> {
    let path = dir.join("port");
    if let Some(port) = remembered_port(dir).filter(|port| is_free(*port)) {
        return Ok(port);
    }
    let span = usize::from(PORTS.end - PORTS.start);
    // Everyone begins at another place, so that two who look at the same time rarely meet.
    let begin = hash((dir, std::process::id())) % u64::from(PORTS.end - PORTS.start);
    let from = PORTS.start + u16::try_from(begin).unwrap_or(0);
    let Some(port) = (from..PORTS.end).chain(PORTS.start..from).take(span).find(|port| is_free(*port)) else {
        bail!("no port of {PORTS:?} is free");
    };
    std::fs::write(&path, port.to_string()).with_context(|| format!("cannot write `{}`", path.display()))?;
    Ok(port)
}

/// The port that `dir` remembers.
pub(crate) fn remembered_port(dir: &Path) -> Option<u16> {
    std::fs::read_to_string(dir.join("port")).ok()?.trim().parse().ok()
}

fn is_free(port: u16) -> bool {
    TcpListener::bind(("127.0.0.1", port)).is_ok()
}

fn hash(what: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish()
}

/// The user's cache folder for Muster.
pub(crate) fn cache_dir() -> Result<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| value.as_os_str() != OsStr::new(""));
    let base = set("XDG_CACHE_HOME").map(PathBuf::from);
    let Some(base) = base.or_else(|| Some(PathBuf::from(set("HOME")?).join(".cache"))) else {
        bail!("neither XDG_CACHE_HOME nor HOME is set: set one, for the folder that keeps the MinIO binary");
    };
    let dir = base.join("muster");
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot create `{}`", dir.display()))?;
    Ok(dir)
}
