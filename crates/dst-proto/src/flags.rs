//! Bit sets: operation flags (PROTOCOL.md section 3.2) and geometry flags (section 3.3).

use super::kind::Kind;

/// Flags of a request. Unknown bits are kept as they came, for `allowed_for` to refuse.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct OpFlags(pub u8);

impl OpFlags {
    /// No flag.
    pub const NONE: OpFlags = OpFlags(0);
    /// Durable before it is answered.
    pub const FUA: OpFlags = OpFlags(1);
    /// Starts after every lower id has finished; no higher id starts before it is done.
    pub const BARRIER: OpFlags = OpFlags(2);
    /// The server may deallocate the range.
    pub const MAY_UNMAP: OpFlags = OpFlags(4);
    /// UNSUPPORTED at once unless it is faster than writing zeroes.
    pub const FAST_ONLY: OpFlags = OpFlags(8);
    /// Replays an acknowledged write of an earlier session.
    pub const REPLAY: OpFlags = OpFlags(16);
    /// Every flag that version 1 defines.
    pub const ALL: OpFlags = OpFlags(31);

    /// Whether all of `other` are set.
    #[inline]
    pub const fn contains(self, other: OpFlags) -> bool {
        self.0 & other.0 == other.0
    }

    /// The flags of both.
    #[inline]
    pub const fn union(self, other: OpFlags) -> OpFlags {
        OpFlags(self.0 | other.0)
    }

    /// The flags without those of `other`.
    #[inline]
    pub const fn without(self, other: OpFlags) -> OpFlags {
        OpFlags(self.0 & !other.0)
    }

    /// `other` added if `on`.
    #[inline]
    pub const fn with(self, other: OpFlags, on: bool) -> OpFlags {
        if on {
            self.union(other)
        } else {
            self
        }
    }

    /// Whether version 1 defines every set bit for requests of `kind`; if not, the answer is UNSUPPORTED.
    #[inline]
    pub fn allowed_for(self, kind: Kind) -> bool {
        kind.op_flags().contains(self)
    }
}

/// What an export is and can do, in GEOMETRY and LISTED. Unknown bits are kept and mean nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct GeometryFlags(pub u32);

impl GeometryFlags {
    /// No flag.
    pub const NONE: GeometryFlags = GeometryFlags(0);
    /// Writes are answered READ_ONLY.
    pub const READ_ONLY: GeometryFlags = GeometryFlags(1);
    /// The medium rotates.
    pub const ROTATIONAL: GeometryFlags = GeometryFlags(1 << 1);
    /// DISCARD works.
    pub const DISCARD: GeometryFlags = GeometryFlags(1 << 2);
    /// WRITE ZEROES works.
    pub const WRITE_ZEROES: GeometryFlags = GeometryFlags(1 << 3);
    /// WRITE ZEROES with FAST_ONLY can succeed.
    pub const FAST_ZEROES: GeometryFlags = GeometryFlags(1 << 4);
    /// FUA costs less than a FLUSH.
    pub const FUA: GeometryFlags = GeometryFlags(1 << 5);
    /// BLOCK STATUS works.
    pub const BLOCK_STATUS: GeometryFlags = GeometryFlags(1 << 6);
    /// Failed writes are undone.
    pub const ROLLBACK: GeometryFlags = GeometryFlags(1 << 7);
    /// Writes are atomic through a crash.
    pub const JOURNAL: GeometryFlags = GeometryFlags(1 << 8);

    /// Whether all of `other` are set.
    #[inline]
    pub const fn contains(self, other: GeometryFlags) -> bool {
        self.0 & other.0 == other.0
    }

    /// The flags of both.
    #[inline]
    pub const fn union(self, other: GeometryFlags) -> GeometryFlags {
        GeometryFlags(self.0 | other.0)
    }

    /// `other` added if `on`.
    #[inline]
    pub const fn with(self, other: GeometryFlags, on: bool) -> GeometryFlags {
        if on {
            self.union(other)
        } else {
            self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_flag_is_allowed_where_the_table_says() {
        let table: [(OpFlags, &[Kind]); 5] = [
            (OpFlags::FUA, &[Kind::WRITE, Kind::WRITE_ZEROES]),
            (
                OpFlags::BARRIER,
                &[
                    Kind::READ,
                    Kind::WRITE,
                    Kind::FLUSH,
                    Kind::DISCARD,
                    Kind::WRITE_ZEROES,
                    Kind::BLOCK_STATUS,
                ],
            ),
            (OpFlags::MAY_UNMAP, &[Kind::WRITE_ZEROES]),
            (OpFlags::FAST_ONLY, &[Kind::WRITE_ZEROES]),
            (
                OpFlags::REPLAY,
                &[Kind::WRITE, Kind::WRITE_ZEROES, Kind::DISCARD],
            ),
        ];
        for (flag, kinds) in table {
            for kind in (0..=255).map(Kind) {
                assert_eq!(flag.allowed_for(kind), kinds.contains(&kind));
            }
        }
        assert!(!OpFlags(32).allowed_for(Kind::WRITE_ZEROES));
        assert!(OpFlags::NONE.allowed_for(Kind::OPEN));
    }
}
