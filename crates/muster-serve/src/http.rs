//! Health and metrics over HTTP.
//!
//! - `/healthz`: 200 while the process runs.
//! - `/readyz`: 200 while nothing stands in the way of a restore to a moment ago; else 503 with what does, a line each.
//! - `/metrics`: OpenMetrics text.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

use crate::metrics::Metrics;

/// Monitoring systems ask from a few places; further ones wait to be accepted.
const CONNECTIONS_MAX: usize = 64;

/// A connection that asks nothing, or takes its answer slowly, is closed.
const CONNECTION_MAX: Duration = Duration::from_secs(60);

/// What can be asked.
pub struct Pages {
    /// Everything that is counted.
    pub metrics: Arc<Metrics>,
    /// What stands in the way now, a line each; none if nothing does.
    pub obstacles: Arc<dyn Fn() -> Vec<String> + Send + Sync>,
}

/// Binds the address.
///
/// # Errors
/// It is taken, or not this machine's.
pub async fn bind(listen: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(listen).await
}

/// Answers until told to stop.
pub async fn serve(listener: TcpListener, pages: Arc<Pages>, mut stop: watch::Receiver<bool>) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        // The semaphore is never closed.
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.wait_for(|stop| *stop) => return,
        };
        let Ok((stream, _)) = accepted else {
            // Out of file descriptors, mostly: let some connections end first.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let pages = Arc::clone(&pages);
        tokio::spawn(async move {
            let answer = service_fn(move |request| {
                let answer = answer(&pages, &request);
                async move { Ok::<_, Infallible>(answer) }
            });
            let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), answer);
            // A client that went away is nobody's error.
            let _ = tokio::time::timeout(CONNECTION_MAX, connection).await;
            drop(permit);
        });
    }
}

fn answer(pages: &Pages, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    const PLAIN: &str = "text/plain; charset=utf-8";
    const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let (status, content, body) = match request.uri().path() {
        "/healthz" => (StatusCode::OK, PLAIN, "ok\n".to_owned()),
        "/readyz" => match (pages.obstacles)() {
            none if none.is_empty() => (StatusCode::OK, PLAIN, "ready\n".to_owned()),
            obstacles => (StatusCode::SERVICE_UNAVAILABLE, PLAIN, obstacles.join("\n") + "\n"),
        },
        "/metrics" => (StatusCode::OK, OPEN_METRICS, pages.metrics.text()),
        _ => (StatusCode::NOT_FOUND, PLAIN, "there are /healthz, /readyz and /metrics\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(content));
    response
}
