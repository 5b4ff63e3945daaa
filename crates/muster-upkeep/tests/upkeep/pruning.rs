//! No promised moment is ever lost, and everything unpromised goes.

use std::collections::{BTreeMap, BTreeSet};

use muster_repo::check::check;
use muster_repo::runs::Appended;
use muster_repo::{RunObjects, keys, retention};
use muster_types::format::FORMAT;
use muster_types::incident::Incident;
use muster_types::journal::{JournalEntry, Record};
use muster_types::plan::Plan;
use muster_types::request::{PlanRequest, ProofLevel};
use muster_types::retention::{Hold, PlanHold, Retention};
use muster_types::snapshot::ObjectInfo;
use muster_types::{Digest, Epoch, PlanId, RunId, Timestamp};
use muster_upkeep::compact::compact_shard;
use muster_upkeep::fold::fold;
use muster_upkeep::prune::prune;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::compaction::crashing;
use crate::seeds;
use crate::world::{SITES, World};

const POLICY: Retention =
    Retention { every_moment_days: 2, daily_days: 6, grace_hours: 12, day_seconds: Retention::DAY_SECONDS };
const HOUR: i64 = 3_600_000_000;
const DAY: i64 = 24 * HOUR;

fn day(at: Timestamp) -> i64 {
    at.as_micros().div_euclid(DAY)
}

/// A repository in use.
struct Life {
    rng: ChaCha8Rng,
    world: World,
    dir: tempfile::TempDir,
    /// Holds in force.
    holds: Vec<Hold>,
    /// Saved plans: the site, the moment, and the hold.
    plans: Vec<(u8, Timestamp, PlanHold)>,
    /// Planned from a catalog of then, and not saved yet.
    in_flight: Option<(Timestamp, u8, Timestamp, Vec<ObjectInfo>)>,
    /// Open ones.
    runs: Vec<OpenRun>,
    names: u32,
    /// How often pruning was ended early, and how much it removed.
    crashes: u32,
    removed: u64,
    refused: u32,
    folded: u32,
}

impl Life {
    async fn new(seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let world = World::new(rng.random_bool(0.5)).await;
        let dir = tempfile::tempdir().unwrap();
        Self {
            rng,
            world,
            dir,
            holds: Vec::new(),
            plans: Vec::new(),
            in_flight: None,
            runs: Vec::new(),
            names: 0,
            crashes: 0,
            removed: 0,
            refused: 0,
            folded: 0,
        }
    }

    async fn capture(&mut self) {
        for _ in 0..self.rng.random_range(1..4) {
            for _ in 0..self.rng.random_range(0..3) {
                self.world.write(&mut self.rng);
            }
            self.world.pass(self.rng.random_range(0..2 * HOUR));
            let reread = self.rng.random_ratio(1, 60);
            self.world.poll(&mut self.rng, reread).await;
        }
    }

    async fn compact(&mut self) {
        if self.rng.random_ratio(1, 3) {
            let repository = crashing(&self.world, self.rng.random_range(0..200)).await;
            drop(compact_shard(&repository, &self.world.shard, self.dir.path()).await);
        } else {
            compact_shard(&self.world.repository, &self.world.shard, self.dir.path()).await.unwrap();
        }
    }

    async fn fold(&mut self) {
        let dir = tempfile::tempdir().unwrap();
        let count = self.rng.random_range(0..300);
        let repository = match self.rng.random_ratio(1, 3) {
            true => crashing(&self.world, count).await,
            false => self.world.repository.clone(),
        };
        if let Ok(Some(folded)) =
            fold(&repository, &self.world.shard, None, (dir.path(), self.world.now)).await
        {
            self.world.has_snapshot(folded.snapshot, folded.boundary);
            self.folded += 1;
        }
    }

    async fn prune(&mut self) {
        if self.rng.random_ratio(1, 3) {
            let repository = crashing(&self.world, self.rng.random_range(0..400)).await;
            self.crashes += u32::from(prune(&repository, &POLICY, self.world.now, false).await.is_err());
            return;
        }
        let would = prune(&self.world.repository, &POLICY, self.world.now, true).await.unwrap();
        let did = prune(&self.world.repository, &POLICY, self.world.now, false).await.unwrap();
        assert_eq!(did.left_alone, [] as [String; 0]);
        assert!(did.removed.objects <= would.removed.objects, "{did:?} and not {would:?}");
        self.removed += did.removed.objects;
    }

    async fn hold(&mut self) {
        if !self.holds.is_empty() && self.rng.random_bool(0.5) {
            let hold = self.holds.swap_remove(self.rng.random_range(0..self.holds.len()));
            assert!(retention::lift(&self.world.repository, &hold.name).await.unwrap());
            return;
        }
        // Within what is promised: nothing of it can be on its way out.
        let from = self.promised();
        self.names += 1;
        let hold = Hold {
            format: FORMAT,
            name: format!("hold-{}", self.names),
            placed_at: self.world.now,
            reason: "a test".to_owned(),
            shard: self.rng.random_bool(0.3).then(|| self.world.shard.clone()),
            site: None,
            from: Some(from),
            to: Some(from.plus_micros(self.rng.random_range(0..DAY))),
        };
        retention::place(&self.world.repository, &hold).await.unwrap();
        self.holds.push(hold);
    }

    /// A plan is made of any moment that can still be restored, and saved at once or later.
    async fn plan(&mut self) {
        let catalog = self.world.catalog().await;
        let site = self.rng.random_range(0..SITES);
        let at = self.world.now.plus_micros(-self.rng.random_range(0..8 * DAY));
        if self.world.judge(&catalog, site, at).await.is_err() {
            return;
        }
        let objects = self.world.objects_at(&catalog, site, at);
        if self.rng.random_ratio(1, 4) {
            self.open_run(objects).await;
        } else if self.rng.random_bool(0.5) {
            self.save(site, at, objects).await;
        } else if self.in_flight.is_none() {
            self.in_flight = Some((self.world.now, site, at, objects));
        }
    }

    /// A run of a plan is under way, held from before it began.
    async fn open_run(&mut self, objects: Vec<ObjectInfo>) {
        let keys: Vec<String> = objects.iter().map(|object| object.key.clone()).collect();
        if !retention::swept(&self.world.repository, &keys).await.unwrap().is_empty() {
            return;
        }
        self.names += 1;
        let run =
            RunObjects::new(&self.world.repository, RunId::new(format!("restore-{}", self.names)).unwrap());
        run.put_plan(&plan_of(&self.world, objects)).await.unwrap();
        let mut open = OpenRun { run, keys, opened_at: self.world.now, entries: 0, epoch: 1 };
        let (at, plan) = (self.world.now, Plan::unsealed_id());
        let (operator, by) = ("a test".to_owned(), "a test".to_owned());
        let records = vec![Record::Opened { plan, at, operator }, Record::Taken { epoch: Epoch(1), by, at }];
        open.append(at, Epoch(1), records).await;
        self.runs.push(open);
    }

    /// A run ends, well or given up.
    async fn end_run(&mut self) {
        if self.runs.is_empty() {
            return;
        }
        let mut run = self.runs.swap_remove(self.rng.random_range(0..self.runs.len()));
        let at = self.world.now;
        let failed = self.rng.random_bool(0.3);
        let finished = Record::Finished { at, sites_restored: 1, sites_failed: u64::from(failed) };
        run.epoch += 1;
        let taken = Record::Taken { epoch: Epoch(run.epoch), by: "a test".to_owned(), at };
        run.append(at, Epoch(run.epoch), vec![taken, finished]).await;
        if failed {
            // It can be resumed: it holds what it held.
            self.runs.push(run);
        }
    }

    async fn save(&mut self, site: u8, at: Timestamp, objects: Vec<ObjectInfo>) {
        self.names += 1;
        let hold = PlanHold {
            format: FORMAT,
            plan: PlanId::new(format!("plan-{}", self.names)).unwrap(),
            title: "a test".to_owned(),
            created_at: self.world.now,
            expires_at: self.world.now.plus_micros(self.rng.random_range(0..3 * DAY)),
            sites: None,
            topology: None,
            objects: objects.into_iter().map(|object| object.key).collect(),
        };
        retention::hold_plan(&self.world.repository, &hold).await.unwrap();
        if retention::swept(&self.world.repository, &hold.objects).await.unwrap().is_empty() {
            self.plans.push((site, at, hold));
        } else {
            self.refused += 1;
        }
    }

    fn promised(&mut self) -> Timestamp {
        let since = POLICY.every_moment_since(self.world.now).max(self.world.snapshots[0].1.at);
        since.plus_micros(self.rng.random_range(0..=self.world.now.as_micros() - since.as_micros()))
    }

    /// Everything that is promised, held or planned can be restored, to where it always came to.
    async fn judge(&mut self) {
        let catalog = self.world.catalog().await;
        let mut moments: Vec<Timestamp> = (0..3).map(|_| self.promised()).collect();
        moments.push(POLICY.every_moment_since(self.world.now).max(self.world.snapshots[0].1.at));
        for hold in &self.holds {
            let (from, to) = (hold.from.unwrap(), hold.to.unwrap().min(self.world.now));
            moments.push(from.plus_micros(self.rng.random_range(0..=to.as_micros() - from.as_micros())));
        }
        for at in moments {
            let judged = self.world.judge(&catalog, self.rng.random_range(0..SITES), at).await.unwrap();
            assert_eq!(Some(judged.point.boundary.position), self.world.expected(at), "{at}");
        }
        let mut days = BTreeSet::new();
        for (_, boundary) in self.world.snapshots.clone() {
            let first = days.insert(day(boundary.at));
            if first && day(boundary.at) >= day(POLICY.daily_since(self.world.now)) {
                // PostgreSQL: where the log is there, the last commit before the snapshot is the point.
                let judged = self.world.judge(&catalog, 0, boundary.at).await.unwrap();
                let reached = judged.point.boundary.position;
                let expected = self.world.expected(boundary.at);
                assert!(
                    reached == boundary.position || Some(reached) == expected,
                    "{boundary:?}: {judged:?}"
                );
            }
        }
        if self.rng.random_ratio(1, 8) {
            // What was pruned, or is half gone, is not taken for lost.
            let checked = check(&self.world.repository, 1.0, self.world.now).await.unwrap();
            assert_eq!(checked.damages, []);
        }
        let keys: BTreeSet<String> = self.world.memory.keys().into_iter().collect();
        self.judge_runs(&keys);
        self.plans.retain(|(_, _, hold)| hold.expires_at >= self.world.now);
        for (site, at, hold) in &self.plans {
            let gone: Vec<&String> = hold.objects.iter().filter(|key| !keys.contains(*key)).collect();
            assert!(gone.is_empty(), "plan of site {site} to {at} lost {gone:?}");
        }
    }

    /// What open runs read is there, and the chain since they began.
    fn judge_runs(&self, keys: &BTreeSet<String>) {
        for run in &self.runs {
            let gone: Vec<&String> = run.keys.iter().filter(|key| !keys.contains(*key)).collect();
            assert!(gone.is_empty(), "run {} lost {gone:?}", run.run.run());
            for (number, end) in (1..).zip(self.world.ends()) {
                let index = keys::segment_index(&self.world.shard, &self.world.incarnation, number);
                assert!(end.at < run.opened_at || keys.contains(&index), "{index}");
            }
        }
    }

    async fn step(&mut self) {
        match self.rng.random_range(0..100) {
            0..45 => self.capture().await,
            45..50 => self.world.snapshot().await,
            50..53 => self.fold().await,
            53..65 => self.compact().await,
            65..85 => self.prune().await,
            85..90 => self.plan().await,
            90..95 => self.end_run().await,
            _ => self.hold().await,
        }
        if self.rng.random_ratio(1, 5) {
            self.world.reopen().await;
        }
        // Whoever plans saves it well within the grace.
        if let Some((since, ..)) = &self.in_flight
            && (self.world.now > since.plus_micros(3 * HOUR) || self.rng.random_ratio(1, 4))
            && let Some((_, site, at, objects)) = self.in_flight.take()
        {
            self.save(site, at, objects).await;
        }
    }

    /// Days later, with nothing held, only what is promised is left.
    async fn end(&mut self) {
        for hold in std::mem::take(&mut self.holds) {
            retention::lift(&self.world.repository, &hold.name).await.unwrap();
        }
        for mut run in std::mem::take(&mut self.runs) {
            let at = self.world.now;
            let (epoch, by) = (Epoch(run.epoch + 1), "a test".to_owned());
            let records =
                vec![Record::Taken { epoch, by, at }, Record::Abandoned { at, reason: "a test".to_owned() }];
            run.append(at, epoch, records).await;
        }
        for day in 0..12 {
            // A fold is as good as a snapshot.
            match day % 3 {
                0 => self.world.snapshot().await,
                _ => self.fold().await,
            }
            self.capture().await;
            self.world.pass(DAY - HOUR);
            self.capture().await;
            prune(&self.world.repository, &POLICY, self.world.now, false).await.unwrap();
        }
        // Without a grace, so that no time passes: condemned, removed, forgotten.
        let at_once = Retention { grace_hours: 0, ..POLICY };
        for _ in 0..3 {
            prune(&self.world.repository, &at_once, self.world.now, false).await.unwrap();
        }
        self.judge().await;
        let since = POLICY.every_moment_since(self.world.now);
        let reached = self.world.expected(since).unwrap();
        let base = self.world.snapshots.iter().rfind(|(_, boundary)| boundary.position <= reached).unwrap().1;
        let mut days = BTreeMap::new();
        let mut promised: BTreeSet<String> = BTreeSet::new();
        for (id, boundary) in &self.world.snapshots {
            // Two of one state are as good as each other.
            let first = days.entry(day(boundary.at)).or_insert(*boundary) == boundary;
            let daily = first && day(boundary.at) >= day(POLICY.daily_since(self.world.now));
            if daily || *boundary >= base {
                promised.insert(id.to_string());
            }
        }
        let last = self.world.ends().len() as u64;
        for key in self.world.memory.keys() {
            assert!(!key.starts_with("plans/") && !key.starts_with("prune/"), "{key}");
            if let Some((_, rest)) = key.split_once("/snapshots/") {
                assert!(promised.contains(rest.split_once('/').unwrap().0), "{key} is promised to nobody");
            }
            let log = key.split_once("/log/").map(|(_, rest)| rest[..20].parse::<u64>().unwrap());
            let root = key
                .contains("/compacted/level-")
                .then(|| key[key.len() - 29..key.len() - 9].parse().unwrap());
            if let Some(sequence) = log.or(root) {
                let end = self.world.ends()[usize::try_from(sequence).unwrap() - 1];
                let needed = end.position >= base.position || sequence + 16 > last;
                assert!(needed, "{key} ends at {end:?}, before {base:?}");
            }
        }
    }
}

/// A run, its objects and its journal.
struct OpenRun {
    run: RunObjects,
    keys: Vec<String>,
    opened_at: Timestamp,
    entries: u64,
    epoch: u64,
}

impl OpenRun {
    async fn append(&mut self, at: Timestamp, epoch: Epoch, records: Vec<Record>) {
        self.entries += 1;
        let (format, run) = (FORMAT, self.run.run().clone());
        let (sequence, writer, attempt) = (self.entries, "a test".to_owned(), self.entries);
        let entry =
            JournalEntry { format, run, sequence, epoch, writer, attempt, at, records, restraint: None };
        assert!(matches!(self.run.append(&entry).await.unwrap(), Appended::Mine));
    }
}

fn plan_of(world: &World, objects: Vec<ObjectInfo>) -> Plan {
    let incident = Incident {
        format: FORMAT,
        title: "a test".to_owned(),
        declared_at: world.now,
        id_source: "a test".to_owned(),
        sites: Vec::new(),
    };
    let plan = Plan {
        format: FORMAT,
        id: Plan::unsealed_id(),
        created_at: world.now,
        expires_at: world.now,
        provisions: BTreeMap::new(),
        references: Vec::new(),
        kind_checks: BTreeMap::new(),
        request: PlanRequest {
            placement: Default::default(),
            incident,
            proof: ProofLevel::Marked,
            overwrite: BTreeSet::new(),
            accept_block: BTreeSet::new(),
            accept_gap: BTreeSet::new(),
        },
        repository: world.repository.id().to_owned(),
        topology: Digest::of(b"topology"),
        objects,
        tables: Vec::new(),
        sites: Vec::new(),
        shards: BTreeMap::new(),
        pools: BTreeMap::new(),
        steps: Vec::new(),
        notes: Vec::new(),
    };
    plan.seal()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_promised_moment_is_lost_and_everything_else_goes() {
    let (mut crashes, mut removed, mut refused, mut folded) = (0, 0, 0, 0);
    for seed in seeds(6) {
        let mut life = Life::new(seed).await;
        for _ in 0..150 {
            life.step().await;
            life.judge().await;
        }
        life.end().await;
        (crashes, removed) = (crashes + life.crashes, removed + life.removed);
        refused += life.refused;
        folded += life.folded;
    }
    println!(
        "{crashes} prunings ended early, {removed} objects removed, {refused} plans refused, {folded} folds"
    );
    // One seed alone may be a quiet one.
    assert!(std::env::var_os("MUSTER_SEED").is_some() || removed > 0 && crashes > 0 && folded > 0);
}
