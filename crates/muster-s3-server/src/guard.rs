//! Keeping an endpoint served while a command runs, whoever serves it.

use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use crate::error::ServerError;
use crate::lock::{FolderLock, LockFile, holder, holder_text};
use crate::server::{ServerConfig, check_loopback, serve, stopped};

/// A server starts within milliseconds; beyond this something is wrong and the user should hear what.
const READY_WAIT: Duration = Duration::from_secs(10);
const READY_RETRY: Duration = Duration::from_millis(10);
const CONNECT_WAIT: Duration = Duration::from_secs(1);

/// Requests are mostly file work, which has threads of its own.
const SERVER_THREADS: usize = 2;

/// Stands by to serve a folder, and serves it as soon as nobody else does.
#[derive(Debug)]
pub struct Guard {
    config: ServerConfig,
    state: watch::Receiver<State>,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Clone)]
enum State {
    /// Another process has the folder.
    Waiting,
    /// This process has the folder and no port yet.
    Starting,
    /// This process serves it.
    Serving,
    /// This process cannot serve it.
    Failed(ServerError),
}

/// Serves `config` from a thread of its own if nobody does; otherwise waits until the process that does is gone, and
/// then serves it on the same port, so that clients which retry go on.
pub fn guard(config: ServerConfig) -> Guard {
    let (report, state) = watch::channel(State::Waiting);
    let (stop, stopping) = watch::channel(false);
    let thread = match first_try(&config) {
        Err(error) => {
            report.send_replace(State::Failed(error));
            None
        }
        Ok(lock) => {
            if lock.is_ok() {
                report.send_replace(State::Starting);
            }
            let theirs = config.clone();
            Some(thread::spawn(move || stand_by(lock, theirs, &report, stopping)))
        }
    };
    Guard { config, state, stop, thread }
}

type Tried = Result<FolderLock, LockFile>;

fn first_try(config: &ServerConfig) -> Result<Tried, ServerError> {
    check_loopback(config.listen)?;
    LockFile::open(&config.dir)?.try_lock()
}

fn stand_by(
    tried: Tried,
    config: ServerConfig,
    report: &watch::Sender<State>,
    mut stopping: watch::Receiver<bool>,
) {
    // The wait has no bound and cannot be broken off; the process does not wait for this thread when it ends.
    let lock = match tried.or_else(LockFile::lock) {
        Ok(lock) => lock,
        Err(error) => {
            report.send_replace(State::Failed(error));
            return;
        }
    };
    if *stopping.borrow() {
        return;
    }
    report.send_replace(State::Starting);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(SERVER_THREADS)
        .thread_name("embedded-s3")
        .enable_all()
        .build();
    let runtime = match runtime.map_err(ServerError::io("start threads to serve", &config.dir)) {
        Ok(runtime) => runtime,
        Err(error) => {
            report.send_replace(State::Failed(error));
            return;
        }
    };
    runtime.block_on(async {
        match serve(lock, config).await {
            Err(error) => {
                report.send_replace(State::Failed(error));
            }
            Ok(server) => {
                report.send_replace(State::Serving);
                stopped(&mut stopping).await;
                server.shutdown().await;
            }
        }
    });
}

impl Guard {
    /// Waits until the endpoint accepts connections, for about ten seconds at most.
    ///
    /// # Errors
    /// [`ServerError`] saying why it does not.
    pub async fn ready(&self) -> Result<(), ServerError> {
        let deadline = Instant::now() + READY_WAIT;
        loop {
            let state = self.state.borrow().clone();
            match state {
                State::Failed(error) => return Err(error),
                State::Serving => return Ok(()),
                State::Starting => {}
                State::Waiting => {
                    if self.served_by_another().await {
                        return Ok(());
                    }
                }
            }
            if Instant::now() >= deadline {
                return Err(self.not_ready());
            }
            sleep(READY_RETRY).await;
        }
    }

    /// Whether this process is the one that serves the folder.
    pub fn is_serving(&self) -> bool {
        matches!(*self.state.borrow(), State::Serving)
    }

    /// The port alone proves nothing: another program may have it. The holder of the lock says where it serves.
    async fn served_by_another(&self) -> bool {
        if holder(&self.config.dir).is_none_or(|holder| holder.addr != self.config.listen) {
            return false;
        }
        matches!(timeout(CONNECT_WAIT, TcpStream::connect(self.config.listen)).await, Ok(Ok(_)))
    }

    fn not_ready(&self) -> ServerError {
        let (dir, listen) = (self.config.dir.clone(), self.config.listen);
        let text = holder_text(&dir);
        match holder(&dir) {
            Some(holder) if holder.addr != listen => {
                ServerError::Elsewhere { dir, listen, found: holder.addr, holder: text }
            }
            _ => ServerError::NotReady { dir, listen, waited_seconds: READY_WAIT.as_secs(), holder: text },
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        let waiting = matches!(*self.state.borrow(), State::Waiting);
        // A thread that waits for another process's lock would not end; one that serves ends in bounded time.
        if let Some(thread) = self.thread.take().filter(|_| !waiting)
            && thread.join().is_err()
        {
            tracing::warn!("the thread of the embedded S3 server panicked");
        }
    }
}
