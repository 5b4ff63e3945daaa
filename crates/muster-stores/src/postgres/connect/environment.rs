//! What libpq's environment adds to a connection: variables, the service file, the password file.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::conninfo::Settings;
use super::error::ConnectError;
use super::in_home;

/// Variables that stand for settings.
const VARIABLES: [(&str, &str); 13] = [
    ("PGHOST", "host"),
    ("PGHOSTADDR", "hostaddr"),
    ("PGPORT", "port"),
    ("PGUSER", "user"),
    ("PGDATABASE", "dbname"),
    ("PGPASSWORD", "password"),
    ("PGPASSFILE", "passfile"),
    ("PGOPTIONS", "options"),
    ("PGCONNECT_TIMEOUT", "connect_timeout"),
    ("PGSSLMODE", "sslmode"),
    ("PGSSLROOTCERT", "sslrootcert"),
    ("PGSSLCERT", "sslcert"),
    ("PGSSLKEY", "sslkey"),
];

/// Where Debian's and others' servers put their sockets.
const SOCKET_FOLDERS: [&str; 2] = ["/var/run/postgresql", "/tmp"];

/// Variables and home folder of a process.
#[derive(Clone, Default)]
pub struct Environment {
    variables: BTreeMap<String, String>,
    home: Option<PathBuf>,
    user: String,
}

impl Environment {
    /// That of this process.
    pub fn of_process() -> Self {
        let variables: BTreeMap<String, String> = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        let home = variables.get("HOME").map(PathBuf::from);
        Self::new(variables, home)
    }

    /// These variables, and this home folder.
    pub fn new(variables: BTreeMap<String, String>, home: Option<PathBuf>) -> Self {
        let named = ["USER", "LOGNAME"].iter().find_map(|name| variables.get(*name));
        let user = named.cloned().unwrap_or_else(|| "postgres".to_owned());
        Self { variables, home, user }
    }

    pub(super) fn home(&self) -> Option<&PathBuf> {
        self.home.as_ref()
    }

    /// The name of the user who runs the process.
    pub(super) fn user(&self) -> String {
        self.user.clone()
    }

    pub(super) fn default_host(&self) -> String {
        let folder = SOCKET_FOLDERS.iter().find(|folder| Path::new(folder).join(".s.PGSQL.5432").exists());
        folder.map_or_else(|| "localhost".to_owned(), |folder| (*folder).to_owned())
    }

    /// Adds what `given` leaves out: first from the service that it names, then from the variables.
    pub(super) fn complete(&self, mut given: Settings) -> Result<Settings, ConnectError> {
        let service = given.take("service").or_else(|| self.variable("PGSERVICE"));
        let file = given.take("servicefile");
        if let Some(service) = service {
            self.add_service(&mut given, &service, file)?;
        }
        for (variable, name) in VARIABLES {
            if let Some(value) = self.variable(variable) {
                given.add(name, &value)?;
            }
        }
        Ok(given)
    }

    fn variable(&self, name: &str) -> Option<String> {
        self.variables.get(name).filter(|value| !value.is_empty()).cloned()
    }

    fn add_service(
        &self,
        settings: &mut Settings,
        service: &str,
        file: Option<String>,
    ) -> Result<(), ConnectError> {
        let named = file.or_else(|| self.variable("PGSERVICEFILE")).map(PathBuf::from);
        let own = named.or_else(|| in_home(self.home(), ".pg_service.conf"));
        let folder = self.variable("PGSYSCONFDIR").unwrap_or_else(|| "/etc/postgresql-common".to_owned());
        let candidates: Vec<PathBuf> =
            own.into_iter().chain([Path::new(&folder).join("pg_service.conf")]).collect();
        for path in &candidates {
            let Ok(text) = std::fs::read_to_string(path) else { continue };
            if let Some(section) = section(&text, service) {
                for (name, value) in section {
                    settings.add(name, value)?;
                }
                return Ok(());
            }
        }
        let looked: Vec<String> = candidates.iter().map(|path| format!("`{}`", path.display())).collect();
        Err(ConnectError::setting(
            format!("there is no service `{service}` in {}", looked.join(" or ")),
            "add it to one of them, or name the file with PGSERVICEFILE",
        ))
    }

    /// The password that the password file has for this login.
    pub(super) fn password(
        &self,
        file: Option<String>,
        host: &str,
        port: u16,
        database: &str,
        user: &str,
    ) -> Option<String> {
        let path = file.map(PathBuf::from).or_else(|| in_home(self.home(), ".pgpass"))?;
        let mode = std::fs::metadata(&path).ok()?.permissions().mode();
        if mode & 0o077 != 0 {
            tracing::warn!("password file `{}` is open to others and not used; chmod 600 it", path.display());
            return None;
        }
        let text = std::fs::read_to_string(&path).ok()?;
        let host = if SOCKET_FOLDERS.contains(&host) { "localhost" } else { host };
        let wanted = [host, &port.to_string(), database, user].map(str::to_owned);
        text.lines().find_map(|line| password_of(line, &wanted))
    }
}

/// The pairs of `[name]` in a service file.
fn section<'t>(text: &'t str, name: &str) -> Option<Vec<(&'t str, &'t str)>> {
    let mut found: Option<Vec<(&str, &str)>> = None;
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(title) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            if found.is_some() {
                break;
            }
            found = (title == name).then(Vec::new);
        } else if let (Some(found), Some((key, value))) = (&mut found, line.split_once('=')) {
            found.push((key.trim(), value.trim()));
        }
    }
    found
}

/// The password of a line of a password file if its first four fields fit; a backslash escapes `:` and itself.
fn password_of(line: &str, wanted: &[String; 4]) -> Option<String> {
    if line.starts_with('#') {
        return None;
    }
    let mut fields = vec![String::new()];
    let mut chars = line.chars();
    while let Some(char) = chars.next() {
        let last = fields.len() - 1;
        match char {
            '\\' => fields[last].extend(chars.next()),
            ':' if fields.len() < 5 => fields.push(String::new()),
            char => fields[last].push(char),
        }
    }
    let fits = |(field, wanted): (&String, &String)| field == "*" || field == wanted;
    (fields.len() == 5 && fields.iter().zip(wanted).all(fits)).then(|| fields.swap_remove(4))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that meets an error fails")]

    use std::os::unix::fs::PermissionsExt;

    use super::super::{PostgresConfig, TlsMode};
    use super::*;

    fn environment(pairs: &[(&str, &str)], home: Option<&Path>) -> Environment {
        let variables = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Environment::new(variables, home.map(Path::to_owned))
    }

    fn secret_file(folder: &Path, name: &str, text: &str) {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    }

    #[test]
    fn the_connection_wins_over_the_service_and_that_over_variables() {
        let home = tempfile::tempdir().unwrap();
        let file = "# one\n[other]\nhost=no\n[fleet]\nhost = db.one\nport=6000\ndbname=d1\n[more]\nuser=no\n";
        std::fs::write(home.path().join(".pg_service.conf"), file).unwrap();
        let variables =
            [("PGUSER", "u2"), ("PGPORT", "7000"), ("PGDATABASE", "d2"), ("PGSSLMODE", "require")];
        let environment = environment(&variables, Some(home.path()));
        let config = PostgresConfig::parse_in("service=fleet dbname=d0", &environment).unwrap();
        assert_eq!(config.to_string(), "u2@db.one:6000/d0");
        assert_eq!(config.tls.mode, TlsMode::Require);
        let error = PostgresConfig::parse_in("service=none", &environment).unwrap_err();
        assert!(error.to_string().contains("`none`"), "{error}");
    }

    #[test]
    fn passwords_come_from_the_file_and_never_show() {
        let home = tempfile::tempdir().unwrap();
        secret_file(home.path(), ".pgpass", "#x\nh:1:*:u:no\nh:5432:d:u:hun\\:ter\\\\2\n*:*:*:*:last\n");
        let environment = environment(&[], Some(home.path()));
        let config = PostgresConfig::parse_in("host=h user=u dbname=d", &environment).unwrap();
        assert_eq!(config.password.as_deref(), Some("hun:ter\\2"));
        assert!(!format!("{config:?} {config}").contains("hun"));
        let other = PostgresConfig::parse_in("host=i user=u dbname=d", &environment).unwrap();
        assert_eq!(other.password.as_deref(), Some("last"));
        let path = home.path().join(".pgpass");
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).unwrap();
        let open = PostgresConfig::parse_in("host=h user=u dbname=d", &environment).unwrap();
        assert_eq!(open.password, None);
    }

    #[test]
    fn tls_needs_a_root_to_verify_with() {
        let environment = environment(&[], None);
        let error = PostgresConfig::parse_in("host=h sslmode=verify-full", &environment).unwrap_err();
        assert!(error.to_string().contains("sslrootcert"), "{error}");
        let error = PostgresConfig::parse_in("host=h sslmode=sometimes", &environment).unwrap_err();
        assert!(error.to_string().contains("`sometimes`"), "{error}");
        let config =
            PostgresConfig::parse_in("host=h sslmode=require sslrootcert=/x.pem", &environment).unwrap();
        assert_eq!(config.tls.mode, TlsMode::VerifyCa);
    }
}
