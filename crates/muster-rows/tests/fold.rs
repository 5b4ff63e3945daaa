//! The fold against a naive replay.

use std::collections::BTreeMap;
use std::sync::Arc;

use muster_rows::{
    Change, ChangeReader, Class, Fold, FoldError, MovedKeys, Op, Part, Row, RowBuilder, RowsDigest,
    encode_change, encode_row,
};
use muster_types::segment::ChangeStamp;
use muster_types::{ChangeKey, Position, Timestamp};
use proptest::prelude::*;

/// Columns: v, k2, w, k1; the key is (k1, k2).
const COLUMNS: usize = 4;
const KEY: [usize; 2] = [3, 1];

type Key = (u8, u8);
type Values = (u8, u8);
type Model = BTreeMap<Key, Values>;

/// What the generator asks for; interpreted against the model so that the log is always possible.
#[derive(Clone, Debug)]
enum Step {
    Insert { key: Key, values: Values },
    Update { pick: usize, values: Values, old_known: bool, mask: u8 },
    Move { pick: usize, to: Key, values: Values, old_known: bool, mask: u8 },
    Swap { a: usize, b: usize },
    Delete { pick: usize, old_known: bool },
    Truncate,
}

fn key() -> impl Strategy<Value = Key> {
    (0_u8..4, 0_u8..3)
}

fn values() -> impl Strategy<Value = Values> {
    (0_u8..3, 0_u8..3)
}

fn step() -> impl Strategy<Value = Step> {
    let pick = || 0_usize..12;
    prop_oneof![
        6 => (key(), values()).prop_map(|(key, values)| Step::Insert { key, values }),
        4 => (pick(), values(), any::<bool>(), 0_u8..4)
            .prop_map(|(pick, values, old_known, mask)| Step::Update { pick, values, old_known, mask }),
        6 => (pick(), key(), values(), any::<bool>(), 0_u8..4)
            .prop_map(|(pick, to, values, old_known, mask)| Step::Move { pick, to, values, old_known, mask }),
        2 => (pick(), pick()).prop_map(|(a, b)| Step::Swap { a, b }),
        4 => (pick(), any::<bool>()).prop_map(|(pick, old_known)| Step::Delete { pick, old_known }),
        1 => Just(Step::Truncate),
    ]
}

fn base() -> impl Strategy<Value = Model> {
    prop::collection::btree_map(key(), values(), 0..10)
}

/// An image of a row; columns v and w are left out where `v_known` and `w_known` are false.
fn image((k1, k2): Key, (v, w): Values, v_known: bool, w_known: bool) -> Row {
    let mut builder = RowBuilder::new();
    let mut value = |known: bool, value: u8| {
        match (known, value) {
            (false, _) => builder.push(Class::Unchanged, b""),
            (true, 0) => builder.push(Class::Null, b""),
            (true, value) => builder.push(Class::Text, &[b'a' + value]),
        };
    };
    value(v_known, v);
    value(true, k2 + 1);
    value(w_known, w);
    builder.push(Class::Integer, k1.to_string().as_bytes());
    builder.take()
}

fn whole(key: Key, values: Values) -> Row {
    image(key, values, true, true)
}

fn stamp(position: u64, ordinal: u64) -> ChangeStamp {
    let key = ChangeKey { position: Position(position), ordinal };
    ChangeStamp { key, at: Timestamp::from_micros(position as i64) }
}

fn picked(model: &Model, pick: usize) -> Option<(Key, Values)> {
    let index = pick.checked_rem(model.len())?;
    model.iter().nth(index).map(|(key, values)| (*key, *values))
}

/// Does `step` to the model and says how the log tells it; nothing where it is impossible.
fn happen(step: &Step, model: &mut Model) -> Vec<Op> {
    happen_if_possible(step, model).unwrap_or_default()
}

fn happen_if_possible(step: &Step, model: &mut Model) -> Option<Vec<Op>> {
    let updated =
        |model: &mut Model, from: Key, before: Values, to: Key, after: Values, known: bool, mask: u8| {
            model.remove(&from);
            model.insert(to, after);
            // Only what did not change can be left out.
            let v_known = before.0 != after.0 || mask & 1 == 0;
            let w_known = before.1 != after.1 || mask & 2 == 0;
            let old = image(from, before, known, known);
            vec![Op::Update { old, new: image(to, after, v_known, w_known) }]
        };
    Some(match *step {
        Step::Insert { key, values } => {
            if model.contains_key(&key) {
                return None;
            }
            model.insert(key, values);
            vec![Op::Insert { new: whole(key, values) }]
        }
        Step::Update { pick, values, old_known, mask } => {
            let (key, before) = picked(model, pick)?;
            updated(model, key, before, key, values, old_known, mask)
        }
        Step::Move { pick, to, values, old_known, mask } => {
            let (from, before) = picked(model, pick)?;
            if model.contains_key(&to) {
                return None;
            }
            // Mostly without another change, so that columns can be left out.
            let values = if values == (0, 0) { values } else { before };
            updated(model, from, before, to, values, old_known, mask)
        }
        Step::Swap { a, b } => {
            let ((a, of_a), (b, of_b)) = (picked(model, a)?, picked(model, b)?);
            if a == b {
                return None;
            }
            model.insert(a, of_b);
            model.insert(b, of_a);
            vec![
                Op::Update { old: whole(a, of_a), new: image(b, of_a, false, true) },
                Op::Update { old: whole(b, of_b), new: image(a, of_b, true, false) },
            ]
        }
        Step::Delete { pick, old_known } => {
            let (key, values) = picked(model, pick)?;
            model.remove(&key);
            vec![Op::Delete { old: image(key, values, old_known, old_known) }]
        }
        Step::Truncate => {
            model.clear();
            vec![Op::Truncate]
        }
    })
}

/// Each step is one commit.
fn log_of(steps: &[Step], model: &mut Model) -> Vec<Change> {
    let mut log = Vec::new();
    for (position, step) in steps.iter().enumerate() {
        for (ordinal, op) in happen(step, model).into_iter().enumerate() {
            log.push(Change { stamp: stamp(position as u64 + 1, ordinal as u64), op });
        }
    }
    log
}

fn fold(part: Part, moved: Option<&Arc<MovedKeys>>) -> Fold {
    let fold = Fold::new(KEY.to_vec(), COLUMNS, part);
    match moved {
        Some(moved) => fold.with_moved_keys(Arc::clone(moved)),
        None => fold,
    }
}

fn folded(base: &Model, log: &[Change], of: u32) -> Result<Vec<Row>, FoldError> {
    let mut moved = MovedKeys::new(KEY.to_vec(), COLUMNS);
    log.iter().cloned().for_each(|change| moved.scan(change));
    let moved = Arc::new(moved);
    let mut rows = Vec::new();
    for part in Part::all(of) {
        let mut fold = fold(part, (of > 1).then_some(&moved));
        log.iter().cloned().try_for_each(|change| fold.change(change))?;
        let mut overlay = fold.into_overlay()?;
        for (key, values) in base {
            rows.extend(overlay.base_row(whole(*key, *values))?);
        }
        rows.extend(overlay.finish()?);
    }
    Ok(rows)
}

fn sorted(mut rows: Vec<Row>) -> Vec<Row> {
    rows.sort_by_cached_key(|row| {
        let mut line = Vec::new();
        encode_row(row, &mut line);
        line
    });
    rows
}

fn rows_of(model: &Model) -> Vec<Row> {
    sorted(model.iter().map(|(key, values)| whole(*key, *values)).collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_fold_is_the_replay(base in base(), steps in prop::collection::vec(step(), 0..40)) {
        let mut model = base.clone();
        let log = log_of(&steps, &mut model);
        for of in 1..=5 {
            prop_assert_eq!(folded(&base, &log, of).map(sorted), Ok(rows_of(&model)), "in {} parts", of);
        }
    }

    #[test]
    fn it_can_be_cut_at_every_commit(base in base(), steps in prop::collection::vec(step(), 0..25), of in 1_u32..4) {
        for end in 0..=steps.len() {
            let mut model = base.clone();
            let log = log_of(&steps[..end], &mut model);
            prop_assert_eq!(folded(&base, &log, of).map(sorted), Ok(rows_of(&model)), "after {} commits", end);
        }
    }

    #[test]
    fn what_is_read_twice_counts_once(
        base in base(),
        steps in prop::collection::vec(step(), 1..30),
        rewinds in prop::collection::vec((any::<prop::sample::Index>(), 0_usize..10), 1..4),
    ) {
        let mut model = base.clone();
        let log = log_of(&steps, &mut model);
        prop_assume!(!log.is_empty());
        let mut read = Vec::new();
        for (index, change) in log.iter().enumerate() {
            read.push(change.clone());
            for (at, back) in &rewinds {
                if at.index(log.len()) == index {
                    read.extend_from_slice(&log[index.saturating_sub(*back)..=index]);
                }
            }
        }
        let mut fold = fold(Part::WHOLE, None);
        read.iter().cloned().try_for_each(|change| fold.change(change)).unwrap();
        prop_assert_eq!(fold.repeats() as usize, read.len() - log.len());
        for of in 1..=3 {
            prop_assert_eq!(folded(&base, &read, of).map(sorted), Ok(rows_of(&model)));
        }
    }

    #[test]
    fn changes_fold_the_same_from_their_lines(base in base(), steps in prop::collection::vec(step(), 0..20)) {
        let mut model = base.clone();
        let log = log_of(&steps, &mut model);
        let mut text = Vec::new();
        log.iter().for_each(|change| encode_change(change, &mut text));
        let mut reader = ChangeReader::new(COLUMNS);
        let read: Result<Vec<Change>, _> = reader.changes(&text).collect();
        prop_assert_eq!(folded(&base, &read.unwrap(), 2).map(sorted), Ok(rows_of(&model)));
    }

    /// What the repository checks: the base's digest and the log's arithmetic give the digest of the rows.
    #[test]
    fn digests_follow_the_log(base in base(), steps in prop::collection::vec(step(), 0..20)) {
        let whole_steps: Vec<Step> = steps.into_iter().filter_map(with_whole_images).collect();
        let mut model = base.clone();
        let log = log_of(&whole_steps, &mut model);
        let mut digest = RowsDigest::new();
        rows_of(&base).iter().for_each(|row| digest.add("t", row));
        for change in &log {
            let (old, new) = match &change.op {
                Op::Insert { new } => (None, Some(new)),
                Op::Update { old, new } => (Some(old), Some(new)),
                Op::Delete { old } => (Some(old), None),
                Op::Truncate => unreachable!("filtered"),
            };
            old.into_iter().for_each(|row| digest.remove("t", row));
            new.into_iter().for_each(|row| digest.add("t", row));
        }
        let mut of_rows = RowsDigest::new();
        folded(&base, &log, 1).unwrap().iter().for_each(|row| of_rows.add("t", row));
        prop_assert_eq!(digest, of_rows);
    }

    /// No log, however impossible, is folded into rows that differ between numbers of parts, or panics.
    #[test]
    fn a_log_with_a_hole_is_an_error_or_the_same_rows_in_any_parts(
        base in base(), steps in prop::collection::vec(step(), 1..30), hole in any::<prop::sample::Index>(),
    ) {
        let mut log = log_of(&steps, &mut base.clone());
        prop_assume!(!log.is_empty());
        log.remove(hole.index(log.len()));
        let one = folded(&base, &log, 1).map(sorted);
        for of in 2..=4 {
            let many = folded(&base, &log, of).map(sorted);
            prop_assert_eq!(one.is_ok(), many.is_ok());
            if one.is_ok() {
                prop_assert_eq!(&one, &many);
            }
        }
    }
}

fn with_whole_images(step: Step) -> Option<Step> {
    Some(match step {
        Step::Update { pick, values, .. } => Step::Update { pick, values, old_known: true, mask: 0 },
        Step::Move { pick, to, values, .. } => Step::Move { pick, to, values, old_known: true, mask: 0 },
        Step::Delete { pick, .. } => Step::Delete { pick, old_known: true },
        Step::Insert { .. } => step,
        Step::Swap { .. } | Step::Truncate => return None,
    })
}
