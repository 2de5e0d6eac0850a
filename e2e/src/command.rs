//! Running programs: never longer than a bound, with what they printed.
//!
//! Output goes into unnamed files, not pipes: a program that leaves an agent behind may return while the agent still holds
//! its standard output.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{bail, Context as _, Result};

use crate::wait;

/// How a program ended and what it printed.
#[derive(Debug)]
pub struct Output {
    /// The command line, for messages.
    pub line: String,
    /// Exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// How long it took.
    pub took: Duration,
}

impl Output {
    /// # Errors
    /// It did not end with this exit code.
    pub fn expect_code(self, code: i32) -> Result<Output> {
        if self.code == Some(code) {
            return Ok(self);
        }
        bail!(
            "`{}` ended with {} instead of exit code {code} after {:.1} s: {}",
            self.line,
            self.ending(),
            self.took.as_secs_f64(),
            self.said()
        );
    }

    /// How it ended, in words.
    pub fn ending(&self) -> String {
        match (self.code, self.signal) {
            (Some(code), _) => format!("exit code {code}"),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => "an unknown end".to_owned(),
        }
    }

    /// What it printed, the end of it.
    pub fn said(&self) -> String {
        let text = format!("{} {}", self.stderr.trim(), self.stdout.trim());
        let text = text.trim();
        let start = text.len().saturating_sub(1500);
        let start = (start..=text.len())
            .find(|at| text.is_char_boundary(*at))
            .unwrap_or(0);
        match text.is_empty() {
            true => "(it printed nothing)".to_owned(),
            false => text[start..].to_owned(),
        }
    }

    /// Standard output as JSON.
    ///
    /// # Errors
    /// It is none.
    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_str(&self.stdout)
            .with_context(|| format!("`{}` printed no JSON: {}", self.line, self.said()))
    }
}

/// The command line of a command, for messages.
pub fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
    words.join(" ")
}

/// A program that runs and whose output is kept. Killed when it is dropped, if it has not ended.
#[derive(Debug)]
pub struct Running {
    line: String,
    child: Child,
    stdout: File,
    stderr: File,
    start: Instant,
}

impl Running {
    /// Starts it, without standard input.
    ///
    /// # Errors
    /// It can't be started.
    pub fn start(command: &mut Command) -> Result<Running> {
        let line = line(command);
        let stdout = tempfile::tempfile().context("can't make a temporary file")?;
        let stderr = tempfile::tempfile().context("can't make a temporary file")?;
        let child = command
            .stdin(Stdio::null())
            .stdout(stdout.try_clone()?)
            .stderr(stderr.try_clone()?)
            .spawn()
            .with_context(|| format!("can't start `{line}`"))?;
        Ok(Running {
            line,
            child,
            stdout,
            stderr,
            start: Instant::now(),
        })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended.
    ///
    /// # Errors
    /// The system does not say.
    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Waits for its end; at the bound it is killed and that is an error.
    ///
    /// # Errors
    /// The bound, or an interruption.
    pub fn finish(mut self, bound: Duration) -> Result<Output> {
        let status = wait_for(&mut self.child, &self.line, bound);
        if status.is_err() {
            let _ = self.child.kill();
        }
        let took = self.start.elapsed();
        let read = |file: &mut File| -> Result<String> {
            let mut bytes = Vec::new();
            file.seek(SeekFrom::Start(0))?;
            file.read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        let stdout = read(&mut self.stdout)?;
        let stderr = read(&mut self.stderr)?;
        let status = status.with_context(|| format!("it had printed: {stderr} {stdout}"))?;
        Ok(Output {
            line: self.line.clone(),
            code: status.code(),
            signal: status.signal(),
            stdout,
            stderr,
            took,
        })
    }

    /// Ends it by SIGKILL.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = wait_for(&mut self.child, &self.line, Duration::from_secs(10));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            let _ = self.child.kill();
            // No longer: it may hang in I/O on a device that is still to be removed.
            let _ = wait_for(&mut self.child, &self.line, Duration::from_secs(2));
        }
    }
}

/// Waits until a child ends. It is not killed at the bound.
///
/// # Errors
/// The bound, or an interruption.
pub fn wait_for(child: &mut Child, what: &str, bound: Duration) -> Result<ExitStatus> {
    wait::find(&format!("the end of `{what}`"), bound, || {
        Ok(child.try_wait()?)
    })
}

/// Runs a program to its end.
///
/// # Errors
/// It can't be started, or has not ended at the bound (then it is killed).
pub fn run(command: &mut Command, bound: Duration) -> Result<Output> {
    Running::start(command)?.finish(bound)
}

/// Runs a program that must succeed.
///
/// # Errors
/// As [`run`], and any other exit code than 0.
pub fn ok(command: &mut Command, bound: Duration) -> Result<Output> {
    run(command, bound)?.expect_code(0)
}

/// A command with its arguments.
pub fn cmd<I, S>(program: &str, args: I) -> Command
where
    I: IntoIterator<Item = S>,
    S: AsRef<std::ffi::OsStr>,
{
    let mut command = Command::new(program);
    command.args(args);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND: Duration = Duration::from_secs(20);

    #[test]
    fn codes_and_output_are_told() {
        let output = run(
            &mut cmd("sh", ["-c", "echo out; echo err >&2; exit 3"]),
            BOUND,
        )
        .unwrap();
        assert_eq!((output.code, output.signal), (Some(3), None));
        assert_eq!((output.stdout.trim(), output.stderr.trim()), ("out", "err"));
        assert!(output.expect_code(0).is_err());
    }

    #[test]
    fn what_does_not_end_is_killed() {
        let error = run(&mut cmd("sleep", ["1000"]), Duration::from_millis(50)).unwrap_err();
        assert!(format!("{error:#}").contains("not within"));
    }

    #[test]
    fn a_grandchild_that_keeps_the_output_open_is_not_waited_for() {
        let output = ok(&mut cmd("sh", ["-c", "sleep 2 & echo done"]), BOUND).unwrap();
        assert!(output.took < Duration::from_secs(2));
    }
}
