//! The command line of the simulation.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use sim::plant::Plant;
use sim::runner::{self, Many};

/// Runs simulated scenarios of both DST engines; each is made by its seed alone.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Repeat one scenario and print its trace.
    #[arg(long, conflicts_with_all = ["count", "resume"])]
    seed: Option<u64>,
    /// Do not print the trace of the one scenario.
    #[arg(long, requires = "seed")]
    quiet: bool,
    /// Run so many scenarios.
    #[arg(long)]
    count: Option<u64>,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    start: u64,
    /// Threads; as many as there are processors if not given.
    #[arg(long)]
    threads: Option<usize>,
    /// Go on where this file says, and keep the next seed and the totals in it.
    #[arg(long)]
    resume: Option<PathBuf>,
    /// Do not stop at the first violation: print a line for each.
    #[arg(long, conflicts_with = "resume")]
    keep_going: bool,
    /// Print the summary as JSON.
    #[arg(long)]
    json: bool,
    /// Break something on purpose: the run must find it.
    #[arg(long, value_enum)]
    plant: Option<Plant>,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    if let Some(seed) = arguments.seed {
        let good = runner::one(seed, arguments.plant, !arguments.quiet, arguments.json)?;
        return Ok(code(good));
    }
    let threads = match arguments.threads {
        Some(threads) => threads.max(1),
        None => std::thread::available_parallelism().map_or(1, usize::from),
    };
    let many = Many {
        start: arguments.start,
        count: arguments.count.unwrap_or(10_000),
        threads,
        plant: arguments.plant,
        resume: arguments.resume,
        keep_going: arguments.keep_going,
        json: arguments.json,
    };
    Ok(code(runner::many(&many)?))
}

fn code(good: bool) -> ExitCode {
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
