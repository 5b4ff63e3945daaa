//! When a job is due: a cron expression in a time zone, with jitter.
//!
//! # Invariants
//! - Pure: the same job and occurrence start at the same moment on every server, so that jitter needs no agreement.
//! - Occurrences ascend strictly, also where clocks go back for the winter: a local time that comes twice is due once or twice
//!   as the expression says, each at a moment of its own.

use std::fmt;

use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::Zoned;
use jiff::tz::TimeZone;
use muster_types::Timestamp;

/// Why a schedule cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    /// No cron expression.
    #[error(
        "`{text}` is not a cron expression: {why}; write it as `MINUTE HOUR DAY MONTH WEEKDAY`, e.g. `30 2 * * *`"
    )]
    Cron {
        /// As given.
        text: String,
        /// What is wrong.
        why: String,
    },
    /// It never comes.
    #[error("`{text}` never comes: no day is like that; mend day and month")]
    Never {
        /// As given.
        text: String,
    },
    /// No time zone.
    #[error("`{zone}` is not a time zone; write it as `UTC` or `Europe/Berlin`")]
    Zone {
        /// As given.
        zone: String,
    },
}

/// When a job is due.
#[derive(Clone)]
pub struct Schedule {
    cron: Cron,
    zone: TimeZone,
    jitter_seconds: u64,
}

impl fmt::Debug for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Schedule({:?} {:?} +{} s)", self.cron.as_str(), self.zone, self.jitter_seconds)
    }
}

impl Schedule {
    /// Reads a cron expression of five fields, or six with seconds first, in a time zone of the IANA database. Each
    /// occurrence starts up to `jitter_seconds` later, by the job's name.
    ///
    /// # Errors
    /// [`ScheduleError`]; `now` is what must have an occurrence behind it.
    pub fn parse(cron: &str, zone: &str, jitter_seconds: u64, now: Timestamp) -> Result<Self, ScheduleError> {
        let parser = CronParser::builder().seconds(Seconds::Optional).year(Year::Disallowed).build();
        let parsed = parser
            .parse(cron)
            .map_err(|error| ScheduleError::Cron { text: cron.to_owned(), why: error.to_string() })?;
        let zone = TimeZone::get(zone).map_err(|_| ScheduleError::Zone { zone: zone.to_owned() })?;
        let schedule = Self { cron: parsed, zone, jitter_seconds };
        match schedule.next_after(now) {
            Some(_) => Ok(schedule),
            None => Err(ScheduleError::Never { text: cron.to_owned() }),
        }
    }

    /// The first occurrence behind a moment; none if there is none within the range of times.
    pub fn next_after(&self, moment: Timestamp) -> Option<Timestamp> {
        let found = self.cron.find_next_occurrence(&self.local(moment)?, false).ok()?;
        let found = Timestamp::from_micros(found.timestamp().as_microsecond());
        (found > moment).then_some(found)
    }

    /// The last occurrence at or before a moment, if there is one.
    pub fn last_at(&self, moment: Timestamp) -> Option<Timestamp> {
        let found = self.cron.find_previous_occurrence(&self.local(moment)?, true).ok()?;
        let found = Timestamp::from_micros(found.timestamp().as_microsecond());
        (found <= moment).then_some(found)
    }

    /// When the occurrence of a job starts.
    pub fn starts_at(&self, job: &str, occurrence: Timestamp) -> Timestamp {
        if self.jitter_seconds == 0 {
            return occurrence;
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update(job.as_bytes()).update(&occurrence.as_micros().to_le_bytes());
        let mut word = [0; 8];
        hasher.finalize_xof().fill(&mut word);
        let micros_max = self.jitter_seconds.saturating_mul(1_000_000).max(1);
        let delay_micros = u64::from_le_bytes(word) % micros_max;
        occurrence.plus_micros(i64::try_from(delay_micros).unwrap_or(i64::MAX))
    }

    fn local(&self, moment: Timestamp) -> Option<Zoned> {
        let moment = jiff::Timestamp::from_microsecond(moment.as_micros()).ok()?;
        Some(moment.to_zoned(self.zone.clone()))
    }
}
