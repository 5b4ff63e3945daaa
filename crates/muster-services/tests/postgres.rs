//! PostgreSQL as tests use it.

use std::process::Command;

use muster_services::{Postgres, StopMode, Tls};

#[test]
fn the_shared_cluster_is_started_once() {
    let starts: Vec<_> = std::thread::scope(|scope| {
        let starts: Vec<_> = (0..4).map(|_| scope.spawn(|| Postgres::shared().unwrap())).collect();
        starts.into_iter().map(|start| start.join().unwrap()).collect()
    });
    let [one, others @ ..] = &starts[..] else { unreachable!() };
    assert!(others.iter().all(|other| other.port() == one.port()));
    let database = one.create_database("services").unwrap();
    assert!(one.url(&database).ends_with(&database));
    one.psql(&database, "CREATE TABLE t (k int); INSERT INTO t VALUES (1), (2)").unwrap();
    assert_eq!(one.psql(&database, "SELECT k, 'x' FROM t ORDER BY k").unwrap(), "1|x\n2|x\n");
    let failed = one.psql(&database, "SELECT 1; SELECT nothing; CREATE TABLE after ()").unwrap_err();
    assert!(format!("{failed:#}").contains("\"nothing\" does not exist"), "{failed:#}");
    assert_eq!(one.psql(&database, "SELECT to_regclass('after') IS NULL").unwrap(), "t\n");
    let wanted = [
        ("wal_level", "logical"),
        ("max_replication_slots", "64"),
        ("max_wal_senders", "64"),
        ("max_connections", "300"),
        ("listen_addresses", "127.0.0.1"),
        ("track_commit_timestamp", "on"),
    ];
    for (name, value) in wanted {
        assert_eq!(one.psql(&database, &format!("SHOW {name}")).unwrap().trim(), value, "{name}");
    }
}

#[test]
fn databases_of_processes_that_ended_go_with_their_slots() {
    let cluster = Postgres::shared().unwrap();
    let gone = cluster.create_database("gone").unwrap();
    let stays = cluster.create_database("stays").unwrap();
    let lasting = cluster.create_lasting_database("lasting").unwrap();
    let ended = Command::new("sh").args(["-c", "echo $$"]).output().unwrap();
    let ended = String::from_utf8(ended.stdout).unwrap();
    let comment = format!("COMMENT ON DATABASE {gone} IS 'made by process {}'", ended.trim());
    cluster.psql("postgres", &comment).unwrap();
    let slot = format!("SELECT pg_create_logical_replication_slot('{gone}', 'pgoutput')");
    cluster.psql(&gone, &slot).unwrap();
    Postgres::shared().unwrap();
    let there = |name: &str| {
        let sql = format!("SELECT count(*) FROM pg_database WHERE datname = '{name}'");
        cluster.psql("postgres", &sql).unwrap() == "1\n"
    };
    assert!(!there(&gone) && there(&stays) && there(&lasting));
    let slots = format!("SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{gone}'");
    assert_eq!(cluster.psql("postgres", &slots).unwrap(), "0\n");
    cluster.psql("postgres", &format!("DROP DATABASE {lasting}")).unwrap();
}

#[test]
fn a_cluster_of_ones_own_is_crashed_copied_and_removed() {
    let mut cluster = Postgres::own(&[("work_mem", "7MB")]).unwrap();
    let sql = "CREATE TABLE logged (k int); CREATE UNLOGGED TABLE unlogged (k int);
               INSERT INTO logged VALUES (1); INSERT INTO unlogged VALUES (1); SHOW work_mem; SHOW fsync";
    assert_eq!(cluster.psql("postgres", sql).unwrap(), "7MB\non\n");
    let port = cluster.port();
    cluster.stop(StopMode::Immediate).unwrap();
    assert!(cluster.psql("postgres", "SELECT 1").is_err());
    cluster.start().unwrap();
    assert_eq!(cluster.port(), port);
    let counts = "SELECT (SELECT count(*) FROM logged), (SELECT count(*) FROM unlogged)";
    assert_eq!(cluster.psql("postgres", counts).unwrap(), "1|0\n");

    let copy = Postgres::own_with(&[], |copy| {
        let mut command = Command::new(copy.bin("pg_basebackup"));
        command
            .args(["-c", "fast", "-X", "stream", "-d", &cluster.url("postgres"), "-D"])
            .arg(copy.data_dir());
        copy.run_as_owner(&mut command).map(|_| ())
    });
    let copy = copy.unwrap();
    assert_ne!(copy.port(), port);
    assert_eq!(copy.psql("postgres", "SELECT count(*) FROM logged; SHOW work_mem").unwrap(), "1\n7MB\n");
    let dir = copy.data_dir();
    drop(copy);
    assert!(!dir.parent().unwrap().exists());
    cluster.stop(StopMode::Fast).unwrap();
}

#[test]
fn roles_need_their_password_and_tls_is_spoken() {
    let tls = Tls::create().unwrap();
    let cluster = Postgres::own_with_tls(&tls, &[]).unwrap();
    let role = cluster.create_role("app", "s3:cr'et", "REPLICATION").unwrap();
    let connect = |password: &str, ca: &str| {
        let url = format!(
            "host=127.0.0.1 port={} dbname=postgres user={role} sslmode=verify-full sslrootcert={ca}",
            cluster.port()
        );
        Command::new(cluster.bin("psql"))
            .args([
                "-XAtw",
                "-c",
                "SELECT current_user, ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()",
                &url,
            ])
            .env("PGPASSWORD", password)
            .output()
            .unwrap()
    };
    let authority = tls.authority().display().to_string();
    let good = connect("s3:cr'et", &authority);
    assert_eq!(String::from_utf8_lossy(&good.stdout), format!("{role}|t\n"), "{good:?}");
    assert!(!connect("wrong", &authority).status.success());
    assert!(!connect("s3:cr'et", "/nowhere").status.success());
}
