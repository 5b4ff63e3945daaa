//! What the catalog says of tables, and that the statements of a definition create the same table again.

use std::collections::BTreeMap;

use muster_stores::postgres::connect::PostgresConfig;
use muster_stores::postgres::schema::{self, Firing, Identity, LiveTable, ReplicaIdentity};
use tokio_postgres::Client;

use crate::world::Database;

const TABLES: &str = r#"
CREATE SCHEMA "Jïra";
CREATE TYPE public.mood AS ENUM ('glad', 'sad');
CREATE TABLE project (id int PRIMARY KEY, site text NOT NULL);
CREATE TABLE "Jïra"."Issue ""x""" (
    id bigint GENERATED ALWAYS AS IDENTITY (START 100 INCREMENT 5),
    "Größe" numeric(10,2) DEFAULT 1.5,
    site text COLLATE "C" NOT NULL CHECK (site <> ''),
    serial serial,
    feeling public.mood DEFAULT 'sad',
    twice numeric GENERATED ALWAYS AS ("Größe" * 2) STORED,
    project int REFERENCES project DEFERRABLE INITIALLY DEFERRED,
    parent bigint,
    note varchar(20)[],
    PRIMARY KEY (site, id),
    UNIQUE NULLS NOT DISTINCT (note, site),
    FOREIGN KEY (site, parent) REFERENCES "Jïra"."Issue ""x""" (site, id) MATCH FULL ON DELETE CASCADE
);
CREATE UNIQUE INDEX partial ON "Jïra"."Issue ""x""" (project, site) INCLUDE (note) WHERE project > 3;
CREATE UNIQUE INDEX expr ON "Jïra"."Issue ""x""" (lower(site), serial);
CREATE INDEX plain ON "Jïra"."Issue ""x""" (feeling DESC);
ALTER TABLE "Jïra"."Issue ""x""" REPLICA IDENTITY FULL;
CREATE TABLE event (site text NOT NULL, at date NOT NULL, n int, PRIMARY KEY (site, at, n)) PARTITION BY RANGE (at);
CREATE TABLE event_1 PARTITION OF event FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');
CREATE TABLE event_2 PARTITION OF event FOR VALUES FROM ('2021-01-01') TO ('2022-01-01') PARTITION BY HASH (site);
CREATE TABLE event_2a PARTITION OF event_2 FOR VALUES WITH (MODULUS 1, REMAINDER 0);
ALTER TABLE event_2a REPLICA IDENTITY FULL;
CREATE TABLE odd (a int NOT NULL, b text);
CREATE UNIQUE INDEX odd_a ON odd (a);
ALTER TABLE odd REPLICA IDENTITY USING INDEX odd_a;
ALTER TABLE odd ENABLE ROW LEVEL SECURITY;
CREATE UNLOGGED TABLE "dotted.name" (a int);
CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER loud BEFORE INSERT ON odd FOR EACH ROW EXECUTE FUNCTION f();
ALTER TABLE odd ENABLE ALWAYS TRIGGER loud;
CREATE TRIGGER quiet BEFORE INSERT ON event_1 FOR EACH ROW EXECUTE FUNCTION f();
CREATE RULE same AS ON UPDATE TO odd DO ALSO NOTHING;
CREATE SCHEMA muster;
CREATE TABLE muster.epoch (run text);
"#;

async fn read(client: &Client) -> BTreeMap<String, LiveTable> {
    let tables = schema::read(client).await.unwrap();
    tables.into_iter().map(|table| (table.def.name.clone(), table)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn definitions_are_read_and_create_the_same_table() {
    let database = Database::with(TABLES).await;
    let client = database.muster().await;
    let first = read(&client).await;
    let names: Vec<&str> = first.keys().map(String::as_str).collect();
    assert_eq!(names, ["Jïra.Issue \"x\"", "event", "odd", "project", "public.dotted.name"]);
    let issue = &first["Jïra.Issue \"x\""];
    let columns: Vec<(&str, &str, bool, bool)> = issue
        .def
        .columns
        .iter()
        .map(|column| {
            (column.name.as_str(), column.declared_type.as_str(), column.not_null, column.generated)
        })
        .collect();
    assert_eq!(
        columns,
        [
            ("id", "bigint", true, false),
            ("Größe", "numeric(10,2)", false, false),
            ("site", "text", true, false),
            ("serial", "integer", true, false),
            ("feeling", "public.mood", false, false),
            ("twice", "numeric", false, true),
            ("project", "integer", false, false),
            ("parent", "bigint", false, false),
            ("note", "character varying(20)[]", false, false),
        ]
    );
    assert_eq!(issue.def.key, ["site", "id"]);
    assert_eq!(issue.identity, BTreeMap::from([("id".to_owned(), Identity::Always)]));
    let unique: Vec<(Vec<String>, Option<&str>)> =
        issue.def.unique.iter().map(|key| (key.columns.clone(), key.predicate_sql.as_deref())).collect();
    assert_eq!(
        unique,
        [
            (vec!["note".to_owned(), "site".to_owned()], None),
            (vec!["project".to_owned(), "site".to_owned()], Some("(project > 3)"))
        ]
    );
    let odd_keys: Vec<(bool, bool)> =
        issue.keys.iter().map(|key| (key.nulls_not_distinct, key.columns.contains(&None))).collect();
    assert_eq!(odd_keys, [(false, false), (true, false), (false, true), (false, false)]);
    let keys: Vec<(&str, bool, bool, bool)> = issue
        .foreign_keys
        .iter()
        .map(|key| (key.parent_table.as_str(), key.deferrable, key.match_full, key.acts_on_delete))
        .collect();
    assert_eq!(keys, [("project", true, false, false), ("Jïra.Issue \"x\"", false, true, true)]);
    let sequences: Vec<(&str, i64, bool)> = issue
        .sequences
        .iter()
        .map(|found| (found.column.as_str(), found.increment, found.of_identity))
        .collect();
    assert_eq!(sequences, [("id", 5, true), ("serial", 1, false)]);
    assert!(issue.logs_full_rows() && first["public.dotted.name"].unlogged);
    let event = &first["event"];
    let leaves: Vec<&str> = event.partitions.iter().map(|leaf| leaf.name.as_str()).collect();
    assert_eq!((event.partitioned, leaves), (true, vec!["event_1", "event_2a"]));
    assert!(!event.logs_full_rows());
    assert_eq!(event.logged_old_columns(), ["site", "at", "n"]);
    assert_eq!(event.triggers.iter().map(|found| found.name.as_str()).collect::<Vec<_>>(), ["quiet"]);
    let odd = &first["odd"];
    let index = ReplicaIdentity::Index { name: "odd_a".into(), columns: vec!["a".into()] };
    assert_eq!((&odd.replica_identity, odd.row_security), (&index, true));
    assert_eq!((odd.triggers[0].firing, odd.rules[0].name.as_str()), (Firing::Always, "same"));

    // The statements create tables of which the catalog says the same.
    let names = ["project", "Jïra.Issue \"x\"", "event", "odd", "public.dotted.name"];
    for name in names.iter().rev() {
        client.batch_execute(&format!("DROP TABLE {} CASCADE", first[*name].qualified())).await.unwrap();
    }
    for statement in names.iter().flat_map(|name| &first[*name].def.create_sql) {
        client.batch_execute(statement).await.unwrap_or_else(|error| panic!("{statement}: {error:?}"));
    }
    let second = read(&client).await;
    for (name, table) in &first {
        assert_eq!(table.def, second[name].def, "{name}");
        assert_eq!((&table.keys, &table.identity), (&second[name].keys, &second[name].identity));
        assert_eq!(table.sequences, second[name].sequences);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topology_check_reads_definitions() {
    let database = Database::with("CREATE TABLE b (x int); CREATE TABLE a (x int)").await;
    let text = database.connection.clone();
    let names = tokio::task::spawn_blocking(move || {
        let tables = schema::live_tables(&text).unwrap();
        tables.into_iter().map(|table| table.name).collect::<Vec<_>>()
    });
    assert_eq!(names.await.unwrap(), ["a", "b"]);
    assert!(PostgresConfig::parse(&database.connection).is_ok());
}
