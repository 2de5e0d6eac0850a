//! `dst detach`: asks the agent of a device to remove it and to end; cleans up after a dead one; and with `--force` ends one
//! that does not answer, be it stopped or stuck in the kernel waiting for its own device.
//!
//! Nothing here waits for ever for an agent that says nothing. One that answers is waited for as long as it takes, since it
//! may be the server that it waits for.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use rustix::process::{PidfdFlags, Signal};
use serde_json::json;

use crate::cli::Detach;
use crate::control::{Agent, DeviceReport, Reply, Request};
use crate::exit::{Code, Failure, Outcome};
use crate::leftovers::{self, Fate};
use crate::render;
use crate::runtime_dir::{DeviceDir, Life};
use crate::signals::Signals;

/// `--force` is done after this time. The agent needs most of it at the very worst, ending one that does not answer the
/// rest.
const FORCED: Duration = Duration::from_secs(4);

/// After this time without an answer the user is told what is waited for.
const QUIET: Duration = Duration::from_secs(2);

/// An agent that answers no question for so long, without `--force`, has to be ended by force.
const SILENT: Duration = Duration::from_secs(10);

/// An agent answers a question within this time unless it hangs: it waits for nothing itself.
const PROMPT: Duration = Duration::from_secs(1);

/// How long a device may be in use before that is an answer.
const BUSY: Duration = Duration::from_millis(800);

/// How long the kernel may take to clear a process away.
const DYING: Duration = Duration::from_millis(300);

/// How long an agent may take to die that is killed.
const KILLED: Duration = Duration::from_millis(1500);

/// Runs it.
///
/// # Errors
/// The first device that could not be detached; the others have been tried too.
pub fn run(options: &Detach, json: bool) -> Outcome {
    let signals = Signals::install().map_err(Failure::io("can't take signals"))?;
    let mut first_failure = None;
    let mut results = Vec::new();
    for device in &options.devices {
        match detach_patiently(device, options.force, &signals) {
            Ok(gone) => {
                let Gone { text, lost } = gone;
                let asked_for = !lost || options.force;
                if json {
                    results.push(json!({ "device": device, "message": text, "lost": lost }));
                } else if asked_for {
                    render::line(&text)?;
                } else if options.devices.len() > 1 {
                    render::note(&format!("dst: {text}"));
                }
                if !asked_for {
                    let summary = match options.devices.len() {
                        1 => text,
                        _ => "not all data of every device is safe".to_owned(),
                    };
                    first_failure.get_or_insert(Failure::new(Code::Io, summary));
                }
            }
            Err(failure) if options.devices.len() == 1 => return Err(failure),
            Err(failure) => {
                if !json {
                    render::note(&format!("dst: {device}: {failure}"));
                }
                results.push(json!({ "device": device, "error": failure }));
                let summary = Failure::new(failure.code, "not every device could be detached");
                first_failure.get_or_insert(summary);
            }
        }
    }
    if json {
        render::json(&json!({ "detached": results }))?;
    }
    first_failure.map_or(Ok(()), Err)
}

/// A device that is detached.
struct Gone {
    /// What there is to say.
    text: String,
    /// Data of it is lost, or nobody can know.
    lost: bool,
}

impl Gone {
    fn safe(text: String) -> Self {
        Self { text, lost: false }
    }
}

/// Detaches one device. Where it is in use, some more tries are made: whoever has just unmounted it is often followed by a
/// system service that has a look at it.
fn detach_patiently(device: &str, force: bool, signals: &Signals) -> Outcome<Gone> {
    let until = Instant::now() + BUSY;
    loop {
        match detach(device, force, signals) {
            Err(failure)
                if failure.code == Code::InUse
                    && signals.count() == 0
                    && Instant::now() < until =>
            {
                std::thread::sleep(Duration::from_millis(100));
            }
            done => return done,
        }
    }
}

/// Detaches one device; returns what there is to say.
fn detach(device: &str, force: bool, signals: &Signals) -> Outcome<Gone> {
    let (dir, life) = DeviceDir::find(device)?;
    if life != Life::Alive {
        return clean_up(&dir, force, signals);
    }
    let name = dir.name();
    if force && hangs(&dir) {
        return end_agent(&dir, None, signals);
    }
    let agent = match ask(&dir, force) {
        Ok(agent) => agent,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Err(not_permitted(name));
        }
        Err(error) => {
            return match settled(&dir) {
                // It has ended this moment.
                Life::Absent => Ok(Gone::safe(format!("{name} is detached"))),
                Life::Dead => clean_up(&dir, force, signals),
                Life::Alive if force => end_agent(&dir, None, signals),
                Life::Alive => Err(not_responding(name, &error)),
            };
        }
    };
    let pid = agent.pid().ok();
    // Opened while the agent is known to live, so that it can't be mistaken for another process later.
    let process = pid
        .and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok())
        .filter(|_| pid.is_some_and(|pid| dir.is_agent(pid)));
    match wait_for_answer(agent, force, &dir, signals) {
        Ok(Reply::Detached { lost }) => {
            if let Some(process) = &process {
                let _ = wait_for_end(process, Duration::from_secs(2));
            }
            let text = match &lost {
                None => format!("{name} is detached"),
                // As was asked for.
                Some(lost) if force => format!("{name} is detached; {lost}"),
                Some(lost) => {
                    format!("{name} is detached, but not all of its data is safe: {lost}")
                }
            };
            let lost = lost.is_some();
            Ok(Gone { text, lost })
        }
        Ok(Reply::Refused(failure)) => Err(failure),
        Ok(Reply::Status(_) | Reply::Resized { .. } | Reply::HandedOver) => {
            Err(not_responding(name, &io::ErrorKind::InvalidData.into()))
        }
        Err(Waited::Interrupted) => Err(Failure::interrupted()),
        Err(Waited::Failed(error)) => {
            let ended = process
                .as_ref()
                .is_some_and(|process| wait_for_end(process, Duration::ZERO));
            match settled(&dir) {
                Life::Absent => Ok(Gone::safe(format!("{name} is detached"))),
                Life::Dead => clean_up(&dir, force, signals),
                Life::Alive if force && !ended => end_agent(&dir, process, signals),
                Life::Alive => Err(not_responding(name, &error)),
            }
        }
    }
}

/// Whether the agent takes questions and does not answer them. One that can't even be asked is for [`ask`] to find.
fn hangs(dir: &DeviceDir) -> bool {
    let answer = Agent::status(&dir.control(), PROMPT);
    answer.is_err_and(|error| {
        // What a read gives whose time is up depends on the system.
        let kind = error.kind();
        kind == io::ErrorKind::WouldBlock || kind == io::ErrorKind::TimedOut
    })
}

fn ask(dir: &DeviceDir, force: bool) -> io::Result<Agent> {
    let mut agent = Agent::connect(&dir.control())?;
    agent.send(Request::Detach { force })?;
    Ok(agent)
}

/// Why there is no answer.
enum Waited {
    Interrupted,
    Failed(io::Error),
}

/// Waits for the answer: as long as the agent answers questions, or for [`FORCED`].
fn wait_for_answer(
    mut agent: Agent,
    force: bool,
    dir: &DeviceDir,
    signals: &Signals,
) -> Result<Reply, Waited> {
    let start = Instant::now();
    let mut heard = start;
    let mut told = false;
    loop {
        let until = match force {
            true => start + FORCED,
            false => Instant::now() + QUIET,
        };
        let ready = signals
            .wait_readable(agent.stream().as_fd(), Some(until), 0)
            .map_err(Waited::Failed)?;
        if ready {
            return agent.receive(Some(PROMPT)).map_err(Waited::Failed);
        }
        if signals.count() > 0 {
            return Err(Waited::Interrupted);
        }
        if force {
            return Err(Waited::Failed(io::ErrorKind::TimedOut.into()));
        }
        match Agent::status(&dir.control(), PROMPT) {
            Ok(report) => {
                heard = Instant::now();
                if !told {
                    told = true;
                    say_what_is_waited_for(&report);
                }
            }
            Err(_) if heard.elapsed() < SILENT => {}
            Err(_) => return Err(Waited::Failed(io::ErrorKind::TimedOut.into())),
        }
    }
}

fn say_what_is_waited_for(report: &DeviceReport) {
    let why = report
        .message
        .as_ref()
        .map_or_else(String::new, |text| format!(" ({text})"));
    render::note(&format!(
        "waiting until everything is safe on the server; requests not answered yet: {}{why}; \
         Ctrl-C stops waiting, not the detach",
        report.in_flight + report.queued
    ));
}

/// How a device is whose agent does not talk: one that is dying lets its socket go a moment before its lock.
fn settled(dir: &DeviceDir) -> Life {
    let until = Instant::now() + DYING;
    loop {
        let life = dir.life();
        if life != Life::Alive || Instant::now() >= until {
            return life;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Ends an agent that does not answer, and removes what it leaves. `process` is the agent if that is known already.
///
/// Its device is cut off first: an agent that waits in the kernel for its own device is not killed otherwise, and whoever
/// waits for an answer of it gets an error now.
fn end_agent(dir: &DeviceDir, process: Option<OwnedFd>, signals: &Signals) -> Outcome<Gone> {
    let name = dir.name();
    let process = match process {
        Some(process) => Some(process),
        None => agent_of(dir)?,
    };
    let cut_off = dst_blockdev::abort(name);
    if let Some(process) = process {
        match rustix::process::pidfd_send_signal(&process, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(rustix::io::Errno::PERM) => return Err(not_permitted(name)),
            Err(errno) => return Err(Failure::io(format!("can't end the agent of {name}"))(errno)),
        }
        if !wait_for_end(&process, KILLED) {
            let state = match cut_off {
                Ok(true) => "every request of its device fails now".to_owned(),
                Ok(false) => "the requests of its device fail when it has ended".to_owned(),
                Err(error) => error.to_string(),
            };
            return Err(Failure::new(
                Code::NotResponding,
                format!(
                    "the agent of {name} has been killed, but the kernel does not let it end yet; {state}"
                ),
            )
            .hint("detach it again to remove what it leaves"));
        }
    }
    let gone = clean_up(dir, true, signals)?;
    Ok(Gone {
        text: format!(
            "the agent of {name} did not answer and was killed\n{}",
            gone.text
        ),
        ..gone
    })
}

/// The agent's process; none if there is none any more. Looked at after it is held, so that a number that has passed on to
/// another process meanwhile is not taken for it.
///
/// # Errors
/// A process holds the device that has not written down that it is its agent: nobody to be killed.
fn agent_of(dir: &DeviceDir) -> Outcome<Option<OwnedFd>> {
    let Some(pid) = dir.agent_pid() else {
        return Ok(None);
    };
    let Ok(process) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else {
        return Ok(None);
    };
    if dir.agent_pid() == Some(pid) && dir.is_agent(pid) {
        return Ok(Some(process));
    }
    Err(Failure::new(
        Code::NotResponding,
        format!(
            "process {} has the device {}, and is not the one that wrote down that it is its agent: it is not killed",
            pid.as_raw_nonzero(),
            dir.name()
        ),
    )
    .hint("see what it is, and try again when it has ended"))
}

/// Whether the process has ended in time.
pub fn wait_for_end(process: &OwnedFd, time: Duration) -> bool {
    let mut fds = [rustix::event::PollFd::new(
        process,
        rustix::event::PollFlags::IN,
    )];
    let time = rustix::event::Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(time.subsec_nanos()),
    };
    matches!(rustix::event::poll(&mut fds, Some(&time)), Ok(1))
}

/// Removes what a dead agent has left, a device that waits for recovery too unless it is in use; unless `force`d, after what
/// it had acknowledged is safe. Whoever waits for its device does not wait for that.
fn clean_up(dir: &DeviceDir, force: bool, signals: &Signals) -> Outcome<Gone> {
    let name = dir.name();
    let lock = dir
        .lock()
        .map_err(Failure::io(format!("can't lock the directory of {name}")))?
        .ok_or_else(|| not_responding(name, &io::ErrorKind::ResourceBusy.into()))?;
    let waits = dst_blockdev::recoverable(name);
    if waits && !force {
        if let Some(who) = dst_blockdev::user_of_recoverable(name)? {
            return Err(Failure::new(
                Code::InUse,
                format!("{name} is {who}; its agent is dead, and it waits for recovery"),
            )
            .hint(format!(
                "`dst attach --recover {name}` goes on with it; `dst detach --force {name}` fails all of its I/O"
            )));
        }
    }
    // A device that waits can be recovered until everything is safe; one that is broken is better gone.
    let mut removed = match waits && !force {
        true => Vec::new(),
        false => dir.clean_up_front_end(&lock)?,
    };
    let fate = if force {
        Fate::Lost("writes that were not flushed may be lost".to_owned())
    } else {
        leftovers::settle(dir, &lock, signals)
            .map_err(|failure| after_removing(failure, &removed))?
    };
    removed.extend(dir.clean_up_after_death(&lock)?);
    dir.remove(lock);
    let mut text = match &fate {
        Fate::Nothing => format!("{name} is detached; its agent had died"),
        Fate::Safe(what) => format!("{name} is detached; its agent had died, and {what}"),
        Fate::Lost(what) => format!("{name} is detached; its agent had died: {what}"),
    };
    for thing in removed {
        text.push_str("\nremoved: ");
        text.push_str(&thing);
    }
    let lost = matches!(fate, Fate::Lost(_));
    Ok(Gone { text, lost })
}

/// The failure, and what is gone all the same.
fn after_removing(failure: Failure, removed: &[String]) -> Failure {
    if removed.is_empty() {
        return failure;
    }
    Failure {
        message: format!(
            "{}\nremoved all the same: {}",
            failure.message,
            removed.join(", ")
        ),
        ..failure
    }
}

fn not_permitted(name: &str) -> Failure {
    Failure::new(
        Code::Permission,
        format!("the device {name} is another user's"),
    )
    .hint("only root and the user who attached it may detach it")
}

fn not_responding(name: &str, error: &io::Error) -> Failure {
    Failure::new(
        Code::NotResponding,
        format!("the agent of {name} does not answer: {error}"),
    )
    .hint(format!(
        "`dst detach --force {name}` ends it, and loses what is not written"
    ))
}
