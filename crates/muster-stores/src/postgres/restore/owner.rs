//! Whose a row is, in SQL.
//!
//! # Invariants
//! - A tenant column of another type than text is compared in its own type, so that its index serves; a site whose id
//!   is no value of that type has no rows there.
//! - Sites are compared byte by byte, whatever the column's collation.

use std::collections::BTreeMap;

use muster_types::SiteId;
use muster_types::table::Owner;

use super::shard::{Catalog, Shard};
use crate::postgres::schema::{LiveTable, literal, quote};

/// Longest chain of parents: a declaration that goes in a circle is refused by the topology already.
const DEPTH_MAX: usize = 32;

/// Owners of tables: the declared ones, over those that a plan brings.
pub(super) struct Owners<'a> {
    pub(super) shard: &'a Shard,
    pub(super) catalog: &'a Catalog,
    pub(super) also: BTreeMap<&'a str, &'a Owner>,
}

impl<'a> Owners<'a> {
    fn of(&self, table: &str) -> Option<&'a Owner> {
        let declared = self.shard.tables().named().get(table).map(|config| &config.owner);
        declared.or_else(|| self.also.get(table).copied())
    }

    /// The way from a table to its tenant column; none for reference tables, and where a table of it is gone.
    pub(super) fn way(&self, table: &'a LiveTable, owner: &'a Owner) -> Option<Way<'a>> {
        let mut way = Way { steps: Vec::new(), root: table, tenant: Tenant::Column("") };
        let mut owner = owner;
        for _ in 0..DEPTH_MAX {
            match owner {
                Owner::Tenant { column } => {
                    way.tenant = Tenant::Column(column);
                    return Some(way);
                }
                Owner::Site { site } => {
                    way.tenant = Tenant::Site(site.clone());
                    return Some(way);
                }
                Owner::Parent { column, table, key } => {
                    way.root = self.catalog.tables.get(table)?;
                    way.steps.push(Step { column, parent: way.root, key });
                    owner = self.of(table)?;
                }
                Owner::Reference => return None,
            }
        }
        None
    }
}

struct Step<'a> {
    column: &'a str,
    parent: &'a LiveTable,
    key: &'a str,
}

impl Step<'_> {
    /// The condition that a row at `depth` belongs to the parent's behind it.
    fn refers(&self, depth: usize) -> String {
        let key = format!("{}.{}", alias(depth + 1), quote(self.key));
        self.parent.equal(self.key, &key, &format!("{}.{}", alias(depth), quote(self.column)))
    }
}

/// From a table `t` through its parents `p1`, `p2`, … to the tenant column.
pub(super) struct Way<'a> {
    steps: Vec<Step<'a>>,
    root: &'a LiveTable,
    tenant: Tenant<'a>,
}

/// What tells the site at the end of a way.
enum Tenant<'a> {
    /// A column.
    Column(&'a str),
    /// The table is this site's, whatever its rows hold.
    Site(SiteId),
}

/// How tenant values compare with site ids.
#[derive(Clone, Copy, PartialEq, Eq)]
enum TenantType {
    Text,
    Integer,
    Uuid,
    Other,
}

impl<'a> Way<'a> {
    /// Of a table of `site` alone.
    pub(super) fn of_site(table: &'a LiveTable, site: SiteId) -> Self {
        Self { steps: Vec::new(), root: table, tenant: Tenant::Site(site) }
    }

    /// The site whose table it is.
    pub(super) fn site(&self) -> Option<&SiteId> {
        match &self.tenant {
            Tenant::Site(site) => Some(site),
            Tenant::Column(_) => None,
        }
    }

    /// Parents on the way.
    pub(super) fn depth(&self) -> usize {
        self.steps.len()
    }

    /// The table that tells whose rows are, one step up; none where the table itself does.
    pub(super) fn parent_oid(&self) -> Option<u32> {
        self.steps.first().map(|step| step.parent.oid)
    }

    /// The condition for rows `t` of `site`.
    pub(super) fn rows_of(&self, site: &SiteId) -> String {
        self.condition(0, &self.tenant_is(site))
    }

    fn condition(&self, depth: usize, innermost: &str) -> String {
        let Some(step) = self.steps.get(depth) else { return innermost.to_owned() };
        format!(
            "EXISTS (SELECT FROM {parent} {next} WHERE {equal} AND {rest})",
            parent = step.parent.rows_of(),
            next = alias(depth + 1),
            equal = step.refers(depth),
            rest = self.condition(depth + 1, innermost),
        )
    }

    /// Joins that follow `FROM table t`; outer ones keep rows without an owner.
    pub(super) fn joins(&self, kind: &str) -> String {
        let join = |(depth, step): (usize, &Step<'_>)| {
            format!(
                " {kind} JOIN {parent} {next} ON {equal}",
                parent = step.parent.rows_of(),
                next = alias(depth + 1),
                equal = step.refers(depth),
            )
        };
        self.steps.iter().enumerate().map(join).collect()
    }

    /// The tenant value behind [`Self::joins`].
    pub(super) fn tenant(&self) -> String {
        match &self.tenant {
            Tenant::Column(column) => format!("{}.{}", alias(self.steps.len()), quote(column)),
            Tenant::Site(site) => format!("{}::text", literal(site.as_str())),
        }
    }

    /// The sites among `sites` that can have rows, as an SQL array of the column's type.
    pub(super) fn site_array<'s>(&self, sites: impl Iterator<Item = &'s SiteId>) -> String {
        let values: Vec<String> =
            sites.filter(|site| self.can_hold(site)).map(|site| literal(site.as_str())).collect();
        let cast = match self.tenant_type() {
            TenantType::Text | TenantType::Other => "text",
            TenantType::Integer => "bigint",
            TenantType::Uuid => "uuid",
        };
        format!("ARRAY[{}]::{cast}[]", values.join(", "))
    }

    /// The tenant value as it compares with [`Self::site_array`].
    pub(super) fn comparable_tenant(&self) -> String {
        match self.tenant_type() {
            TenantType::Other => format!("{}::text", self.tenant()),
            _ => self.tenant(),
        }
    }

    fn tenant_is(&self, site: &SiteId) -> String {
        if let Some(own) = self.site() {
            return (own == site).to_string();
        }
        let (tenant, value) = (self.tenant(), literal(site.as_str()));
        match self.tenant_type() {
            _ if !self.can_hold(site) => "false".to_owned(),
            // The first part finds rows by index, the second is exact under any collation.
            TenantType::Text => {
                format!("{tenant} = {value} AND {tenant}::text COLLATE \"C\" = {value}")
            }
            TenantType::Integer | TenantType::Uuid => format!("{tenant} = {value}"),
            TenantType::Other => format!("{tenant}::text COLLATE \"C\" = {value}"),
        }
    }

    fn can_hold(&self, site: &SiteId) -> bool {
        let text = site.as_str();
        match self.tenant_type() {
            TenantType::Text | TenantType::Other => true,
            TenantType::Integer => {
                text.parse::<i64>().is_ok_and(|number| number.to_string() == text && self.fits(number))
            }
            TenantType::Uuid => {
                let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
                let dashes = [8, 13, 18, 23];
                text.len() == 36
                    && text.bytes().enumerate().all(|(at, byte)| match dashes.contains(&at) {
                        true => byte == b'-',
                        false => digit(byte),
                    })
            }
        }
    }

    fn fits(&self, number: i64) -> bool {
        match self.declared_type() {
            "integer" => i32::try_from(number).is_ok(),
            "smallint" => i16::try_from(number).is_ok(),
            _ => true,
        }
    }

    fn declared_type(&self) -> &str {
        let Tenant::Column(name) = self.tenant else { return "text" };
        let column = self.root.def.columns.iter().find(|column| column.name == name);
        column.map_or("", |column| column.declared_type.as_str())
    }

    fn tenant_type(&self) -> TenantType {
        match self.declared_type() {
            "text" => TenantType::Text,
            varying if varying.starts_with("character varying") => TenantType::Text,
            "smallint" | "integer" | "bigint" => TenantType::Integer,
            "uuid" => TenantType::Uuid,
            _ => TenantType::Other,
        }
    }
}

fn alias(depth: usize) -> String {
    if depth == 0 { "t".to_owned() } else { format!("p{depth}") }
}

/// `alias."a", alias."b"`; an empty alias leaves the dot away.
pub(super) fn column_list<'a>(alias: &str, names: impl IntoIterator<Item = &'a str>) -> String {
    let dot = if alias.is_empty() { "" } else { "." };
    let one = |name: &str| format!("{alias}{dot}{}", quote(name));
    names.into_iter().map(one).collect::<Vec<_>>().join(", ")
}
