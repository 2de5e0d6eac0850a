//! Finding the device that a dead agent has left, and giving the driver a new connection for it.
//!
//! The driver keeps such a device, and every request of it waits:
//!
//! | request | until | then |
//! | --- | --- | --- |
//! | new since the agent's death | the driver has a new connection | is sent |
//! | sent, not answered | its timer has run out (`io_timeout` in sysfs, from when it was sent) after that | is sent again, with another cookie |
//!
//! Replies can't be mistaken: an old connection is dead before there is a new one, and the driver counts how often it has sent
//! a request in the upper half of the cookie.
//!
//! **The driver says that all went well also where it did not need the new connection**, because it has not noticed yet that
//! the old one is dead (RECONFIGURE in `drivers/block/nbd.c` takes "no place for it" for success). It lets go of the socket
//! then, which shows at the other end: so a few tries are made, each with a pair of its own.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use dst_client::Geometry;

use super::connection;
use super::disk::{self, Disk, Shown};
use super::driver::Driver;
use super::record::Record;
use crate::{Error, ErrorKind};

/// How long the driver may take to notice that an agent is dead.
const NOTICING: Duration = Duration::from_secs(5);

/// What a dead agent has left that its successor may take over. That it is dead is the caller's to know.
///
/// # Errors
/// `Io`
pub(super) fn find(dir: &Path) -> Result<Option<(Record, Disk)>, Error> {
    let Some(record) = Record::read(dir)?.filter(|record| record.survives) else {
        return Ok(None);
    };
    let disk = disk::connected(&record.identifier).into_iter().next();
    Ok(disk.map(|disk| (record, disk)))
}

/// Refuses a device that promises what `geometry` has not. What the driver has been told once it can't be told again, but for
/// the size.
///
/// # Errors
/// `Geometry`
pub(super) fn check(shown: &Shown, geometry: &Geometry) -> Result<(), Error> {
    let writable = !geometry.read_only;
    let wrong = if shown.block != geometry.logical_block {
        format!(
            "blocks of {} bytes, not of {}",
            shown.block, geometry.logical_block
        )
    } else if shown.size > geometry.size {
        format!("{} bytes, not {}", shown.size, geometry.size)
    } else if shown.read_only != geometry.read_only {
        "another notion of whether it may be written to".to_owned()
    } else if geometry.write_cache && writable && !shown.cache {
        "no write cache: nothing would ever be flushed".to_owned()
    } else if shown.fua && !geometry.fua {
        "FUA, which the export does not".to_owned()
    } else {
        return Ok(());
    };
    Err(Error::new(
        ErrorKind::Geometry,
        format!("the device that is to be taken over has {wrong}"),
    )
    .with_hint("detach it, and attach the export anew"))
}

/// Gives the driver a new connection; returns our end of it.
///
/// # Errors
/// `NotAvailable` if the device is gone meanwhile, `Busy` if the driver holds on to the old connection.
pub(super) fn reconnect(disk: &Disk) -> Result<OwnedFd, Error> {
    let mut driver = Driver::find()?;
    let until = Instant::now() + NOTICING;
    loop {
        let (ours, drivers) = connection::pair()
            .map_err(|e| Error::io("can't make a connection to the kernel", e))?;
        let done = driver.reconnect(disk.index, drivers.as_fd(), disk.identifier());
        if !disk.is_ours() {
            return Err(Error::new(
                ErrorKind::NotAvailable,
                format!("{} has been disconnected", disk.name()),
            ));
        }
        done.map_err(|e| Error::io(format!("can't take over {}", disk.name()), e))?;
        // If the driver has not taken it, this was the last of it.
        drop(drivers);
        if !connection::is_alone(&ours) {
            return Ok(ours);
        }
        if Instant::now() >= until {
            return Err(Error::new(
                ErrorKind::Busy,
                format!("{} still has its old connection", disk.name()),
            ));
        }
        thread::sleep(Duration::from_millis(10));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::tests::geometry;

    #[test]
    fn a_device_that_promises_more_than_the_export_has_is_not_taken_over() {
        let shown = Shown {
            size: 1 << 20,
            block: 512,
            read_only: false,
            cache: true,
            fua: true,
        };
        assert!(check(&shown, &geometry()).is_ok());
        let grown = Geometry {
            size: 2 << 20,
            ..geometry()
        };
        assert!(check(&shown, &grown).is_ok());
        for bad in [
            Geometry {
                logical_block: 4096,
                ..geometry()
            },
            Geometry {
                size: 4096,
                ..geometry()
            },
            Geometry {
                read_only: true,
                ..geometry()
            },
            Geometry {
                fua: false,
                ..geometry()
            },
        ] {
            let error = check(&shown, &bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Geometry, "{bad:?}");
        }
        let uncached = Shown {
            cache: false,
            fua: false,
            ..shown
        };
        assert!(check(&uncached, &geometry()).is_err());
        let cacheless = Geometry {
            write_cache: false,
            fua: false,
            ..geometry()
        };
        assert!(check(&uncached, &cacheless).is_ok());
    }

    #[test]
    fn only_what_was_made_to_survive_and_is_there_can_be_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(find(dir.path()).unwrap(), None);
        for survives in [false, true] {
            Record::new("x", survives)
                .unwrap()
                .write(dir.path())
                .unwrap();
            assert_eq!(find(dir.path()).unwrap(), None);
        }
    }
}
