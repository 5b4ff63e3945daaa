//! References across stores and the operator's checks: what is accepted, and exactly what is said about what is not.
#![expect(clippy::expect_used, reason = "helpers of tests fail by panicking")]

use std::path::Path;

use muster_types::kind_check::{Expected, KindCheck, KindCheckWhat};
use muster_types::table::{ColumnDef, TableDef};
use muster_types::topology::Topology;
use muster_types::{Kind, ShardName, SiteId};

const GOOD: &str = r#"fleet = "example"
[repository]
bucket = "muster"
[directory]
kind = "metadata"
table = "site"
[tiers.standard]
rto_seconds = 3600
rpo_seconds = 60
[shards.a]
driver = "postgres"
connection = "service=a"
region = "eu"
kinds = ["metadata", "product:*"]
[tables.site]
kind = "metadata"
tenant = "site_id"
[tables.country]
kind = "metadata"
reference = true
[tables.page]
kind = "product:wiki"
tenant = "site_id"
[tables."own_{site}.note"]
kind = "product:wiki.notes"
"#;

fn parse(more: &str) -> Result<Topology, String> {
    Topology::parse(&format!("{GOOD}{more}"), "t.toml", Path::new("/")).map_err(|errors| errors.to_string())
}

fn reference(from: &str, to: &str) -> String {
    format!("[[references]]\nfrom = {from:?}\nto = {to:?}\n")
}

fn wrong(more: &str) -> String {
    parse(more).expect_err("the topology is wrong")
}

#[test]
fn references_name_declared_columns() {
    let more = "from_where = { state = \"open\" }\nto_where = { active = \"t\" }\n";
    let text = reference("product:wiki.page.author", "metadata.site.owner") + more;
    let own = reference("product:wiki.notes.own_{site}.note.page", "product:wiki.page.id");
    let topology = parse(&(text + &own)).unwrap();
    let [page, note] = &topology.references[..] else { panic!("{:?}", topology.references) };
    assert_eq!(page.to_string(), "product:wiki.page.author -> metadata.site.owner");
    assert_eq!((page.from_where["state"].as_str(), page.to_where["active"].as_str()), ("open", "t"));
    // Kinds and tables may have dots in their names.
    assert_eq!((note.from.kind.as_str(), note.from.column.as_str()), ("product:wiki.notes", "page"));
    assert_eq!(note.from.table_of(&SiteId::new("s1").unwrap()), "own_s1.note");
}

#[test]
fn references_to_what_is_not_declared_are_refused_by_name() {
    let to = |to: &str| wrong(&reference("product:wiki.page.author", to));
    assert_eq!(
        to("identty.users.id"),
        "\
t.toml:28: `to` of a reference is `identty.users.id`: no table is declared for kind `identty`
    write KIND.TABLE.COLUMN with a kind that has tables"
    );
    assert_eq!(
        to("metadata.sites.id"),
        "\
t.toml:28: `to` of a reference is `metadata.sites.id`: kind `metadata` has no table `sites`
    did you mean `site`? declare it, or name another table of `metadata`"
    );
    assert_eq!(
        to("metadata.site"),
        "\
t.toml:28: `to` of a reference is `metadata.site`: it names no column
    write KIND.TABLE.COLUMN"
    );
    assert_eq!(
        to("metadata.country.code"),
        "\
t.toml:28: `to` of a reference is `metadata.country.code`: table `country` is a reference table, whose rows belong to no site
    name a table of sites; a foreign key guards what all sites share"
    );
    let twice = reference("product:wiki.page.author", "metadata.site.owner").repeat(2);
    assert_eq!(
        wrong(&twice),
        "\
t.toml:29: the reference product:wiki.page.author -> metadata.site.owner is declared twice
    remove one of the two"
    );
}

fn table(name: &str, columns: &[&str]) -> TableDef {
    let column = |name: &&str| ColumnDef {
        name: (*name).to_owned(),
        declared_type: "text".to_owned(),
        not_null: false,
        default_sql: None,
        generated: false,
    };
    TableDef {
        name: name.to_owned(),
        columns: columns.iter().map(column).collect(),
        key: vec![columns[0].to_owned()],
        unique: vec![],
        foreign_keys: vec![],
        create_sql: vec![],
    }
}

#[test]
fn live_tables_have_the_columns_that_references_name() {
    let only = "from_where = { stat = \"open\" }\n";
    let text = reference("product:wiki.page.author", "metadata.site.owner") + only;
    let own = reference("product:wiki.notes.own_{site}.note.page", "product:wiki.page.id");
    let topology = parse(&(text + &own)).unwrap();
    let live = [
        table("site", &["site_id", "owner"]),
        table("page", &["id", "site_id", "writer", "state"]),
        table("own_s1.note", &["id"]),
    ];
    let errors = topology.check_shard(&ShardName::new("a").unwrap(), &live);
    let told: Vec<&str> = errors.iter().map(|error| error.what.as_str()).collect();
    assert_eq!(
        told,
        [
            "shard `a`: table `page` has no column `author`, its column by [[references]]",
            "shard `a`: table `page` has no column `stat`, its column by [[references]]",
            "shard `a`: table `own_s1.note` has no column `page`, its column by [[references]]",
        ]
    );
    assert!(errors[0].hint.ends_with("its columns are id, site_id, writer, state"), "{}", errors[0].hint);
}

fn check(more: &str) -> String {
    format!("[[kinds.\"product:wiki\".checks]]\nname = \"c\"\n{more}\n")
}

#[test]
fn checks_are_statements_or_programs() {
    let sql = check("sql = \"SELECT count(*) FROM page WHERE site_id = $1\"\nexpect = \"0\"");
    let rows = "[[kinds.\"product:wiki\".checks]]\nname = \"d\"\nsql = \"select 1 from {site}\"\nexpect_no_rows = true\n";
    let program = "[[kinds.\"product:wiki\".checks]]\nname = \"e\"\nprogram = [\"smoke\", \"{site}\"]\ntimeout_seconds = 5\n";
    let topology = parse(&format!("{sql}{rows}{program}")).unwrap();
    let wiki = "product:wiki".parse::<Kind>().unwrap();
    let checks = &topology.kinds[&wiki].checks;
    let sql = KindCheckWhat::Sql {
        sql: "SELECT count(*) FROM page WHERE site_id = $1".to_owned(),
        expect: Expected::Value("0".to_owned()),
    };
    assert_eq!(checks[0], KindCheck { name: "c".to_owned(), timeout_seconds: 60, what: sql });
    assert_eq!(checks[1].sql_for(&SiteId::new("s1").unwrap()).unwrap(), "select 1 from s1");
    let program = vec!["smoke".to_owned(), "{site}".to_owned()];
    assert_eq!((checks[2].timeout_seconds, &checks[2].what), (5, &KindCheckWhat::Program { program }));
    // What the kind comes after stays as it is without the checks.
    assert_eq!(topology.kinds[&wiki].after, parse("").unwrap().kinds[&wiki].after);
}

#[test]
fn checks_that_ask_nothing_or_write_are_refused() {
    assert_eq!(
        wrong(&check("")),
        "\
t.toml:26: [kinds.\"product:wiki\".checks] asks nothing, or two things
    write either `sql = \"SELECT ...\"` or `program = [\"PROGRAM\", ...]`"
    );
    assert_eq!(
        wrong(&check("sql = \"DELETE FROM page\"\nexpect_no_rows = true")),
        "\
t.toml:28: the statement of a check begins with `DELETE`
    a check reads: begin with one of `SELECT`, `WITH`, `VALUES`, `TABLE`"
    );
    assert_eq!(
        wrong(&check("sql = \"SELECT 1\"")),
        "\
t.toml:26: [kinds.\"product:wiki\".checks] does not say what its statement must give
    write `expect = \"TEXT\"`, the one value that it gives, or `expect_no_rows = true`"
    );
    assert_eq!(
        wrong(&check("program = []\nexpect = \"0\"")),
        "\
t.toml:26: [kinds.\"product:wiki\".checks] expects something of a program but its exit code
    remove `expect` and `expect_no_rows`: it must end with 0
t.toml:28: [kinds.\"product:wiki\".checks] names no program
    write `program = [\"PROGRAM\", \"ARGUMENT\", ...]`"
    );
    let twice = check("program = [\"a\"]").repeat(2);
    assert_eq!(
        wrong(&twice),
        "\
t.toml:30: there are two checks `c`
    give each a name of its own"
    );
    let search = "[kinds.search]\nmode = \"rebuilt\"\ncommand = [\"reindex\"]\nafter = []\n\
                  [[kinds.search.checks]]\nname = \"a/b\"\nsql = \"SELECT 1\"\nexpect = \"1\"\n";
    assert_eq!(
        wrong(search),
        "\
t.toml:31: `a/b` is not the name of a check
    use letters, digits, `-`, `_` and `.`
t.toml:32: [kinds.search.checks] has `sql`, and its kind has no rows
    write `program = [...]` for a kind that a command brings back"
    );
}
