//! The client and its plain requests.

use std::future::Future;
use std::path::Path;

use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::ByteStream;
use bytes::Bytes;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::config::{self, S3Config};
use super::error::{Failure, Patience, sort};
use crate::create::{Attempt, ConditionalStore, settle};
use crate::error::{RepoError, RepoErrorKind};
use crate::objects::{Creation, ObjectEntry, Objects};

/// A bucket.
#[derive(Debug)]
pub struct S3Objects {
    pub(super) client: Client,
    pub(super) bucket: String,
    prefix: String,
    permits: Semaphore,
}

impl S3Objects {
    /// A client; asks nothing of the bucket yet.
    ///
    /// # Errors
    /// [`RepoErrorKind::Misuse`](crate::RepoErrorKind::Misuse) for an empty bucket name,
    /// [`RepoErrorKind::Untrusted`](crate::RepoErrorKind::Untrusted) for an `AWS_CA_BUNDLE` without certificates.
    pub async fn connect(config: &S3Config) -> Result<Self, RepoError> {
        if config.bucket.is_empty() {
            return Err(RepoError::new(
                RepoErrorKind::Misuse,
                "the repository's bucket has no name",
                "set `bucket` in the topology's [repository]",
            ));
        }
        let prefix = config.prefix.trim_matches('/');
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        Ok(Self {
            client: config::client(config).await?,
            bucket: config.bucket.clone(),
            prefix,
            permits: Semaphore::new(config.requests_in_flight.max(1)),
        })
    }

    /// Creates the bucket unless it is there and ours.
    ///
    /// # Errors
    /// What S3 answers.
    pub async fn ensure_bucket(&self) -> Result<(), RepoError> {
        // Not a HEAD: its answer has no body to say why it refuses.
        let doing = format!("looking into bucket `{}`", self.bucket);
        let look = || self.client.list_objects_v2().bucket(&self.bucket).max_keys(1).send();
        match self.retry(&doing, look).await {
            Ok(_) => return Ok(()),
            Err(Failure::Final(error)) if error.kind == RepoErrorKind::NoBucket => {}
            Err(other) => return Err(other.into_error(&self.bucket)),
        }
        let doing = format!("creating bucket `{}`", self.bucket);
        let created = self.retry(&doing, || self.client.create_bucket().bucket(&self.bucket).send()).await;
        match created {
            // Refused: it exists by now.
            Ok(_) | Err(Failure::Refused) => Ok(()),
            Err(other) => Err(other.into_error(&self.bucket)),
        }
    }

    pub(super) fn full_key(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    pub(super) fn doing(&self, verb: &str, key: &str) -> String {
        format!("{verb} `{key}` in bucket `{}`", self.bucket)
    }

    pub(super) async fn permit(&self) -> Result<SemaphorePermit<'_>, Failure> {
        let closed = |_| Failure::Final(RepoError::misuse("the S3 client was closed while in use"));
        self.permits.acquire().await.map_err(closed)
    }

    /// Sends a request until it is answered or patience ends.
    pub(super) async fn retry<T, E, F, Fut>(&self, doing: &str, send: F) -> Result<T, Failure>
    where
        F: Fn() -> Fut,
        Fut: Future<Output = Result<T, SdkError<E, HttpResponse>>>,
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        let mut patience = Patience::new();
        loop {
            let answer = {
                let _permit = self.permit().await?;
                send().await
            };
            let failure = match answer {
                Ok(answer) => return Ok(answer),
                Err(error) => sort(doing, &error),
            };
            let Failure::Transient(error) = failure else { return Err(failure) };
            if !patience.wait().await {
                return Err(Failure::Transient(error));
            }
            tracing::debug!(%error, "trying again");
        }
    }

    fn entries(
        &self,
        page: &aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Output,
    ) -> Vec<ObjectEntry> {
        let entry = |object: &aws_sdk_s3::types::Object| {
            let key = object.key()?.strip_prefix(&self.prefix)?.to_owned();
            Some(ObjectEntry { key, bytes: u64::try_from(object.size().unwrap_or(0)).unwrap_or(0) })
        };
        page.contents().iter().filter_map(entry).collect()
    }

    async fn list_page(
        &self,
        prefix: &str,
        after: Option<&str>,
        delimiter: Option<&str>,
        token: Option<String>,
    ) -> Result<aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Output, RepoError> {
        let doing = self.doing("listing", prefix);
        let send = || {
            self.client
                .list_objects_v2()
                .bucket(&self.bucket)
                .prefix(self.full_key(prefix))
                .set_delimiter(delimiter.map(str::to_owned))
                .set_start_after(after.map(|after| self.full_key(after)))
                .set_continuation_token(token.clone())
                .send()
        };
        self.retry(&doing, send).await.map_err(|failure| failure.into_error(prefix))
    }
}

/// One key, for [`settle`].
struct Slot<'a> {
    objects: &'a S3Objects,
    key: &'a str,
}

impl ConditionalStore for Slot<'_> {
    async fn try_create(&self, body: Bytes) -> Result<Attempt, RepoError> {
        let objects = self.objects;
        let _permit = objects.permit().await.map_err(|failure| failure.into_error(self.key))?;
        let answer = objects
            .client
            .put_object()
            .bucket(&objects.bucket)
            .key(objects.full_key(self.key))
            .if_none_match("*")
            .body(ByteStream::from(body))
            .send()
            .await;
        let Err(error) = answer else { return Ok(Attempt::Done) };
        match sort(&objects.doing("creating", self.key), &error) {
            Failure::Refused => Ok(Attempt::Refused),
            Failure::Transient(error) => Ok(Attempt::Unknown(error)),
            other => Err(other.into_error(self.key)),
        }
    }

    async fn read_back(&self) -> Result<Option<Bytes>, RepoError> {
        self.objects.get(self.key).await
    }
}

#[async_trait]
impl Objects for S3Objects {
    async fn create(&self, key: &str, body: Bytes) -> Result<Creation, RepoError> {
        settle(&Slot { objects: self, key }, key, body).await
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<(), RepoError> {
        let send = || {
            let request = self.client.put_object().bucket(&self.bucket).key(self.full_key(key));
            request.body(ByteStream::from(body.clone())).send()
        };
        let sent = self.retry(&self.doing("writing", key), send).await;
        sent.map(|_| ()).map_err(|failure| failure.into_error(key))
    }

    async fn put_file(&self, key: &str, path: &Path) -> Result<(), RepoError> {
        super::upload::put_file(self, key, path).await
    }

    async fn get(&self, key: &str) -> Result<Option<Bytes>, RepoError> {
        match super::read::whole(self, key).await {
            Ok(body) => Ok(Some(body)),
            Err(Failure::Absent) => Ok(None),
            Err(other) => Err(other.into_error(key)),
        }
    }

    async fn get_range(&self, key: &str, offset: u64, bytes: u64) -> Result<Bytes, RepoError> {
        match super::read::range(self, key, offset, bytes).await {
            Err(Failure::BeyondEnd) => Err(RepoError::damaged_range(
                key,
                offset,
                bytes,
                "the object ends before the end of this range",
            )),
            other => other.map_err(|failure| failure.into_error(key)),
        }
    }

    async fn size(&self, key: &str) -> Result<Option<u64>, RepoError> {
        let send = || self.client.head_object().bucket(&self.bucket).key(self.full_key(key)).send();
        match self.retry(&self.doing("asking the size of", key), send).await {
            Ok(head) => Ok(Some(u64::try_from(head.content_length().unwrap_or(0)).unwrap_or(0))),
            Err(Failure::Absent) => Ok(None),
            Err(other) => Err(other.into_error(key)),
        }
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Vec<ObjectEntry>, RepoError> {
        let mut entries = Vec::new();
        let mut token = None;
        loop {
            let page = self.list_page(prefix, after, None, token).await?;
            entries.extend(self.entries(&page));
            token = page.next_continuation_token().map(str::to_owned);
            if token.is_none() || !page.is_truncated().unwrap_or(false) {
                return Ok(entries);
            }
        }
    }

    async fn list_between(
        &self,
        prefix: &str,
        after: &str,
        upto: &str,
    ) -> Result<Vec<ObjectEntry>, RepoError> {
        let mut entries: Vec<ObjectEntry> = Vec::new();
        let mut token = None;
        loop {
            let page = self.list_page(prefix, Some(after), None, token).await?;
            entries.extend(self.entries(&page));
            token = page.next_continuation_token().map(str::to_owned);
            let behind = entries.last().is_some_and(|last| last.key.as_str() > upto);
            if behind || token.is_none() || !page.is_truncated().unwrap_or(false) {
                entries.retain(|entry| entry.key.as_str() <= upto);
                return Ok(entries);
            }
        }
    }

    async fn delete(&self, key: &str) -> Result<(), RepoError> {
        let send = || self.client.delete_object().bucket(&self.bucket).key(self.full_key(key)).send();
        match self.retry(&self.doing("removing", key), send).await {
            Ok(_) | Err(Failure::Absent) => Ok(()),
            Err(other) => Err(other.into_error(key)),
        }
    }

    async fn remove_older_versions(&self, key: &str) -> Result<u64, RepoError> {
        let (full, doing) = (self.full_key(key), self.doing("listing the versions of", key));
        let (mut removed, mut next, mut version) = (0, None, None);
        loop {
            let permit = self.permit().await.map_err(|failure| failure.into_error(key))?;
            let list = self.client.list_object_versions().bucket(&self.bucket).prefix(&full);
            let answer = list.set_key_marker(next).set_version_id_marker(version).send().await;
            drop(permit);
            let page = match answer {
                Ok(page) => page,
                // Who knows no versions keeps none; trying again would not teach it.
                Err(error) if error.raw_response().is_some_and(|answer| answer.status().as_u16() == 501) => {
                    return Ok(removed);
                }
                Err(error) => return Err(super::error::sort(&doing, &error).into_error(key)),
            };
            for found in page.versions().iter().filter(|found| found.key() == Some(full.as_str())) {
                let (Some(id), Some(false)) = (found.version_id(), found.is_latest()) else { continue };
                let send = || {
                    let request = self.client.delete_object().bucket(&self.bucket).key(&full);
                    request.version_id(id).send()
                };
                let doing = self.doing("removing an older version of", key);
                self.retry(&doing, send).await.map_err(|failure| failure.into_error(key))?;
                removed += 1;
            }
            (next, version) =
                (page.next_key_marker().map(str::to_owned), page.next_version_id_marker().map(str::to_owned));
            if !page.is_truncated().unwrap_or(false) || next.is_none() {
                return Ok(removed);
            }
        }
    }

    async fn list_folders(&self, prefix: &str) -> Result<Vec<String>, RepoError> {
        let mut names = Vec::new();
        let full_prefix = self.full_key(prefix);
        let mut token = None;
        loop {
            let page = self.list_page(prefix, None, Some("/"), token).await?;
            names.extend(page.common_prefixes().iter().filter_map(|common| {
                Some(common.prefix()?.strip_prefix(&full_prefix)?.trim_end_matches('/').to_owned())
            }));
            token = page.next_continuation_token().map(str::to_owned);
            if token.is_none() || !page.is_truncated().unwrap_or(false) {
                return Ok(names);
            }
        }
    }
}
