//! Connections to a shard and the settings that text depends on.
//!
//! - [`PostgresConfig::parse`]: a connection text as libpq takes it, with what libpq's environment adds.
//! - [`PostgresConfig::connect`], [`PostgresConfig::replication`]: sessions of both kinds under the same pinned settings.
//! - [`ExportedState`]: a state of the database that several sessions can read.
//! - [`block_on`]: for callers that are not async.
//!
//! # Invariants
//! - A password is in no error, `Debug` or `Display` text.
//! - Every session prints values alike: [`text_settings`].

mod conninfo;
mod environment;
mod error;
mod export;
mod tls;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use pgwire_replication::{IdentifySystem, Lsn, ReplicationClient, ReplicationConfig};
use tokio::runtime::Runtime;
use tokio_postgres::Client;
use tokio_postgres::config::SslMode;

pub use self::environment::Environment;
pub use self::error::ConnectError;
pub(crate) use self::error::{error_text, is_transient_state, split_sqlstate};
pub use self::export::{ExportError, ExportedState};
pub use self::tls::TlsMode;

/// How long a connection may take where the connection text says nothing: longer than a busy server needs to fork.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

/// Threads of the runtime that blocking callers use: connections wait far more than they compute.
const RUNTIME_THREADS: usize = 2;

/// Messages of a replication session that wait for their reader, and that it takes at once: beyond some hundreds waking
/// it costs nothing any more, and what is not read yet is better off in the server.
pub(crate) const REPLICATION_MESSAGES_MAX: usize = 1024;
/// What all names of this machine count as.
const LOCAL: &str = "127.0.0.1";

/// Settings that the text of values depends on, the same on every session.
const TEXT_SETTINGS: [(&str, &str); 10] = [
    ("client_encoding", "UTF8"),
    ("DateStyle", "ISO, YMD"),
    ("IntervalStyle", "postgres"),
    ("TimeZone", "UTC"),
    ("extra_float_digits", "1"),
    ("bytea_output", "hex"),
    ("lc_monetary", "C"),
    ("search_path", "pg_catalog"),
    ("row_security", "off"),
    ("xmloption", "content"),
];

/// Limits that a role or database may have set for its application, and that long reads must not meet.
const SESSION_SETTINGS: [(&str, &str); 3] =
    [("statement_timeout", "0"), ("lock_timeout", "0"), ("idle_in_transaction_session_timeout", "0")];

/// The settings that the text of fields depends on, as every session of Muster has them.
pub fn text_settings() -> BTreeMap<String, String> {
    TEXT_SETTINGS.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// Where a shard is and how to get in.
#[derive(Clone, PartialEq, Eq)]
pub struct PostgresConfig {
    /// A host name, an address, or the folder of a Unix socket.
    host: String,
    /// The address, where it is given beside the name.
    address: Option<IpAddr>,
    port: u16,
    user: String,
    password: Option<String>,
    database: String,
    /// The caller's own `options`; Muster's come behind them and win.
    options: Option<String>,
    connect_timeout: Duration,
    tls: tls::Tls,
}

impl fmt::Debug for PostgresConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PostgresConfig({self}, tls {:?})", self.tls)
    }
}

/// `user@host:port/database`.
impl fmt::Display for PostgresConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}:{}/{}", self.user, self.host, self.port, self.database)
    }
}

impl PostgresConfig {
    /// Reads a connection text: a URL (`postgresql://…`) or `key=value` pairs, `service=NAME` among them. What is left
    /// out comes from the service file, the `PG…` variables of the process and its password file.
    ///
    /// # Errors
    /// A text, service file or variable that cannot be understood, or something asked for that is not supported.
    pub fn parse(connection: &str) -> Result<Self, ConnectError> {
        Self::parse_in(connection, &Environment::of_process())
    }

    /// As [`Self::parse`], in a given environment.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn parse_in(connection: &str, environment: &Environment) -> Result<Self, ConnectError> {
        let given = conninfo::parse(connection)?;
        let mut settings = environment.complete(given)?;
        let host = settings.take("host").unwrap_or_else(|| environment.default_host());
        if host.contains(',') {
            return Err(ConnectError::setting(
                "the connection names several hosts",
                "name the one that writers use: capture follows one server's log",
            ));
        }
        let address = settings.take("hostaddr").map(|text| parse_number(&text, "hostaddr")).transpose()?;
        let port = settings.take("port").map_or(Ok(5432), |text| parse_number(&text, "port"))?;
        let user = settings.take("user").unwrap_or_else(|| environment.user());
        let database = settings.take("dbname").unwrap_or_else(|| user.clone());
        let password = match settings.take("password") {
            Some(password) => Some(password),
            None => environment.password(settings.take("passfile"), &host, port, &database, &user),
        };
        let tls = tls::Tls::new(&mut settings, &host, environment)?;
        let connect_timeout = match settings.take("connect_timeout") {
            Some(text) => match parse_number(&text, "connect_timeout")? {
                0_u64 => CONNECT_TIMEOUT,
                seconds => Duration::from_secs(seconds),
            },
            None => CONNECT_TIMEOUT,
        };
        let options = settings.take("options");
        Ok(Self { host, address, port, user, password, database, options, connect_timeout, tls })
    }

    /// The host: a name, an address, or the folder of a Unix socket.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The database.
    pub fn database(&self) -> &str {
        &self.database
    }

    /// Another database of the same server.
    #[must_use]
    pub fn with_database(&self, database: &str) -> Self {
        Self { database: database.to_owned(), ..self.clone() }
    }

    /// Names the same database: ways to say this machine count as one.
    pub fn is_same_database(&self, other: &Self) -> bool {
        let place = |config: &Self| match &config.address {
            Some(address) => address.to_string(),
            None if config.is_unix_socket() => LOCAL.to_owned(),
            None => config.host.to_ascii_lowercase(),
        };
        let local = |place: String| match place.as_str() {
            "localhost" | "::1" => LOCAL.to_owned(),
            text if text.starts_with("127.") => LOCAL.to_owned(),
            _ => place,
        };
        local(place(self)) == local(place(other))
            && self.port == other.port
            && self.database == other.database
    }

    /// The user.
    pub fn user(&self) -> &str {
        &self.user
    }

    fn is_unix_socket(&self) -> bool {
        self.host.starts_with('/')
    }

    /// Pinned settings as the `options` of a startup message; in it, a backslash escapes a space.
    fn startup_options(&self) -> String {
        let mut options = self.options.clone().unwrap_or_default();
        for (name, value) in TEXT_SETTINGS.iter().chain(&SESSION_SETTINGS) {
            options.push_str(&format!(" -c {name}={}", value.replace(' ', "\\ ")));
        }
        options.trim_start().to_owned()
    }

    /// A new session. Its connection task ends when the client is dropped.
    ///
    /// # Errors
    /// [`ConnectError`]; transient while the server is not up or has no connection to spare.
    pub async fn connect(&self) -> Result<Client, ConnectError> {
        let mut config = tokio_postgres::Config::new();
        config.host(&self.host).port(self.port).user(&self.user).dbname(&self.database);
        if let Some(address) = self.address {
            config.hostaddr(address);
        }
        if let Some(password) = &self.password {
            config.password(password);
        }
        config.options(self.startup_options()).application_name("muster");
        config.connect_timeout(self.connect_timeout).keepalives_idle(Duration::from_secs(60));
        let mode = if self.is_unix_socket() { TlsMode::Disable } else { self.tls.mode };
        config.ssl_mode(match mode {
            TlsMode::Disable => SslMode::Disable,
            TlsMode::Prefer => SslMode::Prefer,
            TlsMode::Require | TlsMode::VerifyCa | TlsMode::VerifyFull => SslMode::Require,
        });
        let tls = tokio_postgres_rustls::MakeRustlsConnect::new(self.tls.client_config()?);
        let within = tokio::time::timeout(self.connect_timeout, config.connect(tls)).await;
        let connected = within.map_err(|_| self.too_slow())?;
        let (client, connection) = connected.map_err(|error| ConnectError::of_sql(self, &error))?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!("a connection ended: {error}");
            }
        });
        Ok(client)
    }

    /// A new replication session that has not started streaming: replication commands can be run on it, then
    /// [`ReplicationClient::start`] streams transactions of `slot` that end at or behind `acknowledged`, and tells it that
    /// everything before is done with.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub async fn replication(
        &self,
        slot: &str,
        publication: &str,
        acknowledged: Lsn,
    ) -> Result<(ReplicationClient, IdentifySystem), ConnectError> {
        let address = self.address.map(|address| address.to_string());
        let mut tls = self.tls.replication_config();
        if self.is_unix_socket() {
            tls.mode = pgwire_replication::SslMode::Disable;
        }
        // Also tells the client that an address is meant to be in the certificate.
        tls.sni_hostname = Some(self.host.clone());
        let password = self.password.clone().unwrap_or_default();
        let host = address.unwrap_or_else(|| self.host.clone());
        let config = ReplicationConfig::new(host, &self.user, password, &self.database, slot, publication)
            .with_port(self.port)
            .with_tls(tls)
            // The server may not know yet of all that was acknowledged, when an earlier session broke off. Were it to
            // start from what it knows, the first acknowledgement would let it forget what it is about to decode.
            .with_start_lsn(acknowledged)
            .with_buffer_size(REPLICATION_MESSAGES_MAX)
            .with_application_name("muster capture")
            .with_options(self.startup_options());
        let session = async {
            let mut client = ReplicationClient::connect_gated(config).await?;
            let system = client.identify_system().await?;
            Ok((client, system))
        };
        let within = tokio::time::timeout(self.connect_timeout, session).await;
        within.map_err(|_| self.too_slow())?.map_err(|error| ConnectError::of_replication(self, &error))
    }

    fn too_slow(&self) -> ConnectError {
        ConnectError::at(
            self,
            format!("no answer within {} s", self.connect_timeout.as_secs()),
            "check that the server runs and that host, port and firewall let this machine in",
            true,
        )
    }
}

fn parse_number<T: std::str::FromStr>(text: &str, name: &str) -> Result<T, ConnectError> {
    text.trim().parse().map_err(|_| {
        ConnectError::setting(
            format!("`{text}` is not a value of `{name}`"),
            "correct it in the connection, the service file or the environment",
        )
    })
}

/// Files below the user's home folder that libpq looks for.
fn in_home(home: Option<&PathBuf>, name: &str) -> Option<PathBuf> {
    home.map(|home| home.join(name)).filter(|path| path.exists())
}

/// Runs `work` to its end, for callers that are not async. Connections made in it live on between calls.
///
/// # Errors
/// When the process cannot have further threads.
///
/// # Panics
/// When called from an async task instead of a thread for blocking work.
pub fn block_on<T>(work: impl Future<Output = T>) -> Result<T, ConnectError> {
    static RUNTIME: OnceLock<Option<Runtime>> = OnceLock::new();
    let made = RUNTIME.get_or_init(|| {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(RUNTIME_THREADS).thread_name("muster-postgres").enable_all();
        builder.build().inspect_err(|error| tracing::error!("cannot start threads: {error}")).ok()
    });
    let runtime = made.as_ref().ok_or_else(|| {
        ConnectError::setting("this process cannot start threads", "raise its limit of threads (`ulimit -u`)")
    })?;
    Ok(runtime.block_on(work))
}
