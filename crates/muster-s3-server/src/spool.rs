//! Bodies on their way in: received and checked by `s3s-fs` in a folder of their own, before they have a key.
//!
//! `s3s-fs` gives a body its name before it compares the checksums, and writes what it knows about it into files
//! beside it. Here that happens out of sight, and only the finished body is published.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use s3s::dto::{
    AbortMultipartUploadInput, AbortMultipartUploadOutput, CompleteMultipartUploadInput,
    CreateMultipartUploadInput, CreateMultipartUploadOutput, ListPartsInput, ListPartsOutput, PutObjectInput,
    PutObjectOutput, UploadPartInput, UploadPartOutput,
};
use s3s::{S3, S3Error, S3ErrorCode, S3Request, S3Response, S3Result, s3_error};
use s3s_fs::FileSystem;
use tokio::sync::Mutex;

use crate::error::ServerError;
use crate::tree::storage_error;

/// The one bucket and key inside each staging folder.
const BUCKET: &str = "body";
const KEY: &str = "object";

/// Parts of an upload that nobody continued for so long are removed at start.
const UPLOAD_ABANDONED: Duration = Duration::from_secs(24 * 60 * 60);

/// The staging folder.
pub(crate) struct Spool {
    staging: PathBuf,
    uploads_dir: PathBuf,
    uploads: FileSystem,
    // Completed uploads pass through one name.
    completing: Mutex<()>,
    next: AtomicU64,
}

/// A finished body in a folder that goes away with this value.
#[derive(Debug)]
pub(crate) struct Staged {
    dir: PathBuf,
}

impl Staged {
    pub(crate) fn file(&self) -> PathBuf {
        self.dir.join(BUCKET).join(KEY)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // What stays behind is emptied at the next start.
        if let Err(error) = fs::remove_dir_all(&self.dir) {
            tracing::debug!(dir = %self.dir.display(), %error, "a staging folder stays until the next start");
        }
    }
}

impl Spool {
    /// Empties what a killed process left, keeping unfinished multipart uploads: clients go on with them.
    pub(crate) fn open(private: &Path) -> Result<Self, ServerError> {
        let staging = private.join("staging");
        match fs::remove_dir_all(&staging) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(ServerError::io("empty", &staging)(error));
            }
            _ => fs::create_dir_all(&staging).map_err(ServerError::io("create", &staging))?,
        }
        let uploads_dir = private.join("uploads");
        let bucket = uploads_dir.join(BUCKET);
        fs::create_dir_all(&bucket).map_err(ServerError::io("create", &bucket))?;
        remove_abandoned(&uploads_dir).map_err(ServerError::io("clean", &uploads_dir))?;
        let uploads = FileSystem::new(&uploads_dir).map_err(|error| ServerError::Io {
            what: "open",
            path: uploads_dir.clone(),
            reason: format!("{error:?}"),
        })?;
        Ok(Self { staging, uploads_dir, uploads, completing: Mutex::default(), next: AtomicU64::new(0) })
    }

    /// A new empty staging folder.
    pub(crate) fn stage(&self) -> std::io::Result<Staged> {
        let dir = self.staging.join(self.next.fetch_add(1, Ordering::Relaxed).to_string());
        fs::create_dir_all(dir.join(BUCKET))?;
        Ok(Staged { dir })
    }

    /// Receives a body; its length, digests and signature have been checked when this returns.
    pub(crate) async fn receive(
        &self,
        request: S3Request<PutObjectInput>,
    ) -> S3Result<(Staged, S3Response<PutObjectOutput>)> {
        let staged = self.stage().map_err(storage_error)?;
        let receiver = FileSystem::new(&staged.dir).map_err(S3Error::from).map_err(full_or_same)?;
        let request = request.map_input(|input| PutObjectInput {
            bucket: BUCKET.to_owned(),
            key: KEY.to_owned(),
            if_match: None,
            if_none_match: None,
            ..input
        });
        let response = receiver.put_object(request).await.map_err(full_or_same)?;
        Ok((staged, response))
    }

    pub(crate) async fn create_upload(
        &self,
        request: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        let (bucket, key) = (request.input.bucket.clone(), request.input.key.clone());
        let inside = |input| CreateMultipartUploadInput { bucket: BUCKET.into(), key: KEY.into(), ..input };
        let response = self.uploads.create_multipart_upload(request.map_input(inside)).await;
        let mut response = response.map_err(full_or_same)?;
        response.output.bucket = Some(bucket);
        response.output.key = Some(key);
        Ok(response)
    }

    pub(crate) async fn upload_part(
        &self,
        request: S3Request<UploadPartInput>,
    ) -> S3Result<S3Response<UploadPartOutput>> {
        self.uploads.upload_part(request).await.map_err(upload_error)
    }

    pub(crate) async fn list_parts(
        &self,
        request: S3Request<ListPartsInput>,
    ) -> S3Result<S3Response<ListPartsOutput>> {
        self.uploads.list_parts(request).await.map_err(upload_error)
    }

    pub(crate) async fn abort_upload(
        &self,
        request: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        let inside = |input| AbortMultipartUploadInput { bucket: BUCKET.into(), key: KEY.into(), ..input };
        self.uploads.abort_multipart_upload(request.map_input(inside)).await.map_err(upload_error)
    }

    /// Joins the parts of an upload into one body.
    pub(crate) async fn join_parts(
        &self,
        request: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<Staged> {
        let staged = self.stage().map_err(storage_error)?;
        let inside = |input| CompleteMultipartUploadInput {
            bucket: BUCKET.into(),
            key: KEY.into(),
            if_match: None,
            if_none_match: None,
            ..input
        };
        let _one = self.completing.lock().await;
        self.uploads.complete_multipart_upload(request.map_input(inside)).await.map_err(upload_error)?;
        let joined = self.uploads_dir.join(BUCKET).join(KEY);
        fs::rename(joined, staged.file()).map_err(storage_error)?;
        Ok(staged)
    }
}

fn remove_abandoned(uploads: &Path) -> std::io::Result<()> {
    let now = SystemTime::now();
    for entry in fs::read_dir(uploads)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        let age = now.duration_since(metadata.modified()?).unwrap_or_default();
        if metadata.is_file() && age > UPLOAD_ABANDONED {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// `s3s-fs` answers with an internal error whatever the disk said.
fn full_or_same(error: S3Error) -> S3Error {
    let kind =
        error.source().and_then(|source| source.downcast_ref::<std::io::Error>()).map(std::io::Error::kind);
    kind.map_or(error, |kind| storage_error(kind.into()))
}

/// To `s3s-fs` an unknown upload is a denied one.
fn upload_error(error: S3Error) -> S3Error {
    if *error.code() == S3ErrorCode::AccessDenied {
        return s3_error!(NoSuchUpload);
    }
    full_or_same(error)
}
