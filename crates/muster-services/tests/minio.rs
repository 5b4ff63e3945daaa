//! MinIO as tests use it.

use muster_services::{Minio, Range, Tls};

#[test]
fn the_shared_server_is_started_once() {
    let starts: Vec<_> = std::thread::scope(|scope| {
        let starts: Vec<_> = (0..4).map(|_| scope.spawn(|| Minio::shared().unwrap())).collect();
        starts.into_iter().map(|start| start.join().unwrap()).collect()
    });
    assert!(starts.iter().all(|other| other.endpoint() == starts[0].endpoint()));
    let (one, two) = (starts[0].create_bucket("same").unwrap(), starts[1].create_bucket("same").unwrap());
    assert_ne!(one, two);
    starts[0].request("PUT", &format!("/{one}/a/b"), "hello").unwrap();
    assert_eq!(starts[1].request("GET", &format!("/{one}/a/b"), "").unwrap(), "hello");
    let failed = starts[0].request("GET", &format!("/{two}/a/b"), "").unwrap_err();
    assert!(format!("{failed:#}").contains("NoSuchKey"), "{failed:#}");
}

#[test]
fn a_server_of_ones_own_keeps_its_objects_over_a_crash() {
    let mut server = Minio::own().unwrap();
    let bucket = server.create_versioned_bucket("crash").unwrap();
    let key = format!("/{bucket}/k");
    server.request("PUT", &key, "one").unwrap();
    server.request("PUT", &key, "two").unwrap();
    let endpoint = server.endpoint();
    server.kill().unwrap();
    assert!(server.request("GET", &key, "").is_err());
    server.start().unwrap();
    assert_eq!((server.endpoint(), server.request("GET", &key, "").unwrap()), (endpoint, "two".to_owned()));
    let versions = server.request("GET", &format!("/{bucket}?versions="), "").unwrap();
    assert_eq!(versions.matches("<Version>").count(), 2, "{versions}");
    server.stop().unwrap();
    assert!(server.request("GET", &key, "").is_err());
}

#[test]
fn tls_is_spoken_with_a_certificate_of_our_authority() {
    let tls = Tls::create().unwrap();
    let server = Minio::own_with_tls(&tls).unwrap();
    assert!(server.endpoint().starts_with("https://"));
    let bucket = server.create_bucket("tls").unwrap();
    server.request("PUT", &format!("/{bucket}/k"), "hello").unwrap();
    assert_eq!(server.request("GET", &format!("/{bucket}/k"), "").unwrap(), "hello");
}

#[test]
fn ranges_are_read_whole_or_not_at_all() {
    let server = Minio::own().unwrap();
    let bucket = server.create_bucket("ranges").unwrap();
    server.request("PUT", &format!("/{bucket}/a/b"), "0123456789").unwrap();
    let range = |key: &str, offset, bytes| Range { key: key.to_owned(), offset, bytes };
    let ranges = [range("a/b", 0, 3), range("a/b", 8, 2), range("a/b", 2, 1)];
    assert_eq!(server.read_ranges(&bucket, &ranges, 2).unwrap(), 6);
    for wrong in [range("a/b", 8, 3), range("a/c", 0, 1)] {
        let ranges = [range("a/b", 0, 3), wrong];
        assert!(server.read_ranges(&bucket, &ranges, 2).is_err(), "{ranges:?}");
    }
}
