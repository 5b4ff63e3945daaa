//! Declared commands: those that re-create a rebuilt kind, or check an external one.

use std::process::Stdio;
use std::time::Duration;

use muster_types::SiteId;
use tokio::process;

use super::context::StepError;
use crate::driver::ErrorClass;

/// So much of a command's output is kept, from its end: what an error message needs.
const OUTPUT_BYTES_MAX: usize = 2048;

/// Runs a command for a site, with `{site}` replaced in its arguments; the tail of its output. No shell is involved.
pub(super) async fn run(command: &[String], site: &SiteId, limit: Duration) -> Result<String, StepError> {
    let words: Vec<String> = command.iter().map(|word| word.replace("{site}", site.as_str())).collect();
    let Some((program, arguments)) = words.split_first() else {
        return Err(StepError::permanent(
            "the declared command is empty; correct the topology and plan again",
        ));
    };
    let shown = words.join(" ");
    let mut child = process::Command::new(program);
    child.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let output = match tokio::time::timeout(limit, child.output()).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) => {
            return Err(StepError::permanent(format!(
                "`{shown}` cannot be run: {error}; correct the topology's command, or install the program"
            )));
        }
        Err(_) => {
            return Err(StepError {
                class: ErrorClass::Transient,
                message: format!("`{shown}` was stopped after {} s; see why it hangs", limit.as_secs()),
            });
        }
    };
    let text = tail(&[output.stdout, output.stderr].concat());
    if output.status.success() {
        return Ok(text);
    }
    Err(StepError {
        class: ErrorClass::Transient,
        message: format!("`{shown}` failed ({}): {text}; run it by hand to see more", output.status),
    })
}

fn tail(output: &[u8]) -> String {
    let start = output.len().saturating_sub(OUTPUT_BYTES_MAX);
    String::from_utf8_lossy(&output[start..]).trim().to_owned()
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
