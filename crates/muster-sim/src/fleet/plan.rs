//! A plan over a fleet, made by hand: what the planner decides has tests of its own.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use muster_types::catalog::SiteFacts;
use muster_types::format::FORMAT;
use muster_types::incident::{Incident, IncidentSite};
use muster_types::plan::{
    BaseInput, LiveStore, Plan, PlanStep, Restoration, ShardPlan, SitePlan, StepKey, StorePlan, TableInput,
};
use muster_types::request::{Placement, PlanRequest, ProofLevel};
use muster_types::snapshot::ObjectInfo;
use muster_types::{Boundary, Digest, Kind, Position, ShardName, SiteId, StoreId, Timestamp};

use super::{Fleet, sandbox, time, victim};
use crate::dice::Dice;

/// What a plan's makers chose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PlanShape {
    /// Which victims, by number.
    pub(crate) victims: Vec<usize>,
    /// Slots for staging and publishing.
    pub(crate) slots: (u64, u64),
    /// Sites whose stores of one kind run together; 1 for none.
    pub(crate) together: usize,
    /// The neighbours are digested before and after.
    pub(crate) full: bool,
    /// Into shards of a drill.
    pub(crate) drill: bool,
}

impl PlanShape {
    /// A drill of some victims.
    pub(crate) fn draw_drill(dice: &mut Dice, victims: Vec<usize>) -> Self {
        Self { full: false, drill: true, ..Self::draw(dice, victims) }
    }

    /// Where what lives in a shard goes.
    fn place(&self, shard: &ShardName) -> Result<ShardName> {
        if self.drill { sandbox(shard) } else { Ok(shard.clone()) }
    }

    /// Of some victims.
    pub(crate) fn draw(dice: &mut Dice, victims: Vec<usize>) -> Self {
        let together =
            if dice.chance(400_000) { usize::try_from(dice.between(2, 3)).unwrap_or(2) } else { 1 };
        let slots = (dice.between(1, 4), dice.between(1, 2));
        Self { victims, slots, together, full: dice.chance(500_000), drill: false }
    }
}

/// The plan.
pub(crate) fn plan(fleet: &Fleet, shape: &PlanShape) -> Result<Plan> {
    let mut builder =
        Builder { fleet, shape, objects: Vec::new(), steps: Vec::new(), groups: BTreeMap::new() };
    let sites = shape.victims.iter().map(|&number| builder.site(number)).collect::<Result<Vec<_>>>()?;
    builder.all_steps(&sites)?;
    let plan = Plan {
        format: FORMAT,
        id: Plan::unsealed_id(),
        created_at: time(100),
        expires_at: Timestamp::from_micros(i64::MAX),
        request: request(&sites, shape.drill),
        repository: fleet.catalog.repository.clone(),
        topology: Digest::of(b"topology"),
        objects: builder.objects,
        tables: fleet.tables.clone(),
        references: Vec::new(),
        kind_checks: BTreeMap::new(),
        shards: fleet
            .shards()
            .into_iter()
            .map(|shard| Ok((shape.place(shard)?, shard_plan(fleet, shard))))
            .collect::<Result<_>>()?,
        sites,
        provisions: BTreeMap::new(),
        pools: BTreeMap::from([("stage".to_owned(), shape.slots.0), ("publish".to_owned(), shape.slots.1)]),
        steps: builder.steps,
        notes: Vec::new(),
    };
    Ok(plan.seal())
}

fn shard_plan(fleet: &Fleet, shard: &ShardName) -> ShardPlan {
    let kinds = fleet.home.iter().filter(|(_, home)| *home == shard).map(|(kind, _)| kind.clone());
    ShardPlan {
        region: "eu".to_owned(),
        driver: "model".to_owned(),
        writer_block_milliseconds_max: 1000,
        stage_bytes_per_second_max: None,
        stores: 1,
        rows: 1,
        kinds: kinds.collect(),
    }
}

struct Builder<'a> {
    fleet: &'a Fleet,
    shape: &'a PlanShape,
    objects: Vec<ObjectInfo>,
    steps: Vec<PlanStep>,
    /// Numbers of groups by verb, kind and part of the sites.
    groups: BTreeMap<(String, usize), u32>,
}

impl Builder<'_> {
    fn kinds(&self) -> Result<Vec<Kind>> {
        super::KINDS.iter().take(self.fleet.shape.kinds).map(|(kind, _)| Ok(kind.parse()?)).collect()
    }

    fn site(&mut self, number: usize) -> Result<SitePlan> {
        let site = victim(number)?;
        let stores =
            self.kinds()?.into_iter().map(|kind| self.store(&site, kind)).collect::<Result<Vec<_>>>()?;
        Ok(SitePlan {
            site,
            facts: SiteFacts { users: 3, ..SiteFacts::default() },
            target: time(50),
            outage_at: Some(time(60)),
            wave: u32::try_from(number % 2).unwrap_or(0),
            rto_seconds: 3600,
            rpo_seconds: 30,
            stores,
            references: Vec::new(),
            beside: Vec::new(),
        })
    }

    fn store(&mut self, site: &SiteId, kind: Kind) -> Result<StorePlan> {
        let fleet = self.fleet;
        let shard = fleet.home.get(&kind).context("a kind without a shard")?;
        let trace = fleet.catalog.sites.get(site).context("a site without a trace")?;
        let trace = trace.traces.iter().find(|trace| trace.shard == *shard).context("not in its shard")?;
        let history = fleet.catalog.shards.get(shard).and_then(|shard| shard.incarnations.first());
        let history = history.context("a shard without a history")?;
        let snapshot = history.snapshots.first().context("a history without a snapshot")?;
        let slices = trace.snapshots.get(&0).context("a site without slices")?;
        let own = fleet.tables_of(shard);
        let mut inputs = Vec::new();
        let mut bytes = 0;
        for slice in slices {
            let table = &own[slice.table as usize];
            if table.kind != kind {
                continue;
            }
            let pack = snapshot.packs.get(slice.pack as usize).context("a slice without a pack")?;
            let base = BaseInput {
                object: self.object(pack)?,
                chunks: slice.chunks.clone(),
                rows_digest: slice.rows_digest,
            };
            bytes += slice.chunks.iter().map(|chunk| chunk.bytes).sum::<u64>();
            let number = fleet.tables.iter().position(|known| known.def.name == table.def.name);
            let table = u32::try_from(number.context("an unknown table")?)?;
            inputs.push(TableInput { table, base: Some(base), changes: vec![] });
        }
        Ok(StorePlan {
            kind,
            restoration: Restoration::Restored,
            source: shard.clone(),
            shard: self.shape.place(shard)?,
            before: None,
            incarnation: history.incarnation.clone(),
            reached: Boundary { position: Position(0), at: time(40) },
            reached_because: "the snapshot".to_owned(),
            snapshot: None,
            rows: (self.fleet.shape.rows * inputs.len()) as u64,
            tables: inputs,
            bytes,
            raw_bytes: bytes,
            live: LiveStore::default(),
            overwrite: false,
            publish_block_milliseconds: 1,
        })
    }

    fn object(&mut self, pack: &ObjectInfo) -> Result<u32> {
        let known = self.objects.iter().position(|object| object == pack);
        let number = known.unwrap_or_else(|| {
            self.objects.push(pack.clone());
            self.objects.len() - 1
        });
        Ok(u32::try_from(number)?)
    }

    fn push(&mut self, key: StepKey, after: Vec<u32>, pool: Option<&str>, wave: u32) -> Result<u32> {
        let demand = pool.map(|pool| (pool, 1)).into_iter().collect();
        let group = self.group_of(&key, wave);
        let (after_ended, estimate_micros) = (vec![], 10_000);
        self.steps.push(PlanStep { key, after, after_ended, demand, estimate_micros, wave, group });
        Ok(u32::try_from(self.steps.len() - 1)?)
    }

    fn group_of(&mut self, key: &StepKey, wave: u32) -> Option<u32> {
        let store = key.store().filter(|_| self.shape.together > 1)?;
        let verb = key.to_string().split('/').next().unwrap_or_default().to_owned();
        let number: usize = store.site.as_str()[1..].parse().ok()?;
        let part = number / (2 * self.shape.together);
        let next = u32::try_from(self.groups.len()).ok()?;
        Some(*self.groups.entry((format!("{verb} {} {wave}", store.kind), part)).or_insert(next))
    }

    fn all_steps(&mut self, sites: &[SitePlan]) -> Result<()> {
        let shards = self.fleet.shards().into_iter().map(|shard| self.shape.place(shard));
        let shards = shards.collect::<Result<Vec<ShardName>>>()?;
        let mut before: BTreeMap<&ShardName, u32> = BTreeMap::new();
        let mut publishes: BTreeMap<&ShardName, Vec<u32>> = BTreeMap::new();
        if self.shape.full {
            for shard in &shards {
                before.insert(shard, self.push(StepKey::DigestBefore(shard.clone()), vec![], None, 0)?);
            }
        }
        for site in sites {
            let (mut previous, wave) = (None, site.wave);
            for store in &site.stores {
                let id = StoreId { site: site.site.clone(), kind: store.kind.clone() };
                let stage = self.push(StepKey::Stage(id.clone()), vec![], Some("stage"), wave)?;
                let verify = self.push(StepKey::Verify(id.clone()), vec![stage], Some("stage"), wave)?;
                let first = before.get(&store.shard).copied();
                let after = [Some(verify), first, previous].into_iter().flatten().collect();
                let publish = self.push(StepKey::Publish(id), after, Some("publish"), wave)?;
                let shard = shards.iter().find(|shard| **shard == store.shard).context("an unknown shard")?;
                publishes.entry(shard).or_default().push(publish);
                previous = Some(publish);
            }
            let check =
                self.push(StepKey::Check(site.site.clone()), previous.into_iter().collect(), None, wave)?;
            self.push(StepKey::Handback(site.site.clone()), vec![check], None, wave)?;
        }
        for (shard, first) in before {
            let after = self.push(StepKey::DigestAfter(shard.clone()), vec![first], None, 0)?;
            self.steps[after as usize].after_ended = publishes.remove(shard).unwrap_or_default();
        }
        Ok(())
    }
}

fn request(sites: &[SitePlan], sandbox: bool) -> PlanRequest {
    let site = |site: &SitePlan| IncidentSite {
        site: site.site.clone(),
        target: site.target,
        outage_at: site.outage_at,
        before: BTreeMap::new(),
        note: None,
    };
    PlanRequest {
        incident: Incident {
            format: FORMAT,
            title: "simulated".to_owned(),
            declared_at: time(90),
            id_source: "the simulator".to_owned(),
            sites: sites.iter().map(site).collect(),
        },
        proof: ProofLevel::Full,
        overwrite: BTreeSet::new(),
        accept_block: BTreeSet::new(),
        accept_gap: BTreeSet::new(),
        placement: Placement { sandbox, ..Placement::default() },
    }
}
