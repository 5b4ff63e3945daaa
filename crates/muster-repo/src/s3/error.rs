//! Sorting what S3 answers.

use std::error::Error;
use std::time::{Duration, Instant};

use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};

use super::RETRY_FOR;
use crate::error::{RepoError, RepoErrorKind};

/// Why a request did not do what was asked.
#[derive(Debug)]
pub(super) enum Failure {
    /// No such object.
    Absent,
    /// The condition of a conditional write did not hold, or another one is under way.
    Refused,
    /// The range begins behind the object's end.
    BeyondEnd,
    /// May pass.
    Transient(RepoError),
    /// Will not pass by itself.
    Final(RepoError),
}

impl Failure {
    /// The error of a request for which absence and refusal are no answers.
    pub(super) fn into_error(self, key: &str) -> RepoError {
        match self {
            Self::Absent => RepoError::not_found(key),
            Self::BeyondEnd => RepoError::damaged(key, "it ends before the range that was asked for"),
            Self::Refused => unavailable(&format!("writing `{key}`"), "a concurrent write is in its way"),
            Self::Transient(error) | Self::Final(error) => error,
        }
    }
}

fn unavailable(doing: &str, why: &str) -> RepoError {
    RepoError::new(
        RepoErrorKind::Unavailable,
        format!("{doing}: {why}"),
        "check that the object store runs and can be reached (endpoint, network, its own health), then run the \
         command again; nothing is lost",
    )
}

/// Sorts an error of the SDK; `doing` says what was tried, with bucket and key.
pub(super) fn sort<E>(doing: &str, error: &SdkError<E, HttpResponse>) -> Failure
where
    E: ProvideErrorMetadata + Error + 'static,
{
    let Some(service) = error.as_service_error() else {
        return sort_unanswered(doing, error, &with_causes(error));
    };
    let status = error.raw_response().map_or(0, |response| response.status().as_u16());
    let code = service.code().unwrap_or_default();
    let answer = match (code, service.message()) {
        ("", None) => format!("status {status}"),
        (code, None) => format!("{code} (status {status})"),
        (code, Some(message)) => format!("{code}: {message} (status {status})"),
    };
    sort_answer(doing, code, status, &answer)
}

fn sort_answer(doing: &str, code: &str, status: u16, answer: &str) -> Failure {
    let refusal = |kind, hint: &str| Failure::Final(RepoError::new(kind, format!("{doing}: {answer}"), hint));
    match (code, status) {
        ("NoSuchBucket", _) => {
            refusal(RepoErrorKind::NoBucket, "check the bucket's name in the topology, or create the bucket")
        }
        ("RequestTimeTooSkewed", _) => {
            refusal(RepoErrorKind::Denied, "set this machine's clock: S3 refuses signatures of another time")
        }
        (
            "XMinioStorageFull" | "InsufficientStorage" | "QuotaExceeded" | "XMinioAdminBucketQuotaExceeded",
            _,
        )
        | (_, 507) => {
            refusal(RepoErrorKind::Full, "free space in the object store, then run the command again")
        }
        (
            "AccessDenied" | "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "ExpiredToken" | "InvalidToken",
            _,
        )
        | (_, 401 | 403) => refusal(
            RepoErrorKind::Denied,
            "check the credentials (AWS_ACCESS_KEY_ID or the credentials file) and that they may read, write and \
             list this bucket",
        ),
        ("NoSuchKey" | "NotFound", _) | (_, 404) => Failure::Absent,
        (_, 409 | 412) => Failure::Refused,
        (_, 416) => Failure::BeyondEnd,
        // What came is not what was signed: it was harmed on its way, and is sent again.
        ("XAmzContentSHA256Mismatch" | "XAmzContentChecksumMismatch" | "BadDigest" | "IncompleteBody", _)
        | ("SlowDown" | "RequestTimeout" | "InternalError" | "ServiceUnavailable", _)
        | (_, 408 | 429 | 500..) => Failure::Transient(unavailable(doing, answer)),
        _ => refusal(
            RepoErrorKind::Misuse,
            "this object store refuses a request that Muster needs; see docs/formats.md for what it must know",
        ),
    }
}

/// An error and what is behind it, without what the causes are made of.
fn with_causes(error: &dyn Error) -> String {
    let mut said = vec![error.to_string()];
    let mut cause = error.source();
    while let Some(behind) = cause {
        said.push(behind.to_string());
        cause = behind.source();
    }
    // Some repeat what is behind them.
    said.dedup_by(|behind, before| before.ends_with(behind.as_str()));
    said.join(": ")
}

fn sort_unanswered<E>(doing: &str, error: &SdkError<E, HttpResponse>, text: &str) -> Failure
where
    E: Error + 'static,
{
    // The SDK has no type of its own for a chain of providers that all had nothing.
    if text.contains("credentials") || text.contains("identity") {
        return Failure::Final(RepoError::new(
            RepoErrorKind::Denied,
            format!("{doing}: no credentials: {text}"),
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or the topology's credentials file",
        ));
    }
    if text.contains("invalid peer certificate") {
        return Failure::Final(RepoError::new(
            RepoErrorKind::Untrusted,
            format!("{doing}: the certificate of the object store is not trusted: {text}"),
            "set AWS_CA_BUNDLE to the PEM file of the authority that signed it, and check that the endpoint has the \
             name that the certificate is for",
        ));
    }
    match error {
        SdkError::ConstructionFailure(_) => Failure::Final(RepoError::new(
            RepoErrorKind::Misuse,
            format!("{doing}: the request cannot be built: {text}"),
            "check bucket, endpoint and region in the topology",
        )),
        _ => Failure::Transient(unavailable(doing, text)),
    }
}

/// Bounded patience with failures that may pass.
#[derive(Debug)]
pub(super) struct Patience {
    until: Instant,
    pause: Duration,
}

impl Patience {
    pub(super) fn new() -> Self {
        Self { until: Instant::now() + RETRY_FOR, pause: Duration::from_millis(50) }
    }

    /// Waits a little; `false` when patience is used up.
    pub(super) async fn wait(&mut self) -> bool {
        if Instant::now() + self.pause > self.until {
            return false;
        }
        // Half fixed, half random, so that many clients do not come back at one moment.
        tokio::time::sleep(self.pause.mul_f64(rand::random_range(0.5..1.0))).await;
        self.pause = (self.pause * 2).min(Duration::from_secs(2));
        true
    }

    /// Starts anew, after progress.
    pub(super) fn renew(&mut self) {
        *self = Self::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Link(&'static str, #[source] Option<Box<Link>>);

    #[test]
    fn causes_are_said_once_and_without_their_insides() {
        let deepest = Link("permission denied", None);
        let cause = Link("opening: permission denied", Some(Box::new(deepest)));
        assert_eq!(
            with_causes(&Link("no request", Some(Box::new(cause)))),
            "no request: opening: permission denied"
        );
    }

    #[test]
    fn answers_are_sorted_by_what_the_caller_does() {
        let kind = |code: &str, status| match sort_answer("reading `k`", code, status, "answer") {
            Failure::Final(error) => Some(error.kind),
            Failure::Transient(error) => Some(error.kind),
            _ => None,
        };
        assert_eq!(kind("AccessDenied", 403), Some(RepoErrorKind::Denied));
        assert_eq!(kind("", 403), Some(RepoErrorKind::Denied), "HEAD answers have no body");
        assert_eq!(kind("NoSuchBucket", 404), Some(RepoErrorKind::NoBucket));
        assert_eq!(kind("SlowDown", 503), Some(RepoErrorKind::Unavailable));
        assert_eq!(kind("XAmzContentSHA256Mismatch", 400), Some(RepoErrorKind::Unavailable));
        assert_eq!(kind("XMinioStorageFull", 507), Some(RepoErrorKind::Full));
        assert_eq!(kind("StorageFull", 507), Some(RepoErrorKind::Full), "the embedded server's");
        assert!(matches!(sort_answer("", "PreconditionFailed", 412, ""), Failure::Refused));
        assert!(matches!(sort_answer("", "ConditionalRequestConflict", 409, ""), Failure::Refused));
        assert!(matches!(sort_answer("", "NoSuchKey", 404, ""), Failure::Absent));
        assert!(matches!(sort_answer("", "InvalidRange", 416, ""), Failure::BeyondEnd));
    }
}
