//! Servers of one's own end with their process, however it ends.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

#[test]
fn nothing_is_left_of_a_killed_process() {
    let temp = tempfile::tempdir().unwrap();
    // The server's user must reach it, too.
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(temp.path(), open).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_muster-services"))
        .arg("own")
        .env("TMPDIR", temp.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let said: Vec<String> = lines.take(3).map(Result::unwrap).collect();
    let folders = || std::fs::read_dir(temp.path()).unwrap().count();
    assert_eq!((said.len(), folders()), (3, 2), "{said:?}");
    let ports: Vec<u16> = said[..2].iter().map(|line| port(line)).collect();
    assert!(ports.iter().all(|port| answers(*port)));
    child.kill().unwrap();
    child.wait().unwrap();
    let began = Instant::now();
    while folders() > 0 || ports.iter().any(|port| answers(*port)) {
        assert!(began.elapsed() < Duration::from_secs(60), "{} folders are left", folders());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// `… 127.0.0.1:PORT` or `… 127.0.0.1:PORT/postgres`.
fn port(line: &str) -> u16 {
    let digits = line.rsplit(':').next().and_then(|rest| rest.split('/').next());
    digits.and_then(|digits| digits.parse().ok()).unwrap_or_else(|| panic!("no port in `{line}`"))
}

fn answers(port: u16) -> bool {
    std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
}
