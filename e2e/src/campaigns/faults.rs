//! The faults of the `plug` campaign: a schedule from a seed, and a thread that carries it out while I/O goes on.
//!
//! After every fault I/O must go on before the next one comes: each has to hit a session that works.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::lab::server::Server;
use crate::lab::Plan;
use crate::proxy::Proxy;
use crate::report::say;
use crate::rng::Rng;
use crate::wait;

/// How long after a fault I/O may take to go on. (Half-open connections are found by their silence only.)
const RECOVERY: Duration = Duration::from_secs(90);
/// Bytes that must have passed before a session counts as working again.
const PROGRESS: u64 = 256 << 10;

/// One thing that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL, and a start after so long.
    Kill(Duration),
    /// SIGSTOP for so long.
    Freeze(Duration),
    /// The server is gone for so long.
    Outage(Duration),
    /// Connections reset at once.
    Reset,
    /// Connections reset after so many bytes.
    Cut(u64),
    /// One bit flipped after so many bytes.
    Flip(u64),
    /// Nothing is forwarded for so long.
    Stall(Duration),
    /// The client's side is reset, the server's stays.
    LoseClient,
    /// The server's side is reset, the client's stays silent.
    LoseServer,
    /// The direction to the server ends in good order.
    EndUpstream,
    /// SIGTERM, and a start after so long.
    Drain(Duration),
}

impl Fault {
    fn name(self) -> &'static str {
        match self {
            Fault::Kill(_) => "kills",
            Fault::Freeze(_) => "freezes",
            Fault::Outage(_) => "outages",
            Fault::Reset | Fault::Cut(_) => "resets",
            Fault::Flip(_) => "flipped-bits",
            Fault::Stall(_) => "stalls",
            Fault::LoseClient | Fault::LoseServer => "half-open",
            Fault::EndUpstream => "one-way-ends",
            Fault::Drain(_) => "drains",
        }
    }
}

/// The faults of a campaign in their order.
pub fn schedule(plan: &Plan, rng: &mut Rng) -> Vec<Fault> {
    let mut faults = Vec::new();
    for _ in 0..plan.pick_of(20, 3, 1) {
        faults.push(Fault::Kill(rng.millis(0..400)));
    }
    for n in 0..plan.pick_of(50, 10, 3) {
        // Mid-frame cuts near and far, some within the few hundred bytes of a reconnect.
        faults.push(match n % 3 {
            0 => Fault::Reset,
            1 => Fault::Cut(rng.below(1..400_000)),
            _ => Fault::Cut(rng.below(1..700)),
        });
    }
    for _ in 0..plan.pick_of(5, 1, 0) {
        faults.push(Fault::Stall(rng.millis(500..2500)));
        faults.push(Fault::LoseClient);
        faults.push(Fault::EndUpstream);
        faults.push(Fault::Drain(rng.millis(0..300)));
    }
    for _ in 0..plan.pick_of(3, 1, 0) {
        faults.push(Fault::LoseServer);
    }
    for _ in 0..plan.pick_of(20, 4, 1) {
        // Nearly all of it is payload.
        faults.push(Fault::Flip(rng.below(1..400_000)));
    }
    faults.push(Fault::Freeze(Duration::from_secs(plan.pick_of(10, 3, 1))));
    faults.push(Fault::Outage(Duration::from_secs(plan.pick_of(180, 20, 2))));
    rng.shuffle(&mut faults);
    faults
}

/// Carries out the faults; counts them by name.
///
/// # Errors
/// I/O does not go on after one, the server ends by itself or does not start again.
pub fn inject(
    faults: &[Fault],
    server: &mut Server<'_>,
    proxy: &Proxy,
    rng: &mut Rng,
) -> (BTreeMap<&'static str, u64>, Result<()>) {
    let mut counts = BTreeMap::new();
    for (at, fault) in faults.iter().enumerate() {
        let started = std::time::Instant::now();
        let result = one(*fault, server, proxy, rng);
        if let Err(error) = result {
            let error = error.context(format!("fault {} of {}, {fault:?}", at + 1, faults.len()));
            return (counts, Err(error));
        }
        *counts.entry(fault.name()).or_default() += 1;
        say(&format!(
            "fault {}/{} {fault:?}: I/O went on after {:.1} s",
            at + 1,
            faults.len(),
            started.elapsed().as_secs_f64()
        ));
    }
    (counts, Ok(()))
}

fn one(fault: Fault, server: &mut Server<'_>, proxy: &Proxy, rng: &mut Rng) -> Result<()> {
    // At any moment of a busy session.
    wait::let_pass(rng.millis(50..400))?;
    server.check_alive()?;
    let connections = proxy.accepted();
    match fault {
        Fault::Kill(pause) => {
            server.kill()?;
            wait::let_pass(pause)?;
            server.start()?;
        }
        Fault::Drain(pause) => {
            server.stop().context("draining")?;
            wait::let_pass(pause)?;
            server.start()?;
        }
        Fault::Outage(time) => {
            server.kill()?;
            wait::let_pass(time)?;
            server.start()?;
        }
        Fault::Freeze(time) => {
            server.freeze()?;
            wait::let_pass(time)?;
            server.thaw()?;
        }
        Fault::Stall(time) => {
            proxy.stall(true);
            wait::let_pass(time)?;
            proxy.stall(false);
        }
        Fault::Reset => proxy.reset(),
        Fault::Cut(bytes) => proxy.cut_after(bytes),
        Fault::Flip(bytes) => proxy.flip_after(bytes),
        Fault::LoseClient => proxy.lose_clients(),
        Fault::LoseServer => proxy.lose_servers(),
        Fault::EndUpstream => proxy.end_upstream(),
    }
    // A flipped bit in a payload only costs a RETRY, or the connection if it was in an answer.
    if !matches!(fault, Fault::Stall(_) | Fault::Freeze(_) | Fault::Flip(_)) {
        let again = || Ok(proxy.accepted() > connections);
        wait::until("a new connection", RECOVERY, again)?;
    }
    let before = proxy.bytes();
    wait::until("I/O to go on", RECOVERY, || {
        Ok(proxy.bytes() >= before + PROGRESS)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::Form;

    #[test]
    fn the_schedule_is_that_of_the_issue_and_repeats() {
        let plan = Plan::for_test;
        let count =
            |faults: &[Fault], name: &str| faults.iter().filter(|f| f.name() == name).count();
        let full = schedule(&plan(Form::Full), &mut Rng::new(1));
        assert_eq!(full, schedule(&plan(Form::Full), &mut Rng::new(1)));
        assert_eq!((count(&full, "kills"), count(&full, "resets")), (20, 50));
        assert!(full.contains(&Fault::Freeze(Duration::from_secs(10))));
        assert!(full.contains(&Fault::Outage(Duration::from_secs(180))));
        let short = schedule(&plan(Form::Short), &mut Rng::new(1));
        assert_eq!((count(&short, "kills"), count(&short, "resets")), (3, 10));
        assert!(short.contains(&Fault::Outage(Duration::from_secs(20))));
    }
}
