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
            None => lines.push(format!("{key}: {} → not there", shown(key, value))),
            Some(other) if other != value && hidden(key) => lines.push(format!("{key}: … → another")),
            Some(other) if other != value => lines.push(format!("{key}: {value} → {other}")),
            Some(_) => {}
        }
    }
    let added = new.iter().filter(|(key, _)| !old.contains_key(*key));
    lines.extend(added.map(|(key, value)| format!("{key}: not there → {}", shown(key, value))));
    lines.sort();
    lines
}

/// Addresses of webhooks may be secrets.
fn hidden(key: &str) -> bool {
    key.starts_with("serve.webhooks.") && key.ends_with(".url")
}

fn shown<'v>(key: &str, value: &'v str) -> &'v str {
    if hidden(key) { "…" } else { value }
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
        let webhook = |url: &str| format!("[serve.webhooks.a]\nurl = \"{url}\"\nheader = \"x\"\n");
        let (one, other) = (webhook("https://a/hush"), webhook("https://b/hush"));
        assert_eq!(differences(&one, &other), ["serve.webhooks.a.url: … → another"]);
        assert_eq!(differences(&one, "")[1], "serve.webhooks.a.url: … → not there");
        assert_eq!(differences("", &one)[1], "serve.webhooks.a.url: not there → …");
        assert_eq!(differences(old, &format!("# why\n\n{old}")), [] as [String; 0]);
    }
}
