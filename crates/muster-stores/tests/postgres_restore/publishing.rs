//! What a publish does: shapes of tables, keys, sequences, records and marks.

use muster_engine::driver::{StoreDriver, StoreProbe};
use std::sync::Arc;

use crate::world::{Snapshot, World, parent, store, tenant};

/// Takes a store away and brings it back; its rows are as before, and so are everybody else's.
async fn there_and_back(world: &World, site: &str, delete: &str, tables: &[&str]) -> Snapshot {
    let print = |table: &str| format!("SELECT string_agg(t::text, ';' ORDER BY t::text) FROM {table} t");
    let mut before = Vec::new();
    for table in tables {
        before.push(world.ask(&print(table)).await);
    }
    let snapshot = world.snapshot(site).await;
    assert!(!snapshot.rows.is_empty());
    world.sql(delete).await;
    let published = world.restore(&snapshot.work(site, "run-1"), &snapshot).await.unwrap();
    assert_eq!(published.rows, snapshot.rows.len() as u64);
    for (table, before) in tables.iter().zip(before) {
        assert_eq!(world.ask(&print(table)).await, before, "{table}");
    }
    snapshot
}

#[tokio::test(flavor = "multi_thread")]
async fn parents_children_sequences_and_generated_columns() {
    let world = World::new(
        r#"CREATE TABLE "Vorgang" (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, "Straße ""x""" text, site text NOT NULL,
             twice bigint GENERATED ALWAYS AS (id * 2) STORED, UNIQUE (site, id));
           CREATE SCHEMA "ö b";
           CREATE TABLE "ö b"."Kommentar" (n serial PRIMARY KEY, vorgang bigint NOT NULL REFERENCES "Vorgang", body varchar(20));
           CREATE TABLE "ö b".vote (kommentar int REFERENCES "ö b"."Kommentar" ON DELETE CASCADE, who text, PRIMARY KEY (kommentar, who));
           INSERT INTO "Vorgang" ("Straße ""x""", site) SELECT 'v' || i, CASE i % 2 WHEN 0 THEN 'a' ELSE 'b' END FROM generate_series(1, 40) i;
           INSERT INTO "ö b"."Kommentar" (vorgang, body) SELECT id, 'k' FROM "Vorgang", generate_series(1, 3);
           INSERT INTO "ö b".vote SELECT n, 'w' FROM "ö b"."Kommentar""#,
        &[
            ("Vorgang", tenant("site")),
            ("ö b.Kommentar", parent("vorgang", "Vorgang", "id")),
            ("ö b.vote", parent("kommentar", "ö b.Kommentar", "n")),
        ],
    )
    .await;
    // As after a restore of sequences from somewhere else: behind the ids.
    world.sql(r#"SELECT setval('"Vorgang_id_seq"', 3), setval('"ö b"."Kommentar_n_seq"', 5)"#).await;
    let delete = r#"DELETE FROM "ö b".vote v USING "ö b"."Kommentar" k, "Vorgang" p WHERE k.n = v.kommentar AND p.id = k.vorgang AND site = 'a';
        DELETE FROM "ö b"."Kommentar" k USING "Vorgang" p WHERE p.id = k.vorgang AND site = 'a'; DELETE FROM "Vorgang" WHERE site = 'a'"#;
    let tables = [r#""Vorgang""#, r#""ö b"."Kommentar""#, r#""ö b".vote"#];
    there_and_back(&world, "a", delete, &tables).await;
    assert_eq!(world.ask(r#"SELECT nextval('"Vorgang_id_seq"')"#).await, "41");
    assert_eq!(world.ask(r#"SELECT nextval('"ö b"."Kommentar_n_seq"')"#).await, "121");
    // Never backwards, and all staging is gone with the last claim.
    let snapshot = world.snapshot("a").await;
    world.sql(r#"SELECT setval('"Vorgang_id_seq"', 1000000)"#).await;
    world.sql(delete).await;
    let work = snapshot.work("a", "run-1");
    world.driver.release(&work.run, work.epoch, &[store("a")]).await.unwrap();
    assert_eq!(
        world.ask("SELECT count(*) FROM pg_class WHERE relname LIKE 'stage\\_%' AND relkind = 'r'").await,
        "0"
    );
    world.restore(&snapshot.work("a", "run-2"), &snapshot).await.unwrap();
    assert_eq!(world.ask(r#"SELECT nextval('"Vorgang_id_seq"')"#).await, "1000001");
}

#[tokio::test(flavor = "multi_thread")]
async fn circles_self_references_and_composite_keys() {
    let world = World::new(
        "CREATE TABLE a (site uuid, id int, up int, b int, PRIMARY KEY (site, id),
           FOREIGN KEY (site, up) REFERENCES a (site, id));
         CREATE TABLE b (id int, site uuid NOT NULL, a int NOT NULL, PRIMARY KEY (id), UNIQUE (site, id),
           FOREIGN KEY (site, a) REFERENCES a (site, id) DEFERRABLE INITIALLY DEFERRED);
         ALTER TABLE a ADD FOREIGN KEY (b) REFERENCES b DEFERRABLE;
         BEGIN; SET CONSTRAINTS ALL DEFERRED;
         INSERT INTO a SELECT '00000000-0000-0000-0000-00000000000a', i, nullif(i - 1, 0), NULL FROM generate_series(1, 20) i;
         INSERT INTO b SELECT i, '00000000-0000-0000-0000-00000000000a', 21 - i FROM generate_series(1, 20) i;
         UPDATE a SET b = id; COMMIT",
        &[("a", tenant("site")), ("b", tenant("site"))],
    )
    .await;
    let delete = "BEGIN; SET CONSTRAINTS ALL DEFERRED; UPDATE a SET b = NULL, up = NULL; DELETE FROM b; DELETE FROM a; COMMIT";
    there_and_back(&world, "00000000-0000-0000-0000-00000000000a", delete, &["a", "b"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_row_security_and_a_number_as_site() {
    let world = World::new(
        "CREATE TABLE event (tenant int NOT NULL, at date NOT NULL, n int, PRIMARY KEY (tenant, at, n)) PARTITION BY RANGE (at);
         CREATE TABLE event_1 PARTITION OF event FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');
         CREATE TABLE event_2 PARTITION OF event DEFAULT PARTITION BY LIST (tenant);
         CREATE TABLE event_2d PARTITION OF event_2 DEFAULT;
         ALTER TABLE event ENABLE ROW LEVEL SECURITY; ALTER TABLE event FORCE ROW LEVEL SECURITY;
         CREATE POLICY none ON event USING (false);
         INSERT INTO event SELECT 7 + i % 2, '2020-12-20'::date + i, i FROM generate_series(1, 50) i",
        &[("event", tenant("tenant"))],
    )
    .await;
    there_and_back(&world, "7", "DELETE FROM event WHERE tenant = 7", &["event"]).await;
    // A site whose id is no number has nothing here.
    assert!(world.snapshot("seven").await.rows.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_that_came_since_get_their_default() {
    let world = World::new(
        "CREATE TABLE t (id int PRIMARY KEY, site text); INSERT INTO t SELECT i, 'a' FROM generate_series(1, 5) i",
        &[("t", tenant("site"))],
    )
    .await;
    let snapshot = world.snapshot("a").await;
    world.sql("DELETE FROM t; ALTER TABLE t ADD c int NOT NULL DEFAULT 42, ADD d text, ADD e int GENERATED ALWAYS AS IDENTITY").await;
    let probe = StoreProbe { store: store("a"), tables: Arc::clone(&snapshot.tables) };
    let live = world.driver.probe(&[probe]).await.unwrap().remove(0);
    assert_eq!((live.rows, live.unwritable, live.claimed_by), (0, None, None));
    assert_eq!(live.differences.len(), 3, "{:?}", live.differences);
    let work =
        muster_engine::driver::StoreWork { definitions: live.definitions, ..snapshot.work("a", "run-1") };
    world.restore(&work, &snapshot).await.unwrap();
    assert_eq!(world.ask("SELECT count(*) FROM t WHERE c = 42 AND d IS NULL AND e > 0").await, "5");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_site_s_own_rows_are_saved_and_replaced_under_the_flag() {
    let world = World::new(
        "CREATE TABLE p (id int PRIMARY KEY, site text, v text); CREATE TABLE c (id int PRIMARY KEY, p int REFERENCES p, v char(5));
         INSERT INTO p SELECT i, 'a', 'old' FROM generate_series(1, 5) i; INSERT INTO c SELECT i, i, 'x' FROM generate_series(1, 5) i;
         INSERT INTO p VALUES (100, 'b', 'b')",
        &[("p", tenant("site")), ("c", parent("p", "p", "id"))],
    )
    .await;
    let snapshot = world.snapshot("a").await;
    world.sql("UPDATE p SET v = 'new' WHERE site = 'a'; INSERT INTO p VALUES (6, 'a', NULL); INSERT INTO c VALUES (9, 6, 'y')").await;
    let mut work = snapshot.work("a", "run-1");
    let refused = world.refusal(&work, &snapshot).await;
    assert!(refused.message.contains("is alive: table `p` holds rows of it"), "{refused}");
    work.overwrite = true;
    let published = world.restore(&work, &snapshot).await.unwrap();
    assert_eq!((published.rows, published.replaced), (10, 12));
    assert_eq!(
        world.ask("SELECT string_agg(id || v, ',' ORDER BY id) FROM p").await,
        "1old,2old,3old,4old,5old,100b"
    );
    let saved = "SELECT string_agg(fields::text, ';' ORDER BY tbl, fields[1]::int) FROM muster.replaced WHERE fields[1] IN ('6', '9')";
    assert_eq!(world.ask(saved).await, "{9,6,\"y    \"};{6,a,NULL}");
    // Done is done: a repetition tells what the first attempt did.
    let again = world.driver.publish(&work, &snapshot.digests()).await.unwrap();
    assert_eq!((again.rows, again.replaced), (10, 12));
    assert_eq!(world.ask("SELECT count(*) FROM muster.published").await, "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publish_leaves_its_mark_where_its_positions_say() {
    let world = World::new(
        "CREATE TABLE t (id int PRIMARY KEY, site text); INSERT INTO t VALUES (1, 'a')",
        &[("t", tenant("site"))],
    )
    .await;
    let snapshot = world.snapshot("a").await;
    world.sql("DELETE FROM t").await;
    let slot = format!("mark_{}", std::process::id());
    world
        .ask(&format!("SELECT lsn FROM pg_create_logical_replication_slot('{slot}', 'test_decoding')"))
        .await;
    let work = snapshot.work("a", "run-1");
    let published = world.restore(&work, &snapshot).await.unwrap();
    let again = world.driver.publish(&work, &snapshot.digests()).await.unwrap();
    let log = format!("pg_logical_slot_peek_changes('{slot}', NULL, NULL)");
    let marks = world
        .ask(&format!("SELECT string_agg(xid || data, ',') FROM {log} WHERE data LIKE '%muster.mark%'"))
        .await;
    assert!(marks.contains(r#""run":"run-1","step":"publish/site:a/product:jira","epoch":1"#), "{marks}");
    // The end of the transaction that inserted the row, and so its commit, lies within.
    let end = format!(
        "SELECT lsn - '0/0' FROM {log} l WHERE data LIKE 'COMMIT%' AND xid IN \
         (SELECT xid FROM {log} i WHERE data LIKE 'table public.t: INSERT%')"
    );
    let end: u64 = world.ask(&end).await.parse().unwrap();
    world.ask(&format!("SELECT pg_drop_replication_slot('{slot}')")).await;
    for published in [published, again] {
        let (first, last) = published.positions.unwrap();
        assert!(first.0 < end && end <= last.0, "{first} {end} {last}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_change_beside_the_live_data_are_noticed_and_not_published() {
    let world = World::new(
        "CREATE TABLE t (id int PRIMARY KEY, site text, v text); \
         INSERT INTO t VALUES (1, 'a', E'tab\\t, feed\\f, \\x01 and \\\\'), (2, 'a', NULL), (3, 'b', 'b')",
        &[("t", tenant("site"))],
    )
    .await;
    let snapshot = world.snapshot("a").await;
    world.sql("DELETE FROM t WHERE site = 'a'").await;
    let work = snapshot.work("a", "run-1");
    world.begin(&work).await;
    let staged = world.stage(&work, &snapshot).await.unwrap();
    // A process that has not staged them does not know what was sent.
    assert!(!world.fresh_driver().is_as_staged(&work).await.unwrap());
    let sql = "SELECT relname FROM pg_class WHERE relname LIKE 'stage\\_%' AND relkind = 'r'";
    let name = world.ask(sql).await;
    world.sql(&format!("UPDATE muster.{name} SET v = '' WHERE id = 2")).await;
    assert!(!world.driver.is_as_staged(&work).await.unwrap());
    assert_ne!(world.driver.digest_staged(&work).await.unwrap(), staged);
    let refused = world.driver.publish(&work, &staged).await.unwrap_err();
    assert!(refused.message.contains("stray write"), "{refused}");
    assert_eq!(world.ask("SELECT count(*) FROM t").await, "1");
    world.sql(&format!("UPDATE muster.{name} SET v = NULL WHERE id = 2")).await;
    assert!(world.driver.is_as_staged(&work).await.unwrap());
    // Digests decide where what was sent is not known.
    let published = world.fresh_driver().publish(&work, &staged).await.unwrap();
    assert_eq!(published.rows, 2);
}
