//! The operator's checks: a statement with its result, or a program with its exit code.

use std::time::Duration;

use muster_types::journal::Outcome;
use muster_types::kind_check::{Expected, KindCheck, KindCheckWhat};
use muster_types::plan::Restoration;
use muster_types::{Boundary, Kind, PlanId, RunId, ShardName, SiteId, StoreId, Timestamp, format};
use serde::Serialize;

use super::context::{Context, StepError, StepResult};
use super::process::{Ended, Program};
use crate::driver::{ReadQuery, ShardAddress};

/// Rows of a statement that a message shows.
const ROWS_SHOWN: usize = 5;

/// Characters of a field that a message shows.
const FIELD_CHARS_SHOWN: usize = 80;

/// What a program reads.
#[derive(Serialize)]
struct Input<'a> {
    format: u32,
    run: &'a RunId,
    plan: &'a PlanId,
    site: &'a SiteId,
    kind: &'a Kind,
    check: &'a str,
    target: Timestamp,
    reached: &'a Boundary,
    /// The shard is a drill's own.
    sandbox: bool,
    /// Absent for kinds that a command brings back.
    #[serde(skip_serializing_if = "Option::is_none")]
    shard: Option<&'a ShardName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<ShardAddress>,
}

/// Runs the check of that name on a store.
pub(super) async fn check(context: &Context, store: &StoreId, name: &str) -> StepResult {
    let checks = context.plan.kind_checks.get(&store.kind);
    let check = checks.and_then(|checks| checks.iter().find(|check| check.name == name));
    let check = check.ok_or_else(|| {
        StepError::permanent(format!("the plan has a step but no entry for check `{name}`; plan again"))
    })?;
    let output = match &check.what {
        KindCheckWhat::Sql { expect, .. } => sql(context, store, check, expect).await?,
        KindCheckWhat::Program { program } => run(context, store, check, program).await?,
    };
    Ok(Outcome::KindChecked { output })
}

async fn sql(
    context: &Context,
    store: &StoreId,
    check: &KindCheck,
    expect: &Expected,
) -> Result<String, StepError> {
    let driver = context.driver(&context.store(store)?.shard)?;
    let sql = check.sql_for(&store.site).unwrap_or_default();
    let limit = Duration::from_secs(check.timeout_seconds);
    let query = ReadQuery { sql, site: store.site.clone(), limit, rows_max: ROWS_SHOWN };
    // What keeps the shard from answering may pass, and is tried again; what the statement itself does stays.
    let rows = driver.query(&query).await.map_err(|error| StepError {
        class: error.class,
        message: failed(context, store, check, &format!("its statement did not come to its end: {error}")),
    })?;
    let shown = shown(&rows);
    let why = match (expect, rows.as_slice()) {
        (Expected::NoRows, []) => return Ok(String::new()),
        (Expected::NoRows, _) => format!("its statement should give no rows, and gives {shown}"),
        (Expected::Value(wanted), [row]) if row.len() == 1 => match row.first() {
            Some(Some(value)) if value == wanted => return Ok(shown),
            _ => format!("its statement should give `{wanted}`, and gives {shown}"),
        },
        (Expected::Value(wanted), _) => {
            format!("its statement should give one row of one column, `{wanted}`, and gives {shown}")
        }
    };
    Err(StepError::permanent(failed(context, store, check, &why)))
}

fn shown(rows: &[Vec<Option<String>>]) -> String {
    let field = |field: &Option<String>| match field {
        Some(text) => text.chars().take(FIELD_CHARS_SHOWN).collect(),
        None => "NULL".to_owned(),
    };
    let row = |row: &Vec<Option<String>>| row.iter().map(field).collect::<Vec<_>>().join(" | ");
    let all = rows.iter().map(|fields| format!("`{}`", row(fields))).collect::<Vec<_>>().join(", ");
    match rows.len() {
        0 => "nothing".to_owned(),
        ROWS_SHOWN.. => format!("{all} and perhaps more"),
        _ => all,
    }
}

async fn run(
    context: &Context,
    store: &StoreId,
    check: &KindCheck,
    program: &[String],
) -> Result<String, StepError> {
    let planned = context.store(store)?;
    let has_rows = planned.restoration == Restoration::Restored;
    let input = Input {
        format: format::FORMAT,
        run: &context.run,
        plan: &context.plan.id,
        site: &store.site,
        kind: &store.kind,
        check: &check.name,
        target: context.site(&store.site)?.target,
        reached: &planned.reached,
        sandbox: context.plan.request.placement.sandbox,
        shard: has_rows.then_some(&planned.shard),
        address: if has_rows { Some(context.driver(&planned.shard)?.address()?) } else { None },
    };
    let input = serde_json::to_vec(&input)
        .map_err(|error| StepError::permanent(format!("the input of a check cannot be written: {error}")))?;
    let words: Vec<String> = program.iter().map(|word| word.replace("{site}", store.site.as_str())).collect();
    let limit = Duration::from_secs(check.timeout_seconds);
    let ended = Program { words: &words, input, clean_environment: true, limit }.run().await;
    let said = |output: String| if output.is_empty() { "it said nothing".to_owned() } else { output };
    let why = match ended {
        Ok(Ended::Exited(status, output)) if status.success() => return Ok(output),
        Ok(Ended::Exited(status, output)) => {
            format!("`{}` ended with {status}: {}", words.join(" "), said(output))
        }
        Ok(Ended::TimedOut(output)) => {
            format!("`{}` was killed after {} s: {}", words.join(" "), check.timeout_seconds, said(output))
        }
        Err(error) => format!("`{}` cannot be run: {error}", words.join(" ")),
    };
    Err(StepError::permanent(failed(context, store, check, &why)))
}

fn failed(context: &Context, store: &StoreId, check: &KindCheck, why: &str) -> String {
    format!(
        "check `{}` of {store} failed: {why}; its rows are published and stay, and {} is not handed back: mend what the \
         check found, then `muster resume {}` runs it again",
        check.name, store.site, context.run,
    )
}
