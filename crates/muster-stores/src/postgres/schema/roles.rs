//! The roles that a statement of a table names: owners, those with privileges, those of policies.

use super::phase::{LAST, SCHEMA};

/// The roles of a statement as [`around`](super::around) writes it; none of those that name none. `PUBLIC` is no role.
pub fn roles_of(statement: &str) -> Vec<String> {
    let Some(sql) = statement.strip_prefix(LAST).or_else(|| statement.strip_prefix(SCHEMA)) else {
        return Vec::new();
    };
    let list = if let Some((_, owner)) = sql.split_once(" OWNER TO ") {
        owner
    } else if sql.starts_with("GRANT ") {
        sql.rsplit_once(" TO ").map_or("", |(_, roles)| roles)
    } else if sql.starts_with("CREATE POLICY ") {
        policy_roles(sql)
    } else {
        ""
    };
    names(list)
}

/// What stands between `TO` and the conditions. Quoted names may hold anything; conditions come behind.
fn policy_roles(sql: &str) -> &str {
    let command =
        [" FOR SELECT TO ", " FOR INSERT TO ", " FOR UPDATE TO ", " FOR DELETE TO ", " FOR ALL TO "];
    command
        .iter()
        .filter_map(|begin| Some((sql.find(begin)?, begin.len())))
        .min()
        .map_or("", |(at, length)| sql.get(at + length..).unwrap_or_default())
}

/// Names at the beginning of `list`, separated by commas.
fn names(list: &str) -> Vec<String> {
    let (mut found, mut rest) = (Vec::new(), list);
    loop {
        let (name, behind) = name(rest);
        if !name.is_empty() && name != "PUBLIC" {
            found.push(name);
        }
        match behind.strip_prefix(", ") {
            Some(more) => rest = more,
            None => return found,
        }
    }
}

/// The first name, without its quotes, and what follows.
fn name(text: &str) -> (String, &str) {
    let Some(mut rest) = text.strip_prefix('"') else {
        let end = text.find([' ', ',']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut name = String::new();
    while let Some((part, behind)) = rest.split_once('"') {
        name.push_str(part);
        match behind.strip_prefix('"') {
            Some(more) => {
                name.push('"');
                rest = more;
            }
            None => return (name, behind),
        }
    }
    (name, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_name_a_role() {
        for (statement, wanted) in [
            ("/* last */ ALTER TABLE \"a\".\"b\" OWNER TO \"the \"\"app\"", vec!["the \"app"]),
            ("/* last */ GRANT SELECT ON TABLE \"a\".\" TO x\" TO \"r\" WITH GRANT OPTION", vec!["r"]),
            ("/* schema */ GRANT USAGE ON SCHEMA \"a\" TO PUBLIC", vec![]),
            (
                "/* last */ CREATE POLICY p ON a.b AS PERMISSIVE FOR ALL TO app, \"Odd, one\", PUBLIC USING (x)",
                vec!["app", "Odd, one"],
            ),
            ("/* last */ ALTER TABLE a.b ENABLE ROW LEVEL SECURITY", vec![]),
            ("CREATE TABLE \"a\".\" OWNER TO x\" ()", vec![]),
        ] {
            assert_eq!(roles_of(statement), wanted, "{statement}");
        }
    }
}
