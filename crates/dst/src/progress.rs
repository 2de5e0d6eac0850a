//! Showing that something goes on: a spinner on a terminal, plain lines elsewhere, nothing with `--json`.

use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::render;

/// How a command shows what it is doing.
pub struct Progress {
    spinner: Option<ProgressBar>,
    silent: bool,
}

impl Progress {
    /// Shows nothing if `silent`.
    #[must_use]
    pub fn new(silent: bool) -> Self {
        let tty = std::io::stdout().is_terminal() && std::io::stderr().is_terminal();
        let spinner = (tty && !silent).then(|| {
            let spinner = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}  {elapsed}") {
                spinner.set_style(style);
            }
            spinner.enable_steady_tick(Duration::from_millis(100));
            spinner
        });
        Self { spinner, silent }
    }

    /// What goes on now; seen on a terminal only.
    pub fn doing(&self, text: impl Into<String>) {
        if let Some(spinner) = &self.spinner {
            spinner.set_message(text.into());
        }
    }

    /// A line that stays. A reader that is gone misses it.
    pub fn line(&self, text: &str) {
        match &self.spinner {
            Some(spinner) => spinner.suspend(|| {
                let _ = render::line(text);
            }),
            None if self.silent => {}
            None => {
                let _ = render::line(text);
            }
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(spinner) = &self.spinner {
            spinner.finish_and_clear();
        }
    }
}
