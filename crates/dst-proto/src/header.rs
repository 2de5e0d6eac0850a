//! The 64-byte frame header (PROTOCOL.md section 3.1).

use super::bytes::{Fill, Take};
use super::crc32c;
use super::flags::OpFlags;
use super::kind::Kind;
use super::status::Status;

/// Bytes of a header.
pub const HEADER_LEN: usize = 64;
/// The first four bytes of every header: "DST1".
pub const MAGIC: [u8; 4] = *b"DST1";
/// The slot of a frame that has none.
pub const NO_SLOT: u16 = 0xFFFF;
/// Most bytes of options in a frame.
pub const MAX_OPTIONS: u16 = 16384;
/// Most bytes of payload in a frame; LIMITS may only lower it.
pub const MAX_PAYLOAD: u32 = 4 << 20;
/// Most bytes of digest area in a frame: the longest payload in the smallest granules, partial at both ends, in the
/// longest digests.
pub const MAX_DIGEST_AREA: u32 = (MAX_PAYLOAD / 512 + 1) * 16;

const REPLY: u8 = 1 << 7;
const MORE: u8 = 1;

/// What the client may have unanswered in a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Credit {
    /// Requests of a slot, FLUSH's own slot aside.
    pub requests: u16,
    /// Bytes of WRITE payload.
    pub bytes: u32,
}

/// A frame header without magic and CRC, which `encode` puts and `decode` checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Type of the frame.
    pub kind: Kind,
    /// Whether this is a reply.
    pub reply: bool,
    /// Whether more replies to the same request follow (READ and LIST only).
    pub more: bool,
    /// Slot, or `NO_SLOT`.
    pub slot: u16,
    /// Operation flags of a request, unknown bits included; in a reply none.
    pub op_flags: OpFlags,
    /// How often this id was sent before in this session, modulo 256; echoed in the reply.
    pub attempt: u8,
    /// Bytes of options, padding included.
    pub options_len: u16,
    /// Bytes of payload.
    pub payload_len: u32,
    /// Id of the request.
    pub id: u64,
    /// Every id up to this one has been acknowledged to the sender; 0 in a reply.
    pub acked: u64,
    /// Offset in the export, bytes.
    pub offset: u64,
    /// Length in bytes; in replies and in ERROR, status and credit.
    pub length: u64,
    /// Bytes of the digest area, padding included.
    pub digest_len: u32,
    /// CRC-32C of options and digest area as sent.
    pub area_crc: u32,
    /// Distance back from `id` to the barrier that this request must follow; 0 for none.
    pub after: u32,
}

/// Why a header is refused; each ends the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HeaderError {
    /// The header's CRC doesn't match.
    Crc,
    /// The CRC matches, the magic doesn't: not a header of this version.
    Magic,
    /// A flag bit that is not defined for this frame.
    Flags,
    /// Length of options above the limit or not a multiple of 8.
    OptionsLength,
    /// Payload longer than the limit.
    PayloadLength,
    /// Length of the digest area above the limit or not a multiple of 8.
    DigestLength,
    /// Payload or digest area in a frame that can't have one.
    UnexpectedPayload,
}

impl HeaderError {
    /// What is wrong, for a person.
    pub fn text(self) -> &'static str {
        match self {
            HeaderError::Crc => "header CRC mismatch",
            HeaderError::Magic => "wrong header magic",
            HeaderError::Flags => "undefined header flag",
            HeaderError::OptionsLength => "bad length of options",
            HeaderError::PayloadLength => "payload too long",
            HeaderError::DigestLength => "bad length of the digest area",
            HeaderError::UnexpectedPayload => "payload or digests in a frame that has none",
        }
    }
}

impl core::fmt::Display for HeaderError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.text())
    }
}

impl core::error::Error for HeaderError {}

impl Header {
    /// A frame of `kind` with everything else empty: no slot, no id, no options, no payload.
    pub const fn new(kind: Kind) -> Header {
        Header {
            kind,
            reply: false,
            more: false,
            slot: NO_SLOT,
            op_flags: OpFlags::NONE,
            attempt: 0,
            options_len: 0,
            payload_len: 0,
            id: 0,
            acked: 0,
            offset: 0,
            length: 0,
            digest_len: 0,
            area_crc: 0,
            after: 0,
        }
    }

    /// A reply without options and payload.
    pub fn reply(kind: Kind, slot: u16, id: u64, status: Status, credit: Credit) -> Header {
        Header {
            reply: true,
            slot,
            id,
            length: pack(status, credit),
            ..Header::new(kind)
        }
    }

    /// An ERROR frame, whose options are a `Refusal`.
    pub fn error(status: Status) -> Header {
        Header {
            length: pack(status, Credit::default()),
            ..Header::new(Kind::ERROR)
        }
    }

    /// The status of a reply or of an ERROR.
    #[inline]
    pub fn status(&self) -> Status {
        // Truncation is meant: the field is the low 16 bits.
        Status(self.length as u16)
    }

    /// The credit in requests of a reply.
    #[inline]
    pub fn credit_requests(&self) -> u16 {
        (self.length >> 16) as u16
    }

    /// The credit in bytes of a reply.
    #[inline]
    pub fn credit_bytes(&self) -> u32 {
        (self.length >> 32) as u32
    }

    /// The credit of a reply.
    #[inline]
    pub fn credit(&self) -> Credit {
        Credit {
            requests: self.credit_requests(),
            bytes: self.credit_bytes(),
        }
    }

    /// Bytes between the header and the payload: options and digest area.
    #[inline]
    pub fn area_len(&self) -> u32 {
        u32::from(self.options_len).saturating_add(self.digest_len)
    }

    /// Bytes of the whole frame.
    #[inline]
    pub fn frame_len(&self) -> u64 {
        (HEADER_LEN as u64)
            .saturating_add(u64::from(self.area_len()))
            .saturating_add(u64::from(self.payload_len))
    }

    /// Writes the header, magic and CRC included.
    pub fn encode(&self, out: &mut [u8; HEADER_LEN]) {
        let mut flags = 0;
        if self.reply {
            flags |= REPLY;
        }
        if self.more {
            flags |= MORE;
        }
        let mut covered = [0; crc32c::HEADER_COVERED];
        Fill::new(&mut covered)
            .put(&MAGIC)
            .put(&[self.kind.0, flags])
            .put(&self.slot.to_le_bytes())
            .put(&[self.op_flags.0, self.attempt])
            .put(&self.options_len.to_le_bytes())
            .put(&self.payload_len.to_le_bytes())
            .put(&self.id.to_le_bytes())
            .put(&self.acked.to_le_bytes())
            .put(&self.offset.to_le_bytes())
            .put(&self.length.to_le_bytes())
            .put(&self.digest_len.to_le_bytes())
            .put(&self.area_crc.to_le_bytes())
            .put(&self.after.to_le_bytes());
        let crc = crc32c::of_header(&covered);
        Fill::new(out).put(&covered).put(&crc.to_le_bytes());
    }

    /// Reads a header. Nothing else is looked at before the CRC has been found good.
    ///
    /// What came through keeps all limits of this file. Unknown types and unknown operation flags of requests come through:
    /// they are answered UNSUPPORTED. Whether the digest area has the right length depends on the session and is for
    /// `super::frame::digest_len_ok`.
    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Header, HeaderError> {
        let mut take = Take::new(bytes);
        let (Some(covered), Some(crc)) = (take.array(), take.u32()) else {
            return Err(HeaderError::Crc);
        };
        if crc32c::of_header(&covered) != crc {
            return Err(HeaderError::Crc);
        }
        let Some((magic, flags, header)) = fields(&covered) else {
            return Err(HeaderError::Crc);
        };
        if magic != MAGIC {
            return Err(HeaderError::Magic);
        }
        header.check(flags)?;
        Ok(header)
    }

    fn check(&self, flags: u8) -> Result<(), HeaderError> {
        let kind = self.kind;
        let flags_ok = flags & !(REPLY | MORE) == 0
            && (!self.reply || kind.has_reply() && self.op_flags == OpFlags::NONE)
            && (!self.more || self.reply && kind.may_have_more());
        if !flags_ok {
            return Err(HeaderError::Flags);
        }
        if self.options_len > MAX_OPTIONS || self.options_len & 7 != 0 {
            return Err(HeaderError::OptionsLength);
        }
        if self.payload_len > MAX_PAYLOAD {
            return Err(HeaderError::PayloadLength);
        }
        if self.digest_len > MAX_DIGEST_AREA || self.digest_len & 7 != 0 {
            return Err(HeaderError::DigestLength);
        }
        let expects_none = self.payload_len == 0 && self.digest_len == 0;
        let may_have = kind.may_have_payload(self.reply) && self.payload_len != 0;
        if !expects_none && !may_have {
            return Err(HeaderError::UnexpectedPayload);
        }
        Ok(())
    }
}

fn pack(status: Status, credit: Credit) -> u64 {
    u64::from(status.0) | u64::from(credit.requests) << 16 | u64::from(credit.bytes) << 32
}

/// The fields as they stand, and the byte of flags; none only if the bytes were too few, which their type rules out.
#[inline]
fn fields(covered: &[u8; crc32c::HEADER_COVERED]) -> Option<([u8; 4], u8, Header)> {
    let mut take = Take::new(covered);
    let magic = take.array()?;
    let kind = Kind(take.u8()?);
    let flags = take.u8()?;
    let header = Header {
        kind,
        reply: flags & REPLY != 0,
        more: flags & MORE != 0,
        slot: take.u16()?,
        op_flags: OpFlags(take.u8()?),
        attempt: take.u8()?,
        options_len: take.u16()?,
        payload_len: take.u32()?,
        id: take.u64()?,
        acked: take.u64()?,
        offset: take.u64()?,
        length: take.u64()?,
        digest_len: take.u32()?,
        area_crc: take.u32()?,
        after: take.u32()?,
    };
    Some((magic, flags, header))
}
