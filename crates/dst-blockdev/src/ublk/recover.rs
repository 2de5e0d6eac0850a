//! Taking over the device of a dead process (`UBLK_F_USER_RECOVERY` with `UBLK_F_USER_RECOVERY_REISSUE`).
//!
//! ```text
//! up --server dies, driver notices--> quiesced --START_USER_RECOVERY--> ready --open, FETCH on every tag of every queue--> fetching
//!     fetching --END_USER_RECOVERY--> up: what had waited comes, and once more what the dead server had not answered
//! ```
//!
//! Whoever takes over has made sure before that what the dead server has left under way has no effect after that.
//!
//! # Invariants: dying at any moment leaves a device that can be taken over
//! - The disk, its node and its requests are the driver's. Nothing here answers a request or removes anything before
//!   END_USER_RECOVERY is done.
//! - *quiesced* and *fetching*: START_USER_RECOVERY works (once more), as soon as the driver has closed what the dead process
//!   had open.
//! - *ready*: a driver since Linux 6.16 takes START_USER_RECOVERY again. One before refuses it (`EINVAL`) until every tag has
//!   fetched, needs none, and is back in the same state when the process that has opened the device dies, as long as that
//!   had neither mapped it nor fetched on some of its tags, or queues, only. So the order is: open, fetch on all tags of all
//!   queues by one system call, which no SIGKILL cuts in two, map.
//! - The queues and their depth are the device's, whatever this version would have made.
//! - The mark, the name's directory and the link stay; the lock of the directory is the process's and goes with it.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use dst_client::Geometry;

use super::abi::{self, feature, DevInfo};
use super::control::Control;
use super::disk::{self, Disk};
use super::record::Mark;
use crate::{usage, Error, ErrorKind};

/// How long the driver is given to notice that a server is dead. Before Linux 6.16 it takes up to 30 s if somebody has
/// raised the number of requests at once (`queue/nr_requests`) to that of the tags; else it does so at once.
const NOTICING: Duration = Duration::from_secs(40);

/// Bits that make a device survive its server.
pub(super) const FLAGS: u64 = feature::USER_RECOVERY | feature::USER_RECOVERY_REISSUE;

/// Whether a device in this state waits for a server, or will once the driver has noticed that the one before is dead.
fn can_be_recovered(info: &DevInfo) -> bool {
    info.flags & FLAGS == FLAGS && matches!(info.state, abi::LIVE | abi::QUIESCED)
}

/// The device of the dead server whose run-time directory is `dir`, with its mark.
///
/// # Errors
/// `NotAvailable`, `Permission`, `Io`
pub(super) fn find(dir: &Path) -> Result<Option<(Control, Mark, DevInfo)>, Error> {
    let Some(mark) = Mark::find(dir).filter(|_| disk::driver_is_there()) else {
        return Ok(None);
    };
    let mut control = Control::open()?;
    for id in mark.devices(&mut control)? {
        let info = control.info(id)?.filter(can_be_recovered);
        if let Some(info) = info.filter(|_| Disk { id }.exists()) {
            return Ok(Some((control, mark, info)));
        }
    }
    Ok(None)
}

/// Who uses the device, or that requests wait, in words.
///
/// # Errors
/// `Io`
pub(super) fn user(disk: Disk) -> Result<Option<String>, Error> {
    let name = disk.name();
    let who = usage::of_waiting_disk(&name)
        .map_err(|e| Error::io(format!("can't find out who uses {name}"), e))?;
    Ok(who.or_else(|| {
        let waits = disk.has_requests();
        waits.then(|| usage::REQUESTS_WAIT.to_owned())
    }))
}

/// Refuses a disk that is not as the geometry says. One that has not grown with its export is fine.
///
/// # Errors
/// `Geometry`
pub(super) fn check(disk: Disk, geometry: &Geometry) -> Result<(), Error> {
    let fits = disk.size().is_some_and(|size| size <= geometry.size)
        && disk.logical_block() == Some(geometry.logical_block)
        && disk.is_read_only() == geometry.read_only;
    match fits {
        true => Ok(()),
        false => Err(Error::new(
            ErrorKind::Geometry,
            format!("{} has another shape than its export", disk.name()),
        )),
    }
}

/// Makes the device ready for this process.
///
/// # Errors
/// `Busy` if the driver does not let go of the dead process in time.
pub(super) fn begin(control: &mut Control, disk: Disk) -> Result<(), Error> {
    let since = Instant::now();
    while !control.start_recovery(disk.id)? {
        if since.elapsed() >= NOTICING {
            let what = format!(
                "the ublk driver has not yet noticed that the agent of {} is dead",
                disk.name()
            );
            return Err(Error::new(ErrorKind::Busy, what).with_hint("try again; nothing is lost"));
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
