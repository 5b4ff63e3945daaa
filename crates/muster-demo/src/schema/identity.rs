//! Users, groups, memberships, permissions.

use super::Owner::{Parent, Tenant};
use super::Table;
use crate::kind::Kind;

pub(super) const TABLES: &[Table] = &[
    Table {
        name: "user_account",
        kind: Kind::Identity,
        owner: Tenant("site_id"),
        key: &["user_id"],
        body:
            "(user_id INTEGER PRIMARY KEY, site_id TEXT NOT NULL, username TEXT NOT NULL, email TEXT NOT NULL,
            display_name TEXT, active INTEGER NOT NULL, last_seen REAL, avatar BLOB)",
        then: &["CREATE UNIQUE INDEX user_account_by_name ON user_account (site_id, username)"],
    },
    Table {
        name: "user_group",
        kind: Kind::Identity,
        owner: Tenant("site_id"),
        key: &["group_id"],
        body: "(group_id INTEGER PRIMARY KEY, site_id TEXT NOT NULL, name TEXT NOT NULL, description TEXT,
            UNIQUE (site_id, name))",
        then: &[],
    },
    Table {
        name: "group_member",
        kind: Kind::Identity,
        owner: Parent { column: "group_id", table: "user_group", key: "group_id" },
        key: &["group_id", "user_id"],
        body: "(group_id INTEGER NOT NULL REFERENCES user_group (group_id) ON DELETE CASCADE,
            user_id INTEGER NOT NULL REFERENCES user_account (user_id) ON DELETE CASCADE,
            since INTEGER NOT NULL, PRIMARY KEY (group_id, user_id)) WITHOUT ROWID",
        then: &["CREATE INDEX group_member_by_user ON group_member (user_id)"],
    },
    Table {
        name: "permission_grant",
        kind: Kind::Identity,
        owner: Parent { column: "group_id", table: "user_group", key: "group_id" },
        key: &["grant_id"],
        body: "(grant_id INTEGER PRIMARY KEY, group_id INTEGER NOT NULL REFERENCES user_group (group_id)
            ON DELETE CASCADE, permission TEXT NOT NULL, granted_by TEXT, UNIQUE (group_id, permission))",
        then: &[],
    },
];
