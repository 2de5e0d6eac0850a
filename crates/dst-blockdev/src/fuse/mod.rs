//! The FUSE front end: one file through `/dev/fuse`, and for root a loop device on top of it.
//!
//! It works on every kernel with FUSE, without any module of ours. Its price: a request passes through two drivers, and
//! **if the agent dies, the device dies**: the kernel then fails every request with an I/O error at once, for ever, and a
//! file system on it has to be unmounted. A new agent can't take the device over, only remove it
//! ([`crate::cleanup_stale`]).
//!
//! | file | subject |
//! | --- | --- |
//! | `proto.rs`, `reply.rs` | the kernel protocol: parsing requests, encoding answers |
//! | `device.rs` | reading requests and writing answers |
//! | `ops.rs`, `mutate.rs` | what requests mean, sans I/O; unaligned ones |
//! | `mount.rs`, `connection.rs` | mounting, unmounting; cutting a connection from outside |
//! | `loopdev.rs`, `limits.rs` | the loop device and what it announces |
//! | `control.rs` | the works that may block |

mod connection;
mod control;
mod device;
mod limits;
mod loopdev;
mod mount;
mod mutate;
mod ops;
mod proto;
mod reply;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use dst_buf::Pool;
use dst_client::{Completion, Geometry, Request};
use rustix::io::Errno;

use self::control::Control;
use self::device::{Answer, Device, Event};
use self::ops::{FileInfo, Ops, Sink};
use crate::geometry::{self, check_size};
use crate::runtime::NameLock;
use crate::{node, runtime, Config, Error, ErrorKind, FrontEnd, Node, NodeKind, Work};

/// Largest READ and WRITE that the kernel takes, in bytes: 256 pages of 4 KiB.
const LARGEST_TRANSFER: u32 = 1 << 20;
/// Requests that one call of `take` reads at most, so that answers don't wait for an endless stream of requests.
const TAKE_BUDGET: usize = 256;

/// Whether this machine and user can make such a device.
///
/// # Errors
/// What is missing and what to do.
pub fn check(kind: NodeKind) -> Result<(), Error> {
    mount::check()?;
    if kind == NodeKind::BlockDevice {
        if !runtime::is_root() {
            return Err(
                Error::new(ErrorKind::Permission, "only root can make a block device")
                    .with_hint("run it with sudo, or use the bare file"),
            );
        }
        loopdev::check()?;
    }
    Ok(())
}

/// Removes what a dead front end of this name has left: the loop device, the mount, the link. Returns what was there.
///
/// A loop device that somebody still has open goes when the last one closes it; I/O on it fails until then.
///
/// # Errors
/// `NameTaken` if a live front end has the name; `Io` if something can't be removed.
pub fn cleanup_stale(name: &str) -> Result<Vec<String>, Error> {
    let lock = NameLock::take(name)?;
    clean(lock.dir(), name)
}

/// Cuts off the front end of this name, whoever serves it and whatever that process is doing: every request that waits fails
/// with an I/O error, and every later one. False: there is none.
///
/// # Errors
/// The kernel offers no way to it, or not to this user.
pub fn abort(name: &str) -> Result<bool, Error> {
    runtime::check_name(name)?;
    mount::abort(&runtime::runtime_root().join(name))
}

/// As `cleanup_stale`, with the lock held.
fn clean(dir: &std::path::Path, name: &str) -> Result<Vec<String>, Error> {
    let mut cleaned = Vec::new();
    let point = mount::point_in(dir);
    for disk in loopdev::over(&point) {
        disk.detach(true)?;
        node::remove(
            &std::path::Path::new(crate::NODE_DIR).join(name),
            &disk.path(),
        );
        cleaned.push(format!("the loop device {}", disk.name()));
    }
    if mount::remove_leftover(dir)? {
        cleaned.push(format!("the mount {}", point.display()));
    }
    Ok(cleaned)
}

/// See the module.
#[derive(Debug)]
pub struct FuseFrontEnd {
    device: Device,
    ops: Ops,
    answers: VecDeque<Answer>,
    control: Arc<Control>,
    /// Nothing comes any more.
    stopped: bool,
    /// Held until everything has been taken away.
    _lock: NameLock,
}

impl FuseFrontEnd {
    /// Mounts the file. Whatever a dead front end of the same name has left is removed first.
    ///
    /// # Errors
    /// Any kind but `Busy` and `Stopped`.
    pub fn open(config: &Config) -> Result<FuseFrontEnd, Error> {
        let kind = config.node.unwrap_or(if runtime::is_root() {
            NodeKind::BlockDevice
        } else {
            NodeKind::File
        });
        check_geometry(&config.geometry, kind)?;
        check(kind)?;
        let lock = NameLock::take(&config.name)?;
        clean(lock.dir(), &config.name)?;

        let page = u32::try_from(rustix::param::page_size()).unwrap_or(4096);
        let transfer = largest_transfer(&config.geometry, kind, page);
        let (mount, fd) = mount::mount(
            lock.dir(),
            &config.name,
            config.geometry.read_only,
            transfer,
        )?;
        let info = FileInfo {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            time_seconds: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| since.as_secs()),
            transfer,
            page,
        };
        let device = match Device::new(fd, transfer) {
            Ok(device) => device,
            Err(error) => {
                let _ = mount.remove();
                return Err(Error::io("can't make an event descriptor", error));
            }
        };
        Ok(FuseFrontEnd {
            device,
            ops: Ops::new(config.geometry, info),
            answers: VecDeque::with_capacity(TAKE_BUDGET),
            control: Control::new(
                config.name.clone(),
                kind,
                config.partitions,
                config.geometry,
                transfer,
                mount,
            ),
            stopped: false,
            _lock: lock,
        })
    }

    fn push_answers(&mut self) -> io::Result<()> {
        while let Some(answer) = self.answers.pop_front() {
            match self.device.answer(&answer) {
                Ok(true) => {}
                Ok(false) => {
                    self.end();
                    return Ok(());
                }
                Err(error) => {
                    self.end();
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Nobody waits for anything any more.
    fn end(&mut self) {
        self.stopped = true;
        self.answers.clear();
        self.ops.forget_all();
    }

    /// Cuts the connection.
    fn abort(&mut self) {
        self.control.set_aborted();
        if !self.stopped {
            self.device.abort();
        }
        self.end();
    }
}

impl FrontEnd for FuseFrontEnd {
    fn name(&self) -> &'static str {
        "fuse"
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.device.fd()
    }

    fn take(&mut self, out: &mut Vec<Request>, pool: &Pool) -> io::Result<()> {
        for taken in 0..TAKE_BUDGET {
            if self.stopped {
                return Ok(());
            }
            // One is read in any case: it may be the news that the connection is gone.
            if taken > 0 && self.ops.is_full() {
                break;
            }
            let event = match self.device.read(pool) {
                Ok(event) => event,
                Err(error) => {
                    self.end();
                    return Err(error);
                }
            };
            match event {
                Event::Request(header, message, payload) => {
                    let mut sink = Sink {
                        requests: out,
                        answers: &mut self.answers,
                    };
                    self.ops.request(header, message, payload, pool, &mut sink);
                }
                Event::Malformed(Some(unique)) => self.answers.push_back(Answer {
                    unique,
                    result: Err(Errno::IO),
                }),
                Event::Malformed(None) => {}
                Event::Empty => break,
                Event::Closed => {
                    self.end();
                    return Ok(());
                }
            }
        }
        self.push_answers()
    }

    fn is_full(&self) -> bool {
        self.ops.is_full()
    }

    fn complete(&mut self, completion: Completion, out: &mut Vec<Request>) {
        let mut sink = Sink {
            requests: out,
            answers: &mut self.answers,
        };
        self.ops.complete(completion, &mut sink);
    }

    fn flush(&mut self) -> io::Result<()> {
        self.push_answers()
    }

    fn start(&mut self) -> Work<Node> {
        let control = Arc::clone(&self.control);
        Box::new(move || control.start())
    }

    fn resize(&mut self, new_size: u64) -> Result<Work<()>, Error> {
        self.ops.geometry = geometry::grown(&self.ops.geometry, new_size)?;
        if !self.stopped {
            self.device
                .invalidate_attributes()
                .map_err(|e| Error::io("can't tell the kernel of the new size", e))?;
        }
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
        self.stopped
    }
}

impl Drop for FuseFrontEnd {
    /// Takes away what is still there, as a forced stop does.
    fn drop(&mut self) {
        self.abort();
        let _ = self.control.stop(true);
    }
}

/// Largest READ and WRITE in bytes, a multiple of the page.
fn largest_transfer(geometry: &Geometry, kind: NodeKind, page: u32) -> u32 {
    let limit = match kind {
        // The loop device asks for whole blocks only.
        NodeKind::BlockDevice => geometry.max_transfer,
        // Widening to whole blocks must not make a request longer than a transfer.
        NodeKind::File => geometry.max_transfer / 2,
    };
    // The kernel goes no lower than one page, so neither do we; see `Ops::fit`.
    (limit.min(LARGEST_TRANSFER) / page * page).max(page)
}

fn check_geometry(geometry: &Geometry, kind: NodeKind) -> Result<(), Error> {
    let bad = |what: String| Err(Error::new(ErrorKind::Geometry, what));
    let block = geometry.logical_block;
    if !block.is_power_of_two() || block < 512 {
        return bad(format!("{block} is no block size"));
    }
    if kind == NodeKind::BlockDevice && block as usize > rustix::param::page_size() {
        return bad(format!(
            "a loop device can't have blocks of {block} bytes, which is more than a page"
        ));
    }
    check_size(geometry)?;
    if geometry.max_transfer < block || !geometry.max_transfer.is_multiple_of(block) {
        return bad(format!(
            "a largest transfer of {} bytes is no multiple of the block size {block}",
            geometry.max_transfer
        ));
    }
    // One page is the least that the kernel sends at once.
    if (geometry.max_transfer as usize) < 2 * rustix::param::page_size() {
        return bad(format!(
            "a largest transfer of {} bytes is too little",
            geometry.max_transfer
        ));
    }
    Ok(())
}
