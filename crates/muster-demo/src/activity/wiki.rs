//! Confluence and its app.

use anyhow::Result;

use super::Scene;
use crate::record::{Statement, statement};
use crate::words;

const SPACE: &str = "SELECT space_id FROM wiki_space WHERE cloud_id = ?1 ORDER BY key LIMIT 1 OFFSET ?2";
const PAGE: &str = "SELECT p.page_id FROM wiki_space AS s JOIN wiki_page AS p ON p.space_id = s.space_id
     WHERE s.cloud_id = ?1 LIMIT 1 OFFSET ?2";
const DIAGRAM: &str =
    "SELECT diagram_id FROM diagram WHERE cloud_id = ?1 ORDER BY diagram_id LIMIT 1 OFFSET ?2";

pub(super) fn confluence(scene: &mut Scene<'_>) -> Result<Vec<Statement>> {
    let (Some(space), id) = (scene.pick::<i64>(SPACE)?, scene.id()) else { return Ok(vec![]) };
    let Some(page) = scene.pick::<i64>(PAGE)? else {
        return Ok(vec![statement!("INSERT INTO wiki_page VALUES (?1, ?2, NULL, 'Home', NULL)"; id, space)]);
    };
    let body = words::blob(scene.rng, 400);
    Ok(match scene.below(9) {
        0..2 => vec![
            statement!("INSERT INTO wiki_page SELECT ?1, space_id, page_id, ?3, ?4 FROM wiki_page WHERE page_id = ?2";
                id, page, format!("New page {id}"), scene.real()),
            statement!("INSERT INTO wiki_body VALUES (?1, ?2, 9)"; id, body),
            statement!("INSERT INTO wiki_label VALUES (?1, 'new')"; id),
        ],
        2..5 => vec![
            statement!("UPDATE wiki_body SET body = ?2, words = words + 1 WHERE page_id = ?1"; page, body),
        ],
        5 => vec![
            statement!("UPDATE wiki_page SET title = ?2, rank = rank / 3 WHERE page_id = ?1"; page, format!("Renamed {id}")),
        ],
        // Pages below it lose their parent, not their lives.
        6 => vec![statement!("DELETE FROM wiki_page WHERE page_id = ?1"; page)],
        7 => vec![
            statement!("INSERT OR REPLACE INTO wiki_attachment VALUES (?1, ?2, 'figure.svg', NULL, ?1)", postgres: [
                "DELETE FROM wiki_attachment WHERE page_id = ?2 AND file_name = 'figure.svg'",
                "INSERT INTO wiki_attachment VALUES (?1, ?2, 'figure.svg', NULL, ?1)"]; id, page),
            statement!("INSERT INTO wiki_label VALUES (?1, 'decision') ON CONFLICT DO NOTHING"; page),
        ],
        _ => vec![statement!("DELETE FROM wiki_label WHERE page_id = ?1"; page)],
    })
}

pub(super) fn diagrams(scene: &mut Scene<'_>) -> Result<Vec<Statement>> {
    let (id, drawing) = (scene.id(), words::blob(scene.rng, 200));
    let Some(diagram) = scene.pick::<String>(DIAGRAM)? else { return Ok(vec![]) };
    Ok(match scene.below(4) {
        0 => {
            let new = format!("{}-n{id}", scene.site);
            vec![
                statement!("INSERT INTO diagram VALUES (?1, ?2, 'untitled', NULL)"; new.clone(), scene.site.clone()),
                statement!("INSERT INTO diagram_revision VALUES (?1, 1, ?2)"; new, drawing),
            ]
        }
        1 => vec![statement!("DELETE FROM diagram WHERE diagram_id = ?1"; diagram)],
        _ => vec![
            statement!("INSERT INTO diagram_revision VALUES (?1, ?2, ?3)"; diagram.clone(), id, drawing),
            statement!("UPDATE diagram SET zoom = ?2 WHERE diagram_id = ?1"; diagram, scene.real()),
        ],
    })
}
