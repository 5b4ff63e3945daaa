//! What the parser accepts, and exactly what it says about what it does not.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests fail by panicking")]

use std::path::{Path, PathBuf};

use muster_types::Kind;
use muster_types::alarm::AlarmName;
use muster_types::topology::{
    AlarmsConfig, DriverConfig, JobConfig, JobWhat, KindMode, Migration, SecretSource, ServeConfig, Topology,
    WebhookAddress, WebhookConfig,
};
use proptest::prelude::*;

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
driver = "sqlite"
path = "a.db"
region = "eu"
kinds = ["metadata", "product:*"]

[tables.site]
kind = "metadata"
tenant = "site_id"

[tables.page]
kind = "product:wiki"
tenant = "site_id"

[tables.note]
kind = "product:wiki"
parent = { column = "page_id", table = "page", key = "id" }
"#;

fn parse(text: &str) -> Result<Topology, String> {
    Topology::parse(text, "t.toml", Path::new("/base")).map_err(|errors| errors.to_string())
}

/// The errors of `GOOD` with each `from` replaced by `to`.
fn wrong(replacements: &[(&str, &str)]) -> String {
    let mut text = GOOD.to_owned();
    for (from, to) in replacements {
        assert!(text.contains(from), "`{from}` is not in the good topology");
        text = text.replacen(from, to, 1);
    }
    parse(&text).expect_err("the topology is wrong")
}

fn names(kinds: Vec<&Kind>) -> Vec<&str> {
    kinds.into_iter().map(Kind::as_str).collect()
}

fn kind(name: &str) -> Kind {
    name.parse().unwrap()
}

#[test]
fn the_example_in_config_is_what_it_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../config/embedded.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let topology = parse(&text).unwrap();
    assert_eq!(
        names(topology.kinds_in_order()),
        [
            "metadata",
            "identity",
            "product:confluence",
            "product:jira-software",
            "app:automation",
            "licence",
            "routing",
            "search",
        ]
    );
    assert_eq!(
        names(topology.kind_depends(&kind("app:automation"))),
        ["metadata", "identity", "product:jira-software"]
    );
    let search = &topology.kinds[&kind("search")];
    assert_eq!(search.mode, KindMode::Rebuilt { command: vec!["reindex".into(), "--wait".into()] });
    assert_eq!(search.after, [kind("product:confluence"), kind("product:jira-software")]);
    let products = &topology.shards["products-eu"];
    assert_eq!(products.driver, DriverConfig::Sqlite { path: PathBuf::from("/base/shards/products-eu.db") });
    assert_eq!(
        products.kinds,
        [kind("product:confluence"), kind("product:jira-software"), kind("app:automation")]
    );
    assert_eq!(topology.repository.embedded, Some(PathBuf::from("/base/repository")));
    // What the comments call defaults are the defaults.
    let bare = parse(GOOD).unwrap();
    assert_eq!((topology.capture, topology.limits), (bare.capture, bare.limits));
    assert_eq!(topology.shards["core-eu"].stage_slots, bare.shards["a"].stage_slots);
    assert_eq!(products.writer_block_milliseconds_max, 1000);
}

#[test]
fn the_example_for_postgres_and_minio_is_understood() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../config/postgres-minio.toml");
    let topology = parse(&std::fs::read_to_string(&path).unwrap()).unwrap();
    assert_eq!(names(topology.kinds_in_order()), ["metadata", "identity", "product:jira-software"]);
    let repository = &topology.repository;
    assert_eq!(repository.endpoint.as_deref(), Some("http://127.0.0.1:9000"));
    assert!(repository.path_style && repository.embedded.is_none());
    let connection = |shard: &str| match &topology.shards[shard].driver {
        DriverConfig::Postgres { connection } => connection.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(connection("core-eu"), "postgresql://muster@127.0.0.1:5432/core_eu");
    assert_eq!(connection("jira-eu"), "service=jira-eu");
}

#[test]
fn the_default_order_is_that_of_provisioning() {
    let mut text =
        GOOD.replace("\"product:*\"]", "\"product:*\", \"app:*\", \"identity\", \"licence\", \"media\"]");
    for (table, kind) in
        [("u", "identity"), ("l", "licence"), ("x", "app:x"), ("o", "product:ops"), ("m", "media")]
    {
        text += &format!("[tables.{table}]\nkind = \"{kind}\"\ntenant = \"site_id\"\n");
    }
    let topology = parse(&text).unwrap();
    assert_eq!(
        names(topology.kinds_in_order()),
        ["metadata", "identity", "media", "product:ops", "product:wiki", "app:x", "licence"]
    );
    assert_eq!(
        names(topology.kind_depends(&kind("app:x"))),
        ["metadata", "identity", "product:ops", "product:wiki"]
    );
    let own = text + "[kinds.\"app:*\"]\nafter = [\"product:ops\"]\nstage_waits = true\n";
    let topology = parse(&own).unwrap();
    let app = &topology.kinds[&kind("app:x")];
    assert_eq!(
        (&app.after[..], app.stage_waits, &app.mode),
        (&[kind("product:ops")][..], true, &KindMode::Restored)
    );
}

#[test]
fn lines_of_declarations_are_kept() {
    let topology = parse(GOOD).unwrap();
    let lines = &topology.source.lines;
    assert_eq!((lines["tables.page"], lines["shards.a"], lines["kinds.product:wiki"]), (24, 14, 25));
    assert_eq!(topology.source.file, "t.toml");
    assert_eq!(parse(GOOD).unwrap(), topology);
    assert_ne!(parse(&GOOD.replace("60", "61")).unwrap().digest, topology.digest);
}

const POSTGRES: (&str, &str) =
    ("driver = \"sqlite\"\npath = \"a.db\"", "driver = \"postgres\"\nconnection = \"postgresql://h/d\"");

/// `GOOD` on PostgreSQL with this migration of `page`.
fn migrating(migration: &str) -> Result<Topology, String> {
    let text = GOOD.replacen(POSTGRES.0, POSTGRES.1, 1);
    parse(&format!("{text}\n[[tables.page.migrations]]\n{migration}"))
}

#[test]
fn migrations_are_declared_by_table() {
    let topology = migrating(
        "name = \"split\"\nhas_columns = [\"title\"]\nlacks_columns = [\"first\"]\n\
         sql = [\"alter  table {staged} rename title to first\", \"UPDATE {staged} SET first = 'x'\"]\n",
    )
    .unwrap();
    let found = &topology.tables["page"].migrations;
    assert_eq!((found.len(), found[0].name.as_str(), found[0].sql.len()), (1, "split", 2));
    assert!(topology.tables["note"].migrations.is_empty());
    let def = |columns: &[&str]| muster_types::table::TableDef {
        name: "page".into(),
        columns: columns
            .iter()
            .map(|name| muster_types::table::ColumnDef {
                name: (*name).into(),
                declared_type: "text".into(),
                not_null: false,
                default_sql: None,
                generated: false,
            })
            .collect(),
        key: vec![],
        unique: vec![],
        foreign_keys: vec![],
        create_sql: vec![],
    };
    assert!(found[0].applies(&def(&["id", "title"])));
    let typed = |text: &str| Migration { has_columns: vec![text.to_owned()], ..found[0].clone() };
    assert!(
        typed("title text").applies(&def(&["title"])) && !typed("title bigint").applies(&def(&["title"]))
    );
    assert!(!found[0].applies(&def(&["id", "first"])) && !found[0].applies(&def(&["title", "first"])));
}

#[test]
fn migrations_that_could_do_harm_or_nothing_are_refused() {
    let good = "name = \"m\"\nhas_columns = [\"a\"]\n";
    for (migration, wanted) in [
        ("name = \"m\"\nsql = [\"UPDATE {staged} SET a = 1\"]".to_owned(), "would apply to every definition"),
        (good.to_owned(), "has no `sql`"),
        (format!("{good}sql = [\"UPDATE page SET a = 1\"]"), "does not begin by naming the staged rows"),
        (format!("{good}sql = [\"COMMIT\"]"), "does not begin by naming the staged rows"),
        (format!("{good}sql = [\"DROP TABLE {{staged}}\"]"), "does not begin by naming the staged rows"),
        (format!("{good}sql = []\nsqk = 1"), "unknown key `sqk`"),
    ] {
        let text = migrating(&migration).unwrap_err();
        assert!(text.contains(wanted), "{wanted} in {text}");
    }
    let statement = "sql = [\"UPDATE {staged} SET a = 1\"]\n";
    let twice = migrating(&format!("{good}{statement}[[tables.page.migrations]]\n{good}{statement}"));
    assert!(twice.unwrap_err().contains("two migrations `m`"));
    let sqlite = parse(&format!("{GOOD}\n[[tables.page.migrations]]\n{good}{statement}")).unwrap_err();
    assert!(sqlite.contains("SQLite shard `a`"), "{sqlite}");
}

#[test]
fn unknown_keys_are_named_and_several_errors_told_at_once() {
    let text = wrong(&[
        ("path = \"a.db\"", "path = \"a.db\"\nregoin = \"eu\""),
        ("rto_seconds = 3600", "rto_seconds = 0"),
        ("fleet = \"example\"", "fleet = \"example\"\nowner = \"me\""),
        ("tenant = \"site_id\"\n\n[tables.note]", "tenant = 7\n\n[tables.note]"),
    ]);
    assert_eq!(
        text,
        "\
t.toml:2: unknown key `owner` in the topology
    the keys here are `capture`, `directory`, `fleet`, `ids`, `jobs`, `kinds`, `licences`, `limits`, `references`, `repository`, `retention`, `sandbox`, `serve`, `shards`, `tables`, `tiers`
t.toml:12: `rto_seconds` in [tiers.standard] is 0
    write a whole number above zero, or leave it out where it has a default
t.toml:18: unknown key `regoin` in [shards.a]
    did you mean `region`? the keys here are `driver`, `kinds`, `path`, `publish_slots`, `region`, `site`, `sites`, `sites_file`, `slots_max`, `stage_bytes_per_second_max`, `stage_slots`, `writer_block_milliseconds_max`
t.toml:28: `tenant` in [tables.page] is an integer, and a string is meant
    write a string"
    );
}

#[test]
fn missing_sections_are_named() {
    assert_eq!(
        parse("").unwrap_err(),
        "\
t.toml:1: the topology has no `fleet`
    add `fleet = \"NAME\"` at the top
t.toml:1: there are no shards
    add a section [shards.NAME] with `driver`, `path`, `region` and `kinds`
t.toml:1: there are no tiers
    add [tiers.standard] with `rto_seconds` and `rpo_seconds`
t.toml:1: there is no [directory]
    add [directory] with `kind` and `table`, the table with one row a site
t.toml:1: there is no [repository]
    add [repository] with `bucket`, and `endpoint` for anything but AWS"
    );
    assert_eq!(
        wrong(&[("[tiers.standard]\nrto_seconds = 3600\nrpo_seconds = 60\n", "")]),
        "\
t.toml:1: there are no tiers
    add [tiers.standard] with `rto_seconds` and `rpo_seconds`"
    );
}

#[test]
fn text_that_is_not_toml_is_told_with_its_line() {
    assert_eq!(
        wrong(&[("bucket = \"muster\"", "bucket = muster")]),
        "\
t.toml:4: not TOML: string values must be quoted, expected literal string
    correct the line; strings are quoted, sections are in brackets"
    );
}

#[test]
fn two_shards_with_one_name_and_a_table_declared_twice() {
    let again = "[shards.a]\ndriver = \"sqlite\"\n\n[tables.page]\nkind = \"metadata\"\n\n[tables.site]";
    assert_eq!(
        wrong(&[("[tables.site]", again), ("[tables.note]", "[tables.page]")]),
        "\
t.toml:20: two shards have one name: [shards.a]
    rename one of them
t.toml:30: a table is declared twice: [tables.page]
    remove one of the two
t.toml:34: a table is declared twice: [tables.page]
    remove one of the two"
    );
}

#[test]
fn shards_need_a_driver_that_exists_and_a_usable_name() {
    assert_eq!(
        wrong(&[("driver = \"sqlite\"\n", "")]),
        "\
t.toml:14: [shards.a] has no `driver`
    add `driver = \"sqlite\"` or `driver = \"postgres\"`"
    );
    assert_eq!(
        wrong(&[("\"sqlite\"", "\"mysql\""), ("[shards.a]", "[shards.\"a/b\"]")]),
        "\
t.toml:14: `a/b` is not a shard name: use 1 to 128 of letters, digits, `-`, `_` and `.`
    give the shard such a name: it becomes part of object keys
t.toml:15: unknown driver `mysql` in [shards.\"a/b\"]
    the drivers are `sqlite` and `postgres`"
    );
    assert_eq!(
        wrong(&[("region = \"eu\"", "publish_slots = 4")]),
        "\
t.toml:14: [shards.a] has no `region`
    add `region = \"...\"`; sites are restored in their own region
t.toml:17: [shards.a] has 4 publish slots, and SQLite has one writer
    write 1, or leave it out"
    );
    let second = "[shards.b]\ndriver = \"sqlite\"\npath = \"a.db\"\nregion = \"eu\"\nkinds = [\"metadata\"]\n\n[tables.site]";
    assert_eq!(
        wrong(&[("[tables.site]", second)]),
        "\
t.toml:20: shards `a` and `b` are the same store
    give one of them another `path`, or remove it"
    );
}

#[test]
fn every_kind_has_a_shard_and_tables() {
    assert_eq!(
        wrong(&[(", \"product:*\"]", "]")]),
        "\
t.toml:25: kind `product:wiki` has no shard
    add it to the `kinds` of a shard, or declare [kinds.\"product:wiki\"] with another mode"
    );
    assert_eq!(
        wrong(&[(", \"product:*\"]", ", \"product:*\", \"identity\", \"app:*\", \"identity\"]")]),
        "\
t.toml:18: kind `identity` has no tables
    declare its tables ([tables.NAME] with `kind = \"identity\"`), or it would come back without rows
t.toml:18: no kind matches `app:*` in shard `a`
    declare tables of such kinds, or remove it from `kinds`
t.toml:18: shard `a` names kind `identity` twice
    remove one of the two"
    );
    assert_eq!(
        wrong(&[("kind = \"product:wiki\"", "kind = \"prodct:wiki\""), ("kind = \"product:wiki\"", "kind = \"wiki\"")]),
        "\
t.toml:25: `prodct:wiki` is not a kind
    a kind is `metadata`, `identity`, `licence`, `media`, `product:NAME`, `app:NAME` or a name of your own, of letters, digits, `-`, `_` and `.`"
    );
    assert_eq!(
        wrong(&[("kind = \"metadata\"\ntenant", "kind = \"metdata\"\ntenant")]),
        "\
t.toml:6: [directory] says that table `site` is of kind `metadata`, and it is of `metdata`
    write `kind = \"metdata\"` in [directory]
t.toml:18: kind `metadata` has no tables
    declare its tables ([tables.NAME] with `kind = \"metadata\"`), or it would come back without rows
t.toml:21: kind `metdata` is not declared
    did you mean `metadata`? add [kinds.metdata] with `after = [...]` if it is a kind of your own"
    );
}

#[test]
fn kinds_cannot_wait_for_each_other() {
    let kinds = "[kinds.metadata]\nafter = [\"search\"]\n\n[kinds.search]\nmode = \"rebuilt\"\ncommand = [\"x\"]\n\
                 after = [\"product:*\"]\n\n[tables.site]";
    assert_eq!(
        wrong(&[("[tables.site]", kinds)]),
        "\
t.toml:20: kinds come after each other in a circle: `metadata` after `search` after `product:wiki` after `metadata`
    remove one of them from the `after` of the one before it"
    );
    assert_eq!(
        wrong(&[("[tables.site]", "[kinds.metadata]\nafter = [\"metadata\"]\n\n[tables.site]")]),
        "\
t.toml:20: kinds come after each other in a circle: `metadata` after `metadata`
    remove one of them from the `after` of the one before it"
    );
}

#[test]
fn entries_of_kinds_say_what_can_be_done() {
    let kinds = "[kinds.search]\nmode = \"rebuilt\"\n\n[kinds.\"product:w*\"]\n\n[kinds.metadata]\ncommand = [\"x\"]\n\n\
                 [kinds.route]\nmode = \"extern\"\n\n[tables.site]";
    assert_eq!(
        wrong(&[("[tables.site]", kinds)]),
        "\
t.toml:20: [kinds.search] is rebuilt and has no `command`
    add `command = [\"PROGRAM\", \"ARGUMENT\", ...]`
t.toml:23: `product:w*` is not a kind
    a kind is `metadata`, `identity`, `licence`, `media`, `product:NAME`, `app:NAME` or a name of your own, of letters, digits, `-`, `_` and `.`; the patterns are `product:*` and `app:*`
t.toml:26: [kinds.metadata] has a `command`, and its rows are restored
    remove the command, or add `mode = \"rebuilt\"` or `mode = \"external\"`
t.toml:29: unknown mode `extern` in [kinds.route]
    the modes are `restored`, `rebuilt`, `external`"
    );
    let kinds = "[kinds.\"product:wiki\"]\nmode = \"external\"\ncommand = [\"x\"]\nafter = [\"identty\", \"metdata\"]\n\n\
                 [tables.site]";
    assert_eq!(
        wrong(&[("[tables.site]", kinds), ("\"product:*\"", "\"product:wiki\"")]),
        "\
t.toml:18: shard `a` hosts kind `product:wiki`, which has no rows
    remove it from `kinds`: it is rebuilt or external
t.toml:23: `after` names kind `identty`, which does not exist
    no table, shard or [kinds] section names it; declare it or remove it from `after`
t.toml:23: `after` names kind `metdata`, which does not exist
    did you mean `metadata`? no table, shard or [kinds] section names it; declare it or remove it from `after`
t.toml:30: table `page` is of kind `product:wiki`, which has no rows
    give the table another kind, or the kind `mode = \"restored\"`
t.toml:34: table `note` is of kind `product:wiki`, which has no rows
    give the table another kind, or the kind `mode = \"restored\"`"
    );
}

#[test]
fn tables_have_exactly_one_owner() {
    let hint = "    write one of `tenant = \"COLUMN\"`, `parent = { column = \"...\", table = \"...\", key = \"...\" }`, `reference = true`";
    assert_eq!(
        wrong(&[
            ("tenant = \"site_id\"", "reference = false"),
            ("tenant = \"site_id\"", ""),
            ("parent = {", "reference = true\nparent = {"),
        ]),
        format!(
            "\
t.toml:22: `reference = false` says nothing about table `site`
{hint}
t.toml:24: nothing says to whom the rows of table `page` belong
{hint}
t.toml:28: table `note` has several owners: `parent`, `reference`
{hint}"
        )
    );
    assert_eq!(
        wrong(&[("column = \"page_id\", ", "")]),
        "\
t.toml:30: [tables.note.parent] has no `column`
    name the column of this table that refers to the parent"
    );
    assert_eq!(
        wrong(&[("[tables.note]", "[tables._muster_note]")]),
        "\
t.toml:28: `_muster_note` is not the name of an application's table
    remove the section; such tables belong to SQLite or to Muster"
    );
}

#[test]
fn owners_resolve_within_the_shard_and_without_circles() {
    assert_eq!(
        wrong(&[("table = \"page\"", "table = \"pge\"")]),
        "\
t.toml:28: table `note` is owned through `pge`, which is not declared
    did you mean `page`? declare [tables.pge] as well, or name another parent"
    );
    assert_eq!(
        wrong(&[("tenant = \"site_id\"\n\n[tables.note]", "reference = true\n\n[tables.note]")]),
        "\
t.toml:28: table `note` is owned through `page`, which is a reference table and has no owner
    name an owned parent, a `tenant` column, or `reference = true`"
    );
    assert_eq!(
        wrong(&[(
            "tenant = \"site_id\"\n\n[tables.note]",
            "parent = { column = \"note_id\", table = \"note\", key = \"id\" }\n\n[tables.note]"
        )]),
        "\
t.toml:24: tables are owned through each other in a circle: `note` through `page` through `note`
    give one of them a `tenant` column"
    );
    let second = "[shards.b]\ndriver = \"sqlite\"\npath = \"b.db\"\nregion = \"eu\"\nkinds = [\"metadata\"]\n\n[tables.site]";
    assert_eq!(
        wrong(&[
            ("[tables.site]", second),
            ("\"metadata\", \"product:*\"]", "\"product:*\"]"),
            ("table = \"page\"", "table = \"site\""),
        ]),
        "\
t.toml:34: table `note` is owned through `site` of kind `metadata`, which shard `a` does not host
    own it through a table of its own shard, or add `metadata` to the kinds of shard `a`"
    );
}

#[test]
fn directory_and_licences_are_tables_of_sites() {
    let licences =
        "[licences]\nkind = \"product:wiki\"\ntable = \"notes\"\nproduct_column = \"p\"\n\n[tiers.standard]";
    assert_eq!(
        wrong(&[("table = \"site\"", "table = \"note\""), ("[tiers.standard]", licences)]),
        "\
t.toml:6: [directory] names table `note`, which has no tenant column
    name the table with one row a site, whose `tenant` column is the site's id
t.toml:6: [directory] says that table `note` is of kind `metadata`, and it is of `product:wiki`
    write `kind = \"product:wiki\"` in [directory]
t.toml:10: [licences] names table `notes`, which is not declared
    did you mean `note`? declare [tables.notes], or name another table"
    );
    let licences = "[licences]\nkind = \"product:wiki\"\ntable = \"page\"\n\n[tiers.standard]";
    assert_eq!(
        wrong(&[
            ("[tiers.standard]", licences),
            ("table = \"site\"", "table = \"\"\ncolumns = { nam = \"name\" }")
        ]),
        "\
t.toml:8: `table` in [directory] is empty
    add `table = \"...\"`, the table with one row a site
t.toml:9: unknown key `nam` in [directory.columns]
    did you mean `name`? the keys here are `customer`, `internal`, `name`, `region`, `tier`, `users`
t.toml:11: [licences] has no `product_column`
    add `product_column = \"...\"`, the column that names the kind"
    );
}

#[test]
fn types_of_ids_are_rows_of_sites() {
    let with = |ids: &str| format!("{ids}\n\n[tiers.standard]");
    let good =
        "[ids.app]\ntable = \"page\"\ncolumn = \"id\"\nkind_column = \"kind\"\nkinds = [\"product:*\"]";
    let topology = parse(&GOOD.replace("[tiers.standard]", &with(good))).unwrap();
    let app = &topology.ids["app"];
    assert_eq!((app.table.as_str(), app.tenant_column.as_str()), ("page", "site_id"));
    assert_eq!(names(app.kinds.iter().collect()), ["product:wiki"]);
    assert_eq!(
        wrong(&[("[tiers.standard]", &with(&good.replace("page", "note")))]),
        "\
t.toml:11: [ids.app] names table `note`, which has no tenant column
    name a table whose rows have a `tenant` column, so that the site of an id is known"
    );
    assert_eq!(
        wrong(&[("[tiers.standard]", &with(&good.replace("page", "pge")))]),
        "\
t.toml:11: [ids.app] names table `pge`, which is not declared
    did you mean `page`? declare it, or name another table"
    );
    assert_eq!(
        wrong(&[("[tiers.standard]", &with("[ids.site]\ntable = \"page\"\ncolumn = \"id\""))]),
        "\
t.toml:10: [ids.site] has no `kind_column`
    add `kind_column = \"...\"`, which names the kind of the store that the id stands for
t.toml:10: [ids.site] has no kinds
    add `kinds = [...]`, such as \"app:*\": rows of other kinds are not of this type
t.toml:10: the ids of sites are declared twice
    remove the section: a site's id is that of its row in the [directory]"
    );
}

#[test]
fn jobs_say_what_they_do_and_when() {
    let with = |text: &str| format!("{text}\n\n[tiers.standard]");
    let good = "[serve]\nlisten = \"127.0.0.1:9320\"\n\n[jobs.nightly]\nwhat = \"drill\"\nfile = \"d.toml\"\n\
                cron = \"30 2 * * *\"\nzone = \"Europe/Berlin\"\njitter_seconds = 600\n\n\
                [jobs.check]\nwhat = \"check\"\ncron = \"0 * * * *\"\nshare_percent = 4\n\n\
                [jobs.fold]\nwhat = \"fold\"\ncron = \"0 1 * * *\"\nreal_snapshot_every_days = 3";
    let topology = parse(&GOOD.replace("[tiers.standard]", &with(good))).unwrap();
    assert_eq!(
        topology.serve,
        ServeConfig { listen: "127.0.0.1:9320".parse().ok(), ..ServeConfig::default() }
    );
    let nightly = JobConfig {
        what: JobWhat::Drill { file: "/base/d.toml".into() },
        cron: "30 2 * * *".into(),
        zone: "Europe/Berlin".into(),
        jitter_seconds: 600,
        overdue_seconds: 25_200,
    };
    assert_eq!(topology.jobs["nightly"], nightly);
    assert_eq!(
        (topology.jobs["check"].what.clone(), topology.jobs["check"].zone.as_str()),
        (JobWhat::Check { share_percent: 4 }, "UTC")
    );
    assert_eq!(topology.jobs["fold"].what, JobWhat::Fold { real_snapshot_every_days: 3 });
    let bad = "[serve]\nlisten = \"here\"\n\n[jobs.\"a b\"]\nwhat = \"sleep\"\ncron = \"* * * * *\"\n\n[jobs.drill]\nwhat = \"drill\"";
    assert_eq!(
        wrong(&[("[tiers.standard]", &with(bad))]),
        "\
t.toml:11: `here` in [serve] is no address to listen on
    write ADDRESS:PORT, such as \"127.0.0.1:9320\"
t.toml:13: `a b` is no name of a job
    use 1 to 64 letters, digits, `-` and `_`: it becomes part of object keys
t.toml:14: `sleep` is nothing that a job does
    write `snapshot`, `fold`, `compact`, `prune`, `check` or `drill`
t.toml:17: [jobs.drill] has no `cron`
    add `cron = \"MINUTE HOUR DAY MONTH WEEKDAY\"`, e.g. \"30 2 * * *\"
t.toml:17: [jobs.drill] has no `file`
    add `file = \"...\"`, the drill file"
    );
}

#[test]
fn webhooks_say_whom_to_tell_of_what() {
    let with = |text: &str| format!("{text}\n\n[tiers.standard]");
    let good = "[serve.alarms]\nevery_seconds = 5\ncapture_lag_seconds_max = 60\n\n\
                [serve.webhooks.pager]\nurl = \"https://pager.example/hook/abc\"\nevents = [\"sites-lost\", \"drill-slower\"]\n\
                header = \"X-Token\"\nsecret_file = \"pager.secret\"\n\n[serve.webhooks.all]\nurl = \"http://[::1]:9/\"\n\n\
                [serve.webhooks.chat]\nurl_env = \"CHAT_URL\"";
    let serve = parse(&GOOD.replace("[tiers.standard]", &with(good))).unwrap().serve;
    let alarms = AlarmsConfig { every_seconds: 5, capture_lag_seconds_max: 60, drill_percent_max: 200 };
    assert_eq!(serve.alarms, alarms);
    let pager = WebhookConfig {
        address: WebhookAddress::Plain("https://pager.example/hook/abc".into()),
        events: vec![AlarmName::SitesLost, AlarmName::DrillSlower],
        header: "x-token".into(),
        secret: Some(SecretSource::File("/base/pager.secret".into())),
    };
    assert_eq!(serve.webhooks["pager"], pager);
    let all = &serve.webhooks["all"];
    assert_eq!((all.events.len(), all.header.as_str(), &all.secret), (0, "authorization", &None));
    let chat = WebhookAddress::Secret(SecretSource::Environment("CHAT_URL".into()));
    assert!(serve.webhooks["chat"].address == chat);
    assert!(!format!("{serve:?}").contains("abc"), "an address may hold a secret");
    let bad = "[serve.webhooks.a]\nurl = \"ftp://x\"\nevents = [\"fire\"]\nsecret_env = \"A\"\nsecret_file = \"b\"\n\n\
               [serve.webhooks.b]\nsecret = \"hush\"\n\n\
               [serve.webhooks.c]\nurl = \"https://x\"\nurl_file = \"c.url\"";
    assert_eq!(
        wrong(&[("[tiers.standard]", &with(bad))]),
        "\
t.toml:11: `url` in [serve.webhooks.a] is no address of a web server
    write https://HOST/PATH
t.toml:12: `fire` is no alarm, in [serve.webhooks.a]
    write `sites-lost`, `capture-gap`, `capture-lag`, `site-failed`, `drill-failed`, `drill-slower`, `damage-found`, `job-overdue`
t.toml:14: [serve.webhooks.a] has `secret_env` and `secret_file`
    keep one of `secret_env` and `secret_file`
t.toml:16: [serve.webhooks.b] has no `url`
    add `url = \"https://...\"`, where alarms are posted, or `url_env` or `url_file` if it is a secret
t.toml:17: unknown key `secret` in [serve.webhooks.b]
    the keys here are `events`, `header`, `secret_env`, `secret_file`, `url`, `url_env`, `url_file`
t.toml:21: [serve.webhooks.c] has two addresses
    keep one of `url`, `url_env` and `url_file`"
    );
}

#[test]
fn the_embedded_repository_is_reached_over_loopback() {
    assert_eq!(
        wrong(&[(
            "bucket = \"muster\"",
            "bucket = \"Muster\"\nembedded = \"s3\"\nprefix = \"/a\"\npath_style = false"
        )]),
        "\
t.toml:4: `Muster` is not a bucket name
    use 3 to 63 lower-case letters, digits, `-` and `.`, beginning with a letter or digit
t.toml:5: the embedded S3 server needs a loopback endpoint, and the endpoint is none
    write `endpoint = \"http://127.0.0.1:9310\"` or another port
t.toml:6: the prefix `/a` begins or ends with `/`
    remove the slash
t.toml:7: the embedded S3 server has buckets in the path only
    write `path_style = true`, or leave it out"
    );
    assert_eq!(
        wrong(&[(
            "bucket = \"muster\"",
            "bucket = \"muster\"\nembedded = \"s3\"\nendpoint = \"http://10.0.0.1:9\""
        )]),
        "\
t.toml:6: the embedded S3 server needs a loopback endpoint, and the endpoint is `http://10.0.0.1:9`
    write `endpoint = \"http://127.0.0.1:9310\"` or another port"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    /// Any text gives a topology or errors, each with the file and a line that the text has.
    #[test]
    fn no_text_makes_the_parser_panic(text in mutilated()) {
        let lines = text.bytes().filter(|byte| *byte == b'\n').count() as u64 + 1;
        match Topology::parse(&text, "t.toml", Path::new("/base")) {
            Ok(topology) => prop_assert_eq!(topology.kinds_in_order().len(), topology.kinds.len()),
            Err(errors) => {
                prop_assert!(!errors.0.is_empty());
                for error in &errors.0 {
                    prop_assert!(error.line.is_some_and(|line| (1..=lines).contains(&line)), "{}", error);
                    prop_assert!(!error.what.is_empty() && !error.hint.is_empty(), "{:?}", error);
                }
            }
        }
    }
}

/// The good topology with pieces removed, doubled, exchanged or replaced by noise; and noise alone.
fn mutilated() -> impl Strategy<Value = String> {
    let noise = prop_oneof![
        any::<String>(),
        Just("\"".to_owned()),
        Just("[".to_owned()),
        Just("= ".to_owned()),
        Just("\n[shards.a]\n".to_owned()),
        Just("0".to_owned()),
        Just("\"product:*\"".to_owned()),
        Just("{}".to_owned()),
        Just("é".to_owned()),
    ];
    let edits =
        prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), noise), 0..6);
    (edits, any::<String>(), 0..10_u8).prop_map(|(edits, other, choice)| {
        if choice == 0 {
            return other;
        }
        let mut tokens: Vec<String> =
            GOOD.split_inclusive([' ', '\n', '.', ']']).map(str::to_owned).collect();
        for (from, to, noise) in edits {
            let (from, to) = (from.index(tokens.len()), to.index(tokens.len()));
            match from % 4 {
                0 => tokens[from] = noise,
                1 => tokens.swap(from, to),
                2 => tokens[from] = tokens[to].clone(),
                _ => tokens[from].clear(),
            }
        }
        tokens.concat()
    })
}

#[test]
fn bounds_and_harmless_triggers_are_declared() {
    let text = GOOD.replacen(POSTGRES.0, &format!("{}\nstage_bytes_per_second_max = 5000", POSTGRES.1), 1);
    let text = text.replacen("[tables.page]", "[tables.page]\nharmless_triggers = [\"loud\"]", 1);
    let topology = parse(&text).unwrap();
    assert_eq!(topology.shards["a"].stage_bytes_per_second_max, Some(5000));
    assert_eq!(topology.tables["page"].harmless_triggers, ["loud"]);
    assert!(topology.tables["note"].harmless_triggers.is_empty());
    let zero = text.replacen("= 5000", "= 0", 1);
    assert!(parse(&zero).unwrap_err().contains("stage_bytes_per_second_max"));
}
