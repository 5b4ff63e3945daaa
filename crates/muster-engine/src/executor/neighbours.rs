//! The proof of the neighbours in its full form: digest before, plus their own logged changes, equals digest after.

use std::collections::BTreeSet;

use muster_repo::log::LogFilter;
use muster_rows::{Op, RowsDigest};
use muster_types::journal::{NeighbourDigest, Outcome};
use muster_types::{ShardName, SiteId, StoreId};

use super::changes;
use super::context::{Context, StepError, StepResult, carried_out, restored};
use crate::driver::LoggedChange;

/// Digests the neighbours before the first publish.
pub(super) async fn before(context: &Context, shard: &ShardName) -> StepResult {
    let excluded = excluded(context, shard);
    Ok(Outcome::DigestedBefore(context.driver(shard)?.neighbour_digest(&excluded).await?))
}

/// Digests them after the last one, and explains the difference.
pub(super) async fn after(context: &Context, shard: &ShardName, before: &NeighbourDigest) -> StepResult {
    let excluded = excluded(context, shard);
    let after = context.driver(shard)?.neighbour_digest(&excluded).await?;
    let victims: BTreeSet<&SiteId> = excluded.iter().map(|store| &store.site).collect();
    let mut digest = RowsDigest::from_hex(&before.state).map_err(|error| {
        StepError::permanent(format!(
            "the digest before of shard `{shard}` in the journal is damaged: {error}"
        ))
    })?;
    let mut rows = i128::from(before.rows);
    let mut changes = 0;
    let span = (before.position, after.position);
    changes::visit(context, shard, span, LogFilter::All, |group| {
        for logged in group.iter().filter(|logged| is_neighbours_own(context, &victims, logged)) {
            changes += 1;
            rows += replay(&mut digest, logged).map_err(|what| unexplained(shard, &what))?;
        }
        Ok(())
    })
    .await?;
    if digest.finish() != after.digest || rows != i128::from(after.rows) {
        let what = format!(
            "{} rows (digest {}) at position {} and {changes} changes of their own make {rows} rows (digest {}), and \
             there are {} rows (digest {}) at position {}",
            before.rows,
            before.digest.short(),
            before.position,
            digest.finish().short(),
            after.rows,
            after.digest.short(),
            after.position,
        );
        return Err(unexplained(shard, &what));
    }
    Ok(Outcome::DigestedAfter { digest: after, changes })
}

/// What is not a neighbour: everything that the shard holds of the sites that are published into it. The change log
/// tells a row's site and not its kind, so that a site is left out whole.
fn excluded(context: &Context, shard: &ShardName) -> BTreeSet<StoreId> {
    let here = |site: &&muster_types::plan::SitePlan| restored(site).any(|(_, store)| &store.shard == shard);
    let planned = context.plan.shards.get(shard).map_or(&[][..], |planned| planned.kinds.as_slice());
    let mut excluded = BTreeSet::new();
    for site in carried_out(&context.plan).filter(here) {
        excluded.extend(planned.iter().map(|kind| StoreId { site: site.site.clone(), kind: kind.clone() }));
        excluded.extend(restored(site).filter(|(_, store)| &store.shard == shard).map(|(store, _)| store));
    }
    excluded
}

/// A change that the neighbours or other runs made: this run has no business with their rows, so that its own marks
/// are not taken for an explanation.
fn is_neighbours_own(context: &Context, victims: &BTreeSet<&SiteId>, logged: &LoggedChange) -> bool {
    let ours = logged.mark.as_ref().is_some_and(|mark| mark.run == context.run);
    !ours && logged.site.as_ref().is_none_or(|site| !victims.contains(site))
}

/// Takes one change into the digest; by how many rows it grew.
fn replay(digest: &mut RowsDigest, logged: &LoggedChange) -> Result<i128, String> {
    let table = &logged.table;
    match &logged.change.op {
        Op::Insert { new } => {
            digest.add(table, new);
            Ok(1)
        }
        Op::Update { old, new } => {
            digest.remove(table, old);
            digest.add(table, new);
            Ok(0)
        }
        Op::Delete { old } => {
            digest.remove(table, old);
            Ok(-1)
        }
        Op::Truncate => {
            Err(format!("table `{table}` was truncated meanwhile, and its rows are not in the log"))
        }
    }
}

fn unexplained(shard: &ShardName, what: &str) -> StepError {
    StepError::permanent(format!(
        "the neighbours in shard `{shard}` are not proven untouched: {what}; compare them with `muster diff` before \
         you close the incident"
    ))
}
