//! What a cluster's configuration files say.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::Postgres;

/// Roles of this group show their password.
pub(super) const PASSWORD_GROUP: &str = "muster_by_password";

/// What every cluster has; a setting given later wins.
const SETTINGS: [(&str, &str); 9] = [
    ("listen_addresses", "127.0.0.1"),
    ("wal_level", "logical"),
    ("max_replication_slots", "64"),
    ("max_wal_senders", "64"),
    ("max_connections", "300"),
    ("track_commit_timestamp", "on"),
    ("hot_standby", "on"),
    ("logging_collector", "off"),
    ("timezone", "UTC"),
];

/// The longest path of a Unix socket, with room for its name.
const SOCKET_DIR_BYTES_MAX: usize = 80;

impl Postgres {
    /// Adds settings for the next start. `postgresql.conf` reads them from a file of ours.
    pub(super) fn configure(&self, settings: &[(&str, &str)]) -> Result<()> {
        let path = self.data_dir().join("muster.conf");
        let socket_dir = self.dir.to_string_lossy().into_owned();
        let fits = socket_dir.len() <= SOCKET_DIR_BYTES_MAX;
        let socket = ("unix_socket_directories", if fits { socket_dir.as_str() } else { "" });
        let mut text = std::fs::read_to_string(&path).unwrap_or_default();
        let already = text.starts_with("#");
        if !already {
            text.clear();
            text.push_str("# Written by muster-services.\n");
        }
        let usual = SETTINGS.iter().chain([&socket]).filter(|_| !already);
        for (name, value) in usual.chain(settings) {
            let _ = writeln!(text, "{name} = '{}'", value.replace('\'', "''"));
        }
        self.write_private(&path, text.as_bytes())?;
        if !already {
            self.append("postgresql.conf", "\ninclude_if_exists 'muster.conf'\n")?;
            let rules = format!(
                "host all +{PASSWORD_GROUP} all scram-sha-256\nhost replication +{PASSWORD_GROUP} all scram-sha-256\n"
            );
            self.prepend("pg_hba.conf", &rules)?;
        }
        Ok(())
    }

    fn append(&self, name: &str, text: &str) -> Result<()> {
        let path = self.data_dir().join(name);
        let mut content =
            std::fs::read(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
        content.extend_from_slice(text.as_bytes());
        self.write_private(&path, &content)
    }

    fn prepend(&self, name: &str, text: &str) -> Result<()> {
        let path = self.data_dir().join(name);
        let content =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
        self.write_private(&path, format!("{text}{content}").as_bytes())
    }

    /// Writes a file that only the cluster's user may read.
    pub(crate) fn write_private(&self, path: &Path, content: &[u8]) -> Result<()> {
        let open = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(path);
        open.and_then(|mut file| file.write_all(content))
            .with_context(|| format!("cannot write `{}`", path.display()))?;
        self.owner.give(path)
    }
}
