//! What is damaged is named, and costs no other site.

use std::sync::Arc;

use muster_repo::catalog::{CatalogQuery, Sites};
use muster_repo::{
    Chain, MemoryObjects, RangeLimits, RangeReader, RepoError, RepoErrorKind, Repository, rows,
};
use muster_types::plan::TableInput;
use muster_types::snapshot::ObjectInfo;
use muster_types::{SiteId, Timestamp};

use crate::model::{Shard, Write, input, ranges, read_catalog, repository, shard, site, tables};

/// Two sites with a snapshot and changes behind it.
async fn captured() -> (Arc<MemoryObjects>, Repository, Shard) {
    let (objects, repository, incarnation) = repository().await;
    let mut past = Shard::new();
    for key in 0..40 {
        let text = Some(Some(format!("row {key}")));
        let number = u8::try_from(key % 2).unwrap() + 1;
        past.write(&Write { site: number, table: 0, key, text, new_key: key, marked: false });
    }
    past.snapshot(&repository, &incarnation, 20).await;
    let mut chain = Chain::open(&repository, &shard(), &incarnation).await.unwrap();
    past.log(&mut chain, &[0, 20, 40], None).await;
    (objects, repository, past)
}

/// Reads (site, table 0) at the end; all sites through one reader, as a run does.
async fn read(
    repository: &Repository,
    inputs: &[(TableInput, Vec<ObjectInfo>)],
    wanted: usize,
) -> Result<u64, RepoError> {
    let all = inputs.iter().flat_map(|(input, objects)| ranges(input, objects)).collect();
    let reader = RangeReader::new(Arc::clone(repository.objects()), all, RangeLimits::default());
    let (input, objects) = &inputs[wanted];
    let table = &tables()[0];
    let done =
        rows::table_rows(&reader, table, input, objects, 1 << 20, |_| async { Ok::<(), RepoError>(()) });
    done.await.map(|done| done.rows)
}

async fn inputs(repository: &Repository) -> Vec<(TableInput, Vec<ObjectInfo>)> {
    let sites: Vec<SiteId> = [1, 2].map(site).to_vec();
    let catalog = read_catalog(repository, &sites).await;
    sites.iter().map(|site| input(&catalog, site, 0, 40)).collect()
}

#[tokio::test]
async fn every_flipped_byte_of_a_store_is_found_and_named() {
    let (objects, repository, _) = captured().await;
    let inputs = inputs(&repository).await;
    assert_eq!(read(&repository, &inputs, 0).await.unwrap(), 20);
    let (first, infos) = &inputs[0];
    let base = first.base.as_ref().unwrap();
    let ranges = [
        (&infos[base.object as usize].key, &base.chunks[0]),
        (&infos[first.changes[0].object as usize].key, &first.changes[0].chunks[0]),
    ];
    for (key, chunk) in ranges {
        for byte in chunk.offset..chunk.offset + chunk.bytes {
            let flip = |bytes: &mut Vec<u8>| bytes[usize::try_from(byte).unwrap()] ^= 1;
            assert!(objects.damage(key, flip));
            let failed = read(&repository, &inputs, 0).await.unwrap_err();
            let range = format!("bytes {} to {}", chunk.offset, chunk.offset + chunk.bytes);
            assert!(failed.message.contains(key.as_str()) && failed.message.contains(&range), "{failed}");
            assert!(matches!(failed.kind, RepoErrorKind::Damaged { .. }), "{failed}");
            assert_eq!(read(&repository, &inputs, 1).await.unwrap(), 20, "the other site goes on");
            assert!(objects.damage(key, flip));
        }
    }
}

#[tokio::test]
async fn a_truncated_pack_costs_only_the_sites_behind_the_cut() {
    let (objects, repository, _) = captured().await;
    let inputs = inputs(&repository).await;
    let base = inputs[0].0.base.as_ref().unwrap();
    let key = inputs[0].1[base.object as usize].key.clone();
    let end = base.chunks.last().map(|chunk| chunk.offset + chunk.bytes).unwrap();
    assert!(objects.damage(&key, |bytes| bytes.truncate(usize::try_from(end).unwrap())));
    assert_eq!(read(&repository, &inputs, 0).await.unwrap(), 20);
    let failed = read(&repository, &inputs, 1).await.unwrap_err();
    assert!(matches!(&failed.kind, RepoErrorKind::Damaged { key: named, .. } if *named == key), "{failed}");

    assert!(objects.remove(&key));
    let failed = read(&repository, &inputs, 0).await.unwrap_err();
    assert_eq!(failed.kind, RepoErrorKind::NotFound { key });
}

#[tokio::test]
async fn base_rows_with_another_digest_are_refused() {
    let (_, repository, _) = captured().await;
    let mut inputs = inputs(&repository).await;
    // Every chunk is as its manifest says, and yet the rows are not those that were digested when captured.
    let base = inputs[0].0.base.as_mut().unwrap();
    base.rows_digest = muster_types::Digest::of(b"another");
    let failed = read(&repository, &inputs, 0).await.unwrap_err();
    assert!(failed.message.contains("table `table_0`"), "{failed}");
}

#[tokio::test]
async fn a_damaged_snapshot_is_an_error_and_a_survey_goes_on_without_it() {
    for part in ["root.json.zst", "page-0000.json.zst"] {
        let (objects, repository, _) = captured().await;
        let key = objects.keys().into_iter().find(|key| key.ends_with(part)).unwrap();
        assert!(objects.damage(&key, |bytes| {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 64;
        }));
        let query = CatalogQuery { sites: Sites::All, shards: None };
        let failed = muster_repo::catalog::read(&repository, &query, Timestamp::EPOCH).await.unwrap_err();
        assert!(
            matches!(&failed.kind, RepoErrorKind::Damaged { key: named, .. } if *named == key),
            "{failed}"
        );
        let survey = muster_repo::catalog::survey(&repository, &query, Timestamp::EPOCH).await.unwrap();
        assert_eq!(survey.damages, [failed]);
        assert_eq!(survey.catalog.sites.len(), 2, "the log knows both sites");

        // Asked for by name, a site that the page lists does not look like one without rows.
        let query = CatalogQuery { sites: Sites::Some([site(1)].into()), shards: None };
        let survey = muster_repo::catalog::survey(&repository, &query, Timestamp::EPOCH).await.unwrap();
        let unread = survey.catalog.sites[&site(1)].traces.iter().any(|trace| !trace.unread.is_empty());
        assert_eq!(unread, part.starts_with("page"));
    }
}

#[tokio::test]
async fn newer_documents_are_refused_by_name() {
    let (objects, repository, _) = captured().await;
    assert!(objects.damage("repository.json", |bytes| *bytes = b"{\"format\": 99, \"id\": []}".to_vec()));
    let refused = Repository::open(Arc::clone(repository.objects())).await.unwrap_err();
    assert_eq!(refused.kind, RepoErrorKind::NewerFormat);
    assert!(refused.to_string().contains("repository.json"), "{refused}");
}

#[tokio::test]
async fn sites_are_listed_from_pages_and_indexes() {
    let (_, repository, _) = captured().await;
    let found = muster_repo::catalog::list_sites(&repository, None).await.unwrap();
    assert_eq!(found.keys().cloned().collect::<Vec<_>>(), [site(1), site(2)]);
}

#[tokio::test]
async fn who_takes_the_rows_may_refuse_them() {
    let (_, repository, _) = captured().await;
    let (input, objects) = inputs(&repository).await.remove(0);
    let reader =
        RangeReader::new(Arc::clone(repository.objects()), ranges(&input, &objects), RangeLimits::default());
    let refusal = RepoError::new(RepoErrorKind::Local, "no room for rows", "make room");
    let table = &tables()[0];
    let done = rows::table_rows(&reader, table, &input, &objects, 1 << 20, |_| async {
        Err::<(), RepoError>(refusal.clone())
    });
    assert_eq!(done.await, Err(refusal.clone()));
}

#[test]
fn a_full_disk_is_told_from_other_failures() {
    let mut spool = muster_repo::SegmentSpool::new(std::path::Path::new("/dev/full"));
    let table = spool.table(&tables()[0]);
    spool.reread_row(Some(&site(1)), table, &crate::model::row("s-001", 1, None)).unwrap();
    let failed = spool.finish().unwrap_err();
    assert_eq!(failed.kind, RepoErrorKind::Full, "{failed}");
    assert!(failed.message.contains("/dev/full"), "{failed}");
}
