//! Writing files.

use std::path::Path;

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use super::client::S3Objects;
use super::error::Failure;
use crate::error::RepoError;
use crate::objects::Objects;

/// Size of a part, and the file size above which parts are used: 10,000 of them, S3's limit, hold 156 GiB.
const PART_BYTES: u64 = 16 * 1024 * 1024;

/// Parts held in memory at once: 64 MiB keep a 10 Gbit/s link busy.
const PARTS_IN_FLIGHT: usize = 4;

pub(super) async fn put_file(objects: &S3Objects, key: &str, path: &Path) -> Result<(), RepoError> {
    let metadata = tokio::fs::metadata(path).await.map_err(|error| RepoError::local(path, "read", &error))?;
    if metadata.len() <= PART_BYTES {
        return objects.put(key, read_part(path, 0, metadata.len()).await?).await;
    }
    let doing = objects.doing("starting the upload of", key);
    let begin =
        || objects.client.create_multipart_upload().bucket(&objects.bucket).key(objects.full_key(key)).send();
    let begun = objects.retry(&doing, begin).await.map_err(|failure| failure.into_error(key))?;
    let upload = begun.upload_id().unwrap_or_default();
    let done = upload_parts(objects, key, path, metadata.len(), upload).await;
    if done.is_err() {
        // Best effort: what remains of an upload costs space, and the bucket's life-cycle rule removes it.
        let abort = objects.client.abort_multipart_upload().bucket(&objects.bucket);
        drop(abort.key(objects.full_key(key)).upload_id(upload).send().await);
    }
    done
}

async fn upload_parts(
    objects: &S3Objects,
    key: &str,
    path: &Path,
    bytes: u64,
    upload: &str,
) -> Result<(), RepoError> {
    let parts: Vec<CompletedPart> = futures::stream::iter(0..bytes.div_ceil(PART_BYTES))
        .map(|index| upload_part(objects, key, path, bytes, upload, index))
        .buffered(PARTS_IN_FLIGHT)
        .try_collect()
        .await?;
    let parts = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
    let complete = || {
        let request = objects.client.complete_multipart_upload().bucket(&objects.bucket);
        request.key(objects.full_key(key)).upload_id(upload).multipart_upload(parts.clone()).send()
    };
    match objects.retry(&objects.doing("completing the upload of", key), complete).await {
        Ok(_) => Ok(()),
        // The first try may have completed it, and the upload is gone then: the size tells.
        Err(Failure::Absent) if objects.size(key).await? == Some(bytes) => Ok(()),
        Err(other) => Err(other.into_error(key)),
    }
}

async fn upload_part(
    objects: &S3Objects,
    key: &str,
    path: &Path,
    bytes: u64,
    upload: &str,
    index: u64,
) -> Result<CompletedPart, RepoError> {
    let offset = index * PART_BYTES;
    let body = read_part(path, offset, PART_BYTES.min(bytes - offset)).await?;
    let number = i32::try_from(index + 1).map_err(|_| RepoError::misuse("a pack of more than 2^31 parts"))?;
    let send = || {
        let request = objects.client.upload_part().bucket(&objects.bucket).key(objects.full_key(key));
        request.upload_id(upload).part_number(number).body(ByteStream::from(body.clone())).send()
    };
    let doing = objects.doing("uploading a part of", key);
    let sent = objects.retry(&doing, send).await.map_err(|failure| failure.into_error(key))?;
    Ok(CompletedPart::builder().part_number(number).set_e_tag(sent.e_tag().map(str::to_owned)).build())
}

async fn read_part(path: &Path, offset: u64, bytes: u64) -> Result<Bytes, RepoError> {
    let failed = |error: std::io::Error| RepoError::local(path, "read", &error);
    let mut file = tokio::fs::File::open(path).await.map_err(failed)?;
    file.seek(std::io::SeekFrom::Start(offset)).await.map_err(failed)?;
    let mut body = Vec::with_capacity(usize::try_from(bytes).unwrap_or(0));
    file.take(bytes).read_to_end(&mut body).await.map_err(failed)?;
    if body.len() as u64 != bytes {
        return Err(failed(std::io::Error::other("the file became shorter while it was read")));
    }
    Ok(body.into())
}
