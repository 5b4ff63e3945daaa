//! The S3 operations, with writes of one key in a row and durable before they are answered.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt as _;
use s3s::dto::*;
use s3s::{S3, S3Error, S3ErrorCode, S3Request, S3Response, S3Result, s3_error};
use s3s_fs::FileSystem;
use tokio::sync::RwLock;

use crate::listing::{self, Query};
use crate::read;
use crate::serial::KeyLocks;
use crate::spool::{Spool, Staged};
use crate::tree::{self, Precondition, Tree, storage_error};

/// Conditional writes up to this size wait for their key in memory; times the connections it is 64 MiB.
const SMALL_BYTES_MAX: i64 = 64 * 1024;

/// What a page of a listing shows at most, as with S3.
const PAGE_MAX: i32 = 1000;

/// Beyond it, a new connection is cheaper than receiving what nobody wants.
const DRAINED_BYTES_MAX: usize = 256 * 1024;

/// `s3s-fs` for the list of buckets and for receiving bodies; names, conditions and listings are decided here.
pub(crate) struct SerialisedFs {
    files: FileSystem,
    tree: Arc<Tree>,
    spool: Spool,
    keys: KeyLocks,
    // Writers of objects share it; a bucket is removed alone.
    buckets: RwLock<()>,
}

impl SerialisedFs {
    pub(crate) fn new(files: FileSystem, tree: Tree, spool: Spool) -> Self {
        Self { files, tree: Arc::new(tree), spool, keys: KeyLocks::new(), buckets: RwLock::default() }
    }

    /// Runs file work off the async threads. The closure keeps the tree, and with it the folder's lock, until it ends,
    /// whatever becomes of the server meanwhile.
    async fn blocking<T, F>(&self, work: F) -> S3Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Tree) -> S3Result<T> + Send + 'static,
    {
        let tree = Arc::clone(&self.tree);
        tokio::task::spawn_blocking(move || work(&tree)).await.map_err(S3Error::internal_error)?
    }

    /// Refuses early what cannot succeed, so that a loser need not send its body. It waits for a writer of the key: a
    /// refusal rests on a durable object.
    async fn precheck(&self, bucket: &str, key: &str, precondition: &Precondition) -> S3Result<PathBuf> {
        let path = self.tree.object_path(bucket, key)?;
        if matches!(precondition, Precondition::None) {
            return Ok(path);
        }
        let _key = self.keys.lock(bucket, key).await;
        Tree::check(&path, precondition)?;
        Ok(path)
    }

    /// Gives a received body its key.
    async fn publish(
        &self,
        staged: Staged,
        (bucket, key): (&str, &str),
        precondition: Precondition,
    ) -> S3Result<ETag> {
        let _bucket = self.buckets.read().await;
        let path = self.tree.object_path(bucket, key)?;
        let _key = self.keys.lock(bucket, key).await;
        self.blocking(move |tree| tree.publish(&staged.file(), &path, &precondition)).await
    }

    /// A conditional write that fits in memory: the disk is touched only if the condition holds, and a race for a key
    /// costs its losers nothing.
    async fn put_small(
        &self,
        mut req: S3Request<PutObjectInput>,
        precondition: Precondition,
    ) -> S3Result<S3Response<PutObjectOutput>> {
        req.input.body = Some(in_memory(req.input.body.take()).await?);
        let (bucket, key) = (req.input.bucket.clone(), req.input.key.clone());
        let _bucket = self.buckets.read().await;
        let path = self.tree.object_path(&bucket, &key)?;
        let _key = self.keys.lock(&bucket, &key).await;
        Tree::check(&path, &precondition)?;
        let (staged, mut response) = self.spool.receive(req).await?;
        let publish = move |tree: &Tree| tree.publish(&staged.file(), &path, &precondition);
        response.output.e_tag = Some(self.blocking(publish).await?);
        Ok(response)
    }

    /// Opens an object that is durable: a reader that finds it can rely on finding it again.
    async fn open(&self, bucket: &str, key: &str) -> S3Result<(File, fs::Metadata)> {
        let path = self.tree.object_path(bucket, key)?;
        let _key = self.keys.lock(bucket, key).await;
        let metadata = Tree::find(&path)?.ok_or_else(|| s3_error!(NoSuchKey))?;
        match File::open(&path) {
            Ok(file) => Ok((file, metadata)),
            Err(error) => Err(storage_error(error)),
        }
    }

    async fn remove(&self, bucket: &str, key: &str, precondition: Precondition) -> S3Result<()> {
        let _bucket = self.buckets.read().await;
        let path = self.tree.object_path(bucket, key)?;
        let _key = self.keys.lock(bucket, key).await;
        self.blocking(move |_| {
            Tree::check(&path, &precondition)?;
            Tree::remove(&path)
        })
        .await
    }
}

/// Headers that make a read depend on the version found.
fn check_read(
    if_match: Option<&ETagCondition>,
    if_none_match: Option<&ETagCondition>,
    found: &ETag,
) -> S3Result<()> {
    if if_match.is_some_and(|condition| !tree::matches(condition, found)) {
        return Err(s3_error!(PreconditionFailed));
    }
    if if_none_match.is_some_and(|condition| tree::matches(condition, found)) {
        return Err(s3_error!(NotModified));
    }
    Ok(())
}

/// Takes in what is left of a small body, so that the connection can be used again; a large one ends the connection.
async fn drain(body: Option<StreamingBlob>) {
    let mut left = DRAINED_BYTES_MAX;
    let Some(mut body) = body else { return };
    while let Some(Ok(bytes)) = body.next().await {
        left = left.saturating_sub(bytes.len());
        if left == 0 {
            break;
        }
    }
}

/// Receives a body whole; its length is bounded by the request's.
async fn in_memory(body: Option<StreamingBlob>) -> S3Result<StreamingBlob> {
    let mut body = body.ok_or_else(|| s3_error!(IncompleteBody))?;
    let mut pieces = Vec::new();
    while let Some(piece) = body.next().await {
        pieces.push(Ok::<_, std::io::Error>(
            piece.map_err(|error| S3Error::with_source(S3ErrorCode::IncompleteBody, error))?,
        ));
    }
    Ok(StreamingBlob::wrap(futures::stream::iter(pieces)))
}

fn refuse_metadata(metadata: Option<&s3s::dto::Metadata>) -> S3Result<()> {
    if metadata.is_some_and(|metadata| !metadata.is_empty()) {
        return Err(s3_error!(NotImplemented, "the embedded S3 server keeps no user metadata"));
    }
    Ok(())
}

fn length(bytes: u64) -> S3Result<i64> {
    i64::try_from(bytes).map_err(S3Error::internal_error)
}

fn modified(metadata: &fs::Metadata) -> S3Result<Timestamp> {
    metadata.modified().map(Timestamp::from).map_err(storage_error)
}

fn copy_source(source: &CopySource) -> S3Result<(&str, &str)> {
    match source {
        CopySource::Bucket { bucket, key, .. } => Ok((bucket, key)),
        _ => Err(s3_error!(NotImplemented, "only objects of this server can be copied")),
    }
}

fn copy_file(source: &Path, staged: &Staged) -> S3Result<()> {
    match fs::copy(source, staged.file()) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(s3_error!(NoSuchKey)),
        result => result.map(|_| ()).map_err(storage_error),
    }
}

#[async_trait]
impl S3 for SerialisedFs {
    async fn create_bucket(
        &self,
        req: S3Request<CreateBucketInput>,
    ) -> S3Result<S3Response<CreateBucketOutput>> {
        let _alone = self.buckets.write().await;
        let bucket = req.input.bucket;
        self.blocking(move |tree| tree.create_bucket(&bucket)).await?;
        Ok(S3Response::new(CreateBucketOutput::default()))
    }

    async fn delete_bucket(
        &self,
        req: S3Request<DeleteBucketInput>,
    ) -> S3Result<S3Response<DeleteBucketOutput>> {
        let _alone = self.buckets.write().await;
        let bucket = req.input.bucket;
        self.blocking(move |tree| tree.delete_bucket(&bucket)).await?;
        Ok(S3Response::new(DeleteBucketOutput::default()))
    }

    async fn head_bucket(&self, req: S3Request<HeadBucketInput>) -> S3Result<S3Response<HeadBucketOutput>> {
        self.tree.bucket(&req.input.bucket)?;
        Ok(S3Response::new(HeadBucketOutput::default()))
    }

    async fn get_bucket_location(
        &self,
        req: S3Request<GetBucketLocationInput>,
    ) -> S3Result<S3Response<GetBucketLocationOutput>> {
        self.tree.bucket(&req.input.bucket)?;
        Ok(S3Response::new(GetBucketLocationOutput::default()))
    }

    async fn list_buckets(
        &self,
        req: S3Request<ListBucketsInput>,
    ) -> S3Result<S3Response<ListBucketsOutput>> {
        self.files.list_buckets(req).await
    }

    async fn list_objects(
        &self,
        req: S3Request<ListObjectsInput>,
    ) -> S3Result<S3Response<ListObjectsOutput>> {
        let marker = req.input.marker.clone();
        let listed = self.list_objects_v2(req.map_input(Into::into)).await?;
        Ok(listed.map_output(|listed| ListObjectsOutput {
            contents: listed.contents,
            common_prefixes: listed.common_prefixes,
            delimiter: listed.delimiter,
            name: listed.name,
            prefix: listed.prefix,
            max_keys: listed.max_keys,
            is_truncated: listed.is_truncated,
            marker,
            next_marker: listed.next_continuation_token,
            ..Default::default()
        }))
    }

    async fn list_objects_v2(
        &self,
        req: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        let input = req.input;
        let bucket = self.tree.bucket(&input.bucket)?;
        let max_keys = input.max_keys.unwrap_or(PAGE_MAX).clamp(0, PAGE_MAX);
        let query = Query {
            prefix: input.prefix.clone().unwrap_or_default(),
            delimiter: input.delimiter.clone().filter(|delimiter| !delimiter.is_empty()),
            // A continuation says where the page before ended.
            after: input.continuation_token.clone().max(input.start_after.clone()),
            max: usize::try_from(max_keys).map_err(S3Error::internal_error)?,
        };
        let page = self.blocking(move |_| listing::list(&bucket, &query).map_err(storage_error)).await?;
        let object = |(key, metadata): (String, fs::Metadata)| {
            Ok(Object {
                key: Some(key),
                size: Some(length(metadata.len())?),
                last_modified: Some(modified(&metadata)?),
                e_tag: Some(tree::etag(&metadata)),
                ..Default::default()
            })
        };
        let contents: Vec<Object> = page.objects.into_iter().map(object).collect::<S3Result<_>>()?;
        let common_prefixes: Vec<CommonPrefix> =
            page.beginnings.into_iter().map(|prefix| CommonPrefix { prefix: Some(prefix) }).collect();
        let output = ListObjectsV2Output {
            key_count: i32::try_from(contents.len() + common_prefixes.len()).ok(),
            max_keys: Some(max_keys),
            is_truncated: Some(page.is_truncated),
            contents: Some(contents).filter(|contents| !contents.is_empty()),
            common_prefixes: Some(common_prefixes).filter(|prefixes| !prefixes.is_empty()),
            continuation_token: input.continuation_token,
            next_continuation_token: page.last,
            delimiter: input.delimiter,
            name: Some(input.bucket),
            prefix: input.prefix,
            start_after: input.start_after,
            ..Default::default()
        };
        Ok(S3Response::new(output))
    }

    async fn get_object(&self, req: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        let input = req.input;
        let (file, metadata) = self.open(&input.bucket, &input.key).await?;
        let e_tag = tree::etag(&metadata);
        check_read(input.if_match.as_ref(), input.if_none_match.as_ref(), &e_tag)?;
        let whole = metadata.len();
        let range = input.range.map_or(Ok(0..whole), |range| range.check(whole))?;
        let content_range = input.range.map(|_| format!("bytes {}-{}/{whole}", range.start, range.end - 1));
        let output = GetObjectOutput {
            content_length: Some(length(range.end - range.start)?),
            content_range,
            accept_ranges: Some("bytes".to_owned()),
            last_modified: Some(modified(&metadata)?),
            e_tag: Some(e_tag),
            body: Some(read::body(file, range)),
            ..Default::default()
        };
        Ok(S3Response::new(output))
    }

    async fn head_object(&self, req: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        let input = req.input;
        let (_, metadata) = self.open(&input.bucket, &input.key).await?;
        let e_tag = tree::etag(&metadata);
        check_read(input.if_match.as_ref(), input.if_none_match.as_ref(), &e_tag)?;
        let output = HeadObjectOutput {
            content_length: Some(length(metadata.len())?),
            accept_ranges: Some("bytes".to_owned()),
            last_modified: Some(modified(&metadata)?),
            e_tag: Some(e_tag),
            ..Default::default()
        };
        Ok(S3Response::new(output))
    }

    async fn put_object(&self, req: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        let input = &req.input;
        refuse_metadata(input.metadata.as_ref())?;
        let precondition = Precondition::new(input.if_match.clone(), input.if_none_match.clone())?;
        let conditional = !matches!(precondition, Precondition::None);
        if conditional && input.content_length.is_some_and(|bytes| bytes <= SMALL_BYTES_MAX) {
            return self.put_small(req, precondition).await;
        }
        let (bucket, key) = (input.bucket.clone(), input.key.clone());
        if let Err(refusal) = self.precheck(&bucket, &key, &precondition).await {
            drain(req.input.body).await;
            return Err(refusal);
        }
        let (staged, mut response) = self.spool.receive(req).await?;
        response.output.e_tag = Some(self.publish(staged, (&bucket, &key), precondition).await?);
        Ok(response)
    }

    async fn copy_object(&self, req: S3Request<CopyObjectInput>) -> S3Result<S3Response<CopyObjectOutput>> {
        let input = req.input;
        refuse_metadata(input.metadata.as_ref())?;
        let (source_bucket, source_key) = copy_source(&input.copy_source)?;
        let (_, source) = self.open(source_bucket, source_key).await?;
        let found = tree::etag(&source);
        check_read(input.copy_source_if_match.as_ref(), None, &found)?;
        if input.copy_source_if_none_match.as_ref().is_some_and(|condition| tree::matches(condition, &found))
        {
            return Err(s3_error!(PreconditionFailed));
        }
        let source = self.tree.object_path(source_bucket, source_key)?;
        let staged = self.spool.stage().map_err(storage_error)?;
        let staged = self.blocking(move |_| copy_file(&source, &staged).map(|()| staged)).await?;
        let target = (input.bucket.as_str(), input.key.as_str());
        let e_tag = self.publish(staged, target, Precondition::None).await?;
        let (_, metadata) = self.open(&input.bucket, &input.key).await?;
        let result = CopyObjectResult {
            e_tag: Some(e_tag),
            last_modified: Some(modified(&metadata)?),
            ..Default::default()
        };
        Ok(S3Response::new(CopyObjectOutput { copy_object_result: Some(result), ..Default::default() }))
    }

    async fn delete_object(
        &self,
        req: S3Request<DeleteObjectInput>,
    ) -> S3Result<S3Response<DeleteObjectOutput>> {
        let precondition = Precondition::new(req.input.if_match, None)?;
        self.remove(&req.input.bucket, &req.input.key, precondition).await?;
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn delete_objects(
        &self,
        req: S3Request<DeleteObjectsInput>,
    ) -> S3Result<S3Response<DeleteObjectsOutput>> {
        let mut deleted = Vec::new();
        for object in req.input.delete.objects {
            self.remove(&req.input.bucket, &object.key, Precondition::None).await?;
            deleted.push(DeletedObject { key: Some(object.key), ..Default::default() });
        }
        Ok(S3Response::new(DeleteObjectsOutput { deleted: Some(deleted), ..Default::default() }))
    }

    async fn create_multipart_upload(
        &self,
        req: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        refuse_metadata(req.input.metadata.as_ref())?;
        self.tree.object_path(&req.input.bucket, &req.input.key)?;
        self.spool.create_upload(req).await
    }

    async fn upload_part(&self, req: S3Request<UploadPartInput>) -> S3Result<S3Response<UploadPartOutput>> {
        self.spool.upload_part(req).await
    }

    async fn list_parts(&self, req: S3Request<ListPartsInput>) -> S3Result<S3Response<ListPartsOutput>> {
        self.spool.list_parts(req).await
    }

    async fn abort_multipart_upload(
        &self,
        req: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        self.spool.abort_upload(req).await
    }

    async fn complete_multipart_upload(
        &self,
        req: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let input = &req.input;
        let precondition = Precondition::new(input.if_match.clone(), input.if_none_match.clone())?;
        let (bucket, key) = (input.bucket.clone(), input.key.clone());
        self.precheck(&bucket, &key, &precondition).await?;
        let staged = self.spool.join_parts(req).await?;
        let e_tag = self.publish(staged, (&bucket, &key), precondition).await?;
        let output = CompleteMultipartUploadOutput {
            bucket: Some(bucket),
            key: Some(key),
            e_tag: Some(e_tag),
            ..Default::default()
        };
        Ok(S3Response::new(output))
    }
}
