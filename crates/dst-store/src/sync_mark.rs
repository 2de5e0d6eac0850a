//! A mark, in memory that outlives the process, that a sync call was cut short.
//!
//! A server that is killed while an `fdatasync` runs never learns how it ended. Had it ended in an error, the error is used
//! up, the pages are clean, and the next sync of the next server would succeed: a false success if the incarnation were kept.
//! So the number of syncs that have begun and not ended well is kept in a small mapped file, with a random nonce that goes
//! into the continuity hash. Whoever opens the mark and finds the number not 0 makes a new nonce, and the incarnation is
//! not kept; and drops the page cache, which may show what was lost.
//!
//! # States
//! *quiet* (0) ⇄ *running* (n > 0: n calls are out, or have failed). Only [`SyncMark::renew`] and opening lower the number
//! of failed ones, opening to 1: the dropping of the page cache.
//!
//! # Invariants
//! - One process uses a mark at a time: the holder of the file's lock.
//! - The nonce is changed before the count is lowered, so that being killed in between leads to another nonce.
//! - It need not survive a reboot: the boot id is in the continuity hash. Nor need it survive its export: [`stale`] removes
//!   marks that say nothing any more. For that it also says in which boot it was opened last and where the export was, and is
//!   locked as long as it is open.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use rustix::mm::{mmap, munmap, MapFlags, ProtFlags};

pub(crate) mod stale;

const SIZE: usize = 4096;
const MAGIC: [u8; 8] = *b"dstsync2";
const NONCE_AT: usize = 8;
const COUNT_AT: usize = 24;
/// From here on: what [`stale::Place`] writes.
const PLACE_AT: usize = 64;

/// Tries to lock a mark, 10 ms apart, before it counts as in use: a dying server may have it for a moment after it has let
/// the export go, and so has somebody who looks whether it is stale.
const TRIES: usize = 100;

/// See the [module](self).
pub(crate) struct SyncMark {
    /// Holds the lock.
    _file: File,
    memory: NonNull<u8>,
    nonce: [u8; 16],
    cut_short: bool,
}

// SAFETY: the mapping belongs to this value alone and is not tied to a thread.
unsafe impl Send for SyncMark {}

impl SyncMark {
    /// Opens or makes the mark `name` in `directory`, which is made, for its owner only, if it is not there. `export` is
    /// the file or device that it is about.
    ///
    /// # Errors
    /// What the system said.
    pub(crate) fn open(directory: &Path, name: &str, export: &Path) -> io::Result<SyncMark> {
        if let Some(above) = directory.parent() {
            // Root's run-time directory, where every user may look for devices; another user's is for that user alone.
            let mode = match rustix::process::geteuid().is_root() {
                true => 0o755,
                false => 0o700,
            };
            fs::DirBuilder::new()
                .recursive(true)
                .mode(mode)
                .create(above)?;
        }
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)?;
        let file = lock(&directory.join(name))?;
        let mut header = [0; COUNT_AT + 4];
        let known = file.read_exact_at(&mut header, 0).is_ok()
            && header.starts_with(&MAGIC)
            && file.metadata()?.len() == SIZE as u64;
        if !known {
            // All of it is written, so that a full file system shows now and not as a fault later.
            let mut fresh = [0; SIZE];
            fresh[..MAGIC.len()].copy_from_slice(&MAGIC);
            dst_ids::fill(&mut fresh[NONCE_AT..COUNT_AT])?;
            file.set_len(SIZE as u64)?;
            file.write_all_at(&fresh, 0)?;
        }
        file.write_all_at(&stale::Place::of(export).encode(), PLACE_AT as u64)?;
        let mut mark = SyncMark::map(file)?;
        if mark.count().load(Ordering::Acquire) != 0 {
            mark.cut_short = true;
            mark.renew(1)?;
        }
        Ok(mark)
    }

    fn map(file: File) -> io::Result<SyncMark> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh mapping, at an address that the kernel chooses, of a file of SIZE bytes.
        let memory = unsafe {
            mmap(
                std::ptr::null_mut(),
                SIZE,
                protection,
                MapFlags::SHARED,
                &file,
                0,
            )
        }?;
        let memory =
            NonNull::new(memory.cast::<u8>()).ok_or_else(|| io::Error::other("mapped at 0"))?;
        let mut mark = SyncMark {
            _file: file,
            memory,
            nonce: [0; 16],
            cut_short: false,
        };
        // SAFETY: the mapping has SIZE bytes, and nobody else changes the nonce (one process at a time).
        mark.nonce = unsafe { memory.add(NONCE_AT).cast::<[u8; 16]>().read() };
        Ok(mark)
    }

    fn count(&self) -> &AtomicU32 {
        // SAFETY: COUNT_AT is a multiple of 4 within the page-aligned mapping, which lives as long as `self`; all access to
        // these four bytes is atomic.
        unsafe { AtomicU32::from_ptr(self.memory.add(COUNT_AT).cast::<u32>().as_ptr()) }
    }

    /// Changes when a sync was cut short or failed.
    pub(crate) fn nonce(&self) -> [u8; 16] {
        self.nonce
    }

    /// A call was cut short or had failed when this was opened. One call then counts as running, until the opener has done
    /// what follows from that and calls [`end`](SyncMark::end).
    pub(crate) fn was_cut_short(&self) -> bool {
        self.cut_short
    }

    /// A sync call begins.
    pub(crate) fn begin(&self) {
        self.count().fetch_add(1, Ordering::AcqRel);
    }

    /// A sync call has returned without error. (One that returned with an error stays counted.)
    pub(crate) fn end(&self) {
        self.count().fetch_sub(1, Ordering::AcqRel);
    }

    /// Forgets failed calls, under a new nonce; `running` calls are out.
    ///
    /// # Errors
    /// No random numbers.
    pub(crate) fn renew(&mut self, running: usize) -> io::Result<()> {
        dst_ids::fill(&mut self.nonce)?;
        // SAFETY: as in `map`.
        unsafe {
            self.memory
                .add(NONCE_AT)
                .cast::<[u8; 16]>()
                .write(self.nonce)
        };
        self.count().store(running as u32, Ordering::Release);
        Ok(())
    }
}

/// Opens the file of a mark, made if it is not there, and locks it.
fn lock(path: &Path) -> io::Result<File> {
    for _ in 0..TRIES {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                // It may have been removed between opening and locking.
                let held = file.metadata()?.ino();
                if fs::metadata(path).is_ok_and(|there| there.ino() == held) {
                    return Ok(file);
                }
            }
            Err(Errno::WOULDBLOCK) => std::thread::sleep(Duration::from_millis(10)),
            Err(errno) => return Err(errno.into()),
        }
    }
    Err(io::ErrorKind::ResourceBusy.into())
}

impl Drop for SyncMark {
    fn drop(&mut self) {
        // SAFETY: the mapping was made in `map` with this size, and no reference into it outlives `self`.
        let _ = unsafe { munmap(self.memory.as_ptr().cast(), SIZE) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nonce(directory: &Path) -> [u8; 16] {
        SyncMark::open(directory, "m", Path::new("x"))
            .unwrap()
            .nonce()
    }

    #[test]
    fn the_nonce_stays_when_every_sync_ended_well() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("made/by/open");
        let mark = SyncMark::open(&path, "m", Path::new("x")).unwrap();
        let first = mark.nonce();
        mark.begin();
        mark.end();
        drop(mark);
        assert_eq!(nonce(&path), first);
    }

    #[test]
    fn the_nonce_changes_when_a_sync_was_cut_short_and_only_then() {
        let directory = tempfile::tempdir().unwrap();
        let mark = SyncMark::open(directory.path(), "m", Path::new("x")).unwrap();
        let first = mark.nonce();
        mark.begin();
        drop(mark);
        assert_ne!(nonce(directory.path()), first);

        let mark = SyncMark::open(directory.path(), "m", Path::new("x")).unwrap();
        assert!(mark.was_cut_short(), "until somebody has seen to it");
        let second = mark.nonce();
        mark.end();
        drop(mark);
        let mark = SyncMark::open(directory.path(), "m", Path::new("x")).unwrap();
        assert!(!mark.was_cut_short());
        assert_eq!(mark.nonce(), second);
    }

    #[test]
    fn a_new_incarnation_has_another_nonce_and_still_counts_what_runs() {
        let directory = tempfile::tempdir().unwrap();
        let mut mark = SyncMark::open(directory.path(), "m", Path::new("x")).unwrap();
        let first = mark.nonce();
        mark.begin();
        mark.begin();
        mark.renew(1).unwrap();
        let second = mark.nonce();
        assert_ne!(second, first);
        mark.end();
        drop(mark);
        assert_eq!(nonce(directory.path()), second);
    }

    #[test]
    fn a_damaged_mark_is_made_anew() {
        let directory = tempfile::tempdir().unwrap();
        let first = nonce(directory.path());
        fs::write(directory.path().join("m"), b"dstsync1 too short").unwrap();
        assert_ne!(nonce(directory.path()), first);
    }
}
