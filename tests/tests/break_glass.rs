//! The commands of `docs/break-glass.md`, exactly as they stand there, restore stores from the repository's files.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may say so by a panic")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use muster_demo::{Kind, Owner, REGIONS, Role, Shard, Table, WriterConfig, tables};
use muster_services::Postgres;
use muster_tests::{
    Incident, Page, Size, World, connect, copy_shard, now, query, query_text, rows_of_site, seed, until,
};
use postgres::SimpleQueryMessage;

const PAGE: Page = Page(include_str!("../../docs/break-glass.md"));
const SIZE: Size = Size { sites: 12, rows_per_site: 150 };

/// A shard as it was at a recovery point.
struct Truth {
    moment: String,
    shards: PathBuf,
}

impl Truth {
    /// A recovery point and a copy of all shards, while nobody writes.
    fn take(world: &World, name: &str) -> Self {
        world.capture_once();
        let shards = world.path(name);
        std::fs::create_dir(&shards).unwrap();
        for shard in &world.fleet.shards {
            copy_shard(&shard.path, &shards.join(&shard.name));
        }
        Self { moment: now(), shards }
    }
}

/// Runs the page for one store; gives its folder.
fn by_hand(world: &World, site: usize, kind: Kind, truth: &Truth) -> PathBuf {
    let owned = |table: &&Table| table.kind == kind && table.owner != Owner::Reference;
    let site = &world.fleet.sites[site];
    let out = world.path(&format!("by-hand-{}-{}-{}", site.id, kind.name(), truth.moment));
    std::fs::create_dir(&out).unwrap();
    let [python] = PAGE.blocks("python")[..] else { panic!("the page has one python block") };
    std::fs::write(out.join("restore_store.py"), python).unwrap();
    let table = tables(kind.role()).iter().find(owned).unwrap();
    let output = Command::new("bash")
        .args(["-eu", "-c", &PAGE.blocks("sh").join("\n")])
        .env("REPOSITORY", world.repository())
        .env("SHARD", shard_of(world, kind, site.region))
        .env("SITE", format!("site:{}", site.id))
        .env("TABLE", table.name)
        .env("KIND", kind.name())
        .env("MOMENT", &truth.moment)
        .env("OUT", &out)
        .env("TARGET", out.join("target.db"))
        .output()
        .expect("bash is installed");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{} of {}: {said}", kind.name(), site.id);
    out
}

fn shard_of(world: &World, kind: Kind, region: usize) -> String {
    let name = format!("{}-{}", REGIONS[region], kind.role().name());
    world.shard(&name).name.clone()
}

/// The restored file has the store's rows as they were, and nothing else.
fn equals(world: &World, site: usize, kind: Kind, truth: &Truth, target: &Path) -> usize {
    let site = &world.fleet.sites[site];
    let shard = truth.shards.join(shard_of(world, kind, site.region));
    let mut rows = 0;
    for table in tables(kind.role()) {
        let of_store = rows_of_site(table, &site.id);
        let wanted = if table.kind == kind { query(&shard, &of_store) } else { Vec::new() };
        let all = format!("SELECT * FROM {} ORDER BY {}", table.name, table.key.join(", "));
        assert_eq!(query(target, &all), wanted, "{} of {} at {}", table.name, site.id, truth.moment);
        rows += wanted.len();
    }
    rows
}

#[test]
fn the_page_restores_every_store_at_every_recovery_point() {
    let world = World::captured(SIZE, seed(5));
    let mut truths = vec![Truth::take(&world, "at-first")];
    for name in ["later", "last"] {
        let writers = world.fleet.start_writers(WriterConfig { transactions_per_second: 500, threads: 2 });
        until("writers at work", || writers.committed() >= 150);
        writers.stop().unwrap();
        // Two segments each.
        world.capture_once();
        truths.push(Truth::take(&world, name));
    }
    let incident = Incident::delete(&world, 4, Duration::ZERO);
    world.capture_once();
    let victim =
        incident.log.sites.iter().map(|site| site.index).max_by_key(|index| world.fleet.sites[*index].rows);
    let mut restored = 0;
    for truth in &truths {
        for kind in &world.fleet.sites[victim.unwrap()].kinds {
            let out = by_hand(&world, victim.unwrap(), *kind, truth);
            restored += equals(&world, victim.unwrap(), *kind, truth, &out.join("target.db"));
        }
    }
    assert!(restored > 100, "only {restored} rows were compared");
    a_deleted_store_is_empty(&world, &incident);
}

#[test]
fn the_page_reads_a_compacted_log_without_its_chain() {
    let world = World::captured(SIZE, seed(8));
    let mut truths = Vec::new();
    for round in 0..40 {
        let writers = world.fleet.start_writers(WriterConfig { transactions_per_second: 500, threads: 2 });
        until("writers at work", || writers.committed() >= 20);
        writers.stop().unwrap();
        match round {
            7 | 15 | 16 | 39 => truths.push(Truth::take(&world, &format!("round-{round}"))),
            _ => world.capture_once(),
        }
    }
    world.muster(&["repo", "compact"]).ok();
    let mut removed = 0;
    for shard in std::fs::read_dir(world.repository().join("shards")).unwrap() {
        for history in std::fs::read_dir(shard.unwrap().path()).unwrap() {
            let history = history.unwrap().path();
            let Ok(roots) = std::fs::read_dir(history.join("compacted/level-01")) else { continue };
            let name = |path: PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
            let last = roots.map(|root| name(root.unwrap().path())[21..41].to_owned()).max().unwrap();
            for segment in std::fs::read_dir(history.join("log")).unwrap() {
                let segment = segment.unwrap().path();
                if name(segment.clone())[..20] <= *last {
                    std::fs::remove_file(segment).unwrap();
                    removed += 1;
                }
            }
        }
    }
    assert!(removed > 32, "only {removed} objects lay in compacted segments");
    let site = (0..world.fleet.sites.len()).max_by_key(|site| world.fleet.sites[*site].rows).unwrap();
    let mut restored = 0;
    for truth in &truths {
        for kind in &world.fleet.sites[site].kinds {
            let out = by_hand(&world, site, *kind, truth);
            restored += equals(&world, site, *kind, truth, &out.join("target.db"));
        }
    }
    assert!(restored > 100, "only {restored} rows were compared");
}

fn a_deleted_store_is_empty(world: &World, incident: &Incident) {
    let deleted = Truth::take(world, "deleted");
    let site = incident.log.sites[0].index;
    let out = by_hand(world, site, Kind::Identity, &deleted);
    assert_eq!(equals(world, site, Kind::Identity, &deleted, &out.join("target.db")), 0);
}

#[test]
fn a_table_is_cut_out_of_a_pack_with_tail_and_head() {
    let world = World::captured(SIZE, seed(6));
    let truth = Truth::take(&world, "at-first");
    let site = (0..world.fleet.sites.len())
        .find(|site| world.fleet.sites[*site].kinds.contains(&Kind::JiraSoftware));
    let site = site.expect("a site with Jira");
    let out = by_hand(&world, site, Kind::JiraSoftware, &truth);
    // The first table of the kind that belongs to sites.
    let table = tables(Role::Jira).iter().find(|table| table.name == "jsw_project").unwrap();
    let cut = std::fs::read_to_string(out.join(format!("{}.copy", table.name))).unwrap();
    let mut cut: Vec<&str> = cut.lines().collect();
    cut.sort_unstable();
    let bare = &world.fleet.sites[site];
    let shard = truth.shards.join(shard_of(&world, Kind::JiraSoftware, bare.region));
    let mut wanted: Vec<String> =
        query_text(&shard, &rows_of_site(table, &bare.id)).iter().map(|row| copy_line(row)).collect();
    wanted.sort_unstable();
    assert!(!wanted.is_empty());
    assert_eq!(cut, wanted);
}

/// A row of `jsw_project` as COPY text: two integers among texts, of which only `lead` may be NULL.
fn copy_line(row: &[String]) -> String {
    let lead = if row[4] == "NULL" { "n" } else { "t" };
    let fields: Vec<String> = row
        .iter()
        .enumerate()
        .map(|(at, field)| if at == 4 && lead == "n" { "\\N".to_owned() } else { escaped(field) })
        .collect();
    format!("{}\tittt{lead}i", fields.join("\t"))
}

fn escaped(field: &str) -> String {
    let mut text = field.replace('\\', "\\\\");
    for (plain, escape) in
        [("\u{8}", "\\b"), ("\u{c}", "\\f"), ("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t"), ("\u{b}", "\\v")]
    {
        text = text.replace(plain, escape);
    }
    text
}

/// By table: rows as the server's text.
type Texts = BTreeMap<&'static str, Vec<Vec<Option<String>>>>;

/// A site's rows of one kind.
fn texts(url: &str, site: &str, kind: Kind) -> Texts {
    let mut client = connect(url);
    let mut texts = Texts::new();
    for table in
        tables(kind.role()).iter().filter(|table| table.kind == kind && table.owner != Owner::Reference)
    {
        let row = |message: SimpleQueryMessage| match message {
            SimpleQueryMessage::Row(row) => {
                Some((0..row.len()).map(|at| row.get(at).map(str::to_owned)).collect())
            }
            _ => None,
        };
        let found = client.simple_query(&rows_of_site(table, site)).unwrap();
        texts.insert(table.name, found.into_iter().filter_map(row).collect());
    }
    texts
}

#[test]
fn the_page_restores_stores_of_postgresql() {
    let world = World::on_services(SIZE, seed(7));
    world.capture();
    let write = || {
        let writers = world.fleet.start_writers(WriterConfig { transactions_per_second: 300, threads: 2 });
        until("writers at work", || writers.committed() >= 150);
        writers.stop().unwrap();
    };
    write();
    world.capture_once();
    write();
    let site = world.fleet.sites.iter().max_by_key(|site| site.rows).unwrap();
    let live = |kind: Kind| {
        let here = |shard: &&Shard| shard.role == kind.role() && shard.region == site.region;
        let shard = world.fleet.shards.iter().find(here).unwrap();
        (shard.name.clone(), shard.database.as_ref().unwrap().connection.clone())
    };
    let truth: Vec<Texts> = site.kinds.iter().map(|kind| texts(&live(*kind).1, &site.id, *kind)).collect();
    let moment = now();
    write();
    world.capture_once();
    let repository = world.path("repository");
    world.download_repository(&repository);
    let server = Postgres::shared().unwrap();
    let mut compared = 0;
    for (kind, truth) in site.kinds.iter().zip(&truth) {
        let (shard, database) = live(*kind);
        let target = server.url(&server.create_database("by_hand").unwrap());
        let out = world.path(&format!("by-hand-{}", kind.name()));
        std::fs::create_dir(&out).unwrap();
        std::fs::write(out.join("restore_store.py"), PAGE.blocks("python")[0]).unwrap();
        let script = [&PAGE.blocks("sh")[..2], &PAGE.blocks("sh-postgres")[..]].concat().join("\n");
        let path = format!("{}:{}", server.bin("").display(), std::env::var("PATH").unwrap());
        let output = Command::new("bash")
            .args(["-eu", "-c", &script])
            .env("PATH", path)
            .env("REPOSITORY", &repository)
            .env("SHARD", shard)
            .env("SITE", format!("site:{}", site.id))
            .env("TABLE", truth.keys().next().unwrap())
            .env("KIND", kind.name())
            .env("MOMENT", &moment)
            .env("OUT", &out)
            .env("TARGET", &target)
            .env("LIVE", database)
            .output()
            .expect("bash is installed");
        assert!(output.status.success(), "{}: {}", kind.name(), String::from_utf8_lossy(&output.stderr));
        assert_eq!(&texts(&target, &site.id, *kind), truth, "{} of {} at {moment}", kind.name(), site.id);
        compared += truth.values().map(Vec::len).sum::<usize>();
    }
    assert!(compared > 100, "only {compared} rows were compared");
}
