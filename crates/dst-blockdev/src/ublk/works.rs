//! The control path: everything that may block, run on threads other than the one that serves.
//!
//! Works of one device run one after another (they share a lock). A forced stop ends the queues before its work waits for
//! that lock, so that an earlier work which hangs in I/O fails and lets it go.
//!
//! # When the queues may end
//! A driver that has been told to start a disk sends I/O to it whether the queues are still there or not; only once it has
//! the disk does it see that they ended. So no queue is ended, by us, between START_DEV and the disk's appearance, a
//! time in which the driver does no I/O ([`Works::set_ended`] waits for its end), and START_DEV is not issued when they
//! have ended.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use dst_client::Geometry;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::abi::{feature, SECTOR};
use super::control::Control;
use super::disk::{self, Disk};
use super::record::Mark;
use crate::{node, usage, Error, ErrorKind, Node, NodeKind, NODE_DIR};

/// The longest that a driver takes from START_DEV to the disk: it allocates, and makes nodes.
const APPEARING: Duration = Duration::from_secs(2);
/// How long to wait for others to close the device before saying that it is open: udev opens every device for a moment.
const PATIENCE: Duration = Duration::from_secs(3);

/// What the works of one device share.
#[derive(Debug)]
pub(super) struct Works {
    pub(super) name: String,
    pub(super) disk: Disk,
    pub(super) mark: Mark,
    /// The run-time directory.
    pub(super) dir: PathBuf,
    /// As it was when the front end was opened.
    pub(super) geometry: Geometry,
    /// Largest request in bytes.
    pub(super) transfer: u32,
    pub(super) partitions: bool,
    /// As many as the driver has made.
    queues: u16,
    /// The disk is there, and waits for END_USER_RECOVERY.
    recovers: bool,
    /// Whether the disk is still to be taken away when this is dropped; not one that waits for another recovery.
    ours: AtomicBool,
    /// START_DEV is on its way.
    starting: AtomicBool,
    /// The queues have ended, or are about to.
    ended: AtomicBool,
    state: Mutex<State>,
}

/// How far the device is up.
#[derive(Debug)]
struct State {
    control: Control,
    link: Option<PathBuf>,
    /// Everything has been taken away.
    removed: bool,
}

/// What a device is, for [`Works::new`].
pub(super) struct Parts {
    pub(super) name: String,
    pub(super) disk: Disk,
    pub(super) mark: Mark,
    pub(super) dir: PathBuf,
    pub(super) geometry: Geometry,
    pub(super) transfer: u32,
    pub(super) partitions: bool,
    pub(super) queues: u16,
    pub(super) control: Control,
    /// It is taken over from a dead process.
    pub(super) recovers: bool,
}

impl Works {
    pub(super) fn new(parts: Parts) -> Arc<Works> {
        Arc::new(Works {
            name: parts.name,
            disk: parts.disk,
            mark: parts.mark,
            dir: parts.dir,
            geometry: parts.geometry,
            transfer: parts.transfer,
            partitions: parts.partitions,
            queues: parts.queues,
            recovers: parts.recovers,
            ours: AtomicBool::new(!parts.recovers),
            starting: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            state: Mutex::new(State {
                control: parts.control,
                link: None,
                removed: false,
            }),
        })
    }

    /// To be called before the queues end: see the module. Returns when they may end.
    pub(super) fn set_ended(&self) {
        self.ended.store(true, Ordering::SeqCst);
        let since = Instant::now();
        while self.starting.load(Ordering::SeqCst)
            && !self.disk.exists()
            && since.elapsed() < APPEARING
        {
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A work that panicked leaves at worst something to take away that is there.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An error of a step that needs the device served.
    fn blame(&self, error: Error) -> Error {
        if self.has_ended() {
            return error.with_kind(ErrorKind::Stopped);
        }
        error
    }

    /// Makes the device usable.
    pub(super) fn start(&self) -> Result<Node, Error> {
        let mut state = self.state();
        let started = self.start_disk(&mut state).and_then(|()| {
            match self.recovers {
                true => self.disk.check_node()?,
                false => self.disk.check(&self.geometry)?,
            }
            let path = self.disk.path();
            let link = node::place(Path::new(NODE_DIR), &self.name, &path, |old| {
                old == path || disk::is_dangling(old)
            })?;
            state.link = Some(link.clone());
            Ok(link)
        });
        match started {
            Ok(path) => Ok(Node {
                path,
                kind: NodeKind::BlockDevice,
                device: self.disk.path(),
                queues: self.queues,
                notes: self.notes(&state),
            }),
            Err(error) => {
                let error = self.blame(error);
                if !self.recovers {
                    let _ = self.take_away(&mut state);
                }
                Err(error)
            }
        }
    }

    fn start_disk(&self, state: &mut State) -> Result<(), Error> {
        if self.recovers {
            return self.recover_disk(state);
        }
        self.starting.store(true, Ordering::SeqCst);
        let started = if self.has_ended() || state.removed {
            Err(Error::new(ErrorKind::Stopped, "the device was stopped"))
        } else {
            state.control.start(self.disk.id)
        };
        self.starting.store(false, Ordering::SeqCst);
        started
    }

    /// Lets the requests flow that have waited, and gives the disk the size that it has missed.
    fn recover_disk(&self, state: &mut State) -> Result<(), Error> {
        if self.has_ended() || state.removed {
            return Err(Error::new(ErrorKind::Stopped, "the device was stopped"));
        }
        let id = self.disk.id;
        state.control.end_recovery(id)?;
        self.ours.store(true, Ordering::SeqCst);
        let grown = self
            .disk
            .size()
            .is_some_and(|size| size < self.geometry.size);
        if grown && state.control.features() & feature::UPDATE_SIZE != 0 {
            // Where it can't be it is seen, and tried again, when the device is up; it must not keep it from that.
            let _ = state.control.update_size(id, self.geometry.size / SECTOR);
        }
        Ok(())
    }

    /// Whether dropping the front end is to take the device away.
    pub(super) fn is_ours(&self) -> bool {
        self.ours.load(Ordering::SeqCst)
    }

    fn notes(&self, state: &State) -> Vec<String> {
        if !self.recovers {
            self.disk.tune();
        }
        let mut notes = self.disk.differences(&self.geometry, self.transfer);
        let hides = state.control.features() & feature::NO_AUTO_PART_SCAN != 0;
        if !self.partitions && !hides {
            notes.push("this kernel's ublk driver shows partitions all the same".to_owned());
        }
        notes
    }

    /// Gives the device another size. `Stopped` if there is none any more, or not yet.
    pub(super) fn resize(&self, new_size: u64) -> Result<(), Error> {
        let mut state = self.state();
        if state.control.features() & feature::UPDATE_SIZE == 0 {
            return Err(Error::new(
                ErrorKind::NotAvailable,
                "this kernel's ublk driver can't change the size of a device",
            )
            .with_hint("detach it and attach it again, or use Linux 6.16 or later"));
        }
        // The driver looks at the disk without asking whether there is one, and the number may be another's by now.
        let gone = || Error::new(ErrorKind::Stopped, "the device was stopped");
        if state.removed || !self.mark.is_on(&mut state.control, self.disk.id)? {
            return Err(gone());
        }
        let shown = self.disk.size().ok_or_else(gone)?;
        // A second resize may have come in between.
        if shown < new_size {
            let sectors = new_size / SECTOR;
            state
                .control
                .update_size(self.disk.id, sectors)
                .map_err(|e| self.blame(e))?;
        }
        Ok(())
    }

    /// Who uses the device.
    pub(super) fn in_use(&self) -> Result<Option<String>, Error> {
        let _state = self.state();
        self.user()
    }

    fn user(&self) -> Result<Option<String>, Error> {
        if !self.disk.exists() {
            return Ok(None);
        }
        usage::of_disk(&self.disk.name())
            .map_err(|e| Error::io(format!("can't find out who uses {}", self.disk.name()), e))
    }

    /// Takes the device away.
    pub(super) fn stop(&self, force: bool) -> Result<(), Error> {
        let mut state = self.state();
        if state.removed {
            return Ok(());
        }
        if !force {
            if let Some(who) = self.user()? {
                return Err(self.busy(&who));
            }
            self.stop_unused(&mut state)?;
        }
        self.take_away(&mut state)
    }

    fn busy(&self, who: &str) -> Error {
        Error::new(ErrorKind::Busy, format!("{} is {who}", self.name))
            .with_hint("unmount or close it first, or use --force and lose what is not written")
    }

    /// Writes back what is cached and takes the disk away if nobody uses it. Decides, whatever a look before has missed.
    ///
    /// It is for this to write back: stopping a device that is made to survive fails what is still cached.
    fn stop_unused(&self, state: &mut State) -> Result<(), Error> {
        let id = self.disk.id;
        if !self.disk.exists() || !self.mark.is_on(&mut state.control, id)? {
            return Ok(());
        }
        let since = Instant::now();
        loop {
            let stopped = self.claim().and_then(|node| {
                rustix::fs::fsync(&node).map_err(|e| {
                    Error::io(
                        format!("can't write back {}", self.disk.path().display()),
                        e,
                    )
                })?;
                if state.control.features() & feature::SAFE_STOP_DEV != 0 {
                    drop(node);
                    state.control.stop_unused(id)
                } else {
                    // Nobody can mount it meanwhile: the claim is held until the disk is gone.
                    state.control.stop(id)
                }
            });
            match stopped {
                Err(error) if error.kind() == ErrorKind::Busy => {
                    if since.elapsed() >= PATIENCE {
                        let who = self.user()?.unwrap_or_else(|| "open".to_owned());
                        return Err(self.busy(&who));
                    }
                    // Perhaps only udev having a look.
                    thread::sleep(Duration::from_millis(50));
                }
                stopped => return stopped,
            }
        }
    }

    /// Opens the disk for itself alone.
    ///
    /// # Errors
    /// `Busy` if it is mounted or otherwise claimed.
    fn claim(&self) -> Result<File, Error> {
        let path = self.disk.path();
        let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC;
        rustix::fs::open(&path, flags, Mode::empty())
            .map(File::from)
            .map_err(|errno: Errno| Error::io(format!("can't open {}", path.display()), errno))
    }

    /// Takes away everything that is there, used or not.
    fn take_away(&self, state: &mut State) -> Result<(), Error> {
        if let Some(link) = state.link.take() {
            node::remove(&link, &self.disk.path());
        }
        let id = self.disk.id;
        // Somebody may have deleted it, and the number may be another's.
        if self.mark.is_on(&mut state.control, id)? {
            state.control.stop(id)?;
            state.control.delete(id)?;
        }
        Mark::remove(&self.dir);
        state.removed = true;
        Ok(())
    }
}
