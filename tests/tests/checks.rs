//! References across stores and the operator's checks, on real shards: what they find, and that a site which fails them is not
//! handed back.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may say so by a panic")]

use std::fmt::Write as _;

use muster_demo::{Kind, Shard};
use muster_tests::{Incident, Ran, Size, World, connect, now, seed};
use muster_types::report::{Report, RunStatus, SiteReport};
use rusqlite::Connection;

const SIZE: Size = Size { sites: 12, rows_per_site: 60 };

/// Comments name users of another shard by their names.
const AUTHORS: &str = "
[[references]]
from = \"product:jira-software.jsw_comment.author\"
to = \"identity.user_account.username\"
to_where = { active = \"ACTIVE\" }
";

/// A world on SQLite, or on PostgreSQL and MinIO, and a site of it that has Jira.
struct Place {
    world: World,
    site: String,
    region: usize,
}

impl Place {
    fn new(world: World, more: &str) -> Self {
        let own = world.fleet.sites.iter().filter(|site| site.kinds.contains(&Kind::JiraSoftware));
        let site = own.max_by_key(|site| site.rows).expect("a site with Jira");
        let (site, region) = (site.id.clone(), site.region);
        let mut place = Self { world, site, region };
        place.declare(&more.replace("ACTIVE", place.active()));
        // Every comment is of a user who is there.
        place.run(
            Kind::JiraSoftware,
            &format!("UPDATE jsw_comment SET author = 'alice' WHERE issue_id IN ({})", place.issues()),
        );
        let name = format!(
            "UPDATE user_account SET username = 'alice', active = {} WHERE user_id = ({})",
            place.truth(),
            place.first_user()
        );
        place.run(Kind::Identity, &name);
        place.world.capture();
        if place.world.is_on_services() {
            // What a publish did is read from the repository's log alone.
            place.world.follow();
        }
        place
    }

    /// What has been written is durable.
    fn captured(&self) {
        if self.world.is_on_services() {
            self.world.muster(&["capture", "wait", "--covers", "now"]).ok();
        } else {
            self.world.capture_once();
        }
    }

    /// As a true value reads in rows.
    fn active(&self) -> &'static str {
        if self.world.is_on_services() { "t" } else { "1" }
    }

    fn truth(&self) -> &'static str {
        if self.world.is_on_services() { "true" } else { "1" }
    }

    fn declare(&self, more: &str) {
        let path = self.world.path("muster.toml");
        let mut text = std::fs::read_to_string(&path).unwrap();
        writeln!(text, "{more}").unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn first_user(&self) -> String {
        format!("SELECT min(user_id) FROM user_account WHERE site_id = '{}'", self.site)
    }

    fn issues(&self) -> String {
        let site = &self.site;
        format!(
            "SELECT issue_id FROM jsw_issue i JOIN jsw_project p ON p.project_id = i.project_id WHERE p.tenant = '{site}'"
        )
    }

    fn shard(&self, kind: Kind) -> &Shard {
        let here = |shard: &&Shard| shard.role == kind.role() && shard.region == self.region;
        self.world.fleet.shards.iter().find(here).unwrap()
    }

    /// Runs statements in the shard of a kind.
    fn run(&self, kind: Kind, sql: &str) {
        let shard = self.shard(kind);
        match &shard.database {
            Some(database) => connect(&database.connection).batch_execute(sql).unwrap(),
            None => Connection::open(&shard.path).unwrap().execute_batch(sql).unwrap(),
        }
    }

    /// Gives the site's first issue a comment.
    fn comment(&self, id: u32, author: &str) {
        let sql = format!(
            "INSERT INTO jsw_comment SELECT {id}, issue_id, '{author}', 'text', written_at FROM jsw_comment \
             WHERE issue_id IN ({}) LIMIT 1",
            self.issues()
        );
        self.run(Kind::JiraSoftware, &sql);
    }

    fn user(&self, id: u32, name: &str) {
        let columns = "user_id, site_id, username, email, active";
        let (site, truth) = (&self.site, self.truth());
        let sql =
            format!("INSERT INTO user_account ({columns}) VALUES ({id}, '{site}', '{name}', 'x@y', {truth})");
        self.run(Kind::Identity, &sql);
    }

    /// Removes the site's rows of a kind.
    fn lose(&self, kind: Kind) {
        let site = &self.site;
        let sql = match kind {
            Kind::Identity => format!(
                "DELETE FROM user_account WHERE site_id = '{site}'; DELETE FROM user_group WHERE site_id = '{site}'"
            ),
            _ => format!("DELETE FROM jsw_project WHERE tenant = '{site}'"),
        };
        let cascade = if self.world.is_on_services() { "" } else { "PRAGMA foreign_keys = ON; " };
        self.run(kind, &format!("{cascade}{sql}"));
        self.captured();
    }

    fn moment(&self) -> String {
        self.captured();
        let moment = now();
        self.captured();
        moment
    }

    /// Plans the site, or some of its shards, and carries it out.
    fn restore(&self, moment: &str, only: Option<Kind>, run: &str) -> Ran {
        let site = format!("site:{}", self.site);
        let mut args = vec!["plan", &site, "--to", moment, "--overwrite", &site, "--out", "plan.json"];
        let shard = only.map(|kind| self.shard(kind).name.clone());
        if let Some(shard) = &shard {
            args.extend(["--only-shard", shard]);
        }
        self.world.muster(&args).ok();
        self.world.muster(&["apply", "plan.json", "--run", run])
    }

    fn report(&self, run: &str) -> (Report, SiteReport) {
        let report = self.world.report(run);
        let site = report.sites[0].clone();
        (report, site)
    }
}

/// One of two stores is restored, and the other lives on: in whatever shard it lies, and whichever way the reference goes.
fn orphans_are_found(world: World) {
    let place = Place::new(world, AUTHORS);
    // There before: nobody of this name ever was.
    place.comment(900_001, "ghost");
    let before = place.moment();

    // Users who came later, and a comment of one of them: the users' store alone goes back.
    place.user(900_002, "bob");
    place.comment(900_003, "bob");
    let failed = place.restore(&before, Some(Kind::Identity), "users");
    failed.code(3).says(&[
        "references/site:",
        "1 by product:jira-software.jsw_comment.author -> identity.user_account.username",
        "`jsw_comment` with comment_id 900003 has author `bob`",
        "muster resume users",
    ]);
    let (report, site) = place.report("users");
    assert_eq!(report.status, RunStatus::RestoredInPart);
    let error = site.references.unwrap().error.expect("what leads nowhere");
    assert!(error.contains("`bob`") && !error.contains("ghost") && !error.contains("alice"), "{error}");
    // The rows are published and stay; mended, the same run hands the site back.
    place.user(900_004, "bob");
    place.world.muster(&["resume", "users"]).ok().says(&["1 sites restored, 0 not"]);
    let counts = place.report("users").1.references.unwrap().counts;
    let authors = counts.iter().find(|count| count.reference.contains("author")).unwrap();
    assert_eq!((authors.orphans_before, authors.unchecked.as_ref()), (1, None));
    assert!(authors.rows > 2, "{authors:?}");

    // A product comes back whose user was lost since.
    let later = place.moment();
    place.lose(Kind::JiraSoftware);
    let gone = format!("DELETE FROM user_account WHERE site_id = '{}' AND username = 'bob'", place.site);
    place.run(Kind::Identity, &gone);
    place.captured();
    place.restore(&later, Some(Kind::JiraSoftware), "product").code(3).says(&["has author `bob`"]);
    // Somebody of that name who is not active is not meant.
    place.user(900_005, "bob");
    let inactive = format!(
        "UPDATE user_account SET active = {} WHERE user_id = 900005",
        if place.active() == "t" { "false" } else { "0" }
    );
    place.run(Kind::Identity, &inactive);
    place.world.muster(&["resume", "product"]).code(3).says(&["has author `bob`"]);
    place.run(
        Kind::Identity,
        &format!("UPDATE user_account SET active = {} WHERE user_id = 900005", place.truth()),
    );
    place.world.muster(&["resume", "product"]).ok();
}

#[test]
fn orphans_across_sqlite_shards_are_found() {
    orphans_are_found(World::new(SIZE, seed(51)));
}

#[test]
fn orphans_across_databases_are_found() {
    orphans_are_found(World::on_services(SIZE, seed(52)));
}

#[test]
fn what_led_nowhere_before_is_not_held_against_a_whole_site() {
    let place = Place::new(World::new(SIZE, seed(53)), AUTHORS);
    place.comment(900_001, "ghost");
    place.moment();
    let incident = Incident::delete(&place.world, 12, std::time::Duration::ZERO);
    place.captured();
    incident.detect(&place.world);
    incident.plan(&place.world, &[]).ok();
    place.world.muster(&["apply", "plan.json", "--run", "whole"]).ok().says(&["12 sites restored, 0 not"]);
    let report = place.world.report("whole");
    let site = report.sites.iter().find(|site| site.site.as_str() == place.site).unwrap();
    let counts = &site.references.as_ref().unwrap().counts;
    assert_eq!(counts.iter().map(|count| count.orphans_before).sum::<u64>(), 1, "{counts:?}");
    // The demo's own references and checks were counted and run.
    assert!(
        counts.iter().any(|count| count.reference.starts_with("licence.") && count.rows > 0),
        "{counts:?}"
    );
    let checks = report.sites.iter().flat_map(|site| &site.kind_checks);
    let checks: Vec<_> = checks.collect();
    assert!(checks.len() > 12 && checks.iter().all(|check| check.passed == Some(true)), "{checks:?}");
}

#[test]
fn a_column_that_was_not_there_is_told() {
    let place = Place::new(World::new(SIZE, seed(54)), "");
    let before = place.moment();
    place.run(Kind::Identity, "ALTER TABLE user_account ADD COLUMN boss TEXT");
    place.world.muster(&["capture", "init"]).ok();
    place.declare(
        "[[references]]\nfrom = \"identity.user_account.boss\"\nto = \"identity.user_account.username\"",
    );
    place.captured();
    let site = format!("site:{}", place.site);
    place
        .world
        .muster(&["plan", &site, "--to", &before, "--overwrite", &site, "--out", "plan.json"])
        .ok()
        .says(&[
            "reference-unchecked",
            "table `user_account` of identity had no column `boss` at the target",
        ]);
    place.declare(
        "[[references]]\nfrom = \"identity.user_account.bos\"\nto = \"identity.user_account.username\"",
    );
    place
        .world
        .muster(&["check"])
        .code(2)
        .says(&["has no column `bos`, its column by [[references]]", "did you mean `boss`?"]);
}

#[test]
fn a_column_that_is_gone_from_what_lives_is_told() {
    let authors = "[[references]]\nfrom = \"product:jira-software.jsw_project.lead\"\nto = \"identity.user_account.username\"";
    let place = Place::new(World::new(SIZE, seed(55)), authors);
    let before = place.moment();
    place.run(Kind::JiraSoftware, "ALTER TABLE jsw_project RENAME COLUMN lead TO leader");
    place.restore(&before, Some(Kind::Identity), "users").ok();
    let (report, _) = place.report("users");
    let note = report.notes.iter().find(|note| note.code == "reference-unchecked").expect("a note");
    assert!(note.text.contains("has no `jsw_project`.`lead` now"), "{}", note.text);
}

fn sql_check(name: &str, sql: &str, more: &str) -> String {
    format!("[[kinds.\"identity\".checks]]\nname = {name:?}\nsql = {sql:?}\n{more}\n")
}

/// Statements with their results, and one that takes too long; all in the site's own shard.
fn statements_are_judged(world: World, slow: &str) {
    let users = "SELECT count(*) FROM user_account WHERE site_id = $1 AND username = 'mallory'";
    let more = [
        sql_check("no-mallory", users, "expect = \"0\""),
        sql_check(
            "nobody",
            "SELECT username, email FROM user_account WHERE site_id = $1 AND username = 'mallory'",
            "expect_no_rows = true",
        ),
        sql_check("slow", slow, "expect = \"0\"\ntimeout_seconds = 1"),
    ];
    let place = Place::new(world, &more.concat());
    place.user(900_001, "mallory");
    let moment = place.moment();
    place.lose(Kind::Identity);
    let failed = place.restore(&moment, Some(Kind::Identity), "users").code(3);
    failed.says(&[
        "check `no-mallory` of site:",
        "its statement should give `0`, and gives `1`",
        "its statement should give no rows, and gives `mallory | x@y`",
        "the statement was stopped after 1 s",
        "muster resume users",
    ]);
    let (_, site) = place.report("users");
    let passed: Vec<(&str, Option<bool>)> =
        site.kind_checks.iter().map(|check| (check.check.as_str(), check.passed)).collect();
    assert_eq!(passed, [("no-mallory", Some(false)), ("nobody", Some(false)), ("slow", Some(false))]);
    assert!(site.handed_back_at.is_none() && site.stores[0].rows > 0);
    let page = place.world.muster(&["report", "users"]);
    page.says(&["kind-check/site:"]);
}

#[test]
fn statements_are_judged_in_sqlite() {
    let slow =
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n WHERE i < 0";
    statements_are_judged(World::new(SIZE, seed(56)), slow);
}

#[test]
fn statements_are_judged_in_postgresql() {
    statements_are_judged(World::on_services(SIZE, seed(57)), "SELECT 0 FROM pg_sleep(600)");
}

#[test]
fn programs_are_judged_by_their_exit_code() {
    let program = |name: &str, script: &str| {
        format!(
            "[[kinds.identity.checks]]\nname = {name:?}\nprogram = [\"sh\", \"-c\", {script:?}]\ntimeout_seconds = 3\n"
        )
    };
    let more = [
        program("fails", "echo broken >&2; exit 7"),
        program("floods", "yes | head -c 3000000; echo the end"),
        program("hangs", "sleep 600 & sleep 600"),
        program("sees", "cat > seen.json; [ ! -e refuse ]"),
    ];
    let mut place = Place::new(World::new(SIZE, seed(58)), &more.concat());
    place.world.set("AWS_SECRET_CHECK", Some("secret"));
    let moment = place.moment();
    place.lose(Kind::Identity);
    std::fs::write(place.world.path("refuse"), "").unwrap();
    place.restore(&moment, Some(Kind::Identity), "users").code(3).says(&[
        "check `fails` of site:",
        "ended with exit status: 7: broken",
        "was killed after 3 s",
    ]);
    let (_, site) = place.report("users");
    let of = |name: &str| site.kind_checks.iter().find(|check| check.check == name).unwrap();
    assert_eq!((of("floods").passed, of("sees").passed), (Some(true), Some(false)));
    assert!(of("floods").output.ends_with("the end") && of("floods").output.len() < 5000);
    let seen: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(place.world.path("seen.json")).unwrap()).unwrap();
    let shard = place.shard(Kind::Identity);
    assert_eq!(seen["site"], format!("site:{}", place.site));
    assert_eq!(seen["address"], serde_json::json!({ "driver": "sqlite", "path": shard.path }));
    assert_eq!(
        (&seen["kind"], &seen["check"], &seen["sandbox"]),
        (&"identity".into(), &"sees".into(), &false.into())
    );
    // Resumed, all that failed are run again, and what passed is not.
    std::fs::remove_file(place.world.path("refuse")).unwrap();
    place.world.muster(&["resume", "users"]).code(3);
    let (_, site) = place.report("users");
    let passed =
        site.kind_checks.iter().filter(|check| check.passed == Some(true)).map(|check| check.check.as_str());
    assert_eq!(passed.collect::<Vec<_>>(), ["floods", "sees"]);
}

#[test]
fn a_drill_runs_checks_against_its_sandbox() {
    let more =
        "[[kinds.identity.checks]]\nname = \"sees\"\nprogram = [\"sh\", \"-c\", \"cat > seen.json\"]\n";
    let mut sandboxes = String::new();
    for region in muster_demo::REGIONS {
        writeln!(
            sandboxes,
            "[sandbox.{region}]\ndriver = \"sqlite\"\ndir = \"sandbox\"\nregion = \"{region}\""
        )
        .unwrap();
    }
    let place = Place::new(World::new(SIZE, seed(59)), &format!("{AUTHORS}{more}{sandboxes}"));
    place.comment(900_001, "ghost");
    place.moment();
    let drill = "format = 1\nname = \"d\"\nclass = \"many-sites\"\nsites = 12\nwindow_seconds = 3600\nsettle_seconds = 0\nseed = 1\n";
    std::fs::write(place.world.path("drill.toml"), format!("{drill}at = \"{}\"\n", now())).unwrap();
    place.captured();
    place.world.muster(&["drill", "run", "drill.toml"]).ok();
    let seen: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(place.world.path("seen.json")).unwrap()).unwrap();
    assert_eq!(seen["sandbox"], true);
    let path = seen["address"]["path"].as_str().unwrap();
    assert!(path.contains("/sandbox/muster_drill_"), "{path}");
    // A store alone: what lives is not asked.
    std::fs::write(
        place.world.path("drill.toml"),
        drill.replace("many-sites", "one-store").replace("sites = 12\n", "")
            + &format!("at = \"{}\"\n", now()),
    )
    .unwrap();
    place.captured();
    place.world.muster(&["drill", "run", "drill.toml"]).ok();
}
