//! A small incident where each site has a schema of its own, end to end.

#![allow(clippy::print_stderr, reason = "cargo shows it with a failure")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may say so by a panic")]

#[path = "../../crates/muster-stores/tests/type_table/mod.rs"]
mod type_table;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use muster_tests::{Tenants, assert_same_dump, now, until};
use muster_types::report::{Report, RunStatus};
use postgres::Client;

const TABLES: &str = r#"
[directory]
kind = "metadata"
table = "site"
columns = { name = "name" }

[tables.site]
kind = "metadata"
tenant = "id"

[tables.label]
kind = "product:jira"
reference = true

[tables."tenant_{site}.account"]
kind = "identity"

[tables."tenant_{site}.project"]
kind = "product:jira"

[tables."tenant_{site}.issue"]
kind = "product:jira"

[tables."tenant_{site}.note"]
kind = "app:notes"
"#;

/// A site with everything of its own in one schema; the app's table is empty.
fn tenant(client: &mut Client, site: &str) {
    let sql = format!(
        "CREATE SCHEMA \"tenant_{site}\"; SET search_path = \"tenant_{site}\";
         CREATE TYPE state AS ENUM ('open', 'done');
         CREATE TABLE account (id int PRIMARY KEY, name text NOT NULL UNIQUE);
         CREATE TABLE project (id serial PRIMARY KEY, name text, lead int REFERENCES account);
         CREATE TABLE issue (id serial PRIMARY KEY, project int NOT NULL REFERENCES project, state state,
             label int REFERENCES public.label, assignee int REFERENCES account, title text);
         CREATE INDEX issue_title ON issue (lower(title));
         CREATE TABLE note (id int PRIMARY KEY, text text);
         INSERT INTO public.site VALUES ('{site}', 'Site {site}');
         INSERT INTO account SELECT n, '{site}-' || n FROM generate_series(1, 7) n;
         INSERT INTO project (name, lead) SELECT 'p' || n, n FROM generate_series(1, 3) n;
         INSERT INTO issue (project, state, label, assignee, title)
             SELECT 1 + n % 3, 'open', 1 + n % 2, 1 + n % 7, '{site} ' || n FROM generate_series(1, 60) n;
         ALTER TABLE account REPLICA IDENTITY FULL; ALTER TABLE project REPLICA IDENTITY FULL;
         ALTER TABLE issue REPLICA IDENTITY FULL; ALTER TABLE note REPLICA IDENTITY FULL;
         SET search_path = public"
    );
    client.batch_execute(&sql).unwrap();
}

/// Writes to the sites' schemas until it is stopped.
struct Writer {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    fn start(mut client: Client, sites: &[&str]) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let sites: Vec<String> = sites.iter().map(|site| (*site).to_owned()).collect();
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&done));
        let thread = std::thread::spawn(move || {
            for number in 0.. {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let site = &sites[number % sites.len()];
                let sql = format!(
                    "INSERT INTO \"tenant_{site}\".issue (project, title, state) VALUES (1, 'written {number}', 'open');
                     UPDATE \"tenant_{site}\".issue SET state = 'done' WHERE id = {};
                     DELETE FROM \"tenant_{site}\".issue WHERE id = {}",
                    1 + number % 60,
                    1 + (number * 7) % 200,
                );
                client.batch_execute(&sql).unwrap();
                count.fetch_add(1, Ordering::SeqCst);
            }
        });
        Self { stop, done, thread: Some(thread) }
    }

    fn committed(&self) -> u64 {
        self.done.load(Ordering::SeqCst)
    }

    fn stop(mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.take().unwrap().join().unwrap();
    }
}

fn shard(tenants: &Tenants, database: &str, kinds: &str) -> String {
    format!(
        "[shards.{database}]\ndriver = \"postgres\"\nconnection = \"{}\"\nregion = \"eu\"\nkinds = [{kinds}]\n{TABLES}",
        tenants.postgres().url(database)
    )
}

fn report(tenants: &Tenants, run: &str) -> Report {
    serde_json::from_value(tenants.muster(&["report", run, "--json"]).json()).unwrap()
}

#[test]
fn dropped_schemas_come_back_beside_writing_neighbours() {
    let mut tenants = Tenants::new();
    let database = tenants.database("tenancy");
    let mut client = tenants.session(&database);
    client
        .batch_execute(
            "CREATE TABLE site (id text PRIMARY KEY, name text); CREATE TABLE label (id int PRIMARY KEY, name text);
             INSERT INTO label VALUES (1, 'bug'), (2, 'task');
             ALTER TABLE site REPLICA IDENTITY FULL; ALTER TABLE label REPLICA IDENTITY FULL",
        )
        .unwrap();
    let (victims, neighbours) = (["a", "b-2", "c"], ["x", "y"]);
    for site in victims.iter().chain(&neighbours) {
        tenant(&mut client, site);
    }
    let kinds = "\"metadata\", \"identity\", \"product:jira\", \"app:notes\"";
    tenants.topology(&shard(&tenants, &database, kinds));
    tenants.muster(&["capture", "init"]).ok();
    tenants.muster(&["check"]).ok();
    tenants.muster(&["capture", "--once"]).ok();
    tenants.follow();
    let writer = Writer::start(tenants.session(&database), &["a", "b-2", "c", "x", "y"]);
    until("writers at work", || writer.committed() >= 100);
    writer.stop();
    // A site that came after capture began.
    tenant(&mut client, "late");
    tenants.covered();
    let writer = Writer::start(tenants.session(&database), &neighbours);
    let options = |site: &str| format!("--schema=tenant_{site}");
    let lost = ["a", "b-2", "c", "late"];
    let truth: BTreeMap<&str, String> =
        lost.iter().map(|site| (*site, tenants.dump(&database, &[&options(site)]))).collect();
    let from = now();
    for site in ["a", "b-2", "late"] {
        client
            .batch_execute(&format!(
                "DROP SCHEMA \"tenant_{site}\" CASCADE; DELETE FROM site WHERE id = '{site}'"
            ))
            .unwrap();
    }
    // The tables stay.
    client
        .batch_execute(
            "TRUNCATE tenant_c.issue, tenant_c.project, tenant_c.account CASCADE; DELETE FROM site WHERE id = 'c'",
        )
        .unwrap();
    tenants.covered();

    let detected = tenants.muster(&["detect", "--from", &from, "--out", "incident.toml"]).ok();
    detected.says(&["4 sites lost"]);
    let plan = ["plan", "--incident", "incident.toml", "--proof", "full", "--out", "plan.json"];
    let plan = tenants.muster(&plan).ok();
    plan.says(&["4 sites", "table `tenant_a.issue` is gone: the publish makes it"]);
    tenants.muster(&["apply", "plan.json", "--run", "first"]).ok().says(&["4 sites restored, 0 not"]);
    writer.stop();
    for (site, truth) in &truth {
        assert_same_dump(site, &tenants.dump(&database, &[&options(site)]), truth);
    }
    assert_eq!(client.query_one("SELECT count(*) FROM site", &[]).unwrap().get::<_, i64>(0), 6);
    let report = report(&tenants, "first");
    assert_eq!(report.status, RunStatus::Restored);
    assert_eq!((report.totals.sites_restored, report.proof.sites_proven), (4, 4), "{report:?}");
    assert!(!report.proof.shards.is_empty());
    for (shard, proof) in &report.proof.shards {
        assert!(proof.holds && proof.error.is_none(), "neighbours of {shard}: {proof:?}");
    }
    // Capture goes on with the new tables: what is written now comes back, too.
    client.batch_execute("UPDATE tenant_a.issue SET title = 'after' WHERE id = 60").unwrap();
    tenants.covered();
    let truth = tenants.dump(&database, &[&options("a")]);
    let from = now();
    client.batch_execute("DROP SCHEMA tenant_a CASCADE").unwrap();
    tenants.covered();
    tenants.muster(&["detect", "--from", &from, "--out", "again.toml"]).ok().says(&["1 sites lost"]);
    // Its directory row is alive.
    let plan = ["plan", "--incident", "again.toml", "--overwrite", "site:a", "--out", "again.json"];
    tenants.muster(&plan).ok();
    tenants.muster(&["apply", "again.json", "--run", "again"]).ok().says(&["1 sites restored, 0 not"]);
    assert_same_dump("a", &tenants.dump(&database, &[&options("a")]), &truth);
}

/// All values of the table of types, as bytes and as text.
fn bytes(client: &mut Client, schema: &str) -> BTreeMap<&'static str, String> {
    let queries = type_table::bytes_sql(schema);
    queries.into_iter().map(|(of, sql)| (of, client.query_one(&sql, &[]).unwrap().get(0))).collect()
}

const TYPE_TABLES: &str = r#"
[directory]
kind = "metadata"
table = "site"

[tables.site]
kind = "metadata"
tenant = "id"

[tables."tenant_{site}.v"]
kind = "product:types"
"#;

#[test]
fn every_type_comes_back_bit_for_bit_with_its_schema() {
    let mut tenants = Tenants::new();
    let database = tenants.database("types");
    let mut client = tenants.session(&database);
    client.batch_execute("CREATE TABLE site (id text PRIMARY KEY)").unwrap();
    for site in ["a", "b"] {
        client
            .batch_execute(&format!("INSERT INTO site VALUES ('{site}'); CREATE SCHEMA tenant_{site}"))
            .unwrap();
        client.batch_execute(&type_table::fill_sql(&format!("tenant_{site}"), site)).unwrap();
    }
    let shard = format!(
        "[shards.{database}]\ndriver = \"postgres\"\nconnection = \"{}\"\nregion = \"eu\"\n\
         kinds = [\"metadata\", \"product:types\"]\n{TYPE_TABLES}",
        tenants.postgres().url(&database)
    );
    tenants.topology(&shard);
    tenants.muster(&["capture", "init"]).ok();
    tenants.muster(&["capture", "--once"]).ok();
    // Half of the values come from the log.
    client.batch_execute("UPDATE tenant_a.v SET site = 'changed' WHERE id % 2 = 0").unwrap();
    tenants.muster(&["capture", "--once"]).ok();
    let (truth, dump) = (bytes(&mut client, "tenant_a"), tenants.dump(&database, &["--schema=tenant_a"]));
    let from = now();
    client.batch_execute("DROP SCHEMA tenant_a CASCADE; DELETE FROM site WHERE id = 'a'").unwrap();
    tenants.muster(&["capture", "--once"]).ok();
    tenants.follow();
    restore(&tenants, &from, 1);
    for (of, found) in bytes(&mut client, "tenant_a") {
        assert_eq!(found, truth[of], "{of}");
    }
    assert_same_dump("a", &tenants.dump(&database, &["--schema=tenant_a"]), &dump);
}

/// Detects what was lost since `from`, plans it and restores it, with capture polling beside.
fn restore(tenants: &Tenants, from: &str, sites: usize) {
    let lost = format!("{sites} sites lost");
    tenants.muster(&["detect", "--from", from, "--out", "lost.toml"]).ok().says(&[&lost]);
    tenants.muster(&["plan", "--incident", "lost.toml", "--out", "lost.json"]).ok();
    let restored = format!("{sites} sites restored, 0 not");
    tenants.muster(&["apply", "lost.json", "--run", "lost"]).ok().says(&[&restored]);
}

/// For what hundreds cost, of which `docs/postgresql.md` has the figures:
/// `SCHEMAS=300 cargo test -p muster-tests --test postgres_tenancy many_schemas -- --nocapture`
#[test]
fn a_tenth_of_many_schemas_comes_back() {
    let sites: usize = std::env::var("SCHEMAS").map_or(40, |text| text.parse().unwrap());
    let lost = sites / 10;
    let mut tenants = Tenants::new();
    let database = tenants.database("hundreds");
    let mut client = tenants.session(&database);
    client.batch_execute("CREATE TABLE site (id text PRIMARY KEY)").unwrap();
    let schema = |number: usize| {
        let tables = (0..10).map(|table| {
            format!(
                "CREATE TABLE tenant_s{number}.t{table} (id serial PRIMARY KEY, a text, b int, c timestamptz, d jsonb, \
                 e numeric, f text, g text, h boolean); CREATE INDEX ON tenant_s{number}.t{table} (a); \
                 INSERT INTO tenant_s{number}.t{table} (a, b) SELECT 'x' || n, n FROM generate_series(1, 100) n;"
            )
        });
        let tables: String = tables.collect();
        format!("CREATE SCHEMA tenant_s{number}; INSERT INTO site VALUES ('s{number}'); {tables}")
    };
    for number in 0..sites {
        client.batch_execute(&schema(number)).unwrap();
    }
    let tables: String = (0..10)
        .map(|table| format!("[tables.\"tenant_{{site}}.t{table}\"]\nkind = \"product:jira\"\n"))
        .collect();
    tenants.topology(&format!(
        "[shards.{database}]\ndriver = \"postgres\"\nconnection = \"{}\"\nregion = \"eu\"\n\
         kinds = [\"metadata\", \"product:*\"]\n[directory]\nkind = \"metadata\"\ntable = \"site\"\n\
         [tables.site]\nkind = \"metadata\"\ntenant = \"id\"\n{tables}",
        tenants.postgres().url(&database)
    ));
    tenants.muster(&["capture", "init"]).ok();
    tenants.muster(&["capture", "--once"]).ok();
    for object in tenants.objects() {
        eprintln!("{object}");
    }
    tenants.muster(&["capture", "--once"]).ok();
    client.batch_execute("UPDATE tenant_s7.t3 SET b = 0").unwrap();
    tenants.muster(&["capture", "--once"]).ok();
    client.batch_execute(&schema(sites)).unwrap();
    tenants.muster(&["capture", "--once"]).ok();
    let dump = tenants.dump(&database, &["--schema=tenant_s3"]);
    let from = now();
    for number in 0..lost {
        let sql = format!("DROP SCHEMA tenant_s{number} CASCADE; DELETE FROM site WHERE id = 's{number}'");
        client.batch_execute(&sql).unwrap();
    }
    tenants.muster(&["capture", "--once"]).ok();
    tenants.follow();
    restore(&tenants, &from, lost);
    assert_same_dump("s3", &tenants.dump(&database, &["--schema=tenant_s3"]), &dump);
    for object in tenants.objects() {
        eprintln!("{object}");
    }
}

const DATABASE_TABLES: &str = r#"
[directory]
kind = "metadata"
table = "site"

[tables.site]
kind = "metadata"
tenant = "id"

[tables.issue]
kind = "product:jira"

[tables.v]
kind = "product:jira"
"#;

#[test]
fn a_dropped_database_of_a_site_comes_back_bit_for_bit() {
    let mut tenants = Tenants::new();
    let (core, ours, other) = (tenants.database("core"), tenants.database("own"), tenants.database("own"));
    let mut client = tenants.session(&core);
    client.batch_execute("CREATE TABLE site (id text PRIMARY KEY)").unwrap();
    let mut topology = String::new();
    for (database, site) in [(&ours, "a"), (&other, "b")] {
        client.batch_execute(&format!("INSERT INTO site VALUES ('{site}')")).unwrap();
        let mut own = tenants.session(database);
        own.batch_execute(
            "CREATE TABLE issue (id serial PRIMARY KEY, parent int REFERENCES issue, title text UNIQUE);
             INSERT INTO issue (title) SELECT 'i' || n FROM generate_series(1, 40) n",
        )
        .unwrap();
        own.batch_execute(&type_table::fill_sql("public", site)).unwrap();
        topology.push_str(&format!(
            "[shards.{database}]\ndriver = \"postgres\"\nconnection = \"{}\"\nregion = \"eu\"\n\
             kinds = [\"product:jira\"]\nsite = \"{site}\"\n",
            tenants.postgres().url(database)
        ));
    }
    tenants.topology(&format!(
        "{topology}[shards.{core}]\ndriver = \"postgres\"\nconnection = \"{}\"\nregion = \"eu\"\n\
         kinds = [\"metadata\"]\n{DATABASE_TABLES}",
        tenants.postgres().url(&core)
    ));
    tenants.muster(&["capture", "init"]).ok();
    tenants.muster(&["check"]).ok();
    tenants.muster(&["capture", "--once"]).ok();
    tenants
        .session(&ours)
        .batch_execute("UPDATE v SET site = 'log' WHERE id % 2 = 0; UPDATE issue SET parent = 1")
        .unwrap();
    tenants.muster(&["capture", "--once"]).ok();
    let (truth, dump) = (bytes(&mut tenants.session(&ours), "public"), tenants.dump(&ours, &[]));
    let neighbour = tenants.dump(&other, &[]);

    let from = now();
    client.batch_execute(&format!("DROP DATABASE \"{ours}\" WITH (FORCE)")).unwrap();
    // The others are captured, and it is told.
    let made = format!("muster capture init --shard {ours}");
    tenants.muster(&["capture", "--once"]).code(3).says(&["does not exist", &made]);
    tenants.muster(&["detect", "--from", &from, "--out", "lost.toml"]).ok().says(&["1 sites lost"]);

    let plan = ["plan", "--incident", "lost.toml", "--overwrite", "site:a", "--out", "lost.json"];
    let early = tenants.muster(&plan);
    assert_ne!(early.code, Some(0), "{early}");
    early.says(&["does not exist"]);
    client.batch_execute(&format!("CREATE DATABASE \"{ours}\"")).unwrap();
    tenants.muster(&["capture", "init", "--shard", &ours]).ok();
    tenants.muster(&["capture", "--once"]).ok();
    tenants.follow();
    // Its directory row is alive.
    tenants.muster(&plan).ok();
    let apply = tenants.muster(&["apply", "lost.json", "--run", "lost"]).ok();
    apply.says(&["1 sites restored, 0 not"]);
    for (of, found) in bytes(&mut tenants.session(&ours), "public") {
        assert_eq!(found, truth[of], "{of}");
    }
    assert_same_dump("a", &tenants.dump(&ours, &[]), &dump);
    assert_same_dump("b", &tenants.dump(&other, &[]), &neighbour);
    assert_eq!(
        client
            .query_one("SELECT string_agg(id, ',' ORDER BY id) FROM site", &[])
            .unwrap()
            .get::<_, String>(0),
        "a,b"
    );
}
