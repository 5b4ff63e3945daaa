//! Where the binary is.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The `muster` binary of this build, built again if it is missing or older than its sources (cargo decides).
pub fn muster() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let test = std::env::current_exe().expect("a test has a path");
        // target/PROFILE/deps/TEST
        let profile_dir = test.ancestors().nth(2).expect("a test lies in target/PROFILE/deps");
        build(profile_dir);
        let binary = profile_dir.join("muster");
        assert!(binary.is_file(), "`{}` is missing: run `cargo build -p muster-cli`", binary.display());
        binary
    })
}

fn build(profile_dir: &Path) {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .args(["build", "--quiet", "--locked", "-p", "muster-cli"])
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    // What cargo tells a test about its package would have build scripts that look at it (ring's) run again, and all that
    // depends on them compiled again.
    let told = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(told)) {
        command.env_remove(name);
    }
    if profile_dir.ends_with("release") {
        command.arg("--release");
    }
    if let Some(target) = profile_dir.parent() {
        command.arg("--target-dir").arg(target);
    }
    let output = command.output().expect("cargo runs");
    assert!(
        output.status.success(),
        "`cargo build -p muster-cli` failed:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
