//! The system calls behind [`Call`], made on the calling thread, and the ioctls of block devices.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{fadvise, fallocate, fdatasync, seek, Advice, SeekFrom};
use rustix::io::{self, Errno};
use rustix::ioctl::{self, Getter, Setter};

use crate::engine::Call;
use crate::request::{Extent, ExtentKind};

/// Bytes in one read or write at most: below the kernel's own limit of 2 GiB - 4096, which is no multiple of a block.
pub(crate) const MAX_TRANSFER: usize = 1 << 30;

/// Extents in one answer at most.
const MAX_EXTENTS: usize = 256;

/// Makes the call and blocks until it has returned.
pub(crate) fn perform(fd: BorrowedFd<'_>, call: &mut Call) -> Result<usize, Errno> {
    match call {
        Call::Read {
            offset,
            buf,
            filled,
        } => {
            let end = buf.len().min(*filled + MAX_TRANSFER);
            io::pread(fd, &mut buf[*filled..end], *offset + *filled as u64)
        }
        Call::Write {
            offset,
            data,
            written,
        } => {
            let end = data.len().min(*written + MAX_TRANSFER);
            io::pwrite(fd, &data[*written..end], *offset + *written as u64)
        }
        // The system call has no range.
        Call::Sync { .. } => fdatasync(fd).map(|()| 0),
        Call::Allocate { mode, offset, len } => fallocate(fd, *mode, *offset, *len).map(|()| 0),
        Call::Seek {
            offset,
            len,
            block,
            extents,
        } => {
            *extents = find_extents(fd, *offset, *len, u64::from(*block))?;
            Ok(0)
        }
        Call::DiscardDevice { offset, len } => discard_device(fd, *offset, *len).map(|()| 0),
        Call::Forget => {
            // What fails here is lost in an incarnation that is over, and its writes are replayed.
            let _ = fdatasync(fd);
            forget_cached(fd);
            Ok(0)
        }
    }
}

/// Drops all pages of the file or device from the page cache that are clean and not in use. Starts writing the dirty ones back.
pub(crate) fn forget_cached(fd: impl AsFd) {
    // The only errors are about the kind of descriptor, and files and devices have none.
    let _ = fadvise(fd, 0, None, Advice::DontNeed);
}

/// Data and holes of a range, whole blocks each: a hole that begins or ends within a block is made smaller.
///
/// # Errors
/// `ENXIO`: the file ends before `offset`.
fn find_extents(
    fd: BorrowedFd<'_>,
    offset: u64,
    len: u64,
    block: u64,
) -> Result<Vec<Extent>, Errno> {
    let end = offset + len;
    let mut at = offset;
    let mut extents: Vec<Extent> = Vec::new();
    while at < end && extents.len() < MAX_EXTENTS {
        let data = match seek(fd, SeekFrom::Data(at)) {
            Ok(data) => round_down(data, block).clamp(at, end),
            // No data to the end of the file. That end may lie before ours: it then was truncated underneath.
            Err(Errno::NXIO) => {
                let file_end = seek(fd, SeekFrom::End(0))?;
                match round_down(file_end, block).min(end) {
                    known if known > at => known,
                    _ if extents.is_empty() => return Err(Errno::NXIO),
                    _ => break,
                }
            }
            // The file system can't tell.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => {
                add(&mut extents, end - at, ExtentKind::Data);
                break;
            }
            Err(error) => return Err(error),
        };
        if data > at {
            add(&mut extents, data - at, ExtentKind::Hole);
            at = data;
            continue;
        }
        let hole = match seek(fd, SeekFrom::Hole(at)) {
            Ok(hole) => hole
                .next_multiple_of(block)
                .clamp(at + block, end.max(at + block))
                .min(end),
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error),
        };
        add(&mut extents, hole - at, ExtentKind::Data);
        at = hole;
    }
    if extents.is_empty() {
        return Err(Errno::NXIO);
    }
    Ok(extents)
}

fn round_down(offset: u64, block: u64) -> u64 {
    offset - offset % block
}

fn add(extents: &mut Vec<Extent>, len: u64, kind: ExtentKind) {
    match extents.last_mut() {
        Some(last) if last.kind == kind => last.len += len,
        _ => extents.push(Extent { len, kind }),
    }
}

// The numbers below are from linux/fs.h; rustix has the other two of this family.
const BLKGETSIZE64: ioctl::Opcode = ioctl::opcode::read::<usize>(0x12, 114);
const BLKGETDISKSEQ: ioctl::Opcode = ioctl::opcode::read::<u64>(0x12, 128);
const BLKDISCARD: ioctl::Opcode = ioctl::opcode::none(0x12, 119);

/// Bytes of a block device.
pub(crate) fn device_size(fd: impl AsFd) -> Result<u64, Errno> {
    // SAFETY: BLKGETSIZE64 writes one u64 to its argument.
    unsafe { ioctl::ioctl(fd, Getter::<BLKGETSIZE64, u64>::new()) }
}

/// The number that the kernel gave the disk when it came, never the same twice in one boot (since Linux 5.15).
pub(crate) fn disk_sequence(fd: impl AsFd) -> Result<u64, Errno> {
    // SAFETY: BLKGETDISKSEQ writes one u64 to its argument.
    unsafe { ioctl::ioctl(fd, Getter::<BLKGETDISKSEQ, u64>::new()) }
}

fn discard_device(fd: impl AsFd, offset: u64, len: u64) -> Result<(), Errno> {
    // SAFETY: BLKDISCARD reads two u64, start and length, from its argument.
    unsafe { ioctl::ioctl(fd, Setter::<BLKDISCARD, [u64; 2]>::new([offset, len])) }
}
