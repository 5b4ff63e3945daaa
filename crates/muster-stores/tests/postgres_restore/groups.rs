//! Small stores of one kind, staged and published together.

use std::collections::BTreeSet;
use std::sync::Arc;

use muster_engine::driver::{
    DriverError, ErrorClass, GroupRows, PublishWork, RowBatch, StoreDriver, StoreWork,
};
use muster_services::{Postgres, StopMode};
use muster_types::Epoch;
use muster_types::journal::Published;
use tokio::sync::mpsc;

use crate::world::{Snapshot, TableDigests, World, parent, tenant};

/// Victims `v0` … and neighbour `n`, each with projects, and issues of theirs; `kind` is everybody's.
const TABLES: &str = "
CREATE TABLE kind (id int PRIMARY KEY); INSERT INTO kind SELECT generate_series(1, 8);
CREATE TABLE project (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, site text NOT NULL, key text UNIQUE, lead int);
CREATE TABLE issue (id serial PRIMARY KEY, project bigint NOT NULL REFERENCES project, kind int REFERENCES kind, body text);
INSERT INTO project (site, key, lead) SELECT CASE s WHEN 8 THEN 'n' ELSE 'v' || s END, 'K' || s || '-' || i, s
  FROM generate_series(0, 8) s, generate_series(1, 4) i;
INSERT INTO issue (project, kind, body) SELECT p.id, 1 + (p.lead % 8), E'b\\t' || p.key FROM project p, generate_series(1, 5);
CREATE INDEX ON project (site); CREATE INDEX ON issue (project);
";

const VICTIMS: usize = 8;

const DELETE: &str = "DELETE FROM issue i USING project p WHERE p.id = i.project AND p.site LIKE 'v%'; \
                      DELETE FROM project WHERE site LIKE 'v%'";

const ALL: [&str; 3] = [
    "SELECT string_agg(t::text, ';' ORDER BY t::text) FROM project t",
    "SELECT string_agg(t::text, ';' ORDER BY t::text) FROM issue t",
    "SELECT string_agg(t::text, ';' ORDER BY t::text) FROM kind t",
];

/// A world whose victims are gone, and what they were.
struct Fallen {
    world: World,
    works: Vec<StoreWork>,
    snapshots: Vec<Snapshot>,
    /// Every row of every table before.
    before: Vec<String>,
}

impl Fallen {
    async fn new() -> Self {
        Self::on(&Postgres::shared().unwrap()).await
    }

    async fn on(server: &Postgres) -> Self {
        let tables = [("project", tenant("site")), ("issue", parent("project", "project", "id"))];
        let world = World::on(server, TABLES, &tables).await;
        let before = everything(&world).await;
        let (mut works, mut snapshots) = (Vec::new(), Vec::new());
        for number in 0..VICTIMS {
            let site = format!("v{number}");
            let snapshot = world.snapshot(&site).await;
            assert_eq!(snapshot.rows.len(), 24);
            works.push(snapshot.work(&site, "run-1"));
            snapshots.push(snapshot);
        }
        world.sql(DELETE).await;
        let fallen = Self { world, works, snapshots, before };
        fallen.claim().await;
        fallen
    }

    async fn claim(&self) {
        for work in &self.works {
            self.world.begin(work).await;
        }
    }

    /// Stages all in one group, table by table, and reads them back.
    async fn stage(&self) -> Vec<PublishWork> {
        self.stage_but(None).await
    }

    /// The rows of one store break off in the middle.
    async fn stage_but(&self, withdrawn: Option<usize>) -> Vec<PublishWork> {
        let (sender, receiver) = mpsc::channel(2);
        let send = async {
            for table in 0..self.snapshots[0].tables.len() {
                for (store, snapshot) in self.snapshots.iter().enumerate() {
                    let own = snapshot.rows.iter().filter(|(of, _)| *of == table).map(|(_, row)| row.clone());
                    let batch = RowBatch { table, rows: own.collect() };
                    // A driver that stops listening says why.
                    let _ = sender.send(GroupRows::Batch { store, batch }).await;
                    if withdrawn == Some(store) {
                        let _ = sender.send(GroupRows::Withdrawn { store }).await;
                    }
                }
            }
            drop(sender);
        };
        let (staged, ()) = tokio::join!(self.world.driver.stage_group(&self.works, receiver), send);
        staged.into_iter().for_each(Result::unwrap);
        let found = self.world.driver.digest_staged_group(&self.works).await;
        let known = self.world.driver.is_as_staged_group(&self.works).await;
        for (index, known) in known.into_iter().enumerate() {
            match known {
                Ok(known) => assert!(known && withdrawn != Some(index)),
                Err(error) => assert!(error.class == ErrorClass::StagingLost && withdrawn == Some(index)),
            }
        }
        let mut members = Vec::new();
        for (index, (work, found)) in self.works.iter().zip(found).enumerate() {
            if withdrawn == Some(index) {
                assert_eq!(found.unwrap_err().class, ErrorClass::StagingLost);
                continue;
            }
            let expected: TableDigests = found.unwrap();
            assert_eq!(expected, self.snapshots[index].digests());
            members.push(PublishWork { work: work.clone(), expected });
        }
        members
    }

    /// Sites whose rows are as they were; the others have none, and nobody else's row has changed.
    async fn back(&self) -> BTreeSet<usize> {
        let mut back = BTreeSet::new();
        for (number, snapshot) in self.snapshots.iter().enumerate() {
            let now = self.world.snapshot(&format!("v{number}")).await;
            if now.digests() == snapshot.digests() {
                back.insert(number);
            } else {
                assert!(now.rows.is_empty(), "v{number} is there in part");
            }
        }
        let records =
            self.world.ask("SELECT string_agg(site, ' ' ORDER BY site) FROM muster.published").await;
        let recorded = back.iter().map(|number| format!("v{number}")).collect::<Vec<_>>().join(" ");
        assert_eq!(records, if back.is_empty() { "NULL".to_owned() } else { recorded });
        back
    }
}

async fn everything(world: &World) -> Vec<String> {
    let mut found = Vec::new();
    for sql in ALL {
        found.push(world.ask(sql).await);
    }
    found
}

type Answers = Vec<Result<Published, DriverError>>;

fn failed(answers: &Answers) -> Vec<(usize, &DriverError)> {
    let failed =
        answers.iter().enumerate().filter_map(|(index, answer)| Some((index, answer.as_ref().err()?)));
    failed.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_is_published_whole_in_one_transaction() {
    let fallen = Fallen::new().await;
    let world = &fallen.world;
    let slot = format!("group_{}", std::process::id());
    world
        .ask(&format!("SELECT lsn FROM pg_create_logical_replication_slot('{slot}', 'test_decoding')"))
        .await;
    let members = fallen.stage().await;
    let answers = world.driver.publish_group(&members).await;
    assert!(failed(&answers).is_empty(), "{answers:?}");
    assert_eq!(everything(world).await, fallen.before);
    let transactions = "SELECT count(DISTINCT xmin::text) FROM (SELECT xmin FROM project WHERE site LIKE 'v%' \
                        UNION ALL SELECT i.xmin FROM issue i JOIN project p ON p.id = project WHERE site LIKE 'v%') t";
    assert_eq!(world.ask(transactions).await, "1");
    assert_eq!(
        world.ask("SELECT nextval('project_id_seq') || ' ' || nextval('issue_id_seq')").await,
        "37 181"
    );

    // Of each row that became live, the mark before it is its own store's.
    let log = format!("pg_logical_slot_get_changes('{slot}', NULL, NULL)");
    let lines = world.app.query(&format!("SELECT data FROM {log}"), &[]).await.unwrap();
    world.ask(&format!("SELECT pg_drop_replication_slot('{slot}')")).await;
    let (mut mark, mut attributed) = (String::new(), 0);
    for line in lines.iter().map(|row| row.get::<_, &str>(0)) {
        if line.starts_with("BEGIN") {
            mark.clear();
        } else if line.contains("muster.mark") {
            line.clone_into(&mut mark);
        } else if line.contains("INSERT") && line.contains("table public.") {
            let key = line.split("'K").nth(1).or_else(|| line.split("\tK").nth(1)).unwrap();
            let site = format!("publish/site:v{}/product:jira", key.split('-').next().unwrap());
            assert!(mark.contains(&site), "{line} is behind {mark}");
            attributed += 1;
        }
    }
    assert_eq!(attributed, 24 * VICTIMS);

    // Done is done: a repetition tells what the first attempt did, of all or of some.
    let again = world.driver.publish_group(&members).await;
    let one = world.driver.publish(&members[3].work, &members[3].expected).await.unwrap();
    for (first, again) in answers.iter().zip(&again) {
        let (first, again) = (first.as_ref().unwrap(), again.as_ref().unwrap());
        assert_eq!((first.rows, first.at), (again.rows, again.at));
        assert_eq!(first.positions.unwrap().0, again.positions.unwrap().0);
    }
    assert_eq!((one.rows, one.at), (24, again[3].as_ref().unwrap().at));
    assert_eq!(fallen.back().await.len(), VICTIMS);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_culprit_stands_alone_and_the_others_are_live() {
    let fallen = Fallen::new().await;
    let world = &fallen.world;
    // One lives, one's key is taken, one's row is refused.
    world
        .sql(
            "INSERT INTO project (site, key) VALUES ('v1', NULL), ('n', 'K4-2');
             ALTER TABLE project ADD CHECK (lead IS DISTINCT FROM 6) NOT VALID",
        )
        .await;
    let members = fallen.stage().await;
    let answers = world.driver.publish_group(&members).await;
    let failed = failed(&answers);
    assert_eq!(failed.iter().map(|(index, _)| *index).collect::<Vec<_>>(), [1, 4, 6], "{answers:?}");
    for ((_, error), words) in failed.iter().zip([
        ["site:v1/product:jira is alive", "`project`"],
        ["site:v4/product:jira", "duplicate key"],
        ["site:v6/product:jira", "violates check constraint"],
    ]) {
        assert_eq!(error.class, ErrorClass::Permanent, "{error}");
        assert!(words.iter().all(|words| error.message.contains(words)), "{error}");
    }
    // Alone, it is told which key and who has it.
    let alone = world.driver.publish(&members[4].work, &members[4].expected).await.unwrap_err();
    assert!(alone.message.contains("key (key) = ('K4-2') of table `project` is held by site:n"), "{alone}");
    world.sql("DELETE FROM project WHERE site = 'v1'").await;
    assert_eq!(fallen.back().await, BTreeSet::from([0, 2, 3, 5, 7]));
    world
        .sql("DELETE FROM project WHERE key = 'K4-2'; ALTER TABLE project DROP CONSTRAINT project_lead_check")
        .await;
    let answers = world.driver.publish_group(&members).await;
    assert!(self::failed(&answers).is_empty(), "{answers:?}");
    assert_eq!(everything(world).await, fallen.before);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_many_culprits_the_rest_is_undone_with_them_and_split_by_the_engine() {
    let fallen = Fallen::new().await;
    let world = &fallen.world;
    world.sql("ALTER TABLE project ADD CHECK (lead % 3 <> 1 AND lead <> 2 AND lead <> 5) NOT VALID").await;
    let members = fallen.stage().await;
    let answers = world.driver.publish_group(&members).await;
    assert!(answers.iter().all(|answer| answer.is_err()), "{answers:?}");
    assert!(fallen.back().await.is_empty());
    // What halves and single attempts make of it.
    let (mut live, mut open) = (BTreeSet::new(), vec![(0..VICTIMS).collect::<Vec<_>>()]);
    while let Some(part) = open.pop() {
        let group: Vec<PublishWork> = part.iter().map(|&index| members[index].clone()).collect();
        let answers = world.driver.publish_group(&group).await;
        let failed: Vec<usize> = part
            .iter()
            .zip(&answers)
            .filter(|(_, answer)| answer.is_err())
            .map(|(&index, _)| index)
            .collect();
        live.extend(part.iter().copied().filter(|index| !failed.contains(index)));
        if part.len() > 1 && !failed.is_empty() {
            open.extend(failed.chunks(failed.len().div_ceil(2)).map(<[usize]>::to_vec));
        }
    }
    assert_eq!(live, BTreeSet::from([0, 3, 6]));
    assert_eq!(fallen.back().await, live);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_missed_and_a_store_without_a_claim_are_told_by_their_stores() {
    let fallen = Fallen::new().await;
    let world = &fallen.world;
    // v2's issues refer to kind 3.
    world.sql("DELETE FROM kind WHERE id = 3").await;
    let other = fallen.works[5].clone();
    world.driver.release(&other.run, other.epoch, std::slice::from_ref(&other.store)).await.unwrap();
    let answers = world.driver.publish_group(&fallen.stage().await).await;
    let failed = failed(&answers);
    assert_eq!(failed.iter().map(|(index, _)| *index).collect::<Vec<_>>(), [2, 5], "{answers:?}");
    let missed =
        "site:v2: a row of table `issue` refers by (kind) to ('3') of table `kind`, which is not there";
    assert!(failed[0].1.message.contains(missed), "{}", failed[0].1);
    assert!(
        failed[1].1.message.contains("site:v5/product:jira is not claimed by run run-1"),
        "{}",
        failed[1].1
    );
    assert_eq!(fallen.back().await, BTreeSet::from([0, 1, 3, 4, 6, 7]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_withdrawn_costs_no_other() {
    let fallen = Fallen::new().await;
    let members = fallen.stage_but(Some(3)).await;
    assert_eq!(members.len(), VICTIMS - 1);
    let answers = fallen.world.driver.publish_group(&members).await;
    assert!(failed(&answers).is_empty(), "{answers:?}");
    assert_eq!(fallen.back().await, (0..VICTIMS).filter(|&number| number != 3).collect());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_transaction_of_a_neighbour_is_waited_for_once_and_costs_its_own_store() {
    let fallen = Fallen::new().await;
    let world = &fallen.world;
    let members = fallen.stage().await;
    world.sql("BEGIN; INSERT INTO project (site, key) VALUES ('n', 'K3-1')").await;
    let since = std::time::Instant::now();
    let answers = world.driver.publish_group(&members).await;
    let waited = since.elapsed();
    world.sql("ROLLBACK").await;
    let failed = failed(&answers);
    assert_eq!(failed.iter().map(|(index, _)| *index).collect::<Vec<_>>(), [3], "{answers:?}");
    assert_eq!(failed[0].1.class, ErrorClass::Transient, "{}", failed[0].1);
    // A wait takes three seconds.
    assert!(waited.as_secs_f64() < 6.0, "{waited:?}");
    world.driver.publish(&members[3].work, &members[3].expected).await.unwrap();
    assert_eq!(fallen.back().await.len(), VICTIMS);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_ended_in_the_middle_leaves_nothing_of_the_group() {
    let fallen = Fallen::new().await;
    let world = &fallen.world;
    let members = fallen.stage().await;
    // It has inserted its rows, and waits for one that they refer to.
    world.sql("BEGIN; SELECT FROM kind WHERE id = 8 FOR UPDATE").await;
    let driver = Arc::clone(&world.driver);
    let group = members.clone();
    let publishing = tokio::spawn(async move { driver.publish_group(&group).await });
    let watcher = world.database.app().await;
    let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database() \
               AND wait_event_type = 'Lock' AND query LIKE '%FOR KEY SHARE%'";
    let mut ended = 0;
    for _ in 0..2000 {
        ended = watcher.query_one(end, &[]).await.unwrap().get::<_, i64>(0);
        if ended == 1 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert_eq!(ended, 1, "the publish never waited");
    let answers = publishing.await.unwrap();
    // As a server that stops ends them.
    let ended = |error: &DriverError| error.class == ErrorClass::Unavailable;
    assert!(answers.iter().all(|answer| answer.as_ref().is_err_and(ended)), "{answers:?}");
    world.sql("COMMIT").await;
    assert!(fallen.back().await.is_empty());
    let answers = world.driver.publish_group(&members).await;
    assert!(failed(&answers).is_empty(), "{answers:?}");
    assert_eq!(everything(world).await, fallen.before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_of_a_group_without_an_answer_is_resolved_by_the_records() {
    let mut server =
        Postgres::own(&[("synchronous_standby_names", "nobody"), ("synchronous_commit", "local")]).unwrap();
    let fallen = Fallen::on(&server).await;
    let world = &fallen.world;
    let members = fallen.stage().await;
    let name = world.ask("SELECT current_database()").await;
    server.psql("postgres", &format!("ALTER DATABASE {name} SET synchronous_commit = 'on'")).unwrap();
    let fresh = world.fresh_driver();
    let (driver, group) = (Arc::clone(&fresh), members.clone());
    let publishing = tokio::spawn(async move { driver.publish_group(&group).await });
    let mut waits = false;
    for _ in 0..400 {
        let found =
            server.psql(&name, "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'").unwrap();
        waits = found.trim() == "1";
        if waits {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(25)).await;
    }
    assert!(waits, "the commit did not wait");
    server.stop(StopMode::Immediate).unwrap();
    let answers = publishing.await.unwrap();
    assert!(
        answers.iter().all(|answer| answer.as_ref().is_err_and(|error| error.class == ErrorClass::Ambiguous))
    );
    server.start().unwrap();
    // The records say that it happened, though staging is gone; a new engine learns of each.
    let answers = fresh.publish_group(&members).await;
    assert!(failed(&answers).is_empty(), "{answers:?}");
    server.psql("postgres", &format!("ALTER DATABASE {name} RESET synchronous_commit")).unwrap();
    let learnt = world.fresh_driver().fence(&fallen.works[0].run, Epoch(2)).await.unwrap();
    assert_eq!(learnt.len(), VICTIMS);
}

#[tokio::test(flavor = "multi_thread")]
async fn staging_that_a_crash_has_emptied_is_told_of_every_store() {
    let mut server = Postgres::own(&[]).unwrap();
    let fallen = Fallen::on(&server).await;
    let members = fallen.stage().await;
    server.stop(StopMode::Immediate).unwrap();
    server.start().unwrap();
    let answers = fallen.world.driver.publish_group(&members).await;
    let lost = |answer: &Result<Published, DriverError>| {
        answer.as_ref().is_err_and(|error| error.class == ErrorClass::StagingLost)
    };
    assert!(answers.iter().all(lost), "{answers:?}");
    let members = fallen.stage().await;
    let answers = fallen.world.driver.publish_group(&members).await;
    assert!(failed(&answers).is_empty(), "{answers:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_blocks_writers_for_too_long_is_undone_and_smaller_ones_are_not() {
    let fallen = Fallen::new().await;
    let world = &fallen.world;
    // Each project takes its time: half a second a store, four seconds all together.
    world.sql("ALTER TABLE project ADD CHECK (pg_sleep(0.12)::text IS NOT NULL) NOT VALID").await;
    let mut members = fallen.stage().await;
    members.iter_mut().for_each(|member| member.work.writer_block_milliseconds_max = Some(2000));
    let answers = world.driver.publish_group(&members).await;
    for answer in &answers {
        let error = answer.as_ref().unwrap_err();
        assert_eq!(error.class, ErrorClass::Permanent);
        assert!(error.message.contains("held its locks for longer than 2000 ms"), "{error}");
    }
    assert!(fallen.back().await.is_empty());
    for pair in members.chunks(2) {
        let answers = world.driver.publish_group(pair).await;
        assert!(failed(&answers).is_empty(), "{answers:?}");
    }
    assert_eq!(everything(world).await, fallen.before);
}

#[tokio::test(flavor = "multi_thread")]
async fn stores_that_do_not_fit_together_go_one_after_the_other() {
    let fallen = Fallen::new().await;
    let world = &fallen.world;
    world.sql("INSERT INTO project (site, key) VALUES ('v2', 'new')").await;
    let mut members = fallen.stage().await;
    members[2].work.overwrite = true;
    let answers = world.driver.publish_group(&members).await;
    assert!(failed(&answers).is_empty(), "{answers:?}");
    assert_eq!(answers[2].as_ref().unwrap().replaced, 1);
    assert_eq!(everything(world).await, fallen.before);
}
