//! Where the programs of PostgreSQL are.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::process::{on_path, output};

/// The oldest whose logical decoding Muster reads.
const VERSION_MIN: u32 = 15;

/// The folder with `postgres`, `initdb` and `pg_ctl`; installs Debian's package if there is none and we may.
pub(crate) fn postgres() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("MUSTER_POSTGRES_BIN").map(PathBuf::from) {
        version(&dir).with_context(|| format!("MUSTER_POSTGRES_BIN is `{}`", dir.display()))?;
        return Ok(dir);
    }
    if let Some(dir) = find() {
        return Ok(dir);
    }
    install()?;
    find().with_context(|| missing("the package `postgresql` of this system is older"))
}

fn missing(why: &str) -> String {
    format!(
        "PostgreSQL {VERSION_MIN} or later is missing ({why}): install it (Debian: apt-get install postgresql), or set \
         MUSTER_POSTGRES_BIN to the folder with its `postgres` and `initdb`"
    )
}

/// What the search path has, else the newest of what systems put beside it.
fn find() -> Option<PathBuf> {
    let fits = |dir: &Path| version(dir).ok().filter(|version| *version >= VERSION_MIN);
    let of_path = on_path("postgres").and_then(|file| Some(file.canonicalize().ok()?.parent()?.to_owned()));
    if let Some(dir) = of_path.filter(|dir| fits(dir).is_some()) {
        return Some(dir);
    }
    let parents = ["/usr/lib/postgresql", "/usr", "/usr/local/opt", "/opt/homebrew/opt"];
    let entries = parents.iter().filter_map(|parent| std::fs::read_dir(parent).ok()).flatten();
    let dirs = entries.filter_map(Result::ok).map(|entry| entry.path().join("bin"));
    let found = dirs.filter(|dir| dir.join("initdb").is_file());
    found.filter_map(|dir| Some((fits(&dir)?, dir))).max().map(|(_, dir)| dir)
}

/// The major version of the server in a folder that has everything.
fn version(dir: &Path) -> Result<u32> {
    for name in ["initdb", "pg_ctl", "psql"] {
        if !dir.join(name).is_file() {
            bail!("`{}` has no `{name}`", dir.display());
        }
    }
    let said = output(Command::new(dir.join("postgres")).arg("--version"))?;
    // postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)
    let number = said.split_whitespace().nth(2).and_then(|number| number.split('.').next());
    number
        .and_then(|number| number.trim_end_matches(char::is_alphabetic).parse().ok())
        .with_context(|| format!("`postgres --version` printed `{said}`"))
}

fn install() -> Result<()> {
    let root = output(Command::new("id").arg("-u"))?.trim() == "0";
    if !root || on_path("apt-get").is_none() {
        bail!(missing("and it can be installed from here only by root on Debian or its kin"));
    }
    let lock = ["-o", "DPkg::Lock::Timeout=600"];
    let apt = |args: &[&str]| {
        let mut command = Command::new("apt-get");
        command.args(lock).args(["-qq", "-y"]).args(args).env("DEBIAN_FRONTEND", "noninteractive");
        output(&mut command).with_context(|| missing("and installing it failed"))
    };
    apt(&["update"])?;
    apt(&["install", "--no-install-recommends", "postgresql"])?;
    Ok(())
}
