//! [`Pool`]: lists of free blocks by size class, and a reserve if it has one.

use std::fmt;
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::block::{FreeBlock, ALIGNMENT};
use crate::buf::Buf;
use crate::reserve::{Region, Reserve};
use crate::shared::Shared;

/// Sizes of pooled blocks in bytes, ascending. A request gets the smallest that fits.
const CLASSES: [usize; 5] = [4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20];

/// The largest pooled size in bytes. A longer buffer is allocated for the one use and freed after it.
pub const LARGEST_CLASS: usize = CLASSES[CLASSES.len() - 1];

/// Where buffers come from and return to. Clones share one set of lists; any thread may take and drop buffers.
#[derive(Clone)]
pub struct Pool(Arc<Shelves>);

impl Pool {
    /// A pool that keeps at most `max_cached_bytes` of free memory; what comes back beyond that is freed.
    pub fn new(max_cached_bytes: usize) -> Pool {
        Pool::made_of(max_cached_bytes, None)
    }

    /// A pool that holds `reserve_bytes` from now until it and its last buffer are gone, and takes buffers from there as
    /// long as there is room: no system call, no page fault and no allocation is needed for them, and a buffer takes up
    /// just the pages that it covers. What finds no room is allocated as in a pool without a reserve, with
    /// `max_cached_bytes` for what comes back; [`Pool::missed`] counts it.
    ///
    /// # Errors
    /// The system does not have so much memory now.
    pub fn with_reserve(max_cached_bytes: usize, reserve_bytes: usize) -> io::Result<Pool> {
        let reserve = Reserve::new(reserve_bytes)?;
        Ok(Pool::made_of(max_cached_bytes, Some(reserve)))
    }

    /// A pool whose reserve is memory that is lent to it; else as [`Pool::with_reserve`].
    ///
    /// # Errors
    /// The region is smaller than a page.
    pub fn over(max_cached_bytes: usize, region: Box<dyn Region>) -> io::Result<Pool> {
        let reserve = Reserve::over(region)?;
        Ok(Pool::made_of(max_cached_bytes, Some(reserve)))
    }

    /// How far behind the beginning of the pool's reserve these bytes are; `None` if they are not of it.
    pub fn place(&self, bytes: &[u8]) -> Option<usize> {
        self.0.reserve.as_ref()?.place(bytes)
    }

    /// The `len` bytes, at least one, that lie `place` behind the beginning of the pool's reserve, as they are: what
    /// [`Pool::place`] said of them in an earlier pool over the same memory. Their pages are taken out of the reserve until
    /// the last owner lets go. `None` if they are not of it, or one of their pages is in use.
    pub fn claim(&self, place: usize, len: usize) -> Option<Shared> {
        let end = place.checked_add(len).filter(|_| len > 0)?;
        let first = place / ALIGNMENT;
        let count = end.div_ceil(ALIGNMENT) - first;
        let block = self.0.reserve.as_ref()?.claim(first, count)?;
        self.0
            .outstanding
            .fetch_add(block.capacity(), Ordering::Relaxed);
        let handle = block.into_handle(self.0.clone());
        Some(Buf::new(handle, place % ALIGNMENT, len).share())
    }

    fn made_of(max_cached: usize, reserve: Option<Reserve>) -> Pool {
        Pool(Arc::new(Shelves {
            free: Default::default(),
            max_cached,
            cached: AtomicUsize::new(0),
            outstanding: AtomicUsize::new(0),
            reserve,
            missed: AtomicUsize::new(0),
        }))
    }

    /// A buffer of `len` bytes, aligned to [`ALIGNMENT`]. The bytes are initialised, what they are is unspecified: zero in
    /// a new block, a former user's of this pool otherwise. Allocates only if the reserve has no room and no free block of
    /// the class is there.
    ///
    /// # Panics
    /// If `len` is beyond what an address space can hold.
    pub fn get(&self, len: usize) -> Buf {
        let block = self
            .0
            .take_reserved(len)
            .unwrap_or_else(|| match class_of(len) {
                Some(class) => self
                    .0
                    .take(class)
                    .unwrap_or_else(|| FreeBlock::allocate(CLASSES[class])),
                None => FreeBlock::allocate(len.next_multiple_of(ALIGNMENT)),
            });
        self.hand_out(block, len)
    }

    /// As [`Pool::get`], but of the reserve or not at all.
    pub fn get_reserved(&self, len: usize) -> Option<Buf> {
        let block = self.0.reserve.as_ref()?.take(len)?;
        Some(self.hand_out(block, len))
    }

    fn hand_out(&self, block: FreeBlock, len: usize) -> Buf {
        self.0
            .outstanding
            .fetch_add(block.capacity(), Ordering::Relaxed);
        Buf::new(block.into_handle(self.0.clone()), 0, len)
    }

    /// A buffer with a copy of `bytes`.
    pub fn copy_of(&self, bytes: &[u8]) -> Buf {
        let mut buf = self.get(bytes.len());
        buf.copy_from_slice(bytes);
        buf
    }

    /// Bytes of memory behind all buffers that are out, as block sizes (so at least their lengths).
    pub fn outstanding_bytes(&self) -> usize {
        self.0.outstanding.load(Ordering::Relaxed)
    }

    /// Buffers that the reserve had no room for, ever; 0 without a reserve.
    pub fn missed(&self) -> usize {
        self.0.missed.load(Ordering::Relaxed)
    }

    /// Bytes of free memory that the pool keeps, its reserve apart.
    pub fn cached_bytes(&self) -> usize {
        self.0.cached.load(Ordering::Relaxed)
    }
}

impl Default for Pool {
    /// Keeps at most 64 MiB of free memory.
    fn default() -> Pool {
        Pool::new(64 << 20)
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("outstanding", &self.outstanding_bytes())
            .field("cached", &self.cached_bytes())
            .finish()
    }
}

/// The smallest class that holds `len` bytes.
fn class_of(len: usize) -> Option<usize> {
    CLASSES.iter().position(|size| len <= *size)
}

/// The state behind a [`Pool`].
pub(crate) struct Shelves {
    /// Free blocks, last in first out: the block used last is the one most likely still in the processor's cache.
    free: [Mutex<Vec<FreeBlock>>; CLASSES.len()],
    max_cached: usize,
    /// Sum of the capacities in `free`.
    cached: AtomicUsize,
    /// Sum of the capacities of blocks with handles.
    outstanding: AtomicUsize,
    reserve: Option<Reserve>,
    missed: AtomicUsize,
}

impl Shelves {
    fn shelf(&self, class: usize) -> MutexGuard<'_, Vec<FreeBlock>> {
        // Nothing that runs under the lock can leave the list half changed.
        self.free[class]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, class: usize) -> Option<FreeBlock> {
        let block = self.shelf(class).pop()?;
        self.cached.fetch_sub(block.capacity(), Ordering::Relaxed);
        Some(block)
    }

    fn take_reserved(&self, len: usize) -> Option<FreeBlock> {
        let taken = self.reserve.as_ref()?.take(len);
        if taken.is_none() {
            self.missed.fetch_add(1, Ordering::Relaxed);
        }
        taken
    }

    /// Takes back the end of a reserved block that is still in use: `size` bytes from `memory` on.
    pub(crate) fn give_back_tail(&self, memory: NonNull<u8>, size: usize) {
        self.outstanding.fetch_sub(size, Ordering::Relaxed);
        if let Some(reserve) = &self.reserve {
            reserve.give_back(memory, size);
        }
    }

    /// Takes back a block whose last handle is gone: keeps it if there is room, frees it otherwise.
    pub(crate) fn give_back(&self, block: FreeBlock) {
        let size = block.capacity();
        self.outstanding.fetch_sub(size, Ordering::Relaxed);
        if let (Some(reserve), Some(memory)) = (&self.reserve, block.reserved_memory()) {
            // Its header may be another block's as soon as the pages are back.
            std::mem::forget(block);
            return reserve.give_back(memory, size);
        }
        let class = match class_of(size) {
            Some(class) if CLASSES[class] == size => class,
            _ => return,
        };
        if self
            .cached
            .fetch_add(size, Ordering::Relaxed)
            .saturating_add(size)
            > self.max_cached
        {
            self.cached.fetch_sub(size, Ordering::Relaxed);
            return;
        }
        self.shelf(class).push(block);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn buffers_are_aligned_and_as_long_as_asked() {
        let pool = Pool::new(1 << 20);
        for len in [
            0,
            1,
            511,
            4096,
            4097,
            65536,
            1 << 20,
            (1 << 20) + 1,
            3 << 20,
        ] {
            let buf = pool.get(len);
            assert_eq!(buf.len(), len);
            assert_eq!(buf.as_ptr() as usize % ALIGNMENT, 0);
            assert!(buf.iter().all(|byte| *byte == 0), "a new block is zeroed");
        }
    }

    #[test]
    fn the_memory_of_a_dropped_buffer_is_used_again() {
        let pool = Pool::new(1 << 20);
        let first = pool.get(5000);
        let address = first.as_ptr();
        assert_eq!(pool.outstanding_bytes(), 16 << 10);
        drop(first);
        assert_eq!(pool.outstanding_bytes(), 0);
        assert_eq!(pool.cached_bytes(), 16 << 10);
        assert_eq!(pool.get(16 << 10).as_ptr(), address);
        assert_ne!(
            pool.get(100).as_ptr(),
            address,
            "another class has other memory"
        );
    }

    #[test]
    fn the_cache_is_bounded() {
        let pool = Pool::new(10_000);
        let held: Vec<Buf> = (0..10).map(|_| pool.get(4096)).collect();
        drop(held);
        assert_eq!(pool.cached_bytes(), 8192);
        drop(pool.get(1 << 20));
        assert_eq!(pool.cached_bytes(), 8192);
    }

    #[test]
    fn oversized_buffers_are_not_kept() {
        let pool = Pool::new(usize::MAX);
        let buf = pool.get((1 << 20) + 1);
        assert_eq!(pool.outstanding_bytes(), (1 << 20) + 4096);
        drop(buf);
        assert_eq!(pool.cached_bytes(), 0);
        assert_eq!(pool.outstanding_bytes(), 0);
    }

    #[test]
    fn the_last_owner_returns_the_memory() {
        let pool = Pool::new(1 << 20);
        let whole = pool.copy_of(&[9; 4096]).share();
        let part = whole.slice(100..200);
        let part_of_part = part.slice(..=9);
        drop(whole);
        drop(part);
        assert_eq!(pool.outstanding_bytes(), 4096);
        assert_eq!(&part_of_part[..], &[9; 10]);
        assert_eq!(part_of_part.held_bytes(), 4096);
        drop(part_of_part);
        assert_eq!((pool.outstanding_bytes(), pool.cached_bytes()), (0, 4096));
    }

    #[test]
    fn only_a_sole_owner_becomes_unique() {
        let pool = Pool::new(1 << 20);
        let one = pool.copy_of(b"0123456789").share();
        let two = one.slice(3..5);
        let one = one.try_unique().expect_err("there is another owner");
        drop(one);
        let mut buf = two.try_unique().expect("it is the only one left");
        assert_eq!(&buf[..], b"34");
        buf[0] = b'x';
        buf.truncate(1);
        assert_eq!(&buf.share()[..], b"x");
    }

    #[test]
    #[should_panic(expected = "not within a buffer of 10 bytes")]
    fn a_slice_beyond_the_end_panics() {
        let pool = Pool::new(0);
        pool.get(10).share().slice(5..11);
    }

    #[test]
    fn buffers_outlive_their_pool_and_cross_threads() {
        let pool = Pool::new(1 << 20);
        let shared = pool.copy_of(&[5; 1000]).share();
        drop(pool);
        let threads: Vec<_> = (0..4)
            .map(|n| {
                let mine = shared.slice(n * 10..);
                std::thread::spawn(move || mine.iter().map(|byte| *byte as usize).sum::<usize>())
            })
            .collect();
        drop(shared);
        for (n, thread) in threads.into_iter().enumerate() {
            assert_eq!(thread.join().unwrap(), 5 * (1000 - n * 10));
        }
    }

    #[test]
    fn many_threads_never_get_the_same_memory_at_once() {
        let pool = Pool::new(1 << 20);
        let threads: Vec<_> = (0..4u8)
            .map(|n| {
                let pool = pool.clone();
                std::thread::spawn(move || {
                    for _ in 0..2000 {
                        let mut buf = pool.get(64);
                        buf.fill(n);
                        let shared = buf.share();
                        let clone = shared.clone();
                        drop(shared);
                        assert!(clone.iter().all(|byte| *byte == n));
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(pool.outstanding_bytes(), 0);
        assert!(pool.cached_bytes() <= 4 * 4096);
    }

    proptest! {
        #[test]
        fn a_slice_shows_what_slicing_the_bytes_shows(bytes in proptest::collection::vec(any::<u8>(), 0..300),
                                                      a in 0usize..300, b in 0usize..300) {
            let (a, b) = (a.min(bytes.len()), b.min(bytes.len()));
            let (from, to) = (a.min(b), a.max(b));
            let shared = Pool::new(0).copy_of(&bytes).share();
            prop_assert_eq!(&shared.slice(from..to)[..], &bytes[from..to]);
        }
    }
}
