//! What a small run can meet, enumerated rather than drawn: every point at which an engine can die, every journal write
//! with an ambiguous answer, a takeover at every point.

use std::time::Duration;

use anyhow::Result;

use crate::dice::Dice;
use crate::faults::Faults;
use crate::fleet::{PlanShape, Shape};
use crate::operator::{RunScript, Script};
use crate::scenario::{Scenario, Verdict, play};

/// How one of them went.
#[derive(Clone, Debug)]
pub struct Case {
    /// What was done to the run, in words.
    pub what: String,
    /// How it went.
    pub verdict: Verdict,
}

/// What a conditional write of a journal entry meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ambiguity {
    /// It landed, and 500 was answered.
    LandedAndFailed,
    /// Nothing was written, and no answer came.
    Lost,
    /// It landed late, so that the next try meets it.
    MeetsItself,
}

/// A fault at one write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AtWrite {
    /// Which conditional write of a journal entry, from 1.
    pub(crate) nth: u64,
    pub(crate) ambiguity: Ambiguity,
}

/// Which small run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Small {
    /// One site of two stores in two shards: small enough for pairs of deaths.
    OneSite,
    /// Two sites of three stores, in groups, neighbours digested.
    TwoSites,
}

impl Small {
    fn scenario(self, lives: Vec<Script>) -> Scenario {
        let (shape, plan) = match self {
            Self::OneSite => (
                Shape { victims: 1, kinds: 2, shards: 2, rows: 2 },
                PlanShape { victims: vec![0], slots: (2, 1), together: 1, full: false, drill: false },
            ),
            Self::TwoSites => (
                Shape { victims: 2, kinds: 3, shards: 2, rows: 2 },
                PlanShape { victims: vec![0, 1], slots: (2, 1), together: 2, full: true, drill: false },
            ),
        };
        Scenario {
            seed: 0,
            shape,
            faults: Faults::none(shape.shards),
            plans: vec![plan],
            scripts: vec![RunScript { lives, abandons: false }],
            actors: Vec::new(),
            dice: Dice::new(0),
            mutation: None,
            whole_trace: false,
            at_write: None,
        }
    }

    /// Points that an engine comes by when nothing happens to it.
    ///
    /// # Errors
    /// What keeps the models from being set up.
    pub fn points(self) -> Result<u64> {
        Ok(play(self.scenario(vec![Script::default()]))?.points)
    }
}

fn dying_at(point: u64) -> Script {
    Script { dies_at: Some(point), ..Script::default() }
}

/// An engine dies at every point, and another resumes the run.
///
/// # Errors
/// As [`Small::points`].
pub fn deaths(small: Small) -> Result<impl Iterator<Item = Result<Case>>> {
    Ok((1..=small.points()?).map(move |point| {
        let verdict = play(small.scenario(vec![dying_at(point)]))?;
        Ok(Case { what: format!("{small:?}: dies at point {point}"), verdict })
    }))
}

/// An engine dies at every point, and the one that resumes the run at every point of its own.
///
/// # Errors
/// As [`Small::points`].
pub fn pairs_of_deaths(small: Small) -> Result<impl Iterator<Item = Result<Case>>> {
    let points = small.points()?;
    Ok((1..=points).flat_map(move |first| {
        let mut second = 0;
        let mut is_over = false;
        std::iter::from_fn(move || {
            second += 1;
            if is_over {
                return None;
            }
            let played = play(small.scenario(vec![dying_at(first), dying_at(second)]));
            Some(played.map(|verdict| {
                // The second engine came to its end before that point.
                is_over = verdict.deaths < 2;
                Case { what: format!("{small:?}: dies at points {first} and {second}"), verdict }
            }))
        })
    }))
}

/// A second engine takes the run while the first is at work, at every point of the first.
///
/// # Errors
/// As [`Small::points`].
pub fn takeovers(small: Small) -> Result<impl Iterator<Item = Result<Case>>> {
    Ok((1..=small.points()?).map(move |point| {
        let script = Script { rival_at: Some(point), ..Script::default() };
        let verdict = play(small.scenario(vec![script]))?;
        Ok(Case { what: format!("{small:?}: taken over at point {point}"), verdict })
    }))
}

/// Two runs that want the same sites. The second begins at every moment of the first, which is taken over at the point
/// of the same number.
///
/// # Errors
/// As [`Small::points`].
pub fn races(small: Small) -> Result<impl Iterator<Item = Result<Case>>> {
    Ok((1..=small.points()?).map(move |point| {
        let taken_over = Script { rival_at: Some(point), ..Script::default() };
        let mut scenario = small.scenario(vec![taken_over]);
        scenario.plans.push(scenario.plans[0].clone());
        let pause = Duration::from_millis(point);
        let second = Script { pause, ..Script::default() };
        scenario.scripts.push(RunScript { lives: vec![second], abandons: false });
        Ok(Case { what: format!("{small:?}: another run {point} ms later"), verdict: play(scenario)? })
    }))
}

/// Every journal write has an ambiguous answer.
///
/// # Errors
/// As [`Small::points`].
pub fn ambiguous_writes(small: Small, ambiguity: Ambiguity) -> impl Iterator<Item = Result<Case>> {
    let mut is_over = false;
    (1..).map_while(move |nth| {
        if is_over {
            return None;
        }
        let mut scenario = small.scenario(vec![Script::default()]);
        scenario.at_write = Some(AtWrite { nth, ambiguity });
        let what = format!("{small:?}: journal write {nth} {ambiguity:?}");
        Some(play(scenario).map(|verdict| {
            is_over = verdict.journal_writes < nth;
            Case { what, verdict }
        }))
    })
}
