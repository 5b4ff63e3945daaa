//! The proof of the neighbours in its full form: digest before, plus their own logged changes, equals digest after.

use std::collections::BTreeSet;

use muster_repo::log::LogFilter;
use muster_rows::{Class, Op, Row, RowBuilder, RowsDigest};
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
            rows += replay(&mut digest, logged).map_err(|why| why.told(shard))?;
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

/// Why a change cannot be taken into a digest.
enum NoReplay {
    /// The log does not repeat all fields of the old row, or of the new one.
    Incomplete {
        table: String,
    },
    Truncated {
        table: String,
    },
}

impl NoReplay {
    fn told(self, shard: &ShardName) -> StepError {
        match self {
            Self::Incomplete { table } => StepError::permanent(format!(
                "the neighbours in shard `{shard}` cannot be proven in full: the log does not hold the whole old rows of \
                 table `{table}`; run `ALTER TABLE {table} REPLICA IDENTITY FULL` in the shard before the next run, and \
                 compare this one's neighbours with `muster diff`",
            )),
            Self::Truncated { table } => unexplained(
                shard,
                &format!("table `{table}` was truncated meanwhile, and its rows are not in the log"),
            ),
        }
    }
}

/// The new row of an update, with what it does not repeat of the old one.
fn filled(new: &Row, old: &Row) -> Row {
    let mut builder = RowBuilder::new();
    for (index, field) in new.fields().enumerate() {
        let field = if field.class == Class::Unchanged { old.get(index).unwrap_or(field) } else { field };
        builder.push(field.class, field.bytes);
    }
    builder.take()
}

/// Takes one change into the digest; by how many rows it grew.
fn replay(digest: &mut RowsDigest, logged: &LoggedChange) -> Result<i128, NoReplay> {
    let table = &logged.table;
    let whole = |row: &Row| match row.fields().any(|field| field.class == Class::Unchanged) {
        true => Err(NoReplay::Incomplete { table: table.clone() }),
        false => Ok(()),
    };
    match &logged.change.op {
        Op::Insert { new } => {
            whole(new)?;
            digest.add(table, new);
            Ok(1)
        }
        Op::Update { old, new } => {
            whole(old)?;
            digest.remove(table, old);
            digest.add(table, &filled(new, old));
            Ok(0)
        }
        Op::Delete { old } => {
            whole(old)?;
            digest.remove(table, old);
            Ok(-1)
        }
        Op::Truncate => Err(NoReplay::Truncated { table: table.clone() }),
    }
}

fn unexplained(shard: &ShardName, what: &str) -> StepError {
    StepError::permanent(format!(
        "the neighbours in shard `{shard}` are not proven untouched: {what}; compare them with `muster diff` before \
         you close the incident"
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed test may say so by a panic")]

    use muster_rows::Change;
    use muster_types::segment::ChangeStamp;
    use muster_types::{ChangeKey, Timestamp};

    use super::*;

    fn row(key: &str, body: Option<&str>) -> Row {
        let mut builder = RowBuilder::new();
        builder.push(Class::Text, key.as_bytes());
        match body {
            Some(body) => builder.push(Class::Text, body.as_bytes()),
            None => builder.push(Class::Unchanged, b""),
        };
        builder.take()
    }

    fn logged(op: Op) -> LoggedChange {
        let stamp = ChangeStamp { key: ChangeKey::default(), at: Timestamp::EPOCH };
        let columns = ["id", "body"].map(str::to_owned).into();
        LoggedChange {
            table: "pages".to_owned(),
            columns,
            site: None,
            mark: None,
            change: Change { stamp, op },
        }
    }

    #[test]
    fn an_old_row_that_is_not_whole_is_told_by_name_with_the_way_out() {
        let ops = [
            Op::Delete { old: row("1", None) },
            Op::Update { old: row("1", None), new: row("1", Some("new")) },
        ];
        for op in ops {
            let refused = replay(&mut RowsDigest::new(), &logged(op)).err().unwrap();
            let told = refused.told(&"eu-1".parse().unwrap()).message;
            assert!(
                told.contains("ALTER TABLE pages REPLICA IDENTITY FULL") && told.contains("`eu-1`"),
                "{told}"
            );
            assert!(!told.contains("not proven untouched"), "{told}");
        }
    }

    #[test]
    fn a_new_row_takes_what_it_does_not_repeat_from_the_old_one() {
        let mut digest = RowsDigest::new();
        digest.add("pages", &row("1", Some("long")));
        let update = Op::Update { old: row("1", Some("long")), new: row("2", None) };
        assert_eq!(replay(&mut digest, &logged(update)).ok(), Some(0));
        let mut expected = RowsDigest::new();
        expected.add("pages", &row("2", Some("long")));
        assert_eq!(digest.finish(), expected.finish());
    }
}
