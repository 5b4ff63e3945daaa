//! Everything that a small run can meet, enumerated.

use anyhow::Result;
use muster_sim::every::{self, Ambiguity, Case, Small};

/// Plays all of them; how many there were.
fn all(cases: impl Iterator<Item = Result<Case>>, mut look: impl FnMut(&Case)) -> Result<usize> {
    let mut count = 0;
    for case in cases {
        let case = case?;
        assert!(
            case.verdict.holds(),
            "{}: {:#?}\n{:#?}",
            case.what,
            case.verdict.violations,
            case.verdict.lines
        );
        look(&case);
        count += 1;
    }
    Ok(count)
}

#[test]
fn every_crash_point_of_a_small_run() -> Result<()> {
    for (small, least) in [(Small::OneSite, 60), (Small::TwoSites, 150)] {
        let count = all(every::deaths(small)?, |case| {
            assert_eq!(case.verdict.deaths, 1, "{}", case.what);
        })?;
        assert!(count >= least, "{small:?} has {count} points only");
    }
    Ok(())
}

#[test]
fn every_crash_point_of_every_resume_after_a_crash() -> Result<()> {
    let count = all(every::pairs_of_deaths(Small::OneSite)?, |_| {})?;
    assert!(count > 3_000, "{count}");
    Ok(())
}

#[test]
fn a_takeover_at_every_point() -> Result<()> {
    let mut both = 0;
    for small in [Small::OneSite, Small::TwoSites] {
        all(every::takeovers(small)?, |case| both += u64::from(case.verdict.engines == 2))?;
    }
    assert!(both > 100, "{both} of them had two engines");
    Ok(())
}

#[test]
fn another_run_on_the_same_sites_at_every_moment_and_a_takeover_at_every_point() -> Result<()> {
    for small in [Small::OneSite, Small::TwoSites] {
        all(every::races(small)?, |_| {})?;
    }
    Ok(())
}

#[test]
fn an_ambiguous_answer_at_every_journal_write() -> Result<()> {
    for ambiguity in [Ambiguity::LandedAndFailed, Ambiguity::Lost, Ambiguity::MeetsItself] {
        for small in [Small::OneSite, Small::TwoSites] {
            let count = all(every::ambiguous_writes(small, ambiguity), |case| {
                // No engine fenced itself: the first one came to its end, and no other was needed.
                assert_eq!((case.verdict.engines, case.verdict.ended_well), (1, 1), "{}", case.what);
            })?;
            assert!(count > 5, "{small:?} {ambiguity:?}: {count} writes");
        }
    }
    Ok(())
}
