//! The control path: everything that may block, run on threads other than the one that serves.
//!
//! Works of one device run one after another (they share a lock). A forced stop begins to refuse all requests before its
//! work waits for that lock, so that an earlier work, which hangs in I/O or waits in the kernel until nothing is under way,
//! ends and lets it go.
//!
//! A device that is to be taken over from a dead agent is not this one's until its requests are: whatever fails or stops it
//! before leaves it as it was found.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use dst_client::Geometry;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::Shutdown;

use super::disk::{self, Disk};
use super::driver::{Driver, Wanted};
use super::queue::{server_flags, Queue};
use super::record::Record;
use super::{connection, recover};
use crate::{node, usage, Error, ErrorKind, Node, NodeKind, NODE_DIR};

/// What a device is, as far as its works need to know.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) name: String,
    /// As it was when the front end was opened.
    pub(super) geometry: Geometry,
    /// Bytes, the longest READ and WRITE that is announced.
    pub(super) longest: u32,
    pub(super) partitions: bool,
    /// The run-time directory.
    pub(super) dir: PathBuf,
    /// As it is to be written down.
    pub(super) record: Record,
    /// The device is there, left by a dead agent.
    pub(super) found: Option<Disk>,
    /// What the front end's descriptor is: it waits for the connection.
    pub(super) epoll: Arc<OwnedFd>,
}

/// What the works of one device share.
#[derive(Debug)]
pub(super) struct Control {
    plan: Plan,
    /// Requests are refused.
    aborted: AtomicBool,
    /// Our end of the connection, from `start` to the data path.
    handed: Mutex<Handed>,
    /// The queue of a device that is stopped by force, until a work refuses it.
    abandoned: Mutex<Option<Queue>>,
    state: Mutex<State>,
}

/// A connection on its way to the data path.
#[derive(Debug, Default)]
enum Handed {
    /// Not made yet, or taken already.
    #[default]
    Nothing,
    Connection(OwnedFd),
    /// Nobody takes it any more.
    Refused,
}

/// How far the device is up.
#[derive(Debug, Default)]
struct State {
    /// Nothing is to be started any more.
    ended: bool,
    /// The record, and the device if there is one, are to be taken away in the end.
    ours: bool,
    disk: Option<Disk>,
    link: Option<PathBuf>,
    /// When all requests that a dead agent has left have been sent again.
    resent: Option<Instant>,
}

impl Control {
    pub(super) fn new(plan: Plan) -> Arc<Control> {
        Arc::new(Control {
            aborted: AtomicBool::new(false),
            handed: Mutex::default(),
            abandoned: Mutex::new(None),
            state: Mutex::new(State {
                ours: plan.found.is_none(),
                ..State::default()
            }),
            plan,
        })
    }

    /// The connection, once, when `start` has made it.
    pub(super) fn connection(&self) -> Option<OwnedFd> {
        let mut handed = lock(&self.handed);
        match std::mem::take(&mut *handed) {
            Handed::Connection(ours) => Some(ours),
            other => {
                *handed = other;
                None
            }
        }
    }

    /// As [`Control::connection`], and none is made any more.
    pub(super) fn refuse_connection(&self) -> Option<OwnedFd> {
        let mut handed = lock(&self.handed);
        match std::mem::replace(&mut *handed, Handed::Refused) {
            Handed::Connection(ours) => Some(ours),
            _ => None,
        }
    }

    /// Gives the connection to the data path.
    fn hand(&self, ours: OwnedFd) -> Result<(), Error> {
        let mut handed = lock(&self.handed);
        if matches!(*handed, Handed::Refused) {
            return Err(stopped());
        }
        let wanted = EventFlags::IN;
        epoll::add(&*self.plan.epoll, &ours, EventData::new_u64(0), wanted)
            .map_err(|e| Error::io("can't wait for the kernel", e))?;
        *handed = Handed::Connection(ours);
        Ok(())
    }

    /// Makes works blame the abort for what fails from now on, and leaves the queue to the next forced stop.
    pub(super) fn abandon(&self, queue: Option<Queue>) {
        self.aborted.store(true, Ordering::Release);
        *lock(&self.abandoned) = queue;
    }

    /// An error of a step that needs the device served.
    fn blame(&self, error: Error) -> Error {
        if self.aborted.load(Ordering::Acquire) {
            return error.with_kind(ErrorKind::Stopped);
        }
        error
    }

    /// Makes the device, or takes it over.
    pub(super) fn start(&self) -> Result<Node, Error> {
        let mut state = lock(&self.state);
        if state.ended {
            return Err(stopped());
        }
        let made = match &self.plan.found {
            None => self.connect(&mut state),
            Some(disk) => self.take_over(&mut state, disk),
        };
        let made = made.map_err(|e| self.blame(e));
        if made.is_err() {
            let _ = self.take_away(&mut state);
        }
        made
    }

    fn connect(&self, state: &mut State) -> Result<Node, Error> {
        let Plan {
            geometry, record, ..
        } = &self.plan;
        let mut driver = Driver::find()?;
        let (ours, drivers) = connection::pair()
            .map_err(|e| Error::io("can't make a connection to the kernel", e))?;
        self.write_down(&ours)?;
        let index = driver.connect(
            drivers.as_fd(),
            &Wanted {
                size: geometry.size,
                block: geometry.logical_block,
                flags: server_flags(geometry),
                identifier: &record.identifier,
            },
        )?;
        // The kernel has it now.
        drop(drivers);
        let disk = Disk::new(index, &record.identifier);
        if !disk.is_ours() {
            let _ = driver.disconnect(index);
            return Err(Error::new(
                ErrorKind::NotAvailable,
                "this kernel's nbd driver keeps no identifier of a device",
            )
            .with_hint("it takes Linux 5.14; use another --front-end"));
        }
        state.disk = Some(disk.clone());
        self.hand(ours)?;
        let mut notes = disk.apply(geometry, self.plan.longest);
        if !self.plan.partitions {
            notes.push(
                "partitions are shown: the nbd driver looks for them at every opening".to_owned(),
            );
        }
        // The first opening scans for partitions.
        let node = open(&disk, OFlags::empty())
            .map_err(|e| Error::io(format!("can't open {}", disk.path().display()), e))?;
        drop(node);
        let shown = disk.shown()?;
        if shown.size != geometry.size || shown.read_only != geometry.read_only {
            return Err(Error::new(
                ErrorKind::Io,
                format!("{} did not take over the geometry", disk.name()),
            ));
        }
        self.node(state, disk, notes)
    }

    /// Gives the device of a dead agent a new connection. Its requests flow when all else is done: nothing fails after that. It
    /// keeps its size: to change it, what is under way has to have been answered.
    fn take_over(&self, state: &mut State, disk: &Disk) -> Result<Node, Error> {
        let ours = recover::reconnect(disk)?;
        self.write_down(&ours)?;
        let notes = disk.differences(&self.plan.geometry);
        let node = self.node(state, disk.clone(), Vec::new())?;
        self.hand(ours)?;
        state.ours = true;
        state.disk = Some(disk.clone());
        state.resent = Some(Instant::now() + disk.resent());
        Ok(Node { notes, ..node })
    }

    /// Writes down what is needed to get at the device and its connection from outside.
    fn write_down(&self, ours: &OwnedFd) -> Result<(), Error> {
        let record = Record {
            // Less is known without.
            socket: connection::inode(ours).ok(),
            process: Some(rustix::process::getpid()),
            ..self.plan.record.clone()
        };
        record.write(&self.plan.dir)
    }

    /// Makes the link to the device.
    fn node(&self, state: &mut State, disk: Disk, notes: Vec<String>) -> Result<Node, Error> {
        let path = disk.path();
        let link = node::place(Path::new(NODE_DIR), &self.plan.name, &path, |old| {
            old == path || disk::replaceable(old)
        })?;
        state.link = Some(link.clone());
        Ok(Node {
            path: link,
            kind: NodeKind::BlockDevice,
            device: path,
            // One for each connection.
            queues: 1,
            notes,
        })
    }

    /// Gives the device another size, when all that was under way has been answered (`answered`): what follows is then not
    /// kept waiting for long by the server, with the driver's locks held.
    pub(super) fn resize(
        &self,
        new_size: u64,
        answered: Option<Receiver<()>>,
    ) -> Result<(), Error> {
        if let Some(answered) = answered {
            answered.recv().map_err(|_| stopped())?;
        }
        self.grow(&lock(&self.state), new_size)
    }

    fn grow(&self, state: &State, new_size: u64) -> Result<(), Error> {
        let Some(disk) = &state.disk else {
            return Ok(());
        };
        // Those that wait to be sent again would be waited for, too.
        while state.resent.is_some_and(|at| Instant::now() < at) {
            if self.aborted.load(Ordering::Acquire) {
                return Err(stopped());
            }
            thread::sleep(Duration::from_millis(50));
        }
        Driver::find()?
            .resize(disk.index, new_size, disk.identifier())
            .map_err(|e| {
                self.blame(Error::io(
                    format!("the kernel does not resize {}", disk.name()),
                    e,
                ))
            })?;
        if disk.shown().is_ok_and(|shown| shown.size == new_size) {
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
            Error::new(ErrorKind::Busy, format!("{} is {who}", self.plan.name))
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

    /// Takes away everything that is ours, used or not.
    fn take_away(&self, state: &mut State) -> Result<(), Error> {
        if !state.ours {
            state.ended = true;
            return Ok(());
        }
        let disconnected = disconnect_ours(state);
        self.forget(state);
        disconnected
    }

    /// Takes away what is left when the kernel has been told.
    fn forget(&self, state: &mut State) {
        state.ended = true;
        if let Some(disk) = state.disk.take() {
            if let Some(link) = state.link.take() {
                node::remove(&link, &disk.path());
            }
            disk.wait_until_gone();
        }
        if state.ours {
            let _ = Record::remove(&self.plan.dir);
        }
    }
}

fn stopped() -> Error {
    Error::new(ErrorKind::Stopped, "the device was stopped")
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::tests::geometry;

    fn control(dir: &Path, found: Option<Disk>) -> Arc<Control> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        Control::new(Plan {
            name: "x".to_owned(),
            geometry: geometry(),
            longest: 65536,
            partitions: true,
            dir: dir.to_owned(),
            record: Record::new("x", true).unwrap(),
            found,
            epoll: Arc::new(epoll),
        })
    }

    #[test]
    fn a_connection_is_handed_over_once_and_none_after_a_stop() {
        let dir = tempfile::tempdir().unwrap();
        let control = control(dir.path(), None);
        assert!(control.connection().is_none());
        let (ours, _drivers) = connection::pair().unwrap();
        control.hand(ours).unwrap();
        assert!(control.connection().is_some());
        assert!(control.connection().is_none());

        let (ours, _drivers) = connection::pair().unwrap();
        control.hand(ours).unwrap();
        assert!(control.refuse_connection().is_some());
        let (ours, drivers) = connection::pair().unwrap();
        let error = control.hand(ours).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Stopped);
        assert!(connection::is_alone(&drivers));
        assert!(control.connection().is_none());
    }

    #[test]
    fn what_was_to_be_taken_over_and_was_not_is_left_as_it_was_found() {
        let dir = tempfile::tempdir().unwrap();
        for (found, left) in [(Some(Disk::new(123_456, "another")), true), (None, false)] {
            let control = control(dir.path(), found);
            control.plan.record.write(dir.path()).unwrap();
            control.stop(true).unwrap();
            assert_eq!(Record::read(dir.path()).unwrap().is_some(), left);
            let error = control.start().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Stopped);
        }
    }

    #[test]
    fn a_device_is_not_resized_before_what_was_under_way_is_answered() {
        let dir = tempfile::tempdir().unwrap();
        let control = control(dir.path(), None);
        let (tell, answered) = std::sync::mpsc::channel();
        drop(tell);
        let error = control.resize(2 << 20, Some(answered)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Stopped);
        let (tell, answered) = std::sync::mpsc::channel();
        let resizing = thread::spawn(move || control.resize(2 << 20, Some(answered)));
        tell.send(()).unwrap();
        // There is none.
        resizing.join().unwrap().unwrap();
    }
}
