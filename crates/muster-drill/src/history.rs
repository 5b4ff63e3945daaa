//! What drills have proven, what they never have, and whether they take longer.
//!
//! # Invariants
//! - Pure: from records and what there is to prove.

use std::collections::{BTreeMap, BTreeSet};

use muster_types::drill::{DrillClass, DrillRecord, Verdict};
use muster_types::drill_history::{ClassHistory, Coverage, DayProven, DrillHistory, PastDrill, Trend};
use muster_types::{Kind, ShardName, SiteId, Timestamp};

use crate::forecasts;

const DAY_MICROS: i64 = 86_400_000_000;

/// Drills whose figures a trend is measured against: fewer say little, more forget slowly.
const TRAILING_MAX: usize = 20;

/// A median of fewer is none.
const TRAILING_MIN: usize = 3;

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

/// The stretch that counts as proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// Drills that began from here on count.
    pub since: Timestamp,
    /// The present moment.
    pub until: Timestamp,
}

impl Stretch {
    /// The last so many days.
    pub fn last_days(days: u32, until: Timestamp) -> Self {
        Self { since: until.plus_micros(-i64::from(days) * DAY_MICROS), until }
    }
}

/// The history that `records`, in the order of time, tell of `fleet`. A figure above `factor` times the median is an alarm.
pub fn history(records: &[DrillRecord], fleet: &Fleet, stretch: Stretch, factor: f64) -> DrillHistory {
    let Stretch { since, until } = stretch;
    let judged: Vec<&DrillRecord> =
        records.iter().filter(|record| record.verdict != Verdict::Stopped).collect();
    let recent = || judged.iter().copied().filter(|record| record.began_at >= since);
    let all = || judged.iter().copied();
    let moments: Vec<Timestamp> = recent()
        .flat_map(|record| &record.sites)
        .filter(|site| !site.stores.is_empty() && site.stores.iter().all(|store| store.proven))
        .map(|site| site.target)
        .collect();
    let drills: Vec<PastDrill> = records.iter().map(past).collect();
    let trends = trends(&drills);
    DrillHistory {
        since,
        until,
        factor,
        sites: coverage(&fleet.sites, &sites(recent()), &sites(all())),
        shards: coverage(&fleet.shards, &shards(recent()), &shards(all())),
        kinds: coverage(&fleet.kinds, &kinds(recent()), &kinds(all())),
        moments: moments.iter().min().copied().zip(moments.iter().max().copied()),
        days: days(&moments, stretch),
        classes: classes(&judged, since),
        alarms: alarms(&drills, factor).into_iter().map(|alarm| alarm.text).collect(),
        drills,
        forecast: forecasts::of(recent().filter_map(|record| record.forecast.as_ref())),
        trends,
    }
}

/// The days that end with the stretch, and what was proven of each.
fn days(moments: &[Timestamp], stretch: Stretch) -> Vec<DayProven> {
    let micros = stretch.until.as_micros() - stretch.since.as_micros();
    let count = (micros / DAY_MICROS).max(0);
    let day = |number: i64| {
        let (from, to) = (
            stretch.since.plus_micros(number * DAY_MICROS),
            stretch.since.plus_micros((number + 1) * DAY_MICROS),
        );
        let own: BTreeSet<Timestamp> =
            moments.iter().copied().filter(|moment| from <= *moment && *moment < to).collect();
        DayProven { from, moments: own.len() as u64 }
    };
    (0..count).map(day).collect()
}

/// What a history keeps of a record.
pub fn past(record: &DrillRecord) -> PastDrill {
    PastDrill {
        id: record.id.clone(),
        name: record.name.clone(),
        class: record.class,
        began_at: record.began_at,
        verdict: record.verdict,
        sites: record.sites.len() as u64,
        rto_seconds: record.rto_seconds,
        rpo_seconds: record.rpo_seconds,
        rows_per_second: rate(record),
        errors: record.errors.clone(),
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

/// Those that say something of a restore, by name.
fn by_name(drills: &[PastDrill]) -> BTreeMap<&str, Vec<&PastDrill>> {
    let mut named: BTreeMap<&str, Vec<&PastDrill>> = BTreeMap::new();
    for drill in drills.iter().filter(|drill| drill.verdict != Verdict::Stopped) {
        named.entry(&drill.name).or_default().push(drill);
    }
    named
}

fn trends(drills: &[PastDrill]) -> Vec<Trend> {
    let trend = |(name, drills): (&str, Vec<&PastDrill>)| {
        let measured: Vec<&PastDrill> = drills
            .into_iter()
            .filter(|drill| drill.verdict == Verdict::Passed || drill.rto_seconds.is_some())
            .collect();
        let (last, before) = measured.split_last()?;
        let trailing = &before[before.len().saturating_sub(TRAILING_MAX)..];
        let median_of = |figure: fn(&PastDrill) -> Option<f64>| {
            median(trailing.iter().filter_map(|drill| figure(drill)).collect())
        };
        Some(Trend {
            name: name.to_owned(),
            at: last.began_at,
            rto_seconds: last.rto_seconds,
            rto_median_seconds: median_of(|drill| drill.rto_seconds),
            rpo_seconds: last.rpo_seconds,
            rpo_median_seconds: median_of(|drill| drill.rpo_seconds),
            rows_per_second: last.rows_per_second,
            rows_per_second_median: median_of(|drill| drill.rows_per_second),
        })
    };
    by_name(drills).into_iter().filter_map(trend).collect()
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

/// Why someone should look at the drills of one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DrillAlarm {
    /// The drill's name.
    pub drill: String,
    /// Its last one failed; else it takes longer than it used to.
    pub failed: bool,
    /// When the one that says so began.
    pub at: Timestamp,
    /// In words.
    pub text: String,
}

/// What is wrong with the drills, in the order of time. A figure above `factor` times the median is.
pub fn alarms(drills: &[PastDrill], factor: f64) -> Vec<DrillAlarm> {
    let mut alarms = Vec::new();
    for (name, drills) in by_name(drills) {
        if let Some(last) = drills.last().filter(|last| last.verdict == Verdict::Failed) {
            let why = last.errors.first().map_or("no reason was recorded", String::as_str);
            let text = format!("drill {name} failed at {} ({}): {why}", last.began_at, last.id);
            alarms.push(DrillAlarm { drill: name.to_owned(), failed: true, at: last.began_at, text });
        }
    }
    for trend in trends(drills) {
        let figures = [
            ("recovery time", trend.rto_seconds, trend.rto_median_seconds),
            ("recovery point", trend.rpo_seconds, trend.rpo_median_seconds),
        ];
        for (what, last, median) in figures {
            if let (Some(last), Some(median)) = (last, median)
                && last > median * factor
            {
                let text = format!(
                    "drill {}: its {what} of {last:.2} s is more than {factor} times the trailing median, {median:.2} s",
                    trend.name
                );
                alarms.push(DrillAlarm { drill: trend.name.clone(), failed: false, at: trend.at, text });
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

    fn stretch(since: i64) -> Stretch {
        Stretch { since: at(since), until: at(11) }
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
        let found = history(&records, &fleet(), stretch(5), 2.0);
        assert_eq!((found.sites.all, found.sites.proven), (3, 1));
        assert_eq!(found.sites.never.iter().map(SiteId::as_str).collect::<Vec<_>>(), ["c"]);
        assert_eq!(found.shards.never.iter().map(ShardName::as_str).collect::<Vec<_>>(), ["eu-2"]);
        assert_eq!(found.moments, Some((at(9), at(9))));
        let days: Vec<_> = found.days.iter().map(|day| (day.from, day.moments)).collect();
        assert_eq!(days, [(at(5), 0), (at(6), 0), (at(7), 0), (at(8), 0), (at(9), 1), (at(10), 0)]);
        assert_eq!(found.drills.len(), 3);
        let own = found.classes.iter().find(|class| class.class == DrillClass::OneSite).unwrap();
        assert_eq!((own.proven_at, own.failed_at, own.drills), (Some(at(9)), Some(at(10)), 2));
        assert!(found.alarms[0].contains("table `x` differs"), "{:?}", found.alarms);
    }

    #[test]
    fn a_drill_that_takes_longer_than_it_used_to_is_an_alarm() {
        let steady: Vec<DrillRecord> = (1..=5).map(|day| record(day, Verdict::Passed, 10.0, "a")).collect();
        assert!(history(&steady, &fleet(), stretch(0), 2.0).alarms.is_empty());
        let mut slower = steady.clone();
        slower.push(record(6, Verdict::Passed, 19.0, "a"));
        assert!(history(&slower, &fleet(), stretch(0), 2.0).alarms.is_empty());
        slower.push(record(7, Verdict::Passed, 31.0, "a"));
        let alarms = history(&slower, &fleet(), stretch(0), 2.0).alarms;
        assert!(alarms.len() == 1 && alarms[0].contains("31.00 s"), "{alarms:?}");
        // Stopped drills say nothing.
        slower.push(record(8, Verdict::Stopped, 99.0, "a"));
        assert_eq!(history(&slower, &fleet(), stretch(0), 2.0).alarms, alarms);
    }
}
