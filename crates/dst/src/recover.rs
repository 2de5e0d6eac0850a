//! `dst attach --recover`: what has to be before a successor's agent is started.
//!
//! | the agent | what is done |
//! | --- | --- |
//! | is dead, and its device waits | nothing |
//! | lives | it is asked to hand over: it ends as if it had been killed, at a moment that it chooses |
//!
//! From the moment the old agent ends until the new one serves, the device waits; if that one never comes, it goes on waiting
//! for another try. Nothing here removes anything.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use dst_client::recover::Leftovers;
use rustix::process::PidfdFlags;

use crate::agent::plan::Plan;
use crate::cli::Attach;
use crate::control::{Agent, Reply, Request};
use crate::detach::wait_for_end;
use crate::exit::{Code, Failure, Outcome};
use crate::remedy;
use crate::render;
use crate::runtime_dir::{DeviceDir, Life};

/// How long an agent may take to answer, and then to be gone: the kernel takes its memory apart.
const ENDING: Duration = Duration::from_secs(10);

/// The options with which to go on: those given; or those of a recovery, where the device that is to be attached is there
/// and waits for one. Then its agent is dead.
///
/// # Errors
/// There is nothing to recover, or its agent does not hand it over.
pub fn choose(options: &Attach) -> Outcome<Attach> {
    if let Some(device) = &options.recover {
        let (dir, life) = DeviceDir::find(device)?;
        make_ready(&dir, life)?;
        return Ok(Attach {
            recover: Some(dir.name().to_owned()),
            ..options.clone()
        });
    }
    let plan = Plan::of(options)?;
    let dir = DeviceDir::own(&plan.name);
    if dir.life() != Life::Dead || !dst_blockdev::recoverable(&plan.name) {
        return Ok(options.clone());
    }
    let name = &plan.name;
    let url = dir.info().map_or_else(String::new, |info| info.url);
    if url != plan.url.to_string() {
        return Err(Failure::new(
            Code::NameTaken,
            format!("the name {name} is taken by a device of {url}, which waits since its agent died"),
        )
        .hint(format!(
            "go on with that one with `dst attach --recover {name}`, or choose another name with --name"
        )));
    }
    render::note(&format!(
        "the device {name} is there and waits since its agent died: going on with it, with the options it had"
    ));
    Ok(Attach {
        recover: Some(plan.name),
        url: None,
        name: None,
        retain: None,
        read_only: false,
        ..options.clone()
    })
}

/// Sees to it that the device waits for a successor.
fn make_ready(dir: &DeviceDir, life: Life) -> Outcome {
    let name = dir.name();
    if *dir != DeviceDir::own(name) {
        return Err(Failure::new(
            Code::Permission,
            format!("the device {name} is another user's"),
        ));
    }
    if life == Life::Alive {
        hand_over(dir)?;
    }
    if dst_blockdev::recoverable(name) {
        return Ok(());
    }
    Err(Failure::new(
        Code::NoDevice,
        format!("the agent of {name} is dead, and has left no device that could be taken over"),
    )
    .hint(format!(
        "`dst detach {name}` makes safe what it had acknowledged; then attach it anew"
    )))
}

/// Has a live agent end and leave its device.
fn hand_over(dir: &DeviceDir) -> Outcome {
    let name = dir.name();
    // What this version can't go on with stays as it is.
    if let Err(error) = Leftovers::find(dir.path()) {
        return Err(Failure::new(
            Code::Other,
            format!("the agent of {name} can't be succeeded: its record can't be used: {error}"),
        ));
    }
    let deaf = |error: std::io::Error| {
        Failure::new(
            Code::NotResponding,
            format!("the agent of {name} does not hand over: {error}"),
        )
        .hint(format!(
            "`dst status {name}` shows its process; {}",
            remedy::if_it_stays_so(dir, dir.info().as_ref())
        ))
    };
    let mut agent = match Agent::connect(&dir.control()) {
        Ok(agent) => agent,
        // It dies this moment, perhaps.
        Err(error) => return gone(dir, None).map_err(|_| deaf(error)),
    };
    let process = agent
        .pid()
        .ok()
        .filter(|pid| dir.is_agent(*pid))
        .and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok());
    let asked = agent.send(Request::HandOver);
    match asked.and_then(|()| agent.receive(Some(ENDING))) {
        Ok(Reply::Refused(failure)) => Err(failure),
        Ok(_) => gone(dir, process).map_err(|()| deaf(std::io::ErrorKind::TimedOut.into())),
        Err(error) => gone(dir, process).map_err(|()| deaf(error)),
    }
}

/// Waits until the agent is dead.
fn gone(dir: &DeviceDir, process: Option<OwnedFd>) -> Result<(), ()> {
    let until = Instant::now() + ENDING;
    if process.is_some_and(|process| !wait_for_end(&process, ENDING)) {
        return Err(());
    }
    while dir.life() == Life::Alive {
        if Instant::now() >= until {
            return Err(());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
