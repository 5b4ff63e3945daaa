//! Reading TOML with the place of everything, collecting what is wrong instead of stopping at it.

use std::collections::{BTreeMap, BTreeSet};

use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

use super::error::{TopologyError, suggestion};

/// A value and the byte where it, or its key, stands.
#[derive(Clone, Debug)]
pub(super) struct At<T> {
    pub(super) value: T,
    pub(super) at: usize,
}

/// The file that is read, and what was found wrong so far.
pub(super) struct Findings<'d> {
    file: &'d str,
    text: &'d str,
    errors: Vec<TopologyError>,
}

impl<'d> Findings<'d> {
    pub(super) fn new(file: &'d str, text: &'d str) -> Self {
        Self { file, text, errors: Vec::new() }
    }

    /// Notes what is wrong at a place and what to do about it.
    pub(super) fn add(&mut self, at: usize, what: impl Into<String>, hint: impl Into<String>) {
        let line = Some(self.line(at));
        let (what, hint) = (what.into(), hint.into());
        self.errors.push(TopologyError { file: self.file.to_owned(), line, what, hint });
    }

    /// Notes what is wrong in a line of another file.
    pub(super) fn add_in(&mut self, file: &str, line: u64, what: impl Into<String>, hint: impl Into<String>) {
        let (what, hint) = (what.into(), hint.into());
        self.errors.push(TopologyError { file: file.to_owned(), line: Some(line), what, hint });
    }

    /// The line of a place, counted from 1.
    pub(super) fn line(&self, at: usize) -> u64 {
        let before = self.text.as_bytes().get(..at).unwrap_or(self.text.as_bytes());
        // The topology is read once; its lines fit any integer.
        1 + before.iter().filter(|byte| **byte == b'\n').count() as u64
    }

    /// The text of the line of a place.
    pub(super) fn line_text(&self, at: usize) -> &'d str {
        let index = usize::try_from(self.line(at) - 1).unwrap_or(usize::MAX);
        self.text.lines().nth(index).unwrap_or_default().trim()
    }

    pub(super) fn is_clean(&self) -> bool {
        self.errors.is_empty()
    }

    /// All errors, in the order of their lines.
    pub(super) fn into_errors(mut self) -> Vec<TopologyError> {
        self.errors.sort();
        self.errors.dedup();
        self.errors
    }
}

/// One table of the file. Keys that nobody asked for are errors when it is closed.
pub(super) struct Section<'t> {
    path: String,
    table: &'t DeTable<'t>,
    at: usize,
    asked: BTreeSet<&'static str>,
}

impl<'t> Section<'t> {
    pub(super) fn root(table: &'t DeTable<'t>) -> Self {
        Self { path: String::new(), table, at: 0, asked: BTreeSet::new() }
    }

    /// Where it begins.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// Its name for messages, such as `[shards.a]`.
    pub(super) fn name(&self) -> String {
        if self.path.is_empty() { "the topology".to_owned() } else { format!("[{}]", self.path) }
    }

    /// Whether a key is there, without reading it.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    fn get(&mut self, key: &'static str) -> Option<(usize, &'t Spanned<DeValue<'t>>)> {
        self.asked.insert(key);
        self.table.get_key_value(key).map(|(key, value)| (key.span().start, value))
    }

    fn wrong_type(
        &self,
        findings: &mut Findings<'_>,
        key: &str,
        at: usize,
        found: &DeValue<'_>,
        wanted: &str,
    ) {
        let what =
            format!("`{key}` in {} is {}, and {wanted} is meant", self.name(), article(found.type_str()));
        findings.add(at, what, format!("write {wanted}"));
    }

    /// A string.
    pub(super) fn text(&mut self, findings: &mut Findings<'_>, key: &'static str) -> Option<At<String>> {
        let (at, value) = self.get(key)?;
        match value.get_ref() {
            DeValue::String(text) => Some(At { value: text.to_string(), at }),
            other => {
                self.wrong_type(findings, key, at, other, "a string");
                None
            }
        }
    }

    /// A string that must be there.
    pub(super) fn required_text(
        &mut self,
        findings: &mut Findings<'_>,
        key: &'static str,
        hint: &str,
    ) -> Option<At<String>> {
        if !self.has(key) {
            self.asked.insert(key);
            findings.add(self.at, format!("{} has no `{key}`", self.name()), hint);
            return None;
        }
        let found = self.text(findings, key)?;
        if found.value.is_empty() {
            findings.add(found.at, format!("`{key}` in {} is empty", self.name()), hint);
            return None;
        }
        Some(found)
    }

    /// A boolean.
    pub(super) fn flag(&mut self, findings: &mut Findings<'_>, key: &'static str) -> Option<At<bool>> {
        let (at, value) = self.get(key)?;
        match value.get_ref() {
            DeValue::Boolean(value) => Some(At { value: *value, at }),
            other => {
                self.wrong_type(findings, key, at, other, "`true` or `false`");
                None
            }
        }
    }

    /// A whole number above zero: everything that is counted here is a limit or a target.
    pub(super) fn positive(&mut self, findings: &mut Findings<'_>, key: &'static str) -> Option<At<u64>> {
        let (at, value) = self.get(key)?;
        let DeValue::Integer(integer) = value.get_ref() else {
            self.wrong_type(findings, key, at, value.get_ref(), "a whole number");
            return None;
        };
        match u64::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(value) if value > 0 => Some(At { value, at }),
            _ => {
                let what = format!("`{key}` in {} is {}", self.name(), integer.as_str());
                findings.add(
                    at,
                    what,
                    "write a whole number above zero, or leave it out where it has a default",
                );
                None
            }
        }
    }

    /// [`Self::positive`], with a default.
    pub(super) fn positive_or(
        &mut self,
        findings: &mut Findings<'_>,
        key: &'static str,
        default: u64,
    ) -> u64 {
        self.positive(findings, key).map_or(default, |found| found.value)
    }

    /// A number that must be there.
    pub(super) fn required_positive(
        &mut self,
        findings: &mut Findings<'_>,
        key: &'static str,
        hint: &str,
    ) -> Option<u64> {
        if !self.has(key) {
            self.asked.insert(key);
            findings.add(self.at, format!("{} has no `{key}`", self.name()), hint);
            return None;
        }
        self.positive(findings, key).map(|found| found.value)
    }

    /// A list of strings.
    pub(super) fn texts(
        &mut self,
        findings: &mut Findings<'_>,
        key: &'static str,
    ) -> Option<At<Vec<At<String>>>> {
        let (at, value) = self.get(key)?;
        let DeValue::Array(array) = value.get_ref() else {
            self.wrong_type(findings, key, at, value.get_ref(), "a list of strings");
            return None;
        };
        Some(At { value: self.strings(findings, key, array), at })
    }

    fn strings(&self, findings: &mut Findings<'_>, key: &str, array: &DeArray<'_>) -> Vec<At<String>> {
        let mut texts = Vec::new();
        for item in array.iter() {
            let at = item.span().start;
            match item.get_ref() {
                DeValue::String(text) => texts.push(At { value: text.to_string(), at }),
                other => self.wrong_type(findings, key, at, other, "a list of strings"),
            }
        }
        texts
    }

    /// A table of strings, by key.
    pub(super) fn text_map(
        &mut self,
        findings: &mut Findings<'_>,
        key: &'static str,
    ) -> BTreeMap<String, String> {
        let mut texts = BTreeMap::new();
        let Some(group) = self.section(findings, key) else { return texts };
        for (name, value) in group.table {
            match value.get_ref() {
                DeValue::String(text) => {
                    texts.insert(name.get_ref().to_string(), text.to_string());
                }
                other => group.wrong_type(findings, name.get_ref(), name.span().start, other, "a string"),
            }
        }
        texts
    }

    /// A table.
    pub(super) fn section(&mut self, findings: &mut Findings<'_>, key: &'static str) -> Option<Section<'t>> {
        let (at, value) = self.get(key)?;
        self.open(findings, key, at, value)
    }

    /// The tables in a table, by name.
    pub(super) fn sections(
        &mut self,
        findings: &mut Findings<'_>,
        key: &'static str,
    ) -> Vec<At<(String, Section<'t>)>> {
        let Some(group) = self.section(findings, key) else { return Vec::new() };
        let mut sections = Vec::new();
        for (name, value) in group.table {
            let at = name.span().start;
            let name = name.get_ref();
            if let Some(section) = group.open(findings, name, at, value) {
                sections.push(At { value: (name.to_string(), section), at });
            }
        }
        // The map is sorted by name; the file's own order reads better in messages.
        sections.sort_by_key(|section| section.at);
        sections
    }

    /// A list of tables.
    pub(super) fn section_list(
        &mut self,
        findings: &mut Findings<'_>,
        key: &'static str,
    ) -> Vec<Section<'t>> {
        let Some((at, value)) = self.get(key) else { return Vec::new() };
        let DeValue::Array(array) = value.get_ref() else {
            self.wrong_type(findings, key, at, value.get_ref(), "a list of tables");
            return Vec::new();
        };
        array.iter().filter_map(|item| self.open(findings, key, item.span().start, item)).collect()
    }

    fn open(
        &self,
        findings: &mut Findings<'_>,
        key: &str,
        at: usize,
        value: &'t Spanned<DeValue<'t>>,
    ) -> Option<Section<'t>> {
        let DeValue::Table(table) = value.get_ref() else {
            self.wrong_type(findings, key, at, value.get_ref(), "a table");
            return None;
        };
        let path =
            if self.path.is_empty() { key.to_owned() } else { format!("{}.{}", self.path, quoted(key)) };
        Some(Section { path, table, at, asked: BTreeSet::new() })
    }

    /// Reports the keys that nobody asked for.
    pub(super) fn close(self, findings: &mut Findings<'_>) {
        let known = || self.asked.iter().copied().collect::<Vec<_>>();
        for key in self.table.keys().filter(|key| !self.asked.contains(key.get_ref().as_ref())) {
            let text = key.get_ref();
            let hint = format!("{}the keys here are {}", suggestion(text, known()), listed(&known()));
            findings.add(key.span().start, format!("unknown key `{text}` in {}", self.name()), hint);
        }
    }
}

/// The names in backticks, separated by commas.
pub(super) fn listed<T: AsRef<str>>(names: &[T]) -> String {
    names.iter().map(|name| format!("`{}`", name.as_ref())).collect::<Vec<_>>().join(", ")
}

/// A key as it is written in TOML.
pub(super) fn quoted(key: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if !key.is_empty() && key.chars().all(bare) { key.to_owned() } else { format!("{key:?}") }
}

fn article(noun: &str) -> String {
    let vowel = noun.starts_with(['a', 'e', 'i', 'o', 'u']);
    format!("{} {noun}", if vowel { "an" } else { "a" })
}
