//! What differs between a regular file and a block device: the part of [`DiskBackend`](crate::DiskBackend) that each brings.

use std::io;

use crate::backend::Identity;
use crate::engine::Call;

/// What differs between a file and a device.
pub(crate) trait Target: Send {
    /// The size now, in bytes.
    fn size(&self) -> io::Result<u64>;
    /// The size now, where asking neither blocks nor costs much.
    fn cheap_size(&self) -> Option<u64>;
    /// The call that discards a range.
    fn discard(&self, offset: u64, len: u64) -> Call;
    /// Whether holes can be found by `lseek`.
    fn has_holes(&self) -> bool;
    /// Which export it is.
    fn identity(&self) -> Identity;
    /// At the start: a sync of an earlier process may have failed, so that the page cache may show lost writes. Once it is
    /// dropped, [`sync_succeeded`](Target::sync_succeeded) is to be called.
    fn cache_is_doubtful(&self) -> bool;
    /// A sync call begins.
    fn sync_begins(&self);
    /// A sync call has returned without error.
    fn sync_succeeded(&self);
    /// A new incarnation begins; `running` sync calls are out.
    fn new_incarnation(&mut self, running: usize);
}

/// Fast ways to make zeroes. Both keep the size as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Abilities {
    /// `FALLOC_FL_PUNCH_HOLE`: gives the space back.
    pub(crate) punch: bool,
    /// `FALLOC_FL_ZERO_RANGE`: keeps the space.
    pub(crate) zero_range: bool,
}
