//! Opsgenie and Statuspage.

use anyhow::Result;
use rand::RngExt;
use rusqlite::params;

use super::Loader;
use crate::site::Site;
use crate::words;

pub(super) fn opsgenie(loader: &mut Loader<'_>, site: &Site, rows: usize) -> Result<()> {
    for number in 0..1 + rows / 50 {
        let team = loader.id();
        loader.insert(
            "INSERT INTO ops_team VALUES (?1, ?2, ?3, ?4)",
            params![team, site.id, format!("on call {number}"), (number % 2 == 0).then_some("weekly")],
        )?;
        for alert in 0..rows.min(50) / 2 {
            let (id, message) = (loader.id(), words::text(&mut loader.rng, 6));
            let level = loader.rng.random::<f64>() * 5.0;
            // Aliases are unique where there are any: several NULLs stand side by side.
            let alias = (alert % 3 != 0).then(|| format!("alias-{alert}"));
            loader.insert(
                "INSERT INTO ops_alert VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                params![id, team, alias, message, level, alert % 2 == 0],
            )?;
            if alert % 2 == 0 {
                let note = loader.id();
                loader.insert("INSERT INTO ops_alert_note VALUES (?1, ?2, 'ada', '')", params![note, id])?;
            }
        }
    }
    Ok(())
}

pub(super) fn statuspage(loader: &mut Loader<'_>, site: &Site, rows: usize) -> Result<()> {
    let mut component = 0;
    for number in 0..2 + rows / 30 {
        component = loader.id();
        let uptime = 99.0 + loader.rng.random::<f64>();
        loader.insert(
            "INSERT INTO status_component VALUES (?1, ?2, ?3, 'operational', ?4)",
            params![component, site.id, format!("component {number}"), uptime],
        )?;
    }
    for number in 0..1 + rows / 5 {
        let (incident, title) = (loader.id(), words::text(&mut loader.rng, 3));
        loader.insert(
            "INSERT INTO status_incident VALUES (?1, ?2, ?3, ?4)",
            params![incident, site.id, (number % 3 != 0).then_some(component), title],
        )?;
        for update in 1..=1 + number % 4 {
            let text = words::text(&mut loader.rng, 8);
            loader.insert(
                "INSERT INTO status_update VALUES (?1, ?2, ?3)",
                params![incident, update as i64, text],
            )?;
        }
    }
    Ok(())
}
