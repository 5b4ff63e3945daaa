//! Declared commands: those that re-create a rebuilt kind, or check an external one.

use std::time::Duration;

use muster_types::SiteId;

use super::context::StepError;
use super::process::{Ended, Program};
use crate::driver::ErrorClass;

/// Runs a command for a site, with `{site}` replaced in its arguments; the tail of its output. No shell is involved.
pub(super) async fn run(command: &[String], site: &SiteId, limit: Duration) -> Result<String, StepError> {
    let words: Vec<String> = command.iter().map(|word| word.replace("{site}", site.as_str())).collect();
    if words.is_empty() {
        return Err(StepError::permanent(
            "the declared command is empty; correct the topology and plan again",
        ));
    }
    let shown = words.join(" ");
    // Commands act for the operator, with all that the operator's environment has.
    let ended = Program { words: &words, input: Vec::new(), clean_environment: false, limit }.run().await;
    match ended {
        Ok(Ended::Exited(status, output)) if status.success() => Ok(output),
        Ok(Ended::Exited(status, output)) => Err(StepError {
            class: ErrorClass::Transient,
            message: format!("`{shown}` failed ({status}): {output}; run it by hand to see more"),
        }),
        Ok(Ended::TimedOut(_)) => Err(StepError {
            class: ErrorClass::Transient,
            message: format!("`{shown}` was stopped after {} s; see why it hangs", limit.as_secs()),
        }),
        Err(error) => Err(StepError::permanent(format!(
            "`{shown}` cannot be run: {error}; correct the topology's command, or install the program"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split('|').map(str::to_owned).collect()
    }

    #[tokio::test]
    async fn the_bare_site_id_is_an_argument_and_never_code() {
        let site: SiteId = "site:s-1".parse().unwrap();
        let output = run(&words("echo|restored|{site}|$HOME"), &site, Duration::from_secs(20)).await;
        assert_eq!(output.unwrap(), "restored s-1 $HOME");
    }

    #[tokio::test]
    async fn failures_are_told_apart() {
        let site: SiteId = "site:s-1".parse().unwrap();
        let failed =
            run(&words("sh|-c|echo why >&2; exit 3"), &site, Duration::from_secs(20)).await.unwrap_err();
        assert_eq!(failed.class, ErrorClass::Transient);
        assert!(failed.message.contains("why") && failed.message.contains('3'), "{}", failed.message);
        let absent = run(&words("/no/such/program"), &site, Duration::from_secs(20)).await.unwrap_err();
        assert_eq!(absent.class, ErrorClass::Permanent);
        let hung = run(&words("sleep|600"), &site, Duration::from_millis(20)).await.unwrap_err();
        assert_eq!(hung.class, ErrorClass::Transient);
    }
}
