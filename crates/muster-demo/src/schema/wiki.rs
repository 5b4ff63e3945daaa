//! Confluence and its app.

use super::Owner::{Parent, Tenant};
use super::Table;
use crate::kind::Kind;

pub(super) const TABLES: &[Table] = &[
    Table {
        name: "wiki_space",
        kind: Kind::Confluence,
        owner: Tenant("cloud_id"),
        key: &["space_id"],
        body: "(space_id INTEGER PRIMARY KEY, cloud_id TEXT NOT NULL, key TEXT NOT NULL, name TEXT NOT NULL,
            edits INTEGER NOT NULL DEFAULT 0, UNIQUE (cloud_id, key))",
        then: &[],
    },
    Table {
        name: "wiki_page",
        kind: Kind::Confluence,
        owner: Parent { column: "space_id", table: "wiki_space", key: "space_id" },
        key: &["page_id"],
        body: "(page_id INTEGER PRIMARY KEY, space_id INTEGER NOT NULL REFERENCES wiki_space (space_id)
            ON DELETE CASCADE, above INTEGER REFERENCES wiki_page (page_id) ON DELETE SET NULL,
            title TEXT NOT NULL, rank REAL)",
        then: &[
            "CREATE UNIQUE INDEX wiki_page_by_title ON wiki_page (space_id, title)",
            "CREATE INDEX wiki_page_by_above ON wiki_page (above)",
        ],
    },
    Table {
        name: "wiki_body",
        kind: Kind::Confluence,
        owner: Parent { column: "page_id", table: "wiki_page", key: "page_id" },
        key: &["page_id"],
        body: "(page_id INTEGER PRIMARY KEY REFERENCES wiki_page (page_id) ON DELETE CASCADE, body BLOB NOT NULL,
            words INTEGER NOT NULL)",
        then: &["CREATE TRIGGER wiki_body_edited AFTER UPDATE ON wiki_body BEGIN
               UPDATE wiki_space SET edits = edits + 1
               WHERE space_id = (SELECT space_id FROM wiki_page WHERE page_id = new.page_id); END"],
    },
    Table {
        name: "wiki_label",
        kind: Kind::Confluence,
        owner: Parent { column: "page_id", table: "wiki_page", key: "page_id" },
        key: &["page_id", "label"],
        body: "(page_id INTEGER NOT NULL REFERENCES wiki_page (page_id) ON DELETE CASCADE, label TEXT NOT NULL,
            PRIMARY KEY (page_id, label)) WITHOUT ROWID",
        then: &[],
    },
    Table {
        name: "wiki_attachment",
        kind: Kind::Confluence,
        owner: Parent { column: "page_id", table: "wiki_page", key: "page_id" },
        key: &["attachment_id"],
        body: "(attachment_id INTEGER PRIMARY KEY, page_id INTEGER NOT NULL REFERENCES wiki_page (page_id)
            ON DELETE CASCADE, file_name TEXT NOT NULL, media_type TEXT, bytes INTEGER NOT NULL,
            UNIQUE (page_id, file_name))",
        then: &[],
    },
    Table {
        name: "diagram",
        kind: Kind::Diagrams,
        owner: Tenant("cloud_id"),
        key: &["diagram_id"],
        body: "(diagram_id TEXT NOT NULL PRIMARY KEY, cloud_id TEXT NOT NULL, title TEXT NOT NULL, zoom REAL)",
        then: &["CREATE INDEX diagram_by_cloud ON diagram (cloud_id)"],
    },
    Table {
        name: "diagram_revision",
        kind: Kind::Diagrams,
        owner: Parent { column: "diagram_id", table: "diagram", key: "diagram_id" },
        key: &["diagram_id", "number"],
        body: "(diagram_id TEXT NOT NULL REFERENCES diagram (diagram_id) ON DELETE CASCADE, number INTEGER NOT NULL,
            drawing BLOB, PRIMARY KEY (diagram_id, number))",
        then: &[],
    },
];
