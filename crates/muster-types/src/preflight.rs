//! A list of ids that is about to be deleted: what it names, what would be lost, and what stands in the way.
//!
//! The public review of April 2022 found that a script was handed the ids of sites where those of apps were meant, and that
//! the API took either. A preflight holds such a list against the live shards, and gives it a hash: the asking side
//! approves the hash, and the acting side presents it with the list that it is about to act on.

use serde::{Deserialize, Serialize};

use crate::catalog::SiteFacts;
use crate::digest::Digest;
use crate::format::FORMAT;
use crate::ids::{Kind, ShardName, SiteId};
use crate::time::Timestamp;

/// What was said of a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expectation {
    /// The type of every id, e.g. `app`.
    pub id_type: String,
    /// How many there are.
    pub count: u64,
    /// Oldest recovery point that will do, in seconds; where none is said, the RPO of each site's tier.
    pub recovery_point_age_seconds_max: Option<u64>,
}

/// A list, resolved and judged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preflight {
    /// Format version.
    pub format: u32,
    /// Of what was said and what the ids name: see [`hash_of`].
    pub hash: Digest,
    /// When the shards were asked.
    pub made_at: Timestamp,
    /// Until when the hash can be presented.
    pub expires_at: Timestamp,
    /// Host and process.
    pub made_by: String,
    /// What was said.
    pub expected: Expectation,
    /// What the ids name, in the order of the list.
    pub subjects: Vec<Subject>,
    /// What a deletion of all of them would take.
    pub loss: Loss,
    /// What stands in the way; none for a list that is what was said.
    pub refusals: Vec<Refusal>,
}

/// What one id names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    /// Its type.
    pub id_type: String,
    /// The bare id.
    pub id: String,
    /// The site that it is, or belongs to.
    pub site: SiteId,
    /// The kind of the one store that it stands for; none for a whole site.
    pub kind: Option<Kind>,
    /// What the live directory says of the site.
    pub facts: SiteFacts,
    /// What would be deleted.
    pub stores: Vec<SubjectStore>,
}

impl Subject {
    /// The id with its type.
    pub fn typed(&self) -> String {
        format!("{}:{}", self.id_type, self.id)
    }
}

/// One store of a subject.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubjectStore {
    /// Its kind.
    pub kind: Kind,
    /// The shard that holds it.
    pub shard: ShardName,
    /// Live rows.
    pub rows: u64,
    /// The newest moment that it can be brought back to, if there is any.
    pub recovery_point: Option<Timestamp>,
}

/// What a deletion takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    /// Sites that are deleted as a whole.
    pub sites: u64,
    /// Sites that lose a part.
    pub sites_in_part: u64,
    /// Customers behind any of them.
    pub customers: u64,
    /// Users of the sites that are deleted as a whole.
    pub users: u64,
    /// Stores of products.
    pub products: u64,
    /// Stores of apps.
    pub apps: u64,
    /// Live rows, in all stores.
    pub rows: u64,
}

/// Something that stands in the way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Stable name, e.g. `wrong-type`.
    pub code: String,
    /// What was found.
    pub text: String,
    /// What to do about it.
    pub hint: String,
}

/// The hash of a list: what was said, and for each id its type, site, kind and the site's name. The order of the list, what
/// the stores hold, and when it was asked are no part of it: a list that still names the same things has the same hash.
pub fn hash_of(expected: &Expectation, subjects: &[Subject]) -> Digest {
    #[derive(Serialize)]
    struct Named<'a> {
        id: String,
        site: &'a SiteId,
        kind: Option<&'a Kind>,
        name: Option<&'a str>,
    }
    #[derive(Serialize)]
    struct Content<'a> {
        format: u32,
        what: &'static str,
        id_type: &'a str,
        count: u64,
        named: Vec<Named<'a>>,
    }
    let mut sorted: Vec<&Subject> = subjects.iter().collect();
    sorted.sort_by_key(|subject| subject.typed());
    let named = sorted.into_iter().map(|subject| Named {
        id: subject.typed(),
        site: &subject.site,
        kind: subject.kind.as_ref(),
        name: subject.facts.name.as_deref(),
    });
    Digest::of_json(&Content {
        format: FORMAT,
        what: "deletion",
        id_type: &expected.id_type,
        count: expected.count,
        named: named.collect(),
    })
}
