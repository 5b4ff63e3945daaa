//! The drill file.

use std::path::Path;

use muster_types::drill::{DrillClass, DrillSpec};
use muster_types::format;
use muster_types::incident::Incident;

use crate::error::DrillError;

/// Reads a drill file, and checks what it says of itself.
///
/// # Errors
/// [`DrillError::Input`], naming the file.
pub fn read(path: &Path) -> Result<DrillSpec, DrillError> {
    let name = path.display();
    let text = std::fs::read_to_string(path)
        .map_err(|error| DrillError::Input(format!("failed to read the drill file `{name}`: {error}")))?;
    let spec: DrillSpec = toml::from_str(&text).map_err(|error| {
        DrillError::Input(format!("`{name}` is not a drill file: {error}; config/drills has examples"))
    })?;
    format::accept(&name.to_string(), spec.format).map_err(|error| DrillError::Input(error.to_string()))?;
    let wrong = |what: &str| Err(DrillError::Input(format!("`{name}`: {what}")));
    let one = matches!(spec.class, DrillClass::OneStore | DrillClass::OneSite);
    match &spec {
        _ if spec.sites == 0 => wrong("`sites` is 0; name at least one, or leave it out"),
        _ if spec.window_seconds == 0 => {
            wrong("`window_seconds` is 0; write how far back every moment is promised")
        }
        _ if spec.settle_seconds >= spec.window_seconds => {
            wrong("`settle_seconds` is not below `window_seconds`: no moment is left")
        }
        _ if one && spec.sites > 1 => {
            wrong("its class is of one site; leave `sites` out, or write `many-sites`")
        }
        _ if spec.incident.is_some() && spec.at.is_some() => {
            wrong("an incident has its own moments; leave `at` or `incident` out")
        }
        _ => Ok(spec),
    }
}

/// Reads the incident that a drill replays.
///
/// # Errors
/// [`DrillError::Input`], naming the file.
pub fn incident(spec: &DrillSpec, drill_file: &Path) -> Result<Option<Incident>, DrillError> {
    let Some(name) = &spec.incident else { return Ok(None) };
    let path = drill_file.parent().unwrap_or(Path::new(".")).join(name);
    let wrong = |what: String| DrillError::Input(format!("the incident `{}`: {what}", path.display()));
    let text = std::fs::read_to_string(&path).map_err(|error| wrong(error.to_string()))?;
    let incident: Incident = toml::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    format::accept(&path.display().to_string(), incident.format).map_err(|error| wrong(error.to_string()))?;
    if incident.sites.is_empty() {
        return Err(wrong("it names no site".to_owned()));
    }
    Ok(Some(incident))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed test may say so by a panic")]

    use super::*;

    #[test]
    fn the_examples_are_drill_files() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../config/drills");
        let files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(files.len() >= 3, "{files:?}");
        for file in files {
            let spec = read(&file).unwrap();
            assert!(file.file_stem().unwrap().to_string_lossy() == spec.name, "{}", file.display());
        }
    }
}
