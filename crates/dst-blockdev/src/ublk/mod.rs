//! The ublk front end: a block device `/dev/ublkbN` by the kernel's ublk driver, whose requests come through an io_uring.
//!
//! It needs root and the driver of Linux 6.5 or later (`modprobe ublk_drv`); what else a driver can do is asked of it, not
//! concluded from a version. A request passes through one driver and is copied once.
//!
//! **If the agent dies, the device waits**, if it was made so ([`Config::survives`]) and the driver can: same node, and I/O
//! goes on when another process has taken the device over (`recover.rs`). Otherwise the driver fails every request and
//! removes the disk. [`crate::cleanup_stale`] removes what is left in either case, and fails what waits.
//!
//! # States
//!
//! | state | entered by | queues | disk | ends by |
//! | --- | --- | --- | --- | --- |
//! | made | `open`: ADD_DEV, SET_PARAMS | there, idle | none | `start` |
//! | starting | `start`: FETCH on every tag of every queue, then START_DEV beside | serve | appears, is read for partitions | START_DEV is done |
//! | taken over | `recover`: START_USER_RECOVERY | there, idle | there, its requests wait | `start`: FETCH on every tag of every queue, then END_USER_RECOVERY beside |
//! | up | START_DEV | serve | there | `stop`; removed from outside; abort |
//! | stopping | STOP_DEV, beside | serve what is written back, until every tag is gone | going | every tag is gone |
//! | stopped | the last tag, an abort, a driver that breaks its word | none | none, or every request fails | dropping it |
//!
//! # Invariants
//! - START_DEV is issued only when every tag of every queue fetches, and never by the thread that serves: it reads the
//!   partition table.
//! - The queues never end between START_DEV and the disk's appearance, unless the process dies (`works.rs` says why).
//! - A device is stopped or deleted only if it has our mark: its number may have passed on to somebody else.
//!
//! | file | subject |
//! | --- | --- |
//! | `abi.rs` | the driver's numbers and structures |
//! | `control.rs` | control commands |
//! | `queues.rs` | the data path |
//! | `tags.rs`, `place.rs` | sans I/O: whose turn it is on each tag, and what requests ask for; which tags there are |
//! | `descriptors.rs` | the memory in which the driver describes requests |
//! | `params.rs` | what the device announces |
//! | `disk.rs` | the disk in sysfs and `/dev` |
//! | `record.rs` | what is written down for a later process |
//! | `recover.rs` | taking over the device of a dead process |
//! | `works.rs` | the works that may block |

mod abi;
mod control;
mod descriptors;
mod disk;
mod params;
mod place;
mod queues;
mod record;
mod recover;
mod tags;
mod works;

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use dst_buf::Pool;
use dst_client::{Completion, Geometry, Request};
use rustix::event::EventfdFlags;

use self::abi::{feature, DevInfo};
use self::control::Control;
use self::disk::Disk;
use self::place::Shape;
use self::queues::Queues;
use self::record::Mark;
use self::works::{Parts, Works};
use crate::runtime::NameLock;
use crate::{geometry, node, runtime, Config, Error, ErrorKind, FrontEnd, Node, NodeKind, Work};

/// How long the driver is given to notice that an agent is dead before its device is removed. As a rule it does so at once.
const NOTICING: Duration = Duration::from_secs(2);

/// The kernel module of the driver.
pub(crate) const MODULE: &str = "ublk_drv";

/// Queues of a device; the driver makes no more than the machine has processors. One thread serves them all, so many would gain
/// nothing over a few.
const QUEUES: u16 = 4;
/// Tags of each queue: so that whoever submits on one processor can have as many requests out as the client. What the client has
/// no slot for waits in its queue; how much memory all of them take at most is in `tags.rs`.
const DEPTH: u16 = 128;

/// Whether this machine and user can make such a device.
///
/// # Errors
/// What is missing and what to do.
pub fn check(kind: NodeKind) -> Result<(), Error> {
    if kind == NodeKind::File {
        return Err(Error::new(
            ErrorKind::NotAvailable,
            "the ublk front end makes block devices only",
        )
        .with_hint("use --front-end fuse for a plain file"));
    }
    if !runtime::is_root() {
        return Err(
            Error::new(ErrorKind::Permission, "only root can make a block device")
                .with_hint("run it with sudo, or use --front-end fuse"),
        );
    }
    Control::open().map(drop)
}

/// Removes what a dead front end of this name has left: the ublk device, the link. Returns what was there.
///
/// A disk that somebody still has open goes when the last one closes it; I/O on it fails until then.
///
/// # Errors
/// `NameTaken` if a live front end has the name; `Busy` if the driver has not yet noticed that the agent is dead, which before
/// Linux 6.16 can take 30 s; `Io` if something can't be removed.
pub fn cleanup_stale(name: &str) -> Result<Vec<String>, Error> {
    let lock = NameLock::take(name)?;
    clean(lock.dir(), name)
}

/// As `cleanup_stale`, with the lock held.
fn clean(dir: &Path, name: &str) -> Result<Vec<String>, Error> {
    let mut cleaned = Vec::new();
    let link = Path::new(crate::NODE_DIR).join(name);
    if let Some(mark) = Mark::find(dir) {
        // Without a driver there are no devices.
        if disk::driver_is_there() {
            let mut control = Control::open()?;
            for id in mark.devices(&mut control)? {
                let disk = Disk { id };
                take_down(&mut control, disk)?;
                control.delete(id)?;
                node::remove(&link, &disk.path());
                cleaned.push(format!("the ublk device {}", disk.name()));
            }
        }
    }
    Mark::remove(dir);
    if let Some(target) = fs::read_link(&link).ok().filter(|to| disk::is_dangling(to)) {
        node::remove(&link, &target);
    }
    Ok(cleaned)
}

/// Has the driver take the disk of a dead agent away.
///
/// It does so by itself once it notices, or has its requests wait, and a command would only wait with it; and a process with a command that the kernel
/// does not finish can't end. So none is given as long as requests wait for the driver to notice.
///
/// # Errors
/// `Busy` if it takes long.
fn take_down(control: &mut Control, disk: Disk) -> Result<(), Error> {
    let since = Instant::now();
    loop {
        let info = control.info(disk.id)?;
        if info.is_none_or(|info| info.state != abi::LIVE) {
            // At an end, or never begun.
            break;
        }
        if since.elapsed() >= NOTICING {
            if disk.has_requests() {
                return Err(slow(disk));
            }
            break;
        }
        thread::sleep(Duration::from_millis(10));
    }
    match control.stop_soon(disk.id)? {
        true => Ok(()),
        false => Err(slow(disk)),
    }
}

fn slow(disk: Disk) -> Error {
    let what = format!(
        "the ublk driver has not yet taken {} away, whose agent is dead",
        disk.name()
    );
    Error::new(ErrorKind::Busy, what)
        .with_hint("it takes up to 30 s, before Linux 6.16; try again then")
}

/// See the module.
#[derive(Debug)]
pub struct UblkFrontEnd {
    /// `None` once stopped.
    queues: Option<Queues>,
    /// An event descriptor that the queues make readable.
    event: OwnedFd,
    /// As it is now.
    geometry: Geometry,
    /// The device waits for another process when this one dies.
    survives: bool,
    works: Arc<Works>,
    /// Held until everything has been taken away.
    _lock: NameLock,
}

/// Whether a dead front end of this name has left a device that [`UblkFrontEnd::recover`] can take over.
#[must_use]
pub fn recoverable(name: &str) -> bool {
    let dir = runtime::runtime_root().join(name);
    recover::find(&dir).is_ok_and(|found| found.is_some())
}

/// Who uses the device that [`UblkFrontEnd::recover`] can take over, in words.
///
/// # Errors
/// `Io`
pub fn user_of_recoverable(name: &str) -> Result<Option<String>, Error> {
    let dir = runtime::runtime_root().join(name);
    match recover::find(&dir)? {
        Some((_, _, info)) => recover::user(Disk { id: info.dev_id }),
        None => Ok(None),
    }
}

/// An event descriptor, twice.
fn event() -> Result<(OwnedFd, OwnedFd), Error> {
    let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
    rustix::event::eventfd(0, flags)
        .map_err(io::Error::from)
        .and_then(|event| Ok((event.try_clone()?, event)))
        .map_err(|e| Error::io("can't make an event descriptor", e))
}

/// What the driver is to know the device by, and what it is to be.
struct Made {
    control: Control,
    mark: Mark,
    info: DevInfo,
    /// It was another process's.
    recovers: bool,
}

impl UblkFrontEnd {
    /// Takes over what a dead front end has left; see [`crate::recover`].
    ///
    /// # Errors
    /// Any kind but `Stopped`.
    pub fn recover(config: &Config) -> Result<Option<UblkFrontEnd>, Error> {
        let lock = NameLock::take(&config.name)?;
        let Some((mut control, mark, info)) = recover::find(lock.dir())? else {
            return Ok(None);
        };
        let disk = Disk { id: info.dev_id };
        recover::check(disk, &config.geometry)?;
        recover::begin(&mut control, disk)?;
        let made = Made {
            control,
            mark,
            info,
            recovers: true,
        };
        UblkFrontEnd::of(config, lock, made).map(Some)
    }

    /// Makes the device, without a disk as yet. Whatever a dead front end of the same name has left is removed first.
    ///
    /// # Errors
    /// Any kind but `Busy` and `Stopped`.
    pub fn open(config: &Config) -> Result<UblkFrontEnd, Error> {
        let page = u32::try_from(rustix::param::page_size()).unwrap_or(4096);
        params::check(&config.geometry, page)?;
        check(config.node.unwrap_or(NodeKind::BlockDevice))?;
        let lock = NameLock::take(&config.name)?;
        clean(lock.dir(), &config.name)?;

        let mut control = Control::open()?;
        let mark = Mark::create(lock.dir())?;
        let transfer = params::transfer(&config.geometry, page);
        match add(&mut control, mark, transfer, config) {
            Ok(info) => {
                let made = Made {
                    control,
                    mark,
                    info,
                    recovers: false,
                };
                UblkFrontEnd::of(config, lock, made)
            }
            Err(error) => {
                Mark::remove(lock.dir());
                Err(error)
            }
        }
    }

    /// A front end of a device that is there.
    fn of(config: &Config, lock: NameLock, made: Made) -> Result<UblkFrontEnd, Error> {
        let Made {
            mut control,
            mark,
            info,
            recovers,
        } = made;
        let id = info.dev_id;
        let page = u32::try_from(rustix::param::page_size()).unwrap_or(4096);
        let transfer = params::transfer(&config.geometry, page).min(info.max_io_buf_bytes);
        let set = match recovers {
            // They can't be changed any more.
            true => Ok(()),
            false => control.set_params(id, &params::params(&config.geometry, transfer)),
        };
        let opened = set.and_then(|()| {
            let (event, events) = event()?;
            Ok((event, Queues::open(id, Shape::of(&info)?, events)?))
        });
        let works = Works::new(Parts {
            name: config.name.clone(),
            disk: Disk { id },
            mark,
            dir: lock.dir().to_owned(),
            geometry: config.geometry,
            transfer,
            partitions: config.partitions,
            queues: info.nr_hw_queues,
            control,
            recovers,
        });
        match opened {
            Ok((event, queues)) => Ok(UblkFrontEnd {
                queues: Some(queues),
                event,
                geometry: config.geometry,
                survives: info.flags & recover::FLAGS == recover::FLAGS,
                works,
                _lock: lock,
            }),
            Err(error) => {
                if works.is_ours() {
                    let _ = works.stop(true);
                }
                Err(error)
            }
        }
    }

    /// Nothing comes any more. What is in the queues fails.
    fn end(&mut self) {
        self.works.set_ended();
        if let Some(mut queues) = self.queues.take() {
            queues.fail_all();
        }
    }
}

/// Makes a device with our mark.
fn add(
    control: &mut Control,
    mark: Mark,
    transfer: u32,
    config: &Config,
) -> Result<DevInfo, Error> {
    let mut flags = feature::CMD_IOCTL_ENCODE | feature::USER_COPY;
    if !config.partitions {
        flags |= control.features() & feature::NO_AUTO_PART_SCAN;
    }
    // One without the other would fail what is under way, or have it wait for ever.
    if config.survives && control.features() & recover::FLAGS == recover::FLAGS {
        flags |= recover::FLAGS;
    }
    control.add(DevInfo {
        nr_hw_queues: QUEUES,
        queue_depth: DEPTH,
        max_io_buf_bytes: transfer,
        dev_id: abi::ANY_ID,
        flags,
        ublksrv_flags: mark.bits(),
        ..DevInfo::default()
    })
}

impl FrontEnd for UblkFrontEnd {
    fn name(&self) -> &'static str {
        "ublk"
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    fn take(&mut self, out: &mut Vec<Request>, pool: &Pool) -> io::Result<()> {
        let Some(queues) = &mut self.queues else {
            return Ok(());
        };
        let taken = queues.take(out, pool).and_then(|goes_on| {
            queues.submit()?;
            Ok(goes_on)
        });
        if !matches!(taken, Ok(true)) {
            self.end();
        }
        taken.map(drop)
    }

    fn is_full(&self) -> bool {
        self.queues.as_ref().is_some_and(Queues::is_full)
    }

    fn complete(&mut self, completion: Completion, _out: &mut Vec<Request>) {
        if let Some(queues) = &mut self.queues {
            queues.complete(&completion);
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        let submitted = match &mut self.queues {
            Some(queues) => queues.submit(),
            None => Ok(()),
        };
        if submitted.is_err() {
            self.end();
        }
        submitted
    }

    /// To be called by the thread that serves: from here on the queues are its own.
    fn start(&mut self) -> Work<Node> {
        let begun = match &mut self.queues {
            Some(queues) => queues.begin(),
            None => Ok(()),
        };
        if begun.is_err() {
            self.end();
        }
        let works = Arc::clone(&self.works);
        Box::new(move || {
            begun.map_err(|e| Error::io("can't fetch requests by io_uring", e))?;
            works.start()
        })
    }

    fn resize(&mut self, new_size: u64) -> Result<Work<()>, Error> {
        self.geometry = geometry::grown(&self.geometry, new_size)?;
        let works = Arc::clone(&self.works);
        Ok(Box::new(move || works.resize(new_size)))
    }

    fn in_use(&self) -> Work<Option<String>> {
        let works = Arc::clone(&self.works);
        Box::new(move || works.in_use())
    }

    fn stop(&mut self, force: bool) -> Work<()> {
        if force {
            self.end();
        }
        let works = Arc::clone(&self.works);
        Box::new(move || works.stop(force))
    }

    fn stopped(&self) -> bool {
        self.queues.is_none()
    }

    fn survives(&self) -> bool {
        self.survives
    }
}

impl Drop for UblkFrontEnd {
    /// Takes away what is still there, as a forced stop does; unless it waits for another recovery.
    fn drop(&mut self) {
        if self.works.is_ours() {
            self.end();
            let _ = self.works.stop(true);
        }
    }
}
