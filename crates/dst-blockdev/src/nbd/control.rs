//! The control path: everything that may block, run on threads other than the one that serves.
//!
//! Works of one device run one after another (they share a lock). A forced stop begins to refuse all requests before its
//! work waits for that lock, so that an earlier work, which hangs in I/O or waits in the kernel until nothing is under way,
//! ends and lets it go.

use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use dst_client::Geometry;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::Shutdown;

use super::disk::{self, Disk};
use super::driver::{Driver, Wanted};
use super::queue::{server_flags, Queue};
use crate::{node, usage, Error, ErrorKind, Node, NodeKind, NODE_DIR};

/// What the works of one device share.
#[derive(Debug)]
pub(super) struct Control {
    pub(super) name: String,
    /// As it was when the front end was opened.
    geometry: Geometry,
    /// Bytes, the longest READ and WRITE.
    longest: u32,
    partitions: bool,
    /// What the device is known by to the kernel.
    identifier: String,
    /// Where the identifier is written down.
    record: PathBuf,
    /// Requests are refused.
    aborted: AtomicBool,
    /// The queue of a device that is stopped by force, until a work refuses it.
    abandoned: Mutex<Option<Queue>>,
    state: Mutex<State>,
}

/// How far the device is up.
#[derive(Debug, Default)]
struct State {
    /// The kernel's end of the connection, until the kernel has it.
    socket: Option<OwnedFd>,
    disk: Option<Disk>,
    link: Option<PathBuf>,
}

/// What a device is, as far as its works need to know.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) name: String,
    pub(super) geometry: Geometry,
    /// Bytes, the longest READ and WRITE.
    pub(super) longest: u32,
    pub(super) partitions: bool,
    pub(super) identifier: String,
    pub(super) record: PathBuf,
    /// The kernel's end of the connection.
    pub(super) socket: OwnedFd,
}

impl Control {
    pub(super) fn new(plan: Plan) -> Arc<Control> {
        Arc::new(Control {
            name: plan.name,
            geometry: plan.geometry,
            longest: plan.longest,
            partitions: plan.partitions,
            identifier: plan.identifier,
            record: plan.record,
            aborted: AtomicBool::new(false),
            abandoned: Mutex::new(None),
            state: Mutex::new(State {
                socket: Some(plan.socket),
                ..State::default()
            }),
        })
    }

    /// Leaves the queue to the next forced stop, and makes works blame the abort for what fails from now on.
    pub(super) fn abandon(&self, queue: Queue) {
        self.aborted.store(true, Ordering::Release);
        *lock(&self.abandoned) = Some(queue);
    }

    /// An error of a step that needs the device served.
    fn blame(&self, error: Error) -> Error {
        if self.aborted.load(Ordering::Acquire) {
            return error.with_kind(ErrorKind::Stopped);
        }
        error
    }

    /// Makes the device.
    pub(super) fn start(&self) -> Result<Node, Error> {
        let mut state = lock(&self.state);
        let stopped = || Error::new(ErrorKind::Stopped, "the device was stopped");
        let socket = state.socket.take().ok_or_else(stopped)?;
        let made = self.connect(&mut state, socket).map_err(|e| self.blame(e));
        if made.is_err() {
            let _ = self.take_away(&mut state);
        }
        made
    }

    fn connect(&self, state: &mut State, socket: OwnedFd) -> Result<Node, Error> {
        let mut driver = Driver::find()?;
        let index = driver.connect(
            socket.as_fd(),
            &Wanted {
                size: self.geometry.size,
                block: self.geometry.logical_block,
                flags: server_flags(&self.geometry),
                identifier: &self.identifier,
            },
        )?;
        // The kernel has it now.
        drop(socket);
        let disk = Disk::new(index, &self.identifier);
        if !disk.is_ours() {
            let _ = driver.disconnect(index);
            return Err(Error::new(
                ErrorKind::NotAvailable,
                "this kernel's nbd driver keeps no identifier of a device",
            )
            .with_hint("it takes Linux 5.14; use another --front-end"));
        }
        state.disk = Some(disk.clone());
        let mut notes = disk.apply(&self.geometry, self.longest)?;
        if !self.partitions {
            notes.push(
                "partitions are shown: the nbd driver looks for them at every opening".to_owned(),
            );
        }
        // The first opening scans for partitions.
        let node = open(&disk, OFlags::empty())
            .map_err(|e| Error::io(format!("can't open {}", disk.path().display()), e))?;
        drop(node);
        let size = disk
            .size()
            .map_err(|e| Error::io(format!("can't read the size of {}", disk.name()), e))?;
        if size != self.geometry.size || disk.is_read_only() != self.geometry.read_only {
            return Err(Error::new(
                ErrorKind::Io,
                format!("{} did not take over the geometry", disk.name()),
            ));
        }
        let link = node::place(
            Path::new(NODE_DIR),
            &self.name,
            &disk.path(),
            disk::replaceable,
        )?;
        state.link = Some(link.clone());
        Ok(Node {
            path: link,
            kind: NodeKind::BlockDevice,
            device: disk.path(),
            notes,
        })
    }

    /// Gives the device another size.
    pub(super) fn resize(&self, new_size: u64) -> Result<(), Error> {
        let state = lock(&self.state);
        let Some(disk) = &state.disk else {
            return Ok(());
        };
        Driver::find()?
            .resize(disk.index, new_size, &self.identifier)
            .map_err(|e| {
                self.blame(Error::io(
                    format!("the kernel does not resize {}", disk.name()),
                    e,
                ))
            })?;
        if disk.size().is_ok_and(|shown| shown == new_size) {
            return Ok(());
        }
        Err(self.blame(Error::new(
            ErrorKind::Io,
            format!("{} did not take over the new size", disk.name()),
        )))
    }

    /// Who uses the device.
    pub(super) fn in_use(&self) -> Result<Option<String>, Error> {
        user(&lock(&self.state))
    }

    /// Takes the device away.
    pub(super) fn stop(&self, force: bool) -> Result<(), Error> {
        if force {
            let abandoned = lock(&self.abandoned).take();
            return refusing(abandoned, || self.take_away(&mut lock(&self.state)));
        }
        let mut state = lock(&self.state);
        let busy = |who: String| {
            Error::new(ErrorKind::Busy, format!("{} is {who}", self.name))
                .with_hint("unmount or close it first, or use --force and lose what is not written")
        };
        if let Some(who) = user(&state)? {
            return Err(busy(who));
        }
        // Keeps others from mounting it, and is the last to close it.
        let mut claim = None;
        if let Some(disk) = state.disk.as_ref().filter(|disk| disk.is_ours()) {
            let failed = |what: &str, errno: Errno| {
                Error::io(format!("can't {what} {}", disk.path().display()), errno)
            };
            let node = open(disk, OFlags::EXCL).map_err(|errno| match errno {
                Errno::BUSY => busy("in exclusive use".to_owned()),
                errno => failed("open", errno),
            })?;
            rustix::fs::fsync(&node).map_err(|errno| failed("write back", errno))?;
            claim = Some(node);
        }
        disconnect_ours(&state)?;
        drop(claim);
        self.forget(&mut state);
        Ok(())
    }

    /// Takes away everything, used or not.
    fn take_away(&self, state: &mut State) -> Result<(), Error> {
        let disconnected = disconnect_ours(state);
        self.forget(state);
        disconnected
    }

    /// Takes away what is left when the kernel has been told.
    fn forget(&self, state: &mut State) {
        state.socket = None;
        if let Some(disk) = state.disk.take() {
            if let Some(link) = state.link.take() {
                node::remove(&link, &disk.path());
            }
            disk.wait_until_gone();
        }
        let _ = fs::remove_file(&self.record);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A work that panicked leaves at worst something to take away that is there.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn open(disk: &Disk, flags: OFlags) -> rustix::io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | flags;
    rustix::fs::open(disk.path(), flags, Mode::empty()).map(File::from)
}

fn user(state: &State) -> Result<Option<String>, Error> {
    // One that is not ours any more has been disconnected behind our back.
    let Some(disk) = state.disk.as_ref().filter(|disk| disk.is_ours()) else {
        return Ok(None);
    };
    usage::of_disk(&disk.name())
        .map_err(|e| Error::io(format!("can't find out who uses {}", disk.name()), e))
}

fn disconnect_ours(state: &State) -> Result<(), Error> {
    match &state.disk {
        Some(disk) if disk.is_ours() => disconnect(disk),
        _ => Ok(()),
    }
}

/// Has the kernel fail everything on a device and take it away with the last one who has it open.
pub(super) fn disconnect(disk: &Disk) -> Result<(), Error> {
    Driver::find()?
        .disconnect(disk.index)
        .map_err(|e| Error::io(format!("can't disconnect {}", disk.name()), e))
}

/// Runs `work` while everything in the queue is refused.
fn refusing(queue: Option<Queue>, work: impl FnOnce() -> Result<(), Error>) -> Result<(), Error> {
    let Some((queue, socket)) = queue.and_then(|queue| queue.socket().ok().map(|s| (queue, s)))
    else {
        return work();
    };
    thread::scope(|scope| {
        // Without a thread the connection just ends, which is as good but for a resize that hangs.
        let _ = thread::Builder::new()
            .name("refuse".to_owned())
            .spawn_scoped(scope, move || queue.refuse());
        let done = work();
        // Where the kernel has not closed the connection, nothing else would end the refuser.
        let _ = rustix::net::shutdown(&socket, Shutdown::Both);
        done
    })
}
