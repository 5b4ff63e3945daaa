//! 64 racers from two processes, 1,000 keys, one winner each.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::process::{body, client, keys, seed_of, spawn, task};
use aws_sdk_s3::Client;
use aws_sdk_s3::presigning::PresigningConfig;
use muster_s3_server::{ServerConfig, start};

const KEYS: usize = 1000;
const PROCESSES: u64 = 2;
const RACERS_PER_PROCESS: u64 = 32;

/// Long enough to be written in more than one piece.
const BODY_BYTES: usize = 10_000;

fn key(index: usize) -> String {
    format!("race/{:02}/{index:04}", index % 7)
}

/// Every racer asks for every key. A client of the SDK signs each request once; the racers send those requests
/// themselves, as 64,000 requests through unoptimised SDK code would be a test of that code.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_key_has_one_winner_whose_body_is_read_back_whole() {
    let dir = tempfile::tempdir().unwrap();
    let config = ServerConfig { dir: dir.path().join("s3"), listen: "127.0.0.1:0".parse().unwrap() };
    let server = start(config).await.unwrap();
    let sdk = client(server.addr, keys(&server.credentials_file), 3);
    sdk.create_bucket().bucket("race").send().await.unwrap();
    let requests = dir.path().join("requests");
    fs::write(&requests, signed_requests(&sdk).await).unwrap();

    let racers: Vec<_> = (0..PROCESSES)
        .map(|number| {
            let number = number.to_string();
            spawn("race::racing_process", &[&number, &server.addr.to_string(), requests.to_str().unwrap()])
        })
        .collect();
    let outputs = tokio::task::spawn_blocking(|| {
        racers.into_iter().map(|racer| racer.wait_with_output().unwrap()).collect::<Vec<_>>()
    });
    let mut winners: BTreeMap<usize, Vec<u64>> = BTreeMap::new();
    let mut winners_by_process = [0; 2];
    for (number, output) in outputs.await.unwrap().into_iter().enumerate() {
        assert!(output.status.success(), "racing process {number} failed");
        let text = String::from_utf8(output.stdout).unwrap();
        for won in text.lines().filter_map(|line| line.strip_prefix("won ")) {
            let (index, seed) = won.split_once(' ').unwrap();
            winners.entry(index.parse().unwrap()).or_default().push(seed.parse().unwrap());
            winners_by_process[number] += 1;
        }
    }
    assert!(winners_by_process.iter().all(|won| *won > 0), "both processes raced: {winners_by_process:?}");
    assert_eq!(winners.len(), KEYS, "each key has a winner");
    for (index, winners) in winners {
        assert_eq!(winners.len(), 1, "key {index} was won by {winners:?}");
        let object = sdk.get_object().bucket("race").key(key(index)).send().await.unwrap();
        let bytes = object.body.collect().await.unwrap().into_bytes();
        assert_eq!(seed_of(&bytes), winners[0], "key {index}");
    }
    server.shutdown().await;
}

/// One line a key: path with query, then the headers that are signed.
async fn signed_requests(sdk: &Client) -> String {
    let valid = PresigningConfig::expires_in(Duration::from_secs(600)).unwrap();
    let mut lines = String::new();
    for index in 0..KEYS {
        let put = sdk.put_object().bucket("race").key(key(index)).if_none_match("*");
        let signed = put.presigned(valid.clone()).await.unwrap();
        let path = signed.uri().splitn(4, '/').nth(3).unwrap();
        let headers: Vec<_> = signed.headers().map(|(name, value)| format!("{name}: {value}")).collect();
        lines += &format!("/{path}\t{}\n", headers.join("\t"));
    }
    lines
}

/// Not a test of its own: what [`each_key_has_one_winner_whose_body_is_read_back_whole`] runs in other processes.
#[test]
fn racing_process() {
    let Some(task) = task() else { return };
    let (number, addr): (u64, SocketAddr) = (task[0].parse().unwrap(), task[1].parse().unwrap());
    let requests = fs::read_to_string(&task[2]).unwrap();
    let requests: Vec<&str> = requests.lines().collect();
    std::thread::scope(|scope| {
        for racer in 0..RACERS_PER_PROCESS {
            let requests = &requests;
            scope.spawn(move || race(addr, requests, number * RACERS_PER_PROCESS + racer));
        }
    });
}

fn race(addr: SocketAddr, requests: &[&str], racer: u64) {
    let mut connection = None;
    for (index, request) in requests.iter().enumerate() {
        let seed = racer * KEYS as u64 + index as u64;
        // A connection that the server closed is made again; a lost answer would leave its key without a winner.
        let status = (0..5).find_map(|_| put(&mut connection, addr, request, &body(seed, BODY_BYTES)).ok());
        match status.expect("the server answers") {
            200 => println!("won {index} {seed}"),
            409 | 412 => {}
            other => panic!("key {index}: status {other}"),
        }
    }
}

fn put(
    connection: &mut Option<BufReader<TcpStream>>,
    addr: SocketAddr,
    request: &str,
    body: &[u8],
) -> std::io::Result<u16> {
    let stream = match connection.take() {
        Some(stream) => stream,
        None => BufReader::new(TcpStream::connect(addr)?),
    };
    let stream = connection.insert(stream);
    let answer = exchange(stream, addr, request, body);
    if !matches!(answer, Ok((_, true))) {
        *connection = None;
    }
    answer.map(|(status, _)| status)
}

/// Status, and whether the connection stays open.
fn exchange(
    stream: &mut BufReader<TcpStream>,
    addr: SocketAddr,
    request: &str,
    body: &[u8],
) -> std::io::Result<(u16, bool)> {
    let (path, headers) = request.split_once('\t').unwrap_or((request, ""));
    let mut message = format!("PUT {path} HTTP/1.1\r\nhost: {addr}\r\ncontent-length: {}\r\n", body.len());
    for header in headers.split('\t').filter(|header| !header.is_empty()) {
        message += &format!("{header}\r\n");
    }
    message += "\r\n";
    stream.get_mut().write_all(&[message.as_bytes(), body].concat())?;
    let mut line = String::new();
    stream.read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.ok_or(std::io::ErrorKind::InvalidData)?;
    let (mut length, mut open) = (0, true);
    loop {
        line.clear();
        stream.read_line(&mut line)?;
        let header = line.trim_end().to_ascii_lowercase();
        match header.split_once(": ") {
            Some(("content-length", value)) => length = value.parse().unwrap_or_default(),
            Some(("connection", "close")) => open = false,
            Some(_) => {}
            None => break,
        }
    }
    std::io::copy(&mut stream.take(length), &mut std::io::sink())?;
    Ok((status, open))
}
