//! Before the damage: a list of ids is held against what is live before a script acts on it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may say so by a panic")]

use std::collections::BTreeSet;
use std::fmt::Write as _;

use muster_demo::{Owner, all_tables};
use muster_tests::{Ran, Size, World, query, query_text, seed};
use muster_types::preflight::Preflight;

const SIZE: Size = Size { sites: 40, rows_per_site: 40 };

fn write_ids(world: &World, ids: &[String]) {
    std::fs::write(world.path("ids.txt"), ids.join("\n") + "\n").unwrap();
}

fn ask(world: &World, id_type: &str, count: usize, options: &[&str]) -> Ran {
    let count = count.to_string();
    let mut args = vec!["preflight", "deletion", "--ids", "ids.txt", "--expect", id_type, "--count", &count];
    args.extend(options);
    world.muster(&args)
}

fn confirm(world: &World, hash: &str) -> Ran {
    world.muster(&["preflight", "confirm", hash, "--ids", "ids.txt"])
}

fn preflight(ran: &Ran) -> Preflight {
    serde_json::from_value(ran.json()).unwrap_or_else(|error| panic!("not a preflight: {error}: {ran}"))
}

/// Licences of apps, as (id, site, kind), as the shards themselves say. Each region gives ids out by itself: only those
/// that name one thing.
fn apps(world: &World) -> Vec<(String, String, String)> {
    let core = world.fleet.shards.iter().filter(|shard| shard.role.name() == "core");
    let sql =
        "SELECT licence_id, site_id, product FROM licence WHERE product LIKE 'app:%' ORDER BY licence_id";
    let rows = core.flat_map(|shard| query_text(&shard.path, sql));
    let all: Vec<_> = rows.map(|row| (row[0].clone(), row[1].clone(), row[2].clone())).collect();
    let once = |id: &String| all.iter().filter(|(other, ..)| other == id).count() == 1;
    all.iter().filter(|(id, ..)| once(id)).cloned().collect()
}

/// Rows of all sites, counted in the shards.
fn rows_of_all_sites(world: &World) -> u64 {
    let mut rows = 0;
    for shard in &world.fleet.shards {
        for table in
            all_tables().filter(|table| table.kind.role() == shard.role && table.owner != Owner::Reference)
        {
            let counted = &query_text(&shard.path, &format!("SELECT count(*) FROM {}", table.name))[0][0];
            rows += counted.parse::<u64>().unwrap();
        }
    }
    rows
}

/// The review of April 2022: the list of the second run had the ids of 883 sites where those of apps were meant.
#[test]
fn the_incidents_own_second_list_is_stopped() {
    let world = World::captured(Size { sites: 1_000, rows_per_site: 40 }, seed(60));
    let victims = world.fleet.pick_victims(883);
    let sites: Vec<String> = victims.iter().map(|&site| world.fleet.sites[site].id.clone()).collect();

    // The first run had the right ids and went well: it proves nothing about the second.
    let first: Vec<String> = apps(&world).into_iter().take(30).map(|(id, ..)| id).collect();
    write_ids(&world, &first);
    let hash = preflight(&ask(&world, "app", 30, &["--json"]).ok()).hash.to_string();
    confirm(&world, &hash).ok();

    write_ids(&world, &sites);
    let ran = ask(&world, "app", 883, &["--json"]).code(5);
    let refused = preflight(&ran);
    let codes: Vec<&str> = refused.refusals.iter().map(|refusal| refusal.code.as_str()).collect();
    assert_eq!(codes, ["wrong-type"], "the count alone passes: {ran}");
    assert_eq!((refused.loss.sites, refused.subjects.len()), (883, 883));
    ask(&world, "app", 883, &[]).code(5).says(&[
        "883 ids of 883 name no app",
        "delete nothing",
        "883 sites whole",
    ]);
    // Nobody can present what was never approved, nor the first list's hash with the second list.
    confirm(&world, &refused.hash.to_string()).code(5).says(&["no preflight has the hash"]);
    confirm(&world, &hash).code(5).says(&[
        "is not the list that was approved",
        "wrong-count",
        "delete nothing",
    ]);
}

fn what_would_be_lost_is_counted(world: &World) {
    let sites: Vec<String> = world.fleet.sites.iter().map(|site| site.id.clone()).collect();
    write_ids(world, &sites);
    let passed = preflight(&ask(world, "site", sites.len(), &["--json"]).ok());
    let fleet = &world.fleet.sites;
    let kinds = |prefix: &str| {
        fleet.iter().flat_map(|site| &site.kinds).filter(|kind| kind.name().starts_with(prefix)).count()
            as u64
    };
    let customers: BTreeSet<&str> = fleet.iter().map(|site| site.customer.as_str()).collect();
    let loss = passed.loss;
    assert_eq!((loss.sites, loss.sites_in_part), (fleet.len() as u64, 0));
    assert_eq!(loss.rows, rows_of_all_sites(world));
    assert_eq!((loss.products, loss.apps), (kinds("product:"), kinds("app:")));
    assert_eq!(loss.customers, customers.len() as u64);
    assert_eq!(loss.users, fleet.iter().map(|site| site.users as u64).sum::<u64>());
    for subject in &passed.subjects {
        assert!(subject.stores.iter().all(|store| store.recovery_point.is_some()), "{subject:?}");
    }
}

#[test]
fn what_would_be_lost_is_counted_in_sqlite() {
    what_would_be_lost_is_counted(&World::captured(SIZE, seed(61)));
}

#[test]
fn what_would_be_lost_is_counted_in_postgresql() {
    let world = World::on_services(SIZE, seed(62));
    world.capture();
    what_would_be_lost_is_counted(&world);
    let found = apps_in_order(&world);
    write_ids(&world, &found);
    let passed = preflight(&ask(&world, "app", found.len(), &["--json"]).ok());
    confirm(&world, &passed.hash.to_string()).ok();
}

fn apps_in_order(world: &World) -> Vec<String> {
    apps(world).into_iter().map(|(id, ..)| id).collect()
}

#[test]
fn an_approved_list_is_presented_and_a_changed_one_refused() {
    let world = World::captured(SIZE, seed(63));
    let all = apps(&world);
    assert!(all.len() > 3, "the fleet has too few apps");
    let mut ids: Vec<String> = all.iter().take(3).map(|(id, ..)| id.clone()).collect();
    write_ids(&world, &ids);
    let passed = preflight(&ask(&world, "app", 3, &["--json"]).ok());
    for (subject, (id, site, kind)) in passed.subjects.iter().zip(&all) {
        assert_eq!((&subject.id, subject.site.as_str()), (id, site.as_str()));
        assert_eq!(subject.kind.as_ref().map(ToString::to_string).as_ref(), Some(kind));
    }
    let hash = passed.hash.to_string();

    // The same things, in another order, with types and a comment.
    ids.reverse();
    ids[0] = format!("app:{}  # typed", ids[0]);
    write_ids(&world, &ids);
    confirm(&world, &hash).ok();

    let fourth = &all[3].0;
    ids[1].clone_from(fourth);
    write_ids(&world, &ids);
    let texts = [
        "is not the list that was approved",
        &format!("new: app:{fourth}"),
        &format!("gone: app:{}", all[1].0),
    ];
    confirm(&world, &hash).code(5).says(&texts);
    ids.pop();
    write_ids(&world, &ids);
    confirm(&world, &hash).code(5);

    // An id that names something else by now.
    ids = all.iter().take(3).map(|(id, ..)| id.clone()).collect();
    write_ids(&world, &ids);
    confirm(&world, &hash).ok();
    let (id, _, kind) = &all[0];
    let has = |site: &str| all.iter().any(|(_, other, of_kind)| other == site && of_kind == kind);
    let other = world.fleet.sites.iter().find(|site| !has(&site.id)).unwrap();
    let sql = format!("UPDATE licence SET site_id = '{}' WHERE licence_id = {id}", other.id);
    rusqlite::Connection::open(core_of(&world, id)).unwrap().execute_batch(&sql).unwrap();
    confirm(&world, &hash).code(5).says(&["is not the list that was approved", &other.id]);
    let unknown = "0".repeat(64);
    confirm(&world, &unknown).code(5).says(&["no preflight has the hash", "muster preflight deletion"]);
}

/// The file of the shard with this licence.
fn core_of(world: &World, licence: &str) -> std::path::PathBuf {
    let sql = format!("SELECT 1 FROM licence WHERE licence_id = {licence}");
    let core = world.fleet.shards.iter().filter(|shard| shard.role.name() == "core");
    core.map(|shard| shard.path.clone()).find(|path| !query(path, &sql).is_empty()).unwrap()
}

#[test]
fn wrong_lists_are_refused_by_name() {
    let world = World::captured(SIZE, seed(64));
    let all = apps(&world);
    let (one, two, site) = (&all[0].0, &all[1].0, &world.fleet.sites[0].id);
    let list = |ids: &[&str]| write_ids(&world, &ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>());

    list(&[one, "nothing"]);
    ask(&world, "app", 2, &[]).code(5).says(&["unknown-id", "`nothing` (ids.txt:2)", "app", "site"]);
    list(&[one, two]);
    ask(&world, "app", 3, &[]).code(5).says(&["wrong-count", "the list has 2 ids, and 3 were said"]);
    list(&[one, two, one]);
    ask(&world, "app", 3, &[]).code(5).says(&["repeated-id", &format!("`{one}` (ids.txt:3)")]);
    list(&[one, site]);
    ask(&world, "app", 2, &[]).code(5).says(&["wrong-type", "1 id of 2", &format!("site:{site}")]);
    list(&[&format!("app:{site}")]);
    ask(&world, "app", 1, &[]).code(5).says(&["unknown-id", &format!("where site:{site} is there")]);
    list(&["# nothing but a comment", ""]);
    ask(&world, "app", 0, &[]).code(5).says(&["empty-list"]);
    list(&[one]);
    ask(&world, "seat", 1, &[]).code(2).says(&["`seat` is no type of ids", "app", "site", "[ids.seat]"]);
    ask(&world, "app", 1, &["--valid", "soon"]).code(2).says(&["`soon` is not a span of time"]);
    std::fs::remove_file(world.path("ids.txt")).unwrap();
    ask(&world, "app", 1, &[]).code(2).says(&["failed to read `ids.txt`"]);

    // A site that capture has not seen yet could not be brought back.
    let core = core_of(&world, one);
    let sql = "INSERT INTO site SELECT 'brand-new', 'brand-new', region, tier, customer, internal, users, status, \
               created_at, trial_score FROM site LIMIT 1";
    rusqlite::Connection::open(core).unwrap().execute_batch(sql).unwrap();
    list(&["brand-new"]);
    ask(&world, "site", 1, &[]).code(5).says(&["no-recovery-point", "site:brand-new"]);
    world.capture_once();
    ask(&world, "site", 1, &[]).ok().says(&["1 sites whole", "hash: "]);

    // One id, two things: of one type in two regions, or of two types.
    let licences = |region: usize| {
        let core =
            world.fleet.shards.iter().find(|shard| shard.role.name() == "core" && shard.region == region);
        query_text(&core.unwrap().path, "SELECT licence_id, site_id FROM licence WHERE product LIKE 'app:%'")
    };
    let (here, there) = (licences(0), licences(1));
    let both = here.iter().find_map(|row| Some((row, there.iter().find(|other| other[0] == row[0])?)));
    let (in_one, in_other) = both.expect("both regions give out small numbers");
    list(&[&in_one[0]]);
    ask(&world, "app", 1, &[]).code(5).says(&["ambiguous-id", &in_one[1], &in_other[1], "`app:ID@SITE`"]);
    list(&[&format!("app:{}@{}", in_one[0], in_one[1]), &format!("{}@{}", in_other[0], in_other[1])]);
    ask(&world, "app", 2, &[]).ok();
    let mut topology = std::fs::read_to_string(world.path("muster.toml")).unwrap();
    let _ = write!(
        topology,
        "\n[ids.addon]\ntable = \"licence\"\ncolumn = \"licence_id\"\nkind_column = \"product\"\nkinds = [\"app:*\"]\n"
    );
    std::fs::write(world.path("muster.toml"), topology).unwrap();
    list(&[one]);
    ask(&world, "app", 1, &[]).code(5).says(&["ambiguous-id", "app:", "addon:", "`app:ID`"]);
    list(&[&format!("app:{one}")]);
    ask(&world, "app", 1, &[]).ok();
}
