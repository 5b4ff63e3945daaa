//! A made-up history of drills.

use muster_types::Timestamp;
use muster_types::drill::{DrillClass, Verdict};
use muster_types::drill_history::{ClassHistory, Coverage, DayProven, DrillHistory, PastDrill, Trend};

const DAY: i64 = 86_400_000_000;
const UNTIL: i64 = 1_790_000_000_000_000;

/// A number that looks drawn, from 0 to 1.
fn noise(number: u64) -> f64 {
    let mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    ((mixed ^ (mixed >> 29)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 40) as f64 / 16_777_216.0
}

fn drill(number: u64, drills: u64) -> PastDrill {
    // Ten a day, the last an hour ago; every seventh is of another class.
    let began_at = Timestamp::from_micros(UNTIL - (drills - number) as i64 * DAY / 10 + DAY / 20);
    let class = match number % 7 {
        6 => DrillClass::LostShard,
        5 => DrillClass::OneStore,
        _ => DrillClass::ManySites,
    };
    let verdict = match number % 41 {
        17 => Verdict::Failed,
        29 => Verdict::Stopped,
        _ => Verdict::Passed,
    };
    let name = if class == DrillClass::ManySites { "nightly" } else { class.name() };
    let rto = 40.0 + 25.0 * noise(number) + if number + 3 > drills { 70.0 } else { 0.0 };
    let errors = match verdict {
        Verdict::Failed => vec![
            format!(
                "site:s-{number:05}/product:jira: table `issues` has 3 rows that the repository does not"
            ),
            "the recovery time (95th percentile) is 112.4 s, above the expected 90.0 s".to_owned(),
        ],
        _ => vec![],
    };
    PastDrill {
        id: format!("{number:012x}").parse().unwrap(),
        name: name.to_owned(),
        class,
        began_at,
        verdict,
        sites: 12,
        rto_seconds: (verdict != Verdict::Stopped).then_some(rto),
        rpo_seconds: (verdict != Verdict::Stopped).then_some(0.4 + noise(number + 7)),
        rows_per_second: Some(40_000.0 + 9_000.0 * noise(number + 13)),
        errors,
    }
}

/// A history with so many drills in it.
pub(crate) fn history(count: u64) -> DrillHistory {
    let drills: Vec<PastDrill> = (0..count).map(|number| drill(number, count)).collect();
    let (until, since) = (Timestamp::from_micros(UNTIL), Timestamp::from_micros(UNTIL - 30 * DAY));
    let recent = drills.iter().filter(|drill| drill.began_at >= since).count() as u64;
    let proven = (recent * 9).min(1_740);
    let day = |number: i64| {
        let from = since.plus_micros(number * DAY);
        let moments =
            if recent < 20 || number % 9 == 4 { 0 } else { 6 + (noise(number as u64) * 8.0) as u64 };
        DayProven { from, moments: if count > 0 && number == 28 { 3 } else { moments } }
    };
    let last = |class, verdict| {
        let own = drills.iter().filter(|drill| drill.class == class && drill.verdict == verdict);
        own.map(|drill| drill.began_at).max()
    };
    let classes = DrillClass::ALL.map(|class| ClassHistory {
        class,
        proven_at: last(class, Verdict::Passed),
        failed_at: last(class, Verdict::Failed),
        drills: drills.iter().filter(|drill| drill.class == class && drill.began_at >= since).count() as u64,
    });
    let trend = |name: &str| {
        let mut judged = drills.iter().filter(|drill| drill.name == name && drill.rto_seconds.is_some());
        let last = judged.next_back()?;
        Some(Trend {
            name: name.to_owned(),
            at: last.began_at,
            rto_seconds: last.rto_seconds,
            rto_median_seconds: (count > 6).then_some(52.0),
            rpo_seconds: last.rpo_seconds,
            rpo_median_seconds: (count > 6).then_some(0.9),
            rows_per_second: last.rows_per_second,
            rows_per_second_median: (count > 6).then_some(44_000.0),
        })
    };
    let trends: Vec<Trend> = ["lost-shard", "nightly", "one-store"].into_iter().filter_map(trend).collect();
    let alarms = match count {
        0..=6 => vec![],
        _ => vec![
            "drill nightly: its recovery time of 124.11 s is more than 2 times the trailing median, 52.00 s"
                .to_owned(),
        ],
    };
    let never = (0..2_000 - proven).map(|number| format!("site:s-{number:05}").parse().unwrap()).collect();
    DrillHistory {
        since,
        until,
        factor: 2.0,
        sites: Coverage { all: 2_000, proven, never },
        shards: Coverage {
            all: 10,
            proven: if count > 0 { 9 } else { 0 },
            never: vec!["us-billing".parse().unwrap()],
        },
        kinds: Coverage {
            all: 11,
            proven: if count > 0 { 11 } else { 0 },
            never: if count > 0 { vec![] } else { vec!["metadata".parse().unwrap()] },
        },
        moments: (count > 0).then_some((since, until)),
        days: (0..30).map(day).collect(),
        classes: classes.to_vec(),
        trends,
        forecast: None,
        drills,
        alarms,
    }
}
