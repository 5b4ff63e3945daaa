//! Confluence and its app.

use anyhow::Result;
use rand::RngExt;
use rusqlite::params;

use super::Loader;
use crate::site::Site;
use crate::words;

/// Rows that a page has on average with its body, labels and attachments.
const ROWS_PER_PAGE: usize = 3;
const PAGES_PER_SPACE: usize = 50;
const LABELS: &[&str] = &["how-to", "meeting", "decision", "runbook"];

pub(super) fn confluence(loader: &mut Loader<'_>, site: &Site, rows: usize) -> Result<()> {
    let mut pages = rows / ROWS_PER_PAGE + 1;
    let mut space = 0;
    while pages > 0 {
        let here = pages.min(PAGES_PER_SPACE);
        let id = loader.id();
        loader.insert(
            "INSERT INTO wiki_space (space_id, cloud_id, key, name) VALUES (?1, ?2, ?3, ?4)",
            params![id, site.id, format!("S{space}"), format!("Space {space}")],
        )?;
        let mut above = None;
        for number in 0..here {
            let page = page(loader, id, above, number)?;
            if number.is_multiple_of(6) {
                above = Some(page);
            }
        }
        pages -= here;
        space += 1;
    }
    Ok(())
}

fn page(loader: &mut Loader<'_>, space: i64, above: Option<i64>, number: usize) -> Result<i64> {
    let (id, title) = (loader.id(), format!("{} {number}", words::text(&mut loader.rng, 3)));
    let rank = loader.rng.random::<f64>();
    loader.insert(
        "INSERT INTO wiki_page VALUES (?1, ?2, ?3, ?4, ?5)",
        params![id, space, above, title, rank],
    )?;
    let body = words::blob(&mut loader.rng, 300);
    let words_count = body.len() as i64 / 6;
    loader.insert("INSERT INTO wiki_body VALUES (?1, ?2, ?3)", params![id, body, words_count])?;
    if loader.rng.random_bool(0.6) {
        let label = words::one(&mut loader.rng, LABELS);
        loader.insert("INSERT INTO wiki_label VALUES (?1, ?2)", params![id, label])?;
    }
    if loader.rng.random_bool(0.4) {
        let file = loader.id();
        loader.insert(
            "INSERT INTO wiki_attachment VALUES (?1, ?2, ?3, ?4, ?5)",
            params![
                file,
                id,
                format!("figure-{number}.png"),
                number.is_multiple_of(2).then_some("image/png"),
                file * 13
            ],
        )?;
    }
    Ok(id)
}

pub(super) fn diagrams(loader: &mut Loader<'_>, site: &Site, rows: usize) -> Result<()> {
    for number in 0..1 + rows / 4 {
        let id = format!("{}-d{:x}", site.id, loader.id());
        let (title, zoom) = (words::text(&mut loader.rng, 2), loader.rng.random::<f64>() * 4.0);
        loader.insert("INSERT INTO diagram VALUES (?1, ?2, ?3, ?4)", params![id, site.id, title, zoom])?;
        for revision in 1..=1 + number % 5 {
            let drawing = words::blob(&mut loader.rng, 120);
            loader.insert(
                "INSERT INTO diagram_revision VALUES (?1, ?2, ?3)",
                params![id, revision as i64, drawing],
            )?;
        }
    }
    Ok(())
}
