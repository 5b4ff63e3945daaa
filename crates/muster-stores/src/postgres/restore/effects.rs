//! What a publish transaction really does to tables, as the server counts it, whoever causes it.

use std::collections::BTreeMap;

use tokio_postgres::{Client, Error};

use super::shard::Catalog;

/// Rows inserted, updated and deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Count {
    pub(super) inserted: i64,
    pub(super) updated: i64,
    pub(super) deleted: i64,
}

/// Counts by table; partitions count for their root.
pub(super) type Counts = BTreeMap<String, Count>;

/// What this session has counted. The server adds to its totals between transactions, so that two readings in one
/// transaction differ by what was done between them.
pub(super) async fn counts(client: &Client, catalog: &Catalog) -> Result<Counts, Error> {
    let names: BTreeMap<u32, &String> = catalog
        .tables
        .iter()
        .flat_map(|(name, table)| {
            let partitions = table.partitions.iter().map(|partition| partition.oid);
            std::iter::once(table.oid).chain(partitions).map(move |oid| (oid, name))
        })
        .collect();
    let rows = client
        .query_typed(
            "SELECT relid, schemaname || '.' || relname, n_tup_ins, n_tup_upd, n_tup_del FROM pg_stat_xact_user_tables \
             WHERE schemaname <> 'muster' AND n_tup_ins + n_tup_upd + n_tup_del > 0",
            &[],
        )
        .await?;
    let mut counts = Counts::new();
    for row in rows {
        let name = names.get(&row.get(0)).map_or_else(|| row.get(1), |name| (*name).clone());
        let count = counts.entry(name).or_default();
        count.inserted += row.get::<_, i64>(2);
        count.updated += row.get::<_, i64>(3);
        count.deleted += row.get::<_, i64>(4);
    }
    Ok(counts)
}

/// The counts at the end; none where the server does not count, so that the rows read back and the change log have to do.
pub(super) async fn counted(client: &Client, catalog: &Catalog) -> Result<Option<Counts>, Error> {
    let setting = client.query_typed_one("SELECT current_setting('track_counts')::boolean", &[]);
    let (counting, counts) = tokio::try_join!(setting, counts(client, catalog))?;
    Ok(counting.get::<_, bool>(0).then_some(counts))
}

/// In words, the first difference of what happened between two readings from what was to happen.
pub(super) fn difference(before: &Counts, after: &Counts, wanted: &Counts) -> Option<String> {
    let of = |counts: &Counts, name: &String| counts.get(name).copied().unwrap_or_default();
    after.keys().chain(wanted.keys()).find_map(|name| {
        let (before, after, wanted) = (of(before, name), of(after, name), of(wanted, name));
        let did = Count {
            inserted: after.inserted - before.inserted,
            updated: after.updated - before.updated,
            deleted: after.deleted - before.deleted,
        };
        (did != wanted).then(|| {
            format!(
                "table `{name}` had {} rows inserted, {} updated and {} deleted instead of {}, {} and {}",
                did.inserted, did.updated, did.deleted, wanted.inserted, wanted.updated, wanted.deleted
            )
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(name: &str, inserted: i64, updated: i64, deleted: i64) -> Counts {
        BTreeMap::from([(name.to_owned(), Count { inserted, updated, deleted })])
    }

    #[test]
    fn only_what_was_to_happen_passes() {
        let (before, none) = (counts("t", 5, 0, 0), Counts::new());
        assert_eq!(difference(&before, &counts("t", 8, 0, 0), &counts("t", 3, 0, 0)), None);
        assert!(difference(&before, &counts("t", 8, 0, 0), &none).is_some());
        assert!(difference(&none, &counts("u", 0, 1, 0), &none).unwrap().contains("`u`"));
        assert!(difference(&none, &none, &counts("t", 1, 0, 0)).is_some());
    }
}
