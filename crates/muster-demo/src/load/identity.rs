//! Users, groups, memberships, permissions.

use anyhow::Result;
use rand::RngExt;
use rusqlite::params;

use super::Loader;
use crate::site::Site;
use crate::words;

pub(super) fn identity(loader: &mut Loader<'_>, site: &Site) -> Result<()> {
    let mut groups = Vec::new();
    for number in 0..3 + site.users / 20 {
        let id = loader.id();
        groups.push(id);
        loader.insert(
            "INSERT INTO user_group VALUES (?1, ?2, ?3, ?4)",
            params![
                id,
                site.id,
                format!("team-{number}"),
                number.is_multiple_of(2).then_some("made by an administrator")
            ],
        )?;
        for permission in ["browse", "comment", "administer"].iter().take(1 + number % 3) {
            let grant = loader.id();
            loader.insert(
                "INSERT INTO permission_grant VALUES (?1, ?2, ?3, 'system')",
                params![grant, id, permission],
            )?;
        }
    }
    for number in 0..site.users {
        user(loader, site, number, &groups)?;
    }
    Ok(())
}

fn user(loader: &mut Loader<'_>, site: &Site, number: usize, groups: &[i64]) -> Result<()> {
    let (id, name) = (loader.id(), words::username(&mut loader.rng, number));
    let seen = loader.rng.random_bool(0.9).then(|| 1_640_000_000.0 + loader.rng.random::<f64>() * 8e6);
    let avatar = loader.rng.random_bool(0.2).then(|| words::blob(&mut loader.rng, 48));
    loader.insert(
        "INSERT INTO user_account VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        params![
            id,
            site.id,
            name,
            format!("{name}@example.com"),
            name.to_uppercase(),
            !number.is_multiple_of(9),
            seen,
            avatar
        ],
    )?;
    let first = loader.rng.random_range(0..groups.len());
    for step in 0..1 + number % 3 {
        let group = groups[(first + step) % groups.len()];
        loader
            .insert("INSERT INTO group_member VALUES (?1, ?2, ?3)", params![group, id, 1_640_000_000 + id])?;
    }
    Ok(())
}
