//! The campaigns: their names, bounds and what runs them.

mod autoconf;
mod autoconf_image;
mod bench_peers;
mod content;
mod deadline;
mod faults;
mod hostile;
mod hostile_fake;
mod hostile_frames;
mod hostile_peers;
mod hostile_replay;
mod hostile_server;
mod hostile_session;
mod lifecycle;
mod lifecycle_refusals;
mod memory;
mod plug;
mod powercut;
mod transports;
mod transports_net;
mod writer;

use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use anyhow::{anyhow, Result};

use crate::interrupt;
use crate::lab::{Lab, Plan};
use crate::report::{Outcome, Report};
use crate::wait;

/// One campaign.
#[derive(Clone, Copy)]
pub struct Campaign {
    /// As on the command line.
    pub name: &'static str,
    /// Seconds that the short form may take.
    short_bound: u64,
    /// Seconds that the full form may take.
    full_bound: u64,
    run: fn(&Lab, &mut Report) -> Result<()>,
}

const fn campaign(
    name: &'static str,
    short_bound: u64,
    full_bound: u64,
    run: fn(&Lab, &mut Report) -> Result<()>,
) -> Campaign {
    Campaign {
        name,
        short_bound,
        full_bound,
        run,
    }
}

/// See [`plug`].
pub const PLUG: Campaign = campaign("plug", 300, 3600, plug::run);
/// See [`powercut`].
pub const POWERCUT: Campaign = campaign("powercut", 240, 3600, powercut::run);
/// See [`deadline`].
pub const DEADLINE: Campaign = campaign("deadline", 180, 600, deadline::run);
/// See [`memory`].
pub const MEMORY: Campaign = campaign("memory", 240, 1200, memory::run);
/// See [`autoconf`].
pub const AUTOCONF: Campaign = campaign("autoconf", 240, 600, autoconf::run);
/// See [`hostile`].
pub const HOSTILE: Campaign = campaign("hostile", 240, 1200, hostile::run);
/// See [`lifecycle`].
pub const LIFECYCLE: Campaign = campaign("lifecycle", 240, 900, lifecycle::run);
/// See [`transports`].
pub const TRANSPORTS: Campaign = campaign("transports", 240, 900, transports::run);
/// See [`bench_peers`].
pub const BENCH_PEERS: Campaign = campaign("bench-peers", 300, 1200, bench_peers::run);

/// What `all` runs, the quick ones first.
pub const ALL: [Campaign; 8] = [
    LIFECYCLE, AUTOCONF, DEADLINE, TRANSPORTS, HOSTILE, MEMORY, POWERCUT, PLUG,
];

/// Runs one campaign in a laboratory of its own.
///
/// # Errors
/// There can't be one: not root, no binary.
pub fn run(campaign: &Campaign, plan: &Plan) -> Result<Outcome> {
    let lab = Lab::new(plan)?;
    let mut report = Report::new(campaign.name, plan);
    let form = plan.form.name();
    eprintln!(
        "{} ({form}), seed {}, {}",
        campaign.name,
        plan.seed,
        lab.root().display()
    );
    let seconds = plan.pick(campaign.full_bound, campaign.short_bound);
    interrupt::set_bound(campaign.name, wait::patient(Duration::from_secs(seconds)));
    let start = Instant::now();
    let result = std::panic::catch_unwind(AssertUnwindSafe(|| (campaign.run)(&lab, &mut report)));
    let result = result.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| Some((*panic.downcast_ref::<&str>()?).to_owned()));
        Err(anyhow!("panic: {}", text.unwrap_or_default()))
    });
    if let Err(error) = result {
        report.note(campaign.name, Err(error), start.elapsed());
    }
    if report.is_empty() && !interrupt::asked() {
        let nothing = Err(anyhow!("no case has been run: does --only name one?"));
        report.note(campaign.name, nothing, start.elapsed());
    }
    if report.has_failures() {
        lab.save_logs();
    }
    if interrupt::asked() {
        drop(lab);
    } else {
        report.case("nothing is left behind", |_| lab.finish());
    }
    interrupt::clear_bound();
    Ok(report.finish())
}
