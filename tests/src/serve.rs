//! A running `muster serve`.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Stdio};

use crate::world::{World, until};

/// A server on a topology of its own, killed when this is dropped.
///
/// The world's topology has `LISTEN` where the address is to stand; the server's own is `NAME.toml`.
#[derive(Debug)]
pub struct ServeProcess {
    child: Child,
    addr: SocketAddr,
    log: PathBuf,
}

impl ServeProcess {
    /// Starts a server of this name, at a port that was free a moment ago.
    pub fn start(world: &World, name: &str) -> Self {
        let addr = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its number");
        let topology = std::fs::read_to_string(world.path("muster.toml")).expect("a topology");
        let own = format!("{name}.toml");
        std::fs::write(world.path(&own), topology.replace("LISTEN", &addr.to_string())).expect("a file");
        let log = world.path(&format!("{name}.log"));
        let file = std::fs::File::create(&log).expect("a log");
        let mut command = world.command(&["serve"]);
        command.env("MUSTER_TOPOLOGY", own).stdout(Stdio::null()).stderr(file);
        Self { child: command.spawn().expect("muster serve starts"), addr, log }
    }

    /// What it said on standard error.
    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Status and body of an answer; none while it does not listen.
    pub fn get(&self, path: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(self.addr).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: muster\r\nConnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
    }

    /// Its metrics; empty while it does not listen.
    pub fn metrics(&self) -> String {
        self.get("/metrics").map(|(_, body)| body).unwrap_or_default()
    }

    /// Waits until it says that it is ready.
    #[track_caller]
    pub fn is_ready(&self) {
        until("the server is ready", || self.get("/readyz").is_some_and(|(status, _)| status == 200));
    }

    /// A part of the name that it has in records.
    pub fn name_part(&self) -> String {
        format!("-{}-", self.child.id())
    }

    /// What it uses of the machine's memory, as the kernel counts it; 0 once it has ended.
    pub fn memory_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kibibytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
        kibibytes.unwrap_or(0) * 1024
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.child.kill().expect("it can be killed");
        self.child.wait().expect("it ends");
    }

    /// SIGTERM, then its end with code 0.
    #[track_caller]
    pub fn stops(mut self) {
        let kill = std::process::Command::new("kill").arg(self.child.id().to_string()).status();
        assert!(kill.expect("there is a kill").success());
        let mut status = None;
        until("the server to stop", || {
            status = self.child.try_wait().expect("it can be asked");
            status.is_some()
        });
        assert!(status.is_some_and(|status| status.success()), "{status:?}");
        assert!(self.said().contains("stopped"), "{}", self.said());
    }
}

impl Drop for ServeProcess {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("{}:\n{}", self.log.display(), self.said());
        }
    }
}
