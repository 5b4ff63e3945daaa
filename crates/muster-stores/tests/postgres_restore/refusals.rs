//! What a publish refuses, by name, and that it then has changed nothing.

use muster_engine::driver::{ErrorClass, StoreDriver};
use muster_types::{Digest, Epoch};

use crate::world::{World, parent, store, tenant};

const TABLES: &str = "
CREATE TABLE project (id int PRIMARY KEY, site text NOT NULL, key text, UNIQUE (key));
CREATE TABLE issue (id int PRIMARY KEY, project int NOT NULL REFERENCES project, reporter int);
CREATE TABLE people (id int PRIMARY KEY);
ALTER TABLE issue ADD FOREIGN KEY (reporter) REFERENCES people DEFERRABLE INITIALLY DEFERRED;
INSERT INTO people SELECT generate_series(1, 10);
INSERT INTO project SELECT i, CASE i % 2 WHEN 0 THEN 'a' ELSE 'b' END, 'K' || i FROM generate_series(1, 6) i;
INSERT INTO issue SELECT i, i % 6 + 1, i % 10 + 1 FROM generate_series(1, 60) i;
";

const DELETE: &str = "DELETE FROM issue USING project p WHERE p.id = issue.project AND site = 'a'; \
                      DELETE FROM project WHERE site = 'a'";

async fn world() -> World {
    World::new(TABLES, &[("project", tenant("site")), ("issue", parent("project", "project", "id"))]).await
}

async fn is_untouched(world: &World) {
    assert_eq!(world.ask("SELECT count(*) FROM project WHERE site = 'a'").await, "0");
    assert_eq!(world.ask("SELECT count(*) FROM muster.published").await, "0");
}

/// Each is done to a shard whose site `a` is gone; the message must contain the words, and the class be permanent.
#[tokio::test(flavor = "multi_thread")]
async fn each_refusal_names_its_reason() {
    let cases: &[(&str, &[&str])] = &[
        (
            "INSERT INTO project VALUES (99, 'b', 'K2')",
            &["key (key) = ('K2')", "`project`", "held by site:b"],
        ),
        ("INSERT INTO project VALUES (4, 'c', NULL)", &["key (id) = ('4')", "held by site:c"]),
        (
            "ALTER TABLE issue DISABLE TRIGGER ALL; DELETE FROM people WHERE id = 8; ALTER TABLE issue ENABLE TRIGGER ALL",
            &["`issue` refers by (reporter) to ('8') of table `people`"],
        ),
        ("ALTER TABLE issue DROP COLUMN reporter", &["column `reporter` was dropped or renamed"]),
        (
            "ALTER TABLE issue ALTER reporter TYPE bigint",
            &["column `reporter` was `integer` and is `bigint`"],
        ),
        (
            "ALTER TABLE issue ADD must int; UPDATE issue SET must = 1; ALTER TABLE issue ALTER must SET NOT NULL",
            &["new column `must` is NOT NULL without a default"],
        ),
        (
            "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
             CREATE TRIGGER loud BEFORE INSERT ON issue FOR EACH ROW EXECUTE FUNCTION f();
             ALTER TABLE issue ENABLE ALWAYS TRIGGER loud",
            &["trigger `loud` is enabled as ALWAYS"],
        ),
        (
            "CREATE RULE r AS ON INSERT TO issue DO INSTEAD NOTHING; ALTER TABLE issue ENABLE REPLICA RULE r",
            &["rule `r` is enabled"],
        ),
        (
            "ALTER TABLE issue ADD CONSTRAINT apart EXCLUDE (id WITH =) DEFERRABLE",
            &["table `issue`: constraint `apart` is deferrable"],
        ),
        ("DROP TABLE issue", &["table `issue` is gone"]),
        (
            "ALTER TABLE issue ADD CHECK (reporter < 3) NOT VALID",
            &["constraint `issue_reporter_check` of live table `issue` does not permit a restored row"],
        ),
    ];
    for (change, words) in cases {
        let world = world().await;
        let snapshot = world.snapshot("a").await;
        world.sql(DELETE).await;
        world.sql(change).await;
        let refused = world.refusal(&snapshot.work("a", "run-1"), &snapshot).await;
        assert_eq!(refused.class, ErrorClass::Permanent, "{refused}");
        assert!(words.iter().all(|words| refused.message.contains(words)), "{change}: {refused}");
        is_untouched(&world).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_for_other_definitions_is_refused() {
    let world = world().await;
    let snapshot = world.snapshot("a").await;
    world.sql(DELETE).await;
    let mut work = snapshot.work("a", "run-1");
    work.definitions = Some(Digest::of(b"other"));
    let refused = world.refusal(&work, &snapshot).await;
    assert!(refused.message.contains("changed after the plan was made"), "{refused}");
    is_untouched(&world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fenced_engine_and_another_run_are_refused() {
    let world = world().await;
    let snapshot = world.snapshot("a").await;
    world.sql(DELETE).await;
    let work = snapshot.work("a", "run-1");
    world.begin(&work).await;
    let staged = world.stage(&work, &snapshot).await.unwrap();
    // Another run does not get the store.
    let other = snapshot.work("a", "run-2");
    world.driver.fence(&other.run, other.epoch).await.unwrap();
    let refused = world.driver.claim(&other.run, other.epoch, &[store("a")]).await.unwrap();
    assert_eq!(refused[0].held_by, work.run);
    world.stage(&other, &snapshot).await.unwrap();
    let error = world.driver.publish(&other, &staged).await.unwrap_err();
    assert!(error.message.contains("is claimed by run run-1"), "{error}");
    // A later engine of the run has raised the epoch.
    world.driver.fence(&work.run, Epoch(2)).await.unwrap();
    assert_eq!(world.driver.publish(&work, &staged).await.unwrap_err().class, ErrorClass::Fenced);
    assert_eq!(world.stage(&work, &snapshot).await.unwrap_err().class, ErrorClass::Fenced);
    assert_eq!(world.driver.fence(&work.run, Epoch(1)).await.unwrap_err().class, ErrorClass::Fenced);
    // Nor does the earlier one give away, or throw away, what its successor holds.
    let late = world.driver.release(&work.run, work.epoch, &[store("a")]).await;
    assert_eq!(late.unwrap_err().class, ErrorClass::Fenced);
    is_untouched(&world).await;
    let mut taken_over = work.clone();
    taken_over.epoch = Epoch(2);
    world.driver.publish(&taken_over, &staged).await.unwrap();
    assert_eq!(world.driver.fence(&work.run, Epoch(3)).await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn raising_the_epoch_waits_for_an_open_publish() {
    let world = world().await;
    let snapshot = world.snapshot("a").await;
    let work = snapshot.work("a", "run-1");
    world.begin(&work).await;
    // What a publish does first, and keeps.
    world.sql("BEGIN; SELECT epoch FROM muster.epoch WHERE run = 'run-1' FOR SHARE").await;
    let (driver, run) = (std::sync::Arc::clone(&world.driver), work.run.clone());
    let raising = tokio::spawn(async move { driver.fence(&run, Epoch(2)).await });
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert!(!raising.is_finished());
    world.sql("COMMIT").await;
    raising.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_without_the_right_is_told_what_it_lacks() {
    let world = world().await;
    let server = muster_services::Postgres::shared().unwrap();
    let role = server.create_role("restorer", "secret-word", "").unwrap();
    let name = world.ask("SELECT current_database()").await;
    world
        .sql(&format!(
            "GRANT CREATE ON DATABASE {name} TO {role}; GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}"
        ))
        .await;
    let driver = world.driver_at(&server.url_as(&role, "secret-word", &name));
    let world = World { driver, ..world };
    let snapshot = world.snapshot("a").await;
    world.sql(DELETE).await;
    let refused = world.refusal(&snapshot.work("a", "run-1"), &snapshot).await;
    assert_eq!(refused.class, ErrorClass::Permanent);
    assert!(refused.hint.contains("GRANT SET ON PARAMETER session_replication_role"), "{refused}");
    assert!(!refused.to_string().contains("secret-word"));
    let probe = muster_engine::driver::StoreProbe { store: store("a"), tables: snapshot.tables.clone() };
    let live = world.driver.probe(&[probe]).await.unwrap().remove(0);
    assert!(live.unwritable.is_some_and(|text| text.contains("session_replication_role")));
    world.sql(&format!("GRANT SET ON PARAMETER session_replication_role TO {role}")).await;
    let probe = muster_engine::driver::StoreProbe { store: store("a"), tables: snapshot.tables.clone() };
    let unwritable =
        async || world.driver.probe(std::slice::from_ref(&probe)).await.unwrap().remove(0).unwritable;
    assert_eq!(unwritable().await, None);
    for (table, privilege) in [("people", "UPDATE"), ("issue", "INSERT")] {
        world.sql(&format!("REVOKE {privilege} ON {table} FROM {role}")).await;
        let grant = format!("GRANT {privilege} ON \"public\".\"{table}\" TO \"{role}\"");
        assert!(unwritable().await.is_some_and(|text| text.ends_with(&grant)), "{grant}");
        world.sql(&grant).await;
    }
    world.restore(&snapshot.work("a", "run-1"), &snapshot).await.unwrap();
}

/// One that only speaks may act; one that writes undoes the publish, whatever was declared.
#[tokio::test(flavor = "multi_thread")]
async fn a_declared_trigger_may_act_as_long_as_it_changes_nothing() {
    for (body, permitted) in [
        ("PERFORM pg_notify('came', NEW.id::text);", true),
        ("DELETE FROM public.people WHERE id = 9;", false),
    ] {
        let mut world = world().await;
        world
            .sql(&format!(
                "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN {body} RETURN NEW; END$$;
                 CREATE TRIGGER loud AFTER INSERT ON issue FOR EACH ROW EXECUTE FUNCTION f();
                 ALTER TABLE issue ENABLE ALWAYS TRIGGER loud"
            ))
            .await;
        world.declared.get_mut("issue").unwrap().harmless_triggers = vec!["loud".to_owned()];
        let driver = world.fresh_driver();
        let world = World { driver, ..world };
        let snapshot = world.snapshot("a").await;
        world.sql(DELETE).await;
        let restored = world.restore(&snapshot.work("a", "run-1"), &snapshot).await;
        match restored {
            Ok(_) => assert!(permitted, "{body}"),
            Err(error) => assert!(!permitted && error.message.contains("stray write"), "{body}: {error}"),
        }
    }
}
