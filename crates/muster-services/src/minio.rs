//! A MinIO server.

mod binary;
mod bucket;
mod ranges;

pub use ranges::Range;

use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::owner::Owner;
use crate::place;
use crate::process::{cannot_run, output, runs_in, signal, wait_until};
use crate::tls::Tls;
use crate::watchdog::Watchdog;

/// A busy machine starts it in a few seconds.
const START_SECONDS_MAX: u64 = 60;

/// How many times another port is tried when someone took it between looking and starting.
const START_ATTEMPTS: usize = 5;

/// A running MinIO server, of one disk.
#[derive(Debug)]
pub struct Minio {
    binary: PathBuf,
    /// Holds `port`, `pid`, `log`, `certs`.
    dir: PathBuf,
    /// Holds the objects.
    data: PathBuf,
    port: u16,
    /// What clients have to trust.
    authority: Option<PathBuf>,
    /// Of a server of one's own that runs.
    child: Option<Child>,
    watchdog: Option<Watchdog>,
}

impl Minio {
    /// The shared server of this clone, started if it is not running. It goes on when this value and process end.
    ///
    /// # Errors
    /// MinIO is missing and cannot be built, or does not start; with its log.
    pub fn shared() -> Result<Self> {
        let (mut server, _lock) = Self::shared_locked()?;
        if !server.is_running() {
            server.start_on_free_port()?;
            // It outlives us: not a child to wait for.
            server.child = None;
        }
        Ok(server)
    }

    /// The shared server if it is running.
    ///
    /// # Errors
    /// MinIO is missing and cannot be built.
    pub fn shared_if_running() -> Result<Option<Self>> {
        let (server, _lock) = Self::shared_locked()?;
        Ok(server.is_running().then_some(server))
    }

    fn shared_locked() -> Result<(Self, File)> {
        let dir = place::shared_dir()?.join("minio");
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot create `{}`", dir.display()))?;
        let lock = place::lock(&dir)?;
        let data = dir.join("data");
        Ok((Self::new(dir, data)?, lock))
    }

    /// A new server with its objects in a temporary folder. It is stopped and removed when this value is dropped or
    /// the process ends.
    ///
    /// # Errors
    /// MinIO is missing and cannot be built, or does not start; with its log.
    pub fn own() -> Result<Self> {
        Self::own_with(None, None)
    }

    /// As [`Self::own`], with its objects in a given folder, which stays.
    ///
    /// # Errors
    /// As [`Self::own`].
    pub fn own_at(data: &Path) -> Result<Self> {
        Self::own_with(Some(data), None)
    }

    /// As [`Self::own`], answering by TLS only, with a certificate of `tls`.
    ///
    /// # Errors
    /// As [`Self::own`].
    pub fn own_with_tls(tls: &Tls) -> Result<Self> {
        Self::own_with(None, Some(tls))
    }

    fn own_with(data: Option<&Path>, tls: Option<&Tls>) -> Result<Self> {
        let dir = place::temporary_dir(&Owner::ourselves(), "muster-minio-")?;
        let watchdog = Watchdog::over(&dir, &dir.join("pid"), "KILL")?;
        let data = data.map_or_else(|| dir.join("data"), Path::to_owned);
        let mut server = Self::new(dir, data)?;
        server.watchdog = Some(watchdog);
        if let Some(tls) = tls {
            let certs = server.certs();
            std::fs::create_dir_all(&certs)
                .with_context(|| format!("cannot create `{}`", certs.display()))?;
            for (name, content) in [("public.crt", tls.certificate()?), ("private.key", tls.key()?)] {
                std::fs::write(certs.join(name), content).with_context(|| format!("cannot write {name}"))?;
            }
            server.authority = Some(tls.authority());
        }
        server.start_on_free_port()?;
        Ok(server)
    }

    fn new(dir: PathBuf, data: PathBuf) -> Result<Self> {
        std::fs::create_dir_all(&data).with_context(|| format!("cannot create `{}`", data.display()))?;
        let port = place::remembered_port(&dir).unwrap_or(0);
        Ok(Self { binary: binary::find()?, dir, data, port, authority: None, child: None, watchdog: None })
    }

    /// Its URL.
    pub fn endpoint(&self) -> String {
        let scheme = if self.authority.is_some() { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.port)
    }

    /// Port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Access key of its administrator.
    pub fn access_key(&self) -> &'static str {
        "muster"
    }

    /// Secret key of its administrator. No secret at all: the server listens on loopback and holds nothing of worth.
    pub fn secret_key(&self) -> &'static str {
        "muster-loopback"
    }

    /// Its log.
    pub fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    fn certs(&self) -> PathBuf {
        self.dir.join("certs")
    }

    /// Starts it again, on the same port.
    ///
    /// # Errors
    /// It does not start; with its log.
    pub fn start(&mut self) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.log());
        let log = log.with_context(|| format!("cannot write `{}`", self.log().display()))?;
        let mut command = Command::new(&self.binary);
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("MINIO_"))
        {
            command.env_remove(name);
        }
        command
            .args(["server", "--quiet", "--address", &format!("127.0.0.1:{}", self.port), "--certs-dir"])
            .arg(self.certs())
            .arg(&self.data)
            .envs([("MINIO_ROOT_USER", self.access_key()), ("MINIO_ROOT_PASSWORD", self.secret_key())])
            .envs([("MINIO_BROWSER", "off"), ("MINIO_UPDATE", "off")])
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("cannot share the log")?)
            .stderr(log)
            // It looks for its configuration in the home folder, and stays where it is started.
            .env("HOME", &self.dir)
            .current_dir(&self.dir)
            // A key pressed at the terminal is not for it.
            .process_group(0);
        let mut child = command.spawn().with_context(|| cannot_run(&command))?;
        let pid_file = self.dir.join("pid");
        std::fs::write(&pid_file, child.id().to_string())
            .with_context(|| format!("cannot write `{}`", pid_file.display()))?;
        let started = wait_until("MinIO to start", START_SECONDS_MAX, || {
            if let Some(status) = child.try_wait().context("cannot wait for MinIO")? {
                bail!("it ended ({status})");
            }
            // It answers before it can take requests.
            Ok(self.is_running() && self.is_healthy("cluster"))
        });
        self.child = Some(child);
        started.with_context(|| {
            let log = std::fs::read_to_string(self.log()).unwrap_or_default();
            let tail = log.lines().rev().take(10).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>();
            format!(
                "MinIO in `{}` does not start; the end of its log:\n{}",
                self.dir.display(),
                tail.join("\n")
            )
        })
    }

    fn start_on_free_port(&mut self) -> Result<()> {
        for attempt in 1.. {
            self.port = place::settle_port(&self.dir)?;
            match self.start() {
                Ok(()) => return Ok(()),
                Err(error) if attempt == START_ATTEMPTS => return Err(error),
                Err(_) => self.kill()?,
            }
        }
        bail!("MinIO in `{}` was not tried", self.dir.display())
    }

    /// Ends it, with requests under way answered.
    ///
    /// # Errors
    /// It does not end.
    pub fn stop(&mut self) -> Result<()> {
        self.end("TERM")
    }

    /// Ends it now, as a crash would.
    ///
    /// # Errors
    /// It does not end.
    pub fn kill(&mut self) -> Result<()> {
        self.end("KILL")
    }

    fn end(&mut self, name: &str) -> Result<()> {
        let Some(pid) = self.pid().filter(|pid| runs_in(*pid, &self.dir)) else { return Ok(()) };
        signal(pid, name)?;
        if let Some(mut child) = self.child.take() {
            child.wait().context("cannot wait for MinIO")?;
            return Ok(());
        }
        wait_until("MinIO to end", START_SECONDS_MAX, || Ok(!runs_in(pid, &self.dir)))
    }

    fn pid(&self) -> Option<u32> {
        std::fs::read_to_string(self.dir.join("pid")).ok()?.trim().parse().ok()
    }

    /// Whether this very server answers.
    fn is_running(&self) -> bool {
        if self.port == 0 || !self.pid().is_some_and(|pid| runs_in(pid, &self.dir)) {
            return false;
        }
        self.is_healthy("live")
    }

    fn is_healthy(&self, check: &str) -> bool {
        let url = format!("{}/minio/health/{check}", self.endpoint());
        let mut command = self.curl();
        output(command.args(["-f", "-o", "/dev/null", "--max-time", "10", &url])).is_ok()
    }
}

impl Drop for Minio {
    fn drop(&mut self) {
        let Some(watchdog) = self.watchdog.take() else { return };
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself; the watchdog looks again.
            let _ = child.kill();
            let _ = child.wait();
        }
        drop(watchdog);
    }
}
