//! Webhooks, against a real server on this machine: payloads whole, retries, limits, no secret in what is told.

#![allow(clippy::unwrap_used, reason = "a failed test may say so by a panic")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use muster_serve::webhook::{Delivery, QUEUE_MAX, WebhookEvent, WebhookEvents, Webhooks};
use muster_types::Timestamp;
use muster_types::alarm::{AlarmName, AlarmPayload, Change, Condition};
use muster_types::topology::{SecretSource, WebhookAddress, WebhookConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

const SECRET: &str = "Bearer hush-7f2a";

fn payload(number: u64, name: AlarmName) -> AlarmPayload {
    let at = Timestamp::from_micros(1_649_144_280_000_000);
    let alarm = Condition {
        name,
        subject: "eu-\"1\"".to_owned(),
        since: at,
        text: "late, ümläut".to_owned(),
        way_out: "look".to_owned(),
    };
    let id = format!("repo-{number}-0");
    let (repository, fleet, server) = ("repo".to_owned(), "fleet".to_owned(), "a-1".to_owned());
    AlarmPayload { format: 1, id, repository, fleet, at, server, change: Change::Raised, alarm }
}

/// One request as it came: head and body.
async fn request(stream: &mut tokio::net::TcpStream) -> (String, Vec<u8>) {
    let (mut seen, mut chunk) = (Vec::new(), [0; 4096]);
    loop {
        let end = seen.windows(4).position(|four| four == b"\r\n\r\n");
        if let Some(end) = end {
            let head = String::from_utf8_lossy(&seen[..end]).to_lowercase();
            let bytes: usize =
                head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap().parse().unwrap();
            if seen.len() >= end + 4 + bytes {
                return (String::from_utf8_lossy(&seen[..end]).into_owned(), seen[end + 4..].to_vec());
            }
        }
        let read = stream.read(&mut chunk).await.unwrap();
        assert!(read > 0, "the request ended early");
        seen.extend_from_slice(&chunk[..read]);
    }
}

/// Answers the requests with these statuses, one connection each; what came.
async fn answer(listener: TcpListener, statuses: Vec<&'static str>) -> Vec<(String, Vec<u8>)> {
    let mut came = Vec::new();
    for status in statuses {
        let (mut stream, _) = listener.accept().await.unwrap();
        came.push(request(&mut stream).await);
        let text = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        stream.write_all(text.as_bytes()).await.unwrap();
    }
    came
}

struct World {
    webhooks: Webhooks,
    told: mpsc::UnboundedReceiver<WebhookEvent>,
    said: Arc<Mutex<String>>,
    stop: watch::Sender<bool>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
    _dir: tempfile::TempDir,
}

fn world(hooks: &[(&str, SocketAddr, Vec<AlarmName>)]) -> World {
    let dir = tempfile::tempdir().unwrap();
    let file: PathBuf = dir.path().join("secret");
    std::fs::write(&file, format!("{SECRET}\n")).unwrap();
    let configs: BTreeMap<String, WebhookConfig> = hooks
        .iter()
        .map(|(name, addr, events)| {
            let url = dir.path().join(format!("{name}.url"));
            std::fs::write(&url, format!("http://{addr}/path?token=hush-url\n")).unwrap();
            let config = WebhookConfig {
                address: WebhookAddress::Secret(SecretSource::File(url)),
                events: events.clone(),
                header: "authorization".to_owned(),
                secret: Some(SecretSource::File(file.clone())),
            };
            ((*name).to_owned(), config)
        })
        .collect();
    let (tell, told) = mpsc::unbounded_channel();
    let said = Arc::new(Mutex::new(format!("{configs:?}")));
    let kept = Arc::clone(&said);
    let events: WebhookEvents = Arc::new(move |event| {
        kept.lock().unwrap().push_str(&format!("{event:?}"));
        let _ = tell.send(event);
    });
    let (webhooks, senders) = Webhooks::open(&configs, &events).unwrap();
    let (stop, stopping) = watch::channel(false);
    let tasks = senders.into_iter().map(|sender| tokio::spawn(sender.run(stopping.clone()))).collect();
    World { webhooks, told, said, stop, tasks, _dir: dir }
}

impl World {
    async fn outcome(&mut self) -> Delivery {
        self.told.recv().await.unwrap().outcome
    }

    fn leaks_nothing(&self) {
        let said = self.said.lock().unwrap();
        assert!(!said.contains("hush"), "{said}");
    }
}

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    (listener, addr)
}

#[tokio::test]
async fn the_payload_is_whole_and_retried_after_a_server_error() {
    let (listener, addr) = listener().await;
    let server = tokio::spawn(answer(listener, vec!["500 Oh", "204 No Content"]));
    let mut world = world(&[("pager", addr, vec![])]);
    let sent = payload(3, AlarmName::CaptureLag);
    world.webhooks.tell(&sent);
    assert!(matches!(world.outcome().await, Delivery::Retried { error } if error.contains("500")));
    assert_eq!(world.outcome().await, Delivery::Delivered);
    let came = server.await.unwrap();
    assert_eq!(came.len(), 2);
    for (head, body) in &came {
        assert!(head.starts_with("POST /path?token=hush-url HTTP/1.1"), "{head}");
        assert!(head.to_lowercase().contains("content-type: application/json"), "{head}");
        assert!(head.contains(&format!("authorization: {SECRET}")), "{head}");
        assert_eq!(serde_json::from_slice::<AlarmPayload>(body).unwrap(), sent);
    }
    let fields: serde_json::Value = serde_json::from_slice(&came[1].1).unwrap();
    assert_eq!(
        fields,
        serde_json::json!({
            "format": 1, "id": "repo-3-0", "repository": "repo", "fleet": "fleet",
            "at": "2022-04-05T07:38:00.000000Z", "server": "a-1", "change": "raised",
            "alarm": {
                "name": "capture-lag", "subject": "eu-\"1\"", "since": "2022-04-05T07:38:00.000000Z",
                "text": "late, ümläut", "way_out": "look",
            },
        })
    );
    world.leaks_nothing();
}

#[tokio::test]
async fn a_refused_connection_is_tried_again() {
    let (taken, addr) = listener().await;
    drop(taken);
    let mut world = world(&[("pager", addr, vec![])]);
    world.webhooks.tell(&payload(1, AlarmName::SitesLost));
    assert!(matches!(world.outcome().await, Delivery::Retried { error } if error.contains("refused")));
    let server = tokio::spawn(answer(TcpListener::bind(addr).await.unwrap(), vec!["200 OK"]));
    assert_eq!(world.outcome().await, Delivery::Delivered);
    assert_eq!(server.await.unwrap().len(), 1);
    world.leaks_nothing();
}

#[tokio::test]
async fn what_a_receiver_will_never_take_is_given_up_at_once_and_unwanted_alarms_are_not_sent() {
    let (listener, addr) = listener().await;
    let server = tokio::spawn(answer(listener, vec!["401 Unauthorized", "200 OK"]));
    let mut world = world(&[("pager", addr, vec![AlarmName::SitesLost])]);
    world.webhooks.tell(&payload(1, AlarmName::CaptureGap));
    world.webhooks.tell(&payload(2, AlarmName::SitesLost));
    world.webhooks.tell(&payload(3, AlarmName::SitesLost));
    assert!(matches!(world.outcome().await, Delivery::GivenUp { error } if error.contains("401")));
    assert_eq!(world.outcome().await, Delivery::Delivered);
    let ids: Vec<String> = server
        .await
        .unwrap()
        .iter()
        .map(|(_, body)| serde_json::from_slice::<AlarmPayload>(body).unwrap().id)
        .collect();
    assert_eq!(ids, ["repo-2-0", "repo-3-0"]);
}

#[tokio::test]
async fn a_receiver_that_hangs_holds_up_nobody_else() {
    // It takes connections and never answers.
    let (_hanging, hangs) = listener().await;
    let (listener, addr) = listener().await;
    let count = QUEUE_MAX + 10;
    let server = tokio::spawn(answer(listener, vec!["200 OK"; count]));
    let mut world = world(&[("hangs", hangs, vec![]), ("works", addr, vec![])]);
    let (mut delivered, mut dropped) = (0, 0);
    for number in 0..count as u64 {
        world.webhooks.tell(&payload(number, AlarmName::SitesLost));
        // Telling does not wait; so that the working queue has room, its delivery is awaited here.
        while delivered <= number {
            let event = world.told.recv().await.unwrap();
            match (event.webhook.as_str(), event.outcome) {
                ("works", Delivery::Delivered) => delivered += 1,
                ("hangs", Delivery::Dropped) => dropped += 1,
                ("hangs", Delivery::Retried { .. }) => {}
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(server.await.unwrap().len(), count);
    // One is under way, the queue is full, the rest had no room.
    assert!((1..=10).contains(&dropped), "{dropped}");
    world.stop.send_replace(true);
    for task in world.tasks {
        tokio::time::timeout(std::time::Duration::from_secs(60), task).await.expect("it stops").unwrap();
    }
}

#[test]
fn wrong_webhooks_are_named() {
    let open = |url: &str, secret: Option<SecretSource>, header: &str| {
        let address = WebhookAddress::Plain(url.to_owned());
        let config = WebhookConfig { address, events: vec![], header: header.to_owned(), secret };
        let events: WebhookEvents = Arc::new(|_| {});
        Webhooks::open(&[("pager".to_owned(), config)].into(), &events).map(drop).unwrap_err().to_string()
    };
    let variable = SecretSource::Environment("MUSTER_TEST_NO_SUCH_VARIABLE".to_owned());
    let said = open("https://x/", Some(variable), "authorization");
    assert!(
        said.contains("[serve.webhooks.pager]") && said.contains("MUSTER_TEST_NO_SUCH_VARIABLE"),
        "{said}"
    );
    let missing = SecretSource::File("/no/such/file".into());
    assert!(open("https://x/", Some(missing), "authorization").contains("/no/such/file"));
    for url in ["https://x y/", "hooks.example/abc", "", "ftp://x/"] {
        assert!(open(url, None, "authorization").contains("`url` is no address"), "{url}");
    }
    let here = SecretSource::Environment("PATH".to_owned());
    assert!(open("https://x/", Some(here), "a b").contains("`a b` is no name of a header"));
}
