//! What a dead agent has left in its record: made safe on the server before anything else is done with its device.
//!
//! The device node died with the agent, or waits for a successor (`recover.rs`), but not the session, nor the writes that had
//! been acknowledged to programs and not been flushed. `dst detach` of such a device, and `dst attach` under its name where no
//! device waits, settle them first. Only `dst detach --force` gives them up.
//!
//! A record goes only when it is settled, of no use to anybody, or when what it names is lost for good. Whatever may be
//! otherwise at another time, or for another version of this program, leaves it where it is.

use std::time::Duration;

use dst_client::record::RecordError;
use dst_client::recover::{Leftovers, SettleError, Settled};

use crate::exit::{Code, Failure, Outcome};
use crate::render;
use crate::runtime_dir::{AgentLock, DeviceDir};
use crate::signals::Signals;

/// How long nothing may be heard of the server.
const SILENCE: Duration = Duration::from_secs(15);

/// What became of them.
pub enum Fate {
    /// There was nothing that could have been lost.
    Nothing,
    /// It is on the server, durable. In words.
    Safe(String),
    /// It is lost, or nobody can know. In words.
    Lost(String),
}

/// Whether a dead agent has left writes that nobody has made safe, or something that can't be looked into.
#[must_use]
pub fn unsettled(dir: &DeviceDir) -> bool {
    match Leftovers::find(dir.path()) {
        Ok(None) | Err(RecordError::Rebooted) => false,
        Ok(Some(left)) => left.has_writes(),
        Err(_) => true,
    }
}

/// Whether the agent keeps a record of what it has acknowledged, or had kept one; `None` where that can't be looked into.
#[must_use]
pub fn has_record(dir: &DeviceDir) -> Option<bool> {
    let found = Leftovers::find(dir.path()).ok()?;
    Some(found.is_some())
}

/// Writes that the agent retains or had retained, and their bytes; `None` where that can't be told.
#[must_use]
pub fn retained(dir: &DeviceDir) -> Option<(u64, u64)> {
    Leftovers::find(dir.path()).ok()??.retained()
}

/// Settles what the dead agent of `dir` has left. Its record is of no use afterwards and may be removed. `_lock` is proof
/// that it is dead.
///
/// # Errors
/// It could not be settled this time, or a signal came: everything is as it was.
pub fn settle(dir: &DeviceDir, _lock: &AgentLock, signals: &Signals) -> Outcome<Fate> {
    match Leftovers::find(dir.path()) {
        Ok(None) => Ok(match dir.info() {
            // Without a node nobody has written anything.
            Some(info) if !info.read_only && info.node.is_some() => Fate::Lost(
                "it had kept no record, so writes that were not flushed may be lost".to_owned(),
            ),
            _ => Fate::Nothing,
        }),
        Ok(Some(leftovers)) => of(dir, leftovers.settle(SILENCE, &|| signals.count() > 0)),
        Err(RecordError::Rebooted) => Ok(Fate::Nothing),
        Err(error @ RecordError::Damaged) => Ok(Fate::Lost(format!(
            "writes that were not flushed may be lost: its record can't be used: {error}"
        ))),
        Err(error) => Err(kept(dir, &format!("its record can't be used: {error}"))),
    }
}

/// The failure that leaves everything as it is.
fn kept(dir: &DeviceDir, why: &str) -> Failure {
    let name = dir.name();
    Failure::new(
        Code::Other,
        format!(
            "the agent of {name} had died, and what it had acknowledged and not flushed is not safe: {why}"
        ),
    )
    .hint(format!(
        "everything is kept for another try; `dst detach --force {name}` gives it up"
    ))
}

fn of(dir: &DeviceDir, settled: Result<Settled, SettleError>) -> Outcome<Fate> {
    let amount = |found: &Settled| match found.writes {
        0 => "what it had acknowledged and not flushed".to_owned(),
        writes => format!(
            "{writes} write(s), {} bytes of payload, that it had acknowledged and not flushed",
            render::count(found.bytes)
        ),
    };
    match settled {
        Ok(found) if !found.dirty || found.writes == 0 => Ok(Fate::Safe(
            "everything that it had acknowledged is safe on the server".to_owned(),
        )),
        Ok(found) => Ok(Fate::Safe(format!(
            "{} are safe on the server now",
            amount(&found)
        ))),
        Err(SettleError::Nothing(_)) => Ok(Fate::Nothing),
        Err(SettleError::TooLate { found, .. }) if !found.dirty => Ok(Fate::Nothing),
        Err(SettleError::TooLate {
            seconds,
            cause,
            found,
        }) => Err(Failure::new(
            Code::Unreachable,
            format!(
                "the agent of {} had died, and {} could not be made safe: nothing was heard of the server for \
                 {seconds} s: {cause}",
                dir.name(),
                amount(&found)
            ),
        )
        .hint(format!(
            "try again when the server is there; `dst detach --force {}` gives them up",
            dir.name()
        ))),
        Err(SettleError::Stopped) => Err(Failure::interrupted()),
        Err(error @ SettleError::Unusable(_)) => Err(kept(
            dir,
            &error.to_string(),
        )),
        Err(SettleError::Lost(why)) => Ok(Fate::Lost(format!(
            "writes that were not flushed may be lost: {why}"
        ))),
    }
}
