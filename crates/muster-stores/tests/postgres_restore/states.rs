//! States of a database for others to read: what is left of them in the server.

use std::time::{Duration, Instant};

use muster_stores::postgres::connect::{ExportError, ExportedState, PostgresConfig};

use crate::world::Database;

/// How long a state may wait for open transactions here.
const WAIT: Duration = Duration::from_secs(2);

/// Until no session of Muster holds a slot of the database; false if that does not come.
async fn is_clean(database: &Database) -> bool {
    let watcher = database.app().await;
    let sql = "SELECT (SELECT count(*) FROM pg_replication_slots WHERE database = current_database()) + \
               (SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'walsender')";
    let since = Instant::now();
    while since.elapsed() < 5 * WAIT {
        if watcher.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) == 0 {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    false
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_is_not_to_be_had_leaves_nothing_in_the_server() {
    let database = Database::with("CREATE TABLE t (id int)").await;
    let config = PostgresConfig::parse(&database.connection).unwrap();
    let app = database.app().await;
    // Has a transaction number, which every new slot waits for.
    app.batch_execute("BEGIN; INSERT INTO t VALUES (1)").await.unwrap();
    let refused = ExportedState::take(&config, WAIT).await.unwrap_err();
    assert!(matches!(refused, ExportError::Waited(wait) if wait == WAIT), "{refused:?}");
    assert!(is_clean(&database).await, "after a refusal");
    // A caller that does not wait for the answer.
    let given_up = tokio::time::timeout(WAIT / 2, ExportedState::take(&config, WAIT)).await;
    assert!(given_up.is_err());
    assert!(is_clean(&database).await, "after a caller that gave up");
    app.batch_execute("COMMIT").await.unwrap();
    let state = ExportedState::take(&config, WAIT).await.unwrap();
    let sql = format!("BEGIN ISOLATION LEVEL REPEATABLE READ; SET TRANSACTION SNAPSHOT '{}'", state.name);
    app.batch_execute("INSERT INTO t VALUES (2)").await.unwrap();
    let reader = database.app().await;
    reader.batch_execute(&sql).await.unwrap();
    assert_eq!(reader.query_one("SELECT count(*) FROM t", &[]).await.unwrap().get::<_, i64>(0), 1);
    drop(state);
    assert!(is_clean(&database).await, "after a state that was dropped");
}
