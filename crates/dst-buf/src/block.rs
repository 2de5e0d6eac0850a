//! One block of aligned memory with its reference count: the only place that counts, and that allocates and frees what is
//! not of a [reserve](crate::reserve).
//!
//! # Invariants
//! - `memory` points to `capacity` bytes, aligned to [`ALIGNMENT`], initialised (zeroed when allocated), owned by the block.
//! - `refs` is the number of handles ([`Buf`](crate::Buf) or [`Shared`](crate::Shared)) that exist; a free block has 0.
//! - `pool` is set exactly while there are handles, so that a free block in a pool's list is no reference cycle.

use std::alloc::{alloc_zeroed, dealloc, handle_alloc_error, Layout};
use std::ptr::NonNull;
use std::sync::atomic::{fence, AtomicUsize, Ordering};
use std::sync::Arc;

use crate::pool::Shelves;

/// Every buffer starts at a multiple of this many bytes in memory: enough for direct I/O on any block device whose
/// logical block is at most a page.
pub const ALIGNMENT: usize = 4096;

/// Header of a block. Lives in a heap allocation of its own, which stays with the memory while that is in the pool; that of
/// a reserved block lives in the reserve.
pub(crate) struct Block {
    refs: AtomicUsize,
    memory: NonNull<u8>,
    capacity: usize,
    pool: Option<Arc<Shelves>>,
    /// Header and memory belong to the reserve of the pool.
    reserved: bool,
}

impl Block {
    /// The header of a free block of a reserve.
    pub(crate) fn reserved(memory: NonNull<u8>, capacity: usize) -> Block {
        Block {
            refs: AtomicUsize::new(0),
            memory,
            capacity,
            pool: None,
            reserved: true,
        }
    }
}

/// An owned block that no handle refers to: what the pool keeps in its lists.
pub(crate) struct FreeBlock(NonNull<Block>);

// SAFETY: a `FreeBlock` is the only reference to its block (invariant: no handles), and a block is plain memory that is
// not tied to a thread.
unsafe impl Send for FreeBlock {}

impl FreeBlock {
    /// Allocates `capacity` zeroed bytes. `capacity` is a multiple of [`ALIGNMENT`], not 0.
    ///
    /// # Panics
    /// If `capacity` exceeds `isize::MAX`. Aborts when memory runs out, as every allocation in Rust does.
    pub(crate) fn allocate(capacity: usize) -> FreeBlock {
        let layout = layout(capacity);
        assert!(capacity > 0, "a block has at least one byte");
        // SAFETY: the layout's size is not 0.
        let memory = unsafe { alloc_zeroed(layout) };
        let Some(memory) = NonNull::new(memory) else {
            handle_alloc_error(layout)
        };
        let block = Box::new(Block {
            refs: AtomicUsize::new(0),
            memory,
            capacity,
            pool: None,
            reserved: false,
        });
        FreeBlock(NonNull::from(Box::leak(block)))
    }

    /// A block of a reserve.
    ///
    /// # Safety
    /// `header` was initialised by [`Block::reserved`], nothing else refers to it or to its memory, and both stay until
    /// this block and every handle made of it are gone.
    pub(crate) unsafe fn of_reserve(header: NonNull<Block>) -> FreeBlock {
        FreeBlock(header)
    }

    /// Start of the memory if it belongs to a reserve.
    pub(crate) fn reserved_memory(&self) -> Option<NonNull<u8>> {
        // SAFETY: the block is alive as long as its `FreeBlock`.
        let block = unsafe { self.0.as_ref() };
        block.reserved.then_some(block.memory)
    }

    /// Bytes that the block can hold.
    pub(crate) fn capacity(&self) -> usize {
        // SAFETY: the block is alive as long as its `FreeBlock`.
        unsafe { self.0.as_ref() }.capacity
    }

    /// Turns the free block into the one handle to a block in use, which will return to `pool`.
    pub(crate) fn into_handle(self, pool: Arc<Shelves>) -> Handle {
        let mut pointer = self.0;
        std::mem::forget(self);
        // SAFETY: a `FreeBlock` is the only reference to its block, and it has just been given up.
        let block = unsafe { pointer.as_mut() };
        block.pool = Some(pool);
        *block.refs.get_mut() = 1;
        Handle(pointer)
    }
}

impl Drop for FreeBlock {
    fn drop(&mut self) {
        if self.reserved_memory().is_some() {
            return;
        }
        // SAFETY: the pointer came from `Box::leak` in `allocate`, since it is not reserved, and no handle exists.
        let block = unsafe { Box::from_raw(self.0.as_ptr()) };
        // SAFETY: the memory was allocated with this very layout and nothing refers to it.
        unsafe { dealloc(block.memory.as_ptr(), layout(block.capacity)) };
    }
}

fn layout(capacity: usize) -> Layout {
    Layout::from_size_align(capacity, ALIGNMENT).expect("a buffer's size fits the address space")
}

/// One counted reference to a block in use.
pub(crate) struct Handle(NonNull<Block>);

// SAFETY: the count is atomic; the memory is written only through a `Buf`, which has the only handle.
unsafe impl Send for Handle {}
// SAFETY: as above; through `&Handle` the block is only read.
unsafe impl Sync for Handle {}

impl Handle {
    fn block(&self) -> &Block {
        // SAFETY: a block lives at least as long as every handle to it.
        unsafe { self.0.as_ref() }
    }

    /// Start of the block's memory.
    pub(crate) fn memory(&self) -> NonNull<u8> {
        self.block().memory
    }

    /// Bytes that the block can hold.
    pub(crate) fn capacity(&self) -> usize {
        self.block().capacity
    }

    /// Gives back to the reserve what of a reserved block lies beyond its first `len` bytes, in whole units of
    /// [`ALIGNMENT`]. This must be the only handle.
    pub(crate) fn shrink(&mut self, len: usize) {
        debug_assert!(self.is_only());
        // SAFETY: there is no other handle, so that nobody else looks at the header or at the memory.
        let block = unsafe { self.0.as_mut() };
        let kept = len.max(1).next_multiple_of(ALIGNMENT);
        if let (true, true, Some(pool)) = (block.reserved, kept < block.capacity, &block.pool) {
            // SAFETY: `kept` is less than the capacity.
            let tail = unsafe { block.memory.add(kept) };
            pool.give_back_tail(tail, block.capacity - kept);
            block.capacity = kept;
        }
    }

    /// Whether this is the only handle. Once true it stays so until this handle is cloned.
    pub(crate) fn is_only(&self) -> bool {
        // Acquire pairs with the release of the dropped handles: their reads of the memory came before our writes.
        self.block().refs.load(Ordering::Acquire) == 1
    }
}

impl Clone for Handle {
    fn clone(&self) -> Handle {
        // Relaxed is enough: the new handle is made from one that already keeps the block alive.
        let before = self.block().refs.fetch_add(1, Ordering::Relaxed);
        assert!(before < usize::MAX / 2, "reference count overflow");
        Handle(self.0)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if self.block().refs.fetch_sub(1, Ordering::Release) != 1 {
            return;
        }
        fence(Ordering::Acquire);
        // SAFETY: the count has reached 0, so that this was the last handle and nothing else refers to the block.
        let block = unsafe { self.0.as_mut() };
        let pool = block.pool.take();
        let free = FreeBlock(self.0);
        if let Some(pool) = pool {
            pool.give_back(free);
        }
    }
}
