//! The control path: everything that may block, run on threads other than the one that serves.
//!
//! Works of one device run one after another (they share a lock). A forced stop cuts the connection before its work waits
//! for that lock, so that an earlier work which hangs in I/O fails and lets it go.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dst_client::Geometry;
use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use rustix::io::Errno;

use super::limits::{self, Saved};
use super::loopdev::{self, LoopDevice, LoopOptions};
use super::mount::Mount;
use crate::{node, usage, Error, ErrorKind, Node, NodeKind, NODE_DIR};

/// What the works of one device share.
#[derive(Debug)]
pub(super) struct Control {
    pub(super) name: String,
    pub(super) kind: NodeKind,
    pub(super) partitions: bool,
    /// As it was when the front end was opened.
    pub(super) geometry: Geometry,
    /// Largest request of the file, in bytes.
    pub(super) transfer: u32,
    pub(super) mount: Mount,
    /// The connection has been cut.
    aborted: AtomicBool,
    state: Mutex<State>,
}

/// How far the device is up.
#[derive(Debug, Default)]
struct State {
    disk: Option<LoopDevice>,
    /// What the loop device's limits were before.
    saved: Saved,
    link: Option<PathBuf>,
    /// Everything has been taken away.
    removed: bool,
}

impl Control {
    pub(super) fn new(
        name: String,
        kind: NodeKind,
        partitions: bool,
        geometry: Geometry,
        transfer: u32,
        mount: Mount,
    ) -> Arc<Control> {
        Arc::new(Control {
            name,
            kind,
            partitions,
            geometry,
            transfer,
            mount,
            aborted: AtomicBool::new(false),
            state: Mutex::new(State::default()),
        })
    }

    /// Says that the connection has been cut, so that works blame it for what fails from now on.
    pub(super) fn set_aborted(&self) {
        self.aborted.store(true, Ordering::Release);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A work that panicked leaves at worst something to take away that is there.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An error of a step that needs the file served.
    fn blame(&self, error: Error) -> Error {
        if self.aborted.load(Ordering::Acquire) {
            return error.with_kind(ErrorKind::Stopped);
        }
        error
    }

    /// Makes the device usable.
    pub(super) fn start(&self) -> Result<Node, Error> {
        let mut state = self.state();
        if state.removed {
            return Err(Error::new(ErrorKind::Stopped, "the device was stopped"));
        }
        let path = self.mount.path();
        let file = self.open_file(path).map_err(|e| self.blame(e))?;
        let mut notes = request_timeout_note();
        if self.kind == NodeKind::File {
            return Ok(Node {
                path: path.to_owned(),
                kind: NodeKind::File,
                device: path.to_owned(),
                queues: 0,
                notes,
            });
        }
        let options = LoopOptions {
            block_size: self.geometry.logical_block,
            read_only: self.geometry.read_only,
            partitions: self.partitions,
        };
        let disk = LoopDevice::attach(file.as_fd(), path, options).map_err(|e| self.blame(e))?;
        state.disk = Some(disk.clone());
        if !limits::has_holes(&self.geometry) && !self.geometry.read_only {
            limits::refuse_holes(&disk.path(), self.geometry.logical_block);
        }
        let (saved, remarks) = limits::apply(&disk.sysfs(), &self.geometry, self.transfer);
        state.saved = saved;
        notes.extend(remarks);
        let size = disk
            .size()
            .map_err(|e| Error::io(format!("can't read the size of {}", disk.name()), e));
        let placed = size.and_then(|size| {
            if size != self.geometry.size || disk.is_read_only() != self.geometry.read_only {
                return Err(Error::new(
                    ErrorKind::Io,
                    format!("{} did not take over the geometry", disk.name()),
                ));
            }
            node::place(Path::new(NODE_DIR), &self.name, &disk.path(), |old| {
                loopdev::replaceable(old, path)
            })
        });
        match placed {
            Ok(link) => {
                state.link = Some(link.clone());
                Ok(Node {
                    path: link,
                    kind: NodeKind::BlockDevice,
                    device: disk.path(),
                    queues: 1,
                    notes,
                })
            }
            Err(error) => {
                state.saved.restore(&disk.sysfs());
                let _ = disk.detach(true);
                state.disk = None;
                Err(self.blame(error))
            }
        }
    }

    /// Opens the served file and makes sure that it is the one that was meant.
    fn open_file(&self, path: &Path) -> Result<File, Error> {
        let failed = |errno: Errno| Error::io(format!("can't open {}", path.display()), errno);
        let access = if self.geometry.read_only {
            OFlags::RDONLY
        } else {
            OFlags::RDWR
        };
        let flags = access | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::open(path, flags, Mode::empty()).map_err(failed)?;
        let size = rustix::fs::fstat(&file).map_err(failed)?.st_size;
        if u64::try_from(size) != Ok(self.geometry.size) {
            return Err(Error::new(
                ErrorKind::Io,
                format!("{} is not the mounted device", path.display()),
            ));
        }
        Ok(File::from(file))
    }

    /// Makes everybody notice the file's new size. The kernel has been told to forget the old one.
    pub(super) fn resize(&self, new_size: u64) -> Result<(), Error> {
        let state = self.state();
        let path = self.mount.path();
        // Before Linux 6.17 the loop driver takes the size that the file system remembers: make it ask.
        let size = rustix::fs::statx(
            rustix::fs::CWD,
            path,
            AtFlags::STATX_FORCE_SYNC,
            StatxFlags::SIZE,
        )
        .map_err(|e| self.blame(Error::io(format!("can't look at {}", path.display()), e)))?
        .stx_size;
        let Some(disk) = &state.disk else {
            return Ok(());
        };
        disk.update_size().map_err(|e| self.blame(e))?;
        // A second resize may have come in between; its work follows.
        if disk.size().is_ok_and(|shown| shown >= new_size.min(size)) {
            return Ok(());
        }
        Err(self.blame(Error::new(
            ErrorKind::Io,
            format!("{} did not take over the new size", disk.name()),
        )))
    }

    /// Who uses the device.
    pub(super) fn in_use(&self) -> Result<Option<String>, Error> {
        let state = self.state();
        self.user(&state)
    }

    fn user(&self, state: &State) -> Result<Option<String>, Error> {
        if let Some(disk) = &state.disk {
            if !disk.is_ours() {
                // Somebody has detached it behind our back.
                return Ok(None);
            }
            return usage::of_disk(&disk.name())
                .map_err(|e| Error::io(format!("can't find out who uses {}", disk.name()), e));
        }
        if let Some(disk) = loopdev::over(self.mount.path()).first() {
            return Ok(Some(format!("held by {}", disk.name())));
        }
        Ok(usage::file_opened_by(self.mount.path()))
    }

    /// Takes the device away.
    pub(super) fn stop(&self, force: bool) -> Result<(), Error> {
        let mut state = self.state();
        if state.removed {
            return Ok(());
        }
        if force {
            return self.take_away(&mut state);
        }
        let busy = |who: String| {
            Error::new(ErrorKind::Busy, format!("{} is {who}", self.name))
                .with_hint("unmount or close it first, or use --force and lose what is not written")
        };
        if let Some(who) = self.user(&state)? {
            return Err(busy(who));
        }
        if let Some(disk) = &state.disk {
            // Decides, whatever the look above has missed.
            match disk.detach(false) {
                Ok(_) => state.saved.restore(&disk.sysfs()),
                Err(error) if error.kind() == ErrorKind::Busy => {
                    let who = self.user(&state)?.unwrap_or_else(|| "open".to_owned());
                    return Err(busy(who));
                }
                Err(error) => return Err(error),
            }
        }
        remove_link(&mut state);
        state.disk = None;
        match self.mount.remove_unused() {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::Busy && self.kind == NodeKind::File => {
                return Err(busy("open".to_owned()))
            }
            // Nobody has the device any more; whoever has the file open (a backup that walks the tree) may keep it.
            Err(_) => self.mount.remove()?,
        }
        state.removed = true;
        Ok(())
    }

    /// Takes away everything, used or not. The connection has been cut, so that nothing waits for an answer.
    fn take_away(&self, state: &mut State) -> Result<(), Error> {
        remove_link(state);
        let mut detached = Ok(());
        if let Some(disk) = state.disk.take() {
            if disk.is_ours() {
                state.saved.restore(&disk.sysfs());
            }
            detached = disk.detach(true).map(drop);
        }
        self.mount.remove()?;
        state.removed = true;
        detached
    }
}

fn remove_link(state: &mut State) {
    if let (Some(link), Some(disk)) = (state.link.take(), &state.disk) {
        node::remove(&link, &disk.path());
    }
}

/// Linux 6.15 and later may be told to cut FUSE connections that don't answer in time; a device without a server waits.
fn request_timeout_note() -> Vec<String> {
    ["default_request_timeout", "max_request_timeout"]
        .iter()
        .filter_map(|name| {
            let path = format!("/proc/sys/fs/fuse/{name}");
            let text = std::fs::read_to_string(&path).ok()?;
            let seconds = text.trim();
            (seconds != "0").then(|| {
                format!(
                    "{path} is {seconds}: the kernel kills the device when an answer takes longer"
                )
            })
        })
        .collect()
}
