//! Work that goes on while something else happens: fio, pass after pass, each verified.

use std::ffi::OsString;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::command::cmd;
use crate::fio::{self, Job};
use crate::lab::Lab;

/// Bound on one pass: the longest outage and then some.
const PASS: Duration = Duration::from_secs(600);
/// Sizes of requests, in turn.
const BLOCKS: [u32; 3] = [4096, 16384, 65536];

/// Starts fio for a laboratory from any thread. (The laboratory itself stays with its own.)
pub struct Fio {
    mark: Vec<(OsString, OsString)>,
}

impl Fio {
    /// For this laboratory.
    pub fn of(lab: &Lab) -> Fio {
        let mut command = cmd("true", [""; 0]);
        lab.mark(&mut command);
        let mark = command
            .get_envs()
            .filter_map(|(k, v)| Some((k.to_owned(), v?.to_owned())));
        Fio {
            mark: mark.collect(),
        }
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// It failed, met an error, or did not end.
    pub fn run(&self, mut command: Command) -> Result<Value> {
        command.envs(self.mark.iter().cloned());
        fio::run(&mut command, PASS)
    }
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Passes {
    /// How many were finished.
    pub count: u64,
    /// The last that was written to each target.
    pub written: Vec<Option<Job>>,
}

/// Writes and verifies the targets in turn, each at least once, until all is over.
pub fn write_passes(
    fio: &Fio,
    targets: &[String],
    size: u64,
    seed: u64,
    over: &AtomicBool,
) -> (Passes, Result<()>) {
    let mut passes = Passes {
        count: 0,
        written: vec![None; targets.len()],
    };
    while passes.count < targets.len() as u64 || !over.load(Ordering::Relaxed) {
        let at = (passes.count % targets.len() as u64) as usize;
        let job = Job {
            target: targets[at].clone(),
            size,
            block: BLOCKS[(passes.count % BLOCKS.len() as u64) as usize],
            depth: 16,
            seed: seed + passes.count,
        };
        let result = fio
            .run(job.write_and_verify())
            .with_context(|| format!("fio pass {} on {}", passes.count, job.target));
        if let Err(error) = result {
            return (passes, Err(error));
        }
        passes.written[at] = Some(job);
        passes.count += 1;
    }
    (passes, Ok(()))
}
