//! The nbd front end: `/dev/nbdN` by the kernel's nbd driver, over a socket pair whose other end is served here.
//!
//! It works on every kernel with the module `nbd`, for root. The network that the driver was made for is not used: the other
//! end of its connection is this process, which speaks DST to the server. All that a disk has is native: flush, FUA, discard,
//! write zeroes, read-only, block sizes of 512 bytes to a page, partitions, resizing.
//!
//! # What becomes of the device
//!
//! | event | requests under way and later ones | the device |
//! | --- | --- | --- |
//! | the server is away | wait, as long as the user's deadline lets them | stays |
//! | [`FrontEnd::stop`] | are done first; in use, it is refused | goes |
//! | [`FrontEnd::stop`] with force, [`abort`] | fail | goes with the last one who closes it |
//! | **the agent dies** | **wait, without end** | stays |
//! | [`NbdFrontEnd::recover`] after that, and `start` | are answered: new ones at once, those that were under way when they are sent again, within 10 s or so (`recover.rs`) | the same one |
//! | [`crate::cleanup_stale`] after that | fail | as with force |
//! | somebody else disconnects it (`nbd-client -d`) | fail | goes; the front end is `stopped` |
//!
//! That requests wait for a dead agent is the driver's nature: it fails those that it has sent only when it is disconnected,
//! so the rest is made to wait too (see `driver.rs`). Processes in such a wait can't be killed; `dst attach --recover NAME`
//! or `dst detach NAME` ends it.
//!
//! # Two traps of the driver
//!
//! - **Closing the socket fails nothing.** So a forced stop goes on answering, with errors, until the driver has been told to
//!   disconnect (`Queue::refuse`).
//! - **A resize waits until nothing is under way** (`blk_mq_freeze_queue` in Linux 6.12, `queue_limits_commit_update_frozen`
//!   in 7.3), holding the device's lock and that of generic netlink, which is of the whole machine: no driver that is told
//!   things by it can be told anything meanwhile. So the wait is made as short as it can be: none is started before the server
//!   has answered all that was under way when it told the new size. What remains is the time in which it answers what came
//!   since. If it goes away in that very moment, the resize waits with the requests; it ends when the server is back, a
//!   deadline passes, or by a forced stop. An agent that is *killed* in that moment leaves a device that only a reboot takes
//!   away: the driver's new connection would have to come by the netlink that the resize holds.
//!
//! # Which device is ours
//!
//! The agent writes an identifier of its own into its run-time directory (file `nbd`) before it gives it to the driver, which
//! shows it in `/sys/block/nbdN/backend`. So whoever cleans up or takes over has that device and no other, whatever became of
//! the number meanwhile; RECONFIGURE carries the identifier, and the driver refuses a wrong one.
//!
//! # States
//!
//! | state | entered by | data path | ends by |
//! | --- | --- | --- | --- |
//! | coming | [`NbdFrontEnd::open`], [`NbdFrontEnd::recover`] | idle | `start` makes the connection and hands it over; a forced stop |
//! | open | the connection | serves | the kernel closes the connection: `stopped`; a forced stop |
//! | abandoned | a forced stop: all requests are refused, beside | none | dropping it |
//!
//! | file | subject |
//! | --- | --- |
//! | `netlink.rs` | generic netlink: messages, attributes, a socket that asks |
//! | `driver.rs` | the driver's commands |
//! | `connection.rs` | the socket pair, and cutting it from outside |
//! | `wire.rs` | requests and replies on the socket |
//! | `input.rs`, `output.rs` | reading and writing them |
//! | `queue.rs` | the data path |
//! | `disk.rs` | the device in sysfs |
//! | `record.rs` | what is written down for a later process |
//! | `recover.rs` | taking over the device of a dead process |
//! | `control.rs` | the works that may block |

mod connection;
mod control;
mod disk;
mod driver;
mod input;
mod netlink;
mod output;
mod queue;
mod record;
mod recover;
mod wire;

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{mpsc, Arc};
use std::thread;
use std::time::Duration;

use dst_buf::Pool;
use dst_client::{Completion, Geometry, Request};
use rustix::event::epoll;

use self::control::{Control, Plan};
use self::disk::Disk;
use self::driver::Driver;
use self::queue::Queue;
use self::record::Record;
use crate::geometry::{self, check_size};
use crate::runtime::NameLock;
use crate::{
    node, runtime, usage, Config, Error, ErrorKind, FrontEnd, Node, NodeKind, Work, NODE_DIR,
};

/// Largest READ and WRITE in bytes, if the server takes them.
const LARGEST_TRANSFER: u32 = 1 << 20;
/// How long an abort waits for the driver.
const ABORTING: Duration = Duration::from_secs(5);

/// Whether this machine and user can make such a device. The kernel loads the module if it can.
///
/// # Errors
/// What is missing and what to do.
pub fn check(kind: NodeKind) -> Result<(), Error> {
    if kind == NodeKind::File {
        return Err(Error::new(
            ErrorKind::NotAvailable,
            "nbd makes block devices only",
        ));
    }
    if !runtime::is_root() {
        return Err(
            Error::new(ErrorKind::Permission, "only root can make an nbd device")
                .with_hint("run it with sudo, or use --front-end fuse for a bare file"),
        );
    }
    Driver::find().map(drop)
}

/// Whether the driver is there, without having its module loaded.
#[must_use]
pub fn is_loaded() -> bool {
    Path::new("/sys/module/nbd").exists()
}

/// Disconnects what a dead front end of this name has left. What waits for an answer fails. Returns what was there.
///
/// A device that somebody still has open goes when the last one closes it.
///
/// # Errors
/// `NameTaken` if a live front end has the name; `Io` if something can't be removed.
pub fn cleanup_stale(name: &str) -> Result<Vec<String>, Error> {
    let lock = NameLock::take(name)?;
    clean(lock.dir(), name)
}

/// Cuts off the device of this name, whoever serves it and whatever that process is doing: every request that waits fails with
/// an I/O error, and every later one. False: there is none.
///
/// The driver first tells the agent, holding its locks meanwhile; for one that is stopped and has its socket full that would
/// take until it is dead. So the connection is cut before.
///
/// # Errors
/// The kernel's; `Io` if it takes long: the device is not cut off then, or not yet.
pub fn abort(name: &str) -> Result<bool, Error> {
    runtime::check_name(name)?;
    let Some(record) = Record::read(&runtime::runtime_root().join(name))? else {
        return Ok(false);
    };
    let disks = disk::connected(&record.identifier);
    if disks.is_empty() {
        return Ok(false);
    }
    let (done, wait) = mpsc::channel();
    thread::Builder::new()
        .name("abort".to_owned())
        .spawn(move || {
            if let Some(socket) = record.socket {
                // It is elsewhere if that number is of another namespace.
                let _ = connection::cut(socket, record.process) || connection::cut(socket, None);
            }
            let ended = disks.iter().try_for_each(control::disconnect);
            // Nobody listens after the time is up.
            let _ = done.send(ended);
        })
        .map_err(|e| Error::io("can't start a thread", e))?;
    match wait.recv_timeout(ABORTING) {
        Ok(ended) => ended.map(|()| true),
        Err(_) => Err(Error::new(
            ErrorKind::Io,
            "the nbd driver has not cut the device off yet",
        )),
    }
}

/// As `cleanup_stale`, with the lock held.
fn clean(dir: &Path, name: &str) -> Result<Vec<String>, Error> {
    let Some(record) = Record::read(dir)? else {
        return Ok(Vec::new());
    };
    let link = Path::new(NODE_DIR).join(name);
    let mut cleaned = Vec::new();
    for disk in disk::connected(&record.identifier) {
        control::disconnect(&disk)?;
        node::remove(&link, &disk.path());
        disk.wait_until_gone();
        cleaned.push(format!("the device {}", disk.name()));
    }
    // Of a device that was disconnected before: by an abort, or behind our back.
    if let Some(gone) = fs::read_link(&link).ok().filter(|to| disk::replaceable(to)) {
        node::remove(&link, &gone);
        cleaned.push(format!("the link {}", link.display()));
    }
    Record::remove(dir)?;
    Ok(cleaned)
}

/// Whether a dead front end of this name has left a device that [`NbdFrontEnd::recover`] can take over.
#[must_use]
pub fn recoverable(name: &str) -> bool {
    let dir = runtime::runtime_root().join(name);
    recover::find(&dir).is_ok_and(|found| found.is_some())
}

/// Who uses the device that [`NbdFrontEnd::recover`] can take over, in words.
///
/// # Errors
/// `Io`
pub fn user_of_recoverable(name: &str) -> Result<Option<String>, Error> {
    let Some((_, disk)) = recover::find(&runtime::runtime_root().join(name))? else {
        return Ok(None);
    };
    let name = disk.name();
    let who = usage::of_waiting_disk(&name)
        .map_err(|e| Error::io(format!("can't find out who uses {name}"), e))?;
    Ok(who.or_else(|| usage::has_requests(&name).then(|| usage::REQUESTS_WAIT.to_owned())))
}

/// See the module.
#[derive(Debug)]
pub struct NbdFrontEnd {
    way: Way,
    /// The queue's, there before it and kept beyond its end.
    fd: Arc<OwnedFd>,
    /// As it is now.
    geometry: Geometry,
    /// Bytes, the longest READ and WRITE that is given.
    longest: u32,
    survives: bool,
    control: Arc<Control>,
    /// Held until everything has been taken away.
    _lock: NameLock,
}

/// The way to the kernel.
#[derive(Debug)]
enum Way {
    /// The work of `start` makes the connection.
    Coming,
    Open(Box<Queue>),
    /// Left to a forced stop.
    Abandoned,
}

impl NbdFrontEnd {
    /// Takes over what a dead front end has left; see [`crate::recover`].
    ///
    /// # Errors
    /// Any kind but `Busy` and `Stopped`.
    pub fn recover(config: &Config) -> Result<Option<NbdFrontEnd>, Error> {
        let lock = NameLock::take(&config.name)?;
        let Some((record, disk)) = recover::find(lock.dir())? else {
            return Ok(None);
        };
        check_geometry(&config.geometry)?;
        recover::check(&disk.shown()?, &config.geometry)?;
        NbdFrontEnd::of(config, lock, record, Some(disk)).map(Some)
    }

    /// Prepares the connection. Whatever a dead front end of the same name has left is removed first.
    ///
    /// # Errors
    /// Any kind but `Busy` and `Stopped`.
    pub fn open(config: &Config) -> Result<NbdFrontEnd, Error> {
        check_geometry(&config.geometry)?;
        check(config.node.unwrap_or(NodeKind::BlockDevice))?;
        let lock = NameLock::take(&config.name)?;
        clean(lock.dir(), &config.name)?;
        let record = Record::new(&config.name, config.survives)?;
        NbdFrontEnd::of(config, lock, record, None)
    }

    fn of(
        config: &Config,
        lock: NameLock,
        record: Record,
        found: Option<Disk>,
    ) -> Result<NbdFrontEnd, Error> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(|e| Error::io("can't make an epoll descriptor", e))?;
        let epoll = Arc::new(epoll);
        let longest = config.geometry.max_transfer.min(LARGEST_TRANSFER);
        Ok(NbdFrontEnd {
            way: Way::Coming,
            fd: Arc::clone(&epoll),
            geometry: config.geometry,
            longest,
            survives: record.survives,
            control: Control::new(Plan {
                name: config.name.clone(),
                geometry: config.geometry,
                longest,
                partitions: config.partitions,
                dir: lock.dir().to_owned(),
                record,
                found,
                epoll,
            }),
            _lock: lock,
        })
    }

    fn serve(&self, connection: OwnedFd) -> Queue {
        Queue::new(connection, Arc::clone(&self.fd), self.longest)
    }

    fn queue(&mut self) -> Option<&mut Queue> {
        match &mut self.way {
            Way::Open(queue) => Some(queue),
            Way::Coming | Way::Abandoned => None,
        }
    }

    /// Leaves the queue to a work that refuses everything.
    fn abort(&mut self) {
        let queue = match std::mem::replace(&mut self.way, Way::Abandoned) {
            Way::Open(queue) => Some(*queue),
            Way::Coming => {
                let connection = self.control.refuse_connection();
                connection.map(|connection| self.serve(connection))
            }
            Way::Abandoned => return,
        };
        self.control.abandon(queue);
    }
}

impl FrontEnd for NbdFrontEnd {
    fn name(&self) -> &'static str {
        "nbd"
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn take(&mut self, out: &mut Vec<Request>, pool: &Pool) -> io::Result<()> {
        if matches!(self.way, Way::Coming) {
            if let Some(connection) = self.control.connection() {
                self.way = Way::Open(Box::new(self.serve(connection)));
            }
        }
        self.queue().map_or(Ok(()), |queue| queue.take(out, pool))
    }

    fn is_full(&self) -> bool {
        matches!(&self.way, Way::Open(queue) if queue.is_full())
    }

    fn complete(&mut self, completion: Completion, _: &mut Vec<Request>) {
        if let Some(queue) = self.queue() {
            queue.complete(completion);
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.queue().map_or(Ok(()), Queue::flush)
    }

    fn start(&mut self) -> Work<Node> {
        let control = Arc::clone(&self.control);
        Box::new(move || control.start())
    }

    fn resize(&mut self, new_size: u64) -> Result<Work<()>, Error> {
        self.geometry = geometry::grown(&self.geometry, new_size)?;
        let control = Arc::clone(&self.control);
        let answered = self.queue().map(Queue::when_done);
        Ok(Box::new(move || control.resize(new_size, answered)))
    }

    fn in_use(&self) -> Work<Option<String>> {
        let control = Arc::clone(&self.control);
        Box::new(move || control.in_use())
    }

    fn stop(&mut self, force: bool) -> Work<()> {
        if force {
            self.abort();
        }
        let control = Arc::clone(&self.control);
        Box::new(move || control.stop(force))
    }

    fn stopped(&self) -> bool {
        match &self.way {
            Way::Coming => false,
            Way::Open(queue) => queue.closed(),
            Way::Abandoned => true,
        }
    }

    fn survives(&self) -> bool {
        self.survives
    }
}

impl Drop for NbdFrontEnd {
    /// Takes away what is still there, as a forced stop does; but for what was to be taken over and was not.
    fn drop(&mut self) {
        self.abort();
        let _ = self.control.stop(true);
    }
}

fn check_geometry(geometry: &Geometry) -> Result<(), Error> {
    let bad = |what: String| Err(Error::new(ErrorKind::Geometry, what));
    let block = geometry.logical_block;
    if !block.is_power_of_two() || block < 512 || block as usize > rustix::param::page_size() {
        return bad(format!(
            "an nbd device can't have blocks of {block} bytes, only of 512 to a page"
        ));
    }
    check_size(geometry)?;
    // The driver splits requests at whole pages at the smallest.
    let page = rustix::param::page_size();
    if (geometry.max_transfer as usize) < page
        || !(geometry.max_transfer as usize).is_multiple_of(page)
    {
        return bad(format!(
            "a largest transfer of {} bytes is no multiple of a page",
            geometry.max_transfer
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::tests::geometry;

    #[test]
    fn a_geometry_that_the_driver_can_not_show_is_refused() {
        assert!(check_geometry(&geometry()).is_ok());
        for bad in [
            Geometry {
                logical_block: 65536,
                physical_block: 65536,
                ..geometry()
            },
            Geometry {
                size: 1000,
                ..geometry()
            },
            Geometry {
                size: 0,
                ..geometry()
            },
            Geometry {
                size: 1 << 63,
                ..geometry()
            },
            Geometry {
                max_transfer: 2048,
                ..geometry()
            },
        ] {
            let error = check_geometry(&bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Geometry, "{bad:?}");
        }
    }

    #[test]
    fn a_record_without_a_device_is_cleaned_up_in_silence_and_no_record_is_nothing() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(clean(dir.path(), "x").unwrap(), Vec::<String>::new());
        let record = Record::new("x", true).unwrap();
        record.write(dir.path()).unwrap();
        assert_eq!(clean(dir.path(), "x").unwrap(), Vec::<String>::new());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_bare_file_is_refused_before_the_kernel_is_asked() {
        let error = check(NodeKind::File).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotAvailable);
    }
}
