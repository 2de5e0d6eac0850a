//! Runs one scenario for people, or very many.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Mutex;
use std::time::Instant;

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};

use crate::plant::Plant;
use crate::stats::Stats;
use crate::trace::Trace;
use crate::world;
use crate::Violation;

/// Scenarios that a thread takes at a time.
const BATCH: u64 = 64;

/// Runs the scenario of a seed. Answers whether it was clean.
///
/// # Errors
/// If the numbers can't be printed.
pub fn one(seed: u64, plant: Option<Plant>, printed: bool, json: bool) -> anyhow::Result<bool> {
    let trace = if printed {
        Trace::printed()
    } else {
        Trace::silent()
    };
    let outcome = world::run(seed, plant, trace);
    if json {
        println!("{}", serde_json::to_string_pretty(&outcome.stats)?);
    }
    match &outcome.violation {
        None => println!(
            "seed {seed}: clean; {} requests, {} events, trace {:016x}",
            outcome.stats.requests, outcome.stats.events, outcome.hash
        ),
        Some(violation) => println!("seed {seed}: VIOLATION {violation}"),
    }
    Ok(outcome.violation.is_none())
}

/// A run of many scenarios.
#[derive(Clone, Debug)]
pub struct Many {
    /// The first seed.
    pub start: u64,
    /// How many.
    pub count: u64,
    /// On so many threads.
    pub threads: usize,
    /// What is broken on purpose.
    pub plant: Option<Plant>,
    /// Where the next seed and the totals are kept.
    pub resume: Option<PathBuf>,
    /// Violations are printed and do not end the run.
    pub keep_going: bool,
    /// The summary is wanted as JSON.
    pub json: bool,
}

/// What `--resume` keeps.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Kept {
    /// The first seed that has not been run.
    pub next: u64,
    /// Totals of those before.
    pub totals: Stats,
}

/// The first violation of a run, by seed.
#[derive(Clone, Debug)]
pub struct Found {
    /// The seed.
    pub seed: u64,
    /// What.
    pub violation: Violation,
}

#[derive(Serialize)]
struct Summary<'s> {
    first_seed: u64,
    next_seed: u64,
    seconds: f64,
    per_second: f64,
    violation: Option<String>,
    failed_seed: Option<u64>,
    totals: &'s Stats,
}

/// Runs many scenarios and prints a summary. Answers whether all were clean.
///
/// # Errors
/// If the file of `resume` can't be read or written, or the summary not printed.
pub fn many(many: &Many) -> anyhow::Result<bool> {
    let mut kept = match &many.resume {
        Some(path) => load(path, many.start)?,
        None => Kept {
            next: many.start,
            totals: Stats::default(),
        },
    };
    let first = kept.next;
    let bar = ProgressBar::new(many.count);
    bar.set_style(ProgressStyle::with_template(
        "{bar:30} {pos}/{len} scenarios, {per_sec}, {eta} left",
    )?);
    let begun = Instant::now();
    let end = first + many.count;
    let mut found = None;
    // In rounds, so that what is kept never has a gap.
    while kept.next < end && (found.is_none() || many.keep_going) {
        let round = (end - kept.next).min(BATCH * 64 * many.threads as u64);
        let (stats, violation) = round_of(kept.next, round, many, &bar);
        kept.totals.add(&stats);
        found = found.or(violation);
        if found.is_none() || many.keep_going {
            kept.next += round;
            if let Some(path) = &many.resume {
                save(path, &kept)?;
            }
        }
    }
    bar.finish_and_clear();
    report(
        many,
        first,
        &kept,
        found.as_ref(),
        begun.elapsed().as_secs_f64(),
    )?;
    Ok(found.is_none())
}

/// Runs `count` seeds from `start` on. Answers the totals, and the first violation met.
pub fn round_of(start: u64, count: u64, many: &Many, bar: &ProgressBar) -> (Stats, Option<Found>) {
    let next = AtomicU64::new(start);
    let end = start + count;
    let shared: Mutex<(Stats, Option<Found>)> = Mutex::default();
    let stop = AtomicU64::new(u64::MAX);
    std::thread::scope(|scope| {
        for _ in 0..many.threads {
            scope.spawn(|| {
                let mut stats = Stats::default();
                loop {
                    let from = next.fetch_add(BATCH, Ordering::Relaxed);
                    let upto = (from + BATCH).min(end);
                    for seed in from..upto {
                        // A lower seed that fails counts before a higher one.
                        if seed >= stop.load(Ordering::Relaxed) {
                            break;
                        }
                        let outcome = world::run(seed, many.plant, Trace::silent());
                        stats.add(&outcome.stats);
                        if let (Some(violation), true) = (&outcome.violation, many.keep_going) {
                            bar.suspend(|| println!("seed {seed}: VIOLATION {violation}"));
                            let mut shared = shared.lock().unwrap_or_else(|e| e.into_inner());
                            let violation = violation.clone();
                            shared.1.get_or_insert(Found { seed, violation });
                            continue;
                        }
                        if let Some(violation) = outcome.violation {
                            stop.fetch_min(seed, Ordering::Relaxed);
                            let mut shared = shared.lock().unwrap_or_else(|e| e.into_inner());
                            if shared.1.as_ref().is_none_or(|found| found.seed > seed) {
                                shared.1 = Some(Found { seed, violation });
                            }
                            break;
                        }
                    }
                    bar.inc(upto.saturating_sub(from));
                    if upto == end || from >= end || stop.load(Ordering::Relaxed) < u64::MAX {
                        break;
                    }
                }
                shared
                    .lock()
                    .unwrap_or_else(|e| e.into_inner())
                    .0
                    .add(&stats);
            });
        }
    });
    shared.into_inner().unwrap_or_else(|e| e.into_inner())
}

fn report(
    many: &Many,
    first: u64,
    kept: &Kept,
    found: Option<&Found>,
    seconds: f64,
) -> anyhow::Result<()> {
    let run = kept.totals.scenarios;
    let summary = Summary {
        first_seed: first,
        next_seed: kept.next,
        seconds,
        per_second: (kept.next - first) as f64 / seconds.max(1e-9),
        violation: found.map(|found| found.violation.text.clone()),
        failed_seed: found.map(|found| found.seed),
        totals: &kept.totals,
    };
    if many.json {
        println!("{}", serde_json::to_string_pretty(&summary)?);
    } else {
        print_totals(&kept.totals, seconds, summary.per_second);
    }
    if let Some(found) = found {
        eprintln!("seed {}: VIOLATION {}", found.seed, found.violation);
        let plant = many
            .plant
            .map_or_else(String::new, |plant| format!(" --plant {}", plant.name()));
        eprintln!(
            "repeat: cargo run --release -p sim -- --seed {}{plant}",
            found.seed
        );
    } else if !many.json {
        println!("{run} scenarios, all clean; next seed {}", kept.next);
    }
    Ok(())
}

fn print_totals(totals: &Stats, seconds: f64, rate: f64) {
    println!(
        "scenarios        {:>14}   ({rate:.0} a second, {seconds:.1} s)",
        totals.scenarios
    );
    let rows = [
        ("requests", totals.requests),
        ("  succeeded", totals.succeeded),
        ("  at deadline", totals.expired),
        ("  failed", totals.failed),
        ("sectors checked", totals.sectors_checked),
        ("events", totals.events),
        ("reconnects", totals.reconnects),
        ("sessions lost", totals.sessions_lost),
        ("replays", totals.replays),
        ("resends", totals.resends),
        ("aborts", totals.aborts),
        ("adoptions", totals.adoptions),
        ("  orphans", totals.orphans),
        ("bad digests", totals.bad_digests),
        ("sync errors", totals.sync_errors),
        ("holders changed", totals.takeovers),
        ("devices failed", totals.devices_failed),
        ("power cuts", totals.power_cuts),
    ];
    for (name, count) in rows {
        println!("{name:<16} {count:>14}");
    }
    println!(
        "simulated hours  {:>14.1}",
        totals.simulated_seconds / 3600.0
    );
    println!("faults:");
    for (kind, count) in &totals.faults {
        println!("  {kind:<20} {count:>10}");
    }
}

fn load(path: &Path, start: u64) -> anyhow::Result<Kept> {
    if !path.exists() {
        return Ok(Kept {
            next: start,
            totals: Stats::default(),
        });
    }
    let text = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is damaged", path.display()))
}

fn save(path: &Path, kept: &Kept) -> anyhow::Result<()> {
    let new = path.with_extension("new");
    std::fs::write(&new, serde_json::to_vec_pretty(kept)?)
        .and_then(|()| std::fs::rename(&new, path))
        .with_context(|| format!("writing {}", path.display()))
}
