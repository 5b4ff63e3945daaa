//! Jira Software, Jira Service Management and the apps of the former.

use super::Owner::{Parent, Reference, Tenant};
use super::Table;
use crate::kind::Kind;

pub(super) const TABLES: &[Table] = &[
    Table {
        name: "jsw_issue_type",
        kind: Kind::JiraSoftware,
        owner: Reference,
        key: &["type_id"],
        body: "(type_id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, icon BLOB)",
        then: &[],
    },
    Table {
        name: "jsw_project",
        kind: Kind::JiraSoftware,
        owner: Tenant("tenant"),
        key: &["project_id"],
        body: "(project_id INTEGER PRIMARY KEY, tenant TEXT NOT NULL, key TEXT NOT NULL, name TEXT NOT NULL,
            lead TEXT, issues INTEGER NOT NULL DEFAULT 0, UNIQUE (tenant, key))",
        then: &[],
    },
    Table {
        name: "jsw_issue",
        kind: Kind::JiraSoftware,
        owner: Parent { column: "project_id", table: "jsw_project", key: "project_id" },
        key: &["issue_id"],
        body: "(issue_id INTEGER PRIMARY KEY, project_id INTEGER NOT NULL REFERENCES jsw_project (project_id)
            ON DELETE CASCADE, number INTEGER NOT NULL, type_id INTEGER NOT NULL REFERENCES jsw_issue_type (type_id),
            summary TEXT NOT NULL, status TEXT NOT NULL, estimate REAL, revision INTEGER NOT NULL DEFAULT 0)",
        then: &[
            "CREATE UNIQUE INDEX jsw_issue_by_number ON jsw_issue (project_id, number)",
            "CREATE TRIGGER jsw_issue_created AFTER INSERT ON jsw_issue BEGIN
               UPDATE jsw_project SET issues = issues + 1 WHERE project_id = new.project_id; END",
            "CREATE TRIGGER jsw_issue_removed AFTER DELETE ON jsw_issue BEGIN
               UPDATE jsw_project SET issues = issues - 1 WHERE project_id = old.project_id; END",
            "CREATE TRIGGER jsw_issue_changed AFTER UPDATE OF status, summary ON jsw_issue BEGIN
               UPDATE jsw_issue SET revision = revision + 1 WHERE issue_id = new.issue_id; END",
        ],
    },
    Table {
        name: "jsw_comment",
        kind: Kind::JiraSoftware,
        owner: Parent { column: "issue_id", table: "jsw_issue", key: "issue_id" },
        key: &["comment_id"],
        body: "(comment_id INTEGER PRIMARY KEY, issue_id INTEGER NOT NULL REFERENCES jsw_issue (issue_id)
            ON DELETE CASCADE, author TEXT NOT NULL, body TEXT NOT NULL, written_at INTEGER NOT NULL)",
        then: &["CREATE INDEX jsw_comment_by_issue ON jsw_comment (issue_id)"],
    },
    Table {
        name: "jsw_comment_reaction",
        kind: Kind::JiraSoftware,
        owner: Parent { column: "comment_id", table: "jsw_comment", key: "comment_id" },
        key: &["comment_id", "emoji"],
        body: "(comment_id INTEGER NOT NULL REFERENCES jsw_comment (comment_id) ON DELETE CASCADE ON UPDATE CASCADE,
            emoji TEXT NOT NULL, count INTEGER NOT NULL, PRIMARY KEY (comment_id, emoji)) WITHOUT ROWID",
        then: &[],
    },
    Table {
        name: "jsw_field_value",
        kind: Kind::JiraSoftware,
        owner: Parent { column: "issue_id", table: "jsw_issue", key: "issue_id" },
        key: &["issue_id", "field"],
        body: "(issue_id INTEGER NOT NULL REFERENCES jsw_issue (issue_id) ON DELETE CASCADE, field TEXT NOT NULL,
            value, PRIMARY KEY (issue_id, field)) WITHOUT ROWID",
        then: &[],
    },
    Table {
        name: "jsw_attachment",
        kind: Kind::JiraSoftware,
        owner: Parent { column: "issue_id", table: "jsw_issue", key: "issue_id" },
        key: &["attachment_id"],
        body: "(attachment_id TEXT NOT NULL PRIMARY KEY, issue_id INTEGER NOT NULL REFERENCES jsw_issue (issue_id)
            ON DELETE CASCADE, file_name TEXT NOT NULL, bytes INTEGER NOT NULL, sha256 BLOB)",
        then: &["CREATE INDEX jsw_attachment_by_issue ON jsw_attachment (issue_id)"],
    },
    Table {
        name: "jsm_queue",
        kind: Kind::ServiceManagement,
        owner: Tenant("tenant"),
        key: &["queue_id"],
        body: "(queue_id INTEGER PRIMARY KEY, tenant TEXT NOT NULL, name TEXT NOT NULL, target_hours REAL,
            UNIQUE (tenant, name))",
        then: &[],
    },
    Table {
        name: "jsm_request",
        kind: Kind::ServiceManagement,
        owner: Parent { column: "queue_id", table: "jsm_queue", key: "queue_id" },
        key: &["request_id"],
        body: "(request_id INTEGER PRIMARY KEY, queue_id INTEGER NOT NULL REFERENCES jsm_queue (queue_id)
            ON DELETE CASCADE, reporter TEXT NOT NULL, summary TEXT NOT NULL, state TEXT NOT NULL, priority INTEGER)",
        then: &["CREATE INDEX jsm_request_by_queue ON jsm_request (queue_id)"],
    },
    Table {
        name: "jsm_request_event",
        kind: Kind::ServiceManagement,
        owner: Parent { column: "request_id", table: "jsm_request", key: "request_id" },
        key: &["event_id"],
        body: "(event_id INTEGER PRIMARY KEY, request_id INTEGER NOT NULL REFERENCES jsm_request (request_id)
            ON DELETE CASCADE, what TEXT NOT NULL, minutes REAL)",
        then: &["CREATE INDEX jsm_request_event_by_request ON jsm_request_event (request_id)"],
    },
    Table {
        name: "automation_rule",
        kind: Kind::Automation,
        owner: Tenant("tenant"),
        key: &["rule_id"],
        body: "(rule_id INTEGER PRIMARY KEY, tenant TEXT NOT NULL, name TEXT NOT NULL, definition TEXT NOT NULL,
            enabled INTEGER NOT NULL)",
        then: &["CREATE INDEX automation_rule_by_tenant ON automation_rule (tenant)"],
    },
    Table {
        name: "automation_run",
        kind: Kind::Automation,
        owner: Parent { column: "rule_id", table: "automation_rule", key: "rule_id" },
        key: &["rule_id", "number"],
        body: "(rule_id INTEGER NOT NULL REFERENCES automation_rule (rule_id), number INTEGER NOT NULL,
            outcome TEXT, milliseconds REAL, PRIMARY KEY (rule_id, number)) WITHOUT ROWID",
        then: &[],
    },
    Table {
        name: "timesheet_entry",
        kind: Kind::Timesheets,
        owner: Tenant("tenant"),
        key: &["entry_id"],
        body: "(entry_id INTEGER PRIMARY KEY, tenant TEXT NOT NULL, worker TEXT NOT NULL, day INTEGER NOT NULL,
            hours REAL NOT NULL, note TEXT, UNIQUE (tenant, worker, day))",
        then: &[],
    },
    Table {
        name: "timesheet_approval",
        kind: Kind::Timesheets,
        owner: Parent { column: "entry_id", table: "timesheet_entry", key: "entry_id" },
        key: &["entry_id"],
        body: "(entry_id INTEGER PRIMARY KEY REFERENCES timesheet_entry (entry_id) ON DELETE CASCADE,
            approver TEXT NOT NULL, approved INTEGER)",
        then: &[],
    },
];
