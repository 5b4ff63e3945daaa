//! Names in SQL and in the topology.

/// An identifier in SQL.
pub fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text literal in SQL, whatever `standard_conforming_strings` says.
pub fn literal(text: &str) -> String {
    if text.contains('\\') {
        return format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"));
    }
    format!("'{}'", text.replace('\'', "''"))
}

/// `"schema"."name"`.
pub fn qualified(schema: &str, name: &str) -> String {
    format!("{}.{}", quote(schema), quote(name))
}

/// The name of a table in the topology: without its schema in `public`. A dot in a name of `public` would read as a
/// schema, so such a name is written in full.
pub fn topology_name(schema: &str, name: &str) -> String {
    if schema == "public" && !name.contains('.') { name.to_owned() } else { format!("{schema}.{name}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_names_are_quoted() {
        assert_eq!(qualified("a\"b", "Straße x"), "\"a\"\"b\".\"Straße x\"");
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(literal("a\\'b"), "E'a\\\\''b'");
    }

    #[test]
    fn only_public_is_left_out() {
        assert_eq!(topology_name("public", "issue"), "issue");
        assert_eq!(topology_name("jira", "issue"), "jira.issue");
        assert_eq!(topology_name("public", "a.b"), "public.a.b");
    }
}
