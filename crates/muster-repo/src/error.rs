//! What can go wrong with a repository.

use std::path::Path;

use muster_types::format::NewerFormat;

/// An error, with what the operator can do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}; {hint}")]
pub struct RepoError {
    /// What the caller can do about it.
    pub kind: RepoErrorKind,
    /// What failed and why.
    pub message: String,
    /// The way out.
    pub hint: String,
}

/// Kinds of error, by what the caller does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RepoErrorKind {
    /// An object that must be there is not.
    NotFound {
        /// Its key.
        key: String,
    },
    /// An object is there and is not what was written.
    Damaged {
        /// Its key.
        key: String,
        /// What differs.
        what: String,
    },
    /// An object was written by a later Muster.
    NewerFormat,
    /// The credentials are missing, wrong or not enough.
    Denied,
    /// The object store's certificate is not trusted, or what should be trusted cannot be read.
    Untrusted,
    /// The bucket does not exist.
    NoBucket,
    /// The object store did not answer, or asked to slow down, until the retries were used up.
    Unavailable,
    /// The object store, or the local disk for spool files, has no space left.
    Full,
    /// A local file could not be read or written.
    Local,
    /// The caller broke the contract of a call.
    Misuse,
}

impl RepoError {
    /// An error of `kind`.
    pub fn new(kind: RepoErrorKind, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: hint.into() }
    }

    /// An object that must be there is not.
    pub fn not_found(key: &str) -> Self {
        Self::new(
            RepoErrorKind::NotFound { key: key.to_owned() },
            format!("object `{key}` is missing from the repository"),
            "bring it back from the bucket's versions or replica; until then, plan with a snapshot or time that \
             does not need it",
        )
    }

    /// An object is not what was written.
    pub fn damaged(key: &str, what: impl Into<String>) -> Self {
        let what = what.into();
        Self::new(
            RepoErrorKind::Damaged { key: key.to_owned(), what: what.clone() },
            format!("object `{key}` is damaged: {what}"),
            "bring it back from the bucket's versions or replica; until then, plan with a snapshot or time that \
             does not need it",
        )
    }

    /// A byte range of an object is not what was written.
    pub(crate) fn damaged_range(key: &str, offset: u64, bytes: u64, what: &str) -> Self {
        Self::damaged(key, format!("bytes {offset} to {}: {what}", offset + bytes))
    }

    /// A call that breaks its contract.
    pub(crate) fn misuse(message: impl Into<String>) -> Self {
        Self::new(
            RepoErrorKind::Misuse,
            message,
            "this is a defect of Muster: report it with the command that led here",
        )
    }

    /// A local file failed.
    pub(crate) fn local(path: &Path, verb: &str, error: &std::io::Error) -> Self {
        let message = format!("cannot {verb} `{}`: {error}", path.display());
        if is_full(error) {
            return Self::new(
                RepoErrorKind::Full,
                message,
                "free space on that disk, then run the command again",
            );
        }
        Self::new(
            RepoErrorKind::Local,
            message,
            "check that the folder exists and that this user may write there",
        )
    }

    /// Whether one object is missing or not what was written: it costs what needs that object and nothing else.
    pub fn is_harm(&self) -> bool {
        matches!(self.kind, RepoErrorKind::NotFound { .. } | RepoErrorKind::Damaged { .. })
    }

    /// Whether trying the same again later may help without anyone doing anything.
    pub fn is_transient(&self) -> bool {
        self.kind == RepoErrorKind::Unavailable
    }
}

pub(crate) fn is_full(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
}

impl From<NewerFormat> for RepoError {
    fn from(newer: NewerFormat) -> Self {
        Self::new(
            RepoErrorKind::NewerFormat,
            format!("{} has format {}, newer than this muster understands", newer.what, newer.found),
            "use the muster version that wrote it, or a later one",
        )
    }
}
