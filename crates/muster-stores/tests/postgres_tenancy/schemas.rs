//! Schemas that were dropped come back whole; `pg_dump` is the judge.

use muster_engine::driver::ErrorClass;
use muster_types::plan::CREATED_AGAIN;

use crate::world::World;

const KIND: &str = "product:jira";

const DECLARED: &str = r#"
"tenant_{site}.project" = { kind = "product:jira" }
"tenant_{site}.issue" = { kind = "product:jira" }
"tenant_{site}.log" = { kind = "product:jira" }
label = { kind = "product:jira", reference = true }
"#;

/// The roles of a cluster are all tests': made once.
const ROLES: &str =
    "DO $$ BEGIN CREATE ROLE muster_test_app; EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$;
    DO $$ BEGIN CREATE ROLE muster_test_reader; EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$;";

const SHARED: &str = "CREATE TABLE label (id int PRIMARY KEY, name text);
    INSERT INTO label VALUES (1, 'bug'), (2, 'task');
    CREATE TYPE public.size AS ENUM ('s', 'm');";

/// A schema with much of what a table can have.
fn tenant(site: &str) -> String {
    format!(
        r#"CREATE SCHEMA "tenant_{site}" AUTHORIZATION muster_test_app;
        GRANT USAGE ON SCHEMA "tenant_{site}" TO muster_test_reader;
        SET search_path = "tenant_{site}";
        CREATE TYPE state AS ENUM ('open', 'it''s done');
        CREATE DOMAIN points AS integer DEFAULT 3 CONSTRAINT few CHECK (VALUE < 100);
        CREATE TYPE pair AS (a numeric, b state);
        CREATE SEQUENCE number;
        CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql AS $f$ BEGIN
            INSERT INTO log (text) VALUES ('it''s ' || NEW.id); RETURN NEW; END $f$;
        CREATE FUNCTION low(text) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT lower($1)';
        CREATE TABLE project (id bigint PRIMARY KEY DEFAULT nextval('number'), name varchar(40) NOT NULL UNIQUE,
            size public.size, CONSTRAINT named CHECK (name <> ''));
        CREATE TABLE issue (id serial PRIMARY KEY, project bigint NOT NULL REFERENCES project ON DELETE CASCADE,
            label int REFERENCES public.label, parent int REFERENCES issue, state state, points points, pairs pair[],
            title text COLLATE "C", upper text GENERATED ALWAYS AS (upper(title)) STORED, at timestamptz DEFAULT now());
        CREATE INDEX issue_low ON issue (low(title)) WHERE state = 'open';
        CREATE TABLE log (id int GENERATED ALWAYS AS IDENTITY (START 10 INCREMENT 5) PRIMARY KEY, text text);
        ALTER TABLE log REPLICA IDENTITY FULL;
        ALTER TABLE project OWNER TO muster_test_app;
        GRANT SELECT ON project, issue TO muster_test_reader; GRANT USAGE ON SEQUENCE issue_id_seq TO muster_test_reader;
        GRANT UPDATE ON issue TO muster_test_app WITH GRANT OPTION;
        ALTER TABLE issue ENABLE ROW LEVEL SECURITY;
        CREATE POLICY seen ON issue FOR SELECT TO muster_test_reader USING (state = 'open');
        CREATE TRIGGER stamped AFTER INSERT ON issue FOR EACH ROW EXECUTE FUNCTION stamp();
        ALTER TABLE issue DISABLE TRIGGER stamped;
        INSERT INTO project (name, size) SELECT '{site} ' || n, 's' FROM generate_series(1, 5) n;
        INSERT INTO issue (project, label, state, pairs, title)
            SELECT 1 + n % 5, 1 + n % 2, 'it''s done', ARRAY[ROW(n, 'open')::pair, NULL], E'{site}\t' || n
            FROM generate_series(1, 50) n;
        UPDATE issue SET parent = 1, points = 5 WHERE id > 40;
        INSERT INTO log (text) VALUES ('a'), (NULL);
        SET search_path = public;"#
    )
}

fn world(sites: &[&str]) -> World {
    let tenants: String = sites.iter().map(|site| tenant(site)).collect();
    World::new(&format!("{ROLES} {SHARED} {tenants}"), &[KIND], DECLARED)
}

#[test]
fn a_dropped_schema_comes_back_as_pg_dump_saw_it() {
    let mut world = world(&["a", "b", "c-1"]);
    let captured = world.capture();
    let sites: Vec<String> = captured
        .sites()
        .iter()
        .map(|site| site.as_ref().map_or("", |site| site.as_str()).to_owned())
        .collect();
    assert_eq!(sites, ["", "a", "b", "c-1"], "rows of no site first, then sites ascend");
    let whole = world.dump(&["--exclude-schema=muster"]);
    assert!(whole.contains("tenant_a.issue") && whole.contains("CREATE POLICY seen"), "{whole}");
    world.sql("DROP SCHEMA tenant_a CASCADE; DROP SCHEMA \"tenant_c-1\" CASCADE");
    for site in ["a", "c-1"] {
        let store = captured.store(site, KIND, "run-1");
        let live = world.probe(&store);
        assert_eq!((live.rows, live.unwritable), (0, None));
        assert_eq!(live.differences.len(), 3, "{:?}", live.differences);
        assert!(
            live.differences.iter().all(|text| text.starts_with(CREATED_AGAIN)),
            "{:?}",
            live.differences
        );
        assert_eq!(world.restore(&store).unwrap().rows, 57);
        // Once more is the same publish.
        assert_eq!(world.restore(&store).unwrap().rows, 57);
    }
    assert_eq!(world.dump(&["--exclude-schema=muster"]), whole);
    // The next ids are new ones, and triggers and keys act.
    world.sql("INSERT INTO tenant_a.issue (project, title) SELECT id, 'new' FROM tenant_a.project LIMIT 1");
    assert_eq!(world.ask("SELECT max(id) FROM tenant_a.issue"), "51");
}

#[test]
fn rows_alone_come_back_into_a_live_schema() {
    let mut world = world(&["a", "b"]);
    let captured = world.capture();
    let whole = world.dump(&["--exclude-schema=muster"]);
    world.sql("DELETE FROM tenant_a.issue; DELETE FROM tenant_a.project; TRUNCATE tenant_a.log");
    assert_eq!(world.restore(&captured.store("a", KIND, "run-1")).unwrap().rows, 57);
    assert_eq!(world.dump(&["--exclude-schema=muster"]), whole);
    // A site whose rows are there is alive.
    let alive = world.restore(&captured.store("b", KIND, "run-2")).unwrap_err();
    assert!(alive.message.contains("is alive: table `tenant_b."), "{alive}");
    assert_eq!(world.probe(&captured.store("b", KIND, "run-2")).rows, 57);
}

#[test]
fn some_tables_gone_and_some_emptied_come_back_together() {
    let mut world = world(&["a", "b"]);
    let captured = world.capture();
    let whole = world.dump(&["--exclude-schema=muster"]);
    // The foreign key goes with the table, and comes back with it: from the table that is left nothing led there.
    world.sql("DROP TABLE tenant_a.issue CASCADE; DELETE FROM tenant_a.project");
    let mut store = captured.store("a", KIND, "run-1");
    store.work.overwrite = true;
    assert_eq!(world.restore(&store).unwrap().rows, 57);
    assert_eq!(world.dump(&["--exclude-schema=muster"]), whole);
}

#[test]
fn a_publish_that_fails_leaves_nothing_of_the_schema() {
    let mut world = world(&["a", "b"]);
    let captured = world.capture();
    world.sql("DROP SCHEMA tenant_a CASCADE; DELETE FROM tenant_b.issue; DELETE FROM label WHERE id = 2");
    let refused = world.restore(&captured.store("a", KIND, "run-1")).unwrap_err();
    assert!(refused.message.contains("make its foreign keys again"), "{refused}");
    assert!(refused.hint.contains("restore the store that holds the missing row first"), "{refused}");
    assert_eq!(world.ask("SELECT to_regnamespace('tenant_a')"), "NULL");
    world.sql("INSERT INTO label VALUES (2, 'task')");
    assert_eq!(world.restore(&captured.store("a", KIND, "run-1")).unwrap().rows, 57);
}

#[test]
fn what_another_makes_meanwhile_is_tried_again() {
    let mut world = world(&["a"]);
    let captured = world.capture();
    world.sql("DROP SCHEMA tenant_a CASCADE");
    let (mut other, mut watcher) = (world.client(), world.client());
    other.batch_execute("BEGIN; CREATE SCHEMA tenant_a").unwrap();
    let committing = std::thread::spawn(move || {
        let waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
            AND wait_event_type = 'Lock'";
        for _ in 0..2000 {
            if watcher.query_one(waits, &[]).unwrap().get::<_, i64>(0) > 0 {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        other.batch_execute("COMMIT").unwrap();
    });
    let store = captured.store("a", KIND, "run-1");
    let met = world.restore(&store).unwrap_err();
    committing.join().unwrap();
    assert_eq!(met.class, ErrorClass::Transient, "{met}");
    assert_eq!(world.restore(&store).unwrap().rows, 57);
}

#[test]
fn a_table_that_all_sites_share_is_not_made_again() {
    let mut world = world(&["a"]);
    let captured = world.capture();
    world.sql("DROP SCHEMA tenant_a CASCADE; DROP TABLE label");
    let refused = world.restore(&captured.store("a", KIND, "run-1")).unwrap_err();
    assert!(refused.message.contains("table `label` is gone"), "{refused}");
    assert_eq!(world.ask("SELECT to_regnamespace('tenant_a')"), "NULL");
}

#[test]
fn other_schemas_are_neighbours() {
    let mut world = world(&["a", "b"]);
    world.sql("ALTER TABLE site REPLICA IDENTITY FULL; ALTER TABLE label REPLICA IDENTITY FULL");
    for site in ["a", "b"] {
        for table in ["project", "issue"] {
            world.sql(&format!("ALTER TABLE tenant_{site}.{table} REPLICA IDENTITY FULL"));
        }
    }
    let captured = world.capture();
    let before = world.neighbours(&["a"], KIND);
    world.sql("DROP SCHEMA tenant_a CASCADE");
    assert_eq!(world.neighbours(&["a"], KIND), before);
    world.restore(&captured.store("a", KIND, "run-1")).unwrap();
    assert_eq!(world.neighbours(&["a"], KIND), before);
    world.sql("UPDATE tenant_b.log SET text = 'b' WHERE text = 'a'");
    assert_ne!(world.neighbours(&["a"], KIND), before);
}
