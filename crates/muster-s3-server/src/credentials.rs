//! The access key, in the file format that every AWS client reads.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rand::RngExt as _;

use crate::error::ServerError;
use crate::lock::make_private_dir;

/// An access key and its secret.
pub(crate) struct KeyPair {
    pub(crate) access_key: String,
    pub(crate) secret_key: String,
}

/// Makes `dir/.muster/credentials` with a random access key unless it is there, and returns its path.
///
/// Processes that do so at the same moment agree on one key. The file can be given to any AWS client as
/// `AWS_SHARED_CREDENTIALS_FILE`.
///
/// # Errors
/// [`ServerError::Io`] naming the file.
pub fn ensure_credentials(dir: &Path) -> Result<PathBuf, ServerError> {
    let private = make_private_dir(dir)?;
    let path = private.join("credentials");
    if path.exists() {
        return Ok(path);
    }
    let random = format!("{:032x}", rand::rng().random::<u128>());
    let draft = private.join(format!("credentials.{random}"));
    write_draft(&draft).map_err(ServerError::io("write", &draft))?;
    // A link appears whole or not at all, and never replaces what another process linked first.
    let linked = fs::hard_link(&draft, &path);
    let removed = fs::remove_file(&draft);
    match linked {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            Err(ServerError::io("create", &path)(error))
        }
        _ => removed.map(|()| path).map_err(ServerError::io("remove", &draft)),
    }
}

fn write_draft(path: &Path) -> std::io::Result<()> {
    let mut rng = rand::rng();
    let access_key = format!("MUSTER{:016X}", rng.random::<u64>());
    let secret_key = format!("{:032x}{:032x}", rng.random::<u128>(), rng.random::<u128>());
    let text = format!("[default]\naws_access_key_id = {access_key}\naws_secret_access_key = {secret_key}\n");
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// Reads the file that [`ensure_credentials`] made.
pub(crate) fn read(path: &Path) -> Result<KeyPair, ServerError> {
    let text = fs::read_to_string(path).map_err(ServerError::io("read", path))?;
    let value = |wanted: &str| {
        let pairs = text.lines().filter_map(|line| line.split_once('='));
        let mut values =
            pairs.filter(|(name, _)| name.trim() == wanted).map(|(_, value)| value.trim().to_owned());
        values.next().filter(|value| !value.is_empty())
    };
    match (value("aws_access_key_id"), value("aws_secret_access_key")) {
        (Some(access_key), Some(secret_key)) => Ok(KeyPair { access_key, secret_key }),
        _ => Err(ServerError::Credentials { path: path.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn one_key_is_made_whoever_asks_and_only_its_owner_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let secrets: Vec<String> = std::thread::scope(|scope| {
            let ask = || read(&ensure_credentials(dir.path()).unwrap()).unwrap().secret_key;
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(ask)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(secrets.iter().all(|secret| secret == &secrets[0] && secret.len() == 64), "{secrets:?}");
        let path = ensure_credentials(dir.path()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "drafts are removed");
    }

    #[test]
    fn a_file_without_keys_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("credentials");
        fs::write(&path, "[default]\naws_access_key_id =\n").unwrap();
        assert!(matches!(read(&path), Err(ServerError::Credentials { .. })));
    }
}
