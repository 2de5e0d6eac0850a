//! Retention: acknowledged writes that are not durable yet, kept until a FLUSH covers them.
//!
//! A ring of entries in memory that the driver lends, in order of completion, which for overlapping writes is the order
//! of execution. Each has a sequence number; the driver keeps the bytes of entry `seq` in its own table at
//! [`Retained::index`].
//!
//! Besides writes there are *masks*: a FUA write is durable when it is answered, so replaying an older write over it
//! would undo it on the medium. A mask covers its range against all older entries and is dropped with them. (Cutting
//! the older entries instead could need more entries than there is room for.)
//!
//! Invariants: `head <= tail`; `tail - head <= capacity`; `bytes` is the sum over the entries, `bytes + reserved_bytes <=
//! capacity_bytes` and `entries + reserved_entries <= capacity`: room is reserved when a write takes its id, so that an
//! acknowledged write can always be kept. With retention off nothing is stored and the sequence numbers alone tell
//! whether anything acknowledged is not durable.

use super::super::proto::{Kind, OpFlags};
use super::slot::Request;

/// One retained write, or a mask.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    request: Request,
    mask: bool,
}

impl Default for Entry {
    fn default() -> Self {
        Self {
            request: Request {
                kind: Kind::FLUSH,
                flags: OpFlags::NONE,
                offset: 0,
                length: 0,
            },
            mask: false,
        }
    }
}

impl Entry {
    pub(super) fn new(request: Request, mask: bool) -> Self {
        Self { request, mask }
    }

    pub(super) fn request(&self) -> &Request {
        &self.request
    }

    pub(super) fn is_mask(&self) -> bool {
        self.mask
    }
}

/// Memory for [`Entry`]s.
pub trait Entries: AsRef<[Entry]> + AsMut<[Entry]> {}
impl<T: AsRef<[Entry]> + AsMut<[Entry]>> Entries for T {}

/// A part of a retained write that is to be replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    pub seq: u64,
    /// First byte within the entry.
    pub from: u64,
    pub request: Request,
}

/// The ordered list of acknowledged, unflushed writes.
#[derive(Debug)]
pub struct Retained<E> {
    entries: E,
    capacity_bytes: u64,
    head: u64,
    tail: u64,
    bytes: u64,
    /// Entries that are masks.
    masks: u64,
    reserved_entries: u64,
    reserved_bytes: u64,
    /// Entries below this have been reported to the driver as released.
    released: u64,
}

impl<E: Entries> Retained<E> {
    /// Keeps at most `entries.len()` writes with together at most `capacity_bytes` of payload. No entries: retention is
    /// off.
    pub fn new(entries: E, capacity_bytes: u64) -> Self {
        Self {
            entries,
            capacity_bytes,
            head: 0,
            tail: 0,
            bytes: 0,
            masks: 0,
            reserved_entries: 0,
            reserved_bytes: 0,
            released: 0,
        }
    }

    /// Takes over what a predecessor had: entries `head` to `tail`, each from `entry` by its index. None: they can't be so.
    pub(super) fn restore(
        &mut self,
        head: u64,
        tail: u64,
        entry: impl Fn(usize) -> Option<Entry>,
    ) -> Option<()> {
        let count = tail.checked_sub(head)?;
        (self.head, self.tail, self.released) = (head, tail, head);
        if !self.is_enabled() {
            return Some(());
        }
        if count > self.capacity() {
            return None;
        }
        let mut seq = head;
        while seq < tail {
            let index = self.index(seq);
            let known = entry(index)?;
            if known.mask {
                self.masks = self.masks.wrapping_add(1);
            } else {
                self.bytes = self.bytes.saturating_add(room(&known.request));
            }
            *self.entries.as_mut().get_mut(index)? = known;
            seq = seq.wrapping_add(1);
        }
        Some(())
    }

    /// Whether writes are kept for replay.
    pub fn is_enabled(&self) -> bool {
        self.capacity() > 0
    }

    /// Whether a write has been acknowledged that no FLUSH has covered.
    pub fn is_dirty(&self) -> bool {
        self.head != self.tail
    }

    /// Writes kept; 0 with retention off.
    pub fn entries(&self) -> u64 {
        if self.is_enabled() {
            self.tail.wrapping_sub(self.head)
        } else {
            0
        }
    }

    /// Bytes of payload kept.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Where the driver keeps the bytes of entry `seq`.
    pub fn index(&self, seq: u64) -> usize {
        usize::try_from(seq.checked_rem(self.capacity()).unwrap_or(0)).unwrap_or(0)
    }

    /// How many bytes the driver keeps at `index`; nothing where nothing is retained there or that has none: a mask, a
    /// discard, zeroes.
    pub fn payload(&self, index: usize) -> Option<u32> {
        let capacity = self.capacity();
        let index = index as u64;
        let first = self.head.checked_rem(capacity)?;
        if index >= capacity {
            return None;
        }
        let ahead = if index >= first {
            index.wrapping_sub(first)
        } else {
            capacity.saturating_sub(first).saturating_add(index)
        };
        if ahead >= self.entries() {
            return None;
        }
        let entry = self.entry(self.head.wrapping_add(ahead));
        let bytes = !entry.mask && entry.request.kind == Kind::WRITE;
        bytes.then(|| entry.request.payload())
    }

    /// The next entry whose bytes the driver may let go, as its index.
    pub(super) fn poll_release(&mut self) -> Option<usize> {
        if !self.is_enabled() || self.released >= self.head {
            return None;
        }
        let index = self.index(self.released);
        self.released = self.released.wrapping_add(1);
        Some(index)
    }

    pub(super) fn head(&self) -> u64 {
        self.head
    }

    pub(super) fn tail(&self) -> u64 {
        self.tail
    }

    /// Entries that can be kept.
    pub fn capacity(&self) -> u64 {
        self.entries.as_ref().len() as u64
    }

    /// Whether so much is kept that a FLUSH is due.
    pub(super) fn wants_flush(&self) -> bool {
        self.is_enabled()
            && self.is_dirty()
            && (self.bytes >= self.capacity_bytes / 2 || self.entries() >= self.capacity() / 2)
    }

    /// Takes room for a write that is about to get its id. False: it has to wait for a FLUSH.
    pub(super) fn reserve(&mut self, request: &Request) -> bool {
        if !self.is_enabled() || !request.kind.is_write() {
            return true;
        }
        let bytes = room(request);
        let entries = self.entries().saturating_add(self.reserved_entries);
        let fits = self
            .bytes
            .saturating_add(self.reserved_bytes)
            .saturating_add(bytes)
            <= self.capacity_bytes;
        // A write larger than all the room there is must still get through, alone.
        let alone = entries == 0;
        if entries >= self.capacity() || !(fits || alone) {
            return false;
        }
        self.reserved_entries = self.reserved_entries.saturating_add(1);
        self.reserved_bytes = self.reserved_bytes.saturating_add(bytes);
        true
    }

    /// Gives back room that [`Self::reserve`] took.
    pub(super) fn unreserve(&mut self, request: &Request) {
        if self.is_enabled() && request.kind.is_write() {
            self.reserved_entries = self.reserved_entries.saturating_sub(1);
            self.reserved_bytes = self.reserved_bytes.saturating_sub(room(request));
        }
    }

    /// Notes an acknowledged write whose room was reserved. Answers the entry in which the driver has to keep its
    /// bytes, where it has to.
    pub(super) fn acknowledge(&mut self, request: &Request) -> Option<u64> {
        self.unreserve(request);
        let mask = request.flags.contains(OpFlags::FUA);
        if mask && !self.covers_any(request) {
            return None;
        }
        let seq = self.tail;
        if !self.is_enabled() {
            if !mask {
                self.tail = seq.wrapping_add(1);
            }
            return None;
        }
        let index = self.index(seq);
        let entry = self.entries.as_mut().get_mut(index)?;
        *entry = Entry {
            request: *request,
            mask,
        };
        self.tail = seq.wrapping_add(1);
        if mask {
            self.masks = self.masks.wrapping_add(1);
            return None;
        }
        self.bytes = self.bytes.saturating_add(room(request));
        Some(seq)
    }

    /// Everything below `mark` is durable.
    pub(super) fn durable_below(&mut self, mark: u64) {
        let mark = mark.min(self.tail);
        if !self.is_enabled() {
            self.head = self.head.max(mark);
            return;
        }
        while self.head < mark {
            let entry = self.entry(self.head);
            if entry.mask {
                self.masks = self.masks.saturating_sub(1);
            } else {
                self.bytes = self.bytes.saturating_sub(room(&entry.request));
            }
            self.head = self.head.wrapping_add(1);
        }
    }

    /// The first part to replay at or after byte `from` of entry `seq`: entries in order, without what a younger mask covers, in
    /// parts of at most `limit` bytes.
    pub(super) fn next_part(
        &self,
        mut seq: u64,
        mut from: u64,
        limit: impl Fn(Kind) -> u64,
    ) -> Option<Part> {
        seq = seq.max(self.head);
        while seq < self.tail {
            let entry = self.entry(seq);
            let length = entry.request.length;
            if !entry.mask {
                // Each pass goes beyond one mask or ends; masks are at most as many as entries.
                while from < length {
                    let start = entry.request.offset.saturating_add(from);
                    let (covered_to, clear_to) = self.uncovered(seq, start, entry.request.end());
                    if covered_to > start {
                        from = covered_to.saturating_sub(entry.request.offset);
                        continue;
                    }
                    let bytes = clear_to.saturating_sub(start);
                    let bytes = bytes.min(limit(entry.request.kind));
                    let request = Request {
                        offset: start,
                        length: bytes,
                        ..entry.request
                    };
                    return Some(Part { seq, from, request });
                }
            }
            seq = seq.wrapping_add(1);
            from = 0;
        }
        None
    }

    /// Seen from `start`: how far masks younger than `seq` cover, and (where they don't) how far it is clear.
    fn uncovered(&self, seq: u64, start: u64, end: u64) -> (u64, u64) {
        let mut covered_to = start;
        let mut clear_to = end;
        let mut younger = seq.wrapping_add(1);
        let mut masks = self.masks;
        while masks > 0 && younger < self.tail {
            let entry = self.entry(younger);
            if entry.mask && entry.request.end() > start {
                if entry.request.offset <= start {
                    covered_to = covered_to.max(entry.request.end().min(end));
                } else {
                    clear_to = clear_to.min(entry.request.offset);
                }
            }
            masks = masks.wrapping_sub(u64::from(entry.mask));
            younger = younger.wrapping_add(1);
        }
        (covered_to, clear_to)
    }

    fn covers_any(&self, request: &Request) -> bool {
        let mut seq = self.head;
        while self.is_enabled() && seq < self.tail {
            let entry = self.entry(seq);
            if !entry.mask && entry.request.overlaps(request) {
                return true;
            }
            seq = seq.wrapping_add(1);
        }
        false
    }

    pub(super) fn entry(&self, seq: u64) -> Entry {
        self.entries
            .as_ref()
            .get(self.index(seq))
            .copied()
            .unwrap_or_default()
    }
}

/// Payload bytes that a retained request occupies.
fn room(request: &Request) -> u64 {
    if request.flags.contains(OpFlags::FUA) {
        0
    } else {
        u64::from(request.payload())
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use std::vec::Vec;

    fn write(offset: u64, length: u64) -> Request {
        Request {
            kind: Kind::WRITE,
            flags: OpFlags::NONE,
            offset,
            length,
        }
    }

    fn fua(offset: u64, length: u64) -> Request {
        Request {
            flags: OpFlags::FUA,
            ..write(offset, length)
        }
    }

    fn keep(retained: &mut Retained<Vec<Entry>>, request: Request) -> Option<u64> {
        assert!(retained.reserve(&request));
        retained.acknowledge(&request)
    }

    fn parts(retained: &Retained<Vec<Entry>>) -> Vec<(u64, u64, u64)> {
        let (mut seq, mut from) = (0, 0);
        let mut out = Vec::new();
        while let Some(part) = retained.next_part(seq, from, |_| 1 << 20) {
            out.push((part.seq, part.request.offset, part.request.length));
            (seq, from) = (part.seq, part.from + part.request.length);
        }
        out
    }

    #[test]
    fn a_fua_write_masks_only_what_is_older() {
        let mut retained = Retained::new(std::vec![Entry::default(); 8], 1 << 20);
        assert_eq!(keep(&mut retained, write(0, 4096)), Some(0));
        assert_eq!(keep(&mut retained, fua(1024, 512)), None);
        assert_eq!(keep(&mut retained, write(1024, 512)), Some(2));
        assert_eq!(
            parts(&retained),
            [(0, 0, 1024), (0, 1536, 2560), (2, 1024, 512)]
        );
    }

    #[test]
    fn a_fua_write_that_touches_nothing_takes_no_entry() {
        let mut retained = Retained::new(std::vec![Entry::default(); 8], 1 << 20);
        keep(&mut retained, write(0, 4096));
        keep(&mut retained, fua(8192, 512));
        assert_eq!(retained.entries(), 1);
    }

    #[test]
    fn adjoining_masks_cover_together() {
        let mut retained = Retained::new(std::vec![Entry::default(); 8], 1 << 20);
        keep(&mut retained, write(0, 4096));
        keep(&mut retained, fua(0, 1024));
        keep(&mut retained, fua(512, 1024));
        keep(&mut retained, fua(3584, 1024));
        assert_eq!(parts(&retained), [(0, 1536, 2048)]);
    }

    #[test]
    fn room_is_bounded_and_comes_back_with_a_flush() {
        let mut retained = Retained::new(std::vec![Entry::default(); 4], 8192);
        keep(&mut retained, write(0, 4096));
        assert!(retained.wants_flush());
        keep(&mut retained, write(4096, 4096));
        assert!(!retained.reserve(&write(8192, 512)));
        retained.durable_below(1);
        assert_eq!(retained.poll_release(), Some(0));
        assert_eq!(retained.poll_release(), None);
        assert!(retained.reserve(&write(8192, 512)));
        assert_eq!(retained.bytes(), 4096);
    }

    #[test]
    fn without_retention_one_bit_is_known() {
        let mut retained = Retained::new(std::vec![], 0);
        assert!(!retained.is_dirty());
        keep(&mut retained, fua(0, 512));
        assert!(!retained.is_dirty());
        keep(&mut retained, write(0, 512));
        assert!(retained.is_dirty());
        retained.durable_below(retained.tail());
        assert!(!retained.is_dirty());
        assert_eq!(retained.poll_release(), None);
    }
}
