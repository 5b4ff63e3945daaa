//! Jira Software, Jira Service Management, and the apps of the former.

use anyhow::Result;
use rand::RngExt;
use rusqlite::params;

use super::Loader;
use crate::site::Site;
use crate::words;

const STATES: &[&str] = &["to do", "in progress", "in review", "done"];

/// Rows that an issue has on average with its comments, values and attachments.
const ROWS_PER_ISSUE: usize = 4;
const ISSUES_PER_PROJECT: usize = 40;

pub(super) fn issue_types(loader: &mut Loader<'_>) -> Result<()> {
    for (index, name) in ["story", "task", "bug", "epic", "spike"].iter().enumerate() {
        let icon = words::blob(&mut loader.rng, 32);
        loader.insert(
            "INSERT INTO jsw_issue_type VALUES (?1, ?2, ?3)",
            params![index as i64 + 1, name, icon],
        )?;
    }
    Ok(())
}

pub(super) fn software(loader: &mut Loader<'_>, site: &Site, rows: usize) -> Result<()> {
    let mut issues = rows / ROWS_PER_ISSUE + 1;
    let mut project = 0;
    while issues > 0 {
        let here = issues.min(ISSUES_PER_PROJECT);
        let (id, lead) = (loader.id(), words::username(&mut loader.rng, project));
        loader.insert(
            "INSERT INTO jsw_project VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![id, site.id, format!("P{project}"), format!("Project {project}"), lead, here as i64],
        )?;
        for number in 1..=here {
            issue(loader, id, number as i64)?;
        }
        issues -= here;
        project += 1;
    }
    Ok(())
}

fn issue(loader: &mut Loader<'_>, project: i64, number: i64) -> Result<()> {
    let id = loader.id();
    let (summary, state) = (words::text(&mut loader.rng, 5), words::one(&mut loader.rng, STATES));
    let estimate = loader.rng.random_bool(0.6).then(|| f64::from(loader.rng.random_range(1..20)) / 2.0);
    loader.insert(
        "INSERT INTO jsw_issue VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 0)",
        params![id, project, number, id % 5 + 1, summary, state, estimate],
    )?;
    for _ in 0..loader.rng.random_range(0..4) {
        comment(loader, id)?;
    }
    field_values(loader, id)?;
    if loader.rng.random_bool(0.3) {
        let hash = loader.rng.random::<[u8; 32]>();
        loader.insert(
            "INSERT INTO jsw_attachment VALUES (?1, ?2, ?3, ?4, ?5)",
            params![
                format!("att-{id:x}-{:04x}", hash[0]),
                id,
                format!("log-{number}.txt"),
                id * 7 % 90_000,
                hash
            ],
        )?;
    }
    Ok(())
}

fn comment(loader: &mut Loader<'_>, issue: i64) -> Result<()> {
    let (id, words_count) = (loader.id(), loader.rng.random_range(3..20));
    let (author, body) = (words::username(&mut loader.rng, 0), words::text(&mut loader.rng, words_count));
    loader.insert(
        "INSERT INTO jsw_comment VALUES (?1, ?2, ?3, ?4, ?5)",
        params![id, issue, author, body, 1_648_000_000 + id],
    )?;
    if loader.rng.random_bool(0.2) {
        loader.insert("INSERT INTO jsw_comment_reaction VALUES (?1, '👍', ?2)", params![id, id % 7 + 1])?;
    }
    Ok(())
}

fn field_values(loader: &mut Loader<'_>, issue: i64) -> Result<()> {
    let sql = "INSERT INTO jsw_field_value VALUES (?1, ?2, ?3)";
    match issue % 5 {
        0 => loader.insert(sql, params![issue, "story points", issue % 13]),
        1 => loader.insert(sql, params![issue, "story points", "13"]),
        2 => loader.insert(sql, params![issue, "weight", issue as f64 / 3.0]),
        3 => loader.insert(sql, params![issue, "signature", vec![0_u8, 9, 10, 92, 255]]),
        _ => Ok(()),
    }
}

pub(super) fn service_management(loader: &mut Loader<'_>, site: &Site, rows: usize) -> Result<()> {
    for number in 0..2 + rows / 60 {
        let queue = loader.id();
        loader.insert(
            "INSERT INTO jsm_queue VALUES (?1, ?2, ?3, ?4)",
            params![queue, site.id, format!("queue {number}"), number as f64 * 1.5],
        )?;
        for _ in 0..rows.min(60) / 3 {
            let request = loader.id();
            let (who, what) = (words::username(&mut loader.rng, 1), words::text(&mut loader.rng, 4));
            loader.insert(
                "INSERT INTO jsm_request VALUES (?1, ?2, ?3, ?4, 'open', ?5)",
                params![request, queue, who, what, (request % 3 != 0).then_some(request % 5)],
            )?;
            for _ in 0..loader.rng.random_range(0..4) {
                let (event, minutes) = (loader.id(), loader.rng.random::<f64>() * 90.0);
                loader.insert(
                    "INSERT INTO jsm_request_event VALUES (?1, ?2, 'answered', ?3)",
                    params![event, request, minutes],
                )?;
            }
        }
    }
    Ok(())
}

pub(super) fn automation(loader: &mut Loader<'_>, site: &Site, rows: usize) -> Result<()> {
    for number in 0..1 + rows / 12 {
        let rule = loader.id();
        let definition = format!("{{\"when\":\"issue\",\"then\":[\"assign\",{number}]}}");
        loader.insert(
            "INSERT INTO automation_rule VALUES (?1, ?2, ?3, ?4, ?5)",
            params![rule, site.id, format!("rule {number}"), definition, number % 4 != 3],
        )?;
        for run in 1..=loader.rng.random_range(4..18) {
            let took = loader.rng.random::<f64>() * 40.0;
            loader.insert(
                "INSERT INTO automation_run VALUES (?1, ?2, ?3, ?4)",
                params![rule, run, (run % 5 != 0).then_some("success"), took],
            )?;
        }
    }
    Ok(())
}

pub(super) fn timesheets(loader: &mut Loader<'_>, site: &Site, rows: usize) -> Result<()> {
    for number in 0..2 + rows * 2 / 3 {
        let (entry, hours) = (loader.id(), f64::from(loader.rng.random_range(1..32)) / 4.0);
        let (worker, note) = (format!("worker-{}", number % 7), (number % 3 == 0).then_some("travel"));
        loader.insert(
            "INSERT INTO timesheet_entry VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![entry, site.id, worker, number as i64 / 7, hours, note],
        )?;
        if number % 2 == 0 {
            loader.insert(
                "INSERT INTO timesheet_approval VALUES (?1, 'lead', ?2)",
                params![entry, (number % 4 == 0).then_some(1)],
            )?;
        }
    }
    Ok(())
}
