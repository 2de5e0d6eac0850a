//! The descriptors of all requests, in memory that the driver shares with us.

use std::fs::File;
use std::io;
use std::ptr::NonNull;

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};

use super::abi::{self, IoDesc};
use super::place::{Place, Shape};

/// Those of all queues.
#[derive(Debug)]
pub(super) struct Descriptors {
    shape: Shape,
    /// One mapping for each queue.
    queues: Vec<Mapping>,
}

impl Descriptors {
    /// Maps those of the device that `/dev/ublkcN` is.
    ///
    /// # Errors
    /// The driver refuses.
    pub(super) fn map(device: &File, shape: Shape) -> io::Result<Descriptors> {
        let queues = (0..shape.queues)
            .map(|queue| Mapping::new(device, queue, shape.depth))
            .collect::<io::Result<_>>()?;
        Ok(Descriptors { shape, queues })
    }

    /// The descriptor of the request that is at a place.
    ///
    /// # Panics
    /// If there is no such place.
    pub(super) fn get(&self, place: Place) -> IoDesc {
        assert!(self.shape.index(place).is_some(), "no such place");
        let memory = self.queues[usize::from(place.queue)].memory;
        // SAFETY: the mapping holds as many descriptors as the queue has tags and lives as long as `self`. The driver wrote
        // this one before it said that a request is there, which has been seen, and does not touch it before the request is
        // answered; any bits make an `IoDesc`.
        unsafe { memory.add(usize::from(place.tag)).read_volatile() }
    }
}

/// The descriptors of one queue.
#[derive(Debug)]
struct Mapping {
    memory: NonNull<IoDesc>,
    /// Bytes mapped.
    bytes: usize,
}

// SAFETY: the mapping belongs to the process and not to a thread, and is only read through `&self`.
unsafe impl Send for Mapping {}

impl Mapping {
    fn new(device: &File, queue: u16, depth: u16) -> io::Result<Mapping> {
        let page = rustix::param::page_size();
        // The driver takes no other length.
        let bytes = (usize::from(depth) * size_of::<IoDesc>()).next_multiple_of(page);
        // SAFETY: a new mapping at an address that the kernel chooses; nothing else refers to it.
        let memory = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::READ,
                MapFlags::SHARED | MapFlags::POPULATE,
                device,
                abi::descriptors_offset(queue, page as u64),
            )
        }?;
        let memory = NonNull::new(memory.cast()).ok_or(Errno::NOMEM)?;
        Ok(Mapping { memory, bytes })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this is the mapping that `new` made, and nobody refers to it any more.
        let _ = unsafe { rustix::mm::munmap(self.memory.as_ptr().cast(), self.bytes) };
    }
}
