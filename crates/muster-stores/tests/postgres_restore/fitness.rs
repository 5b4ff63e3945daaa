//! What `check` says of a shard before anyone needs it.

use muster_engine::driver::{StoreDriver, StoreProbe};
use muster_stores::postgres::{Fitness, check};
use muster_types::ShardName;

use crate::world::{World, parent, store, tenant};

const TABLES: &str = "
CREATE TABLE project (id int PRIMARY KEY, site text NOT NULL, picture oid);
ALTER TABLE project REPLICA IDENTITY FULL;
CREATE TABLE issue (id int PRIMARY KEY, project int NOT NULL REFERENCES project);
ALTER TABLE issue REPLICA IDENTITY FULL;
INSERT INTO project VALUES (1, 'a'), (2, 'b');
";

async fn world() -> World {
    World::new(TABLES, &[("project", tenant("site")), ("issue", parent("project", "project", "id"))]).await
}

fn look(world: &World, connection: &str) -> Fitness {
    let shard = ShardName::new("db-1").unwrap();
    tokio::task::block_in_place(|| check(&shard, connection, &world.declared.clone().into())).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sound_shard_has_no_problems() {
    let world = world().await;
    assert_eq!(look(&world, &world.database.connection), Fitness::default());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stands_in_the_way_is_told_with_the_way_out() {
    let cases: &[(&str, &[&str])] = &[
        (
            "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
             CREATE TRIGGER loud BEFORE INSERT ON issue FOR EACH ROW EXECUTE FUNCTION f();
             ALTER TABLE issue ENABLE ALWAYS TRIGGER loud",
            &["trigger `loud` is enabled as ALWAYS", "ENABLE TRIGGER \"loud\""],
        ),
        (
            "ALTER TABLE issue REPLICA IDENTITY DEFAULT",
            &["does not carry `project`", "ALTER TABLE \"public\".\"issue\" REPLICA IDENTITY"],
        ),
        (
            "ALTER TABLE issue ADD CONSTRAINT once EXCLUDE USING btree (project WITH =) DEFERRABLE",
            &["`once` is deferrable"],
        ),
    ];
    for (change, words) in cases {
        let world = world().await;
        world.sql(change).await;
        let problems = look(&world, &world.database.connection).problems.join("\n");
        for word in *words {
            assert!(problems.contains(word), "{change}: `{word}` is not in\n{problems}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_come_back_is_a_note_of_check_and_of_the_plan() {
    let world = world().await;
    world.sql("ALTER TABLE issue SET UNLOGGED; UPDATE project SET picture = lo_create(0)").await;
    let found = look(&world, &world.database.connection);
    assert!(found.problems.join("\n").contains("`issue`: it is unlogged"), "{found:?}");
    let probe = StoreProbe { store: store("a"), tables: world.tables.clone() };
    let planned = world.driver.probe(&[probe]).await.unwrap().remove(0).differences;
    for words in [
        "table `issue` is unlogged: its rows are not captured",
        "large objects are not captured: `project.picture`",
    ] {
        for notes in [&found.notes, &planned] {
            assert!(notes.iter().any(|note| note.contains(words)), "{words}: {notes:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_is_told_every_right_that_it_lacks() {
    let world = world().await;
    let server = muster_services::Postgres::shared().unwrap();
    let role = server.create_role("watcher", "secret-word", "").unwrap();
    let name = world.ask("SELECT current_database()").await;
    let connection = server.url_as(&role, "secret-word", &name);
    let problems = look(&world, &connection).problems.join("\n");
    for word in [
        "REPLICATION",
        "GRANT CREATE ON DATABASE",
        "GRANT SELECT ON \"public\".\"issue\"",
        "GRANT INSERT ON \"public\".\"project\"",
        "GRANT SET ON PARAMETER session_replication_role",
    ] {
        assert!(problems.contains(word), "`{word}` is not in\n{problems}");
    }
    assert!(!problems.contains("secret-word"));
    world
        .sql(&format!(
            "ALTER ROLE {role} REPLICATION; GRANT CREATE ON DATABASE {name} TO {role}; \
             GRANT SET ON PARAMETER session_replication_role TO {role}; \
             ALTER TABLE project OWNER TO {role}; ALTER TABLE issue OWNER TO {role}"
        ))
        .await;
    let found = look(&world, &connection);
    assert_eq!(found.problems, Vec::<String>::new());
    // Which only a superuser may.
    assert!(found.notes.len() == 1 && found.notes[0].contains("event triggers"), "{found:?}");
}
