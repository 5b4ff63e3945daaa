//! What Muster writes into the shard's change table and owner maps for rows that it publishes itself, as the triggers
//! of capture would have, and with its mark.

use muster_types::segment::Mark;
use muster_types::table::{Owner, TableDef};
use muster_types::{Digest, SiteId};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OptionalExtension, params};

use super::fence::number;
use super::live::LiveTable;
use super::sql::column_list;
use crate::sqlite::schema::quote;
use crate::sqlite::system::{self, NOW_MS, OwnerMap};

/// How capture knows a table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Installed {
    /// Its number in the change table.
    pub(super) id: i64,
    /// Digest of the definition that its triggers were made for.
    pub(super) definition: Digest,
}

/// How capture knows a table, if it does.
pub(super) fn installed(conn: &Connection, table: &str) -> rusqlite::Result<Option<Installed>> {
    if !system::has_table(conn, system::TABLE)? {
        return Ok(None);
    }
    let found: Option<(i64, String)> = conn
        .prepare_cached("SELECT id, def FROM main._muster_table WHERE name = ?1")?
        .query_row([table], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let Some((id, text)) = found else { return Ok(None) };
    // A definition that cannot be read is not the live one: capture installs the table anew.
    let definition =
        serde_json::from_str::<TableDef>(&text).map_or_else(|_| Digest::of(b""), |def| def.digest());
    Ok(Some(Installed { id, definition }))
}

/// Writes the note that change rows refer to.
pub(super) fn insert_mark(conn: &Connection, mark: &Mark) -> rusqlite::Result<i64> {
    conn.prepare_cached("INSERT INTO main._muster_mark (run, step, epoch) VALUES (?1, ?2, ?3)")?
        .insert(params![mark.run.as_str(), mark.step, number(mark.epoch)])
}

/// Logs the staged rows of a table as inserted.
pub(super) fn log_inserted(
    conn: &Connection,
    table: &LiveTable,
    site: &SiteId,
    mark: i64,
) -> rusqlite::Result<()> {
    let sql = format!(
        "INSERT INTO main._muster_change (at_ms, tbl, op, new_site, mark, {values}) \
         SELECT {NOW_MS}, ?1, 'I', ?2, ?3, {columns} FROM stage.{name}",
        values = system::value_list("", table.columns().count()),
        columns = column_list("", table.columns()),
        name = quote(table.name()),
    );
    conn.execute(&sql, params![table.installed.id, site.as_str(), mark]).map(drop)
}

/// Logs the rows of a site that meet `condition`, which are about to be deleted.
pub(super) fn log_deleted(
    conn: &Connection,
    table: &LiveTable,
    condition: &str,
    site: &SiteId,
    mark: i64,
) -> rusqlite::Result<()> {
    let sql = format!(
        "INSERT INTO main._muster_change (at_ms, tbl, op, old_site, mark, {values}) \
         SELECT {NOW_MS}, ?2, 'D', ?1, ?3, {columns} FROM main.{name} t WHERE {condition}",
        values = system::value_list("", table.columns().count()),
        columns = column_list("t", table.columns()),
        name = quote(table.name()),
    );
    conn.execute(&sql, params![site.as_str(), table.installed.id, mark]).map(drop)
}

/// Enters the staged rows of a table into the maps that other tables are owned through.
pub(super) fn own_inserted(conn: &Connection, table: &LiveTable, site: &SiteId) -> rusqlite::Result<()> {
    table.maps.iter().try_for_each(|map| own_in_map(conn, table, map, site))
}

fn own_in_map(conn: &Connection, table: &LiveTable, map: &OwnerMap, site: &SiteId) -> rusqlite::Result<()> {
    let (name, staged, key) = (quote(&map.name()), quote(table.name()), quote(&map.key));
    let elsewhere =
        format!("FROM main.{name} o JOIN stage.{staged} s ON o.key = s.{key} WHERE o.site IS NOT ?1");
    // Rows that came before their parent, or outlived one of another site, belong to this site from now on. What that
    // means for the rows under them is for capture's triggers to say; on owner maps there are no others.
    if conn.prepare(&format!("SELECT 1 {elsewhere} LIMIT 1"))?.exists([site.as_str()])? {
        let sql = format!("UPDATE main.{name} SET site = ?1 WHERE key IN (SELECT o.key {elsewhere})");
        move_entries(conn, &sql, site)?;
    }
    let sql = format!(
        "INSERT OR REPLACE INTO main.{name} (key, parent, site, dead_seq) \
         SELECT s.{key}, {parent}, ?1, NULL FROM stage.{staged} s WHERE s.{key} IS NOT NULL",
        parent = system::parent_sql(&table.owner, "s"),
    );
    conn.execute(&sql, [site.as_str()]).map(drop)
}

/// Runs an update of an owner map with capture's triggers on it, which log what moves with the entries. The map is
/// Muster's own: no other trigger is on it.
fn move_entries(conn: &Connection, sql: &str, site: &SiteId) -> rusqlite::Result<()> {
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, true)?;
    let moved = conn.execute(sql, [site.as_str()]);
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)?;
    moved.map(drop)
}

/// Sees to it that the staged rows of an owned table belong to `site`. Rows whose owning row is not there are given an
/// entry of their own, as capture keeps one for a row that is gone. Returns the key and the site of an owning row that
/// is another's: restored rows must not appear under it.
pub(super) fn adopt_inserted(
    conn: &Connection,
    table: &LiveTable,
    site: &SiteId,
) -> rusqlite::Result<Option<(String, Option<String>)>> {
    let (Some(map), Some(column)) = (system::owner_map(&table.owner), system::owning_column(&table.owner))
    else {
        return Ok(None);
    };
    let (name, staged, column) = (quote(&map.name()), quote(table.name()), quote(column));
    let stranger = || {
        let sql = format!(
            "SELECT quote(s.{column}), o.site FROM stage.{staged} s LEFT JOIN main.{name} o ON o.key = s.{column} \
             WHERE o.site IS NOT ?1 LIMIT 1"
        );
        let read = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?));
        conn.query_row(&sql, [site.as_str()], read).optional()
    };
    if stranger()?.is_none() {
        return Ok(None);
    }
    let nobodys = format!(
        "UPDATE main.{name} SET site = ?1 WHERE site IS NULL AND key IN (SELECT s.{column} FROM stage.{staged} s)"
    );
    move_entries(conn, &nobodys, site)?;
    let missing = format!(
        "INSERT INTO main.{name} (key, parent, site, dead_seq) SELECT DISTINCT s.{column}, NULL, ?1, ?2 \
         FROM stage.{staged} s WHERE s.{column} IS NOT NULL \
         AND NOT EXISTS (SELECT 1 FROM main.{name} o WHERE o.key = s.{column})"
    );
    conn.execute(&missing, params![site.as_str(), system::last_position(conn)?.0.cast_signed()])?;
    stranger()
}

/// Notes in the maps that a site's rows of a table are gone; what capture has noted of them is void.
pub(super) fn disown_deleted(conn: &Connection, table: &LiveTable, site: &SiteId) -> rusqlite::Result<()> {
    let position = system::last_position(conn)?.0.cast_signed();
    for map in &table.maps {
        let sql = format!(
            "UPDATE main.{name} AS o SET dead_seq = ?2 WHERE o.site = ?1 AND o.dead_seq IS NULL \
             AND NOT EXISTS (SELECT 1 FROM main.{table} t WHERE t.{key} = o.key)",
            name = quote(&map.name()),
            table = quote(table.name()),
            key = quote(&map.key),
        );
        conn.execute(&sql, params![site.as_str(), position])?;
    }
    // No statement of a writer is under way now, so that no note of a possible eviction is still wanted.
    let notes = format!("_muster_evict_{}", table.installed.id);
    if system::has_table(conn, &notes)? {
        conn.execute(&format!("DELETE FROM main.{}", quote(&notes)), [])?;
    }
    Ok(())
}

/// The maps that rows of `table` are entered into, given the owners of all declared tables.
pub(super) fn maps_of<'a>(table: &str, owners: impl IntoIterator<Item = &'a Owner>) -> Vec<OwnerMap> {
    let mut maps = system::owner_maps(owners);
    maps.retain(|map| map.table == table);
    maps
}
