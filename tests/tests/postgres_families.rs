//! A family: a database of each site, declared once; one of them is released, dropped and brought back.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may say so by a panic")]

use muster_tests::{Tenants, assert_same_dump, now, until};

const TABLES: &str = r#"
[directory]
kind = "metadata"
table = "site"

[tables.site]
kind = "metadata"
tenant = "id"

[tables.issue]
kind = "product:jira"
"#;

/// A directory in a database of its own, and beside it a database of each site, named after it.
struct Family {
    tenants: Tenants,
    core: String,
}

impl Family {
    fn new(sites: &[&str]) -> Self {
        let tenants = Tenants::new();
        let core = tenants.database("family");
        tenants.session(&core).batch_execute("CREATE TABLE site (id text PRIMARY KEY)").unwrap();
        let family = Self { tenants, core };
        for site in sites {
            family.make(site);
            family.session(site)
                .batch_execute(&format!(
                    "CREATE TABLE issue (id serial PRIMARY KEY, parent int REFERENCES issue, title text UNIQUE);
                     INSERT INTO issue (title) SELECT '{site} ' || n FROM generate_series(1, 40) n"
                ))
                .unwrap();
            let sql = format!("INSERT INTO site VALUES ('{site}')");
            family.tenants.session(&family.core).batch_execute(&sql).unwrap();
        }
        family
    }

    fn database(&self, site: &str) -> String {
        format!("{}_{site}", self.core)
    }

    /// An empty database.
    fn make(&self, site: &str) {
        let database = self.database(site);
        let sql = format!("CREATE DATABASE {database} TEMPLATE template0");
        self.tenants.session(&self.core).batch_execute(&sql).unwrap();
        self.tenants.postgres().adopt_database(&database).unwrap();
    }

    fn session(&self, site: &str) -> postgres::Client {
        self.tenants.session(&self.database(site))
    }

    fn dump(&self, site: &str) -> String {
        self.tenants.dump(&self.database(site), &[])
    }

    /// The name of the family's section; slots on the shared server are named after it.
    fn section(&self) -> String {
        format!("{}_own", self.core)
    }

    fn topology(&self, sites: &str, slots_max: u32) {
        let url = |database: &str| self.tenants.postgres().url(database);
        self.tenants.topology(&format!(
            "[shards.{core}]\ndriver = \"postgres\"\nconnection = \"{}\"\nregion = \"eu\"\nkinds = [\"metadata\"]\n\
             [shards.{}]\ndriver = \"postgres\"\nconnection = \"{}\"\nregion = \"eu\"\nkinds = [\"product:*\"]\n\
             slots_max = {slots_max}\n{sites}\n{TABLES}",
            url(&self.core),
            self.section(),
            url(&self.database("{site}")),
            core = self.core,
        ));
    }
}

/// What other tests have on the shared server must not matter.
const MANY: u32 = 1000;

#[test]
fn a_released_database_can_be_dropped_and_comes_back() {
    let mut family = Family::new(&["a", "b", "c"]);
    std::fs::write(family.tenants.path("sites.txt"), "a\nb # of the second cluster\nc\n").unwrap();
    family.topology("sites_file = \"sites.txt\"", MANY);
    family.tenants.muster(&["capture", "init"]).ok();
    family.tenants.muster(&["check"]).ok();
    family.tenants.muster(&["capture", "--once"]).ok();
    family.tenants.follow();
    family.tenants.covered();
    family
        .session("b")
        .batch_execute("UPDATE issue SET parent = 1; DELETE FROM issue WHERE id BETWEEN 10 AND 20")
        .unwrap();
    let (truth, neighbour) = (family.dump("b"), family.dump("a"));

    let from = now();
    let released = family.tenants.muster(&["capture", "release", "site:b"]).ok();
    released.says(&[&format!("{}.b: released: it can be dropped", family.section())]);
    family.tenants.muster(&["capture", "release", "site:b"]).ok().says(&["was released before"]);
    // The others are followed, and nobody waits for this one.
    family.session("a").batch_execute("INSERT INTO issue (title) VALUES ('later')").unwrap();
    let later = family.dump("a");
    assert_ne!(later, neighbour);
    family.tenants.covered();
    family.tenants.muster(&["capture", "status"]).ok().says(&["released"]);
    let mut client = family.tenants.session(&family.core);
    client.batch_execute(&format!("DROP DATABASE {}", family.database("b"))).unwrap();
    family.tenants.muster(&["capture", "release", "site:b"]).ok().says(&["was released before"]);
    family.tenants.stop_following();
    // What the killed processes held is let go of a moment later.
    until("slots are free", || {
        let sql = format!(
            "SELECT NOT EXISTS (SELECT FROM pg_replication_slots WHERE active AND database LIKE '{}%')",
            family.core
        );
        client.query_one(&sql, &[]).unwrap().get(0)
    });
    family.tenants.muster(&["capture", "--once"]).ok().says(&["its database was dropped since"]);
    let detected = family.tenants.muster(&["detect", "--from", &from, "--out", "lost.toml"]).ok();
    detected.says(&["1 sites lost"]);

    family.make("b");
    let shard = format!("{}.b", family.section());
    family.tenants.muster(&["capture", "init", "--shard", &shard]).ok();
    family.tenants.muster(&["capture", "--once"]).ok();
    family.tenants.follow();
    // Its directory row is alive.
    let plan = ["plan", "--incident", "lost.toml", "--overwrite", "site:b", "--out", "lost.json"];
    family.tenants.muster(&plan).ok();
    let apply = family.tenants.muster(&["apply", "lost.json", "--run", "lost"]).ok();
    apply.says(&["1 sites restored, 0 not"]);
    assert_same_dump("b", &family.dump("b"), &truth);
    assert_same_dump("a", &family.dump("a"), &later);
    // It is captured as before.
    family.session("b").batch_execute("DELETE FROM issue WHERE parent IS NULL OR id > 20").unwrap();
    family.tenants.covered();
}

#[test]
fn a_release_is_refused_where_there_is_nothing_to_release_or_a_run_is_open() {
    let family = Family::new(&["a"]);
    family.topology("sites = [\"a\"]", MANY);
    family
        .tenants
        .muster(&["capture", "release", "site:x"])
        .code(2)
        .says(&["site:x has no database of its own"]);
    family.tenants.muster(&["capture", "release", "a"]).code(2).says(&["site:"]);
    family.tenants.muster(&["capture", "release", "site:a"]).ok().says(&["was never captured"]);
    family.tenants.muster(&["capture", "init"]).ok();
    family.tenants.muster(&["capture", "--once"]).ok();
    family
        .session("a")
        .batch_execute(
            "CREATE TABLE IF NOT EXISTS muster.claim (site text, kind text, run text NOT NULL, epoch bigint NOT NULL);
             INSERT INTO muster.claim (site, kind, run, epoch) VALUES ('a', 'product:jira', 'night', 1)",
        )
        .unwrap();
    let refused = family.tenants.muster(&["capture", "release", "site:a"]);
    assert_ne!(refused.code, Some(0), "{refused}");
    refused.says(&["run night is open and holds site:a/product:jira", "muster abandon night"]);
    // Nothing was taken away.
    family.tenants.muster(&["capture", "--once"]).ok();
    family.session("a").batch_execute("DELETE FROM muster.claim").unwrap();
    // What was written since the last poll is captured on the way.
    family.session("a").batch_execute("UPDATE issue SET title = 'last' WHERE id = 7").unwrap();
    family.tenants.muster(&["capture", "release", "site:a"]).ok().says(&["#", "1 changes"]);
}

#[test]
fn check_and_init_tell_of_databases_beside_the_list_and_of_too_many_slots() {
    let family = Family::new(&["a", "d"]);
    family.topology("sites = [\"a\", \"gone\"]", MANY);
    let (section, beside) = (family.section(), family.database("d"));
    let told = format!(
        "database `{beside}` is named like those of family `{section}` and is not covered: add \"d\" to the `sites`"
    );
    let gone = format!("database `{}` of family `{section}` is not there", family.database("gone"));
    let check = family.tenants.muster(&["check"]);
    assert_ne!(check.code, Some(0), "a listed database is not there: {check}");
    check.says(&[&told, &gone]);
    let init = ["capture", "init", "--shard", &section];
    family.tenants.muster(&init).code(3).says(&[&told, &gone]);
    family.topology("sites = [\"a\", \"d\"]", MANY);
    let covered = family.tenants.muster(&["capture", "init"]).ok();
    assert!(!covered.to_string().contains("warning"), "{covered}");
    // Three shards on a server that may have two slots.
    family.topology("sites = [\"a\", \"d\"]", 2);
    let what = ["3 shards of the topology are on server", "`slots_max` permits 2", "raise `slots_max`"];
    family.tenants.muster(&["check"]).code(2).says(&what);
    family.tenants.muster(&["capture", "init"]).code(1).says(&what);
}
