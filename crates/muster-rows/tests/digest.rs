//! Order-free digests.

use muster_rows::{Class, Row, RowBuilder, RowsDigest, encode_row};
use muster_types::Digest;
use proptest::prelude::*;

fn row() -> impl Strategy<Value = Row> {
    let class = prop_oneof![Just(Class::Null), Just(Class::Text), Just(Class::Integer), Just(Class::Blob)];
    let field = (class, prop::collection::vec(any::<u8>(), 0..6));
    prop::collection::vec(field, 0..4).prop_map(|fields| {
        let mut builder = RowBuilder::new();
        for (class, bytes) in fields {
            builder.push(class, &bytes);
        }
        builder.take()
    })
}

fn digest_of<'a>(rows: impl IntoIterator<Item = &'a (String, Row)>) -> RowsDigest {
    let mut digest = RowsDigest::new();
    for (table, row) in rows {
        digest.add(table, row);
    }
    digest
}

proptest! {
    #[test]
    fn neither_order_nor_grouping_matters(
        rows in prop::collection::vec(("[ab]{0,2}", row()), 0..12),
        cut in any::<prop::sample::Index>(),
    ) {
        let cut = cut.index(rows.len() + 1);
        let all = digest_of(&rows);
        prop_assert_eq!(&all, &digest_of(rows.iter().rev()));
        let mut merged = digest_of(&rows[cut..]);
        merged.merge(&digest_of(&rows[..cut]));
        prop_assert_eq!(all.finish(), merged.finish());
        merged.unmerge(&digest_of(&rows[cut..]));
        prop_assert_eq!(merged, digest_of(&rows[..cut]));
    }

    #[test]
    fn removing_undoes_adding(rows in prop::collection::vec(("[ab]{0,2}", row()), 1..8), first in any::<bool>()) {
        let mut digest = digest_of(&rows);
        let (table, row) = &rows[0];
        if first {
            let mut negative = RowsDigest::new();
            negative.remove(table, row);
            digest.merge(&negative);
        } else {
            digest.remove(table, row);
        }
        prop_assert_eq!(digest, digest_of(&rows[1..]));
    }

    #[test]
    fn different_sets_differ(
        a in prop::collection::vec(("[ab]{0,2}", row()), 0..4),
        b in prop::collection::vec(("[ab]{0,2}", row()), 0..4),
    ) {
        let sorted = |rows: &[(String, Row)]| {
            let line = |(table, row): &(String, Row)| {
                let mut line = Vec::new();
                encode_row(row, &mut line);
                (table.clone(), line)
            };
            let mut lines: Vec<_> = rows.iter().map(line).collect();
            lines.sort();
            lines
        };
        let same = sorted(&a) == sorted(&b);
        prop_assert_eq!(same, digest_of(&a).finish() == digest_of(&b).finish());
    }

    #[test]
    fn the_state_survives_its_text(rows in prop::collection::vec(("[ab]{0,2}", row()), 0..6)) {
        let digest = digest_of(&rows);
        let hex = digest.to_hex();
        prop_assert_eq!(hex.len(), 4096);
        prop_assert_eq!(RowsDigest::from_hex(&hex).unwrap(), digest);
    }
}

fn one(text: &[u8]) -> Row {
    RowBuilder::new().push(Class::Text, text).take()
}

#[test]
fn the_table_name_is_part_of_it_and_cannot_run_into_the_row() {
    let of = |table: &str, text: &[u8]| digest_of(&[(table.to_owned(), one(text))]).finish();
    assert_ne!(of("users", b"1"), of("groups", b"1"));
    assert_ne!(of("a", b"b1"), of("ab", b"1"));
}

#[test]
fn a_row_twice_is_not_a_row_once() {
    let once = ("t".to_owned(), one(b"x"));
    assert_ne!(digest_of([&once]), digest_of([&once, &once]));
    assert_ne!(digest_of([&once, &once]), RowsDigest::new());
}

#[test]
fn other_texts_are_no_states() {
    let hex = RowsDigest::new().to_hex();
    assert!(RowsDigest::from_hex(&hex[1..]).is_err());
    assert!(RowsDigest::from_hex(&hex.replacen('0', "g", 1)).is_err());
    assert!(RowsDigest::from_hex(&"é".repeat(2048)).is_err());
}

/// One block of ChaCha12's key stream with nonce 0, from the words of RFC 8439 with 12 rounds and a 64-bit counter.
fn chacha12_block(key: &[u8; 32], counter: u32) -> Vec<u8> {
    let word = |bytes: &[u8]| bytes.iter().rev().fold(0_u32, |word, &byte| word << 8 | u32::from(byte));
    let mut start = [0; 16];
    let text = b"expand 32-byte k".chunks_exact(4).chain(key.chunks_exact(4));
    start.iter_mut().zip(text).for_each(|(to, bytes)| *to = word(bytes));
    start[12] = counter;
    let mut state = start;
    let mut quarter = |[a, b, c, d]: [usize; 4]| {
        for (x, y, z, turn) in [(a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)] {
            state[x] = u32::wrapping_add(state[x], state[y]);
            state[z] = u32::rotate_left(state[z] ^ state[x], turn);
        }
    };
    for _ in 0..6 {
        (0..4).for_each(|i| quarter([i, i + 4, i + 8, i + 12]));
        (0..4).for_each(|i| quarter([i, (i + 1) % 4 + 4, (i + 2) % 4 + 8, (i + 3) % 4 + 12]));
    }
    state.iter().zip(start).flat_map(|(word, start)| word.wrapping_add(start).to_le_bytes()).collect()
}

/// Digests are stored, so they must stay what they are: here computed by hand.
#[test]
fn its_values_are_fixed() {
    assert_eq!(RowsDigest::new().finish(), Digest::of(&[0; 2048]));
    let text = b"muster rows LtHash16-1024 v1\n\x05\0\0\0\0\0\0\0usersann\tt";
    let key = Digest::of(text).0;
    let lanes: Vec<u8> = (0..32).flat_map(|block| chacha12_block(&key, block)).collect();
    let digest = digest_of(&[("users".to_owned(), one(b"ann"))]);
    let hex: String = lanes.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(digest.to_hex(), hex);
    assert_eq!(digest.finish(), Digest::of(&lanes));
}
