//! Metadata and licences.

use anyhow::Result;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::Scene;
use crate::kind::Kind;
use crate::record::{Statement, statement};

const CONTACT: &str =
    "SELECT email FROM site_contact WHERE site_id = ?1 ORDER BY contact_id LIMIT 1 OFFSET ?2";
const LICENCE: &str =
    "SELECT licence_id FROM licence WHERE site_id = ?1 ORDER BY licence_id LIMIT 1 OFFSET ?2";

pub(super) fn metadata(scene: &mut Scene<'_>) -> Result<Vec<Statement>> {
    let site = scene.site.clone();
    Ok(match scene.below(6) {
        0 | 1 => {
            let (key, value) =
                (["theme", "banner", "motto", "quota"][scene.below(4) as usize], scene.text(3));
            vec![statement!(
                "INSERT INTO site_configuration (site_id, key, value) VALUES (?1, ?2, ?3)
                 ON CONFLICT (site_id, key) DO UPDATE SET value = excluded.value, revision = site_configuration.revision + 1";
                site, key.to_owned(), value)]
        }
        2 => {
            let value = scene.real() * 100.0;
            vec![statement!("REPLACE INTO site_configuration VALUES (?1, 'quota', ?2, 7)", postgres: [
                "INSERT INTO site_configuration VALUES (?1, 'quota', ?2, 7)
                 ON CONFLICT (site_id, key) DO UPDATE SET value = excluded.value, revision = excluded.revision"];
                site, value)]
        }
        // The new row evicts the old one by its address, not by its primary key.
        3 => match scene.pick::<String>(CONTACT)? {
            Some(email) => vec![statement!(
                "INSERT OR REPLACE INTO site_contact VALUES (?1, ?2, ?3, 'replaced', 'technical', NULL)", postgres: [
                "DELETE FROM site_contact WHERE site_id = ?2 AND email = ?3",
                "INSERT INTO site_contact VALUES (?1, ?2, ?3, 'replaced', 'technical', NULL)"];
                scene.id(), site, email)],
            None => vec![],
        },
        4 => vec![
            statement!("UPDATE site SET users = users + 1, trial_score = ?2 WHERE site_id = ?1"; site.clone(), scene.real()),
            statement!("DELETE FROM site_configuration WHERE site_id = ?1 AND key = 'motto'"; site),
        ],
        _ => {
            let (id, name) = (scene.id(), scene.name.to_owned());
            vec![
                statement!("INSERT INTO site_contact VALUES (?1, ?2, ?3, 'new', 'billing', '+1 555 0100')";
                    id, site.clone(), format!("contact-{id}@{name}.example")),
                statement!("UPDATE site SET name = ?2 WHERE site_id = ?1"; site, format!("{name}-r{}", id % 1000)),
            ]
        }
    })
}

pub(super) fn licence(scene: &mut Scene<'_>) -> Result<Vec<Statement>> {
    let Some(licence) = scene.pick::<i64>(LICENCE)? else { return Ok(vec![]) };
    let (number, amount) = (scene.below(12), scene.real() * 90.0);
    let seats = scene.below(500);
    Ok(vec![
        statement!("UPDATE licence SET seats = ?2, active = ?3 WHERE licence_id = ?1"; licence, seats, i64::from(seats != 13)),
        statement!("INSERT INTO licence_event VALUES (?1, ?2, 'seats changed', ?3) ON CONFLICT DO NOTHING"; licence, number, amount),
    ])
}

pub(super) fn new_licence(scene: &mut Scene<'_>, kind: Kind) -> Vec<Statement> {
    vec![statement!(
        "INSERT INTO licence VALUES (?1, ?2, ?3, 'standard', 10, true, NULL) ON CONFLICT (site_id, product) DO NOTHING";
        scene.id(), scene.site.clone(), kind.name().to_owned())]
}

pub(super) fn new_prices(rng: &mut ChaCha8Rng) -> Vec<Statement> {
    vec![statement!("UPDATE licence_plan SET price = ?1 WHERE plan = 'standard'"; rng.random::<f64>() * 10.0)]
}
