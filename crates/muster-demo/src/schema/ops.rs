//! Opsgenie and Statuspage.

use super::Owner::{Parent, Tenant};
use super::Table;
use crate::kind::Kind;

pub(super) const TABLES: &[Table] = &[
    Table {
        name: "ops_team",
        kind: Kind::Opsgenie,
        owner: Tenant("site"),
        key: &["team_id"],
        body: "(team_id INTEGER PRIMARY KEY, site TEXT NOT NULL, name TEXT NOT NULL, rota TEXT, UNIQUE (site, name))",
        then: &[],
    },
    Table {
        name: "ops_alert",
        kind: Kind::Opsgenie,
        owner: Parent { column: "team_id", table: "ops_team", key: "team_id" },
        key: &["alert_id"],
        body: "(alert_id INTEGER PRIMARY KEY, team_id INTEGER NOT NULL REFERENCES ops_team (team_id)
            ON DELETE CASCADE, alias TEXT, message TEXT NOT NULL, level REAL, acknowledged INTEGER NOT NULL DEFAULT 0,
            UNIQUE (team_id, alias))",
        then: &[],
    },
    Table {
        name: "ops_alert_note",
        kind: Kind::Opsgenie,
        owner: Parent { column: "alert_id", table: "ops_alert", key: "alert_id" },
        key: &["note_id"],
        body: "(note_id INTEGER PRIMARY KEY, alert_id INTEGER NOT NULL REFERENCES ops_alert (alert_id)
            ON DELETE CASCADE, author TEXT NOT NULL, note TEXT)",
        then: &["CREATE INDEX ops_alert_note_by_alert ON ops_alert_note (alert_id)"],
    },
    Table {
        name: "status_component",
        kind: Kind::Statuspage,
        owner: Tenant("site"),
        key: &["component_id"],
        body: "(component_id INTEGER PRIMARY KEY, site TEXT NOT NULL, name TEXT NOT NULL, state TEXT NOT NULL,
            uptime REAL, UNIQUE (site, name))",
        then: &[],
    },
    Table {
        name: "status_incident",
        kind: Kind::Statuspage,
        owner: Tenant("site"),
        key: &["incident_id"],
        body: "(incident_id INTEGER PRIMARY KEY, site TEXT NOT NULL, component_id INTEGER
            REFERENCES status_component (component_id) ON DELETE SET NULL, title TEXT NOT NULL)",
        then: &[
            "CREATE INDEX status_incident_by_site ON status_incident (site)",
            "CREATE INDEX status_incident_by_component ON status_incident (component_id)",
        ],
    },
    Table {
        name: "status_update",
        kind: Kind::Statuspage,
        owner: Parent { column: "incident_id", table: "status_incident", key: "incident_id" },
        key: &["incident_id", "number"],
        body: "(incident_id INTEGER NOT NULL REFERENCES status_incident (incident_id) ON DELETE CASCADE,
            number INTEGER NOT NULL, text TEXT NOT NULL, PRIMARY KEY (incident_id, number)) WITHOUT ROWID",
        then: &[],
    },
];
