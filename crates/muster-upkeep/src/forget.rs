//! Forgetting a site: its rows are overwritten in all packs and logs, its facts are taken out of the plans of runs.
//!
//! # Invariants
//! - Nothing is done while a hold, a saved plan or an open run needs the site, or while the site lives, unless that is told.
//! - The note comes first ([`muster_repo::forget`]); ended anywhere, the next forgetting of the site goes on under it.
//! - The receipt is written last, when a second look finds nothing that was not overwritten.
//!
//! # Errors
//! What the object store answers; damaged documents, since what they name cannot be told; [`ForgetError::Claimed`].

use std::collections::BTreeMap;
use std::path::Path;

use muster_engine::{JournalError, RunHistory, read_run};
use muster_plan::index::CatalogIndex;
use muster_plan::inputs::site_tables;
use muster_repo::catalog::{self, CatalogQuery, Sites};
use muster_repo::forget::{self, Forgotten, Found};
use muster_repo::{RepoError, Repository, RunObjects, preflights, retention};
use muster_types::catalog::{Catalog, SiteFacts};
use muster_types::forget::{ForgetReceipt, Forgetting, ForgottenHistory};
use muster_types::format::FORMAT;
use muster_types::plan::Plan;
use muster_types::{Digest, RunId, SiteId, Timestamp};

/// What is to be forgotten.
#[derive(Clone, Debug)]
pub struct ForgetRequest {
    /// The site.
    pub site: SiteId,
    /// Why.
    pub reason: String,
    /// By whom.
    pub by: String,
    /// Whatever needs it.
    pub despite_claims: bool,
    /// Say what would be done, and do nothing.
    pub dry_run: bool,
}

/// Why a site was not forgotten.
#[derive(Debug, thiserror::Error)]
pub enum ForgetError {
    /// The repository.
    #[error(transparent)]
    Repo(#[from] RepoError),
    /// A run, of which it cannot be told whether it needs the site.
    #[error("what run needs cannot be told: {0}")]
    Run(#[from] JournalError),
    /// Something needs it.
    #[error("{site} is needed: {}; end these first, or say --despite-claims", claims.join("; "))]
    Claimed {
        /// The site.
        site: SiteId,
        /// By whom.
        claims: Vec<String>,
    },
    /// Two at once would write the same objects over each other.
    #[error(
        "another site is being forgotten since {since}: end that first (`muster repo forget {other}`), then this one"
    )]
    Another {
        /// The other site.
        other: SiteId,
        /// When it was begun.
        since: Timestamp,
    },
}

/// What was done, or would be.
#[derive(Clone, Debug)]
pub enum Forgot {
    /// The receipt.
    Done(Box<ForgetReceipt>),
    /// What a dry run found, and who needs the site.
    Would {
        /// Where its rows lie.
        found: Box<Found>,
        /// Runs whose plans have facts of it.
        runs: Vec<RunId>,
        /// Who needs it.
        claims: Vec<String>,
    },
    /// The repository holds nothing of it.
    Nothing,
}

/// Forgets a site. Objects are spooled into the folder `dir`, one at a time.
///
/// # Errors
/// See the module.
pub async fn forget(
    repository: &Repository,
    request: &ForgetRequest,
    (dir, now): (&Path, Timestamp),
) -> Result<Forgot, ForgetError> {
    let site = &request.site;
    let runs = runs(repository, site).await?;
    let unfinished = unfinished(repository, site).await?;
    let resumed = unfinished.is_some();
    let query = CatalogQuery { sites: Sites::Some([site.clone()].into()), shards: None };
    let catalog = catalog::read(repository, &query, now).await?;
    let note = unfinished.unwrap_or_else(|| note(request, &catalog, now));
    let claims = claims(repository, site, &catalog, (&runs, now)).await?;
    let found = forget::find(repository, &note).await?;
    if request.dry_run {
        let runs = runs.into_iter().map(|run| run.run).collect();
        return Ok(Forgot::Would { found: Box::new(found), runs, claims });
    }
    if !claims.is_empty() && !request.despite_claims {
        return Err(ForgetError::Claimed { site: site.clone(), claims });
    }
    if found.chunks.is_empty() && runs.is_empty() && !resumed {
        return Ok(Forgot::Nothing);
    }
    alone(repository, &note).await?;
    let note = forget::begin(repository, &note).await?;
    // One that began at the same moment goes first if its name does.
    alone(repository, &note).await?;
    let mut receipt = ForgetReceipt {
        format: FORMAT,
        forgetting: note.clone(),
        finished_at: now,
        rewritten: Vec::new(),
        redacted: Vec::new(),
        keep_ids: BTreeMap::new(),
        unnamed: Vec::new(),
        old_versions_kept: Vec::new(),
        old_versions_removed: 0,
    };
    let digests = forget::digests(repository).await?;
    // A compaction or a fold that was under way may have written since.
    for _ in 0..2 {
        let found = forget::find(repository, &note).await?;
        erase(repository, &found, (&digests, dir), &mut receipt).await?;
        receipt.unnamed = found.unnamed;
        receipt.keep_ids = found.documents;
    }
    for run in runs {
        receipt.redacted.push(muster_repo::keys::plan(&run.run));
        *receipt.keep_ids.entry("journals of runs".to_owned()).or_default() += 1;
        redact(repository, run, site).await?;
    }
    receipt.redacted.extend(preflights::forget(repository, site).await?);
    Ok(Forgot::Done(Box::new(forget::finish(repository, &receipt).await?)))
}

/// The forgetting of the site that was begun and has no receipt.
async fn unfinished(repository: &Repository, site: &SiteId) -> Result<Option<Forgetting>, RepoError> {
    let done = forget::receipts(repository).await?;
    let notes = Forgotten::read(repository).await?;
    let open = |note: &&Forgetting| !done.iter().any(|receipt| receipt.forgetting.name == note.name);
    Ok(notes.of(site).find(open).cloned())
}

/// No forgetting of another site that began before is open.
async fn alone(repository: &Repository, mine: &Forgetting) -> Result<(), ForgetError> {
    let done = forget::receipts(repository).await?;
    let notes = Forgotten::read(repository).await?;
    let open = |note: &&Forgetting| !done.iter().any(|receipt| receipt.forgetting.name == note.name);
    let ahead = |note: &&Forgetting| note.site != mine.site && note.name < mine.name;
    match notes.all().filter(open).find(ahead) {
        Some(other) => Err(ForgetError::Another { other: other.site.clone(), since: other.begun_at }),
        None => Ok(()),
    }
}

fn note(request: &ForgetRequest, catalog: &Catalog, now: Timestamp) -> Forgetting {
    let histories = catalog.shards.iter().flat_map(|(shard, history)| {
        history.incarnations.iter().filter_map(|history| {
            Some(ForgottenHistory {
                shard: shard.clone(),
                incarnation: history.incarnation.clone(),
                sequence: history.segments.last().map_or(0, |segment| segment.sequence),
                position: history.end()?.position,
            })
        })
    });
    Forgetting {
        format: FORMAT,
        name: format!("{:020}-{}", now.as_micros(), request.site.as_str()),
        site: request.site.clone(),
        begun_at: now,
        begun_by: request.by.clone(),
        reason: request.reason.clone(),
        histories: histories.collect(),
    }
}

/// The runs whose plans are about the site.
async fn runs(repository: &Repository, site: &SiteId) -> Result<Vec<RunHistory>, JournalError> {
    let mut found = Vec::new();
    for run in RunObjects::list(repository).await? {
        match read_run(repository, &run).await {
            Err(JournalError::NoRun { .. }) => {}
            other => found.extend(Some(other?).filter(|run| names(&run.plan, site))),
        }
    }
    Ok(found)
}

fn names(plan: &Plan, site: &SiteId) -> bool {
    plan.sites.iter().any(|planned| planned.site == *site)
        || plan.request.incident.sites.iter().any(|asked| asked.site == *site)
}

fn is_open(run: &RunHistory) -> bool {
    let done = run.state.finished().is_some_and(|(_, failed)| failed == 0);
    run.state.opened_at().is_some() && !done && run.state.abandoned().is_none()
}

/// Who needs the site.
async fn claims(
    repository: &Repository,
    site: &SiteId,
    catalog: &Catalog,
    (runs, now): (&[RunHistory], Timestamp),
) -> Result<Vec<String>, RepoError> {
    let mut claims = Vec::new();
    for hold in retention::holds(repository).await? {
        if hold.site.as_ref().is_none_or(|held| held == site) {
            claims.push(format!("hold `{}` ({})", hold.name, hold.reason));
        }
    }
    for hold in retention::plan_holds(repository).await? {
        // One that does not say what it is about may be about this site.
        let about = hold.sites.as_ref().is_none_or(|sites| sites.contains(site));
        if about && hold.expires_at >= now {
            let plan: String = hold.plan.as_str().chars().take(12).collect();
            claims.push(format!("saved plan {plan}, until {}", hold.expires_at));
        }
    }
    claims.extend(runs.iter().filter(|run| is_open(run)).map(|run| format!("open run {}", run.run)));
    claims.extend(living(catalog, site));
    Ok(claims)
}

/// Shards in which the site has rows as far as the log goes: what deletes them there would write them to the log again.
fn living(catalog: &Catalog, site: &SiteId) -> Vec<String> {
    let index = CatalogIndex::new(catalog);
    let mut shards = Vec::new();
    for trace in catalog.sites.get(site).map_or(&[][..], |site| &site.traces) {
        let Some(shard) = index.shard(&trace.shard) else { continue };
        let number = trace.incarnation as usize;
        let Some(history) = shard.incarnations.get(number).filter(|_| number + 1 == shard.incarnations.len())
        else {
            continue;
        };
        let Some(point) = history.points.all.last() else { continue };
        let states = site_tables(history, trace, *point).unwrap_or_default();
        if states.values().any(|state| state.as_ref().is_ok_and(|state| state.rows() > 0)) {
            shards.push(format!(
                "it has rows in shard {} as of {}: delete them there, and let capture record it",
                trace.shard, point.at
            ));
        }
    }
    shards
}

/// Overwrites what was found and is not on the receipt yet.
async fn erase(
    repository: &Repository,
    found: &Found,
    (digests, dir): (&BTreeMap<String, Digest>, &Path),
    receipt: &mut ForgetReceipt,
) -> Result<(), RepoError> {
    for (key, (object, chunks)) in &found.chunks {
        if chunks.is_empty() || receipt.rewritten.iter().any(|done| done.key == *key) {
            continue;
        }
        let before = digests.get(key).copied().unwrap_or(object.digest);
        let done = forget::erase(repository, (object, chunks), before, dir).await?;
        receipt.rewritten.push(done.object);
        receipt.old_versions_removed += done.versions_removed;
        receipt.old_versions_kept.extend(done.versions_kept);
    }
    Ok(())
}

/// Takes the site's facts out of a run's plan, which gets the digest of what is left as its id.
async fn redact(repository: &Repository, run: RunHistory, site: &SiteId) -> Result<(), RepoError> {
    let mut plan = (*run.plan).clone();
    for planned in plan.sites.iter_mut().filter(|planned| planned.site == *site) {
        planned.facts = SiteFacts::default();
    }
    for asked in plan.request.incident.sites.iter_mut().filter(|asked| asked.site == *site) {
        asked.note = None;
    }
    plan.notes.retain(|note| !note.subject.contains(site.as_str()));
    RunObjects::new(repository, run.run).replace_plan(&plan.seal()).await
}
