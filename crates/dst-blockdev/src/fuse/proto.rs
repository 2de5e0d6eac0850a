//! The part of the FUSE kernel protocol that one file needs: parsing requests. (`reply.rs` has the answers.)
//!
//! Source: `<linux/fuse.h>` (`include/uapi/linux/fuse.h`), protocol 7.28 (Linux 4.20) and later; structures are named as
//! there. All fields are in native byte order. Everything this crate asks of a request lies in its first
//! [`PREFIX`] bytes, so that a request can be read into a small buffer for the head and an aligned one for what follows:
//! the payload of a WRITE starts exactly there. Nothing here panics, whatever the bytes.

/// `fuse_in_header` and `fuse_write_in`: what comes before the payload of a WRITE, in bytes.
pub const PREFIX: usize = IN_HEADER + 40;
/// Size of `fuse_in_header` in bytes.
pub const IN_HEADER: usize = 40;
/// `FUSE_ROOT_ID`, the only inode there is.
pub const ROOT_ID: u64 = 1;
/// `FUSE_KERNEL_VERSION`.
pub const MAJOR: u32 = 7;
/// The newest minor version whose structures are written here. The kernel uses the smaller of both.
pub const MINOR: u32 = 38;
/// The oldest minor version that has `max_pages`.
pub const OLDEST_MINOR: u32 = 28;

/// INIT flags that are used.
pub mod init_flag {
    /// `FUSE_ASYNC_READ`
    pub const ASYNC_READ: u32 = 1 << 0;
    /// `FUSE_BIG_WRITES`
    pub const BIG_WRITES: u32 = 1 << 5;
    /// `FUSE_ASYNC_DIO`: direct I/O need not wait for one request before it sends the next.
    pub const ASYNC_DIO: u32 = 1 << 15;
    /// `FUSE_ABORT_ERROR`: reading after an abort gives ECONNABORTED, not ENODEV.
    pub const ABORT_ERROR: u32 = 1 << 21;
    /// `FUSE_MAX_PAGES`: `fuse_init_out.max_pages` counts.
    pub const MAX_PAGES: u32 = 1 << 22;
}

/// `FATTR_*` bits of SETATTR that are looked at.
pub mod set_attr {
    /// `FATTR_MODE`
    pub const MODE: u32 = 1 << 0;
    /// `FATTR_UID`
    pub const UID: u32 = 1 << 1;
    /// `FATTR_GID`
    pub const GID: u32 = 1 << 2;
    /// `FATTR_SIZE`
    pub const SIZE: u32 = 1 << 3;
}

/// `fuse_in_header`, as far as it is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Length of the whole request in bytes.
    pub len: u32,
    /// Names the request in its answer.
    pub unique: u64,
    /// The inode.
    pub node: u64,
}

/// A request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // The fields are those of the kernel's structures.
pub enum Message {
    Init {
        major: u32,
        minor: u32,
        max_readahead: u32,
        flags: u32,
    },
    GetAttr,
    SetAttr {
        valid: u32,
        size: u64,
    },
    Open {
        flags: u32,
    },
    Read {
        offset: u64,
        size: u32,
    },
    /// `size` bytes of payload follow the prefix.
    Write {
        offset: u64,
        size: u32,
        /// The flags of the open file.
        flags: u32,
    },
    StatFs,
    Release,
    /// `fsync(2)`.
    Fsync,
    /// `close(2)`: no flush of a device.
    Flush,
    Fallocate {
        offset: u64,
        length: u64,
        mode: u32,
    },
    Lseek {
        offset: u64,
        whence: u32,
    },
    Interrupt,
    /// FORGET or BATCH_FORGET: takes no answer.
    Forget,
    Destroy,
    /// Anything else, by opcode.
    Other(u32),
}

/// A request that can't be understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed {
    /// The request to answer with an error, if as much could be read.
    pub unique: Option<u64>,
}

/// Parses a request of `total` bytes of which `prefix` has the first [`PREFIX`] (or all, if there are fewer).
///
/// # Errors
/// The lengths don't fit each other or the kind of request.
pub fn parse(prefix: &[u8], total: usize) -> Result<(Header, Message), Malformed> {
    let short = Malformed { unique: None };
    let header = Header {
        len: u32_at(prefix, 0).ok_or(short)?,
        unique: u64_at(prefix, 8).ok_or(short)?,
        node: u64_at(prefix, 16).ok_or(short)?,
    };
    let opcode = u32_at(prefix, 4).ok_or(short)?;
    let bad = Malformed {
        unique: (header.unique != 0).then_some(header.unique),
    };
    if header.len as usize != total || total < IN_HEADER || prefix.len() < total.min(PREFIX) {
        return Err(bad);
    }
    let body = prefix.get(IN_HEADER..total.min(PREFIX)).ok_or(bad)?;
    message(opcode, body, total)
        .map(|message| (header, message))
        .ok_or(bad)
}

/// `enum fuse_opcode` and the structure that follows each header.
fn message(opcode: u32, body: &[u8], total: usize) -> Option<Message> {
    Some(match opcode {
        // fuse_forget_in, fuse_batch_forget_in
        2 | 42 => Message::Forget,
        3 => Message::GetAttr,
        // fuse_setattr_in
        4 => Message::SetAttr {
            valid: u32_at(body, 0)?,
            size: u64_at(body, 16)?,
        },
        // fuse_open_in
        14 => Message::Open {
            flags: u32_at(body, 0)?,
        },
        // fuse_read_in
        15 => Message::Read {
            offset: u64_at(body, 8)?,
            size: u32_at(body, 16)?,
        },
        // fuse_write_in
        16 => {
            let size = u32_at(body, 16)?;
            if total.checked_sub(PREFIX)? != size as usize {
                return None;
            }
            Message::Write {
                offset: u64_at(body, 8)?,
                size,
                flags: u32_at(body, 32)?,
            }
        }
        17 => Message::StatFs,
        18 => Message::Release,
        20 => Message::Fsync,
        25 => Message::Flush,
        // fuse_init_in
        26 => Message::Init {
            major: u32_at(body, 0)?,
            minor: u32_at(body, 4)?,
            max_readahead: u32_at(body, 8)?,
            flags: u32_at(body, 12)?,
        },
        36 => Message::Interrupt,
        38 => Message::Destroy,
        // fuse_fallocate_in
        43 => Message::Fallocate {
            offset: u64_at(body, 8)?,
            length: u64_at(body, 16)?,
            mode: u32_at(body, 24)?,
        },
        // fuse_lseek_in
        46 => Message::Lseek {
            offset: u64_at(body, 8)?,
            whence: u32_at(body, 16)?,
        },
        other => Message::Other(other),
    })
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let field = bytes.get(at..)?.first_chunk::<4>()?;
    Some(u32::from_ne_bytes(*field))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let field = bytes.get(at..)?.first_chunk::<8>()?;
    Some(u64::from_ne_bytes(*field))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A request as the kernel sends it.
    pub(crate) fn request(opcode: u32, unique: u64, body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&((IN_HEADER + body.len()) as u32).to_ne_bytes());
        bytes.extend_from_slice(&opcode.to_ne_bytes());
        bytes.extend_from_slice(&unique.to_ne_bytes());
        bytes.extend_from_slice(&ROOT_ID.to_ne_bytes());
        bytes.extend_from_slice(&[0; 16]);
        bytes.extend_from_slice(body);
        bytes
    }

    fn write_body(offset: u64, payload: &[u8]) -> Vec<u8> {
        let mut body = vec![0; 40];
        body[8..16].copy_from_slice(&offset.to_ne_bytes());
        body[16..20].copy_from_slice(&(payload.len() as u32).to_ne_bytes());
        body[32..36].copy_from_slice(&0o10000_u32.to_ne_bytes());
        body.extend_from_slice(payload);
        body
    }

    fn parse_whole(bytes: &[u8]) -> Result<(Header, Message), Malformed> {
        parse(&bytes[..bytes.len().min(PREFIX)], bytes.len())
    }

    #[test]
    fn a_write_is_parsed_from_its_prefix_alone() {
        let bytes = request(16, 6, &write_body(4096, &[1, 2, 3]));
        let (header, message) = parse_whole(&bytes).unwrap();
        assert_eq!((header.unique, header.node), (6, ROOT_ID));
        let expected = Message::Write {
            offset: 4096,
            size: 3,
            flags: 0o10000,
        };
        assert_eq!(message, expected);
        assert_eq!(&bytes[PREFIX..], [1, 2, 3]);
    }

    #[test]
    fn a_write_whose_size_is_not_its_payload_is_refused_by_number() {
        let mut bytes = request(16, 8, &write_body(0, &[0; 100]));
        bytes[56] += 1;
        assert_eq!(parse_whole(&bytes), Err(Malformed { unique: Some(8) }));
    }

    #[test]
    fn a_length_other_than_what_was_read_is_refused() {
        let bytes = request(3, 2, &[0; 16]);
        let (prefix, total) = (&bytes[..], bytes.len());
        assert!(parse(prefix, total).is_ok());
        assert!(parse(prefix, total + 1).is_err());
        assert!(parse(&prefix[..10], 10).is_err());
        assert!(parse(&[], 0).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), total in 0_usize..300) {
            let _ = parse(&bytes, total);
            let _ = parse(&bytes[..bytes.len().min(PREFIX)], bytes.len());
        }

        #[test]
        fn no_body_makes_a_known_opcode_panic(opcode in 0_u32..60, body in proptest::collection::vec(any::<u8>(), 0..120)) {
            let bytes = request(opcode, 2, &body);
            let _ = parse_whole(&bytes);
        }
    }
}
