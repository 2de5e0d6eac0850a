//! What is sent: replies, pieces of READs, and the frames that belong to no slot.
//!
//! The replies of a connection stand in a queue. A READ longer than a piece gives one piece and goes to the queue's end,
//! so 1 MiB never holds up 4 KiB. A reply counts as given when it, or its last piece, has been handed out: should the
//! connection break then, the client resends, and writes are answered from the kept status while READs are executed again.

pub use super::super::frame::seal;
use super::super::proto::{
    digest, Aborted, Changed, Credit, Header, Kind, OptionError, Status, HEADER_LEN,
};
use super::lane::ConnId;
use super::session::{Bits, Lanes, Session};
use super::slot::{Pending, Slot};
use super::NONE;

/// A part of what a READ has read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The slot of the READ.
    pub slot: u16,
    /// First byte, counted from the beginning of the READ.
    pub from: u32,
    /// Bytes.
    pub len: u32,
    /// Whether this is the last piece: once it is sent the driver needs the bytes no more.
    pub last: bool,
}

/// Something to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transmit {
    /// The first so many bytes of the buffer, whole as they are.
    Bytes(usize),
    /// A piece of a READ: the driver puts the digests of the piece (it begins at `header.offset` in the export) at
    /// `out[HEADER_LEN..][..header.digest_len]`, calls [`seal`], and sends what that says and then the piece.
    Data {
        /// The header, still without CRCs.
        header: Header,
        /// The bytes.
        piece: Piece,
    },
    /// The answer to a BLOCK STATUS: the driver puts the option EXTENTS with what it kept for `slot` at `out[HEADER_LEN..]`,
    /// sets `header.options_len`, calls [`seal`], sends what that says and forgets the extents.
    Extents {
        /// The header, still without length of options and CRCs.
        header: Header,
        /// The slot of the BLOCK STATUS.
        slot: u16,
    },
}

impl<W: Bits, L: Lanes> Session<W, L> {
    /// Whether `poll_reply` has something for `conn`.
    pub fn has_reply(&self, conn: ConnId) -> bool {
        let lanes = self.lanes.as_ref().iter();
        let mut mine = lanes.filter(|lane| lane.conn == Some(conn));
        mine.any(|lane| !lane.replies.is_empty() || lane.has_control())
            || self
                .lane_of(conn)
                .is_some_and(|lane| self.has_close_answer(lane))
    }

    /// The next thing to send over `conn`, to be asked while it has room to send. `out` must have room for a header and the
    /// longest digest area or EXTENTS; 128 bytes where there are neither.
    pub fn poll_reply(
        &mut self,
        slots: &mut [Slot],
        conn: ConnId,
        out: &mut [u8],
    ) -> Option<Transmit> {
        let at = self.lane_of(conn)?;
        if let Some((header, geometry)) = self.control(at) {
            if !geometry {
                return bytes(header, Ok(0), out);
            }
            let changed = Changed {
                geometry: self.config.geometry,
            };
            let written = changed.encode(out.get_mut(HEADER_LEN..)?);
            return bytes(header, written, out);
        }
        let lane = self.lane_mut(at)?;
        let Some(next) = lane.replies.pop_front(slots) else {
            let status = self.take_close_answer(at)?;
            return bytes(self.reply_header(Kind::CLOSE, status), Ok(0), out);
        };
        let slot = slots.get_mut(usize::from(next))?;
        let pending = core::mem::take(&mut slot.pending);
        if pending == Pending::Answer && slot.data && slot.kind == Kind::READ {
            return self.piece(slots, next);
        }
        let (id, attempt) = (slot.id, slot.attempt);
        let (kind, outcome, status, extents) = (slot.kind, slot.outcome, slot.status, slot.data);
        slot.data = false;
        self.uncount(slot, next);
        let with_slot = |header: Header| Header {
            slot: next,
            id,
            attempt,
            ..header
        };
        match pending {
            Pending::None => None,
            Pending::Retry => {
                let header = with_slot(self.reply_header(kind, Status::RETRY));
                bytes(header, Ok(0), out)
            }
            Pending::Outcome => {
                let header = with_slot(self.reply_header(Kind::ABORT, Status::OK));
                let written = Aborted { outcome }.encode(out.get_mut(HEADER_LEN..)?);
                self.outcome_sent(slots, next, at);
                bytes(header, written, out)
            }
            Pending::Answer => {
                let header = with_slot(self.reply_header(kind, status));
                if extents {
                    return Some(Transmit::Extents { header, slot: next });
                }
                bytes(header, Ok(0), out)
            }
        }
    }

    /// The outcome in `at` was handed out over `lane`. Another connection may have asked too.
    fn outcome_sent(&mut self, slots: &mut [Slot], at: u16, lane: u16) {
        let Some(slot) = slots.get_mut(usize::from(at)) else {
            return;
        };
        let next = slot.answered(lane);
        if next != NONE {
            slot.lane = next;
            self.answer(slots, at, Pending::Outcome);
        }
    }

    /// The next frame of `lane` that belongs to no slot, and whether it carries the geometry.
    fn control(&mut self, lane: u16) -> Option<(Header, bool)> {
        let ping = self.pings.id();
        let lane = self.lane_mut(lane)?;
        if let Some(id) = lane.pong.take() {
            let header = self.reply_header(Kind::PING, Status::OK);
            return Some((Header { id, ..header }, false));
        }
        if core::mem::take(&mut lane.ping) {
            let header = Header::new(Kind::PING);
            return Some((Header { id: ping, ..header }, false));
        }
        if core::mem::take(&mut lane.changed) {
            return Some((Header::new(Kind::CHANGED), true));
        }
        let draining = core::mem::take(&mut lane.draining);
        draining.then_some((Header::new(Kind::DRAINING), false))
    }

    /// The next piece of the READ in `at`, which has just left its queue.
    fn piece(&mut self, slots: &mut [Slot], at: u16) -> Option<Transmit> {
        let header = self.reply_header(Kind::READ, Status::OK);
        let digests = self.config.digests;
        let slot = slots.get_mut(usize::from(at))?;
        let from = slot.sent;
        let offset = slot.offset.saturating_add(u64::from(from));
        let left = u32::try_from(slot.length)
            .unwrap_or(u32::MAX)
            .saturating_sub(from);
        let len = piece_len(offset, left, self.config.piece, digests.granule);
        let last = len == left;
        let header = Header {
            slot: at,
            id: slot.id,
            attempt: slot.attempt,
            offset,
            payload_len: len,
            digest_len: digest::area_len(digests.algorithm, digests.granule, offset, len)?,
            more: !last,
            ..header
        };
        slot.sent = from.saturating_add(len);
        let lane = slot.lane;
        if last {
            slot.data = false;
            self.uncount(slot, at);
        } else {
            slot.pending = Pending::Answer;
            if let Some(lane) = self.lane_mut(lane) {
                lane.replies.push_back(slots, at);
            }
        }
        let piece = Piece {
            slot: at,
            from,
            len,
            last,
        };
        Some(Transmit::Data { header, piece })
    }

    /// A reply with the current credit, which is from now on the least that the client may use.
    fn reply_header(&mut self, kind: Kind, status: Status) -> Header {
        let (now, highest) = (self.credit, self.highest_credit);
        self.highest_credit = Credit {
            requests: highest.requests.max(now.requests),
            bytes: highest.bytes.max(now.bytes),
        };
        Header::reply(kind, super::super::proto::NO_SLOT, 0, status, now)
    }
}

/// How much of `left` bytes at `offset` goes into one frame: at most `piece`, ending at a granule where that is possible.
fn piece_len(offset: u64, left: u32, piece: u32, granule: u32) -> u32 {
    if left <= piece {
        return left;
    }
    let end = offset.saturating_add(u64::from(piece));
    let cut = end & !u64::from(granule.saturating_sub(1));
    let len = u32::try_from(cut.saturating_sub(offset)).unwrap_or(0);
    if len == 0 {
        piece.clamp(1, left)
    } else {
        len
    }
}

/// A frame without payload whose options have been written behind the room of its header.
fn bytes(header: Header, options: Result<usize, OptionError>, out: &mut [u8]) -> Option<Transmit> {
    let header = Header {
        options_len: u16::try_from(options.ok()?).ok()?,
        ..header
    };
    let len = seal(&header, out);
    (len > 0).then_some(Transmit::Bytes(len))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_end_at_granules_and_cover_everything() {
        assert_eq!(piece_len(0, 4096, 131072, 4096), 4096);
        assert_eq!(piece_len(0, 1 << 20, 131072, 4096), 131072);
        assert_eq!(piece_len(512, 1 << 20, 131072, 4096), 131072 - 512);
        assert_eq!(piece_len(512, 8192, 1024, 4096), 1024);
        assert_eq!(piece_len(3584, 8192, 1024, 4096), 512);
        assert_eq!(piece_len(u64::MAX - 4095, 4096, 512, 512), 512);
        assert_eq!(piece_len(0, 10, 0, 512), 1);
    }
}
