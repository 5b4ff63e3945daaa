//! What drills have proven, what they never have, and whether they take longer.
//!
//! # Invariants
//! - Pure: from records and what there is to prove.

use std::collections::{BTreeMap, BTreeSet};

use muster_types::drill::{DrillClass, DrillRecord, Verdict};
use muster_types::{Kind, ShardName, SiteId, Timestamp};
use serde::Serialize;

/// Drills whose figures a trend is measured against: fewer say little, more forget slowly.
const TRAILING_MAX: usize = 20;

/// A median of fewer is none.
const TRAILING_MIN: usize = 3;

pub use crate::forecasts::{ForecastErrors, ForecastHistory};

/// What there is to prove.
#[derive(Clone, Debug, Default)]
pub struct Fleet {
    /// Sites that the repository knows.
    pub sites: BTreeSet<SiteId>,
    /// Shards of the topology.
    pub shards: BTreeSet<ShardName>,
    /// Kinds with rows.
    pub kinds: BTreeSet<Kind>,
}

/// Proven ones among all.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Coverage<T> {
    /// How many there are.
    pub all: u64,
    /// How many were proven within the stretch.
    pub proven: u64,
    /// Those that never were, in any drill.
    pub never: Vec<T>,
}

/// Of one class.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassHistory {
    /// The class.
    pub class: DrillClass,
    /// Its last drill that passed.
    pub proven_at: Option<Timestamp>,
    /// Its last drill that failed.
    pub failed_at: Option<Timestamp>,
    /// Drills within the stretch.
    pub drills: u64,
}

/// Of the drills of one name, the last beside those before it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Trend {
    /// The drill's name.
    pub name: String,
    /// When the last one began.
    pub at: Timestamp,
    /// Its recovery time, in seconds (95th percentile).
    pub rto_seconds: Option<f64>,
    /// The median of those before it.
    pub rto_median_seconds: Option<f64>,
    /// Its worst recovery point, in seconds.
    pub rpo_seconds: Option<f64>,
    /// The median of those before it.
    pub rpo_median_seconds: Option<f64>,
    /// Rows restored and compared in a second.
    pub rows_per_second: Option<f64>,
    /// The median of those before it.
    pub rows_per_second_median: Option<f64>,
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct History {
    /// From when on drills count as proof.
    pub since: Timestamp,
    /// Sites.
    pub sites: Coverage<SiteId>,
    /// Shards.
    pub shards: Coverage<ShardName>,
    /// Kinds.
    pub kinds: Coverage<Kind>,
    /// The earliest and the latest moment that was proven within the stretch.
    pub moments: Option<(Timestamp, Timestamp)>,
    /// By class.
    pub classes: Vec<ClassHistory>,
    /// By name.
    pub trends: Vec<Trend>,
    /// How well the runs of drills within the stretch were forecast; none where none was.
    pub forecast: Option<ForecastHistory>,
    /// Why someone should look: drills whose last one failed, or takes longer than it used to.
    pub alarms: Vec<String>,
}

/// The history that `records`, in the order of time, tell of `fleet`. A figure above `factor` times the median is an alarm.
pub fn history(records: &[DrillRecord], fleet: &Fleet, since: Timestamp, factor: f64) -> History {
    let judged: Vec<&DrillRecord> =
        records.iter().filter(|record| record.verdict != Verdict::Stopped).collect();
    let recent = || judged.iter().copied().filter(|record| record.began_at >= since);
    let all = || judged.iter().copied();
    let moments: Vec<Timestamp> = recent()
        .flat_map(|record| &record.sites)
        .filter(|site| !site.stores.is_empty() && site.stores.iter().all(|store| store.proven))
        .map(|site| site.target)
        .collect();
    let trends = trends(&judged);
    History {
        since,
        sites: coverage(&fleet.sites, &sites(recent()), &sites(all())),
        shards: coverage(&fleet.shards, &shards(recent()), &shards(all())),
        kinds: coverage(&fleet.kinds, &kinds(recent()), &kinds(all())),
        moments: moments.iter().min().copied().zip(moments.iter().max().copied()),
        classes: classes(&judged, since),
        alarms: alarms(&judged, &trends, factor),
        forecast: ForecastHistory::of(recent().filter_map(|record| record.forecast.as_ref())),
        trends,
    }
}

fn sites<'r>(records: impl Iterator<Item = &'r DrillRecord>) -> BTreeSet<SiteId> {
    let whole = records
        .flat_map(|record| &record.sites)
        .filter(|site| !site.stores.is_empty() && site.stores.iter().all(|store| store.proven));
    whole.map(|site| site.site.clone()).collect()
}

fn shards<'r>(records: impl Iterator<Item = &'r DrillRecord>) -> BTreeSet<ShardName> {
    let stores = records.flat_map(|record| &record.sites).flat_map(|site| &site.stores);
    stores.filter(|store| store.proven).map(|store| store.shard.clone()).collect()
}

fn kinds<'r>(records: impl Iterator<Item = &'r DrillRecord>) -> BTreeSet<Kind> {
    let stores = records.flat_map(|record| &record.sites).flat_map(|site| &site.stores);
    stores.filter(|store| store.proven).map(|store| store.kind.clone()).collect()
}

fn coverage<T: Ord + Clone>(all: &BTreeSet<T>, recently: &BTreeSet<T>, ever: &BTreeSet<T>) -> Coverage<T> {
    Coverage {
        all: all.len() as u64,
        proven: all.intersection(recently).count() as u64,
        never: all.difference(ever).cloned().collect(),
    }
}

fn classes(judged: &[&DrillRecord], since: Timestamp) -> Vec<ClassHistory> {
    let of = |class: DrillClass| {
        let own = || judged.iter().filter(move |record| record.class == class);
        let last =
            |verdict| own().filter(|record| record.verdict == verdict).map(|record| record.began_at).max();
        ClassHistory {
            class,
            proven_at: last(Verdict::Passed),
            failed_at: last(Verdict::Failed),
            drills: own().filter(|record| record.began_at >= since).count() as u64,
        }
    };
    DrillClass::ALL.into_iter().map(of).collect()
}

fn by_name<'r>(judged: &[&'r DrillRecord]) -> BTreeMap<&'r str, Vec<&'r DrillRecord>> {
    let mut named: BTreeMap<&str, Vec<&DrillRecord>> = BTreeMap::new();
    for record in judged {
        named.entry(&record.name).or_default().push(record);
    }
    named
}

fn trends(judged: &[&DrillRecord]) -> Vec<Trend> {
    let named = by_name(judged);
    let trend = |(name, records): (&str, Vec<&DrillRecord>)| {
        let passed: Vec<&DrillRecord> = records
            .into_iter()
            .filter(|record| record.verdict == Verdict::Passed || record.rto_seconds.is_some())
            .collect();
        let (last, before) = passed.split_last()?;
        let trailing = &before[before.len().saturating_sub(TRAILING_MAX)..];
        let median_of = |figure: fn(&DrillRecord) -> Option<f64>| {
            median(trailing.iter().filter_map(|record| figure(record)).collect())
        };
        Some(Trend {
            name: name.to_owned(),
            at: last.began_at,
            rto_seconds: last.rto_seconds,
            rto_median_seconds: median_of(|record| record.rto_seconds),
            rpo_seconds: last.rpo_seconds,
            rpo_median_seconds: median_of(|record| record.rpo_seconds),
            rows_per_second: rate(last),
            rows_per_second_median: median_of(rate),
        })
    };
    named.into_iter().filter_map(trend).collect()
}

fn rate(record: &DrillRecord) -> Option<f64> {
    (record.run_seconds > 0.0).then(|| record.rows as f64 / record.run_seconds)
}

fn median(mut figures: Vec<f64>) -> Option<f64> {
    if figures.len() < TRAILING_MIN {
        return None;
    }
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied()
}

fn alarms(judged: &[&DrillRecord], trends: &[Trend], factor: f64) -> Vec<String> {
    let mut alarms = Vec::new();
    for (name, records) in by_name(judged) {
        if let Some(last) = records.last().filter(|last| last.verdict == Verdict::Failed) {
            let why = last.errors.first().map_or("no reason was recorded", String::as_str);
            alarms.push(format!("drill {name} failed at {} ({}): {why}", last.began_at, last.id));
        }
    }
    for trend in trends {
        let figures = [
            ("recovery time", trend.rto_seconds, trend.rto_median_seconds),
            ("recovery point", trend.rpo_seconds, trend.rpo_median_seconds),
        ];
        for (what, last, median) in figures {
            if let (Some(last), Some(median)) = (last, median)
                && last > median * factor
            {
                alarms.push(format!(
                    "drill {}: its {what} of {last:.2} s is more than {factor} times the trailing median, {median:.2} s",
                    trend.name
                ));
            }
        }
    }
    alarms
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed test may say so by a panic")]

    use muster_types::drill::{DrilledSite, DrilledStore};
    use muster_types::{Boundary, Position};

    use super::*;

    fn at(day: i64) -> Timestamp {
        Timestamp::from_micros(day * 86_400_000_000)
    }

    fn record(day: i64, verdict: Verdict, rto: f64, site: &str) -> DrillRecord {
        let reached = Boundary { position: Position(1), at: at(day) };
        let (kind, shard) = ("metadata".parse().unwrap(), "eu-1".parse().unwrap());
        let proven = verdict == Verdict::Passed;
        let stores = vec![DrilledStore { kind, shard, reached, rows: 10, proven }];
        let site = format!("site:{site}").parse().unwrap();
        let site = DrilledSite {
            site,
            tier: None,
            target: at(day),
            rto_seconds: Some(rto),
            rpo_seconds: Some(1.0),
            stores,
        };
        DrillRecord {
            format: 1,
            id: "0a".parse().unwrap(),
            name: "nightly".to_owned(),
            class: DrillClass::OneSite,
            seed: 1,
            began_at: at(day),
            ended_at: at(day),
            moment: Some(at(day)),
            runs: vec![],
            plans: vec![],
            verdict,
            errors: if proven { vec![] } else { vec!["table `x` differs".to_owned()] },
            sites: vec![site],
            left_out: vec![],
            rto_seconds: Some(rto),
            rpo_seconds: Some(1.0),
            rows: 10,
            bytes: 1,
            run_seconds: 1.0,
            forecast: None,
            made: vec![],
            left: vec![],
        }
    }

    fn fleet() -> Fleet {
        Fleet {
            sites: ["a", "b", "c"].map(|site| format!("site:{site}").parse().unwrap()).into(),
            shards: ["eu-1", "eu-2"].map(|shard| shard.parse().unwrap()).into(),
            kinds: ["metadata"].map(|kind| kind.parse().unwrap()).into(),
        }
    }

    #[test]
    fn coverage_says_what_was_proven_and_what_never_was() {
        let records = [
            record(1, Verdict::Passed, 1.0, "a"),
            record(9, Verdict::Passed, 1.0, "b"),
            record(10, Verdict::Failed, 1.0, "c"),
        ];
        let found = history(&records, &fleet(), at(5), 2.0);
        assert_eq!((found.sites.all, found.sites.proven), (3, 1));
        assert_eq!(found.sites.never.iter().map(SiteId::as_str).collect::<Vec<_>>(), ["c"]);
        assert_eq!(found.shards.never.iter().map(ShardName::as_str).collect::<Vec<_>>(), ["eu-2"]);
        assert_eq!(found.moments, Some((at(9), at(9))));
        let own = found.classes.iter().find(|class| class.class == DrillClass::OneSite).unwrap();
        assert_eq!((own.proven_at, own.failed_at, own.drills), (Some(at(9)), Some(at(10)), 2));
        assert!(found.alarms[0].contains("table `x` differs"), "{:?}", found.alarms);
    }

    #[test]
    fn a_drill_that_takes_longer_than_it_used_to_is_an_alarm() {
        let steady: Vec<DrillRecord> = (1..=5).map(|day| record(day, Verdict::Passed, 10.0, "a")).collect();
        assert!(history(&steady, &fleet(), at(0), 2.0).alarms.is_empty());
        let mut slower = steady.clone();
        slower.push(record(6, Verdict::Passed, 19.0, "a"));
        assert!(history(&slower, &fleet(), at(0), 2.0).alarms.is_empty());
        slower.push(record(7, Verdict::Passed, 31.0, "a"));
        let alarms = history(&slower, &fleet(), at(0), 2.0).alarms;
        assert!(alarms.len() == 1 && alarms[0].contains("31.00 s"), "{alarms:?}");
        // Stopped drills say nothing.
        slower.push(record(8, Verdict::Stopped, 99.0, "a"));
        assert_eq!(history(&slower, &fleet(), at(0), 2.0).alarms, alarms);
    }
}
