//! Serving a folder on a loopback port.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::pin;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s_fs::FileSystem;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout};

use crate::credentials::{self, ensure_credentials};
use crate::error::ServerError;
use crate::lock::{FolderLock, LockFile, holder_text, private_dir};
use crate::service::SerialisedFs;
use crate::spool::Spool;
use crate::tree::Tree;

/// More than the requests that a few Muster processes have in flight; further clients wait to be accepted.
const CONNECTIONS_MAX: usize = 1024;

/// Requests under way at shutdown may go on so long.
const SHUTDOWN_WAIT: Duration = Duration::from_secs(5);

/// A killed owner's lock can be free an instant before its port is.
const PORT_WAIT: Duration = Duration::from_secs(2);
const PORT_RETRY: Duration = Duration::from_millis(20);

/// What to serve and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerConfig {
    /// The folder; buckets are folders in it.
    pub dir: PathBuf,
    /// A loopback address; port 0 takes any free port.
    pub listen: SocketAddr,
}

/// A server that runs until [`Self::shutdown`] or until this is dropped.
#[derive(Debug)]
pub struct RunningServer {
    /// The address it serves on.
    pub addr: SocketAddr,
    /// The access key, for `AWS_SHARED_CREDENTIALS_FILE`.
    pub credentials_file: PathBuf,
    stop: watch::Sender<bool>,
    accepting: JoinHandle<()>,
}

impl RunningServer {
    /// Lets requests under way end, for a bounded time, and gives the folder up.
    pub async fn shutdown(self) {
        self.stop.send_replace(true);
        if let Err(error) = self.accepting.await {
            tracing::warn!(%error, "the embedded S3 server ended abnormally");
        }
    }
}

/// Serves `config.dir`, which nobody else may be serving.
///
/// # Errors
/// [`ServerError::Owned`] if another server has the folder, even in this process; others name what failed.
pub async fn start(config: ServerConfig) -> Result<RunningServer, ServerError> {
    check_loopback(config.listen)?;
    match LockFile::open(&config.dir)?.try_lock()? {
        Ok(lock) => serve(lock, config).await,
        Err(_) => Err(ServerError::Owned { holder: holder_text(&config.dir), dir: config.dir }),
    }
}

pub(crate) fn check_loopback(listen: SocketAddr) -> Result<(), ServerError> {
    if listen.ip().is_loopback() { Ok(()) } else { Err(ServerError::NotLoopback { listen }) }
}

/// Serves a folder that is already locked.
pub(crate) async fn serve(lock: FolderLock, config: ServerConfig) -> Result<RunningServer, ServerError> {
    let ServerConfig { dir, listen } = config;
    let credentials_file = ensure_credentials(&dir)?;
    let listener = bind(listen).await?;
    let addr = listener.local_addr().map_err(ServerError::io("bind a port for", &dir))?;
    lock.announce(addr).map_err(ServerError::io("write the lock file of", &dir))?;
    let service = service(lock, dir, &credentials_file)?;
    let (stop, stopping) = watch::channel(false);
    let accepting = tokio::spawn(accept(listener, service, stopping));
    tracing::info!(%addr, "serving the embedded repository");
    Ok(RunningServer { addr, credentials_file, stop, accepting })
}

fn service(
    lock: FolderLock,
    dir: PathBuf,
    credentials_file: &std::path::Path,
) -> Result<S3Service, ServerError> {
    let keys = credentials::read(credentials_file)?;
    let spool = Spool::open(&private_dir(&dir))?;
    let files = FileSystem::new(&dir).map_err(|error| ServerError::Io {
        what: "open",
        path: dir.clone(),
        reason: format!("{error:?}"),
    })?;
    let mut builder = S3ServiceBuilder::new(SerialisedFs::new(files, Tree::new(dir, lock), spool));
    builder.set_auth(SimpleAuth::from_single(keys.access_key, keys.secret_key));
    Ok(builder.build())
}

async fn bind(listen: SocketAddr) -> Result<TcpListener, ServerError> {
    let deadline = Instant::now() + PORT_WAIT;
    loop {
        match TcpListener::bind(listen).await {
            Ok(listener) => return Ok(listener),
            Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
                let path = PathBuf::from(listen.to_string());
                return Err(ServerError::io("listen on", &path)(error));
            }
            Err(_) if Instant::now() < deadline => sleep(PORT_RETRY).await,
            Err(_) => return Err(ServerError::AddressInUse { listen }),
        }
    }
}

async fn accept(listener: TcpListener, service: S3Service, mut stopping: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = stopped(&mut stopping) => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(stream, service.clone(), stopping.clone()));
                }
                Err(error) => {
                    // Out of file descriptors, mostly: let some connections end first.
                    tracing::warn!(%error, "the embedded S3 server failed to accept a connection");
                    sleep(PORT_RETRY).await;
                }
            },
        }
    }
    drop(listener);
    let ended = async { while connections.join_next().await.is_some() {} };
    if timeout(SHUTDOWN_WAIT, ended).await.is_err() {
        connections.shutdown().await;
    }
}

async fn connection(stream: TcpStream, service: S3Service, mut stopping: watch::Receiver<bool>) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "failed to set TCP_NODELAY");
    }
    let mut connection = pin!(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = stopped(&mut stopping) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        // Clients come and go; they retry.
        tracing::debug!(%error, "a connection to the embedded S3 server ended early");
    }
}

/// Waits for the order to stop, or for the end of whoever could give it.
pub(crate) async fn stopped(stopping: &mut watch::Receiver<bool>) {
    let _ = stopping.wait_for(|stop| *stop).await;
}
