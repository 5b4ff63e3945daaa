//! Users, groups, memberships, permissions.

use anyhow::Result;

use super::Scene;
use crate::record::{Statement, statement};

const USER: &str = "SELECT user_id FROM user_account WHERE site_id = ?1 ORDER BY username LIMIT 1 OFFSET ?2";
const USERNAME: &str =
    "SELECT username FROM user_account WHERE site_id = ?1 ORDER BY username LIMIT 1 OFFSET ?2";
const GROUP: &str = "SELECT group_id FROM user_group WHERE site_id = ?1 ORDER BY name LIMIT 1 OFFSET ?2";

pub(super) fn identity(scene: &mut Scene<'_>) -> Result<Vec<Statement>> {
    let site = scene.site.clone();
    let (Some(user), Some(group)) = (scene.pick::<i64>(USER)?, scene.pick::<i64>(GROUP)?) else {
        return Ok(vec![]);
    };
    let id = scene.id();
    Ok(match scene.below(12) {
        0..3 => vec![
            statement!("INSERT INTO user_account VALUES (?1, ?2, ?3, 'new@example.com', NULL, true, ?4, ?5)";
                id, site, format!("new.user{id}"), scene.real(), vec![id as u8; 5]),
            statement!("INSERT INTO group_member VALUES (?1, ?2, ?3)"; group, id, id),
        ],
        3..6 => {
            vec![statement!("UPDATE user_account SET last_seen = ?2, active = NOT active WHERE user_id = ?1";
            user, scene.real() * 1e9)]
        }
        6 => vec![
            statement!("UPDATE user_account SET username = ?2 WHERE user_id = ?1"; user, format!("renamed{id}")),
        ],
        // Evicts the account that has the name; its memberships go with it.
        7 => match scene.pick::<String>(USERNAME)? {
            Some(name) => vec![
                statement!("INSERT OR REPLACE INTO user_account VALUES (?1, ?2, ?3, 'again@example.com', 'x', 1, NULL, NULL)",
                    postgres: ["DELETE FROM user_account WHERE site_id = ?2 AND username = ?3",
                    "INSERT INTO user_account VALUES (?1, ?2, ?3, 'again@example.com', 'x', true, NULL, NULL)"];
                    id, site, name),
                statement!("INSERT INTO group_member VALUES (?1, ?2, ?3)"; group, id, 0),
            ],
            None => vec![],
        },
        8 => vec![statement!("DELETE FROM user_account WHERE user_id = ?1"; user)],
        9 => vec![statement!(
            "INSERT INTO permission_grant VALUES (?1, ?2, 'export', 'ada') ON CONFLICT (group_id, permission)
             DO UPDATE SET granted_by = 'boris', grant_id = excluded.grant_id"; id, group)],
        10 => vec![
            statement!("INSERT INTO user_group VALUES (?1, ?2, ?3, '')"; id, site, format!("group-{id}")),
            statement!("UPDATE group_member SET group_id = ?2 WHERE group_id = ?1 AND user_id = ?3"; group, id, user),
        ],
        _ => vec![
            statement!("REPLACE INTO group_member VALUES (?1, ?2, ?3)", postgres: [
                "INSERT INTO group_member VALUES (?1, ?2, ?3)
                 ON CONFLICT (group_id, user_id) DO UPDATE SET since = excluded.since"]; group, user, 5),
            statement!("DELETE FROM permission_grant WHERE group_id = ?1 AND permission = 'export'"; group),
        ],
    })
}
