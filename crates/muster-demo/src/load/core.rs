//! Metadata and licences.

use anyhow::Result;
use rand::RngExt;
use rusqlite::params;

use super::Loader;
use crate::site::{REGIONS, Site};
use crate::words;

const KEYS: &[&str] =
    &["locale", "timezone", "theme", "sso", "session_minutes", "ip_allow_list", "backup", "banner"];

pub(super) fn plans(loader: &mut Loader<'_>) -> Result<()> {
    let plans = [("free", Some(10), 0.0), ("standard", Some(2_000), 7.75), ("enterprise", None, 15.25)];
    for (plan, seats, price) in plans {
        loader.insert("INSERT INTO licence_plan VALUES (?1, ?2, ?3)", params![plan, seats, price])?;
    }
    Ok(())
}

pub(super) fn metadata(loader: &mut Loader<'_>, site: &Site) -> Result<()> {
    let (created, score) =
        (loader.rng.random_range(1_400_000_000..1_648_000_000), loader.rng.random::<f64>());
    let status = if site.inactive { "inactive" } else { "active" };
    loader.insert(
        "INSERT INTO site VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
        params![
            site.id,
            site.name,
            REGIONS[site.region],
            site.tier,
            site.customer,
            site.internal,
            site.users as i64,
            status,
            created,
            score
        ],
    )?;
    for (index, key) in KEYS.iter().enumerate() {
        let sql = "INSERT INTO site_configuration (site_id, key, value) VALUES (?1, ?2, ?3)";
        // Settings are whatever the product put there: the column has no type.
        match index % 4 {
            0 => {
                let value = words::text(&mut loader.rng, 2);
                loader.insert(sql, params![site.id, key, value])?;
            }
            1 => loader.insert(sql, params![site.id, key, created % 480])?,
            2 => loader.insert(sql, params![site.id, key, score * 10.0])?,
            _ => loader.insert(sql, params![site.id, key, None::<i64>])?,
        }
    }
    for (number, role) in ["technical", "billing", "security"].iter().enumerate() {
        let (id, name) = (loader.id(), words::username(&mut loader.rng, number));
        let phone = loader.rng.random_bool(0.5).then(|| format!("+49 30 {:07}", id % 10_000_000));
        loader.insert(
            "INSERT INTO site_contact VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![id, site.id, format!("{name}@{}.example", site.name), name, role, phone],
        )?;
    }
    Ok(())
}

pub(super) fn licences(loader: &mut Loader<'_>, site: &Site) -> Result<()> {
    for kind in site.kinds.iter().filter(|kind| kind.is_licensed()) {
        let (id, renewed) = (loader.id(), loader.rng.random_range(1_600_000_000..1_648_000_000));
        loader.insert(
            "INSERT INTO licence VALUES (?1, ?2, ?3, ?4, ?5, 1, ?6)",
            params![id, site.id, kind.name(), site.tier, site.users as i64, renewed],
        )?;
        for number in 1..=loader.rng.random_range(1..4) {
            let amount = loader.rng.random::<f64>() * 1_000.0;
            loader.insert(
                "INSERT INTO licence_event VALUES (?1, ?2, 'renewed', ?3)",
                params![id, number, amount],
            )?;
        }
    }
    Ok(())
}
