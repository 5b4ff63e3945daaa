//! Jira Software, Jira Service Management, and the apps of the former.

use anyhow::Result;
use rusqlite::types::Value;

use super::Scene;
use crate::record::{Statement, statement};

const PROJECT: &str = "SELECT project_id FROM jsw_project WHERE tenant = ?1 ORDER BY key LIMIT 1 OFFSET ?2";
const ISSUE: &str =
    "SELECT i.issue_id FROM jsw_project AS p JOIN jsw_issue AS i ON i.project_id = p.project_id
     WHERE p.tenant = ?1 LIMIT 1 OFFSET ?2";
const COMMENT: &str =
    "SELECT c.comment_id FROM jsw_project AS p JOIN jsw_issue AS i ON i.project_id = p.project_id
     JOIN jsw_comment AS c ON c.issue_id = i.issue_id WHERE p.tenant = ?1 LIMIT 1 OFFSET ?2";
const QUEUE: &str = "SELECT queue_id FROM jsm_queue WHERE tenant = ?1 ORDER BY name LIMIT 1 OFFSET ?2";
const REQUEST: &str =
    "SELECT r.request_id FROM jsm_queue AS q JOIN jsm_request AS r ON r.queue_id = q.queue_id
     WHERE q.tenant = ?1 LIMIT 1 OFFSET ?2";
const RULE: &str = "SELECT rule_id FROM automation_rule WHERE tenant = ?1 ORDER BY rule_id LIMIT 1 OFFSET ?2";
const ENTRY: &str =
    "SELECT entry_id FROM timesheet_entry WHERE tenant = ?1 ORDER BY worker, day LIMIT 1 OFFSET ?2";

pub(super) fn software(scene: &mut Scene<'_>) -> Result<Vec<Statement>> {
    let (Some(project), Some(issue)) = (scene.pick::<i64>(PROJECT)?, scene.pick::<i64>(ISSUE)?) else {
        return Ok(vec![]);
    };
    if scene.below(3) == 0 { comments(scene, issue) } else { issues(scene, project, issue) }
}

fn issues(scene: &mut Scene<'_>, project: i64, issue: i64) -> Result<Vec<Statement>> {
    let id = scene.id();
    Ok(match scene.below(9) {
        0..3 => vec![
            statement!("INSERT INTO jsw_issue VALUES (?1, ?2, ?3, ?4, ?5, 'to do', ?6, 0)";
                id, project, id, id % 5 + 1, scene.text(6), scene.real() * 8.0),
            statement!("INSERT INTO jsw_comment VALUES (?1, ?2, 'ada', ?3, ?1)"; scene.id(), id, scene.text(9)),
            statement!("INSERT INTO jsw_attachment VALUES (?1, ?2, 'new.bin', 12, ?3)";
                format!("att-new-{id}"), id, vec![0_u8, 1, 255]),
        ],
        3 | 4 => {
            let state = ["in progress", "done"][scene.below(2) as usize];
            vec![statement!("UPDATE jsw_issue SET status = ?2 WHERE issue_id = ?1"; issue, state.to_owned())]
        }
        5 => vec![statement!("DELETE FROM jsw_issue WHERE issue_id = ?1"; issue)],
        6 => vec![
            field_value(issue, "story points", (id % 21).into()),
            field_value(issue, "note", (id % 21).to_string().into()),
        ],
        7 => vec![
            statement!("INSERT INTO jsw_project (project_id, tenant, key, name) VALUES (?1, ?2, ?3, 'New project')";
                id, scene.site.clone(), format!("N{id}")),
            statement!("UPDATE jsw_issue SET project_id = ?2, number = ?2 WHERE issue_id = ?1"; issue, id),
        ],
        _ => vec![
            statement!("UPDATE jsw_attachment SET sha256 = NULL, bytes = bytes + 1 WHERE issue_id = ?1"; issue),
        ],
    })
}

fn field_value(issue: i64, field: &str, value: Value) -> Statement {
    statement!("REPLACE INTO jsw_field_value VALUES (?1, ?2, ?3)", postgres: [
        "INSERT INTO jsw_field_value VALUES (?1, ?2, ?3) ON CONFLICT (issue_id, field) DO UPDATE SET value = excluded.value"];
        issue, field.to_owned(), value)
}

fn comments(scene: &mut Scene<'_>, issue: i64) -> Result<Vec<Statement>> {
    let Some(comment) = scene.pick::<i64>(COMMENT)? else { return Ok(vec![]) };
    let id = scene.id();
    Ok(match scene.below(6) {
        0 | 1 => {
            let (id, text) = (id, scene.text(30));
            vec![statement!("INSERT INTO jsw_comment VALUES (?1, ?2, 'boris', ?3, ?1)"; id, issue, text)]
        }
        2 => vec![
            statement!("UPDATE jsw_comment SET body = body || ?2 WHERE comment_id = ?1"; comment, scene.text(2)),
        ],
        3 => vec![statement!("UPDATE jsw_comment SET issue_id = ?2 WHERE comment_id = ?1"; comment, issue)],
        // A new primary key; reactions follow by cascade.
        4 => vec![
            statement!("REPLACE INTO jsw_comment_reaction VALUES (?1, '🎉', 1)", postgres: [
                "INSERT INTO jsw_comment_reaction VALUES (?1, '🎉', 1)
                 ON CONFLICT (comment_id, emoji) DO UPDATE SET count = excluded.count"]; comment),
            statement!("UPDATE jsw_comment SET comment_id = ?2 WHERE comment_id = ?1"; comment, id),
        ],
        _ => vec![statement!("DELETE FROM jsw_comment WHERE comment_id = ?1"; comment)],
    })
}

pub(super) fn service_management(scene: &mut Scene<'_>) -> Result<Vec<Statement>> {
    let (Some(queue), id) = (scene.pick::<i64>(QUEUE)?, scene.id()) else { return Ok(vec![]) };
    let Some(request) = scene.pick::<i64>(REQUEST)? else {
        return Ok(vec![
            statement!("INSERT INTO jsm_request VALUES (?1, ?2, 'eve', 'first', 'open', NULL)"; id, queue),
        ]);
    };
    Ok(match scene.below(5) {
        0 | 1 => vec![
            statement!("INSERT INTO jsm_request VALUES (?1, ?2, 'eve', ?3, 'open', 2)"; id, queue, scene.text(4)),
            statement!("INSERT INTO jsm_request_event VALUES (?1, ?2, 'opened', 0.5)"; scene.id(), id),
        ],
        2 => vec![
            statement!("UPDATE jsm_request SET state = 'waiting', priority = NULL WHERE request_id = ?1"; request),
            statement!("INSERT INTO jsm_request_event VALUES (?1, ?2, 'asked back', ?3)"; id, request, scene.real()),
        ],
        3 => vec![statement!("UPDATE jsm_request SET queue_id = ?2 WHERE request_id = ?1"; request, queue)],
        _ => vec![statement!("DELETE FROM jsm_request WHERE request_id = ?1"; request)],
    })
}

pub(super) fn automation(scene: &mut Scene<'_>) -> Result<Vec<Statement>> {
    let Some(rule) = scene.pick::<i64>(RULE)? else { return Ok(vec![]) };
    let id = scene.id();
    Ok(vec![
        statement!("INSERT INTO automation_run VALUES (?1, ?2, 'success', ?3)"; rule, id, scene.real() * 9.0),
        statement!("DELETE FROM automation_run WHERE rule_id = ?1 AND number < ?2"; rule, id % 4),
        statement!("UPDATE automation_rule SET enabled = NOT enabled WHERE rule_id = ?1"; rule),
    ])
}

pub(super) fn timesheets(scene: &mut Scene<'_>) -> Result<Vec<Statement>> {
    let (site, id) = (scene.site.clone(), scene.id());
    let Some(entry) = scene.pick::<i64>(ENTRY)? else { return Ok(vec![]) };
    Ok(match scene.below(3) {
        0 => vec![
            statement!("INSERT OR REPLACE INTO timesheet_entry VALUES (?1, ?2, 'worker-3', ?3, ?4, 'booked again')",
                postgres: ["DELETE FROM timesheet_entry WHERE tenant = ?2 AND worker = 'worker-3' AND day = ?3",
                "INSERT INTO timesheet_entry VALUES (?1, ?2, 'worker-3', ?3, ?4, 'booked again')"];
                id, site, id % 5, scene.real() * 8.0),
            statement!("INSERT INTO timesheet_approval VALUES (?1, 'lead', NULL)"; id),
        ],
        1 => vec![statement!(
            "INSERT INTO timesheet_approval VALUES (?1, 'lead', true) ON CONFLICT (entry_id) DO UPDATE SET approved = true"; entry)],
        _ => vec![statement!("UPDATE timesheet_entry SET hours = hours * 1.1 WHERE entry_id = ?1"; entry)],
    })
}
