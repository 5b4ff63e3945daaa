//! `muster demo`: the whole mission on a made-up fleet, each step by its own command.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use muster_demo::{
    DeletionLog, Fleet, FleetConfig, PostgresServer, Reached, RepositoryPlace, TopologyOptions, Verdict,
    WriterConfig, Writers,
};
use muster_types::Timestamp;
use muster_types::report::Report;

use super::demo_alarm;
use crate::{context, exit, print};

/// Between two polls of a shard: the most that a site loses. In PostgreSQL every commit is a recovery point, and a site
/// loses something only where an ordinary deletion in the same table and poll stands before its loss.
const POLL_INTERVAL_MILLISECONDS: u64 = 500;
/// One victim this often: 883 of them take about as many seconds as they took minutes in 2022.
const DELETION_PACE: Duration = Duration::from_millis(25);
/// The fleet is written to for so long before the script runs.
const QUIET_BEFORE: Duration = Duration::from_secs(4);
/// The run's name in the demo's own repository.
const RUN: &str = "demo";
/// Databases of all demos start with it; the demo's own moment follows.
const DATABASES: &str = "muster_demo";

/// Arguments of `muster demo`.
#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Sites in the fleet.
    #[arg(long, default_value_t = 2000)]
    sites: usize,
    /// Sites that the bad script deletes.
    #[arg(long, default_value_t = 883)]
    victims: usize,
    /// Seed of the fleet and of the choice of victims.
    #[arg(long, default_value_t = 883)]
    seed: u64,
    /// Folder for everything that the demo makes; left for inspection. A new one here if not given.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Make the shards as databases of this PostgreSQL server: postgresql://USER@HOST:PORT/DATABASE, with the password
    /// in PGPASSWORD. They are left for inspection.
    #[arg(long, value_name = "URL")]
    postgres: Option<String>,
    /// Keep the repository on this S3 server, in a bucket of its own; credentials come from the environment. Muster's
    /// embedded server if not given.
    #[arg(long, value_name = "ENDPOINT")]
    s3: Option<String>,
    /// Instead of a demo: drop the databases of an earlier one, by what their names start with.
    #[arg(long, value_name = "PREFIX", requires = "postgres", conflicts_with_all = ["s3", "dir"])]
    drop: Option<String>,
}

pub(crate) async fn run(args: DemoArgs) -> Result<ExitCode> {
    if let (Some(url), Some(prefix)) = (args.postgres.clone(), args.drop.clone()) {
        return tokio::task::spawn_blocking(move || drop_databases(&url, &prefix)).await?;
    }
    if args.victims == 0 || args.victims > args.sites {
        return Err(exit::input(format!(
            "--victims {} must be between 1 and the {} sites of the fleet",
            args.victims, args.sites
        )));
    }
    tokio::task::spawn_blocking(move || Demo::prepare(args)?.play()).await?
}

/// Removes what an earlier demo left in a server.
fn drop_databases(url: &str, prefix: &str) -> Result<ExitCode> {
    if !prefix.starts_with(DATABASES) {
        return Err(exit::input(format!("--drop {prefix}: databases of demos start with `{DATABASES}`")));
    }
    let dropped = PostgresServer::new(url, prefix)?.drop_databases()?;
    for name in &dropped {
        print::data(format!("dropped {name}"));
    }
    if dropped.is_empty() {
        print::data(format!("nothing to drop: the server has no database that starts with `{prefix}_`"));
    }
    Ok(ExitCode::SUCCESS)
}

/// The demo's folder, fleet and helpers.
struct Demo {
    dir: PathBuf,
    fleet: Arc<Fleet>,
    /// Of shards in PostgreSQL.
    server: Option<PostgresServer>,
    /// The repository is on Muster's own server.
    embedded: bool,
    victims: usize,
    began: Instant,
    muster: PathBuf,
}

/// A helper process, stopped when dropped.
struct Helper(Child);

impl Drop for Helper {
    fn drop(&mut self) {
        // It may have ended by itself; there is nobody to tell.
        let _ = Command::new("kill").arg("-TERM").arg(self.0.id().to_string()).status();
        let _ = self.0.wait();
    }
}

impl Demo {
    fn prepare(args: DemoArgs) -> Result<Self> {
        let began = Instant::now();
        let stamp: String =
            context::now().to_string().chars().filter(char::is_ascii_digit).take(14).collect();
        let dir = args.dir.unwrap_or_else(|| PathBuf::from(format!("muster-demo-{stamp}")));
        let mut config = FleetConfig::new(&dir);
        config.sites = args.sites;
        config.seed = args.seed;
        heading(&format!("a fleet of {} sites in {}", args.sites, dir.display()));
        let (server, fleet) = match &args.postgres {
            Some(url) => {
                let server = PostgresServer::new(url, &format!("{DATABASES}_{stamp}"))?;
                say_earlier(url, &server)?;
                let fleet = Fleet::generate_on(&server, &config)?;
                (Some(server), fleet)
            }
            None => (None, Fleet::generate(&config)?),
        };
        let dir = fleet.config.dir.clone();
        let embedded = args.s3.is_none();
        let options = TopologyOptions {
            bucket: if embedded { "muster".to_owned() } else { format!("muster-demo-{stamp}") },
            repository: match args.s3 {
                Some(url) => RepositoryPlace::Endpoint { url },
                None => RepositoryPlace::Embedded { folder: dir.join("s3"), port: free_port()? },
            },
            poll_interval_milliseconds: POLL_INTERVAL_MILLISECONDS,
        };
        fleet.write_topology(&dir.join("muster.toml"), &options)?;
        let muster = std::env::current_exe().context("failed to find the muster binary")?;
        let demo = Self { dir, fleet, server, embedded, victims: args.victims, began, muster };
        demo.say(&format!(
            "{} rows in {} {} of 2 regions, seed {}",
            print::count(demo.fleet.rows()),
            demo.fleet.shards.len(),
            if demo.server.is_some() { "PostgreSQL databases" } else { "shards" },
            args.seed
        ));
        Ok(demo)
    }

    /// As many threads as SQLite has use for; in PostgreSQL transactions of one shard overlap.
    fn writers(&self) -> WriterConfig {
        let config = WriterConfig::default();
        if self.server.is_some() { WriterConfig { threads: 4, ..config } } else { config }
    }

    fn play(self) -> Result<ExitCode> {
        let means = if self.server.is_some() { "logical decoding" } else { "triggers" };
        heading(&format!("capture: {means}, a snapshot of each shard, then its changes"));
        let endpoint = self.dir.join("s3").display().to_string();
        let _server = match self.embedded {
            true => Some(self.start(&["s3", "serve", &endpoint, "--listen", &self.listen()?])?),
            false => None,
        };
        self.muster(&["capture", "init"])?;
        self.muster(&["check"])?;
        self.muster(&["capture", "--once"])?;
        let capture = self.start(&["capture", "--follow"])?;
        let writers = self.fleet.start_writers(self.writers());
        self.say("writers are at work on the whole fleet");
        std::thread::sleep(QUIET_BEFORE);

        heading(&format!("the bad script deletes {} sites, one after another", self.victims));
        let started = context::now();
        let victims = self.fleet.pick_victims(self.victims);
        let runtime = tokio::runtime::Handle::current();
        let watch = runtime.spawn(demo_alarm::first_alarm(self.dir.join("muster.toml")));
        let log = self.fleet.delete_victims(&victims, DELETION_PACE)?;
        self.say(&format!("{} sites are gone; their neighbours are still written to", log.sites.len()));
        let told = runtime.block_on(watch)??;
        let alarm = demo_alarm::sentence(&told, started, &log);
        self.say(&alarm);

        heading("detect, plan, apply");
        self.muster(&["capture", "wait", "--covers", "now"])?;
        let from = started.to_string();
        let title = format!("{} sites deleted by a script", self.victims);
        self.muster(&["detect", "--from", &from, "--title", &title, "--out", "incident.toml"])?;
        self.muster(&["plan", "--incident", "incident.toml", "--proof", "full", "--out", "plan.json"])?;
        self.muster(&["apply", "plan.json", "--run", RUN])?;

        heading("report and judgement");
        self.muster(&["report", RUN, "--html", "report.html"])?;
        let verdict = self.judge(writers, capture, &log)?;
        self.finish(&verdict, &log, &alarm)
    }

    /// The independent judge: every victim at its reached point, every neighbour whole.
    fn judge(&self, writers: Writers, capture: Helper, log: &DeletionLog) -> Result<Verdict> {
        let wrote = writers.stop()?;
        self.say(&format!(
            "writers: {} transactions committed meanwhile, none waited longer than {}",
            print::count(wrote.committed),
            print::seconds(wrote.waited_most.as_secs_f64()),
        ));
        drop(capture);
        let report: Report = serde_json::from_slice(&self.output(&["report", RUN, "--json"])?)?;
        let mut reached = Reached::new();
        for site in &report.sites {
            for store in &site.stores {
                let key = (site.site.as_str().to_owned(), store.kind.to_string());
                reached.insert(key, store.reached.at.as_micros());
            }
        }
        let interval_milliseconds = if self.server.is_some() { 0 } else { POLL_INTERVAL_MILLISECONDS };
        self.fleet.judge(log, &reached, interval_milliseconds as i64 * 1000)
    }

    fn finish(&self, verdict: &Verdict, log: &DeletionLog, alarm: &str) -> Result<ExitCode> {
        print::data(verdict.to_string());
        print::data(alarm);
        print::data(format!(
            "{} of {} sites are back and equal to what they were; {} of {} neighbours are as their writers left them",
            print::count(verdict.victims_equal as u64),
            print::count(log.sites.len() as u64),
            if verdict.neighbours_equal { "all" } else { "NOT all" },
            print::count(verdict.neighbours as u64),
        ));
        self.say(&format!("took {}", print::seconds(self.began.elapsed().as_secs_f64())));
        print::data(format!("the page: {}", self.dir.join("report.html").display()));
        if let Some(first) = log.sites.first() {
            let at = Timestamp::from_micros(first.began_micros);
            print::data(format!(
                "look around: cd {} && export MUSTER_TOPOLOGY=muster.toml",
                self.dir.display()
            ));
            print::data(format!("             {} show site:{} --at {at}", self.muster.display(), first.site));
        }
        self.say_drop();
        if !verdict.holds() || log.sites.len() != self.victims {
            bail!(
                "the fleet is not what it was: see the differences above; everything is left in {}",
                self.dir.display()
            );
        }
        Ok(ExitCode::SUCCESS)
    }

    /// How to remove what is not in the folder.
    fn say_drop(&self) {
        if let Some(server) = &self.server {
            print::data(format!("its databases: {}", drop_command(server.connection(), server.prefix())));
        }
    }

    fn listen(&self) -> Result<String> {
        let topology = context::topology_file(&self.dir.join("muster.toml"))?;
        let endpoint = topology.repository.endpoint.unwrap_or_default();
        Ok(endpoint.trim_start_matches("http://").to_owned())
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.muster);
        command.args(args).current_dir(&self.dir).env("MUSTER_TOPOLOGY", "muster.toml").stdin(Stdio::null());
        command
    }

    /// Runs a command as its user would, printing it first.
    fn muster(&self, args: &[&str]) -> Result<()> {
        show_command(args);
        let status = self.command(args).status().context("failed to run muster")?;
        if !status.success() {
            bail!(
                "`muster {}` ended with {status}; everything is left in {}",
                args.join(" "),
                self.dir.display()
            );
        }
        Ok(())
    }

    fn output(&self, args: &[&str]) -> Result<Vec<u8>> {
        let output = self.command(args).stderr(Stdio::inherit()).output().context("failed to run muster")?;
        if !output.status.success() {
            bail!("`muster {}` ended with {}", args.join(" "), output.status);
        }
        Ok(output.stdout)
    }

    /// Starts a helper; what it prints goes to a file of its own.
    fn start(&self, args: &[&str]) -> Result<Helper> {
        let path = self.dir.join(format!("{}.log", args[..2].join("-").replace("--", "")));
        let file =
            std::fs::File::create(&path).with_context(|| format!("failed to create `{}`", path.display()))?;
        print::data(format!("$ muster {} &    # prints to {}", args.join(" "), shown(&path)));
        let mut command = self.command(args);
        let child =
            command.stdout(file.try_clone()?).stderr(file).spawn().context("failed to start muster")?;
        Ok(Helper(child))
    }

    fn say(&self, text: &str) {
        print::data(format!("[{:>5.1} s] {text}", self.began.elapsed().as_secs_f64()));
    }
}

/// Databases of earlier demos keep the server's log from being removed.
fn say_earlier(url: &str, server: &PostgresServer) -> Result<()> {
    let mut earlier: Vec<String> = server
        .databases(DATABASES)?
        .iter()
        .filter_map(|name| name.get(..server.prefix().len()).map(str::to_owned))
        .collect();
    earlier.dedup();
    for prefix in earlier {
        print::data(format!("an earlier demo is still in the server: {}", drop_command(url, &prefix)));
    }
    Ok(())
}

fn drop_command(url: &str, prefix: &str) -> String {
    format!("muster demo --postgres {url} --drop {prefix}")
}

fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn shown(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn heading(text: &str) {
    print::data(format!("\n── {text}"));
}

fn show_command(args: &[&str]) {
    let quoted: Vec<String> = args
        .iter()
        .map(|arg| if arg.contains(' ') { format!("'{arg}'") } else { (*arg).to_owned() })
        .collect();
    print::data(format!("$ muster {}", quoted.join(" ")));
}
