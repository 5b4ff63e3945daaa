//! A shard behind a role with the documented rights and no more, as on a managed server, found by a service file and a
//! password file: captured, lost, brought back; and the password is in nothing that Muster writes.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may say so by a panic")]

use std::os::unix::fs::PermissionsExt as _;

use muster_services::{Minio, Postgres};
use muster_tests::{Folder, Owned, Ran, connect, differences, now, rows};

const PASSWORD: &str = "a-secret-word";

const SCHEMA: &str = "
CREATE TABLE site (id text PRIMARY KEY, name text NOT NULL);
CREATE TABLE project (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, site text NOT NULL, key text UNIQUE);
CREATE TABLE issue (id bigserial PRIMARY KEY, project bigint NOT NULL REFERENCES project, title text, body jsonb);
ALTER TABLE project REPLICA IDENTITY FULL;
ALTER TABLE issue REPLICA IDENTITY FULL;
INSERT INTO site SELECT 's' || i, 'Site ' || i FROM generate_series(1, 6) i;
INSERT INTO project (site, key) SELECT 's' || (i % 6 + 1), 'K' || i FROM generate_series(1, 30) i;
INSERT INTO issue (project, title, body)
  SELECT i % 30 + 1, repeat('Ä ' || i, i % 7), jsonb_build_object('n', i) FROM generate_series(1, 400) i;
";

const TABLES: [Owned; 3] = [
    Owned { table: "site", sql: "SELECT id AS owner, * FROM site", generated: &[] },
    Owned { table: "project", sql: "SELECT site AS owner, * FROM project", generated: &[] },
    Owned {
        table: "issue",
        sql: "SELECT p.site AS owner, i.* FROM issue i JOIN project p ON p.id = i.project",
        generated: &[],
    },
];

const DELETE: &str = "
DELETE FROM issue USING project p WHERE p.id = issue.project AND p.site IN ('s2', 's5');
DELETE FROM project WHERE site IN ('s2', 's5');
DELETE FROM site WHERE id IN ('s2', 's5');
";

fn topology(minio: &Minio, bucket: &str) -> String {
    let tables = "
[tables.site]
kind = 'metadata'
tenant = 'id'
[tables.project]
kind = 'product:tracker'
tenant = 'site'
[tables.issue]
kind = 'product:tracker'
parent = { column = 'project', table = 'project', key = 'id' }
";
    format!(
        "fleet = 'managed'
[repository]
bucket = '{bucket}'
endpoint = '{}'
[directory]
kind = 'metadata'
table = 'site'
[directory.columns]
name = 'name'
[tiers.standard]
rto_seconds = 3600
rpo_seconds = 60
[shards.managed]
driver = 'postgres'
connection = 'service=managed'
region = 'eu'
kinds = ['metadata', 'product:tracker']
{tables}",
        minio.endpoint()
    )
}

/// The rights that `docs/postgresql.md` lists, one by one.
fn grant(server: &Postgres, database: &str, role: &str) {
    let sql = format!(
        "GRANT CREATE ON DATABASE {database} TO {role};
         ALTER TABLE site OWNER TO {role}; ALTER TABLE project OWNER TO {role}; ALTER TABLE issue OWNER TO {role};
         GRANT SET ON PARAMETER session_replication_role TO {role}"
    );
    server.psql(database, &sql).unwrap();
}

#[test]
fn documented_rights_are_enough_and_no_secret_is_written() {
    let (server, minio) = (Postgres::shared().unwrap(), Minio::shared().unwrap());
    let (database, bucket) =
        (server.create_database("managed").unwrap(), minio.create_bucket("managed").unwrap());
    server.psql(&database, SCHEMA).unwrap();
    let role = server.create_role("managed", PASSWORD, "REPLICATION").unwrap();
    let mut environment = vec![
        ("AWS_ACCESS_KEY_ID", minio.access_key().to_owned()),
        ("AWS_SECRET_ACCESS_KEY", minio.secret_key().to_owned()),
    ];
    let files = tempfile::tempdir().unwrap();
    let (services, passwords) = (files.path().join("services"), files.path().join("passwords"));
    let service =
        format!("[managed]\nhost=127.0.0.1\nport={}\nuser={role}\ndbname={database}\n", server.port());
    std::fs::write(&services, service).unwrap();
    std::fs::write(&passwords, format!("127.0.0.1:*:*:{role}:{PASSWORD}\n")).unwrap();
    std::fs::set_permissions(&passwords, std::fs::Permissions::from_mode(0o600)).unwrap();
    environment.push(("PGSERVICEFILE", services.display().to_string()));
    environment.push(("PGPASSFILE", passwords.display().to_string()));
    let mut folder = Folder::new(&topology(&minio, &bucket), environment);
    let mut said = String::new();
    let mut hear = |ran: Ran| said += &format!("{ran}");

    // Without the rights, each is named; with them, nothing is missing.
    let refused = folder.muster(&["capture", "init"]).code(1);
    hear(refused.says(&["GRANT CREATE ON DATABASE", "member of the table's owner"]));
    grant(&server, &database, &role);
    hear(folder.muster(&["capture", "init"]).ok());
    hear(folder.muster(&["check"]).ok());
    hear(folder.muster(&["capture", "--once"]).ok());
    let mut application = connect(&server.url(&database));
    application.batch_execute("UPDATE issue SET title = title || '!' WHERE id % 3 = 0").unwrap();
    hear(folder.muster(&["capture", "--once"]).ok());
    let before = rows(&mut application, &TABLES);
    let moment = now();
    application.batch_execute(DELETE).unwrap();
    folder.follow();
    hear(folder.muster(&["capture", "wait", "--covers", "now"]).ok());
    hear(
        folder.muster(&["detect", "--from", &moment, "--out", "incident.toml"]).ok().says(&["2 sites lost"]),
    );
    let full = ["plan", "--incident", "incident.toml", "--proof", "full"];
    let refused = folder.muster(&full);
    assert_ne!(refused.code, Some(0), "{refused}");
    hear(
        refused.says(&[
            "full proof of neighbours needs",
            "ALTER TABLE \"public\".\"site\" REPLICA IDENTITY FULL",
        ]),
    );
    application.batch_execute("ALTER TABLE site REPLICA IDENTITY FULL").unwrap();
    hear(folder.muster(&full).ok());
    hear(folder.muster(&["apply", "plan.json", "--run", "r"]).ok().says(&["2 sites restored, 0 not"]));
    hear(folder.muster(&["report", "r", "--html", "report.html"]).ok());
    folder.stop_following();
    let found = differences(&rows(&mut application, &TABLES), &before);
    assert!(found.is_empty(), "{found}");
    hear(folder.muster(&["capture", "remove"]).ok());
    let left = server.psql(&database, "SELECT count(*) FROM pg_namespace WHERE nspname = 'muster'").unwrap();
    assert_eq!(left.trim(), "0");

    said += &folder.follow_log();
    for name in ["plan.json", "incident.toml", "report.html"] {
        said += &std::fs::read_to_string(folder.path(name)).unwrap();
    }
    assert!(said.contains(&role), "what was heard names the role:\n{said}");
    for secret in [PASSWORD, minio.secret_key()] {
        assert!(!said.contains(secret), "a secret was written");
    }
}
