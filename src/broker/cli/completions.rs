//! `ringpost completions`: what a shell needs to complete our arguments.

use clap_complete::Shell;

use super::Failure;

const EXAMPLES: &str = "\
Examples:
  ringpost completions bash > /etc/bash_completion.d/ringpost
  ringpost completions zsh > \"${fpath[1]}/_ringpost\"
  ringpost completions fish > ~/.config/fish/completions/ringpost.fish";

/// Print completions for a shell
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Runs the command.
pub fn run(args: Args) -> Result<(), Failure> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut super::command(), "ringpost", &mut text);
    super::output::write_all(&text)
}
