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

const FAMILY: &str = r#"
[shards.jira]
driver = "postgres"
connection = "postgres://db/jira_{site}"
region = "eu"
kinds = ["app:own"]
sites = ["a", "b-2"]
slots_max = 20

[tables.thing]
kind = "app:own"
"#;

fn family(from: &str, to: &str) -> Result<Topology, String> {
    assert!(FAMILY.contains(from), "`{from}` is not in the family");
    parse(&format!("{GOOD}{}", FAMILY.replacen(from, to, 1)))
}

/// With `sites.txt` in the place of the list, which holds `listed`.
fn family_of_file(listed: Result<&str, &str>) -> Result<Topology, String> {
    let text = format!("{GOOD}{}", FAMILY.replace("sites = [\"a\", \"b-2\"]", "sites_file = \"sites.txt\""));
    let base = Path::new("/base");
    assert_eq!(Topology::site_files(&text, base), [base.join("sites.txt")]);
    let listed = listed.map(str::to_owned).map_err(str::to_owned);
    Topology::parse_with(&text, "t.toml", base, &[(base.join("sites.txt"), listed)].into())
        .map_err(|errors| errors.to_string())
}

#[test]
fn a_family_is_one_shard_of_each_of_its_sites() {
    let topology = family("", "").unwrap();
    let names: Vec<&str> = topology.shards.keys().map(ShardName::as_str).collect();
    assert_eq!(names, ["core", "jira.a", "jira.b-2"]);
    let single =
        FAMILY.replace("jira_{site}", "jira_b-2").replace("sites = [\"a\", \"b-2\"]", "site = \"b-2\"");
    let alone = parse(&format!("{GOOD}{single}")).unwrap();
    let (member, name) = (ShardName::new("jira.b-2").unwrap(), ShardName::new("jira").unwrap());
    assert_eq!(topology.shards[&member], alone.shards[&name]);
    assert_eq!(topology.shards[&member].slots_max, Some(20));
    assert_eq!(topology.declared(&member), alone.declared(&name));
    let found = &topology.families[&name];
    assert_eq!(found.connection, "postgres://db/jira_{site}");
    assert_eq!(found.shards[&SiteId::new("b-2").unwrap()], member);
    assert_eq!(topology.section_of(&member), &name);
    assert_eq!(topology.section_of(&ShardName::new("core").unwrap()).as_str(), "core");
    assert!(alone.families.is_empty());
}

#[test]
fn a_file_may_list_the_sites() {
    let topology = family_of_file(Ok("# tenants\na\n\n  b-2  # moved in May\n")).unwrap();
    let listed = family("", "").unwrap();
    assert_eq!(topology.shards, listed.shards);
    // Its text is part of what a plan was made from.
    assert_ne!(topology.digest, family_of_file(Ok("a\nb-2\n")).unwrap().digest);
    assert_eq!(
        family_of_file(Ok("a\nb 2\na\n")).unwrap_err(),
        "\
/base/sites.txt:2: `b 2` is not a site name: use 1 to 128 of letters, digits, `-`, `_` and `.`
    write the bare id of the site whose database it is
/base/sites.txt:3: `a` is listed twice in [shards.jira]: also in /base/sites.txt:1
    remove one of the two"
    );
    assert_eq!(
        family_of_file(Err("no such file")).unwrap_err(),
        "\
t.toml:34: [shards.jira] has its sites in `/base/sites.txt`: no such file
    make the file, with the id of a site on each line, or name another"
    );
    assert!(family_of_file(Ok("# none yet\n")).unwrap_err().contains("[shards.jira] lists no sites"));
}

#[test]
fn what_is_wrong_with_a_family_is_told() {
    for (from, to, told) in [
        ("_{site}", "_x", "t.toml:34: [shards.jira] lists sites, and its connection has no `{site}`\n"),
        (
            "sites = [\"a\", \"b-2\"]\n",
            "",
            "t.toml:29: the connection of shard `jira` has `{site}`, and no sites are listed\n",
        ),
        ("[\"a\", \"b-2\"]", "[]", "t.toml:34: [shards.jira] lists no sites\n"),
        (
            "[\"a\", \"b-2\"]",
            "[\"a\",\n\"a\"]",
            "t.toml:35: `a` is listed twice in [shards.jira]: also in line 34\n",
        ),
        ("\"b-2\"]", "\"b 2\"]", "t.toml:34: `b 2` is not a site name"),
        ("slots_max = 20", "site = \"c\"", "t.toml:34: [shards.jira] lists sites, and has `site` besides\n"),
        ("app:own\"]", "app:own\", \"app:own\"]", "t.toml:33: shard `jira` names kind `app:own` twice\n"),
    ] {
        let found = family(from, to).unwrap_err();
        assert!(found.starts_with(told) && found.matches("t.toml").count() == 1, "{told}\n{found}");
    }
    let other = "[shards.\"jira.a\"]\ndriver = \"postgres\"\nconnection = \"postgres://db/x\"\nregion = \"eu\"\nkinds = [\"app:own\"]\nsite = \"x\"\n\n[tables.thing]";
    let found = family("[tables.thing]", other).unwrap_err();
    assert!(found.contains("two shards have one name: `jira.a`"), "{found}");
    let sqlite = "driver = \"sqlite\"\npath = \"a.db\"";
    let found =
        family("driver = \"postgres\"\nconnection = \"postgres://db/jira_{site}\"", sqlite).unwrap_err();
    assert!(found.contains("lists sites, and its connection has no `{site}`"), "{found}");
    assert!(found.contains("[shards.jira] is a SQLite file, which has no replication slots"), "{found}");
}

#[test]
fn a_site_has_one_database_of_a_kind() {
    let two = format!("{GOOD}{DATABASES}").replace(
        "[tables.thing]",
        "[shards.also]\ndriver = \"postgres\"\nconnection = \"postgres://db/jira_b\"\nregion = \"us\"\n\
         kinds = [\"app:own\"]\nsite = \"a\"\n\n[tables.thing]",
    );
    assert_eq!(
        parse(&two).unwrap_err(),
        "\
t.toml:36: shards `own` and `also` are both the database of `a` for kind `app:own`
    give one of them another `site` or other `kinds`, or remove it"
    );
    parse(&two.replace(
        "jira_b\"\nregion = \"us\"\nkinds = [\"app:own\"]",
        "jira_b\"\nregion = \"us\"\nkinds = [\"app:other\"]",
    ))
    .expect_err("app:other has no tables");
    parse(&two.replace("site = \"a\"\n\n[tables.thing]", "site = \"b\"\n\n[tables.thing]")).unwrap();
}

#[test]
fn a_database_of_patterns_alone_is_told_to_declare_its_tables() {
    let text = format!("{GOOD}{DATABASES}").replace("kinds = [\"app:own\"]", "kinds = [\"app:*\"]");
    let topology = parse(&text).unwrap();
    let shard = ShardName::new("own").unwrap();
    let found: Vec<String> =
        topology.check_shard(&shard, &[table("new", &[])]).iter().map(ToString::to_string).collect();
    assert_eq!(
        found,
        ["\
t.toml:29: shard `own`: nothing declares table `new`
    add to the topology, if this is its kind:
    [tables.new]
    kind = \"app:own\""]
    );
    let text = text.split("[tables.thing]").next().unwrap().to_owned();
    assert_eq!(
        parse(&text).unwrap_err(),
        "\
t.toml:33: no kind matches `app:*` in shard `own`
    declare the tables of its database: [tables.NAME] with `kind` and no owner, since all rows there are its site's"
    );
}
