//! What a dead agent has left in its record: made safe on the server before anything else is done with its device.
//!
//! The device node died with the agent, but not the session, nor the writes that had been acknowledged to programs and not
//! been flushed. `dst detach` of such a device, and `dst attach` under its name, settle them first. Only `dst detach --force`
//! gives them up.

use std::time::Duration;

use dst_client::record::{self, RecordError};
use dst_client::recover::{Leftovers, SettleError, Settled};

use crate::exit::{Code, Failure, Outcome};
use crate::render;
use crate::runtime_dir::{AgentLock, DeviceDir};

/// How long the server may take.
const LIMIT: Duration = Duration::from_secs(15);

/// What became of them.
pub enum Fate {
    /// There was nothing that could have been lost.
    Nothing,
    /// It is on the server, durable. In words.
    Safe(String),
    /// It is lost, or nobody can know. In words.
    Lost(String),
}

/// Whether a dead agent has left writes that nobody has made safe.
#[must_use]
pub fn wait_for_a_server(dir: &DeviceDir) -> bool {
    matches!(Leftovers::find(dir.path()), Ok(Some(left)) if left.has_writes())
}

/// Settles what the dead agent of `dir` has left, and removes its record. `_lock` is proof that it is dead.
///
/// # Errors
/// The server could not be reached in time, and there are writes that would be lost: the record is still there.
pub fn settle(dir: &DeviceDir, _lock: &AgentLock) -> Outcome<Fate> {
    let fate = match Leftovers::find(dir.path()) {
        Ok(None) => match dir.info() {
            Some(info) if !info.read_only => Fate::Lost(
                "it had kept no record, so writes that were not flushed may be lost".to_owned(),
            ),
            _ => Fate::Nothing,
        },
        Ok(Some(leftovers)) => of(dir, leftovers.settle(LIMIT))?,
        Err(RecordError::Rebooted) => Fate::Nothing,
        Err(error) => Fate::Lost(format!(
            "writes that were not flushed may be lost: its record can't be used: {error}"
        )),
    };
    record::remove(dir.path()).map_err(Failure::io("can't remove the record of a dead agent"))?;
    Ok(fate)
}

fn of(dir: &DeviceDir, settled: Result<Settled, SettleError>) -> Outcome<Fate> {
    let amount = |found: &Settled| {
        format!(
            "{} writes ({} bytes) that it had acknowledged and not flushed",
            found.writes,
            render::count(found.bytes)
        )
    };
    match settled {
        Ok(found) if found.writes == 0 => Ok(Fate::Safe(
            "everything that it had acknowledged is safe on the server".to_owned(),
        )),
        Ok(found) => Ok(Fate::Safe(format!(
            "{} are safe on the server now",
            amount(&found)
        ))),
        Err(SettleError::Nothing(_)) => Ok(Fate::Nothing),
        Err(SettleError::TooLate { found, .. }) if found.writes == 0 => Ok(Fate::Nothing),
        Err(SettleError::TooLate {
            seconds,
            cause,
            found,
        }) => Err(Failure::new(
            Code::Unreachable,
            format!(
                "the agent of {} had died, and {} could not be made safe within {seconds} s: {cause}",
                dir.name(),
                amount(&found)
            ),
        )
        .hint(format!(
            "try again when the server is there; `dst detach --force {}` gives them up",
            dir.name()
        ))),
        Err(error) => Ok(Fate::Lost(format!(
            "writes that were not flushed may be lost: {error}"
        ))),
    }
}
