//! Connection texts as libpq writes them: URLs and `key=value` pairs.

use std::collections::BTreeMap;

use super::error::ConnectError;

/// Settings by libpq's names; those that are empty count as left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Settings(BTreeMap<String, String>);

/// What Muster understands.
const KNOWN: [&str; 15] = [
    "host",
    "hostaddr",
    "port",
    "user",
    "password",
    "dbname",
    "options",
    "connect_timeout",
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "passfile",
    "service",
    "servicefile",
];

/// What libpq takes and Muster does without: each is Muster's own to set, or says nothing about which server is meant.
const PASSED_OVER: [&str; 11] = [
    "application_name",
    "fallback_application_name",
    "client_encoding",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_count",
    "tcp_user_timeout",
    "target_session_attrs",
    "gssencmode",
    "channel_binding",
];

impl Settings {
    /// Sets `name`, unless it is set.
    ///
    /// # Errors
    /// A name that Muster does not know.
    pub(super) fn add(&mut self, name: &str, value: &str) -> Result<(), ConnectError> {
        if PASSED_OVER.contains(&name) || value.is_empty() {
            return Ok(());
        }
        if !KNOWN.contains(&name) {
            return Err(ConnectError::setting(
                format!("it has a setting `{name}` that Muster does not know"),
                format!("leave it out; Muster knows {}", KNOWN.join(", ")),
            ));
        }
        self.0.entry(name.to_owned()).or_insert_with(|| value.to_owned());
        Ok(())
    }

    pub(super) fn take(&mut self, name: &str) -> Option<String> {
        self.0.remove(name)
    }
}

/// Reads a connection text. No error repeats the text: a password may be in it.
pub(super) fn parse(text: &str) -> Result<Settings, ConnectError> {
    let url = ["postgresql://", "postgres://"].iter().find_map(|scheme| text.strip_prefix(scheme));
    match url {
        Some(rest) => parse_url(rest),
        None => parse_pairs(text),
    }
}

fn malformed(what: &str) -> ConnectError {
    ConnectError::setting(
        what,
        "write `postgresql://USER@HOST:PORT/DATABASE` or `host=… port=… user=… dbname=…`",
    )
}

fn parse_url(rest: &str) -> Result<Settings, ConnectError> {
    let mut settings = Settings::default();
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
    let (login, host) = match authority.rsplit_once('@') {
        Some((login, host)) => (login, host),
        None => ("", authority),
    };
    let (user, password) = login.split_once(':').unwrap_or((login, ""));
    let (host, port) = split_port(host)?;
    for (name, value) in
        [("user", user), ("password", password), ("host", host), ("port", port), ("dbname", database)]
    {
        settings.add(name, &decode(value)?)?;
    }
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').ok_or_else(|| malformed("a parameter lacks its value"))?;
        match (decode(name)?.as_str(), value) {
            ("ssl", "true") => settings.add("sslmode", "require")?,
            (name, value) => settings.add(name, &decode(value)?)?,
        }
    }
    Ok(settings)
}

/// Splits a port off; addresses of version 6 stand in brackets.
fn split_port(host: &str) -> Result<(&str, &str), ConnectError> {
    if let Some(rest) = host.strip_prefix('[') {
        let (address, rest) =
            rest.split_once(']').ok_or_else(|| malformed("an address lacks its closing bracket"))?;
        return Ok((address, rest.strip_prefix(':').unwrap_or_default()));
    }
    Ok(host.rsplit_once(':').unwrap_or((host, "")))
}

fn decode(text: &str) -> Result<String, ConnectError> {
    let wrong = || malformed("a `%` in the URL is not followed by two hexadecimal digits");
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, behind)) = rest.split_first() {
        rest = behind;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits = rest.get(..2).and_then(|digits| std::str::from_utf8(digits).ok()).ok_or_else(wrong)?;
        bytes.push(u8::from_str_radix(digits, 16).map_err(|_| wrong())?);
        rest = &rest[2..];
    }
    String::from_utf8(bytes).map_err(|_| malformed("the URL is not UTF-8"))
}

fn parse_pairs(text: &str) -> Result<Settings, ConnectError> {
    let mut settings = Settings::default();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (name, behind) =
            rest.split_once('=').ok_or_else(|| malformed("it is neither a URL nor `key=value` pairs"))?;
        let (value, behind) = pair_value(behind.trim_start())?;
        settings.add(name.trim(), &value)?;
        rest = behind.trim_start();
    }
    Ok(settings)
}

/// A value, quoted or up to the next space; a backslash escapes what follows it.
fn pair_value(text: &str) -> Result<(String, &str), ConnectError> {
    let quoted = text.starts_with('\'');
    let body = if quoted { &text[1..] } else { text };
    let mut value = String::new();
    let mut chars = body.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '\\' => value.extend(chars.next().map(|(_, char)| char)),
            '\'' if quoted => return Ok((value, &body[at + 1..])),
            char if char.is_whitespace() && !quoted => return Ok((value, &body[at..])),
            char => value.push(char),
        }
    }
    if quoted { Err(malformed("a quoted value lacks its closing quote")) } else { Ok((value, "")) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that meets an error fails")]

    use super::*;

    fn pairs(text: &str) -> Vec<(String, String)> {
        parse(text).unwrap().0.into_iter().collect()
    }

    fn expected(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn urls_are_read() {
        let found =
            pairs("postgresql://us%40er:p%3Aw@db.example:5433/my%20db?sslmode=require&options=-c%20a%3Db");
        let wanted = [
            ("dbname", "my db"),
            ("host", "db.example"),
            ("options", "-c a=b"),
            ("password", "p:w"),
            ("port", "5433"),
            ("sslmode", "require"),
            ("user", "us@er"),
        ];
        assert_eq!(found, expected(&wanted));
        assert_eq!(pairs("postgres://[::1]:7/"), expected(&[("host", "::1"), ("port", "7")]));
        assert_eq!(pairs("postgresql:///d?host=/tmp"), expected(&[("dbname", "d"), ("host", "/tmp")]));
        assert_eq!(pairs("postgresql://%2Ftmp/d"), expected(&[("dbname", "d"), ("host", "/tmp")]));
    }

    #[test]
    fn pairs_are_read() {
        let found = pairs(r"host = db  user='a \'b\\' dbname=x\ y application_name=z password=''");
        assert_eq!(found, expected(&[("dbname", "x y"), ("host", "db"), ("user", r"a 'b\")]));
    }

    #[test]
    fn errors_do_not_repeat_the_text() {
        for text in
            ["host='db password=hunter2", "hunter2", "postgresql://u:hunter2%zz@h/d", "postgresql://[hunter2"]
        {
            let error = parse(text).unwrap_err().to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
        let error = parse("host=h colour=red").unwrap_err().to_string();
        assert!(error.contains("`colour`"), "{error}");
    }
}
