//! Telling alarms to others: each edge is posted as JSON to every webhook that wants it.
//!
//! # Invariants
//! - Bounded: a queue of [`QUEUE_MAX`] edges for each webhook, [`PAUSES`] between tries, [`ANSWER_MAX`] for each. A receiver
//!   that hangs holds up its own queue and nothing else; what finds no room is dropped and said.
//! - Secrets, and addresses, which may hold one, go to the receiver alone: events name a webhook by its name.
//!
//! # Not here
//! That an edge is told by one server: who has won its slot in the chain of alarms calls [`Webhooks::tell`].

use std::collections::BTreeMap;
use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use muster_types::alarm::{AlarmName, AlarmPayload};
use muster_types::topology::{SecretSource, WebhookAddress, WebhookConfig};
use tokio::sync::{mpsc, watch};

/// Edges that wait for one receiver: all alarms of a bad hour.
pub const QUEUE_MAX: usize = 256;

/// A receiver has so long to answer: it takes a note, and does its work later.
pub const ANSWER_MAX: Duration = Duration::from_secs(10);

/// Before each further try: a restart of a receiver is ridden out, and the queue behind is held up for minutes at most.
pub const PAUSES: [Duration; 4] =
    [Duration::from_secs(1), Duration::from_secs(4), Duration::from_secs(16), Duration::from_secs(64)];

/// What is still in the queue when the server stops is tried once more, for so long in all.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// Why a webhook cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("[serve.webhooks.{webhook}]: {what}")]
pub struct WebhookError {
    webhook: String,
    what: String,
}

/// What came of an edge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebhookEvent {
    /// The webhook's name.
    pub webhook: String,
    /// The edge's id.
    pub id: String,
    /// What came of it.
    pub outcome: Delivery,
}

/// What came of posting an edge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// The receiver has it.
    Delivered,
    /// It will be tried again.
    Retried {
        /// Why.
        error: String,
    },
    /// It will not.
    GivenUp {
        /// Why.
        error: String,
    },
    /// The queue was full.
    Dropped,
}

/// Is told what comes of edges, from any thread; must not block.
pub type WebhookEvents = Arc<dyn Fn(WebhookEvent) + Send + Sync>;

type HttpClient = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// The queues.
pub struct Webhooks {
    queues: Vec<(String, Vec<AlarmName>, mpsc::Sender<Message>)>,
    events: WebhookEvents,
}

#[derive(Clone)]
struct Message {
    id: String,
    body: Bytes,
}

/// Posts what is in one queue.
pub struct Sender {
    name: String,
    uri: Uri,
    secret: Option<(HeaderName, HeaderValue)>,
    client: HttpClient,
    queue: mpsc::Receiver<Message>,
    events: WebhookEvents,
}

impl Webhooks {
    /// The queues, and what empties them.
    ///
    /// # Errors
    /// An address, a header or a secret that cannot be used.
    pub fn open(
        configs: &BTreeMap<String, WebhookConfig>,
        events: &WebhookEvents,
    ) -> Result<(Self, Vec<Sender>), WebhookError> {
        let (mut queues, mut senders) = (Vec::new(), Vec::new());
        for (name, config) in configs {
            let wrong = |what: String| WebhookError { webhook: name.clone(), what };
            let (put, queue) = mpsc::channel(QUEUE_MAX);
            queues.push((name.clone(), config.events.clone(), put));
            senders.push(Sender {
                name: name.clone(),
                uri: uri(&config.address).map_err(wrong)?,
                secret: secret(config).map_err(wrong)?,
                client: client().map_err(wrong)?,
                queue,
                events: Arc::clone(events),
            });
        }
        Ok((Self { queues, events: Arc::clone(events) }, senders))
    }

    /// Puts an edge into the queues of those that want it.
    pub fn tell(&self, payload: &AlarmPayload) {
        // A payload is made of strings, numbers and times, which JSON has.
        let Ok(body) = serde_json::to_vec(payload) else { return };
        let message = Message { id: payload.id.clone(), body: Bytes::from(body) };
        for (name, events, queue) in &self.queues {
            let wants = events.is_empty() || events.contains(&payload.alarm.name);
            if wants && queue.try_send(message.clone()).is_err() {
                let (webhook, id) = (name.clone(), payload.id.clone());
                (self.events)(WebhookEvent { webhook, id, outcome: Delivery::Dropped });
            }
        }
    }
}

/// Reads the address.
fn uri(address: &WebhookAddress) -> Result<Uri, String> {
    let text = match address {
        WebhookAddress::Plain(url) => url.clone(),
        WebhookAddress::Secret(source) => read(source, "url")?,
    };
    let uri: Result<Uri, _> = text.trim().parse();
    let web = |uri: &Uri| uri.host().is_some() && matches!(uri.scheme_str(), Some("http" | "https"));
    uri.ok().filter(web).ok_or_else(|| "its `url` is no address; write https://HOST/PATH".to_owned())
}

/// Reads the secret, and the header that it goes into.
fn secret(config: &WebhookConfig) -> Result<Option<(HeaderName, HeaderValue)>, String> {
    let Some(source) = &config.secret else { return Ok(None) };
    let text = read(source, "secret")?;
    let header: HeaderName =
        config.header.parse().map_err(|_| format!("`{}` is no name of a header", config.header))?;
    let mut value = HeaderValue::from_str(&text)
        .map_err(|_| "its secret has letters that a header cannot hold".to_owned())?;
    value.set_sensitive(true);
    Ok(Some((header, value)))
}

/// Reads what the keys `NAME_env` and `NAME_file` name.
fn read(source: &SecretSource, name: &str) -> Result<String, String> {
    let text = match source {
        SecretSource::Environment(variable) => std::env::var(variable).map_err(|_| {
            format!("the environment variable {variable}, which `{name}_env` names, is not set")
        })?,
        SecretSource::File(path) => std::fs::read_to_string(path)
            .map_err(|error| format!("failed to read `{name}_file` `{}`: {error}", path.display()))?,
    };
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

/// Trusts the system's authorities, or those that `SSL_CERT_FILE` names.
fn client() -> Result<HttpClient, String> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in rustls_native_certs::load_native_certs().certs {
        // One that cannot be used is one that nothing is trusted by.
        let _ = roots.add(certificate);
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("no TLS: {error}"))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().build();
    Ok(Client::builder(TokioExecutor::new()).build(connector))
}

/// Why one try failed.
struct Refused {
    why: String,
    /// Whether it may go better later.
    transient: bool,
}

impl Sender {
    /// Posts what comes until told to stop; then what is left, once, for a few seconds.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        loop {
            let message = tokio::select! {
                message = self.queue.recv() => message,
                _ = stop.wait_for(|stop| *stop) => break,
            };
            let Some(message) = message else { return };
            self.deliver(&message, &mut stop).await;
        }
        let rest = async {
            while let Ok(message) = self.queue.try_recv() {
                let posted = self.post(&message).await;
                self.conclude(&message, posted);
            }
        };
        // What is not told by then stands in the chain of alarms.
        let _ = tokio::time::timeout(STOP_PATIENCE, rest).await;
    }

    /// Tries until it is told, or no try is left.
    async fn deliver(&self, message: &Message, stop: &mut watch::Receiver<bool>) {
        for pause in PAUSES {
            match self.post(message).await {
                Err(refused) if refused.transient && !*stop.borrow() => {
                    self.say(message, Delivery::Retried { error: refused.why });
                }
                done => return self.conclude(message, done),
            }
            // A stop cuts the pause short, and what follows is the last try.
            let _ = tokio::time::timeout(pause, stop.wait_for(|stop| *stop)).await;
        }
        let posted = self.post(message).await;
        self.conclude(message, posted);
    }

    fn conclude(&self, message: &Message, posted: Result<(), Refused>) {
        let outcome = match posted {
            Ok(()) => Delivery::Delivered,
            Err(refused) => Delivery::GivenUp { error: refused.why },
        };
        self.say(message, outcome);
    }

    fn say(&self, message: &Message, outcome: Delivery) {
        (self.events)(WebhookEvent { webhook: self.name.clone(), id: message.id.clone(), outcome });
    }

    async fn post(&self, message: &Message) -> Result<(), Refused> {
        let mut request = Request::new(Full::new(message.body.clone()));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uri.clone();
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some((header, value)) = &self.secret {
            request.headers_mut().insert(header, value.clone());
        }
        let answered = tokio::time::timeout(ANSWER_MAX, self.client.request(request)).await;
        let refused = |why: String, transient| Err(Refused { why, transient });
        match answered {
            Err(_) => refused(format!("no answer within {} s", ANSWER_MAX.as_secs()), true),
            Ok(Err(error)) => refused(chain(&error), true),
            Ok(Ok(response)) => match response.status() {
                status if status.is_success() => Ok(()),
                status => refused(format!("it answered {status}"), is_transient(status)),
            },
        }
    }
}

/// What a receiver says that may go better later.
fn is_transient(status: StatusCode) -> bool {
    status.is_server_error() || matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS)
}

/// An error with its causes; none of them names the address.
fn chain(error: &hyper_util::client::legacy::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text = format!("{text}: {next}");
        cause = next.source();
    }
    text
}
