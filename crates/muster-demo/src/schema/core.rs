//! Metadata and licences.

use super::Owner::{Parent, Reference, Tenant};
use super::Table;
use crate::kind::Kind;

pub(super) const TABLES: &[Table] = &[
    Table {
        name: "site",
        kind: Kind::Metadata,
        owner: Tenant("site_id"),
        key: &["site_id"],
        body: "(site_id TEXT NOT NULL PRIMARY KEY, name TEXT NOT NULL, region TEXT NOT NULL, tier TEXT NOT NULL,
            customer TEXT NOT NULL, internal INTEGER NOT NULL, users INTEGER NOT NULL, status TEXT NOT NULL,
            created_at INTEGER NOT NULL, trial_score REAL)",
        then: &["CREATE UNIQUE INDEX site_by_name ON site (name)"],
    },
    Table {
        name: "site_configuration",
        kind: Kind::Metadata,
        owner: Tenant("site_id"),
        key: &["site_id", "key"],
        body: "(site_id TEXT NOT NULL REFERENCES site (site_id) ON DELETE CASCADE, key TEXT NOT NULL, value,
            revision INTEGER NOT NULL DEFAULT 1, PRIMARY KEY (site_id, key)) WITHOUT ROWID",
        then: &[],
    },
    Table {
        name: "site_contact",
        kind: Kind::Metadata,
        owner: Tenant("site_id"),
        key: &["contact_id"],
        body: "(contact_id INTEGER PRIMARY KEY, site_id TEXT NOT NULL REFERENCES site (site_id) ON DELETE CASCADE,
            email TEXT NOT NULL, name TEXT NOT NULL, role TEXT NOT NULL, phone TEXT, UNIQUE (site_id, email))",
        then: &[],
    },
    Table {
        name: "licence_plan",
        kind: Kind::Licence,
        owner: Reference,
        key: &["plan"],
        body: "(plan TEXT NOT NULL PRIMARY KEY, seats_max INTEGER, price REAL NOT NULL)",
        then: &[],
    },
    Table {
        name: "licence",
        kind: Kind::Licence,
        owner: Tenant("site_id"),
        key: &["licence_id"],
        body: "(licence_id INTEGER PRIMARY KEY, site_id TEXT NOT NULL, product TEXT NOT NULL,
            plan TEXT NOT NULL REFERENCES licence_plan (plan), seats INTEGER NOT NULL, active INTEGER NOT NULL,
            renewed_at INTEGER, UNIQUE (site_id, product))",
        then: &["CREATE INDEX licence_by_plan ON licence (plan)"],
    },
    Table {
        name: "licence_event",
        kind: Kind::Licence,
        owner: Parent { column: "licence_id", table: "licence", key: "licence_id" },
        key: &["licence_id", "number"],
        body: "(licence_id INTEGER NOT NULL REFERENCES licence (licence_id) ON DELETE CASCADE,
            number INTEGER NOT NULL, what TEXT NOT NULL, amount REAL, PRIMARY KEY (licence_id, number)) WITHOUT ROWID",
        then: &[],
    },
];
