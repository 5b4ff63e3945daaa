//! Single operations: conditions, names, credentials, multipart uploads.

use std::fs;
use std::path::Path;

use aws_sdk_s3::Client;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart, Delete, ObjectIdentifier};
use muster_s3_server::{RunningServer, ServerConfig, start};

use crate::process::{body, client, keys};

const BUCKET: &str = "bucket";

async fn serve(dir: &Path) -> (RunningServer, Client) {
    let config = ServerConfig { dir: dir.to_owned(), listen: "127.0.0.1:0".parse().unwrap() };
    let server = start(config).await.unwrap();
    let sdk = client(server.addr, keys(&server.credentials_file), 1);
    sdk.create_bucket().bucket(BUCKET).send().await.unwrap();
    (server, sdk)
}

fn code<T: std::fmt::Debug, E: ProvideErrorMetadata + std::fmt::Debug, R>(
    result: Result<T, SdkError<E, R>>,
) -> String
where
    R: std::fmt::Debug,
{
    result.unwrap_err().code().unwrap_or("none").to_owned()
}

fn bytes(text: &str) -> ByteStream {
    ByteStream::from(text.as_bytes().to_vec())
}

async fn read(sdk: &Client, key: &str) -> Vec<u8> {
    let object = sdk.get_object().bucket(BUCKET).key(key).send().await.unwrap();
    object.body.collect().await.unwrap().to_vec()
}

#[tokio::test]
async fn only_the_holder_of_the_key_is_served() {
    let dir = tempfile::tempdir().unwrap();
    let (server, sdk) = serve(dir.path()).await;
    let (access_key, secret_key) = keys(&server.credentials_file);
    let forger = client(server.addr, (access_key, "wrong".to_owned()), 1);
    assert_eq!(code(forger.put_object().bucket(BUCKET).key("k").send().await), "SignatureDoesNotMatch");
    assert_eq!(code(forger.list_buckets().send().await), "SignatureDoesNotMatch");
    let stranger = client(server.addr, ("someone".to_owned(), secret_key), 1);
    assert_eq!(code(stranger.list_objects_v2().bucket(BUCKET).send().await), "NotSignedUp");
    let anonymous = fetch(server.addr, &format!("/{BUCKET}/")).await;
    assert!(anonymous.starts_with("HTTP/1.1 403"), "{anonymous}");
    let listed = sdk.list_objects_v2().bucket(BUCKET).send().await.unwrap();
    assert_eq!(listed.contents().len(), 0);
}

async fn fetch(addr: std::net::SocketAddr, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nhost: {addr}\r\nconnection: close\r\n\r\n");
    tokio::task::spawn_blocking(move || {
        use std::io::{Read as _, Write as _};
        let mut stream = std::net::TcpStream::connect(addr).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    })
    .await
    .unwrap()
}

#[tokio::test]
async fn conditions_hold() {
    let dir = tempfile::tempdir().unwrap();
    let (_server, sdk) = serve(dir.path()).await;
    let put = |text| sdk.put_object().bucket(BUCKET).key("a/b").body(bytes(text));
    assert_eq!(code(put("0").if_match("\"x\"").send().await), "NoSuchKey");
    let first = put("1").if_none_match("*").send().await.unwrap();
    assert_eq!(code(put("2").if_none_match("*").send().await), "PreconditionFailed");
    let second = put("3").if_match(first.e_tag().unwrap()).send().await.unwrap();
    assert_ne!(first.e_tag(), second.e_tag());
    assert_eq!(code(put("4").if_match(first.e_tag().unwrap()).send().await), "PreconditionFailed");
    assert_eq!(read(&sdk, "a/b").await, b"3");
    let head = sdk.head_object().bucket(BUCKET).key("a/b").send().await.unwrap();
    assert_eq!((head.e_tag(), head.content_length()), (second.e_tag(), Some(1)));
    let stale = sdk.get_object().bucket(BUCKET).key("a/b").if_match(first.e_tag().unwrap());
    assert_eq!(code(stale.send().await), "PreconditionFailed");
    let delete = sdk.delete_object().bucket(BUCKET).key("a/b");
    assert_eq!(code(delete.clone().if_match(first.e_tag().unwrap()).send().await), "PreconditionFailed");
    delete.if_match(second.e_tag().unwrap()).send().await.unwrap();
    assert_eq!(code(sdk.get_object().bucket(BUCKET).key("a/b").send().await), "NoSuchKey");
    put("5").if_none_match("*").send().await.unwrap();
}

#[tokio::test]
async fn ranges_copies_and_deletes() {
    let dir = tempfile::tempdir().unwrap();
    let (_server, sdk) = serve(dir.path()).await;
    let whole = body(7, 1_200_000);
    sdk.put_object().bucket(BUCKET).key("big").body(whole.clone().into()).send().await.unwrap();
    let ranged = |range: &str| sdk.get_object().bucket(BUCKET).key("big").range(range).send();
    for (range, expected) in [
        ("bytes=0-9", &whole[..10]),
        ("bytes=500000-1199999", &whole[500_000..]),
        ("bytes=1000000-", &whole[1_000_000..]),
        ("bytes=-5", &whole[1_199_995..]),
    ] {
        let part = ranged(range).await.unwrap();
        assert_eq!(part.content_length(), Some(i64::try_from(expected.len()).unwrap()), "{range}");
        assert!(part.body.collect().await.unwrap().to_vec() == expected, "{range}");
    }
    assert_eq!(code(ranged("bytes=1200000-").await), "InvalidRange");
    sdk.copy_object().bucket(BUCKET).key("copy").copy_source("bucket/big").send().await.unwrap();
    assert!(read(&sdk, "copy").await == whole);
    let absent = sdk.copy_object().bucket(BUCKET).key("x").copy_source("bucket/none").send().await;
    assert_eq!(code(absent), "NoSuchKey");
    let objects = ["big", "none"].map(|key| ObjectIdentifier::builder().key(key).build().unwrap());
    let delete = Delete::builder().set_objects(Some(objects.to_vec())).build().unwrap();
    sdk.delete_objects().bucket(BUCKET).delete(delete).send().await.unwrap();
    assert_eq!(code(sdk.delete_bucket().bucket(BUCKET).send().await), "BucketNotEmpty");
    sdk.delete_object().bucket(BUCKET).key("copy").send().await.unwrap();
    sdk.delete_bucket().bucket(BUCKET).send().await.unwrap();
    assert_eq!(code(sdk.put_object().bucket(BUCKET).key("k").send().await), "NoSuchBucket");
}

#[tokio::test]
async fn a_body_that_fails_its_checksum_never_gets_the_key() {
    let dir = tempfile::tempdir().unwrap();
    let (_server, sdk) = serve(dir.path()).await;
    let put = |text| sdk.put_object().bucket(BUCKET).key("sum").body(bytes(text));
    assert_eq!(code(put("new").checksum_crc32("AAAAAA==").if_none_match("*").send().await), "BadDigest");
    assert_eq!(code(sdk.get_object().bucket(BUCKET).key("sum").send().await), "NoSuchKey");
    put("old").send().await.unwrap();
    assert_eq!(code(put("new").checksum_crc32("AAAAAA==").send().await), "BadDigest");
    assert_eq!(read(&sdk, "sum").await, b"old");
    assert_eq!(fs::read_dir(dir.path().join(".muster/staging")).unwrap().count(), 0);
}

#[tokio::test]
async fn the_servers_own_files_are_neither_buckets_nor_objects() {
    let dir = tempfile::tempdir().unwrap();
    let (_server, sdk) = serve(dir.path()).await;
    sdk.put_object().bucket(BUCKET).key("plain").body(bytes("x")).send().await.unwrap();
    let buckets = sdk.list_buckets().send().await.unwrap();
    assert_eq!(buckets.buckets().iter().filter_map(|bucket| bucket.name()).collect::<Vec<_>>(), [BUCKET]);
    let objects = sdk.list_objects_v2().bucket(BUCKET).send().await.unwrap();
    assert_eq!(objects.contents().iter().filter_map(|object| object.key()).collect::<Vec<_>>(), ["plain"]);
    for path in
        ["/.muster/credentials", "/bucket/../.muster/credentials", "/bucket/%2e%2e/.muster/credentials"]
    {
        let answer = fetch(_server.addr, path).await;
        assert!(!answer.contains("aws_secret") && !answer.starts_with("HTTP/1.1 2"), "{path}: {answer}");
    }
    for key in ["../.muster/credentials", "a//b", "a/./b", "/a", "a/"] {
        let put = sdk.put_object().bucket(BUCKET).key(key).body(bytes("x")).send().await;
        assert!(put.is_err(), "`{key}` is refused");
    }
    let files: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(files.len(), 2, "{files:?}: the bucket and the private folder, nothing beside them");
    assert_eq!(code(sdk.create_bucket().bucket(BUCKET).send().await), "BucketAlreadyOwnedByYou");
    let nested = sdk.put_object().bucket(BUCKET).key("plain/below").body(bytes("x")).send().await;
    assert_eq!(code(nested), "InvalidArgument");
    let metadata = sdk.put_object().bucket(BUCKET).key("m").metadata("a", "b").send().await;
    assert_eq!(code(metadata), "NotImplemented");
}

#[tokio::test]
async fn multipart_uploads_outlive_the_server_and_respect_conditions() {
    let dir = tempfile::tempdir().unwrap();
    let (server, sdk) = serve(dir.path()).await;
    let whole = body(3, 5 * 1024 * 1024 + 1000);
    let (first, last) = whole.split_at(5 * 1024 * 1024);
    let upload = sdk.create_multipart_upload().bucket(BUCKET).key("big/one").send().await.unwrap();
    let id = upload.upload_id().unwrap().to_owned();
    let mut parts = vec![upload_part(&sdk, &id, 1, first).await];
    server.shutdown().await;

    let config = ServerConfig { dir: dir.path().to_owned(), listen: "127.0.0.1:0".parse().unwrap() };
    let server = start(config).await.unwrap();
    let sdk = client(server.addr, keys(&server.credentials_file), 1);
    parts.push(upload_part(&sdk, &id, 2, last).await);
    let parts = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
    let complete = |id: &str| {
        let request = sdk.complete_multipart_upload().bucket(BUCKET).key("big/one").upload_id(id);
        request.multipart_upload(parts.clone()).if_none_match("*").send()
    };
    complete(&id).await.unwrap();
    assert!(read(&sdk, "big/one").await == whole);
    assert_eq!(code(complete(&id).await), "PreconditionFailed");
    sdk.delete_object().bucket(BUCKET).key("big/one").send().await.unwrap();
    assert_eq!(code(complete(&id).await), "NoSuchUpload");

    let upload = sdk.create_multipart_upload().bucket(BUCKET).key("big/two").send().await.unwrap();
    let id = upload.upload_id().unwrap();
    upload_part(&sdk, id, 1, last).await;
    sdk.abort_multipart_upload().bucket(BUCKET).key("big/two").upload_id(id).send().await.unwrap();
    let left = fs::read_dir(dir.path().join(".muster/uploads")).unwrap();
    let left = left.filter(|entry| entry.as_ref().unwrap().file_name().to_str().unwrap().contains("upload"));
    assert_eq!(left.count(), 0, "nothing is left of finished uploads");
}

async fn upload_part(sdk: &Client, id: &str, number: i32, bytes: &[u8]) -> CompletedPart {
    let part = sdk.upload_part().bucket(BUCKET).key("big/one").upload_id(id).part_number(number);
    let part = part.body(bytes.to_vec().into()).send().await.unwrap();
    CompletedPart::builder().part_number(number).set_e_tag(part.e_tag).build()
}
