//! The long-running service, as an operator runs it: two servers on one repository, jobs, metrics, an alarm, a clean stop.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "a failed test may say so by a panic, and what servers said"
)]

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use muster_tests::{Incident, ServeProcess, Size, World, seed, until};
use muster_types::jobs::{JobDecision, JobOutcome, JobRecord};

const SIZE: Size = Size { sites: 24, rows_per_site: 40 };

/// A world whose topology has the service and these jobs.
fn world(default_seed: u64, jobs: &str) -> World {
    let world = World::new(SIZE, seed(default_seed));
    let mut topology = std::fs::read_to_string(world.path("muster.toml")).unwrap();
    let _ = write!(
        topology,
        "\n[serve]\nlisten = \"LISTEN\"\nlease_seconds = 5\n\n[serve.detect]\nevery_seconds = 1\nsites_max = 3\n\n\
         [sandbox.here]\ndriver = \"sqlite\"\nregion = \"eu-central\"\ndir = \"sandbox\"\n\n\
         [sandbox.there]\ndriver = \"sqlite\"\nregion = \"us-east\"\ndir = \"sandbox\"\n{jobs}"
    );
    // Watermarks come more often than a lease; ten shards are polled by two servers.
    let interval = topology.lines().find(|line| line.starts_with("poll_interval")).unwrap().to_owned();
    topology = topology.replace(&interval, "poll_interval_milliseconds = 500");
    topology = topology.replace("[capture]\n", "[capture]\nwatermark_interval_seconds = 1\n");
    std::fs::write(world.path("muster.toml"), topology.replace("LISTEN", "127.0.0.1:1")).unwrap();
    world.muster(&["capture", "init"]).ok();
    std::fs::write(world.path("muster.toml"), topology).unwrap();
    world
}

fn records(world: &World, job: &str) -> Vec<JobRecord> {
    let files = world.objects(&format!("jobs/{job}"));
    files.iter().filter_map(|file| serde_json::from_slice(&std::fs::read(file).ok()?).ok()).collect()
}

fn succeeded(records: &[JobRecord]) -> Vec<&JobRecord> {
    let is_success = |record: &&JobRecord| {
        matches!(&record.decision, JobDecision::Done { outcome: JobOutcome::Succeeded { .. }, .. })
    };
    records.iter().filter(is_success).collect()
}

#[test]
fn two_servers_share_drills_snapshots_and_compaction_and_one_is_killed() {
    let jobs = "\n[jobs.drill]\nwhat = \"drill\"\nfile = \"drill.toml\"\ncron = \"*/4 * * * * *\"\n\n\
                [jobs.snapshot]\nwhat = \"snapshot\"\ncron = \"*/15 * * * * *\"\n\n\
                [jobs.compact]\nwhat = \"compact\"\ncron = \"*/12 * * * * *\"\n\n\
                [jobs.check]\nwhat = \"check\"\ncron = \"*/12 * * * * *\"\nshare_percent = 50\n";
    let world = world(70, jobs);
    std::fs::write(
        world.path("drill.toml"),
        "format = 1\nname = \"sample\"\nclass = \"many-sites\"\nsites = 2\nwindow_seconds = 600\nsettle_seconds = 1\n",
    )
    .unwrap();
    let mut first = ServeProcess::start(&world, "first");
    first.is_ready();
    until("a drill is done", || !succeeded(&records(&world, "drill")).is_empty());
    until("a snapshot is done", || !succeeded(&records(&world, "snapshot")).is_empty());
    let second = ServeProcess::start(&world, "second");
    until("the second answers", || second.get("/healthz") == Some((200, "ok\n".into())));
    until("both had a part", || {
        let records = records(&world, "drill");
        let mut servers: Vec<&str> =
            succeeded(&records).iter().map(|record| record.server.as_str()).collect();
        servers.sort_unstable();
        servers.dedup();
        servers.len() >= 2
    });
    first.kill();
    let before = succeeded(&records(&world, "drill")).len();
    until("the second goes on alone, with capture too", || {
        succeeded(&records(&world, "drill")).len() >= before + 3
            && second.get("/readyz").is_some_and(|(status, _)| status == 200)
    });
    until("the jobs of the second are done", || {
        let done = |job: &str| second.metrics().contains(&format!("job=\"{job}\",outcome=\"succeeded\""));
        done("drill") && done("compact") && done("check")
    });
    let metrics = second.metrics();
    for name in
        ["muster_capture_lag_seconds{", "muster_job_last_success_timestamp_seconds{", "muster_lost_sites 0"]
    {
        assert!(metrics.contains(name), "{name}:\n{metrics}");
    }
    chain_is_whole(&records(&world, "drill"));
    second.stops();
    // What a killed server's drill left, the next one of it takes away.
    world.muster_with("second.toml", &["drill", "clean"]).ok();
    let left: Vec<_> =
        std::fs::read_dir(world.path("sandbox")).map(|dir| dir.flatten().collect()).unwrap_or_default();
    assert!(left.is_empty(), "{left:?}");
}

/// No occurrence came to its end twice, and each is behind the one before.
fn chain_is_whole(records: &[JobRecord]) {
    let mut last = None;
    for record in records {
        if let JobDecision::Done { occurrence, .. } = &record.decision {
            assert!(last.is_none_or(|last| last < *occurrence), "{record:?} behind {last:?}");
            last = Some(*occurrence);
        }
    }
}

#[test]
fn a_bad_script_raises_the_alarm_with_a_draft_incident_that_can_be_planned() {
    let world = world(71, "");
    let server = ServeProcess::start(&world, "only");
    server.is_ready();
    let incident = Incident::delete(&world, 8, Duration::from_millis(20));
    until("the alarm is raised for all", || server.metrics().contains("muster_lost_sites 8"));
    until("health says so", || {
        server.get("/readyz").is_some_and(|(status, body)| status == 503 && body.contains("8 sites lost"))
    });
    let drafts: Vec<_> =
        std::fs::read_dir(world.path("incidents")).unwrap().flatten().map(|file| file.path()).collect();
    let newest = drafts.iter().max().unwrap().display().to_string();
    world.muster_with("only.toml", &["plan", "--incident", &newest, "--out", "plan.json"]).ok();
    world.muster_with("only.toml", &["apply", "plan.json", "--run", "r"]).ok();
    drop(server);
    std::fs::copy(world.path("only.toml"), world.path("muster.toml")).unwrap();
    incident.is_undone(&world, "r");
}

/// A receiver of webhooks: refuses the first post, takes the others, and keeps what came.
struct Receiver {
    addr: SocketAddr,
    came: Arc<Mutex<Vec<(String, serde_json::Value)>>>,
}

impl Receiver {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let came: Arc<Mutex<Vec<(String, serde_json::Value)>>> = Arc::default();
        let kept = Arc::clone(&came);
        std::thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                let Ok(mut stream) = stream else { return };
                let (head, body) = read_post(&mut stream);
                let status = if number == 0 { "500 Oh" } else { "200 OK" };
                let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                stream.write_all(answer.as_bytes()).unwrap();
                if number > 0 {
                    kept.lock().unwrap().push((head, serde_json::from_slice(&body).unwrap()));
                }
            }
        });
        Self { addr, came }
    }

    /// Payloads of one alarm that went one way.
    fn told(&self, alarm: &str, change: &str) -> Vec<serde_json::Value> {
        let came = self.came.lock().unwrap();
        let own = came.iter().map(|(_, payload)| payload);
        own.filter(|payload| payload["alarm"]["name"] == alarm && payload["change"] == change)
            .cloned()
            .collect()
    }
}

fn read_post(stream: &mut TcpStream) -> (String, Vec<u8>) {
    let (mut seen, mut chunk) = (Vec::new(), [0; 4096]);
    loop {
        if let Some(end) = seen.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&seen[..end]).into_owned();
            let lower = head.to_lowercase();
            let bytes = lower.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
            let all = end + 4 + bytes.parse::<usize>().unwrap();
            if seen.len() >= all {
                return (head, seen[end + 4..all].to_vec());
            }
        }
        let read = stream.read(&mut chunk).unwrap();
        assert!(read > 0, "a post ended early");
        seen.extend_from_slice(&chunk[..read]);
    }
}

#[test]
fn of_two_servers_one_tells_the_webhook_and_no_secret_is_said() {
    let receiver = Receiver::start();
    let webhook = format!(
        "\n[serve.webhooks.pager]\nurl = \"http://{}/hush-in-path\"\nsecret_env = \"PAGER_SECRET\"\n\n\
         [serve.alarms]\nevery_seconds = 1\n",
        receiver.addr
    );
    let mut world = world(73, &webhook);
    world.set("PAGER_SECRET", Some("Bearer hush-in-header"));
    std::fs::write(
        world.path("drill.toml"),
        "format = 1\nname = \"gone\"\nclass = \"one-site\"\nwindow_seconds = 600\nshard = \"nowhere\"\n",
    )
    .unwrap();
    let (first, second) = (ServeProcess::start(&world, "first"), ServeProcess::start(&world, "second"));
    let both = [&first, &second];
    both.into_iter().for_each(ServeProcess::is_ready);
    Incident::delete(&world, 8, Duration::from_millis(20));
    world.muster_with("first.toml", &["drill", "run", "drill.toml"]).code(2);
    until("both see both alarms", || {
        both.iter().all(|server| {
            let metrics = server.metrics();
            metrics.contains("muster_lost_sites 8")
                && metrics.contains("muster_alarm{alarm=\"drill-failed\",subject=\"gone\"} 1")
        })
    });
    until("the webhook is told of both", || {
        !receiver.told("sites-lost", "raised").is_empty()
            && !receiver.told("drill-failed", "raised").is_empty()
    });
    let raised = receiver.told("sites-lost", "raised");
    assert_eq!(raised.len(), 1, "{raised:?}");
    let alarm = &raised[0]["alarm"];
    assert!(alarm["text"].as_str().unwrap().contains("sites lost since"), "{alarm}");
    assert!(alarm["way_out"].as_str().unwrap().contains("muster plan --incident"), "{alarm}");
    assert_eq!(receiver.told("drill-failed", "raised").len(), 1);
    for (head, _) in receiver.came.lock().unwrap().iter() {
        assert!(head.contains("Bearer hush-in-header") && head.starts_with("POST /hush-in-path "), "{head}");
    }
    for server in both {
        assert!(
            server
                .get("/readyz")
                .is_some_and(|(status, body)| status == 503 && body.contains("drill-failed"))
        );
        assert!(!(server.said() + &server.metrics()).contains("hush"), "{}", server.said());
    }
    // A drill that passes ends that alarm, once for both.
    let drill = std::fs::read_to_string(world.path("drill.toml")).unwrap();
    let well = drill.replace("shard = \"nowhere\"\n", "settle_seconds = 1\n");
    std::fs::write(world.path("drill.toml"), well).unwrap();
    world.muster_with("first.toml", &["drill", "run", "drill.toml"]).ok();
    until("it is over for both", || {
        both.iter().all(|server| !server.metrics().contains("alarm=\"drill-failed\""))
            && !receiver.told("drill-failed", "cleared").is_empty()
    });
    assert_eq!(receiver.told("drill-failed", "cleared").len(), 1);
    second.stops();
    first.stops();
}

#[test]
fn jobs_that_cannot_succeed_are_said_and_the_service_goes_on() {
    let jobs = "\n[jobs.window]\nwhat = \"drill\"\nfile = \"window.toml\"\ncron = \"*/3 * * * * *\"\n\n\
                [jobs.missing]\nwhat = \"drill\"\nfile = \"missing.toml\"\ncron = \"*/3 * * * * *\"\n\n\
                [jobs.prune]\nwhat = \"prune\"\ncron = \"*/3 * * * * *\"\n\n\
                [jobs.check]\nwhat = \"check\"\ncron = \"*/3 * * * * *\"\n";
    let world = world(74, jobs);
    std::fs::write(
        world.path("window.toml"),
        "format = 1\nname = \"window\"\nclass = \"one-site\"\nwindow_seconds = 600\nat = \"2001-01-01T00:00:00Z\"\n",
    )
    .unwrap();
    let server = ServeProcess::start(&world, "only");
    let ended = |job: &str, outcome: &str| {
        server.metrics().contains(&format!("muster_job_runs_total{{job=\"{job}\",outcome=\"{outcome}\"}}"))
    };
    until("what cannot succeed has failed", || {
        ["window", "missing", "prune"].iter().all(|job| ended(job, "failed"))
    });
    let before = succeeded(&records(&world, "check")).len();
    until("the others go on", || succeeded(&records(&world, "check")).len() > before + 1);
    let said = server.said();
    for reason in ["outside of the promised window", "missing.toml", "the topology has no [retention]"] {
        assert!(said.contains(reason), "{reason}: {said}");
    }
    assert_eq!(server.get("/healthz"), Some((200, "ok\n".into())));
    server.stops();
}

#[test]
fn wrong_schedules_and_a_taken_port_are_said() {
    let world = world(
        72,
        "\n[jobs.nightly]\nwhat = \"compact\"\ncron = \"0 0 31 2 *\"\n\n[jobs.other]\nwhat = \"check\"\ncron = \"often\"\n",
    );
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let topology = std::fs::read_to_string(world.path("muster.toml")).unwrap();
    let listening = topology.replace("LISTEN", &taken.local_addr().unwrap().to_string());
    std::fs::write(world.path("muster.toml"), &listening).unwrap();
    let says =
        ["[jobs.nightly]", "`0 0 31 2 *` never comes", "[jobs.other]", "`often` is not a cron expression"];
    world.muster(&["serve"]).code(2).says(&says);
    world.muster(&["check"]).code(2).says(&says);
    let good = listening.replace("0 0 31 2 *", "0 3 * * *").replace("often", "0 3 * * *");
    std::fs::write(world.path("muster.toml"), good).unwrap();
    world.muster(&["serve"]).code(2).says(&["failed to listen on", "in use"]);
}
