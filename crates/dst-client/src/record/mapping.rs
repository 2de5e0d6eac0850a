//! A file mapped into memory, whole and for as long as it is looked at.

use std::fs::File;
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use rustix::mm::{mmap, munmap, MapFlags, ProtFlags};

/// Bytes of a cell.
const CELL: usize = 8;

/// A shared mapping.
#[derive(Debug)]
pub(crate) struct Mapping {
    // Invariant: `len` bytes from `start` on are mapped, readable, writable and backed by allocated pages of the file, until this
    // is dropped. `start` is page-aligned.
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is plain memory that is not tied to a thread; it is reached through atomics, or through buffers whose
// owner keeps the others out.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `len` bytes of `file`, every page present. The caller has seen to it that the file is so long and
    /// allocated in full; nobody may shorten it.
    pub fn new(file: &File, len: usize) -> io::Result<Mapping> {
        // SAFETY: a new mapping at an address that the kernel chooses touches no memory of ours.
        let start = unsafe {
            mmap(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::POPULATE,
                file,
                0,
            )
        }?;
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Mapping { start, len })
    }

    /// The memory.
    pub fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// The cells in bytes [from, from + 8 * count), cut off at the end. `from` is a multiple of 8.
    pub fn cells(&self, from: usize, count: usize) -> &[AtomicU64] {
        assert_eq!(from % CELL, 0, "cells are aligned");
        let room = self.len.saturating_sub(from) / CELL;
        let from = from.min(self.len);
        // SAFETY: within the mapping and aligned by what was just checked; any bytes make an `AtomicU64`, and whoever else has
        // the file mapped changes them by atomic stores only.
        unsafe {
            let first = self.start.add(from).cast::<AtomicU64>();
            std::slice::from_raw_parts(first.as_ptr(), count.min(room))
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this very range was mapped in `new`, and nothing that borrows from `self` is left. It can't fail for a range
        // that is mapped.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
    }
}
