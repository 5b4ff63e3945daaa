//! A running `muster s3 serve`.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// The server of one world; killed when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    /// Its port.
    pub(crate) port: u16,
}

impl Server {
    /// Starts it on `port` (0 takes a free one) and waits until it says that it serves.
    pub(crate) fn start(dir: &Path, port: u16) -> Self {
        let mut child = Command::new(super::muster())
            .args(["s3", "serve"])
            .arg(dir)
            .args(["--listen", &format!("127.0.0.1:{port}")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("muster s3 serve starts");
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let first = lines.next().and_then(Result::ok).unwrap_or_default();
        let port = first.rsplit(':').next().and_then(|port| port.trim().parse().ok());
        let Some(port) = port else {
            // It ends by itself, or is beyond help.
            let _ = child.kill();
            let _ = child.wait();
            panic!("muster s3 serve said `{first}` instead of its address");
        };
        // What it says later must not fill the pipe.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        Self { child, port }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A server that is gone needs no killing.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
