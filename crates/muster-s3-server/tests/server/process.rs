//! Clients of the server, and the test's own binary run again as another process.

use std::io::{BufRead as _, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region, RequestChecksumCalculation};

/// What a second process is told, in its environment: absent in the test run itself.
const TASK: &str = "MUSTER_TEST_TASK";

/// The task of this process, if it was started by [`spawn`].
pub(crate) fn task() -> Option<Vec<String>> {
    std::env::var(TASK).ok().map(|task| task.split('\n').map(str::to_owned).collect())
}

/// Runs the test function `name` of this binary in another process, with `task` as its [`task`].
pub(crate) fn spawn(name: &str, task: &[&str]) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture"])
        .env(TASK, task.join("\n"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Reads the process's output up to a line that begins with `word`, and returns the rest of that line.
pub(crate) fn wait_for_line(child: &mut Child, word: &str) -> String {
    let output = BufReader::new(child.stdout.take().unwrap());
    let mut lines = output.lines().map(Result::unwrap);
    let line = lines.find_map(|line| line.strip_prefix(word).map(str::to_owned));
    line.unwrap_or_else(|| panic!("the other process ended without `{word}`"))
}

/// A port that was free a moment ago.
pub(crate) fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Access key and secret from a credentials file.
pub(crate) fn keys(file: &Path) -> (String, String) {
    let text = std::fs::read_to_string(file).unwrap();
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim_start_matches([' ', '=']).to_owned()
    };
    (value("aws_access_key_id"), value("aws_secret_access_key"))
}

/// A client that tries `attempts` times.
pub(crate) fn client(addr: SocketAddr, (access_key, secret_key): (String, String), attempts: u32) -> Client {
    let retries = RetryConfig::standard()
        .with_max_attempts(attempts)
        .with_initial_backoff(Duration::from_millis(50))
        .with_max_backoff(Duration::from_millis(200));
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .endpoint_url(format!("http://{addr}"))
        .force_path_style(true)
        .credentials_provider(Credentials::new(access_key, secret_key, None, None, "test"))
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .timeout_config(TimeoutConfig::builder().operation_attempt_timeout(Duration::from_secs(10)).build())
        .retry_config(retries)
        .build();
    Client::from_conf(config)
}

/// Body number `seed`: `length` bytes that name seed and length at the beginning and then follow from them.
pub(crate) fn body(seed: u64, length: usize) -> Vec<u8> {
    let head = format!("{seed} {length}\n").into_bytes();
    let word = (seed + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes();
    let mut bytes = word.repeat(length / word.len() + 1);
    bytes.splice(..0, head);
    bytes.truncate(length);
    bytes
}

/// The seed of a whole body; a body that is not whole fails the test.
pub(crate) fn seed_of(bytes: &[u8]) -> u64 {
    let head = bytes.split(|byte| *byte == b'\n').next().unwrap();
    let head = std::str::from_utf8(head).unwrap();
    let (seed, length) = head.split_once(' ').unwrap();
    let (seed, length) = (seed.parse().unwrap(), length.parse().unwrap());
    assert!(bytes == body(seed, length), "body {seed} of {length} bytes is not whole: {} bytes", bytes.len());
    seed
}
