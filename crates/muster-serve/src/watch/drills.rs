//! Drills that failed, or take longer than they used to.

use std::collections::BTreeMap;

use muster_drill::history::{alarms, past};
use muster_repo::{DrillObjects, RepoError, Repository};
use muster_types::alarm::{AlarmName, Condition};
use muster_types::drill_history::PastDrill;

/// The drills that are known, by key.
#[derive(Debug)]
pub struct DrillsWatch {
    objects: DrillObjects,
    known: BTreeMap<String, PastDrill>,
    factor: f64,
}

impl DrillsWatch {
    /// A figure above `percent_max` of the trailing median is an alarm.
    pub fn new(repository: &Repository, percent_max: u64) -> Self {
        let factor = percent_max as f64 / 100.0;
        Self { objects: DrillObjects::new(repository), known: BTreeMap::new(), factor }
    }

    /// Reads the records that are new, and judges.
    ///
    /// # Errors
    /// What the object store answers; a damaged or newer record.
    pub async fn look(&mut self) -> Result<Vec<Condition>, RepoError> {
        for (key, record) in self.objects.records_beside(&self.known).await? {
            self.known.insert(key, past(&record));
        }
        let drills: Vec<PastDrill> = self.known.values().cloned().collect();
        let mut conditions: BTreeMap<(AlarmName, String), Condition> = BTreeMap::new();
        for alarm in alarms(&drills, self.factor) {
            let name = if alarm.failed { AlarmName::DrillFailed } else { AlarmName::DrillSlower };
            let (subject, since) = (alarm.drill.clone(), alarm.at);
            let way_out = "muster drill history --html FILE shows it beside the others".to_owned();
            let condition = Condition { name, subject, since, text: alarm.text, way_out };
            // Of two figures of one drill the first, recovery time, speaks for both.
            conditions.entry((name, alarm.drill)).or_insert(condition);
        }
        Ok(conditions.into_values().collect())
    }
}
