//! Schemas that come and go while capture polls.

use std::collections::BTreeSet;

use muster_rows::{Change, Row};
use muster_stores::capture::{CaptureError, CaptureSource, ChangeSink};
use muster_types::SiteId;
use muster_types::segment::{Commit, Mark, TableEvent, TableEventKind};
use muster_types::table::CapturedTable;

use crate::world::World;

const DECLARED: &str = r#""tenant_{site}.t" = { kind = "product:jira" }"#;

/// What one poll delivered: tables with the sites of their changes, and of their rows that were read again.
#[derive(Default)]
struct Polled {
    tables: Vec<String>,
    changes: Vec<(String, String)>,
    again: BTreeSet<(String, String)>,
    events: Vec<TableEvent>,
}

impl Polled {
    fn place(&self, site: Option<&SiteId>, table: usize) -> (String, String) {
        (site.map_or("", SiteId::as_str).to_owned(), self.tables[table].clone())
    }

    fn events(&self, of: TableEventKind) -> Vec<&TableEvent> {
        self.events.iter().filter(|event| event.event == of).collect()
    }
}

impl ChangeSink for Polled {
    fn table(&mut self, table: &CapturedTable) -> Result<(), CaptureError> {
        self.tables.push(table.def.name.clone());
        Ok(())
    }

    fn change(
        &mut self,
        site: Option<&SiteId>,
        table: usize,
        _: Option<&Mark>,
        _: Change,
    ) -> Result<(), CaptureError> {
        self.changes.push(self.place(site, table));
        Ok(())
    }

    fn reread_row(&mut self, site: Option<&SiteId>, table: usize, _: &Row) -> Result<(), CaptureError> {
        self.again.insert(self.place(site, table));
        Ok(())
    }

    fn table_event(&mut self, event: TableEvent) -> Result<(), CaptureError> {
        self.events.push(event);
        Ok(())
    }

    fn commit(&mut self, _: Commit) -> Result<(), CaptureError> {
        Ok(())
    }
}

fn schema(name: &str) -> String {
    format!(
        "CREATE SCHEMA \"{name}\"; CREATE TABLE \"{name}\".t (id int PRIMARY KEY, x text); \
         INSERT INTO \"{name}\".t VALUES (1, 'one'), (2, 'two');"
    )
}

#[test]
fn schemas_come_and_go_between_polls() {
    let both = format!("{}{}", schema("tenant_a"), schema("tenant_b"));
    let mut world = World::new(&both, &["product:jira"], DECLARED);
    let captured = world.capture();
    let own = |name: &str| captured.tables.iter().any(|table| table.def.name == name);
    assert!(own("tenant_a.t") && own("tenant_b.t"));
    world.sql("UPDATE tenant_a.t SET x = 'changed' WHERE id = 1; DELETE FROM tenant_a.t WHERE id = 2");
    world.sql(&format!("{}{}DROP SCHEMA tenant_b CASCADE", schema("tenant_new"), schema("tenant_no site")));
    let mut polled = Polled::default();
    let mut told = world.source.poll(captured.boundary, false, &mut polled).unwrap();
    // A poll ends before DDL that changes what rows mean.
    while told.more {
        let mut next = Polled::default();
        told = world.source.poll(told.boundary, false, &mut next).unwrap();
        polled.changes.extend(next.changes);
        polled.again.extend(next.again);
        polled.events.extend(next.events);
    }

    let of = |site: &str, table: &str| (site.to_owned(), table.to_owned());
    assert_eq!(polled.changes, vec![of("a", "tenant_a.t"); 2]);
    assert_eq!(polled.again, BTreeSet::from([of("new", "tenant_new.t")]));
    let dropped: Vec<&str> =
        polled.events(TableEventKind::Dropped).iter().map(|event| event.table.as_str()).collect();
    assert_eq!(dropped, ["tenant_b.t"]);
    assert_eq!(told.undeclared, ["tenant_no site.t"]);
    let undeclared = polled.events(TableEventKind::Undeclared);
    assert_eq!(undeclared.len(), 1);
    assert!(
        undeclared[0].reason.contains("it is of no site: it is named like `tenant_{site}.t`"),
        "{undeclared:?}"
    );
}

#[test]
fn a_shard_with_a_schema_of_no_site_is_not_installed() {
    let mut world = World::new(&schema("tenant_no site"), &["product:jira"], DECLARED);
    let refused = world.source.init().unwrap_err();
    assert!(refused.message.contains("tenant_no site.t (it is named like `tenant_{site}.t`"), "{refused}");
}
