//! Passwords in a topology's text: it is kept in the repository, where they do not belong.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::raw::Findings;

/// Keys of a connection text that hold a secret.
const SECRET_KEYS: [&str; 2] = ["password", "sslpassword"];

/// Where secrets stand in a topology's text, as lines counted from 1, ascending. Comments count, since they are kept
/// with the rest. Found are logins in URLs (`scheme://user:password@…`), and `password` in connection texts.
pub fn secret_lines(text: &str) -> Vec<u64> {
    let places = Findings::new("", text);
    let mut lines: Vec<u64> = (1u64..)
        .zip(text.lines())
        .filter(|(_, line)| {
            has_login(line)
                || (line.trim_start().starts_with('#') && line.contains("connection") && has_key(line))
        })
        .map(|(number, _)| number)
        .collect();
    let (table, _) = DeTable::parse_recoverable(text);
    let mut connections = Vec::new();
    collect(table.get_ref(), &mut connections);
    lines.extend(connections.iter().filter(|(_, text)| has_key(text)).map(|(at, _)| places.line(*at)));
    lines.sort_unstable();
    lines.dedup();
    lines
}

/// The values of all keys `connection`, with their places.
fn collect<'t>(table: &'t DeTable<'t>, found: &mut Vec<(usize, &'t str)>) {
    for (key, value) in table {
        if let (true, DeValue::String(text)) = (key.get_ref() == "connection", value.get_ref()) {
            found.push((value.span().start, text));
        }
        inner(value, found);
    }
}

fn inner<'t>(value: &'t Spanned<DeValue<'t>>, found: &mut Vec<(usize, &'t str)>) {
    match value.get_ref() {
        DeValue::Table(table) => collect(table, found),
        DeValue::Array(array) => array.iter().for_each(|value| inner(value, found)),
        _ => {}
    }
}

/// Whether there is a URL with a password in its login.
fn has_login(line: &str) -> bool {
    line.match_indices("://").any(|(at, separator)| {
        let rest = &line[at + separator.len()..];
        let end = rest
            .find(|c: char| c.is_whitespace() || matches!(c, '/' | '?' | '#' | '"' | '\''))
            .unwrap_or(rest.len());
        let login = rest[..end].rsplit_once('@').map(|(login, _)| login);
        login.and_then(|login| login.split_once(':')).is_some_and(|(_, password)| !password.is_empty())
    })
}

/// Whether a connection text has a password as `key=value`.
fn has_key(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    SECRET_KEYS.iter().any(|key| {
        lower.match_indices(key).any(|(at, _)| {
            let begins = lower[..at]
                .chars()
                .next_back()
                .is_none_or(|before| !before.is_alphanumeric() && before != '_');
            let value = lower[at + key.len()..].trim_start().strip_prefix('=').map(str::trim_start);
            begins
                && value.is_some_and(|value| {
                    !matches!(value.chars().next(), None | Some('"' | '&')) && !value.starts_with("''")
                })
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_found_wherever_they_stand() {
        let text = r#"
fleet = "f"
endpoint = "http://key:hunter2@minio:9000"
[shards.a]
connection = "postgresql://muster:hunter2@db/x"
[shards.b]
connection = "host=db user=muster password=hunter2 dbname=x"
[shards.c]
connection = """
host=db
password = 'hunter2'"""
[sandbox.s]
connection = "postgresql://muster@db/x?sslpassword=hunter2"
# connection = "host=db password=hunter2"
"#;
        assert_eq!(secret_lines(text), [3, 5, 7, 9, 13, 14]);
    }

    #[test]
    fn what_only_names_a_password_is_none() {
        let text = r#"
# The password comes from PGPASSWORD or ~/.pgpass.
[shards.a]
connection = "postgresql://muster@db:5432/passwords"
[shards.b]
connection = "service=muster passfile=/etc/muster/pgpass"
[shards.c]
connection = "host=db password='' dbname=x"
[tables.password_resets]
tenant = "password"
[[tables.users.migrations]]
sql = ["UPDATE {staged} SET password = 'x' WHERE mail LIKE 'a:b@c'"]
"#;
        assert_eq!(secret_lines(text), [] as [u64; 0]);
    }
}
