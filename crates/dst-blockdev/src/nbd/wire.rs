//! What goes over the socket: requests of 28 bytes, replies of 16, all numbers big-endian (`struct nbd_request` and
//! `struct nbd_reply` of `include/uapi/linux/nbd.h`; "simple replies" of the NBD protocol).
//!
//! The payload of a WRITE follows its request, the bytes of a READ follow its reply unless that has an error.

use dst_client::IoError;

/// Length of a request without its payload.
pub(super) const REQUEST_LEN: usize = 28;
/// Length of a reply without its payload.
pub(super) const REPLY_LEN: usize = 16;

const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;

/// The upper half of a request's type.
pub(super) mod request_flag {
    /// `NBD_CMD_FLAG_FUA`
    pub(in super::super) const FUA: u16 = 1 << 0;
    /// `NBD_CMD_FLAG_NO_HOLE`: the zeroes must be allocated.
    pub(in super::super) const NO_HOLE: u16 = 1 << 1;
}

/// What the kernel asks for: the lower half of a request's type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// `NBD_CMD_READ`
    Read,
    /// `NBD_CMD_WRITE`
    Write,
    /// `NBD_CMD_DISC`: no more requests come, and no reply is wanted.
    Disconnect,
    /// `NBD_CMD_FLUSH`
    Flush,
    /// `NBD_CMD_TRIM`
    Trim,
    /// `NBD_CMD_WRITE_ZEROES`
    WriteZeroes,
    /// A number that this kernel should not have sent.
    Unknown(u16),
}

impl Kind {
    fn from_number(number: u16) -> Kind {
        match number {
            0 => Kind::Read,
            1 => Kind::Write,
            2 => Kind::Disconnect,
            3 => Kind::Flush,
            4 => Kind::Trim,
            6 => Kind::WriteZeroes,
            other => Kind::Unknown(other),
        }
    }

    #[cfg(test)]
    fn number(self) -> u16 {
        match self {
            Kind::Read => 0,
            Kind::Write => 1,
            Kind::Disconnect => 2,
            Kind::Flush => 3,
            Kind::Trim => 4,
            Kind::WriteZeroes => 6,
            Kind::Unknown(number) => number,
        }
    }
}

/// A request without its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: Kind,
    /// [`request_flag`]
    pub(super) flags: u16,
    /// To be given back in the reply.
    pub(super) cookie: u64,
    /// First byte.
    pub(super) offset: u64,
    /// Bytes.
    pub(super) len: u32,
}

impl Header {
    /// The request that `bytes` are; `None` if they are none, after which nothing in the stream can be trusted.
    pub(super) fn decode(bytes: &[u8; REQUEST_LEN]) -> Option<Header> {
        let [magic, kind, cookie_high, cookie_low, offset_high, offset_low, len] = words(bytes);
        let long = |high: u32, low: u32| u64::from(high) << 32 | u64::from(low);
        (magic == REQUEST_MAGIC).then(|| Header {
            kind: Kind::from_number(kind as u16),
            flags: (kind >> 16) as u16,
            cookie: long(cookie_high, cookie_low),
            offset: long(offset_high, offset_low),
            len,
        })
    }

    /// The bytes of a request, for playing the kernel.
    #[cfg(test)]
    pub(super) fn encode(&self) -> [u8; REQUEST_LEN] {
        let mut bytes = [0; REQUEST_LEN];
        bytes[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.kind.number().to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_be_bytes());
        bytes[24..].copy_from_slice(&self.len.to_be_bytes());
        bytes
    }
}

/// A request as big-endian words.
fn words(bytes: &[u8; REQUEST_LEN]) -> [u32; REQUEST_LEN / 4] {
    let mut words = [0; REQUEST_LEN / 4];
    for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(4)) {
        *word = bytes
            .iter()
            .fold(0, |word, byte| word << 8 | u32::from(*byte));
    }
    words
}

/// The error of a reply. The protocol has its own numbers, which are those of Linux on x86.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum NbdError {
    /// `NBD_EPERM`
    Perm = 1,
    /// `NBD_EIO`
    Io = 5,
    /// `NBD_EINVAL`
    Inval = 22,
    /// `NBD_ENOSPC`
    NoSpc = 28,
    /// `NBD_ENOTSUP`
    NotSup = 95,
    /// `NBD_ESHUTDOWN`
    Shutdown = 108,
}

impl From<IoError> for NbdError {
    fn from(error: IoError) -> NbdError {
        match error {
            IoError::NoSpace => NbdError::NoSpc,
            IoError::OutOfRange => NbdError::Inval,
            IoError::ReadOnly => NbdError::Perm,
            IoError::Unsupported => NbdError::NotSup,
            IoError::Stopped => NbdError::Shutdown,
            IoError::Deadline
            | IoError::Backend
            | IoError::Digest
            | IoError::LeaseLost
            | IoError::IdentityLost
            | IoError::WritesLost => NbdError::Io,
        }
    }
}

/// The bytes of a reply.
pub(super) fn reply(cookie: u64, error: Option<NbdError>) -> [u8; REPLY_LEN] {
    let mut bytes = [0; REPLY_LEN];
    bytes[..4].copy_from_slice(&REPLY_MAGIC.to_be_bytes());
    bytes[4..8].copy_from_slice(&error.map_or(0, |error| error as u32).to_be_bytes());
    bytes[8..].copy_from_slice(&cookie.to_be_bytes());
    bytes
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Cookie and error of a reply, for playing the kernel.
    pub(in super::super) fn read_reply(bytes: &[u8]) -> (u64, u32) {
        assert_eq!(bytes[..4], REPLY_MAGIC.to_be_bytes());
        let error = u32::from_be_bytes(bytes[4..8].try_into().unwrap());
        (u64::from_be_bytes(bytes[8..16].try_into().unwrap()), error)
    }

    #[test]
    fn a_request_is_read_as_the_kernel_lays_it_out() {
        // A WRITE with FUA of 4096 bytes at 0x0102030405060708.
        let bytes = [
            0x25, 0x60, 0x95, 0x13, 0, 1, 0, 1, 0xa, 0xb, 0xc, 0xd, 0xe, 0xf, 0x10, 0x11, 1, 2, 3,
            4, 5, 6, 7, 8, 0, 0, 0x10, 0,
        ];
        let header = Header::decode(&bytes).unwrap();
        assert_eq!(header.kind, Kind::Write);
        assert_eq!(header.flags, request_flag::FUA);
        assert_eq!(header.cookie, 0x0a0b_0c0d_0e0f_1011);
        assert_eq!(header.offset, 0x0102_0304_0506_0708);
        assert_eq!(header.len, 4096);
        let mut wrong = bytes;
        wrong[3] ^= 1;
        assert_eq!(Header::decode(&wrong), None);
    }

    #[test]
    fn a_reply_carries_cookie_and_error() {
        let bytes = reply(7, Some(NbdError::NoSpc));
        assert_eq!(
            bytes,
            [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 28, 0, 0, 0, 0, 0, 0, 0, 7]
        );
        assert_eq!(read_reply(&reply(u64::MAX, None)), (u64::MAX, 0));
    }

    #[test]
    fn what_the_user_did_wrong_is_told_from_what_failed() {
        assert_eq!(NbdError::from(IoError::ReadOnly) as u32, 1);
        assert_eq!(NbdError::from(IoError::Unsupported) as u32, 95);
        assert_eq!(NbdError::from(IoError::Deadline) as u32, 5);
    }

    proptest! {
        #[test]
        fn any_request_survives_encoding(
            number in any::<u16>(), flags in any::<u16>(), cookie in any::<u64>(),
            offset in any::<u64>(), len in any::<u32>(),
        ) {
            let kind = Kind::from_number(number);
            let header = Header { kind, flags, cookie, offset, len };
            prop_assert_eq!(Header::decode(&header.encode()), Some(header));
        }

        #[test]
        fn any_bytes_are_decoded_without_a_panic(bytes in any::<[u8; REQUEST_LEN]>()) {
            let _ = Header::decode(&bytes);
        }
    }
}
