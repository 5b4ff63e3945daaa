//! The declarations against live tables.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::path::Path;

use muster_types::ShardName;
use muster_types::table::{ColumnDef, ForeignKey, TableDef, UniqueKey};
use muster_types::topology::Topology;

const TOPOLOGY: &str = r#"fleet = "example"
repository = { bucket = "muster" }
tiers.standard = { rto_seconds = 3600, rpo_seconds = 60 }

[directory]
kind = "metadata"
table = "site"
columns = { name = "name" }

[shards.core]
driver = "sqlite"
path = "core.db"
region = "eu"
kinds = ["metadata"]

[shards.wiki]
driver = "sqlite"
path = "wiki.db"
region = "eu"
kinds = ["product:wiki"]

[tables]
site = { kind = "metadata", tenant = "site_id" }
page = { kind = "product:wiki", tenant = "site_id" }
note = { kind = "product:wiki", parent = { column = "page_id", table = "page", key = "id" } }
label = { kind = "product:wiki", reference = true }
"#;

/// A table with an `id` as its key, further columns, and foreign keys `column -> parent.id`.
fn table(name: &str, columns: &[&str], foreign: &[(&str, &str)]) -> TableDef {
    let column = |name: &str| ColumnDef {
        name: name.to_owned(),
        declared_type: "TEXT".to_owned(),
        not_null: false,
        default_sql: None,
        generated: false,
    };
    let foreign_key = |(column, parent): &(&str, &str)| ForeignKey {
        columns: vec![(*column).to_owned()],
        parent_table: (*parent).to_owned(),
        parent_columns: vec!["id".to_owned()],
    };
    TableDef {
        name: name.to_owned(),
        columns: ["id"].iter().chain(columns).map(|name| column(name)).collect(),
        key: vec!["id".to_owned()],
        unique: Vec::new(),
        foreign_keys: foreign.iter().map(foreign_key).collect(),
        create_sql: Vec::new(),
    }
}

fn wiki() -> Vec<TableDef> {
    vec![
        table("page", &["site_id"], &[]),
        table("note", &["page_id"], &[("page_id", "page")]),
        table("label", &["text"], &[]),
        table("_muster_change", &["seq"], &[]),
        table("sqlite_sequence", &["name"], &[]),
    ]
}

fn check(shard: &str, live: &[TableDef]) -> String {
    let topology = Topology::parse(TOPOLOGY, "t.toml", Path::new("/base")).unwrap();
    let errors = topology.check_shard(&ShardName::new(shard).unwrap(), live);
    errors.iter().map(|error| format!("{error}\n")).collect()
}

/// The wiki shard with the table `changed` in the place of the one with its name.
fn check_with(changed: TableDef) -> String {
    let mut live = wiki();
    live.retain(|table| table.name != changed.name);
    live.push(changed);
    check("wiki", &live)
}

#[test]
fn what_is_declared_and_there_is_in_order() {
    assert_eq!(check("wiki", &wiki()), "");
    assert_eq!(
        check("wiki", &[]),
        "",
        "tables that are declared and not there are captured when they appear"
    );
    let topology = Topology::parse(TOPOLOGY, "t.toml", Path::new("/base")).unwrap();
    let hosted = topology.shard_tables(&ShardName::new("wiki").unwrap());
    assert_eq!(hosted.keys().collect::<Vec<_>>(), ["label", "note", "page"]);
}

#[test]
fn undeclared_tables_come_with_the_lines_to_add() {
    assert_eq!(
        check_with(table("draft", &["site_id"], &[])),
        "\
t.toml:16: shard `wiki`: nothing declares table `draft`
    add to the topology, if this is its owner:
    [tables.draft]
    kind = \"product:wiki\"
    tenant = \"site_id\"
"
    );
    assert_eq!(
        check_with(table(
            "note tag",
            &["label_id", "note_id"],
            &[("label_id", "label"), ("note_id", "NOTE")]
        )),
        "\
t.toml:16: shard `wiki`: nothing declares table `note tag`
    add to the topology, if this is its owner:
    [tables.\"note tag\"]
    kind = \"product:wiki\"
    parent = { column = \"note_id\", table = \"note\", key = \"id\" }
"
    );
    assert_eq!(
        check_with(table("colour", &[], &[])),
        "\
t.toml:16: shard `wiki`: nothing declares table `colour`
    add to the topology, if this is its owner:
    [tables.colour]
    kind = \"product:wiki\"
    reference = true
"
    );
    assert_eq!(
        check_with(table("site", &["site_id", "name"], &[])),
        "\
t.toml:23: shard `wiki`: table `site` is declared for kind `metadata`, which this shard does not host
    add `metadata` to the `kinds` of [shards.wiki], or drop the table there
"
    );
}

#[test]
fn proposed_lines_are_accepted_as_they_stand() {
    let mut live = wiki();
    live.push(table("note tag", &["note_id"], &[("note_id", "note")]));
    let topology = Topology::parse(TOPOLOGY, "t.toml", Path::new("/base")).unwrap();
    let shard = ShardName::new("wiki").unwrap();
    let hint = &topology.check_shard(&shard, &live)[0].hint;
    let lines = hint.split_once('\n').unwrap().1;
    let topology = Topology::parse(&format!("{TOPOLOGY}\n{lines}\n"), "t.toml", Path::new("/base")).unwrap();
    assert_eq!(topology.check_shard(&shard, &live), []);
}

#[test]
fn a_reference_table_cannot_lead_to_an_owned_one() {
    assert_eq!(
        check_with(table("label", &["page"], &[("page", "page")])),
        "\
t.toml:26: shard `wiki`: reference table `label` has a foreign-key path to an owned table: `label` to `page`
    write `tenant` or `parent` in the place of `reference`, or drop the foreign key
"
    );
    let mut live = wiki();
    live.retain(|table| table.name != "label");
    live.push(table("label", &["group", "self"], &[("self", "label"), ("group", "label_group")]));
    live.push(table("label_group", &["label", "note"], &[("label", "label"), ("note", "Note")]));
    let text = check("wiki", &live);
    assert!(text.contains("nothing declares table `label_group`"), "{text}");
    let path = "reference table `label` has a foreign-key path to an owned table: `label` to `label_group` to `Note`\n";
    assert!(text.contains(path), "{text}");
}

#[test]
fn declared_columns_are_there_and_parent_keys_unique() {
    assert_eq!(
        check_with(table("page", &["siteid"], &[])),
        "\
t.toml:24: shard `wiki`: table `page` has no column `site_id`, its tenant column
    did you mean `siteid`? its columns are id, siteid
"
    );
    assert_eq!(
        check_with(table("note", &["page"], &[])),
        "\
t.toml:25: shard `wiki`: table `note` has no column `page_id`, its parent column
    its columns are id, page
"
    );
    let mut keyed_otherwise = table("page", &["site_id", "number"], &[]);
    keyed_otherwise.key = vec!["number".to_owned()];
    let not_unique = "\
t.toml:25: shard `wiki`: table `note` is owned through `page.id`, which is not unique
    name the parent's primary key, or a column with a unique index over all rows
";
    assert_eq!(check_with(keyed_otherwise.clone()), not_unique);
    let unique = |predicate_sql: Option<&str>| UniqueKey {
        name: "u".to_owned(),
        columns: vec!["id".to_owned()],
        predicate_sql: predicate_sql.map(str::to_owned),
    };
    keyed_otherwise.unique = vec![unique(Some("id > 0"))];
    assert_eq!(check_with(keyed_otherwise.clone()), not_unique, "a partial index leaves rows out");
    keyed_otherwise.unique.push(unique(None));
    assert_eq!(check_with(keyed_otherwise), "");
    let mut keyless = table("page", &["site_id"], &[]);
    keyless.columns.remove(0);
    assert_eq!(
        check_with(keyless),
        "\
t.toml:25: shard `wiki`: table `page` has no column `id`, its key for the tables that it owns
    its columns are site_id
"
    );
    let childless: Vec<_> = wiki().into_iter().filter(|table| table.name != "page").collect();
    assert_eq!(
        check("wiki", &childless),
        "\
t.toml:25: shard `wiki`: table `note` is owned through `page`, which is not there
    create it, or declare the parent that the table has now
"
    );
}

#[test]
fn columns_of_the_directory_are_there() {
    assert_eq!(
        check("core", &[table("site", &["site_id", "title"], &[])]),
        "\
t.toml:23: shard `core`: table `site` has no column `name`, its column by [directory]
    its columns are id, site_id, title
"
    );
}
