//! One drill, from its file to its record.
//!
//! Clean what others left; choose; make the sandbox; plan, run and compare, once or twice; remove; record.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use muster_engine::{Cancel, Options, RunSummary, load_report};
use muster_plan::planner::select_placed;
use muster_repo::catalog::{self, CatalogQuery, Sites};
use muster_repo::{DrillObjects, Repository};
use muster_stores::sandbox::{Hold, Sandbox, SandboxDrivers};
use muster_types::catalog::Catalog;
use muster_types::drill::{DrillBegun, DrillRecord, DrillSpec, DrilledSite, DrilledStore, Made, Verdict};
use muster_types::format::FORMAT;
use muster_types::incident::Incident;
use muster_types::plan::Plan;
use muster_types::report::Report;
use muster_types::request::{PlanRequest, ProofLevel};
use muster_types::topology::{SandboxShard, Topology};
use muster_types::{DrillId, RunId, ShardName, SiteId, Timestamp};

use crate::choice::{self, Choice, Chooser};
use crate::clean::{clean, close_runs};
use crate::compare::{Compared, Truth, compare};
use crate::error::DrillError;
use crate::open_runs::OpenRuns;
use crate::past_runs;
use crate::plan::{DrillInput, DrillPlan, rehearse};

/// What the names of drills' runs begin with.
pub const RUN_PREFIX: &str = "drill-";

/// Between two looks for a real run: a run that begins beside a drill has it out of its way after about so long.
const OPEN_RUNS_PAUSE: Duration = Duration::from_secs(2);

/// Running steps are given so long to end once a drill is to stop; then they are cut off with their sandbox.
const STOP_PATIENCE: Duration = Duration::from_secs(60);

/// One drill.
pub struct Drill<'a> {
    /// The repository.
    pub repository: &'a Repository,
    /// The topology.
    pub topology: &'a Topology,
    /// The drill file.
    pub spec: &'a DrillSpec,
    /// The incident that it replays.
    pub incident: Option<&'a Incident>,
    /// Its id, new.
    pub id: DrillId,
    /// The seed where the file has none.
    pub seed: u64,
    /// How its engine works; the operator's name and the clock count for the drill, too.
    pub options: Options,
    /// Stopped from outside.
    pub cancel: Cancel,
}

/// What is known while a drill is under way.
struct Findings {
    record: DrillRecord,
    stopped: Option<String>,
}

impl Findings {
    fn error(&mut self, what: impl Into<String>) {
        self.record.errors.push(what.into());
    }
}

/// Where a drill makes its shards, held against cleaning.
struct Premises {
    sandboxes: BTreeMap<String, Sandbox>,
    _holds: Vec<Hold>,
}

/// Why nothing was rehearsed, and what is known of the drill all the same.
struct Unreached {
    error: DrillError,
    record: Option<Box<DrillRecord>>,
}

impl<E: Into<DrillError>> From<E> for Unreached {
    fn from(error: E) -> Self {
        Self { error: error.into(), record: None }
    }
}

impl Drill<'_> {
    /// Runs it.
    ///
    /// # Errors
    /// [`DrillError`] where nothing was rehearsed. What came of it is in the record, and the record in the repository, in
    /// either case.
    pub async fn run(self) -> Result<DrillRecord, DrillError> {
        let began_at = self.options.clock.now();
        let (record, error) = match self.reach(began_at).await {
            Ok(record) => (record, None),
            Err(Unreached { error, record }) => {
                let record = record.map_or_else(|| self.unreached(began_at, &error), |record| *record);
                (record, Some(error))
            }
        };
        let recorded = DrillObjects::new(self.repository).record(&record).await;
        match (error, recorded) {
            (None, recorded) => recorded.map(|()| record).map_err(DrillError::from),
            (Some(error), Ok(())) => Err(error),
            (Some(error), Err(why)) => Err(DrillError::Unrecorded { error: Box::new(error), why }),
        }
    }

    /// Rehearses in a sandbox, if it comes that far.
    async fn reach(&self, began_at: Timestamp) -> Result<DrillRecord, Unreached> {
        // A sandbox that cannot be cleaned is told when it is to be used.
        clean(self.repository, self.topology, &self.options).await?;
        let mut open = OpenRuns::default();
        if let Some(run) = open.find(self.repository).await? {
            let error = DrillError::Refused(format!(
                "run {run} is open, and drills wait for real runs: `muster status {run}` shows it; run the drill again when it \
                 has ended"
            ));
            // It says nothing about the restore.
            let record = DrillRecord { verdict: Verdict::Stopped, ..self.unreached(began_at, &error) };
            return Err(Unreached { error, record: Some(Box::new(record)) });
        }
        let (choice, seed) = self.choose(began_at).await?;
        let shards = self.shards(&choice).await?;
        let moment = choice.rounds.last().and_then(|incident| incident.sites.first()).map(|site| site.target);
        let blank = DrillRecord {
            moment,
            made: shards.iter().map(SandboxShard::made).collect(),
            ..self.blank(began_at, seed)
        };
        let mut findings = Findings { record: blank, stopped: None };
        let made = self.make(&shards, &findings.record).await?;
        self.rehearse_all(&choice, &shards, &mut open, &mut findings).await;
        self.remove(&made, &mut findings).await;
        if let Err(error) = close_runs(
            self.repository,
            &self.options,
            &self.id,
            "the drill has ended, and its sandbox is removed",
        )
        .await
        {
            findings.error(format!("the drill's runs cannot be closed: {error}"));
        }
        drop(made);
        Ok(self.judge(findings))
    }

    /// Of a drill that did not come to its sandbox.
    fn unreached(&self, began_at: Timestamp, error: &DrillError) -> DrillRecord {
        let record = self.blank(began_at, self.spec.seed.unwrap_or(self.seed));
        DrillRecord { ended_at: self.options.clock.now(), errors: vec![error.to_string()], ..record }
    }

    async fn choose(&self, now: Timestamp) -> Result<(Choice, u64), DrillError> {
        let mut catalog = self.catalog(Sites::All).await?;
        let history = DrillObjects::new(self.repository).records(Timestamp::EPOCH).await?;
        let seed = self.spec.seed.unwrap_or(self.seed);
        let at = match self.incident {
            Some(incident) => incident.sites.first().map_or(now, |site| site.target),
            None => self.chooser(&catalog, &history, seed, now).moment()?,
        };
        choice::read_facts(self.repository, self.topology, &mut catalog, self.spec, at).await?;
        Ok((self.chooser(&catalog, &history, seed, now).choose(at)?, seed))
    }

    fn chooser<'c>(
        &'c self,
        catalog: &'c Catalog,
        history: &'c [DrillRecord],
        seed: u64,
        now: Timestamp,
    ) -> Chooser<'c> {
        let (spec, incident, topology) = (self.spec, self.incident, self.topology);
        Chooser { spec, incident, topology, catalog, history, seed, now }
    }

    async fn catalog(&self, sites: Sites) -> Result<Catalog, DrillError> {
        let query = CatalogQuery { sites, shards: None };
        Ok(catalog::survey(self.repository, &query, self.options.clock.now()).await?.catalog)
    }

    /// The catalog of the sites of an incident, with their facts.
    async fn catalog_of(&self, incident: &Incident) -> Result<Catalog, DrillError> {
        let sites: BTreeSet<SiteId> = incident.sites.iter().map(|site| site.site.clone()).collect();
        let mut catalog = self.catalog(Sites::Some(sites)).await?;
        muster_inspect::read_facts(self.repository, self.topology, &mut catalog, &incident.sites).await?;
        Ok(catalog)
    }

    /// A shard of the drill's own for every one that stores would go to.
    async fn shards(&self, choice: &Choice) -> Result<Vec<SandboxShard>, DrillError> {
        let mut targets: BTreeSet<ShardName> = BTreeSet::new();
        for incident in &choice.rounds {
            let catalog = self.catalog_of(incident).await?;
            let stores = select_placed(self.topology, &catalog, &incident.sites, &choice.placement)?;
            targets.extend(stores.into_iter().map(|store| store.shard));
        }
        let shard = |(number, of): (usize, &ShardName)| self.topology.sandbox_shard(&self.id, number, of);
        let shards: Result<Vec<_>, _> = targets.iter().enumerate().map(shard).collect();
        shards.map_err(|error| DrillError::Input(error.to_string()))
    }

    fn blank(&self, began_at: Timestamp, seed: u64) -> DrillRecord {
        DrillRecord {
            format: FORMAT,
            id: self.id.clone(),
            name: self.spec.name.clone(),
            class: self.spec.class,
            seed,
            began_at,
            ended_at: began_at,
            moment: None,
            runs: Vec::new(),
            plans: Vec::new(),
            verdict: Verdict::Failed,
            errors: Vec::new(),
            sites: Vec::new(),
            left_out: self.topology.kinds_with_commands().cloned().collect(),
            rto_seconds: None,
            rpo_seconds: None,
            rows: 0,
            bytes: 0,
            run_seconds: 0.0,
            forecast: None,
            made: Vec::new(),
            left: Vec::new(),
        }
    }

    /// Notes what will be made, then makes it. What a failure leaves is removed.
    async fn make(&self, shards: &[SandboxShard], record: &DrillRecord) -> Result<Premises, Unreached> {
        let names: BTreeSet<&str> = shards.iter().map(SandboxShard::sandbox).collect();
        let (mut sandboxes, mut holds) = (BTreeMap::new(), Vec::new());
        for name in names {
            sandboxes.insert(name.to_owned(), Sandbox::open(self.topology, name)?);
        }
        let begun = DrillBegun {
            format: FORMAT,
            id: self.id.clone(),
            name: self.spec.name.clone(),
            at: record.began_at,
            by: self.options.operator.clone(),
            makes: record.made.clone(),
        };
        DrillObjects::new(self.repository).begin(&begun).await?;
        for sandbox in sandboxes.values() {
            holds.extend(sandbox.hold(&self.id).await?);
        }
        let made = Premises { sandboxes, _holds: holds };
        for shard in shards {
            let Some(sandbox) = made.sandboxes.get(shard.sandbox()) else { continue };
            if let Err(error) = sandbox.make(shard).await {
                let mut findings = Findings { record: record.clone(), stopped: None };
                findings.error(error.to_string());
                self.remove(&made, &mut findings).await;
                let record = Some(Box::new(self.judge(findings)));
                return Err(Unreached { error: error.into(), record });
            }
        }
        Ok(made)
    }

    /// Restores every round, and compares the last.
    async fn rehearse_all(
        &self,
        choice: &Choice,
        shards: &[SandboxShard],
        open: &mut OpenRuns,
        findings: &mut Findings,
    ) {
        let topology = self.topology.for_drill(shards, &self.spec.limits);
        let drivers = match SandboxDrivers::open(&topology, shards) {
            Ok(drivers) => drivers,
            Err(error) => return findings.error(error.to_string()),
        };
        for (number, incident) in choice.rounds.iter().enumerate() {
            let last = number + 1 == choice.rounds.len();
            let round = Round { number, incident, choice, topology: &topology, shards, drivers: &drivers };
            match self.round(round, open, findings).await {
                Ok(Some((plan, report))) if last => {
                    if let Err(error) = self.prove(choice, &drivers, &plan, &report, findings).await {
                        findings.error(format!("what came back cannot be compared: {error}"));
                    }
                }
                Ok(Some(_)) => {}
                Ok(None) => return,
                Err(error) => return findings.error(error.to_string()),
            }
        }
    }

    /// Plans and runs one round; none where it was stopped, or did not come to its end.
    async fn round(
        &self,
        round: Round<'_>,
        open: &mut OpenRuns,
        findings: &mut Findings,
    ) -> Result<Option<(Plan, Report)>, DrillError> {
        let now = self.options.clock.now();
        let catalog = self.catalog_of(round.incident).await?;
        let incident = Incident { declared_at: now, ..round.incident.clone() };
        let overwrite = round.number > 0;
        let request = PlanRequest {
            overwrite: incident.sites.iter().filter(|_| overwrite).map(|site| site.site.clone()).collect(),
            incident,
            proof: ProofLevel::Marked,
            accept_block: BTreeSet::new(),
            accept_gap: BTreeSet::new(),
            placement: round.choice.placement.clone(),
        };
        let Round { topology, shards, drivers, .. } = round;
        let input = DrillInput { topology, shards, drivers, catalog: &catalog, now };
        let plan = DrillPlan::make(input, request).await?;
        findings.record.plans.push(plan.plan().id.clone());
        let obstacles = plan.obstacles();
        if !obstacles.is_empty() {
            findings.record.errors.extend(obstacles);
            return Ok(None);
        }
        if let Some(what) = self.no_room(plan.plan(), shards) {
            findings.error(what);
            return Ok(None);
        }
        let run = RunId::new(format!("{RUN_PREFIX}{}-{}", self.id, round.number + 1))
            .map_err(|error| DrillError::Input(error.to_string()))?;
        findings.record.runs.push(run.clone());
        let Some(summary) = self.watched(&plan, drivers, &run, open, findings).await? else {
            return Ok(None);
        };
        for failure in &summary.failures {
            findings.error(format!("{}: {}", failure.step, failure.error));
        }
        let report =
            load_report(self.repository, &run).await.map_err(|error| DrillError::Engine(error.into()))?;
        if summary.sites_failed > 0 {
            self.note(&report, plan.plan(), &BTreeMap::new(), findings);
            return Ok(None);
        }
        findings.record.forecast = match past_runs::judged(self.repository, &run).await {
            Ok(forecast) => forecast,
            Err(error) => {
                findings.error(format!("the run's forecast cannot be judged: {error}"));
                None
            }
        };
        Ok(Some((plan.plan().clone(), report)))
    }

    /// Why a sandbox may not hold what the plan loads, if so.
    fn no_room(&self, plan: &Plan, shards: &[SandboxShard]) -> Option<String> {
        let mut wanted: BTreeMap<&str, u64> = BTreeMap::new();
        for store in plan.sites.iter().flat_map(|site| &site.stores) {
            let Some(shard) = shards.iter().find(|shard| *shard.name() == store.shard) else { continue };
            *wanted.entry(shard.sandbox()).or_default() += store.raw_bytes;
        }
        wanted.into_iter().find_map(|(name, bytes)| {
            let most = self.topology.sandboxes.get(name)?.bytes_max;
            (bytes > most).then(|| {
                format!(
                    "sandbox `{name}` has no room: {bytes} bytes of rows would go there, and its `bytes_max` is {most}; raise \
                     it in the topology, or drill fewer sites"
                )
            })
        })
    }

    /// Runs the plan while nothing says that the drill is to stop.
    async fn watched(
        &self,
        plan: &DrillPlan,
        drivers: &SandboxDrivers,
        run: &RunId,
        open: &mut OpenRuns,
        findings: &mut Findings,
    ) -> Result<Option<RunSummary>, DrillError> {
        let cancel = Cancel::new();
        let work = rehearse(self.repository, plan, drivers, run, self.options.clone(), &cancel);
        let mut work = std::pin::pin!(work);
        let reason = tokio::select! {
            done = &mut work => return Ok(Some(done?)),
            reason = self.stop_reason(open) => reason,
        };
        cancel.cancel();
        findings.stopped = Some(reason?);
        // What does not end by itself is cut off when the sandbox goes.
        let _ = tokio::time::timeout(STOP_PATIENCE, work).await;
        Ok(None)
    }

    async fn stop_reason(&self, open: &mut OpenRuns) -> Result<String, DrillError> {
        let limit = Duration::from_secs(self.spec.timeout_seconds);
        let real_run = async {
            loop {
                tokio::time::sleep(OPEN_RUNS_PAUSE).await;
                match open.find(self.repository).await {
                    Ok(None) => {}
                    Ok(Some(run)) => {
                        return Ok(format!("run {run} was opened, and drills make way for real runs"));
                    }
                    Err(error) => return Err(error),
                }
            }
        };
        tokio::select! {
            reason = real_run => reason,
            () = tokio::time::sleep(limit) => Ok(format!("it took longer than its {} s", limit.as_secs())),
            () = self.cancel.cancelled() => Ok("the operator stopped it".to_owned()),
        }
    }

    /// Compares what came back, and notes times and rows.
    async fn prove(
        &self,
        choice: &Choice,
        drivers: &SandboxDrivers,
        plan: &Plan,
        report: &Report,
        findings: &mut Findings,
    ) -> Result<(), DrillError> {
        let sites = plan.sites.iter().map(|site| site.site.clone()).collect();
        let catalog = self.catalog(Sites::Some(sites)).await?;
        let (repository, topology, placement) = (self.repository, self.topology, &choice.placement);
        let truth = Truth { repository, topology, catalog: &catalog, placement };
        let mut compared: BTreeMap<SiteId, Compared> = BTreeMap::new();
        for site in &plan.sites {
            compared.insert(site.site.clone(), compare(truth, drivers, site).await?);
        }
        self.note(report, plan, &compared, findings);
        Ok(())
    }

    fn note(
        &self,
        report: &Report,
        plan: &Plan,
        compared: &BTreeMap<SiteId, Compared>,
        findings: &mut Findings,
    ) {
        for site in &plan.sites {
            let told = report.sites.iter().find(|told| told.site == site.site);
            let results = compared.get(&site.site).map_or(&[][..], Vec::as_slice);
            let mut stores = Vec::with_capacity(site.stores.len());
            for (number, store) in site.stores.iter().enumerate() {
                let result = results.get(number);
                if let Some(Err(why)) = result {
                    findings.error(format!("{}/{}: {why}", site.site, store.kind));
                }
                let rows = result.and_then(|result| result.as_ref().ok()).copied();
                findings.record.rows += rows.unwrap_or(0);
                stores.push(DrilledStore {
                    kind: store.kind.clone(),
                    shard: store.source.clone(),
                    reached: store.reached,
                    rows: rows.unwrap_or(0),
                    proven: rows.is_some(),
                });
            }
            for why in results.iter().skip(site.stores.len()).filter_map(|result| result.as_ref().err()) {
                findings.error(format!("{}: {why}", site.site));
            }
            findings.record.sites.push(DrilledSite {
                site: site.site.clone(),
                tier: site.facts.tier.clone(),
                target: site.target,
                rto_seconds: told.and_then(|told| told.rto_declared_seconds),
                rpo_seconds: told.and_then(|told| told.rpo_seconds),
                stores,
            });
        }
        let record = &mut findings.record;
        record.rto_seconds = (report.rto_declared.count > 0).then_some(report.rto_declared.p95);
        record.rpo_seconds = (report.rpo.count > 0).then_some(report.rpo.max);
        record.bytes = report.totals.bytes;
        record.run_seconds = report.totals.seconds;
        self.hold_against(report, findings);
    }

    /// Times beside those that are expected: of the drill file, else of the sites' tiers.
    fn hold_against(&self, report: &Report, findings: &mut Findings) {
        let expect = &self.spec.expect;
        let record = &findings.record;
        let mut above = Vec::new();
        for (what, reached, expected, misses) in [
            (
                "recovery time (95th percentile)",
                record.rto_seconds,
                expect.rto_seconds,
                &report.rto_declared.misses,
            ),
            ("recovery point (worst)", record.rpo_seconds, expect.rpo_seconds, &report.rpo.misses),
        ] {
            match (reached, expected) {
                (Some(reached), Some(expected)) if reached > expected => {
                    above.push(format!("the {what} is {reached:.1} s, above the expected {expected:.1} s"));
                }
                (_, None) if !misses.is_empty() => {
                    let first = &misses[0];
                    above.push(format!(
                        "the {what} of {} sites is above their tier's target, {first} first",
                        misses.len()
                    ));
                }
                _ => {}
            }
        }
        findings.record.errors.extend(above);
    }

    /// Removes everything that was made, and looks whether it is gone.
    async fn remove(&self, made: &Premises, findings: &mut Findings) {
        let own = |name: &String| muster_stores::sandbox::drill_of(name).as_ref() == Some(&self.id);
        for (sandbox_name, sandbox) in &made.sandboxes {
            let named = |name: String| Made { sandbox: sandbox_name.clone(), name };
            let listed = match sandbox.list().await {
                Ok(listed) => listed,
                Err(error) => {
                    let of = findings.record.made.iter().filter(|made| made.sandbox == *sandbox_name);
                    let left: Vec<Made> = of.cloned().collect();
                    findings.record.left.extend(left);
                    findings.error(format!("what the drill made is not removed: {error}"));
                    continue;
                }
            };
            for name in listed.into_iter().filter(own) {
                if let Err(error) = sandbox.remove(&name).await {
                    findings.error(format!("`{name}` is not removed: {error}"));
                }
            }
            match sandbox.list().await {
                Ok(listed) => findings.record.left.extend(listed.into_iter().filter(own).map(named)),
                Err(error) => {
                    findings.error(format!("whether everything is removed cannot be told: {error}"));
                }
            }
        }
        if !findings.record.left.is_empty() {
            findings.error("what the drill made is left in the sandbox; run `muster drill clean`");
        }
    }

    fn judge(&self, findings: Findings) -> DrillRecord {
        let Findings { mut record, stopped } = findings;
        record.ended_at = self.options.clock.now();
        record.verdict = match (&stopped, record.errors.is_empty()) {
            (_, false) => Verdict::Failed,
            (Some(_), true) => Verdict::Stopped,
            (None, true) if record.sites.is_empty() => Verdict::Failed,
            (None, true) => Verdict::Passed,
        };
        record.errors.extend(stopped);
        record
    }
}

/// One restore of a drill.
#[derive(Clone, Copy)]
struct Round<'a> {
    number: usize,
    incident: &'a Incident,
    choice: &'a Choice,
    topology: &'a Topology,
    shards: &'a [SandboxShard],
    drivers: &'a SandboxDrivers,
}
