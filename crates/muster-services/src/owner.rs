//! Who owns a server's process and files.

use std::os::unix::fs::{MetadataExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::process::output;

/// An unprivileged user: ourselves, or another one if we are root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    name: String,
    /// User and group to become; none if that is what we are.
    ids: Option<(u32, u32)>,
}

impl Owner {
    /// Ourselves, whoever that is.
    pub(crate) fn ourselves() -> Self {
        Self { name: "ourselves".to_owned(), ids: None }
    }

    /// Ourselves, or `postgres` (else `nobody`) if we are root.
    pub(crate) fn unprivileged() -> Result<Self> {
        if id(&["-u"])? != 0 {
            return Ok(Self::ourselves());
        }
        for name in ["postgres", "nobody"] {
            if let (Ok(user), Ok(group)) = (id(&["-u", name]), id(&["-g", name])) {
                return Ok(Self { name: name.to_owned(), ids: Some((user, group)) });
            }
        }
        bail!(
            "PostgreSQL does not run as root, and there is no user `postgres`: create it (useradd postgres)"
        )
    }

    /// Whether every folder on the way to `dir`, and that one too, lets this user pass.
    pub(crate) fn can_reach(&self, dir: &Path) -> bool {
        let Some((user, _)) = self.ids else { return true };
        let passes = |dir: &Path| {
            std::fs::metadata(dir).is_ok_and(|meta| meta.mode() & 0o001 != 0 || meta.uid() == user)
        };
        dir.ancestors().all(passes)
    }

    /// Makes a file or folder this user's.
    pub(crate) fn give(&self, path: &Path) -> Result<()> {
        let Some((user, group)) = self.ids else { return Ok(()) };
        chown(path, Some(user), Some(group))
            .with_context(|| format!("cannot give `{}` to {self}", path.display()))
    }

    /// Makes a command run as this user, from a folder that everyone can enter.
    pub(crate) fn run(&self, command: &mut Command) {
        if let Some((user, group)) = self.ids {
            command.uid(user).gid(group).current_dir("/").env("HOME", "/").env("USER", &self.name);
        }
    }
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)
    }
}

fn id(args: &[&str]) -> Result<u32> {
    let text = output(Command::new("id").args(args))?;
    text.trim().parse().with_context(|| format!("`id {}` printed `{text}`", args.join(" ")))
}
