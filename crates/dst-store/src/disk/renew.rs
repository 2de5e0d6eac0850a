//! A new incarnation begins with a page cache that shows nothing but what the disk holds.
//!
//! When Linux can't write a page back, it reports an error once and keeps the page, marked clean. From then on the page shows
//! what the disk does not hold, until it is evicted at some later time: a read would find the lost write, and a read after that
//! perhaps not. So between two incarnations the page cache of the whole export is dropped.
//!
//! # States
//! ```text
//! Over ──new incarnation──> Draining ──no call is out──> Dropping ──call has returned──> Over, and what was held starts
//! ```
//! Outside of *Over* requests are held, so that the dropping is alone: everything of the old incarnation has returned before
//! it, and everything of the new one, replay and the readers that wait for it included, is executed after it.
//!
//! *Dropping* is one call, in two steps. A sync, whose result does not count: what is still dirty goes to the disk or is lost
//! now, in the incarnation that is over, and an error that nobody has been told of is used up before it could be taken for
//! one of the new. Then `POSIX_FADV_DONTNEED` over everything. The sync mark counts the call as a sync that is under way: if
//! the process is killed before it has returned, the next one finds the mark, and drops the cache when it opens the export
//! (without the sync: what is dirty then is not lost yet, and if it will be, the new process' next sync tells it).
//!
//! # What is guaranteed, and what is not
//! - All pages go that are clean, unlocked and not in use: by the kernel's `invalidate_mapping_pages`, on every file system that
//!   keeps its data in the page cache (ext4, XFS, btrfs, F2FS, NFS) and on block devices, where `BLKFLSBUF` does hardly
//!   more and needs privileges. Since no call of ours is out, none is in use by us.
//! - A page stays that another process has mapped, or reads at this moment. It may show a lost write until it is evicted.
//! - A page stays that another process makes dirty again: that is a write of its own.
//! - tmpfs has no disk below its pages, so that nothing is dropped and nothing was lost. What a file system or device below
//!   keeps in a cache of its own is not reached.
//! - From the loss of a page to the error that tells of it, reads find the lost write, as they find any write that is not
//!   flushed; it is lost as by a power failure.
//! - After a start without a sync mark (no directory for it, or it was deleted) nobody knows whether a sync had failed: with
//!   no directory the cache is dropped at each start, after a deletion it is not.

use crate::disk::DiskBackend;
use crate::engine::Call;

/// Key of the call that drops the cache; no task has it.
pub(super) const RENEWAL: u64 = u64::MAX;

/// See the [module](self).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Renewal {
    Over,
    Draining,
    Dropping,
}

impl DiskBackend {
    /// Begins a new incarnation.
    pub(super) fn renew(&mut self) {
        // One more than the syncs that run: the call that drops the cache.
        self.target.new_incarnation(self.sync.running() + 1);
        self.sync.new_incarnation(&mut self.answers);
        self.pass_sync_answers();
        // While the cache is being dropped nothing has been started that could make it doubtful again.
        if self.renewal == Renewal::Over {
            self.renewal = Renewal::Draining;
            self.step_renewal();
        }
    }

    /// Starts the dropping when everything has returned.
    pub(super) fn step_renewal(&mut self) {
        if self.renewal == Renewal::Draining && self.calls == 0 {
            self.renewal = Renewal::Dropping;
            self.push(RENEWAL, Call::Forget);
        }
    }

    /// The cache has been dropped.
    pub(super) fn renewed(&mut self) {
        self.target.sync_succeeded();
        self.renewal = Renewal::Over;
        self.size_checked = false;
        for request in std::mem::take(&mut self.held) {
            self.start_request(request);
        }
    }
}
