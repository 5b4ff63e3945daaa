//! Typed identifiers. What a script can be handed by mistake cannot be taken for what it is not.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Why a text is not the id that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The id names another kind of thing.
    #[error(
        "`{text}` is the id of an {found}, and a {wanted} is meant here; \
         an {found} belongs to a site: name the site as `{wanted}:…`"
    )]
    WrongType {
        /// The text as given.
        text: String,
        /// The type that it names.
        found: String,
        /// The type that was asked for.
        wanted: &'static str,
    },
    /// No `type:` prefix.
    #[error("`{text}` does not say what it names; write `{wanted}:{text}` if it is the id of a {wanted}")]
    Bare {
        /// The text as given.
        text: String,
        /// The type that was asked for.
        wanted: &'static str,
    },
    /// Empty, too long, or characters that an id cannot have.
    #[error("`{text}` is not a {wanted} name: use 1 to 128 of letters, digits, `-`, `_` and `.`")]
    Malformed {
        /// The text as given.
        text: String,
        /// The type that was asked for.
        wanted: &'static str,
    },
}

/// Longest id, shard name or kind name: they become parts of object keys and file names.
const NAME_BYTES_MAX: usize = 128;

fn check_name(text: &str, wanted: &'static str) -> Result<(), IdError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let plain = !text.is_empty() && text.len() <= NAME_BYTES_MAX && text.chars().all(allowed);
    if plain && text != "." && text != ".." {
        return Ok(());
    }
    Err(IdError::Malformed { text: text.to_owned(), wanted })
}

/// An id with its type, as a person writes it: `site:…`, `app:…`, `run:…`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TypedId {
    /// The part before the colon.
    pub id_type: String,
    /// The part after it.
    pub value: String,
}

impl TypedId {
    /// Splits `type:value`, insisting on `wanted` as the type.
    ///
    /// # Errors
    /// [`IdError`] naming what was found instead.
    pub fn expect(text: &str, wanted: &'static str) -> Result<String, IdError> {
        let text = text.trim();
        let Some((id_type, value)) = text.split_once(':') else {
            return Err(IdError::Bare { text: text.to_owned(), wanted });
        };
        if id_type != wanted {
            return Err(IdError::WrongType { text: text.to_owned(), found: id_type.to_owned(), wanted });
        }
        check_name(value, wanted)?;
        Ok(value.to_owned())
    }
}

/// Serialises as what [`fmt::Display`] writes, without a text of its own in between.
macro_rules! written_as_text {
    ($name:ident) => {
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    };
}
pub(crate) use written_as_text;

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $wanted:literal) => {
        $(#[$doc])*
        ///
        /// A clone shares the text: a plan of a whole fleet names each site dozens of times.
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
        #[serde(try_from = "String")]
        pub struct $name(Arc<str>);

        written_as_text!($name);

        impl $name {
            /// Checks and wraps a bare name.
            ///
            /// # Errors
            /// [`IdError::Malformed`].
            pub fn new(text: impl Into<String>) -> Result<Self, IdError> {
                let text = text.into();
                check_name(&text, $wanted)?;
                Ok(Self(text.into()))
            }

            /// The bare name.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;

            fn try_from(text: String) -> Result<Self, IdError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.to_string()
            }
        }
    };
}

macro_rules! untyped_text {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::new(text)
            }
        }
    };
}

text_id!(
    /// One tenant. Written `site:VALUE`; the bare value is what the shards' tenant columns hold.
    SiteId,
    "site"
);

impl fmt::Display for SiteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "site:{}", self.0)
    }
}

impl FromStr for SiteId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        TypedId::expect(text, "site").map(|value| Self(value.into()))
    }
}

text_id!(
    /// One physical store shared by many sites, by its name in the topology.
    ShardName,
    "shard"
);
untyped_text!(ShardName);

text_id!(
    /// One execution of a plan.
    RunId,
    "run"
);
untyped_text!(RunId);

text_id!(
    /// One unbroken history of a shard; names sort in the order of their start.
    Incarnation,
    "incarnation"
);
untyped_text!(Incarnation);

text_id!(
    /// One snapshot of a shard; names sort in the order they were taken.
    SnapshotId,
    "snapshot"
);
untyped_text!(SnapshotId);

text_id!(
    /// A plan, by the digest of its content.
    PlanId,
    "plan"
);
untyped_text!(PlanId);

text_id!(
    /// One drill: small letters and digits, since it is part of database names.
    DrillId,
    "drill"
);
untyped_text!(DrillId);

/// The generation of the engine that holds a run; a higher epoch fences a lower one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a store holds: `metadata`, `identity`, `licence`, `media`, `product:NAME`, `app:NAME`, or an operator's own.
///
/// A clone shares the text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct Kind(Arc<str>);

written_as_text!(Kind);

impl Kind {
    /// The kind's name, e.g. `product:jira-software`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The product's name, if this is a `product:NAME`.
    pub fn product(&self) -> Option<&str> {
        self.0.strip_prefix("product:")
    }

    /// The app's name, if this is an `app:NAME`.
    pub fn app(&self) -> Option<&str> {
        self.0.strip_prefix("app:")
    }

    /// A form for object keys and file names: the colon becomes a `+`, which no name can have.
    pub fn file_name(&self) -> String {
        self.0.replace(':', "+")
    }
}

impl FromStr for Kind {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let name = match text.split_once(':') {
            Some(("product" | "app", name)) => name,
            Some(_) => return Err(IdError::Malformed { text: text.to_owned(), wanted: "kind" }),
            None => text,
        };
        check_name(name, "kind")?;
        Ok(Self(text.into()))
    }
}

impl TryFrom<String> for Kind {
    type Error = IdError;

    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}

impl From<Kind> for String {
    fn from(kind: Kind) -> Self {
        kind.to_string()
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One site's slice of one kind. Written `site:VALUE/KIND`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct StoreId {
    /// The tenant.
    pub site: SiteId,
    /// What the slice holds.
    pub kind: Kind,
}

written_as_text!(StoreId);

impl fmt::Display for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.site, self.kind)
    }
}

impl FromStr for StoreId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let (site, kind) = text
            .split_once('/')
            .ok_or_else(|| IdError::Malformed { text: text.to_owned(), wanted: "store" })?;
        Ok(Self { site: site.parse()?, kind: kind.parse()? })
    }
}

impl TryFrom<String> for StoreId {
    type Error = IdError;

    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}

impl From<StoreId> for String {
    fn from(store: StoreId) -> Self {
        store.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_app_id_is_never_taken_for_a_site() {
        let refused = "app:42".parse::<SiteId>().unwrap_err();
        assert!(matches!(&refused, IdError::WrongType { found, .. } if found == "app"), "{refused}");
        assert!(matches!("42".parse::<SiteId>().unwrap_err(), IdError::Bare { .. }));
        assert_eq!("site:42".parse::<SiteId>().unwrap().as_str(), "42");
    }

    #[test]
    fn names_cannot_leave_their_folder() {
        for text in ["site:..", "site:a/b", "site:", "site:a b", "site:a\u{0}"] {
            assert!(text.parse::<SiteId>().is_err(), "{text}");
        }
    }

    #[test]
    fn store_ids_round_trip() {
        let store: StoreId = "site:s-1/product:jira-software".parse().unwrap();
        assert_eq!(store.to_string(), "site:s-1/product:jira-software");
        assert_eq!(store.kind.product(), Some("jira-software"));
        assert_eq!(serde_json::to_string(&store).unwrap(), "\"site:s-1/product:jira-software\"");
    }
}
