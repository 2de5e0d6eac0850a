//! Running fio and reading what it found.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{bail, Context as _, Result};
use serde_json::Value;

use crate::command::{self, Output};

/// A job that writes a file or device at random places and verifies every block, as often as told.
#[derive(Clone, Debug)]
pub struct Job {
    /// The file or device.
    pub target: String,
    /// Bytes written.
    pub size: u64,
    /// Bytes of a request.
    pub block: u32,
    /// Requests in flight.
    pub depth: u16,
    /// What data and places come from.
    pub seed: u64,
}

impl Job {
    fn command(&self) -> Command {
        let mut command = command::cmd("fio", ["--name=e2e", "--output-format=json"]);
        command
            .arg(format!("--filename={}", self.target))
            .arg(format!("--size={}", self.size))
            .arg(format!("--bs={}", self.block))
            .arg(format!("--iodepth={}", self.depth))
            .arg(format!("--randseed={}", self.seed))
            .args(["--rw=randwrite", "--direct=1", "--ioengine=libaio"])
            // Fails at the first wrong block. A seed of its own in each block finds stale ones, too.
            .args(["--verify=crc32c", "--verify_fatal=1", "--randrepeat=1"])
            .arg("--verify_state_save=0")
            .args(["--fallocate=none", "--group_reporting=1"]);
        command
    }

    /// Writes, then verifies.
    pub fn write_and_verify(&self) -> Command {
        let mut command = self.command();
        command.args(["--do_verify=1", "--end_fsync=1"]);
        command
    }

    /// Verifies what an earlier run with the same seed wrote.
    pub fn verify_only(&self) -> Command {
        let mut command = self.command();
        command.arg("--verify_only=1");
        command
    }
}

/// What fio says in its JSON.
///
/// # Errors
/// It failed, or met an error that it did not fail for.
pub fn check(output: Output) -> Result<Value> {
    let output = output.expect_code(0)?;
    // Messages may stand before the JSON.
    let start = output.stdout.find('{').context("fio printed no JSON")?;
    let json: Value = serde_json::from_str(&output.stdout[start..]).context("fio's JSON")?;
    let jobs = json["jobs"].as_array().context("no jobs in fio's JSON")?;
    for job in jobs {
        if job["error"] != 0 {
            bail!("fio met error {}", job["error"]);
        }
    }
    Ok(jobs.first().cloned().unwrap_or_default())
}

/// Runs fio to its end.
///
/// # Errors
/// It failed or did not end.
pub fn run(command: &mut Command, bound: Duration) -> Result<Value> {
    check(command::run(command, bound)?)
}

/// Whether a path can be given to fio, for which a colon ends a file name.
pub fn target(path: &Path) -> String {
    path.display().to_string().replace(':', "\\:")
}

/// One figure of a job: for example `("read", "iops")`.
pub fn figure(job: &Value, direction: &str, name: &str) -> f64 {
    job[direction][name].as_f64().unwrap_or(0.0)
}
