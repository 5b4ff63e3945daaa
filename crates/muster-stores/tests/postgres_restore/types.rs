//! Every built-in type, extremes included, is bit for bit what it was after it was read as text, staged and published.

use muster_engine::driver::StoreDriver;

use crate::type_table::{TYPES, USER_TYPES};
use crate::world::{World, parent, tenant};

#[tokio::test(flavor = "multi_thread")]
async fn every_type_comes_back_bit_for_bit() {
    let columns: Vec<String> = TYPES.iter().enumerate().map(|(n, (of, ..))| format!("c{n} {of}")).collect();
    let ddl = format!(
        "{USER_TYPES} CREATE TABLE v (id int PRIMARY KEY, site text NOT NULL, {})",
        columns.join(", ")
    );
    let world = World::new(&ddl, &[("v", tenant("site"))]).await;
    let mut id = 0;
    for (n, (_, _, values)) in TYPES.iter().enumerate() {
        for value in *values {
            id += 1;
            world.sql(&format!("INSERT INTO v (id, site, c{n}) VALUES ({id}, 'a', {value})")).await;
        }
    }
    assert!(id > 130, "{id}");
    // Each by itself, so that a difference has a name.
    let each = |n: usize, send: &str| {
        format!(
            "SELECT string_agg(id || md5({send}(c{n})) || md5(c{n}::text), ';' ORDER BY id) FROM v WHERE c{n} IS NOT NULL"
        )
    };
    let mut before = Vec::new();
    for (n, (_, send, _)) in TYPES.iter().enumerate() {
        before.push(world.ask(&each(n, send)).await);
    }
    let snapshot = world.snapshot("a").await;
    assert_eq!(snapshot.rows.len(), id);
    world.sql("DELETE FROM v").await;
    let work = snapshot.work("a", "run-types");
    let published = world.restore(&work, &snapshot).await.unwrap();
    assert_eq!(published.rows, id as u64);
    for (n, (of, send, _)) in TYPES.iter().enumerate() {
        assert_eq!(world.ask(&each(n, send)).await, before[n], "{of}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn types_of_extensions_are_compared_in_their_own_way() {
    let world = World::new(
        "CREATE EXTENSION citext; CREATE DOMAIN label AS citext;
         CREATE TABLE people (login citext PRIMARY KEY); INSERT INTO people VALUES ('Ann'), ('Bob');
         CREATE TABLE p (id label PRIMARY KEY, site text, who citext REFERENCES people, alias citext UNIQUE DEFERRABLE);
         CREATE TABLE c (id int PRIMARY KEY, p citext REFERENCES p);
         INSERT INTO p VALUES ('One', 'a', 'ANN', 'x'), ('Two', 'b', 'bob', 'y'); INSERT INTO c VALUES (1, 'ONE'), (2, 'two')",
        &[("p", tenant("site")), ("c", parent("p", "p", "id"))],
    )
    .await;
    let snapshot = world.snapshot("a").await;
    assert_eq!(snapshot.rows.len(), 2);
    let mut work = snapshot.work("a", "run-1");
    work.overwrite = true;
    assert_eq!(world.restore(&work, &snapshot).await.unwrap().replaced, 2);
    assert_eq!(world.ask("SELECT string_agg(p, ',' ORDER BY id) FROM c").await, "ONE,two");
    // A key that differs in case only is taken, whether it is checked by the server or by the publish.
    world
        .sql("DELETE FROM c WHERE p = 'one'; DELETE FROM p WHERE site = 'a'; UPDATE p SET alias = 'X'")
        .await;
    world.driver.release(&work.run, work.epoch, std::slice::from_ref(&work.store)).await.unwrap();
    let refused = world.refusal(&snapshot.work("a", "run-2"), &snapshot).await;
    assert!(refused.message.contains("key (alias) = "), "{refused}");
}
