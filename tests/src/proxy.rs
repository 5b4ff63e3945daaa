//! A proxy between Muster and its object store that does to requests what networks and busy stores do.
//!
//! One exchange a connection: the request is received whole, perhaps harmed, passed on, and its answer given back, perhaps
//! harmed. `Host` stays as the client sent it, so that the store finds the signature right.
//!
//! # Invariants
//! - Which fault a request meets depends on what it asks for and how often that was asked before, not on when it comes.
//! - Only what was really done is counted ([`Proxy::injected`]): a fault that found nothing to harm is none.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

/// What can happen to one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// 503 SlowDown; the store never hears of it.
    SlowDown,
    /// The connection is reset before the store hears of it.
    Lost,
    /// It takes its time.
    Delayed,
    /// A write that the store carried out is answered by 500.
    LandedRefused,
    /// A write that the store carried out is answered by a reset.
    LandedReset,
    /// One bit of a written body is another on its way to the store.
    FlippedWrite,
    /// The connection is reset in the middle of the answer's body.
    ResetBody,
    /// The answer's body ends early, in good order.
    ShortBody,
    /// One bit of a read object's body is another.
    FlippedRead,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::SlowDown,
        Self::Lost,
        Self::Delayed,
        Self::LandedRefused,
        Self::LandedReset,
        Self::FlippedWrite,
        Self::ResetBody,
        Self::ShortBody,
        Self::FlippedRead,
    ];

    fn fits(self, asked: &Asked) -> bool {
        match self {
            Self::SlowDown | Self::Lost | Self::Delayed => true,
            Self::LandedRefused | Self::LandedReset => asked.method == "PUT",
            Self::FlippedWrite => asked.method == "PUT" && asked.body_bytes > 0,
            Self::ResetBody | Self::ShortBody => asked.method == "GET",
            // Nothing could find out about a listing.
            Self::FlippedRead => asked.method == "GET" && !asked.target.contains("list-type="),
        }
    }
}

/// A request, as a schedule sees it.
#[derive(Clone, Debug)]
pub struct Asked {
    /// `GET`, `PUT` and so on.
    pub method: String,
    /// Path and query, as in the request line.
    pub target: String,
    /// How often this method asked for this target before.
    pub before: u64,
    body_bytes: usize,
}

impl Asked {
    /// A number of its own for each seed.
    pub fn draw(&self, seed: u64) -> u64 {
        let mut hasher = DefaultHasher::new();
        (seed, &self.method, &self.target, self.before).hash(&mut hasher);
        hasher.finish()
    }
}

/// Decides what a request meets.
pub type Schedule = dyn Fn(&Asked) -> Option<Fault> + Send + Sync;

/// So many of 1000 requests meet each of `faults`, as far as it fits them.
pub fn drawn(seed: u64, per_thousand: u64, faults: &[Fault]) -> Box<Schedule> {
    let faults = faults.to_vec();
    Box::new(move |asked| {
        let place = usize::try_from(asked.draw(seed) % 1000 / per_thousand).expect("below 1000");
        faults.get(place).copied().filter(|fault| fault.fits(asked))
    })
}

/// A longer delay would be a stop; a shorter one none.
const DELAY_MILLISECONDS_MAX: u64 = 300;

/// A running proxy; it ends when this is dropped.
#[derive(Debug)]
pub struct Proxy {
    addr: SocketAddr,
    shared: Arc<Shared>,
    _runtime: Runtime,
}

struct Shared {
    upstream: SocketAddr,
    schedule: Box<Schedule>,
    at_work: AtomicBool,
    asked: Mutex<HashMap<(String, String), u64>>,
    injected: Mutex<BTreeMap<Fault, usize>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("upstream", &self.upstream).finish_non_exhaustive()
    }
}

impl Proxy {
    /// Listens on loopback and passes everything on to `upstream`; does nothing else before [`Self::harm`].
    pub fn start(upstream: SocketAddr, schedule: Box<Schedule>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime");
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a port");
        let addr = listener.local_addr().expect("its number");
        let (at_work, asked, injected) = (AtomicBool::new(false), Mutex::default(), Mutex::default());
        let shared = Arc::new(Shared { upstream, schedule, at_work, asked, injected });
        runtime.spawn(accept(listener, Arc::clone(&shared)));
        Self { addr, shared, _runtime: runtime }
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Whether faults are injected from here on.
    pub fn harm(&self, harm: bool) {
        self.shared.at_work.store(harm, Ordering::SeqCst);
    }

    /// How many faults of each kind were injected so far.
    pub fn injected(&self) -> BTreeMap<Fault, usize> {
        lock(&self.shared.injected).clone()
    }

    /// Each of these faults was injected at least once: a test that meets none of them shows nothing.
    #[track_caller]
    pub fn has_injected(&self, faults: &[Fault]) {
        let injected = self.injected();
        let never: Vec<_> = faults.iter().filter(|fault| !injected.contains_key(fault)).collect();
        assert!(never.is_empty(), "never injected: {never:?}; injected: {injected:?}");
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((client, _)) = listener.accept().await {
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            // A client or a store that goes away ends this exchange; whoever waits for it sees that.
            let _ = exchange(client, &shared).await;
        });
    }
}

/// A request, whole.
struct Request {
    head: String,
    body: Vec<u8>,
}

/// What a client gets.
struct Answer {
    bytes: Vec<u8>,
    /// The connection ends by a reset, as when a machine or a cable fails.
    reset: bool,
}

impl Answer {
    fn reset(bytes: &[u8]) -> Self {
        Self { bytes: bytes.to_vec(), reset: true }
    }

    fn refusal(status: u16, reason: &str, code: &str) -> Self {
        let body = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>injected</Message></Error>"
        );
        let length = body.len();
        let text = format!(
            "HTTP/1.1 {status} {reason}\r\nContent-Type: application/xml\r\nContent-Length: {length}\r\n\
             Connection: close\r\n\r\n{body}"
        );
        Self { bytes: text.into_bytes(), reset: false }
    }

    /// The answer with the fault done to it; whether there was something to do it to.
    fn harmed(self, fault: Fault, pick: usize) -> (Self, bool) {
        let body_at = find(&self.bytes, b"\r\n\r\n").map_or(self.bytes.len(), |at| at + 4);
        let good = self.bytes.starts_with(b"HTTP/1.1 2");
        let has_body = good && !self.reset && self.bytes.len() > body_at + 1;
        let half = body_at + (self.bytes.len() - body_at) / 2;
        match fault {
            Fault::LandedRefused if good => {
                (Self::refusal(500, "Internal Server Error", "InternalError"), true)
            }
            Fault::LandedReset if good => (Self::reset(&[]), true),
            Fault::ResetBody if has_body => (Self::reset(&self.bytes[..half]), true),
            Fault::ShortBody if has_body => (Self { bytes: self.bytes[..half].to_vec(), reset: false }, true),
            // Not the framing of a body in chunks.
            Fault::FlippedRead if has_body && header(&self.bytes, "content-length").is_some() => {
                let mut harmed = self;
                flip(&mut harmed.bytes[body_at..], pick);
                (harmed, true)
            }
            _ => (self, false),
        }
    }
}

async fn exchange(mut client: TcpStream, shared: &Shared) -> std::io::Result<()> {
    let Some(request) = receive(&mut client).await? else { return Ok(()) };
    let asked = shared.note(&request);
    let harm = shared.at_work.load(Ordering::SeqCst);
    let fault = harm.then(|| (shared.schedule)(&asked)).flatten();
    let pick = usize::try_from(asked.draw(1) % (1 << 32)).expect("32 bits");
    let (answer, done) = match fault {
        None => (ask(shared.upstream, &request).await?, false),
        Some(fault) => faulty(fault, pick, request, shared.upstream).await?,
    };
    if let Some(fault) = fault.filter(|_| done) {
        *lock(&shared.injected).entry(fault).or_default() += 1;
    }
    client.write_all(&answer.bytes).await?;
    if answer.reset { client.set_zero_linger() } else { client.shutdown().await }
}

/// The answer under a fault, and whether the fault was done.
async fn faulty(
    fault: Fault,
    pick: usize,
    mut request: Request,
    upstream: SocketAddr,
) -> std::io::Result<(Answer, bool)> {
    match fault {
        Fault::SlowDown => return Ok((Answer::refusal(503, "Slow Down", "SlowDown"), true)),
        Fault::Lost => return Ok((Answer::reset(&[]), true)),
        Fault::Delayed => {
            tokio::time::sleep(Duration::from_millis(pick as u64 % DELAY_MILLISECONDS_MAX)).await;
            return Ok((ask(upstream, &request).await?, true));
        }
        Fault::FlippedWrite => {
            flip(&mut request.body, pick);
            return Ok((ask(upstream, &request).await?, true));
        }
        _ => {}
    }
    Ok(ask(upstream, &request).await?.harmed(fault, pick))
}

impl Shared {
    fn note(&self, request: &Request) -> Asked {
        let mut words = request.head.split(' ').map(str::to_owned);
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let mut asked = lock(&self.asked);
        let count = asked.entry((method.clone(), target.clone())).or_default();
        *count += 1;
        Asked { method, target, before: *count - 1, body_bytes: request.body.len() }
    }
}

/// A request of a client; none if it hangs up without one.
async fn receive(client: &mut TcpStream) -> std::io::Result<Option<Request>> {
    let mut bytes = Vec::new();
    let body_at = loop {
        if let Some(at) = find(&bytes, b"\r\n\r\n") {
            break at + 4;
        }
        if client.read_buf(&mut bytes).await? == 0 {
            return Ok(None);
        }
    };
    if header(&bytes, "expect").is_some() {
        client.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
    }
    let length = header(&bytes, "content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
    while bytes.len() < body_at + length {
        if client.read_buf(&mut bytes).await? == 0 {
            return Ok(None);
        }
    }
    let body = bytes.split_off(body_at);
    Ok(Some(Request { head: String::from_utf8_lossy(&bytes).into_owned(), body }))
}

/// The store's answer, as far as it came.
async fn ask(upstream: SocketAddr, request: &Request) -> std::io::Result<Answer> {
    let mut store = TcpStream::connect(upstream).await?;
    let mut head = String::new();
    for line in request.head.trim_end().split("\r\n") {
        let name = line.split(':').next().unwrap_or_default();
        if !name.eq_ignore_ascii_case("connection") && !name.eq_ignore_ascii_case("expect") {
            head += &format!("{line}\r\n");
        }
    }
    head += "Connection: close\r\n\r\n";
    store.write_all(head.as_bytes()).await?;
    // A store that refuses early does not read on; its answer says why.
    let _ = store.write_all(&request.body).await;
    let mut bytes = Vec::new();
    let reset = store.read_to_end(&mut bytes).await.is_err() || bytes.is_empty();
    Ok(Answer { bytes, reset })
}

fn flip(body: &mut [u8], pick: usize) {
    let bit = pick % (body.len() * 8);
    body[bit / 8] ^= 1 << (bit % 8);
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

/// A header's value, its name in any case.
fn header(bytes: &[u8], name: &str) -> Option<String> {
    let head = String::from_utf8_lossy(&bytes[..find(bytes, b"\r\n\r\n")?]).into_owned();
    let mut pairs = head.split("\r\n").filter_map(|line| line.split_once(':'));
    pairs.find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim().to_owned())
}
