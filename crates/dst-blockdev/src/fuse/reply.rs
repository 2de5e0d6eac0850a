//! The part of the FUSE kernel protocol that one file needs: encoding answers.
//!
//! Source: `<linux/fuse.h>`, as for `proto.rs`. All fields are in native byte order.

use rustix::io::Errno;

use super::proto::{MAJOR, ROOT_ID};

/// Size of `fuse_out_header` in bytes.
pub const OUT_HEADER: usize = 16;

/// OPEN answer flags that are used.
pub mod open_flag {
    /// `FOPEN_DIRECT_IO`
    pub const DIRECT_IO: u32 = 1 << 0;
    /// `FOPEN_NOFLUSH`: no FLUSH at close.
    pub const NOFLUSH: u32 = 1 << 5;
    /// `FOPEN_PARALLEL_DIRECT_WRITES`
    pub const PARALLEL_DIRECT_WRITES: u32 = 1 << 6;
}

/// The structures that follow a `fuse_out_header`, encoded; the longest is `fuse_attr_out`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Body {
    bytes: [u8; 104],
    len: usize,
}

impl Body {
    /// No structure.
    pub const EMPTY: Body = Body {
        bytes: [0; 104],
        len: 0,
    };

    /// The encoded bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    fn zeroes(mut self, count: usize) -> Body {
        self.len = (self.len + count).min(self.bytes.len());
        self
    }

    fn put(mut self, value: &[u8]) -> Body {
        // Every encoder below stays within the longest structure; a unit test encodes each.
        if let Some(space) = self.bytes.get_mut(self.len..self.len + value.len()) {
            space.copy_from_slice(value);
            self.len += value.len();
        }
        self
    }

    fn u16(self, value: u16) -> Body {
        self.put(&value.to_ne_bytes())
    }

    fn u32(self, value: u32) -> Body {
        self.put(&value.to_ne_bytes())
    }

    fn u64(self, value: u64) -> Body {
        self.put(&value.to_ne_bytes())
    }

    /// `fuse_init_out` (64 bytes).
    #[must_use]
    pub fn init(init: &Init) -> Body {
        Body::EMPTY
            .u32(MAJOR)
            .u32(init.minor)
            .u32(init.max_readahead)
            .u32(init.flags)
            .u16(init.max_background)
            .u16(init.congestion_threshold)
            .u32(init.max_write)
            .u32(1) // time_gran: nanoseconds
            .u16(init.max_pages)
            .u16(0) // map_alignment
            .zeroes(32) // flags2, unused
    }

    /// `fuse_attr_out` (104 bytes).
    #[must_use]
    pub fn attr(attr: &Attr) -> Body {
        let mut body = Body::EMPTY
            .u64(attr.valid_seconds)
            .u32(0) // attr_valid_nsec
            .u32(0) // dummy
            .u64(ROOT_ID)
            .u64(attr.size)
            .u64(attr.size / 512);
        for _ in 0..3 {
            body = body.u64(attr.time_seconds); // atime, mtime, ctime
        }
        body.zeroes(12) // their nanoseconds
            .u32(attr.mode)
            .u32(1) // nlink
            .u32(attr.uid)
            .u32(attr.gid)
            .u32(0) // rdev
            .u32(attr.block_size)
            .u32(0) // flags
    }

    /// `fuse_open_out` (16 bytes).
    #[must_use]
    pub fn open(open_flags: u32) -> Body {
        Body::EMPTY.u64(0).u32(open_flags).u32(0)
    }

    /// `fuse_write_out` (8 bytes).
    #[must_use]
    pub fn write(size: u32) -> Body {
        Body::EMPTY.u32(size).u32(0)
    }

    /// `fuse_lseek_out` (8 bytes).
    #[must_use]
    pub fn lseek(offset: u64) -> Body {
        Body::EMPTY.u64(offset)
    }

    /// `fuse_statfs_out` (80 bytes) of a full file system with one file.
    #[must_use]
    pub fn statfs(size: u64, block_size: u32) -> Body {
        Body::EMPTY
            .u64(size / u64::from(block_size.max(1)))
            .u64(0) // bfree
            .u64(0) // bavail
            .u64(1) // files
            .u64(0) // ffree
            .u32(block_size)
            .u32(255) // namelen
            .u32(block_size) // frsize
            .zeroes(28) // padding, spare
    }

    /// `fuse_notify_inval_inode_out` (24 bytes) for the attributes alone.
    #[must_use]
    pub fn invalidate_attributes() -> Body {
        // A negative offset leaves cached pages alone.
        Body::EMPTY.u64(ROOT_ID).put(&(-1_i64).to_ne_bytes()).u64(0)
    }
}

/// What `fuse_init_out` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // The fields are those of the kernel's structure.
pub struct Init {
    pub minor: u32,
    pub max_readahead: u32,
    pub flags: u32,
    pub max_background: u16,
    pub congestion_threshold: u16,
    pub max_write: u32,
    pub max_pages: u16,
}

/// What `fuse_attr_out` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attr {
    /// How long the kernel may believe it.
    pub valid_seconds: u64,
    /// Size in bytes.
    pub size: u64,
    /// All three times, in seconds since 1970.
    pub time_seconds: u64,
    /// Kind and permissions, as `st_mode`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Preferred I/O size, a power of two.
    pub block_size: u32,
}

/// `fuse_out_header` of an answer with `body` bytes after it; an error has none.
#[must_use]
pub fn out_header(unique: u64, error: Option<Errno>, body: usize) -> [u8; OUT_HEADER] {
    let error = error.map_or(0, |errno| -errno.raw_os_error());
    encode_out_header(unique, error, body)
}

/// `fuse_out_header` of an unsolicited `FUSE_NOTIFY_INVAL_INODE`.
#[must_use]
pub fn invalidate_header(body: usize) -> [u8; OUT_HEADER] {
    const FUSE_NOTIFY_INVAL_INODE: i32 = 2;
    encode_out_header(0, FUSE_NOTIFY_INVAL_INODE, body)
}

fn encode_out_header(unique: u64, error: i32, body: usize) -> [u8; OUT_HEADER] {
    let len = u32::try_from(OUT_HEADER + body).unwrap_or(u32::MAX);
    let mut header = [0; OUT_HEADER];
    let (first, rest) = header.split_at_mut(4);
    let (second, third) = rest.split_at_mut(4);
    first.copy_from_slice(&len.to_ne_bytes());
    second.copy_from_slice(&error.to_ne_bytes());
    third.copy_from_slice(&unique.to_ne_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_structure_has_the_length_of_the_header_file() {
        let init = Init {
            minor: 31,
            max_readahead: 0,
            flags: 0,
            max_background: 128,
            congestion_threshold: 96,
            max_write: 1 << 20,
            max_pages: 256,
        };
        assert_eq!(Body::init(&init).bytes().len(), 64);
        assert_eq!(
            Body::init(&init).bytes()[20..24],
            (1_u32 << 20).to_ne_bytes()
        );
        assert_eq!(Body::init(&init).bytes()[28..30], 256_u16.to_ne_bytes());
        let attr = Attr {
            valid_seconds: 1,
            size: 8192,
            time_seconds: 5,
            mode: 0o100_600,
            uid: 1,
            gid: 2,
            block_size: 4096,
        };
        let encoded = Body::attr(&attr);
        assert_eq!(encoded.bytes().len(), 104);
        assert_eq!(encoded.bytes()[24..32], 8192_u64.to_ne_bytes());
        assert_eq!(encoded.bytes()[76..80], 0o100_600_u32.to_ne_bytes());
        assert_eq!(encoded.bytes()[96..100], 4096_u32.to_ne_bytes());
        assert_eq!(Body::open(1).bytes().len(), 16);
        assert_eq!(Body::write(1).bytes().len(), 8);
        assert_eq!(Body::lseek(1).bytes().len(), 8);
        assert_eq!(Body::statfs(1 << 20, 4096).bytes().len(), 80);
        assert_eq!(Body::invalidate_attributes().bytes().len(), 24);
    }

    #[test]
    fn an_answer_carries_its_length_and_negative_errno() {
        let header = out_header(9, Some(Errno::IO), 0);
        assert_eq!(header[0..4], 16_u32.to_ne_bytes());
        assert_eq!(header[4..8], (-5_i32).to_ne_bytes());
        assert_eq!(header[8..16], 9_u64.to_ne_bytes());
        assert_eq!(out_header(9, None, 8)[0..4], 24_u32.to_ne_bytes());
    }
}
