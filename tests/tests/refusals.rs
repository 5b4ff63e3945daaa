//! What Muster refuses, and what it says then: the thing, the reason, the way out. The other sites go on.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may say so by a panic")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use muster_tests::{Harmed, Incident, Mount, Ran, Saved, Size, World, now, query, seed};
use muster_types::plan::{Plan, SitePlan, StorePlan, TableInput};
use rusqlite::Connection;

const SIZE: Size = Size { sites: 24, rows_per_site: 60 };
const VICTIMS: usize = 6;

/// A world with an incident and a plan.
struct Scene {
    world: World,
    incident: Incident,
    saved: Saved,
}

impl Scene {
    fn set(default_seed: u64) -> Self {
        let world = World::captured(SIZE, seed(default_seed));
        let incident = Incident::delete(&world, VICTIMS, Duration::ZERO);
        world.capture_once();
        incident.detect(&world);
        incident.plan(&world, &[]).ok();
        let saved = Saved::of(&world);
        Self { world, incident, saved }
    }

    fn again(&self) {
        self.saved.restore(&self.world);
    }

    fn plan(&self) -> Plan {
        serde_json::from_slice(&std::fs::read(self.world.path("plan.json")).unwrap()).unwrap()
    }

    fn apply(&self) -> Ran {
        self.world.muster(&["apply", "plan.json", "--run", "r"])
    }

    /// The run went on without `sites`; once what failed is mended, it brings them back, too.
    #[track_caller]
    fn goes_on_without(&self, ran: Ran, sites: &[String]) -> Ran {
        let restored = format!("{} sites restored, {} not", VICTIMS - sites.len(), sites.len());
        let ran = ran.code(3).says(&[&restored, "muster resume r", "muster abandon r"]);
        let report = self.world.report("r");
        let failed: Vec<String> = report
            .sites
            .iter()
            .filter(|site| site.failure.is_some())
            .map(|site| site.site.to_string())
            .collect();
        let (mut failed, mut wanted) = (failed, sites.to_vec());
        failed.sort();
        wanted.sort();
        assert_eq!(failed, wanted, "{ran}");
        for site in report.sites.iter().filter(|site| site.failure.is_none()) {
            assert!(site.handed_back_at.is_some(), "{} was not handed back", site.site);
        }
        ran
    }

    #[track_caller]
    fn resumes_to_the_end(&self) {
        self.world.muster(&["resume", "r"]).ok();
        self.incident.is_undone(&self.world, "r");
    }

    fn object(&self, key: &str) -> PathBuf {
        self.world.repository().join(key)
    }

    /// Objects of every shard's log whose names end so, newest last.
    fn log(&self, shard: &str, suffix: &str) -> Vec<PathBuf> {
        let all = self.world.objects(&format!("shards/{shard}"));
        all.into_iter()
            .filter(|path| {
                path.to_string_lossy().contains("/log/") && path.to_string_lossy().ends_with(suffix)
            })
            .collect()
    }
}

/// The first store of the plan that starts from a snapshot, with the place of its rows.
fn a_base(plan: &Plan) -> (&SitePlan, &StorePlan, String, u64) {
    let stores = plan.sites.iter().flat_map(|site| site.stores.iter().map(move |store| (site, store)));
    stores
        .flat_map(|(site, store)| store.tables.iter().map(move |table| (site, store, table)))
        .find_map(|(site, store, table)| {
            let base = table.base.as_ref()?;
            let chunk = base.chunks.first()?;
            let key = plan.objects[base.object as usize].key.clone();
            Some((site, store, key, chunk.offset + chunk.bytes / 2))
        })
        .expect("something is restored from a snapshot")
}

/// A site whose directory row comes from a snapshot, with the place of that row.
fn a_directory_row(plan: &Plan) -> (String, String, u64) {
    let of = |site: &SitePlan| {
        let store = site.stores.iter().find(|store| store.kind.to_string() == "metadata")?;
        let directory = |input: &&TableInput| plan.tables[input.table as usize].def.name == "site";
        let base = store.tables.iter().find(directory)?.base.as_ref()?;
        let chunk = base.chunks.first()?;
        let key = plan.objects[base.object as usize].key.clone();
        Some((site.site.to_string(), key, chunk.offset + chunk.bytes / 2))
    };
    plan.sites.iter().find_map(of).expect("a site was there before the snapshot")
}

/// The sites that read the object with this key.
fn sites_of(plan: &Plan, key: &str) -> Vec<String> {
    let read = |store: &StorePlan| {
        let bases = store.tables.iter().flat_map(|table| table.base.iter().map(|base| base.object));
        let changes =
            store.tables.iter().flat_map(|table| table.changes.iter().map(|changes| changes.object));
        bases.chain(changes).any(|object| plan.objects[object as usize].key == key)
    };
    let sites = plan.sites.iter().filter(|site| site.stores.iter().any(read));
    sites.map(|site| site.site.to_string()).collect()
}

#[test]
fn harmed_objects_cost_only_what_needs_them() {
    let scene = Scene::set(10);
    let plan = scene.plan();
    let (site, _, key, offset) = a_base(&plan);
    let path = scene.object(&key);
    {
        let _flipped = Harmed::flipped(&path, offset);
        let ran = scene.goes_on_without(scene.apply(), &[site.site.to_string()]);
        ran.says(&[&key, "damaged", &site.site.to_string(), "bring it back"]);
        // Nothing is mended yet: the same again, and no harm.
        scene.goes_on_without(scene.world.muster(&["resume", "r"]), &[site.site.to_string()]);
    }
    scene.resumes_to_the_end();
    for (harm, says) in
        [(Harmed::truncated as fn(&Path) -> Harmed, "bytes instead of"), (Harmed::missing, "is missing")]
    {
        scene.again();
        {
            let _harmed = harm(&path);
            let ran = scene.goes_on_without(scene.apply(), &sites_of(&scene.plan(), &key));
            ran.says(&[&key, says, "bring it back", "muster resume r"]);
        }
        scene.resumes_to_the_end();
    }
}

#[test]
fn a_harmed_directory_row_costs_one_site_its_facts() {
    let scene = Scene::set(17);
    let plan = scene.plan();
    let (site, key, offset) = a_directory_row(&plan);
    let path = scene.object(&key);
    let way_out = "bring the object back from the bucket";
    {
        let _flipped = Harmed::flipped(&path, offset);
        let ran = scene.incident.plan(&scene.world, &[]);
        ran.says(&["warning facts-unread", &site, &key, "damaged", way_out]);
        // The plan is about every site still; only this one's facts are unknown.
        let again = scene.plan();
        assert_eq!(again.sites.len(), plan.sites.len());
        let unread = again.notes.iter().filter(|note| note.code == "facts-unread");
        assert!(unread.map(|note| &note.subject).eq([&site]));
        let others = |plan: &Plan| -> Vec<_> {
            let others = plan.sites.iter().filter(|other| other.site.to_string() != site);
            others.map(|other| (other.site.clone(), other.facts.clone())).collect()
        };
        assert_eq!(others(&again), others(&plan));
        // A filter by what the row says cannot be told; by what the log says it can.
        let to = plan.sites[0].target.to_string();
        let filtered =
            scene.world.muster(&["plan", "--region", "eu-west", "--to", &to, "--out", "filtered.json"]);
        filtered.code(2).says(&[&site, "cannot be told", &key, "--sites-file"]);
    }
    scene.incident.plan(&scene.world, &[]).ok();
    scene.apply().ok();
    scene.incident.is_undone(&scene.world, "r");
}

#[test]
fn what_only_a_harmed_snapshot_root_knew_is_not_taken_for_absent() {
    let scene = Scene::set(18);
    let whole = scene.plan();
    let shard = whole.sites[0].stores[0].shard.to_string();
    let of_shard = |plan: &Plan| -> Vec<String> {
        let sites = plan.sites.iter().filter(|site| {
            site.stores.iter().any(|store| store.shard.to_string() == shard && store.rows > 0)
        });
        sites.map(|site| site.site.to_string()).collect()
    };
    let victims = of_shard(&whole);
    assert!(!victims.is_empty());
    let objects = scene.world.objects(&format!("shards/{shard}"));
    let roots: Vec<_> = objects.iter().filter(|path| path.ends_with("root.json.zst")).collect();
    assert_eq!(roots.len(), 1, "one base");
    {
        let _flipped = Harmed::flipped(roots[0], 20);
        let ran = scene.incident.plan(&scene.world, &[]);
        ran.says(&["snapshot-unread", &shard, "missing-snapshot", "muster repo check", "bring it back"]);
        let harmed = scene.plan();
        let named = |site: &String| {
            harmed.notes.iter().any(|note| note.code == "missing-snapshot" && note.subject == *site)
        };
        assert!(victims.iter().all(named), "{:?}", harmed.notes);
    }
    scene.incident.plan(&scene.world, &[]).ok();
    scene.apply().ok();
    scene.incident.is_undone(&scene.world, "r");
}

#[test]
fn harm_to_the_log_is_named_by_the_plan() {
    let scene = Scene::set(11);
    let shard = scene.plan().sites[0].stores[0].shard.to_string();
    let log = scene.log(&shard, ".json.zst");
    let newest = log.last().expect("a segment");
    let key = newest.strip_prefix(scene.world.repository()).unwrap().display().to_string();
    type Harm = fn(&Path) -> Harmed;
    let harms: [Harm; 2] = [Harmed::truncated, |path| Harmed::flipped(path, 20)];
    for harm in harms {
        let _harmed = harm(newest);
        let ran = scene.incident.plan(&scene.world, &[]).code(2);
        ran.says(&["FATAL log-gap", &shard, &key, "damaged", "--accept-gap", "cannot be applied"]);
        scene.apply().code(4).says(&["fatal notes", "plan again"]);
    }
    {
        // Nothing behind it says that there was more: the log ends earlier.
        let _missing = Harmed::missing(newest);
        scene.incident.plan(&scene.world, &[]).says(&["target-not-covered", &shard, "muster capture --once"]);
    }
    scene.incident.plan(&scene.world, &[]).ok();
    scene.apply().ok();
    scene.incident.is_undone(&scene.world, "r");
}

#[test]
fn what_a_later_muster_wrote_is_refused() {
    let scene = Scene::set(12);
    let newer = |ran: Ran, code: i32, what: &str| {
        ran.code(code).says(&[what, "format 99", "newer than", "use the muster version that wrote it"]);
    };
    let plan = scene.plan();
    let shard = plan.sites[0].stores[0].shard.to_string();
    {
        let _newer = Harmed::of_the_future(&scene.world.path("plan.json"));
        newer(scene.apply(), 2, "plan.json");
    }
    {
        let _newer = Harmed::replaced(&scene.world.path("incident.toml"), "format = 1", "format = 99");
        newer(scene.incident.plan(&scene.world, &[]), 2, "incident.toml");
    }
    {
        let _newer = Harmed::of_the_future(&scene.object("repository.json"));
        newer(scene.incident.plan(&scene.world, &[]), 1, "repository.json");
        newer(scene.world.muster(&["capture", "--once"]), 1, "repository.json");
    }
    {
        let segment = scene.log(&shard, ".json.zst").pop().unwrap();
        let _newer = Harmed::of_the_future(&segment);
        newer(scene.incident.plan(&scene.world, &[]), 1, "json.zst");
    }
    {
        let manifests = scene.world.objects(&format!("shards/{shard}"));
        let root = manifests.into_iter().find(|path| path.ends_with("root.json.zst")).unwrap();
        let _newer = Harmed::of_the_future(&root);
        newer(scene.incident.plan(&scene.world, &[]), 1, "root.json.zst");
    }
    scene.incident.plan(&scene.world, &[]).ok();
    scene.apply().ok();
    let run = scene.world.objects("runs/r");
    let journal = run.iter().find(|path| path.to_string_lossy().contains("journal")).unwrap();
    for (path, what) in [(journal, "journal"), (run.last().unwrap(), "plan.json.zst")] {
        let _newer = Harmed::of_the_future(path);
        newer(scene.world.muster(&["resume", "r"]), 1, what);
        newer(scene.world.muster(&["report", "r"]), 1, what);
    }
    scene.incident.is_undone(&scene.world, "r");
}

#[test]
fn wrong_selections_are_explained() {
    let scene = Scene::set(13);
    let world = &scene.world;
    let plan = |args: &[&str]| world.muster(&[&["plan", "--out", "other.json"], args].concat());
    let at = now();
    plan(&["app:automation", "--to", &at]).code(2).says(&[
        "`app:automation` is the id of an app",
        "a site is meant",
        "site:",
    ]);
    plan(&["s-00001", "--to", &at]).code(2).says(&["write `site:s-00001`"]);
    plan(&["site:../x", "--to", &at]).code(2).says(&["`../x` is not a site name", "letters, digits"]);
    // Every wrong id of a list is named, not only the first.
    std::fs::write(world.path("ids"), "app:1\n# a comment\nsite:s-00001\n42\n").unwrap();
    plan(&["--sites-file", "ids", "--to", &at]).code(2).says(&[
        "2 of 3 ids",
        "ids:1",
        "`app:1`",
        "ids:4",
        "site:42",
    ]);
    plan(&["--sites-file", "nowhere", "--to", &at]).code(2).says(&["nowhere"]);
    plan(&["--to", &at]).code(2).says(&["no site is selected", "--sites-file"]);
    plan(&["--region", "nowhere", "--to", &at])
        .code(2)
        .says(&["no site matched region=nowhere", "muster sites"]);
    plan(&["site:s-00001"]).code(2).says(&["--to TIME", "--incident"]);
    plan(&["site:s-00001", "--to", "yesterday"]).code(2).says(&["yesterday"]);
    let unknown = plan(&["site:nobody", "--to", &at]).code(3);
    unknown.says(&["unknown-site", "site:nobody", "check the id", "1 sites are left out"]);

    let text = std::fs::read_to_string(world.path("incident.toml")).unwrap();
    let head = text.split("[[sites]]").next().unwrap();
    std::fs::write(world.path("empty.toml"), format!("{head}\nsites = []\n")).unwrap();
    plan(&["--incident", "empty.toml"]).code(2).says(&["empty.toml", "names no site"]);
    std::fs::write(world.path("wrong.toml"), text.replacen("site = \"site:", "site = \"app:", 1)).unwrap();
    plan(&["--incident", "wrong.toml"]).code(2).says(&["wrong.toml", "is the id of an app"]);
    plan(&["--incident", "nowhere.toml"]).code(2).says(&["nowhere.toml"]);

    for command in ["show", "history"] {
        world.muster(&[command, "site:nobody"]).code(2).says(&[
            "the repository holds no",
            "of site:nobody",
            "muster ",
        ]);
        world.muster(&[command, "app:automation"]).code(2).says(&["is the id of an app"]);
    }
    for command in ["resume", "status", "report", "abandon"] {
        world.muster(&[command, "no-such-run"]).code(2).says(&["no run no-such-run", "muster runs"]);
    }
    world.muster(&["--topology", "nowhere.toml", "check"]).code(2).says(&["nowhere.toml", "--topology"]);
}

#[test]
fn a_plan_whose_inputs_changed_is_refused() {
    let scene = Scene::set(14);
    let world = &scene.world;
    let refused = |says: &[&str]| {
        scene.apply().code(4).says(says).says(&["plan"]);
        assert!(world.objects("runs").is_empty(), "a refused plan has no run");
    };
    {
        let _edited =
            Harmed::replaced(&world.path("muster.toml"), "rto_seconds = 3600", "rto_seconds = 3601");
        refused(&["topology changed", "muster plan"]);
    }
    {
        let _edited = Harmed::replaced(&world.path("plan.json"), "\"wave\":0", "\"wave\":1");
        refused(&["plan.json", "was changed after it was made", "plan again"]);
    }
    {
        let _cut = Harmed::truncated(&world.path("plan.json"));
        scene.apply().code(2).says(&["plan.json", "is not a plan"]);
    }
    // Someone has made a victim again by hand.
    let victim = &scene.incident.log.sites[0];
    let region = muster_demo::REGIONS[world.fleet.sites[victim.index].region];
    let identity = Connection::open(&world.shard(&format!("{region}-identity")).path).unwrap();
    let insert = "INSERT INTO user_group (group_id, site_id, name) VALUES (77, ?1, 'again')";
    identity.execute(insert, [&victim.site]).unwrap();
    refused(&[&format!("site:{}/identity", victim.site), "live rows", "muster plan"]);
    // A new plan leaves that site out, and says how it could be had.
    let planned = scene.incident.plan(world, &[]).code(3);
    planned.says(&["site-alive", &format!("site:{}", victim.site), "--overwrite", "1 sites are left out"]);
    identity.execute("DELETE FROM user_group WHERE group_id = 77", []).unwrap();
    // The plan of five sites was made for a living sixth; it is untouched by what happens to that one.
    let ran = scene.apply().code(3);
    ran.says(&[&format!("{} sites restored, 0 not", VICTIMS - 1), "1 sites were left out by the plan"]);
    for shard in &world.fleet.shards {
        let held = query(&shard.path, "SELECT * FROM _muster_claim");
        assert!(held.is_empty(), "{} is held, and the plan does nothing with it: {held:?}", shard.name);
    }
}

#[test]
fn a_taken_key_costs_one_site_and_a_second_run_is_told_who_holds_it() {
    let scene = Scene::set(15);
    let (world, plan) = (&scene.world, scene.plan());
    let victim = &plan.sites[0];
    let (site, name) = (victim.site.as_str(), victim.facts.name.clone().unwrap());
    let index = scene.incident.log.sites.iter().find(|deleted| deleted.site == site).unwrap().index;
    let region = world.fleet.sites[index].region;
    let core = world.shard(&format!("{}-core", muster_demo::REGIONS[region])).path.clone();
    let deleted = |index: usize| scene.incident.log.sites.iter().any(|deleted| deleted.index == index);
    let living =
        (0..SIZE.sites).find(|index| world.fleet.sites[*index].region == region && !deleted(*index)).unwrap();
    let living = &world.fleet.sites[living];
    let rename = |to: &str| {
        let connection = Connection::open(&core).unwrap();
        let renamed = connection.execute("UPDATE site SET name = ?1 WHERE site_id = ?2", [to, &living.id]);
        assert_eq!(renamed.unwrap(), 1);
    };
    let typed = format!("site:{site}");

    let second = ["plan", &typed, "--to", &victim.target.to_string(), "--out", "second.json"];
    world.muster(&second).ok();
    rename(&name);
    let ran = scene.goes_on_without(scene.apply(), std::slice::from_ref(&typed));
    ran.says(&["site", "name", &name, &format!("site:{}", living.id)]);
    let held = query(&core, "SELECT * FROM _muster_claim");
    assert!(!held.is_empty(), "a run that is not done holds its stores");

    // Another run on the same store.
    let ran = world.muster(&["apply", "second.json", "--run", "second"]).code(3);
    ran.says(&["0 sites restored, 1 not", &typed, "is claimed by run r", "muster abandon r"]);
    world.muster(&second).code(3).says(&[&typed, "run r", "1 sites are left out"]);
    world
        .muster(&["apply", "second.json", "--run", "third"])
        .code(4)
        .says(&["leaves all of its 1 sites out"]);
    // The first again, under its name.
    scene.apply().code(4).says(&["run r exists already", "muster status r", "muster resume r"]);
    assert_eq!(query(&core, "SELECT * FROM _muster_claim"), held, "the claim of the first stands");

    rename(&living.name);
    scene.resumes_to_the_end();
    assert!(query(&core, "SELECT * FROM _muster_claim").is_empty());
}

/// A shard that some of the victims need and others do not, and who needs it.
fn a_shard_of_some(scene: &Scene) -> (PathBuf, String, Vec<String>) {
    let plan = scene.plan();
    for shard in plan.shards.keys() {
        let needs = |site: &&SitePlan| site.stores.iter().any(|store| &store.shard == shard);
        let sites: Vec<String> = plan.sites.iter().filter(needs).map(|site| site.site.to_string()).collect();
        if sites.len() < VICTIMS {
            return (scene.world.shard(shard.as_str()).path.clone(), shard.to_string(), sites);
        }
    }
    panic!("every shard is needed by every victim: choose another seed");
}

#[test]
fn a_read_only_shard_costs_its_own_sites() {
    let scene = Scene::set(16);
    let (path, shard, sites) = a_shard_of_some(&scene);
    {
        let _read_only = Mount::read_only(&path);
        let ran = scene.goes_on_without(scene.apply(), &sites);
        ran.says(&[
            &shard,
            "does not take writes",
            "can only be opened for reading",
            "make the file",
            "resume the run",
        ]);
    }
    scene.resumes_to_the_end();
}

#[test]
fn a_full_disk_under_the_staging_costs_its_own_sites() {
    let scene = Scene::set(17);
    let (path, shard, sites) = a_shard_of_some(&scene);
    let mut staging = path.into_os_string();
    staging.push(".muster");
    {
        let _full = Mount::small_disk(Path::new(&staging), 4);
        let ran = scene.goes_on_without(scene.apply(), &sites);
        ran.says(&[&shard, "free space", "resume the run"]);
    }
    scene.resumes_to_the_end();
}

#[test]
fn a_full_repository_stops_the_run_until_there_is_room() {
    let mut scene = Scene::set(18);
    let port = scene.world.stop_server();
    let (folder, aside) = (scene.world.path("s3"), scene.world.path("s3-aside"));
    std::fs::rename(&folder, &aside).unwrap();
    let room = Mount::small_disk(&folder, 64 * 1024);
    copy(&aside, &folder);
    scene.world.start_server(port);
    // A file of others fills the disk up.
    let filler = folder.join(".filler");
    let error = fill(&filler);
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    scene.apply().code(1).says(&["runs/r/", "full", "free space", "run the command again"]);
    std::fs::remove_file(&filler).unwrap();
    let again = scene.world.muster(&["resume", "r"]);
    if again.code == Some(2) {
        // Not even its first record had room: the run never was.
        scene.apply().ok();
    }
    scene.incident.is_undone(&scene.world, "r");
    scene.world.stop_server();
    drop(room);
}

fn fill(path: &Path) -> std::io::Error {
    let mut file = std::fs::File::create(path).unwrap();
    for size in [1 << 20, 1 << 12, 1] {
        let block = vec![0; size];
        loop {
            if let Err(error) = std::io::Write::write_all(&mut file, &block) {
                if size == 1 {
                    return error;
                }
                break;
            }
        }
    }
    unreachable!("a byte at a time fills every disk")
}

fn copy(from: &Path, to: &Path) {
    let from = format!("{}/.", from.display());
    let status = std::process::Command::new("cp").args(["-a", &from]).arg(to).status().unwrap();
    assert!(status.success());
}
