//! A whole shard is lost, and all its sites come back in a new, empty one: compared whole by the oracle, and by SQL.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may say so by a panic")]

use std::fmt::Write as _;
use std::path::Path;

use muster_demo::{DeletionLog, Reached, WriterConfig};
use muster_services::{Minio, Postgres};
use muster_tests::{
    Engine, Folder, Moment, Size, Tenants, World, assert_same_dump, connect, now, query, seed, until,
};

const SIZE: Size = Size { sites: 16, rows_per_site: 80 };
const WRITERS: WriterConfig = WriterConfig { transactions_per_second: 150, threads: 2 };

/// Adds a shard that is declared like `old`, under another name and in another place.
fn declare(topology: &Path, old: &str, new: &str, place: &str) {
    let text = std::fs::read_to_string(topology).unwrap();
    let begin = text.find(&format!("[shards.\"{old}\"]")).expect("the old shard");
    let section = text[begin..].split("\n\n").next().unwrap();
    let mut copy = format!("\n[shards.\"{new}\"]\n");
    for line in section.lines().skip(1) {
        let line = if line.starts_with("path") || line.starts_with("connection") { place } else { line };
        writeln!(copy, "{line}").unwrap();
    }
    std::fs::write(topology, format!("{text}{copy}")).unwrap();
}

#[test]
fn a_lost_file_comes_back_in_a_new_one() {
    let world = World::captured(SIZE, seed(31));
    let writers = world.fleet.start_writers(WRITERS);
    until("writers at work", || writers.committed() >= 150);
    writers.stop().unwrap();
    world.capture_once();
    let at = now();
    let old = world.fleet.shards.iter().find(|shard| shard.name.ends_with("-jira")).unwrap();
    let path = old.path.clone();
    for suffix in ["", "-wal", "-shm"] {
        let file = format!("{}{suffix}", path.display());
        if Path::new(&file).exists() {
            std::fs::remove_file(file).unwrap();
        }
    }
    let new = format!("{}-again", old.name);
    let place = world.path("again.db");
    declare(&world.path("muster.toml"), &old.name, &new, &format!("path = \"{}\"", place.display()));

    let to = format!("{}={new}", old.name);
    let args = ["plan", "--shard", &old.name, "--only-shard", &old.name, "--to", &at, "--to-shard", &to];
    world.muster(&args).ok().says(&["shard-provisioned", "next: muster apply"]);
    // A crash at any point leaves a run that goes on: the shard is given its definitions once.
    let mut engine = Engine::start(&world, "moved", &["apply", "plan.json", "--run", "moved"]);
    engine.wait_for(Moment::Journal(2));
    engine.kill();
    world.muster(&["resume", "moved"]).ok().says(&[", 0 not"]);
    world
        .muster(&["apply", "plan.json", "--run", "twice"])
        .code(4)
        .says(&["was empty when the plan was made"]);
    // A living shard is refused as it would be in place: the sites are there.
    world.muster(&args).code(3).says(&["site-alive"]);
    // From now on it is captured like any other.
    world.muster(&["capture", "init", "--shard", &new]).ok();
    world.muster(&["capture", "--once", "--shard", &new]).ok();

    // The oracle knows the lost file's place.
    query(&place, "PRAGMA wal_checkpoint(TRUNCATE)");
    std::fs::rename(&place, &path).unwrap();
    let verdict = world.fleet.judge(&DeletionLog::default(), &Reached::new(), 2_000_000).unwrap();
    assert!(verdict.holds(), "seed {}:\n{verdict}", world.seed);
    assert!(verdict.neighbour_rows > 500, "{verdict}");
}

#[test]
fn wrong_places_are_refused() {
    let world = World::captured(SIZE, seed(32));
    let at = now();
    let products =
        world.fleet.shards.iter().find(|shard| shard.name.ends_with("-jira")).unwrap().name.clone();
    let core = world.fleet.shards.iter().find(|shard| shard.name.ends_with("-core")).unwrap().name.clone();
    let to = |target: &str| format!("{products}={target}");
    let plan = |target: &str, options: &[&str]| {
        let target = to(target);
        let mut args =
            vec!["plan", "--shard", &products, "--only-shard", &products, "--to", &at, "--to-shard", &target];
        args.extend(options);
        world.muster(&args)
    };
    plan("nowhere", &[]).code(2).says(&["declares no shard `nowhere`"]);
    plan(&core, &[]).code(3).says(&["hosts no product:"]);
    declare(&world.path("muster.toml"), &products, "far", "path = \"far.db\"");
    let text = std::fs::read_to_string(world.path("muster.toml")).unwrap();
    let (head, far) = text.split_once("[shards.\"far\"]").unwrap();
    let elsewhere: String =
        far.lines()
            .map(|line| {
                if line.starts_with("region") {
                    "region = \"mars\"\n".to_owned()
                } else {
                    format!("{line}\n")
                }
            })
            .collect();
    std::fs::write(world.path("muster.toml"), format!("{head}[shards.\"far\"]{elsewhere}")).unwrap();
    plan("far", &[]).code(3).says(&["region-mismatch", "--allow-region"]);
    plan("far", &["--allow-region"]).ok().says(&["region-mismatch"]);
    // A file that has other tables is not touched.
    std::fs::write(world.path("far.db"), "").unwrap();
    muster_tests::query_text(&world.path("far.db"), "CREATE TABLE issue(id TEXT PRIMARY KEY)");
    plan("far", &["--allow-region"]).code(2).says(&["definitions-differ"]);
}

const SCHEMA: &str = "
CREATE EXTENSION citext;
CREATE TYPE state AS ENUM ('open', 'done');
CREATE DOMAIN label AS text CHECK (length(VALUE) < 40);
CREATE SEQUENCE ticket START 1000;
CREATE TABLE site (id text PRIMARY KEY, name text NOT NULL);
CREATE TABLE priority (id int PRIMARY KEY, name citext UNIQUE, weight numeric(6,2));
CREATE FUNCTION touched() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.touched := 1; RETURN NEW; END $$;
CREATE TABLE project (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, site text NOT NULL REFERENCES site, key citext,
  UNIQUE (site, key));
CREATE TABLE issue (id bigserial PRIMARY KEY, project bigint NOT NULL REFERENCES project, state state DEFAULT 'open',
  priority int REFERENCES priority, title label, number bigint DEFAULT nextval('ticket'), touched int,
  wide text GENERATED ALWAYS AS (title || '!') STORED);
CREATE INDEX issue_open ON issue (project) WHERE state = 'open';
CREATE TRIGGER touch BEFORE UPDATE ON issue FOR EACH ROW EXECUTE FUNCTION touched();
ALTER TABLE project REPLICA IDENTITY FULL;
ALTER TABLE issue REPLICA IDENTITY FULL;
GRANT SELECT ON issue TO PUBLIC;
INSERT INTO priority SELECT i, 'P' || i, i * 1.5 FROM generate_series(1, 7) i;
INSERT INTO site SELECT 's' || i, 'Site ' || i FROM generate_series(1, 6) i;
INSERT INTO project (site, key) SELECT 's' || (i % 6 + 1), 'K' || i FROM generate_series(1, 30) i;
INSERT INTO issue (project, priority, title)
  SELECT i % 30 + 1, i % 7 + 1, repeat('Ä', i % 7) || i FROM generate_series(1, 400) i;
";

const TABLES: &str = "
[tables.site]
kind = 'metadata'
tenant = 'id'
[tables.priority]
kind = 'product:tracker'
reference = true
[tables.project]
kind = 'product:tracker'
tenant = 'site'
[tables.issue]
kind = 'product:tracker'
parent = { column = 'project', table = 'project', key = 'id' }
";

fn shard(name: &str, url: &str) -> String {
    format!(
        "\n[shards.{name}]\ndriver = 'postgres'\nconnection = '{url}'\nregion = 'eu'\n\
         kinds = ['metadata', 'product:tracker']\nwriter_block_milliseconds_max = 20000\n"
    )
}

/// Everything that `pg_dump` says of a database, without Muster's own and without what differs by chance.
fn dump(server: &Postgres, database: &str) -> String {
    let output = std::process::Command::new(server.bin("pg_dump"))
        .args(["-N", "muster", "--inserts", "--no-publications", "-d", &server.url(database)])
        .output()
        .expect("pg_dump runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let said =
        text.lines().filter(|line| !line.starts_with("--") && !line.starts_with("\\") && !line.is_empty());
    let (mut rows, mut rest): (Vec<&str>, Vec<&str>) =
        said.partition(|line| line.starts_with("INSERT INTO "));
    rows.sort_unstable();
    rest.extend(rows);
    rest.join("\n")
}

#[test]
fn a_dropped_database_comes_back_in_a_new_one() {
    let server = Postgres::shared().unwrap();
    let minio = Minio::shared().unwrap();
    let old = server.create_database("elsewhere_old").unwrap();
    server.psql(&old, SCHEMA).unwrap();
    // A role that will be gone with its server, as far as the new one knows.
    let role = server.create_role("elsewhere_reader", "secret", "").unwrap();
    server.psql(&old, &format!("GRANT SELECT ON site TO {role}")).unwrap();
    let topology = format!(
        "fleet = 'tracker'\n[repository]\nbucket = '{}'\nendpoint = '{}'\n[directory]\nkind = 'metadata'\n\
         table = 'site'\n[directory.columns]\nname = 'name'\n[tiers.standard]\nrto_seconds = 3600\nrpo_seconds = 60\n{}{TABLES}",
        minio.create_bucket("elsewhere").unwrap(),
        minio.endpoint(),
        shard("old", &server.url(&old)),
    );
    let keys = vec![
        ("AWS_ACCESS_KEY_ID", minio.access_key().to_owned()),
        ("AWS_SECRET_ACCESS_KEY", minio.secret_key().to_owned()),
    ];
    let folder = Folder::new(&topology, keys);
    folder.muster(&["capture", "init"]).ok();
    folder.muster(&["capture", "--once"]).ok();
    // Behind the snapshot: rows of sites, and of the reference table.
    let mut live = connect(&server.url(&old));
    live.batch_execute(
        "INSERT INTO issue (project, priority, title) SELECT 3, 2, 'late' FROM generate_series(1, 20);
         UPDATE issue SET state = 'done' WHERE id % 5 = 0; DELETE FROM issue WHERE id IN (7, 8);
         INSERT INTO priority VALUES (8, 'P8', 12); UPDATE priority SET weight = 99 WHERE id = 1",
    )
    .unwrap();
    drop(live);
    folder.muster(&["capture", "--once"]).ok();
    let at = now();
    folder.muster(&["capture", "remove"]).ok();
    let wanted = dump(&server, &old);
    let wanted: Vec<&str> = wanted.lines().filter(|line| !line.contains(&role)).collect();
    let wanted = wanted.join("\n");
    server.psql("postgres", &format!("DROP DATABASE {old}")).unwrap();

    server.psql("postgres", &format!("DROP ROLE {role}")).unwrap();
    let new = server.create_database("elsewhere_new").unwrap();
    std::fs::write(folder.path("muster.toml"), format!("{topology}{}", shard("new", &server.url(&new))))
        .unwrap();
    let args = ["plan", "--shard", "old", "--to", &at, "--to-shard", "old=new", "--out", "plan.json"];
    folder.muster(&args).ok().says(&["shard-provisioned", "6 sites", "roles-missing", &role]);
    folder.muster(&["apply", "plan.json", "--run", "moved"]).ok().says(&["6 sites restored, 0 not"]);
    let found = dump(&server, &new);
    let differ = |one: &str, other: &str| -> Vec<String> {
        one.lines().filter(|line| !other.lines().any(|same| same == *line)).map(str::to_owned).collect()
    };
    assert_eq!((differ(&found, &wanted), differ(&wanted, &found)), (vec![], vec![]));
    assert_eq!(found, wanted, "the order differs");
    // Sequences are where they were, or further on: no id is given twice.
    let next = server
        .psql(&new, "INSERT INTO issue (project, title) VALUES (1, 'next') RETURNING id || ' ' || number")
        .unwrap();
    assert_eq!(next.trim(), "421 1420");
    // From now on it is captured like any other.
    folder.muster(&["capture", "init", "--shard", "new"]).ok();
    folder.muster(&["capture", "--once", "--shard", "new"]).ok();
}

/// Tables of which each site has its own come back with their schemas, beside what all share.
#[test]
fn schemas_of_sites_come_back_in_a_new_database() {
    let tenants = Tenants::new();
    let old = tenants.database("elsewhere_tenants");
    let mut session = tenants.session(&old);
    session
        .batch_execute("CREATE TABLE site (id text PRIMARY KEY, name text); CREATE TABLE plan (id int PRIMARY KEY, name text)")
        .unwrap();
    session.batch_execute("INSERT INTO plan VALUES (1, 'free'), (2, 'paid')").unwrap();
    for site in ["a", "b"] {
        session
            .batch_execute(&format!(
                "INSERT INTO site VALUES ('{site}', 'Site {site}'); CREATE SCHEMA tenant_{site};
                 CREATE TABLE tenant_{site}.issue (id bigserial PRIMARY KEY, plan int REFERENCES public.plan, title text);
                 INSERT INTO tenant_{site}.issue (plan, title) SELECT 1 + i % 2, 'T' || i FROM generate_series(1, 30) i"
            ))
            .unwrap();
    }
    drop(session);
    let of = |name: &str, database: &str| {
        format!(
            "[shards.{name}]\ndriver = 'postgres'\nconnection = '{}'\nregion = 'eu'\nkinds = ['metadata', 'product:jira']\n\
             writer_block_milliseconds_max = 20000\n",
            tenants.postgres().url(database)
        )
    };
    let tables = "[directory]\nkind = 'metadata'\ntable = 'site'\n[tables.site]\nkind = 'metadata'\ntenant = 'id'\n\
        [tables.plan]\nkind = 'metadata'\nreference = true\n[tables.'tenant_{site}.issue']\nkind = 'product:jira'\n";
    tenants.topology(&format!("{tables}{}", of("old", &old)));
    tenants.muster(&["capture", "init"]).ok();
    tenants.muster(&["capture", "--once"]).ok();
    let at = now();
    tenants.muster(&["capture", "remove"]).ok();
    let wanted = tenants.dump(&old, &[]);
    tenants.postgres().psql("postgres", &format!("DROP DATABASE {old}")).unwrap();
    let new = tenants.database("elsewhere_tenants_new");
    tenants.topology(&format!("{tables}{}{}", of("old", &old), of("new", &new)));
    let args = ["plan", "--shard", "old", "--to", &at, "--to-shard", "old=new", "--out", "plan.json"];
    tenants.muster(&args).ok().says(&["2 sites"]);
    tenants.muster(&["apply", "plan.json", "--run", "moved"]).ok().says(&["2 sites restored, 0 not"]);
    assert_same_dump("the new database", &tenants.dump(&new, &[]), &wanted);
    tenants.topology(&format!("{tables}{}", of("new", &new)));
}
