//! A report of a run that never was.

use std::collections::BTreeMap;

use muster_types::catalog::SiteFacts;
use muster_types::journal::TableDigest;
use muster_types::plan::{Note, Severity, StepKey};
use muster_types::report::{
    Distribution, Failure, ProofReport, Report, RunStatus, ShardProof, SiteReport, StepTimes, StoreReport,
    Totals,
};
use muster_types::request::ProofLevel;
use muster_types::{Boundary, Digest, Epoch, Kind, Position, SiteId, StoreId, Timestamp};

const KINDS: [(&str, &str, [&str; 3]); 7] = [
    ("metadata", "core", ["site", "site_configuration", "site_contact"]),
    ("identity", "identity", ["user_account", "user_group", "group_member"]),
    ("product:jira-software", "jira", ["jsw_project", "jsw_issue", "jsw_comment"]),
    ("product:confluence", "confluence", ["wiki_space", "wiki_page", "wiki_body"]),
    ("product:opsgenie", "ops", ["ops_team", "ops_alert", "ops_alert_note"]),
    ("app:automation", "jira", ["automation_rule", "automation_run", "automation_audit"]),
    ("licence", "core", ["licence", "licence_event", "licence_seat"]),
];

/// Small numbers that look random and are not.
fn noise(a: u64, b: u64) -> u64 {
    let mut x = a.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ b.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^= x >> 29;
    x = x.wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 32)
}

fn opened_at() -> Timestamp {
    Timestamp::from_micros(1_649_146_500_000_000)
}

fn steps(ready: i64, start: i64, end: i64) -> Option<StepTimes> {
    let at = |ms: i64| opened_at().plus_micros(ms * 1_000);
    Some(StepTimes { ready_at: at(ready), started_at: at(start), ended_at: Some(at(end)), attempts: 1 })
}

fn store(site: u64, place: u64, start_ms: i64) -> StoreReport {
    let (kind, shard, tables) = KINDS[place as usize];
    let pick = |salt: u64, below: u64| noise(site * 10 + place, salt) % below;
    let rows = 5 + pick(1, 300);
    let stage_end = start_ms + 80 + pick(2, 300) as i64;
    let publish_start = start_ms + 500 + 60 * place as i64;
    let digest = |table: &&str| {
        let found = TableDigest { rows: rows / 3, digest: Digest::of(format!("{site}{table}").as_bytes()) };
        ((*table).to_owned(), found)
    };
    StoreReport {
        kind: kind.parse().unwrap(),
        shard: format!("eu-central-{shard}").parse().unwrap(),
        reached: Boundary {
            position: Position(10_000 + pick(3, 90_000)),
            at: opened_at().plus_micros(-400_000_000 - pick(4, 900_000) as i64),
        },
        reached_because: "the last poll before the site's first loss".to_owned(),
        rpo_seconds: pick(4, 900) as f64 / 1e3,
        rows,
        bytes: rows * 41,
        tables: tables.iter().map(digest).collect::<BTreeMap<_, _>>(),
        blocked_micros: Some(400 + pick(5, 4_000)),
        stage: steps(0, start_ms, stage_end),
        verify: steps(stage_end, stage_end + 5, stage_end + 30 + pick(6, 50) as i64),
        publish: steps(stage_end + 90, publish_start, publish_start + 4 + pick(7, 30) as i64),
    }
}

fn site(index: u64, stores: u64) -> SiteReport {
    let start_ms = (index * 24 + noise(index, 9) % 500) as i64;
    let (tier, rto, rpo) = match noise(index, 1) % 5 {
        0 => ("enterprise", 3_600, 60),
        1 | 2 => ("standard", 14_400, 300),
        _ => ("free", 86_400, 3_600),
    };
    let stores: Vec<StoreReport> = (0..stores).map(|place| store(index, place, start_ms)).collect();
    let end = start_ms + 1_000 + (noise(index, 5) % 200) as i64;
    let outage = opened_at().plus_micros(-400_000_000 + index as i64 * 300_000);
    let back = opened_at().plus_micros((end + 40) * 1_000);
    let facts = SiteFacts {
        name: Some(format!("northwind-textiles-{index}")),
        region: Some(if index.is_multiple_of(2) { "eu-central" } else { "us-east" }.to_owned()),
        tier: Some(tier.to_owned()),
        customer: Some(format!("Northwind Textiles {}", index / 2)),
        internal: index.is_multiple_of(5),
        users: noise(index, 3) % 900,
        licensed: Vec::<Kind>::new(),
    };
    SiteReport {
        site: SiteId::new(format!("s-{index:05}")).unwrap(),
        facts,
        target: outage,
        outage_at: Some(outage),
        handed_back_at: Some(back),
        rto_declared_seconds: Some(back.seconds_since(opened_at()) + 60.0),
        rto_outage_seconds: Some(back.seconds_since(outage)),
        rto_target_seconds: rto,
        rpo_seconds: stores.iter().map(|store| store.rpo_seconds).reduce(f64::max),
        rpo_target_seconds: rpo,
        failure: None,
        stores,
        check: steps(end - 30, end - 20, end),
        references: None,
        kind_checks: vec![],
        handback: steps(end, end + 10, end + 40),
    }
}

fn distribution(sites: &[SiteReport], value: fn(&SiteReport) -> Option<f64>) -> Distribution {
    let mut values: Vec<f64> = sites.iter().filter_map(value).collect();
    values.sort_by(f64::total_cmp);
    let at = |share: f64| values.get((values.len() as f64 * share) as usize).or(values.last()).copied();
    Distribution {
        count: values.len() as u64,
        p50: at(0.5).unwrap_or_default(),
        p95: at(0.95).unwrap_or_default(),
        max: values.last().copied().unwrap_or_default(),
        misses: vec![],
    }
}

/// A run over `sites` sites of `stores` stores each (seven at most), of which the first `failed` did not come back.
pub(crate) fn report(sites: u64, stores: u64, failed: u64) -> Report {
    let mut all: Vec<SiteReport> = (0..sites).map(|index| site(index, stores)).collect();
    for site in all.iter_mut().take(failed as usize) {
        let store = StoreId { site: site.site.clone(), kind: "identity".parse().unwrap() };
        site.failure = Some(Failure {
            step: StepKey::Publish(store),
            error: "user_account (site_id, username) = ('s-1', 'ada') is held by site:s-01999".to_owned(),
        });
        (site.handed_back_at, site.rto_declared_seconds, site.rto_outage_seconds) = (None, None, None);
    }
    let last_at = all.iter().filter_map(|site| site.handed_back_at).max().unwrap_or(opened_at());
    let mut rto_outage = distribution(&all, |site| site.rto_outage_seconds);
    rto_outage.misses =
        all.iter().filter(|site| site.failure.is_some()).map(|site| site.site.clone()).collect();
    let rows = all.iter().flat_map(|site| &site.stores).map(|store| store.rows).sum();
    let shard = |name: &str, holds: bool| {
        let error = (!holds).then(|| "1 row of site_contact changed without an entry in the log".to_owned());
        (name.parse().unwrap(), ShardProof { rows: 81_223, changes: 1_204, holds, error })
    };
    Report {
        forecast: None,
        format: 1,
        run: "r-20220405-081500-7f3a".parse().unwrap(),
        plan: "b8c7fa3f8e6e53b44b7bd1ab6b35ff0ee49bcb4a".parse().unwrap(),
        title: "Deletion script was handed site ids".to_owned(),
        declared_at: opened_at().plus_micros(-60_000_000),
        opened_at: opened_at(),
        last_at,
        status: if failed == 0 { RunStatus::Restored } else { RunStatus::RestoredInPart },
        epochs: vec![(Epoch(1), "host/1".to_owned(), opened_at())],
        totals: Totals {
            sites,
            sites_restored: sites - failed,
            customers: sites.div_ceil(2),
            users: all.iter().map(|site| site.facts.users).sum(),
            stores: sites * stores,
            rows,
            bytes: rows * 41,
            seconds: last_at.seconds_since(opened_at()),
        },
        rto_declared: distribution(&all, |site| site.rto_declared_seconds),
        rto_outage,
        rpo: distribution(&all, |site| site.rpo_seconds),
        sites: all,
        proof: ProofReport {
            level: ProofLevel::Full,
            marked_changes: rows,
            sites_proven: sites - failed,
            shards: BTreeMap::from([shard("eu-central-core", true), shard("eu-central-jira", failed == 0)]),
        },
        notes: vec![
            note(Severity::Info, "licensed-without-store", "site:s-00007"),
            note(Severity::Warning, "commits-behind-cut", "eu-central-jira"),
        ],
    }
}

fn note(severity: Severity, code: &str, subject: &str) -> Note {
    Note {
        severity,
        code: code.to_owned(),
        subject: subject.to_owned(),
        text: "something that is worth knowing was found".to_owned(),
        hint: "look at it with `muster show`".to_owned(),
    }
}
