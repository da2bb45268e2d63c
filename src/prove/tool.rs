//! Programs of the system that a run needs (`mount`, `losetup`, `mkfs.ext4`), run to their end. Does
//! not know what they are for.

use std::ffi::OsStr;
use std::process::{Command, Stdio};

use crate::Outcome;

/// A program and its arguments.
#[derive(Debug)]
pub struct Tool(Command);

/// A program to be run.
pub fn command(program: &str, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Tool {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    Tool(command)
}

impl Tool {
    /// One more argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.0.arg(argument);
        self
    }

    /// Its standard input.
    #[must_use]
    pub fn stdin(mut self, input: Stdio) -> Self {
        self.0.stdin(input);
        self
    }

    /// Runs it; what it printed.
    ///
    /// # Errors
    /// It is missing or fails: its name and what it says.
    pub fn done(mut self) -> Outcome<String> {
        let program = self.0.get_program().to_string_lossy().into_owned();
        let output = self
            .0
            .output()
            .map_err(|error| format!("cannot run {program}: {error}"))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout)
                .trim_end()
                .to_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(format!(
            "{:?}: {}: {}",
            self.0,
            output.status,
            said.trim_end()
        ))
    }
}
