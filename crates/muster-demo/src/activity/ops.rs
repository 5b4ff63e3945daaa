//! Opsgenie and Statuspage.

use anyhow::Result;

use super::Scene;
use crate::record::{Statement, statement};

const TEAM: &str = "SELECT team_id FROM ops_team WHERE site = ?1 ORDER BY name LIMIT 1 OFFSET ?2";
const ALERT: &str = "SELECT a.alert_id FROM ops_team AS t JOIN ops_alert AS a ON a.team_id = t.team_id
     WHERE t.site = ?1 LIMIT 1 OFFSET ?2";
const INCIDENT: &str =
    "SELECT incident_id FROM status_incident WHERE site = ?1 ORDER BY incident_id LIMIT 1 OFFSET ?2";
const COMPONENT: &str =
    "SELECT component_id FROM status_component WHERE site = ?1 ORDER BY name LIMIT 1 OFFSET ?2";

pub(super) fn opsgenie(scene: &mut Scene<'_>) -> Result<Vec<Statement>> {
    let (Some(team), id) = (scene.pick::<i64>(TEAM)?, scene.id()) else { return Ok(vec![]) };
    let Some(alert) = scene.pick::<i64>(ALERT)? else {
        return Ok(vec![
            statement!("INSERT INTO ops_alert VALUES (?1, ?2, NULL, 'first', 1.5, false)"; id, team),
        ]);
    };
    Ok(match scene.below(5) {
        // An alert with a known alias takes the place of the old one.
        0 | 1 => {
            let alias = format!("alias-{}", scene.below(9));
            vec![statement!("REPLACE INTO ops_alert VALUES (?1, ?2, ?3, ?4, ?5, 0)", postgres: [
                "DELETE FROM ops_alert WHERE team_id = ?2 AND alias = ?3",
                "INSERT INTO ops_alert VALUES (?1, ?2, ?3, ?4, ?5, false)"];
                id, team, alias, scene.text(5), scene.real())]
        }
        2 => vec![
            statement!("UPDATE ops_alert SET acknowledged = true, level = NULL WHERE alert_id = ?1"; alert),
            statement!("INSERT INTO ops_alert_note VALUES (?1, ?2, 'ada', ?3)"; id, alert, scene.text(8)),
        ],
        3 => vec![
            statement!("UPDATE OR REPLACE ops_alert SET alias = 'alias-1' WHERE alert_id = ?1", postgres: [
            "DELETE FROM ops_alert WHERE alias = 'alias-1' AND alert_id <> ?1
             AND team_id = (SELECT team_id FROM ops_alert WHERE alert_id = ?1)",
            "UPDATE ops_alert SET alias = 'alias-1' WHERE alert_id = ?1"]; alert),
        ],
        _ => vec![statement!("DELETE FROM ops_alert WHERE alert_id = ?1"; alert)],
    })
}

pub(super) fn statuspage(scene: &mut Scene<'_>) -> Result<Vec<Statement>> {
    let id = scene.id();
    let (Some(incident), Some(component)) = (scene.pick::<i64>(INCIDENT)?, scene.pick::<i64>(COMPONENT)?)
    else {
        return Ok(vec![]);
    };
    Ok(match scene.below(4) {
        0 => vec![
            statement!("INSERT INTO status_incident VALUES (?1, ?2, ?3, ?4)";
                id, scene.site.clone(), component, scene.text(4)),
            statement!("INSERT INTO status_update VALUES (?1, 1, 'we are looking into it')"; id),
        ],
        1 => vec![statement!(
            "INSERT INTO status_update VALUES (?1, ?2, 'all well') ON CONFLICT (incident_id, number)
             DO UPDATE SET text = status_update.text || '!'";
            incident, id % 6)],
        2 => vec![
            statement!("UPDATE status_component SET state = 'degraded', uptime = uptime - 0.01 WHERE component_id = ?1"; component),
        ],
        _ => vec![statement!("DELETE FROM status_incident WHERE incident_id = ?1"; incident)],
    })
}

pub(super) fn first_statuspage(scene: &mut Scene<'_>) -> Vec<Statement> {
    let (component, incident, site) = (scene.id(), scene.id(), scene.site.clone());
    vec![
        statement!("INSERT INTO status_component VALUES (?1, ?2, 'web', 'operational', 100.0)"; component, site.clone()),
        statement!("INSERT INTO status_incident VALUES (?1, ?2, ?3, 'launch')"; incident, site, component),
        statement!("INSERT INTO status_update VALUES (?1, 1, 'hello')"; incident),
    ]
}
