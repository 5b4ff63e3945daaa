//! What the fold refuses, and what it holds.

use std::sync::Arc;

use muster_rows::{
    Change, Class, Fold, FoldError, MovedKeys, Op, Part, Row, RowBuilder, encode_change, parts_for,
    parts_for_changes,
};
use muster_types::segment::ChangeStamp;
use muster_types::{ChangeKey, Position, Timestamp};

fn stamp(position: u64, ordinal: u64) -> ChangeStamp {
    let key = ChangeKey { position: Position(position), ordinal };
    ChangeStamp { key, at: Timestamp::from_micros(1_649_144_280_000_000) }
}

/// A row (id, text); without a text the column is left out.
fn row(id: i64, text: Option<&str>) -> Row {
    let mut builder = RowBuilder::new();
    builder.push(Class::Integer, id.to_string().as_bytes());
    match text {
        Some(text) => builder.push(Class::Text, text.as_bytes()),
        None => builder.push(Class::Unchanged, b""),
    };
    builder.take()
}

fn insert(id: i64, text: &str) -> Op {
    Op::Insert { new: row(id, Some(text)) }
}

fn update(from: (i64, Option<&str>), to: (i64, Option<&str>)) -> Op {
    Op::Update { old: row(from.0, from.1), new: row(to.0, to.1) }
}

fn delete(id: i64, text: Option<&str>) -> Op {
    Op::Delete { old: row(id, text) }
}

/// Folds one commit per list, over the given snapshot.
fn fold(base: &[Row], commits: &[&[Op]]) -> Result<Vec<Row>, FoldError> {
    let mut fold = Fold::new(vec![0], 2, Part::WHOLE);
    for (position, ops) in (1..).zip(commits) {
        for (ordinal, op) in (0..).zip(ops.iter()) {
            fold.change(Change { stamp: stamp(position, ordinal), op: op.clone() })?;
        }
    }
    let mut overlay = fold.into_overlay()?;
    let mut rows = Vec::new();
    for row in base {
        rows.extend(overlay.base_row(row.clone())?);
    }
    rows.extend(overlay.finish()?);
    Ok(rows)
}

#[test]
fn impossible_logs_are_named_by_key_and_change() {
    let base = [row(1, Some("a")), row(2, Some("b"))];
    let key = |id: i64| format!("({id})");
    let refused = |commits: &[&[Op]]| fold(&base, commits).unwrap_err();

    assert_eq!(refused(&[&[insert(1, "x")]]), FoldError::BaseTaken { key: key(1), stamp: stamp(1, 0) });
    assert_eq!(
        refused(&[&[insert(3, "x")], &[insert(3, "y")]]),
        FoldError::KeyTaken { key: key(3), stamp: stamp(2, 0) }
    );
    assert_eq!(
        refused(&[&[insert(3, "x")], &[update((1, None), (3, Some("a")))], &[delete(2, None)]]),
        FoldError::KeyTaken { key: key(3), stamp: stamp(2, 0) }
    );
    assert_eq!(
        refused(&[&[delete(1, None)], &[delete(1, None)]]),
        FoldError::RowMissing { key: key(1), stamp: stamp(2, 0) }
    );
    assert_eq!(
        refused(&[&[Op::Truncate], &[update((1, None), (1, Some("x")))]]),
        FoldError::RowMissing { key: key(1), stamp: stamp(2, 0) }
    );
    assert_eq!(
        refused(&[&[update((1, None), (4, None))], &[delete(1, None)]]),
        FoldError::RowMissing { key: key(1), stamp: stamp(2, 0) }
    );
    assert_eq!(
        refused(&[&[insert(3, "x")], &[delete(3, Some("y"))]]),
        FoldError::OldDiffers { key: key(3), stamp: stamp(2, 0), column: 1 }
    );
    assert_eq!(refused(&[&[delete(9, None)]]), FoldError::BaseMissing { key: key(9), stamp: stamp(1, 0) });
    assert_eq!(
        refused(&[&[Op::Insert { new: row(3, None) }]]),
        FoldError::InsertIncomplete { key: key(3), stamp: stamp(1, 0) }
    );
    let message = refused(&[&[insert(1, "x")]]).to_string();
    assert_eq!(
        message,
        "change 1/0 of 2022-04-05T07:38:00.000000Z puts a row at key (1), which a row of the snapshot has"
    );
}

#[test]
fn rows_of_another_shape_are_refused() {
    let narrow = RowBuilder::new().push(Class::Integer, b"1").take();
    let nameless = RowBuilder::new().push(Class::Unchanged, b"").push(Class::Null, b"").take();
    let change = |old: &Row| fold(&[], &[&[Op::Delete { old: old.clone() }]]).unwrap_err();
    assert_eq!(change(&narrow), FoldError::ChangeFields { stamp: stamp(1, 0), expected: 2, found: 1 });
    assert_eq!(change(&nameless), FoldError::KeyUnknown { stamp: stamp(1, 0) });
    let base = |row: Row| fold(&[row], &[]).unwrap_err();
    assert_eq!(base(narrow), FoldError::BaseFields { expected: 2, found: 1 });
    assert_eq!(base(row(1, None)), FoldError::BaseFields { expected: 2, found: 1 });
    let twice = [row(1, Some("a")), row(1, Some("a"))];
    assert_eq!(fold(&twice, &[&[delete(1, None)]]), Err(FoldError::BaseRepeated { key: "(1)".to_owned() }));
}

#[test]
fn keys_may_be_swapped_within_a_commit_and_rows_pass_through_each_other() {
    let base = [row(1, Some("a")), row(2, Some("b"))];
    let swap = [update((1, Some("a")), (2, Some("a"))), update((2, Some("b")), (1, Some("b")))];
    assert_eq!(fold(&base, &[&swap]), Ok(vec![row(2, Some("a")), row(1, Some("b"))]));
    // By way of a third key, as without deferred constraints, and without the other column.
    let around = [
        &[update((1, None), (-1, None))][..],
        &[update((2, None), (1, None))],
        &[update((-1, None), (2, None))],
    ];
    assert_eq!(fold(&base, &around), Ok(vec![row(2, Some("a")), row(1, Some("b"))]));
    // A replacement that is logged before what it replaces.
    let replaced = [insert(1, "new"), delete(1, Some("a"))];
    assert_eq!(fold(&base, &[&replaced]), Ok(vec![row(2, Some("b")), row(1, Some("new"))]));
}

#[test]
fn classes_tell_keys_apart_and_messages_cannot_hold_control_characters() {
    let key = |class, bytes: &[u8]| RowBuilder::new().push(class, bytes).push(Class::Null, b"").take();
    let (number, text) = (key(Class::Integer, b"1"), key(Class::Text, b"1"));
    let log = [Op::Insert { new: number.clone() }, Op::Insert { new: text.clone() }];
    assert_eq!(fold(&[], &[&log]), Ok(vec![number, text]));
    let refused = |class, bytes: &[u8]| match fold(&[], &[&[Op::Delete { old: key(class, bytes) }]]) {
        Err(FoldError::BaseMissing { key, .. }) => key,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(Class::Text, b"\x1b[2J'"), "('\\u{1b}[2J\\'')");
    assert_eq!(refused(Class::Blob, b"\x00\xff"), "(x'00ff')");
    assert_eq!(refused(Class::Null, b""), "(NULL)");
    assert_eq!(refused(Class::Text, &[b'y'; 100]), format!("('{}…')", "y".repeat(60)));
}

#[test]
fn without_key_columns_all_columns_are_the_key() {
    let mut fold = Fold::new(Vec::new(), 2, Part::WHOLE);
    fold.change(Change { stamp: stamp(1, 0), op: delete(1, Some("a")) }).unwrap();
    let mut overlay = fold.into_overlay().unwrap();
    assert_eq!(overlay.base_row(row(1, Some("a"))), Ok(None));
    assert_eq!(overlay.base_row(row(1, Some("b"))), Ok(Some(row(1, Some("b")))));
    assert_eq!(overlay.finish().unwrap().count(), 0);
}

#[test]
fn moves_that_leave_columns_out_need_the_scan_where_there_are_parts() {
    let moves: Vec<Change> = (0..64)
        .map(|id| Change { stamp: stamp(id + 1, 0), op: update((id as i64, None), (id as i64 + 1000, None)) })
        .collect();
    let refused = |moved: Option<&Arc<MovedKeys>>| {
        Part::all(3).any(|part| {
            let fold = Fold::new(vec![0], 2, part);
            let mut fold = match moved {
                Some(moved) => fold.with_moved_keys(Arc::clone(moved)),
                None => fold,
            };
            let mut results = moves.iter().map(|change| fold.change(change.clone()));
            results.any(|result| matches!(result, Err(FoldError::MoveUnscanned { .. })))
        })
    };
    let mut moved = MovedKeys::new(vec![0], 2);
    moves.iter().cloned().for_each(|change| moved.scan(change));
    assert!(refused(None));
    assert!(!refused(Some(&Arc::new(moved))));
}

/// Inserts of the shortest rows, updates and deletes of rows that the log has not seen: each the worst of its kind.
#[test]
fn what_is_held_is_within_the_estimate_and_parts_divide_it() {
    let worst: [fn(i64) -> Op; 4] = [
        |id| insert(id, ""),
        |id| update((id, None), (id, Some(""))),
        |id| update((id, None), (-id, None)),
        |id| delete(id, None),
    ];
    for op in worst {
        let changes: Vec<Change> =
            (1..=20_000).map(|id| Change { stamp: stamp(id as u64, 0), op: op(id) }).collect();
        let mut text = Vec::new();
        changes.iter().for_each(|change| encode_change(change, &mut text));
        let held = |part: Part| {
            let mut moved = MovedKeys::new(vec![0], 2);
            changes.iter().cloned().for_each(|change| moved.scan(change));
            let mut fold = Fold::new(vec![0], 2, part).with_moved_keys(Arc::new(moved));
            changes.iter().cloned().try_for_each(|change| fold.change(change)).unwrap();
            fold.held_bytes() as u64
        };
        let whole = held(Part::WHOLE);
        let (bytes, count) = (text.len() as u64, changes.len() as u64);
        assert_eq!(parts_for_changes(bytes, count, u64::MAX), 1);
        assert!(parts_for_changes(bytes, count, whole - 1) > 1, "{whole} bytes held");
        assert!(parts_for(bytes, whole - 1) > 1);
        let budget = whole / 3;
        let of = parts_for_changes(bytes, count, budget);
        for part in Part::all(of) {
            assert!(held(part) <= budget, "part {part:?} holds {} of {budget}", held(part));
        }
    }
}

#[test]
fn nothing_needs_one_part_and_no_budget_many() {
    assert_eq!(parts_for(0, 0), 1);
    assert_eq!(parts_for(0, 1 << 20), 1);
    assert_eq!(parts_for(u64::MAX, 0), u32::MAX);
    assert_eq!(Part::all(0).collect::<Vec<_>>(), [Part::WHOLE]);
}
