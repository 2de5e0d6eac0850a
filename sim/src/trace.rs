//! What happened, for a person and for comparing runs: a line per event where wanted, and always a hash of all of them.

use std::fmt::{Arguments, Write as _};

/// Where the lines of a scenario go.
#[derive(Debug, Default)]
pub struct Trace {
    /// Lines are wanted.
    pub on: bool,
    /// Lines go to standard output as they come, not only into memory.
    pub live: bool,
    text: String,
    hash: u64,
}

impl Trace {
    /// Without lines.
    pub fn silent() -> Trace {
        Trace::default()
    }

    /// With lines kept for [`Trace::text`].
    pub fn kept() -> Trace {
        Trace {
            on: true,
            ..Trace::default()
        }
    }

    /// With lines printed.
    pub fn printed() -> Trace {
        Trace {
            on: true,
            live: true,
            ..Trace::default()
        }
    }

    /// Adds to the hash what must be the same in every run of the seed.
    pub fn mix(&mut self, value: u64) {
        self.hash = (self.hash.rotate_left(5) ^ value).wrapping_mul(0x517c_c1b7_2722_0a95);
    }

    /// The hash so far.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Adds a line.
    pub fn line(&mut self, now: u64, what: Arguments<'_>) {
        if self.live {
            println!("{:>12.6} {what}", now as f64 / 1e9);
        } else {
            // Writing to a string doesn't fail.
            let _ = writeln!(self.text, "{:>12.6} {what}", now as f64 / 1e9);
        }
    }

    /// The lines kept.
    pub fn text(&self) -> &str {
        &self.text
    }
}

/// Adds a line to the trace of a context, at no cost where none is wanted.
#[macro_export]
macro_rules! trace {
    ($ctx:expr, $($what:tt)*) => {
        if $ctx.trace.on {
            let now = $ctx.queue.now();
            $ctx.trace.line(now, format_args!($($what)*));
        }
    };
}
