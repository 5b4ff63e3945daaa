//! `[[kinds.X.checks]]`: the operator's own checks.

use super::KindMode;
use super::raw::{At, Findings, Section, listed};
use crate::kind_check::{Expected, KindCheck, KindCheckWhat};

/// A statement or program that takes longer than a minute would hold each site of an incident up by as much.
const TIMEOUT_SECONDS: u64 = 60;

/// How a statement may begin: one that reads.
const BEGINNINGS: [&str; 4] = ["SELECT", "WITH", "VALUES", "TABLE"];

/// Reads the checks of a kind.
pub(super) fn checks(
    findings: &mut Findings<'_>,
    kind: &mut Section<'_>,
    mode: Option<&KindMode>,
) -> Vec<KindCheck> {
    let mut found: Vec<KindCheck> = Vec::new();
    for mut section in kind.section_list(findings, "checks") {
        let hint = "add `name = \"...\"`: steps, reports and messages call it so";
        let name = section.required_text(findings, "name", hint);
        let timeout_seconds = section.positive_or(findings, "timeout_seconds", TIMEOUT_SECONDS);
        let what = what(findings, &mut section, mode);
        section.close(findings);
        let (Some(name), Some(what)) = (name, what) else { continue };
        check_name(findings, &name, &found);
        found.push(KindCheck { name: name.value, timeout_seconds, what });
    }
    found
}

/// Names become parts of step keys.
fn check_name(findings: &mut Findings<'_>, name: &At<String>, others: &[KindCheck]) {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !name.value.chars().all(plain) {
        let what = format!("`{}` is not the name of a check", name.value);
        findings.add(name.at, what, "use letters, digits, `-`, `_` and `.`");
    }
    if others.iter().any(|other| other.name == name.value) {
        findings.add(
            name.at,
            format!("there are two checks `{}`", name.value),
            "give each a name of its own",
        );
    }
}

fn what(
    findings: &mut Findings<'_>,
    section: &mut Section<'_>,
    mode: Option<&KindMode>,
) -> Option<KindCheckWhat> {
    let sql = section.text(findings, "sql");
    let expect = section.text(findings, "expect");
    let no_rows = section.flag(findings, "expect_no_rows");
    let program = section.texts(findings, "program");
    match (sql, program) {
        (Some(sql), None) => {
            if mode.is_some_and(|mode| *mode != KindMode::Restored) {
                let what = format!("{} has `sql`, and its kind has no rows", section.name());
                findings.add(sql.at, what, "write `program = [...]` for a kind that a command brings back");
            }
            check_statement(findings, &sql);
            let expect = expected(findings, section, expect, no_rows)?;
            Some(KindCheckWhat::Sql { sql: sql.value, expect })
        }
        (None, Some(program)) => {
            if expect.is_some() || no_rows.is_some() {
                let what = format!("{} expects something of a program but its exit code", section.name());
                findings.add(section.at(), what, "remove `expect` and `expect_no_rows`: it must end with 0");
            }
            if program.value.first().is_none_or(|word| word.value.is_empty()) {
                let hint = "write `program = [\"PROGRAM\", \"ARGUMENT\", ...]`";
                findings.add(program.at, format!("{} names no program", section.name()), hint);
            }
            let words = program.value.into_iter().map(|word| word.value);
            Some(KindCheckWhat::Program { program: words.collect() })
        }
        _ => {
            let hint = "write either `sql = \"SELECT ...\"` or `program = [\"PROGRAM\", ...]`";
            findings.add(section.at(), format!("{} asks nothing, or two things", section.name()), hint);
            None
        }
    }
}

fn check_statement(findings: &mut Findings<'_>, sql: &At<String>) {
    let word = sql.value.split_whitespace().next().unwrap_or_default();
    if !BEGINNINGS.iter().any(|beginning| word.eq_ignore_ascii_case(beginning)) {
        let what = format!("the statement of a check begins with `{word}`");
        findings.add(sql.at, what, format!("a check reads: begin with one of {}", listed(&BEGINNINGS)));
    }
}

fn expected(
    findings: &mut Findings<'_>,
    section: &Section<'_>,
    expect: Option<At<String>>,
    no_rows: Option<At<bool>>,
) -> Option<Expected> {
    match (expect, no_rows) {
        (Some(value), None) => Some(Expected::Value(value.value)),
        (None, Some(At { value: true, .. })) => Some(Expected::NoRows),
        _ => {
            let hint = "write `expect = \"TEXT\"`, the one value that it gives, or `expect_no_rows = true`";
            findings.add(
                section.at(),
                format!("{} does not say what its statement must give", section.name()),
                hint,
            );
            None
        }
    }
}
