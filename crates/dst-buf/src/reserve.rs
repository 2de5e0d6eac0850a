//! Memory set aside: one mapping that is there, page for page, from the beginning, and from which buffers are cut.
//!
//! Whoever writes out other programs' memory must not need memory for it: a reserve never asks the system for any after it
//! was made. A map with one bit per page says what is taken. A buffer is a run of pages, the lowest that fits, so that the
//! same memory is used again and again as long as little of it is in use (the processor's caches like that), and nothing is
//! lost but what a buffer does not use of its last page.
//!
//! # Invariants
//! - A page's bit is set exactly while the page belongs to a block that is out, or lies beyond the end.
//! - No page below `hint`, in words of the map, is free.
//! - The header of a block is that of its first page, so that two blocks never share one.

use std::alloc::{alloc, dealloc, handle_alloc_error, Layout};
use std::io;
use std::ptr::NonNull;
use std::sync::{Mutex, PoisonError};

use rustix::io::Errno;
use rustix::mm::{madvise, mmap_anonymous, mprotect, munmap, Advice};
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags};

use crate::block::{Block, FreeBlock, ALIGNMENT};

/// Memory that a reserve is made of and that is not its own, for example a file that outlives the process.
///
/// # Safety
/// From `start`, which is a multiple of [`ALIGNMENT`] and never changes, `len` bytes are readable and writable as long as
/// this exists, and nobody else reads or writes them.
pub unsafe trait Region: Send + Sync {
    /// Where it begins.
    fn start(&self) -> NonNull<u8>;
    /// Bytes.
    fn len(&self) -> usize;
    /// Whether it has none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// See the [module](self).
pub(crate) struct Reserve {
    memory: NonNull<u8>,
    /// Whose the memory is, if not the reserve's own.
    lent: Option<Box<dyn Region>>,
    /// One per page, initialised when the page begins a block.
    headers: NonNull<Block>,
    pages: usize,
    map: Mutex<Map>,
}

// SAFETY: which page and header belongs to whom is decided under the lock of `map`; a block that is out is reached through
// its handles alone.
unsafe impl Send for Reserve {}
// SAFETY: as above.
unsafe impl Sync for Reserve {}

impl Reserve {
    /// Maps `bytes`, rounded up to pages, and makes every page present.
    ///
    /// # Errors
    /// There is not so much memory.
    pub(crate) fn new(bytes: usize) -> io::Result<Reserve> {
        let pages = bytes.div_ceil(ALIGNMENT).max(1);
        let size = pages
            .checked_mul(ALIGNMENT)
            .ok_or(io::ErrorKind::OutOfMemory)?;
        let layout = Self::headers_layout(pages).ok_or(io::ErrorKind::OutOfMemory)?;
        Self::made_of(map_present(size)?, None, pages, layout)
    }

    /// Of the whole pages of `region`, which has one at least.
    ///
    /// # Errors
    /// It has none, or there is no memory for the headers.
    pub(crate) fn over(region: Box<dyn Region>) -> io::Result<Reserve> {
        let pages = region.len() / ALIGNMENT;
        if pages == 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let layout = Self::headers_layout(pages).ok_or(io::ErrorKind::OutOfMemory)?;
        Self::made_of(region.start(), Some(region), pages, layout)
    }

    fn made_of(
        memory: NonNull<u8>,
        lent: Option<Box<dyn Region>>,
        pages: usize,
        layout: Layout,
    ) -> io::Result<Reserve> {
        // SAFETY: the layout's size is not 0, as there is at least one page.
        let headers = unsafe { alloc(layout) };
        let Some(headers) = NonNull::new(headers.cast::<Block>()) else {
            handle_alloc_error(layout)
        };
        // Present as well, before they are needed.
        // SAFETY: `headers` has room for `pages` headers, for which any bytes will do until they are initialised.
        unsafe { headers.write_bytes(0, pages) };
        Ok(Reserve {
            memory,
            lent,
            headers,
            pages,
            map: Mutex::new(Map::new(pages)),
        })
    }

    fn headers_layout(pages: usize) -> Option<Layout> {
        Layout::array::<Block>(pages).ok()
    }

    /// A block of at least `len` bytes, if there is room.
    pub(crate) fn take(&self, len: usize) -> Option<FreeBlock> {
        let count = len.div_ceil(ALIGNMENT).max(1);
        let first = self.lock().take(count)?;
        // SAFETY: pages of the mapping that the map has just given to this block alone.
        Some(unsafe { self.block(first, count) })
    }

    /// The block of `count` pages from page `first` on.
    ///
    /// # Safety
    /// The pages are of the mapping, and the map has given them to nobody else, so that neither the header of the first nor
    /// their memory is referred to. (Both live as long as this reserve, which the pool of every handle keeps alive.)
    unsafe fn block(&self, first: usize, count: usize) -> FreeBlock {
        // SAFETY: by what the caller promises.
        unsafe {
            let memory = self.memory.add(first * ALIGNMENT);
            let header = self.headers.add(first);
            header.write(Block::reserved(memory, count * ALIGNMENT));
            FreeBlock::of_reserve(header)
        }
    }

    /// The block of `count` pages from page `first` on with what they hold, if they are its and free.
    pub(crate) fn claim(&self, first: usize, count: usize) -> Option<FreeBlock> {
        let taken = count > 0
            && first.checked_add(count)? <= self.pages
            && self.lock().take_at(first, count);
        // SAFETY: as in `take`: pages of the mapping that the map has just given to this block alone.
        taken.then(|| unsafe { self.block(first, count) })
    }

    /// How far behind its beginning `bytes` are, if they are its.
    pub(crate) fn place(&self, bytes: &[u8]) -> Option<usize> {
        let place = bytes
            .as_ptr()
            .addr()
            .checked_sub(self.memory.addr().get())?;
        (place + bytes.len() <= self.pages * ALIGNMENT).then_some(place)
    }

    /// Takes back `size` bytes, whole pages, from `memory` on, that nothing refers to.
    pub(crate) fn give_back(&self, memory: NonNull<u8>, size: usize) {
        let first = (memory.addr().get() - self.memory.addr().get()) / ALIGNMENT;
        self.lock().give_back(first, size / ALIGNMENT);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Map> {
        // Nothing that runs under the lock can leave the map half changed.
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Reserve {
    fn drop(&mut self) {
        if self.lent.is_none() {
            // SAFETY: mapped in `new` with this size. Every block that was out had a handle on the pool that owns this.
            let _ = unsafe { munmap(self.memory.as_ptr().cast(), self.pages * ALIGNMENT) };
        }
        if let Some(layout) = Self::headers_layout(self.pages) {
            // SAFETY: allocated in `new` with this layout. Headers of free blocks own nothing.
            unsafe { dealloc(self.headers.as_ptr().cast(), layout) };
        }
    }
}

/// Maps `size` zeroed bytes, a multiple of [`ALIGNMENT`], with memory behind every page.
fn map_present(size: usize) -> io::Result<NonNull<u8>> {
    // Without access at first: a process that locks its memory would otherwise get small pages at once.
    // SAFETY: a fresh mapping at an address that the kernel chooses.
    let start = unsafe {
        mmap_anonymous(
            std::ptr::null_mut(),
            size,
            ProtFlags::empty(),
            MapFlags::PRIVATE,
        )
    }?;
    let present = || -> rustix::io::Result<()> {
        // Large pages where the system has them: a wish only.
        // SAFETY: the range is the fresh mapping; this changes how it is backed, not what it holds.
        let _ = unsafe { madvise(start, size, Advice::LinuxHugepage) };
        // SAFETY: the range is the fresh mapping, which nobody uses yet.
        unsafe { mprotect(start, size, MprotectFlags::READ | MprotectFlags::WRITE) }?;
        // SAFETY: as for the first advice.
        match unsafe { madvise(start, size, Advice::LinuxPopulateWrite) } {
            // Before Linux 5.14: by hand.
            Err(Errno::INVAL) => {
                for at in (0..size).step_by(ALIGNMENT) {
                    // SAFETY: within the mapping, which is writable now and nobody else's.
                    unsafe { start.cast::<u8>().add(at).write_volatile(0) };
                }
                Ok(())
            }
            populated => populated,
        }
    };
    let mapped = NonNull::new(start.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
    if let Err(errno) = present() {
        // SAFETY: mapped above, and nobody uses it.
        let _ = unsafe { munmap(start, size) };
        return Err(errno.into());
    }
    Ok(mapped)
}

/// Which pages are taken.
struct Map {
    /// A set bit is a taken page, or one beyond the end.
    words: Box<[u64]>,
    hint: usize,
}

impl Map {
    fn new(pages: usize) -> Map {
        let mut words = vec![0; pages.div_ceil(64)].into_boxed_slice();
        if let (Some(last), used @ 1..) = (words.last_mut(), pages % 64) {
            *last = u64::MAX << used;
        }
        Map { words, hint: 0 }
    }

    /// Takes the lowest run of `count` free pages.
    fn take(&mut self, count: usize) -> Option<usize> {
        let first = self.find(count)?;
        self.mark(first, count, true);
        while self.words.get(self.hint) == Some(&u64::MAX) {
            self.hint += 1;
        }
        Some(first)
    }

    /// Takes `count` pages from `first` on, all of them in the map; false if one of them is taken.
    fn take_at(&mut self, first: usize, count: usize) -> bool {
        let taken = |page: usize| self.words[page / 64] >> (page % 64) & 1 == 1;
        if (first..first + count).any(taken) {
            return false;
        }
        self.mark(first, count, true);
        true
    }

    fn give_back(&mut self, first: usize, count: usize) {
        self.mark(first, count, false);
        self.hint = self.hint.min(first / 64);
    }

    fn find(&self, count: usize) -> Option<usize> {
        // Free pages right below the place that is looked at.
        let mut run = 0;
        for (at, &word) in self.words.iter().enumerate().skip(self.hint) {
            let mut bit = 0;
            while bit < 64 {
                let free = ((word >> bit).trailing_zeros() as usize).min(64 - bit);
                run += free;
                bit += free;
                if run >= count {
                    return Some(at * 64 + bit - run);
                }
                if bit < 64 {
                    run = 0;
                    bit += (word >> bit).trailing_ones() as usize;
                }
            }
        }
        None
    }

    fn mark(&mut self, first: usize, count: usize, taken: bool) {
        let (mut page, end) = (first, first + count);
        while page < end {
            let bit = page % 64;
            let bits = (64 - bit).min(end - page);
            let mask = (u64::MAX >> (64 - bits)) << bit;
            let word = &mut self.words[page / 64];
            debug_assert_eq!(*word & mask, if taken { 0 } else { mask });
            *word ^= mask;
            page += bits;
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{Buf, Pool, Shared, ALIGNMENT};
    use proptest::prelude::*;

    const PAGE: usize = ALIGNMENT;

    /// A pool that has nothing but its reserve.
    fn pool(pages: usize) -> Pool {
        Pool::with_reserve(0, pages * PAGE).unwrap()
    }

    fn address(bytes: &[u8]) -> usize {
        bytes.as_ptr().addr()
    }

    #[test]
    fn buffers_take_whole_pages_and_the_lowest_that_are_free() {
        let pool = pool(70);
        let first = pool.get(1);
        let start = address(&first);
        let second = pool.get(2 * PAGE + 1);
        let third = pool.get(66 * PAGE);
        assert_eq!(address(&second), start + PAGE);
        assert_eq!(address(&third), start + 4 * PAGE);
        assert_eq!(pool.outstanding_bytes(), 70 * PAGE);
        assert!(third.iter().all(|byte| *byte == 0));
        drop(second);
        assert_eq!(address(&pool.get(3 * PAGE)), start + PAGE);
        drop(first);
        assert_eq!(address(&pool.get(4 * PAGE)), start);
        assert_eq!(pool.missed(), 0);
    }

    #[test]
    fn what_has_no_room_is_allocated_and_counted() {
        let pool = pool(2);
        let held = pool.get(PAGE);
        let mut beyond = pool.get(2 * PAGE);
        assert_eq!(pool.missed(), 1);
        beyond.fill(3);
        beyond.truncate(1);
        beyond.shrink();
        assert_eq!(beyond.capacity(), 4 * PAGE, "it has a class of its own");
        drop((held, beyond));
        assert_eq!((pool.outstanding_bytes(), pool.cached_bytes()), (0, 0));
        drop(pool.get(2 * PAGE));
        assert_eq!(pool.missed(), 1);
    }

    #[test]
    fn what_is_cut_off_is_free_for_others_at_once() {
        let pool = pool(4);
        let mut long = pool.get(4 * PAGE);
        long.truncate(PAGE + 1);
        long.shrink();
        assert_eq!(long.capacity(), 2 * PAGE);
        assert_eq!(pool.outstanding_bytes(), 2 * PAGE);
        let other = pool.get(2 * PAGE);
        assert_eq!(address(&other), address(&long) + 2 * PAGE);
        let mut empty = long;
        empty.truncate(0);
        empty.shrink();
        assert_eq!(empty.share().held_bytes(), PAGE);
        assert_eq!(pool.missed(), 0);
    }

    #[test]
    fn a_reserve_outlives_its_pool_as_long_as_a_buffer_of_it() {
        let pool = pool(3);
        let shared = pool.copy_of(&[5; 9000]).share();
        let part = shared.slice(8000..);
        drop(pool);
        drop(shared);
        assert!(part.iter().all(|byte| *byte == 5));
        let mut again = part.try_unique().expect("the only one");
        again.fill(6);
    }

    struct Lent(Vec<u64>);

    // SAFETY: the vector's memory stays where it is, nobody else uses it, and `start` is aligned within it.
    unsafe impl crate::Region for Lent {
        fn start(&self) -> std::ptr::NonNull<u8> {
            let first = std::ptr::NonNull::from(&self.0[0]).cast::<u8>();
            // SAFETY: the vector is longer than what is skipped.
            unsafe { first.add(first.align_offset(PAGE)) }
        }

        fn len(&self) -> usize {
            3 * PAGE
        }
    }

    #[test]
    fn memory_that_is_lent_is_used_and_its_places_are_known() {
        let pool = Pool::over(0, Box::new(Lent(vec![0; 4 * PAGE / 8]))).unwrap();
        let first = pool.get(PAGE + 1).share();
        let second = pool.get(PAGE).share();
        assert_eq!(pool.place(&first), Some(0));
        assert_eq!(pool.place(&second.slice(100..)), Some(2 * PAGE + 100));
        let beyond = pool.get(1).share();
        assert_eq!((pool.place(&beyond), pool.missed()), (None, 1));
        assert!(pool.get_reserved(1).is_none() && Pool::new(0).get_reserved(1).is_none());
        drop(second);
        let again = pool.get_reserved(PAGE).expect("there is room");
        assert_eq!((again.len(), pool.place(&again)), (PAGE, Some(2 * PAGE)));
        assert_eq!(Pool::new(0).place(&first), None);
        drop(pool);
        assert_eq!(first.len(), PAGE + 1);
    }

    #[test]
    fn pages_that_are_claimed_keep_what_they_hold_and_nobody_else_gets_them() {
        let mut memory = vec![0; 4 * PAGE / 8];
        memory.fill(0x0707_0707_0707_0707);
        let pool = Pool::over(0, Box::new(Lent(memory))).unwrap();
        // The end of the second page and the beginning of the third.
        let claimed = pool.claim(2 * PAGE - 10, 20).unwrap();
        assert_eq!(&claimed[..], [7; 20]);
        assert_eq!(pool.place(&claimed), Some(2 * PAGE - 10));
        assert_eq!(
            (claimed.held_bytes(), pool.outstanding_bytes()),
            (2 * PAGE, 2 * PAGE)
        );
        for (from, len) in [
            (0, PAGE + 1),
            (2 * PAGE, 1),
            (3 * PAGE, 1),
            (0, usize::MAX),
            (usize::MAX, 2),
            (0, 0),
        ] {
            assert!(pool.claim(from, len).is_none(), "{from} {len}");
        }
        let other = pool.get(PAGE).share();
        assert_eq!((pool.place(&other), pool.missed()), (Some(0), 0));
        drop(claimed);
        assert_eq!(pool.place(&pool.get(2 * PAGE)), Some(PAGE));
        assert!(Pool::new(0).claim(0, 1).is_none());
    }

    #[test]
    fn more_than_there_is_can_not_be_reserved() {
        assert!(Pool::with_reserve(0, usize::MAX / 4).is_err());
    }

    proptest! {
        #[test]
        fn no_two_buffers_share_a_page_and_all_come_back(
            steps in proptest::collection::vec((1..6 * PAGE, any::<bool>(), any::<prop::sample::Index>()), 1..200),
        ) {
            let pool = pool(130);
            let mut held: Vec<(Shared, u8)> = Vec::new();
            for (at, (len, cut, which)) in steps.into_iter().enumerate() {
                if at % 3 == 2 && !held.is_empty() {
                    held.swap_remove(which.index(held.len()));
                }
                let mut buf: Buf = pool.get(len);
                if cut {
                    buf.truncate(len / 2);
                    buf.shrink();
                }
                let fill = at as u8;
                buf.fill(fill);
                held.push((buf.share(), fill));
                let total: usize = held.iter().map(|(bytes, _)| bytes.held_bytes()).sum();
                prop_assert_eq!(pool.outstanding_bytes(), total);
            }
            for (bytes, fill) in &held {
                prop_assert!(bytes.iter().all(|byte| byte == fill));
            }
            held.clear();
            prop_assert_eq!(pool.outstanding_bytes(), 0);
            let missed = pool.missed();
            drop(pool.get(130 * PAGE));
            prop_assert_eq!(pool.missed(), missed, "all of it is free again");
        }
    }
}
