//! What differs between two texts of a topology, setting by setting.

use std::collections::BTreeMap;

use super::raw::quoted;

/// What `new` has otherwise than `old`, a line each, by setting: `shards.a.region: "eu" → "us"`. Empty where only comments
/// and layout differ. A text that is no TOML has no settings.
pub fn differences(old: &str, new: &str) -> Vec<String> {
    let (old, new) = (settings(old), settings(new));
    let mut lines = Vec::new();
    for (key, value) in &old {
        match new.get(key) {
            None => lines.push(format!("{key}: {value} → not there")),
            Some(other) if other != value => lines.push(format!("{key}: {value} → {other}")),
            Some(_) => {}
        }
    }
    let added = new.iter().filter(|(key, _)| !old.contains_key(*key));
    lines.extend(added.map(|(key, value)| format!("{key}: not there → {value}")));
    lines.sort();
    lines
}

fn settings(text: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for (key, value) in text.parse::<toml::Table>().unwrap_or_default() {
        flatten(quoted(&key), &value, &mut found);
    }
    found
}

fn flatten(path: String, value: &toml::Value, found: &mut BTreeMap<String, String>) {
    match value {
        toml::Value::Table(table) if !table.is_empty() => {
            table.iter().for_each(|(key, value)| flatten(format!("{path}.{}", quoted(key)), value, found));
        }
        _ => drop(found.insert(path, value.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_differ_are_named() {
        let old = "fleet = \"f\"\n[shards.a]\nregion = \"eu\"\nslots = 1\n[tables.\"x.y\"]\nkind = \"k\"\n";
        let new = "# now\nfleet = \"f\"\nshards.a = { region = \"us\" }\n[tables.z]\nreference = true\n";
        let expected = [
            "shards.a.region: \"eu\" → \"us\"",
            "shards.a.slots: 1 → not there",
            "tables.\"x.y\".kind: \"k\" → not there",
            "tables.z.reference: not there → true",
        ];
        assert_eq!(differences(old, new), expected);
        assert_eq!(differences(old, &format!("# why\n\n{old}")), [] as [String; 0]);
    }
}
