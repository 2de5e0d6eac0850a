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
//! | [`FrontEnd::stop`] with force | fail | goes with the last one who closes it |
//! | **the agent dies** | **wait, without end** | stays, until [`crate::cleanup_stale`]: then as with force |
//! | somebody else disconnects it (`nbd-client -d`) | fail | goes; the front end is `stopped` |
//!
//! That requests wait for a dead agent is the driver's nature: it fails those that it has sent only when it is disconnected,
//! so the rest is made to wait too (see `driver.rs`). Processes in such a wait can't be killed; `dst detach NAME` ends it.
//!
//! # Two traps of the driver
//!
//! - **Closing the socket fails nothing.** So a forced stop goes on answering, with errors, until the driver has been told to
//!   disconnect (`Queue::refuse`).
//! - **A resize waits until nothing is under way, with the driver's locks held**, and with the lock of generic netlink, that
//!   is of the whole machine. The agent starts one only on hearing from the server, when requests are answered at once. But
//!   if the server goes away in that very moment, the resize waits with the requests, and so does every generic netlink
//!   request on the machine; it ends when the server is back, a deadline passes, or by a forced stop. An agent that is
//!   *killed* in that moment leaves a device that only a reboot takes away.
//!
//! # Which device is ours
//!
//! The agent writes an identifier of its own into its run-time directory (file `nbd`) before it gives it to the driver, which
//! shows it in `/sys/block/nbdN/backend`. So whoever cleans up takes away that device and no other, whatever became of the
//! number meanwhile.
//!
//! | file | subject |
//! | --- | --- |
//! | `netlink.rs` | generic netlink: messages, attributes, a socket that asks |
//! | `driver.rs` | the driver's commands |
//! | `wire.rs` | requests and replies on the socket |
//! | `input.rs`, `output.rs` | reading and writing them |
//! | `queue.rs` | the data path |
//! | `disk.rs` | the device in sysfs |
//! | `control.rs` | the works that may block |

mod control;
mod disk;
mod driver;
mod input;
mod netlink;
mod output;
mod queue;
mod wire;

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{mpsc, Arc};
use std::thread;
use std::time::Duration;

use dst_buf::Pool;
use dst_client::{Completion, Geometry, Request};
use rustix::net::sockopt::set_socket_send_buffer_size_force;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use self::control::{Control, Plan};
use self::driver::Driver;
use self::queue::Queue;
use crate::geometry::{self, check_size};
use crate::runtime::NameLock;
use crate::{node, runtime, Config, Error, ErrorKind, FrontEnd, Node, NodeKind, Work, NODE_DIR};

/// Largest READ and WRITE in bytes, if the server takes them.
const LARGEST_TRANSFER: u32 = 1 << 20;
/// Bytes under way on the socket, each way, before the sender has to wait.
const SOCKET_BUFFER: usize = 4 << 20;
/// How long an abort waits for the driver.
const ABORTING: Duration = Duration::from_millis(500);
/// Where the identifier of the device is written down, in the run-time directory.
const RECORD: &str = "nbd";

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
/// The driver tells the agent first, and for one that is stopped and has its socket full it waits until that process is
/// dead; this does not.
///
/// # Errors
/// The kernel's; `Io` if it takes long: the device is not cut off then, or not yet.
pub fn abort(name: &str) -> Result<bool, Error> {
    runtime::check_name(name)?;
    let record = runtime::runtime_root().join(name).join(RECORD);
    let disks = recorded(&record)?.map_or_else(Vec::new, |identifier| disk::connected(&identifier));
    let found = !disks.is_empty();
    let (done, wait) = mpsc::channel();
    thread::Builder::new()
        .name("abort".to_owned())
        .spawn(move || {
            let ended = disks.iter().try_for_each(control::disconnect);
            // Nobody listens after the time is up.
            let _ = done.send(ended);
        })
        .map_err(|e| Error::io("can't start a thread", e))?;
    match wait.recv_timeout(ABORTING) {
        Ok(ended) => ended.map(|()| found),
        Err(_) if found => Err(Error::new(
            ErrorKind::Io,
            "the nbd driver has not cut the device off yet",
        )),
        Err(_) => Ok(false),
    }
}

/// The identifier that is written down; `None` if none is.
fn recorded(record: &Path) -> Result<Option<String>, Error> {
    match fs::read_to_string(record) {
        Ok(identifier) => Ok(Some(identifier)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io(format!("can't read {}", record.display()), error)),
    }
}

/// As `cleanup_stale`, with the lock held.
fn clean(dir: &Path, name: &str) -> Result<Vec<String>, Error> {
    let record = dir.join(RECORD);
    let Some(identifier) = recorded(&record)? else {
        return Ok(Vec::new());
    };
    let link = Path::new(NODE_DIR).join(name);
    let mut cleaned = Vec::new();
    for disk in disk::connected(&identifier) {
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
    fs::remove_file(&record)
        .map_err(|e| Error::io(format!("can't remove {}", record.display()), e))?;
    Ok(cleaned)
}

/// See the module.
#[derive(Debug)]
pub struct NbdFrontEnd {
    /// `None` after a forced stop.
    queue: Option<Queue>,
    /// The queue's, kept beyond its end.
    fd: Arc<OwnedFd>,
    /// As it is now.
    geometry: Geometry,
    control: Arc<Control>,
    /// Held until everything has been taken away.
    _lock: NameLock,
}

impl NbdFrontEnd {
    /// Prepares the connection. Whatever a dead front end of the same name has left is removed first.
    ///
    /// # Errors
    /// Any kind but `Busy` and `Stopped`.
    pub fn open(config: &Config) -> Result<NbdFrontEnd, Error> {
        check_geometry(&config.geometry)?;
        check(config.node.unwrap_or(NodeKind::BlockDevice))?;
        let lock = NameLock::take(&config.name)?;
        clean(lock.dir(), &config.name)?;

        let failed = |error: io::Error| Error::io("can't make a connection to the kernel", error);
        let (ours, kernels) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(|e| failed(e.into()))?;
        // Only ours: the driver's must block.
        rustix::io::ioctl_fionbio(&ours, true).map_err(|e| failed(e.into()))?;
        for socket in [&ours, &kernels] {
            // A smaller one only means more waiting.
            let _ = set_socket_send_buffer_size_force(socket, SOCKET_BUFFER);
        }
        let longest = config.geometry.max_transfer.min(LARGEST_TRANSFER);
        let queue = Queue::new(ours, longest).map_err(failed)?;
        let identifier = identifier(&config.name)?;
        let record = write_record(lock.dir(), &identifier)?;
        Ok(NbdFrontEnd {
            fd: queue.fd(),
            queue: Some(queue),
            geometry: config.geometry,
            control: Control::new(Plan {
                name: config.name.clone(),
                geometry: config.geometry,
                longest,
                partitions: config.partitions,
                identifier,
                record,
                socket: kernels,
            }),
            _lock: lock,
        })
    }

    /// Leaves the queue to a work that refuses everything.
    fn abort(&mut self) {
        if let Some(queue) = self.queue.take() {
            self.control.abandon(queue);
        }
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
        match &mut self.queue {
            Some(queue) => queue.take(out, pool),
            None => Ok(()),
        }
    }

    fn is_full(&self) -> bool {
        self.queue.as_ref().is_some_and(Queue::is_full)
    }

    fn complete(&mut self, completion: Completion, _: &mut Vec<Request>) {
        if let Some(queue) = &mut self.queue {
            queue.complete(completion);
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.queue {
            Some(queue) => queue.flush(),
            None => Ok(()),
        }
    }

    fn start(&mut self) -> Work<Node> {
        let control = Arc::clone(&self.control);
        Box::new(move || control.start())
    }

    fn resize(&mut self, new_size: u64) -> Result<Work<()>, Error> {
        self.geometry = geometry::grown(&self.geometry, new_size)?;
        let control = Arc::clone(&self.control);
        Ok(Box::new(move || control.resize(new_size)))
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
        self.queue.as_ref().is_none_or(Queue::closed)
    }
}

impl Drop for NbdFrontEnd {
    /// Takes away what is still there, as a forced stop does.
    fn drop(&mut self) {
        self.abort();
        let _ = self.control.stop(true);
    }
}

/// A name for one use of one device, as no other has it.
fn identifier(name: &str) -> Result<String, Error> {
    let mut random = [0; 8];
    let filled = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
        .map_err(|e| Error::io("there are no random numbers", e))?;
    debug_assert_eq!(filled, random.len());
    Ok(format!("dst:{name}:{:016x}", u64::from_ne_bytes(random)))
}

/// Writes the identifier down, in one step.
fn write_record(dir: &Path, identifier: &str) -> Result<PathBuf, Error> {
    let record = dir.join(RECORD);
    let new = dir.join("nbd.new");
    fs::write(&new, identifier)
        .and_then(|()| fs::rename(&new, &record))
        .map_err(|e| Error::io(format!("can't write {}", record.display()), e))?;
    Ok(record)
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

    /// A disk that can do everything.
    pub(super) fn geometry() -> Geometry {
        Geometry {
            size: 1 << 20,
            logical_block: 512,
            physical_block: 512,
            max_transfer: 1 << 20,
            read_only: false,
            rotational: false,
            discard: true,
            discard_granularity: 4096,
            write_zeroes: true,
            write_cache: true,
            fua: true,
        }
    }

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
        let identifier = identifier("x").unwrap();
        let record = write_record(dir.path(), &identifier).unwrap();
        assert!(fs::read_to_string(&record).unwrap().starts_with("dst:x:"));
        assert_eq!(clean(dir.path(), "x").unwrap(), Vec::<String>::new());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_bare_file_is_refused_before_the_kernel_is_asked() {
        let error = check(NodeKind::File).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotAvailable);
    }
}
