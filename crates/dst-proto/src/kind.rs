//! Frame types (PROTOCOL.md section 4).

use super::flags::OpFlags;

/// The type of a frame, as it stands in the header; a value that names none is kept as it came.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Kind(pub u8);

impl Kind {
    /// Opens a fresh session.
    pub const OPEN: Kind = Kind(1);
    /// Adds a connection to a session, or replaces a broken one.
    pub const JOIN: Kind = Kind(2);
    /// Asks for the names of the exports.
    pub const LIST: Kind = Kind(3);
    /// Asks for a sign of life; from both sides.
    pub const PING: Kind = Kind(4);
    /// Settles a request that was given up.
    pub const ABORT: Kind = Kind(5);
    /// Ends the session in order.
    pub const CLOSE: Kind = Kind(6);
    /// Says that the replay in a fresh session is complete; has no reply.
    pub const REPLAYED: Kind = Kind(7);
    /// Reads bytes.
    pub const READ: Kind = Kind(16);
    /// Writes bytes.
    pub const WRITE: Kind = Kind(17);
    /// Makes every write answered before durable.
    pub const FLUSH: Kind = Kind(18);
    /// Says that the contents of a range are no longer needed.
    pub const DISCARD: Kind = Kind(19);
    /// Sets a range to zero.
    pub const WRITE_ZEROES: Kind = Kind(20);
    /// Asks which parts of a range are data, zeroes or holes.
    pub const BLOCK_STATUS: Kind = Kind(21);
    /// From the server: size or flags have changed; has no reply.
    pub const CHANGED: Kind = Kind(32);
    /// From the server: it is about to stop; has no reply.
    pub const DRAINING: Kind = Kind(33);
    /// The last frame before a stream is closed for a fault; has no reply.
    pub const ERROR: Kind = Kind(34);

    /// Every type of version 1, in ascending order.
    pub const ALL: [Kind; 16] = [
        Kind::OPEN,
        Kind::JOIN,
        Kind::LIST,
        Kind::PING,
        Kind::ABORT,
        Kind::CLOSE,
        Kind::REPLAYED,
        Kind::READ,
        Kind::WRITE,
        Kind::FLUSH,
        Kind::DISCARD,
        Kind::WRITE_ZEROES,
        Kind::BLOCK_STATUS,
        Kind::CHANGED,
        Kind::DRAINING,
        Kind::ERROR,
    ];

    /// Whether version 1 defines this type.
    #[inline]
    pub fn is_known(self) -> bool {
        matches!(self.0, 1..=7 | 16..=21 | 32..=34)
    }

    /// Whether a request of this type takes a slot and an id. ABORT names those of its target and takes none.
    #[inline]
    pub fn has_slot(self) -> bool {
        matches!(self.0, 16..=21)
    }

    /// Whether this is what the rules call a write: WRITE, WRITE ZEROES or DISCARD.
    #[inline]
    pub fn is_write(self) -> bool {
        matches!(self, Kind::WRITE | Kind::WRITE_ZEROES | Kind::DISCARD)
    }

    /// Whether a frame of this type is answered. An unknown type is: with UNSUPPORTED.
    #[inline]
    pub fn has_reply(self) -> bool {
        !matches!(
            self,
            Kind::REPLAYED | Kind::CHANGED | Kind::DRAINING | Kind::ERROR
        )
    }

    /// Whether a frame of this type may carry a payload. An unknown one may: it is discarded.
    #[inline]
    pub fn may_have_payload(self, reply: bool) -> bool {
        match self {
            Kind::READ => reply,
            Kind::WRITE => !reply,
            _ => !self.is_known(),
        }
    }

    /// Whether a reply of this type may come in several frames, all but the last with MORE.
    #[inline]
    pub fn may_have_more(self) -> bool {
        matches!(self, Kind::READ | Kind::LIST) || !self.is_known()
    }

    /// The operation flags that version 1 defines for requests of this type.
    #[inline]
    pub fn op_flags(self) -> OpFlags {
        match self {
            Kind::WRITE => OpFlags::FUA.union(OpFlags::BARRIER).union(OpFlags::REPLAY),
            Kind::WRITE_ZEROES => OpFlags::ALL,
            Kind::DISCARD => OpFlags::BARRIER.union(OpFlags::REPLAY),
            Kind::READ | Kind::FLUSH | Kind::BLOCK_STATUS => OpFlags::BARRIER,
            _ => OpFlags::NONE,
        }
    }

    /// The name in PROTOCOL.md, or "unknown type".
    pub fn name(self) -> &'static str {
        match self {
            Kind::OPEN => "OPEN",
            Kind::JOIN => "JOIN",
            Kind::LIST => "LIST",
            Kind::PING => "PING",
            Kind::ABORT => "ABORT",
            Kind::CLOSE => "CLOSE",
            Kind::REPLAYED => "REPLAYED",
            Kind::READ => "READ",
            Kind::WRITE => "WRITE",
            Kind::FLUSH => "FLUSH",
            Kind::DISCARD => "DISCARD",
            Kind::WRITE_ZEROES => "WRITE ZEROES",
            Kind::BLOCK_STATUS => "BLOCK STATUS",
            Kind::CHANGED => "CHANGED",
            Kind::DRAINING => "DRAINING",
            Kind::ERROR => "ERROR",
            _ => "unknown type",
        }
    }
}

impl core::fmt::Debug for Kind {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        if self.is_known() {
            f.write_str(self.name())
        } else {
            f.debug_tuple("Kind").field(&self.0).finish()
        }
    }
}

impl core::fmt::Display for Kind {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_lists_exactly_the_known_types() {
        let known = (0..=255u8).map(Kind).filter(|k| k.is_known());
        assert!(known.eq(Kind::ALL));
        for kind in (0..=255u8).map(Kind) {
            assert_eq!(kind.name() != "unknown type", kind.is_known());
        }
    }

    #[test]
    fn payload_goes_with_write_requests_and_read_replies() {
        for kind in Kind::ALL {
            assert_eq!(kind.may_have_payload(false), kind == Kind::WRITE);
            assert_eq!(kind.may_have_payload(true), kind == Kind::READ);
        }
    }
}
