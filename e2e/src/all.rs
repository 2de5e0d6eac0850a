//! Every campaign, one after another, each in a process of its own: one that hangs or dies does not take the others along.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};
use rustix::process::{kill_process, Pid, Signal};

use crate::campaigns;
use crate::interrupt;
use crate::lab::{Form, Plan};
use crate::report::Outcome;
use crate::results::Results;
use crate::wait;

/// Time that a campaign gets on top of its own bound, which it keeps by itself.
const BOUND: std::time::Duration = std::time::Duration::from_secs(2 * 3600);

/// Runs them; true if all have passed.
///
/// # Errors
/// A campaign can't be started, results can't be kept.
pub fn run(plan: &Plan, keep: Option<&Path>, json: bool) -> Result<bool> {
    let mut results = Results::load(keep)?;
    for campaign in campaigns::ALL {
        if !plan.wants(campaign.name) {
            continue;
        }
        if results.has_passed(campaign.name, plan) {
            eprintln!("{} has passed already for this commit", campaign.name);
            continue;
        }
        let outcome = run_one(campaign.name, plan)?;
        if interrupt::asked() {
            return Ok(false);
        }
        results.add(outcome)?;
    }
    if json {
        println!("{}", results.to_json()?);
    } else {
        for line in results.lines() {
            println!("{line}");
        }
    }
    Ok(results.all_passed())
}

fn run_one(name: &str, plan: &Plan) -> Result<Outcome> {
    let own = std::env::current_exe().context("can't find this program")?;
    let mut command = Command::new(own);
    command
        .args([name, "--json", "--seed", &plan.seed.to_string(), "--dst"])
        .arg(&plan.dst);
    match plan.form {
        Form::Full => {}
        Form::Short => drop(command.arg("--short")),
        Form::Quick => drop(command.arg("--quick")),
    }
    if let Some(front_end) = plan.front_end.name() {
        command.args(["--front-end", front_end]);
    }
    command.args(["--patience", &wait::patience().to_string()]);
    if plan.keep {
        command.arg("--keep");
    }
    // A file, since a pipe could be held open by something that the campaign has left behind.
    let output = tempfile::NamedTempFile::new()?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(output.reopen()?)
        .spawn()
        .with_context(|| format!("can't start {name}"))?;
    let pid = Pid::from_child(&child);
    let ended = wait::find(name, BOUND, || Ok(child.try_wait()?));
    if ended.is_err() {
        // Interrupted, or far beyond its bound: it cleans up by itself.
        let _ = kill_process(pid, Signal::TERM);
        let _ = child.wait();
    }
    let text = std::fs::read_to_string(output.path())?;
    let outcome = serde_json::from_str(&text).ok();
    Ok(outcome.unwrap_or_else(|| {
        let mut report = crate::report::Report::new(name, plan);
        let said = text.trim();
        let error =
            anyhow::anyhow!("the campaign's process ended without a result ({ended:?}) {said}");
        report.note(name, Err(error), std::time::Duration::ZERO);
        report.finish()
    }))
}
