//! What is said while a run goes on: one line that moves on a terminal, a line a second elsewhere.
//! Goes to standard error, so that results can be piped. Does not know what it says.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// How often it is said where lines stay.
const PLAIN_EVERY: Duration = Duration::from_secs(1);

/// Where progress goes.
#[derive(Debug)]
pub enum Live {
    /// Nowhere.
    Quiet,
    /// A terminal.
    Terminal(ProgressBar),
    /// Something that keeps lines.
    Lines {
        /// When something was said last.
        last: Option<Instant>,
    },
}

impl Live {
    /// For standard error as it is.
    #[must_use]
    pub fn new() -> Self {
        if !std::io::stderr().is_terminal() {
            return Live::Lines { last: None };
        }
        let bar = ProgressBar::new_spinner();
        let style = ProgressStyle::with_template("{spinner:.cyan} {wide_msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
        Live::Terminal(bar)
    }

    /// Says how it stands; replaced by what comes next, where that is possible.
    pub fn now(&mut self, text: impl FnOnce() -> String) {
        match self {
            Live::Quiet => {}
            Live::Terminal(bar) => {
                bar.set_message(text());
                bar.tick();
            }
            Live::Lines { last } => {
                if last.is_none_or(|last| last.elapsed() >= PLAIN_EVERY) {
                    *last = Some(Instant::now());
                    eprintln!("  {}", text());
                }
            }
        }
    }

    /// Says something that stays.
    pub fn tell(&mut self, text: &str) {
        match self {
            Live::Quiet => {}
            Live::Terminal(bar) => bar.suspend(|| eprintln!("{text}")),
            Live::Lines { last } => {
                *last = None;
                eprintln!("{text}");
            }
        }
    }

    /// Nothing more is said.
    pub fn end(&mut self) {
        if let Live::Terminal(bar) = self {
            bar.finish_and_clear();
        }
    }
}

impl Default for Live {
    fn default() -> Self {
        Self::new()
    }
}
