//! [`Shared`]: a read-only, counted reference to a range of a buffer.

use std::fmt;
use std::ops::{Bound, Deref, RangeBounds};

use crate::block::Handle;
use crate::buf::Buf;

/// A range of a buffer that any number of owners can hold. Cloning and slicing cost one atomic increment and allocate
/// nothing. The bytes never change as long as a `Shared` refers to them.
#[derive(Clone)]
pub struct Shared {
    // Invariants: start + len <= capacity; no `Buf` of the same block exists.
    handle: Handle,
    start: usize,
    len: usize,
}

impl Shared {
    pub(crate) fn new(handle: Handle, start: usize, len: usize) -> Shared {
        debug_assert!(start + len <= handle.capacity());
        Shared { handle, start, len }
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the length is 0.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The same memory, a part of it.
    ///
    /// # Panics
    /// If the range is not within this one, as slicing a slice does.
    pub fn slice(&self, range: impl RangeBounds<usize>) -> Shared {
        let from = match range.start_bound() {
            Bound::Included(n) => *n,
            Bound::Excluded(n) => n.checked_add(1).expect("range start fits usize"),
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(n) => n.checked_add(1).expect("range end fits usize"),
            Bound::Excluded(n) => *n,
            Bound::Unbounded => self.len,
        };
        assert!(
            from <= to && to <= self.len,
            "range {from}..{to} is not within a buffer of {} bytes",
            self.len
        );
        Shared::new(self.handle.clone(), self.start + from, to - from)
    }

    /// Takes the memory back for writing if nobody else refers to the block, not even to another range of it. The `Buf`
    /// has the same range (so its start is aligned only if this one's was).
    ///
    /// # Errors
    /// Gives itself back when there is another owner.
    pub fn try_unique(self) -> Result<Buf, Shared> {
        if self.handle.is_only() {
            Ok(Buf::new(self.handle, self.start, self.len))
        } else {
            Err(self)
        }
    }

    /// Bytes of the whole block that this reference keeps from being used again: what it costs to hold it.
    pub fn held_bytes(&self) -> usize {
        self.handle.capacity()
    }
}

impl Deref for Shared {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: start + len <= capacity, the memory is initialised, and while a `Shared` exists no `Buf` of the block
        // does, so that nobody writes.
        unsafe {
            std::slice::from_raw_parts(self.handle.memory().as_ptr().add(self.start), self.len)
        }
    }
}

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Payload is not for logs.
        write!(f, "Shared({} bytes)", self.len)
    }
}
