//! Tables of which each site has its own: what the parser and the comparison with a shard say.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests fail by panicking")]

use std::path::Path;

use muster_types::table::{ColumnDef, ForeignKey, Owner, TableDef};
use muster_types::topology::Topology;
use muster_types::{ShardName, SiteId};

const GOOD: &str = r#"fleet = "example"
repository = { bucket = "muster" }
tiers.standard = { rto_seconds = 3600, rpo_seconds = 60 }

[directory]
kind = "metadata"
table = "site"

[shards.core]
driver = "postgres"
connection = "postgres://db/core"
region = "eu"
kinds = ["metadata", "product:*"]

[tables.site]
kind = "metadata"
tenant = "site_id"

[tables."tenant_{site}.issue"]
kind = "product:jira"

[tables."tenant_{site}.comment"]
kind = "product:jira"

[tables.label]
kind = "product:jira"
reference = true
"#;

fn parse(text: &str) -> Result<Topology, String> {
    Topology::parse(text, "t.toml", Path::new("/base")).map_err(|errors| errors.to_string())
}

fn wrong(from: &str, to: &str) -> String {
    assert!(GOOD.contains(from), "`{from}` is not in the good topology");
    parse(&GOOD.replacen(from, to, 1)).expect_err("the topology is wrong")
}

fn table(name: &str, foreign: &[(&str, &str)]) -> TableDef {
    let column = |name: &str| ColumnDef {
        name: name.to_owned(),
        declared_type: "text".to_owned(),
        not_null: false,
        default_sql: None,
        generated: false,
    };
    let key = |(column, parent): &(&str, &str)| ForeignKey {
        columns: vec![(*column).to_owned()],
        parent_table: (*parent).to_owned(),
        parent_columns: vec!["id".to_owned()],
    };
    let columns = ["id", "site_id"].into_iter().chain(foreign.iter().map(|(column, _)| *column));
    TableDef {
        name: name.to_owned(),
        columns: columns.map(column).collect(),
        key: vec!["id".to_owned()],
        unique: Vec::new(),
        foreign_keys: foreign.iter().map(key).collect(),
        create_sql: Vec::new(),
    }
}

fn check(live: &[TableDef]) -> String {
    let errors = parse(GOOD).unwrap().check_shard(&ShardName::new("core").unwrap(), live);
    errors.iter().map(|error| format!("{error}\n")).collect()
}

#[test]
fn a_live_table_is_declared_for_the_site_of_its_schema() {
    let declared = parse(GOOD).unwrap().declared(&ShardName::new("core").unwrap());
    let config = declared.get("tenant_a-1.issue").unwrap();
    assert_eq!(config.owner, Owner::Site { site: SiteId::new("a-1").unwrap() });
    assert_eq!(config.kind.as_str(), "product:jira");
    assert!(declared.get("tenant_a-1.other").is_none());
    assert_eq!(declared.get("label").unwrap().owner, Owner::Reference);
    let text = serde_json::to_string(&config.owner).unwrap();
    assert_eq!(text, r#"{"site":{"site":"site:a-1"}}"#);
}

#[test]
fn schemas_of_sites_need_no_owner_column() {
    let issue = table("tenant_a.issue", &[("label", "label")]);
    assert_eq!(check(&[issue, table("tenant_b.issue", &[]), table("label", &[])]), "");
}

#[test]
fn tables_beside_the_declared_ones_come_with_the_lines_to_add() {
    assert_eq!(
        check(&[table("tenant_a.worklog", &[])]),
        "\
t.toml:9: shard `core`: nothing declares table `tenant_a.worklog`
    add to the topology, if this is its owner:
    [tables.\"tenant_{site}.worklog\"]
    kind = \"product:jira\"
"
    );
}

#[test]
fn a_schema_that_is_no_sites_is_told() {
    assert_eq!(
        check(&[table("tenant_a b.issue", &[])]),
        "\
t.toml:9: shard `core`: table `tenant_a b.issue` is of no site: it is named like `tenant_{site}.issue`, and `a b` is \
not a site name: use 1 to 128 of letters, digits, `-`, `_` and `.`
    rename the schema to the site's id, or declare the table by its name
"
    );
}

#[test]
fn a_reference_table_that_refers_to_a_sites_table_is_an_error() {
    let found = check(&[table("label", &[("issue", "tenant_a.issue")]), table("tenant_a.issue", &[])]);
    assert!(found.contains("reference table `label` has a foreign-key path to an owned table"), "{found}");
}

#[test]
fn what_is_wrong_with_a_pattern_is_told() {
    let hint = "    write `{site}` once, in the schema's name: [tables.\"tenant_{site}.issue\"]";
    let name = "\"tenant_{site}.issue\"";
    for (text, reason) in [
        ("\"tenant.issue_{site}\"", "table `tenant.issue_{site}` has its placeholder in the table's name"),
        ("\"t_{site}_{site}.issue\"", "table `t_{site}_{site}.issue` has two placeholders"),
        ("\"t_{site}.issue_{site}\"", "table `t_{site}.issue_{site}` has two placeholders"),
        ("\"issue_{site}\"", "table `issue_{site}` has a placeholder and no schema"),
        ("\"t_{site}.\"", "table `t_{site}.` names a schema and no table"),
    ] {
        assert_eq!(wrong(name, text), format!("t.toml:19: {reason}\n{hint}"));
    }
}

#[test]
fn a_sites_table_has_no_other_owner() {
    let both = "kind = \"product:jira\"\ntenant = \"site_id\"\n\n[tables.\"tenant_{site}.comment\"]";
    assert_eq!(
        wrong("kind = \"product:jira\"\n\n[tables.\"tenant_{site}.comment\"]", both),
        "\
t.toml:19: table `tenant_{site}.issue` belongs to the site of its schema, and has `tenant` besides
    remove `tenant`, or name one table without `{site}`"
    );
}

#[test]
fn a_name_is_declared_once() {
    assert_eq!(
        wrong("tenant_{site}.comment", "{site}.issue"),
        "\
t.toml:22: `{site}.issue` and `tenant_{site}.issue` match one table
    make the fixed parts of the two schemas' names differ"
    );
    assert_eq!(
        wrong("[tables.label]", "[tables.\"tenant_x.issue\"]"),
        "\
t.toml:25: table `tenant_x.issue` is declared by its name, and `tenant_{site}.issue` matches it
    remove one of the two"
    );
}

#[test]
fn what_all_sites_share_is_no_sites_table() {
    let one = "name one table of all sites, without `{site}`";
    assert_eq!(
        wrong("table = \"site\"", "table = \"tenant_{site}.issue\""),
        format!(
            "t.toml:5: [directory] names table `tenant_{{site}}.issue`, of which each site has its own\n    {one}"
        )
    );
    assert_eq!(
        wrong(
            "reference = true",
            "parent = { column = \"i\", table = \"tenant_{site}.issue\", key = \"id\" }"
        ),
        "\
t.toml:25: table `label` is owned through `tenant_{site}.issue`, of which each site has its own
    name a parent that all sites share, or put the table into the sites' schemas, too"
    );
    let sqlite = "driver = \"sqlite\"\npath = \"core.db\"";
    assert!(wrong("driver = \"postgres\"\nconnection = \"postgres://db/core\"", sqlite).contains(
        "shard `core` hosts kind `product:jira` of `tenant_{site}.issue`, and SQLite has no schemas"
    ));
}

const DATABASES: &str = r#"
[shards.own]
driver = "postgres"
connection = "postgres://db/jira_a"
region = "eu"
kinds = ["app:own"]
site = "a"

[tables.thing]
kind = "app:own"

[tables.part]
kind = "app:own"
tenant = "site_id"
"#;

#[test]
fn every_table_of_a_sites_database_is_that_sites() {
    let text = format!("{}{DATABASES}", GOOD.replace("\"product:*\"", "\"product:jira\""));
    let topology = parse(&text).unwrap();
    let shard = ShardName::new("own").unwrap();
    let declared = topology.declared(&shard);
    for table in ["thing", "part"] {
        assert_eq!(
            declared.get(table).unwrap().owner,
            Owner::Site { site: SiteId::new("a").unwrap() },
            "{table}"
        );
    }
    assert!(declared.get("label").is_none() && declared.get("tenant_a.issue").is_none());
    assert!(topology.check_shard(&shard, &[table("thing", &[]), table("part", &[])]).is_empty());
}

#[test]
fn a_table_without_owner_is_in_databases_of_sites_only() {
    let shared = format!("{GOOD}{DATABASES}").replace("\"product:*\"", "\"product:*\", \"app:own\"");
    let found = parse(&shared).unwrap_err();
    let what = "t.toml:36: nothing says to whom the rows of table `thing` belong in shard `core`, which is no single site's";
    assert!(found.contains(what), "{found}");
    let sqlite = format!("{GOOD}{DATABASES}")
        .replace("postgres\"\nconnection = \"postgres://db/jira_a\"", "sqlite\"\npath = \"a.db\"");
    let found = parse(&sqlite).unwrap_err();
    assert!(
        found.contains("[shards.own] is a SQLite file, and `site` is for databases of PostgreSQL"),
        "{found}"
    );
    let wrong = format!("{GOOD}{DATABASES}").replace("site = \"a\"", "site = \"a b\"");
    let parent = format!("{GOOD}{DATABASES}").replace(
        "app:own\"\ntenant = \"site_id\"",
        "app:own\"\nparent = { column = \"i\", table = \"thing\", key = \"id\" }",
    );
    let found = parse(&parent).unwrap_err();
    assert!(
        found.contains("table `part` is owned through `thing`, which has no owner of its own"),
        "{found}"
    );
    assert!(parse(&wrong).unwrap_err().contains("write the bare id of the site whose database it is"));
}
