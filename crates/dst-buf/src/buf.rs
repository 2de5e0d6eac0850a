//! [`Buf`]: the unique, writable owner of a buffer.

use std::fmt;
use std::ops::{Deref, DerefMut};

use crate::block::Handle;
use crate::shared::Shared;

/// A buffer with one owner. Its bytes are always initialised; what they are after [`Pool::get`](crate::Pool::get) is
/// unspecified.
pub struct Buf {
    // Invariants: the only handle to its block; start + len <= capacity.
    handle: Handle,
    start: usize,
    len: usize,
}

impl Buf {
    pub(crate) fn new(handle: Handle, start: usize, len: usize) -> Buf {
        debug_assert!(handle.is_only() && start + len <= handle.capacity());
        Buf { handle, start, len }
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the length is 0.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes that the memory behind it can hold.
    pub fn capacity(&self) -> usize {
        self.handle.capacity() - self.start
    }

    /// Shortens it to `len` bytes; does nothing when it is not longer.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Lets go of the memory behind its end where that can be used for others at once, which is so for buffers of a
    /// reserve. Allocates nothing, and moves nothing.
    pub fn shrink(&mut self) {
        self.handle.shrink(self.start + self.len);
    }

    /// Freezes it: from here on the bytes are read only and can have several owners. Allocates nothing.
    pub fn share(self) -> Shared {
        Shared::new(self.handle, self.start, self.len)
    }
}

impl Deref for Buf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: start + len <= capacity, the memory is initialised, and only this `Buf` can write to it.
        unsafe {
            std::slice::from_raw_parts(self.handle.memory().as_ptr().add(self.start), self.len)
        }
    }
}

impl DerefMut for Buf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; `&mut self` on the only handle makes the access exclusive.
        unsafe {
            std::slice::from_raw_parts_mut(self.handle.memory().as_ptr().add(self.start), self.len)
        }
    }
}

impl fmt::Debug for Buf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Payload is not for logs.
        write!(f, "Buf({} bytes)", self.len)
    }
}
