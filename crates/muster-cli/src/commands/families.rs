//! What to say of families whose list and server differ.

use muster_capture::FamilyCoverage;
use muster_types::topology::Topology;

/// Databases most of which nobody needs to see.
const SHOWN_MAX: usize = 20;

/// A line for each database that is not listed, and for each listed one that is not there. Asks the servers.
pub(crate) fn notes(topology: &Topology) -> Vec<String> {
    let found = tokio::task::block_in_place(|| muster_capture::check_families(topology));
    found.iter().flat_map(|coverage| told(topology, coverage)).collect()
}

fn told(topology: &Topology, coverage: &FamilyCoverage) -> Vec<String> {
    let FamilyCoverage { family, uncovered, missing } = coverage;
    let file = topology.families.get(family).and_then(|family| family.sites_file.as_ref());
    let mut lines: Vec<String> = Vec::new();
    for (site, database) in uncovered.iter().take(SHOWN_MAX) {
        let add = match file {
            Some(file) => format!("add the line `{}` to {}", site.as_str(), file.display()),
            None => format!("add \"{}\" to the `sites` of [shards.{family}]", site.as_str()),
        };
        lines.push(format!(
            "database `{database}` is named like those of family `{family}` and is not covered: {add}"
        ));
    }
    lines.extend(more(uncovered.len(), &format!("databases are not covered by family `{family}`")));
    for (site, database) in missing.iter().take(SHOWN_MAX) {
        let site = site.as_str();
        let list = file.map_or_else(|| "`sites`".to_owned(), |file| file.display().to_string());
        lines.push(format!(
            "database `{database}` of family `{family}` is not there: bring it back, or take `{site}` out of {list}"
        ));
    }
    lines.extend(more(missing.len(), &format!("databases of family `{family}` are not there")));
    lines
}

fn more(all: usize, what: &str) -> Option<String> {
    (all > SHOWN_MAX).then(|| format!("… and {} more {what}", all - SHOWN_MAX))
}
