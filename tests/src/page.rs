//! Pages of the documentation whose commands are run as they stand.

use std::process::Command;

use crate::binary::muster;
use crate::world::World;

/// A page.
#[derive(Clone, Copy, Debug)]
pub struct Page(pub &'static str);

impl Page {
    /// The contents of all its fenced blocks of one language, in order.
    pub fn blocks(self, language: &str) -> Vec<&'static str> {
        let fence = format!("```{language}\n");
        let begun = self.0.split(fence.as_str()).skip(1);
        begun.map(|rest| rest.split("```").next().unwrap_or_default()).collect()
    }

    /// Runs its `sh` blocks one after the other in the world's folder, as a responder does who ends at the first error.
    /// What each said, in order.
    #[track_caller]
    pub fn run(self, world: &World, variables: &[(&str, &str)]) -> Vec<String> {
        let folder = muster().parent().expect("it lies in a folder").display().to_string();
        let path = format!("{folder}:{}", std::env::var("PATH").unwrap_or_default());
        let blocks = self.blocks("sh");
        assert!(!blocks.is_empty(), "the page has no commands");
        let run = |block: &&str| {
            let mut command = Command::new("bash");
            command.args(["-eu", "-o", "pipefail", "-c", block]);
            world.prepare(&mut command);
            let output = command.env("PATH", &path).envs(variables.iter().copied()).output();
            let output = output.expect("bash is installed");
            let said =
                [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
            let said = said.concat();
            assert!(output.status.success(), "{}:\n{block}\n{said}", output.status);
            said
        };
        blocks.iter().map(run).collect()
    }
}
