//! The regular file backend.
//!
//! Buffered I/O: the page cache is the cache of the export, `fdatasync` makes it durable. Holes are punched for DISCARD and
//! found by `lseek` for BLOCK STATUS.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{
    fallocate, fstat, fstatfs, ftruncate, major, minor, open, FallocateFlags, Mode, OFlags, Stat,
};
use rustix::io::Errno;

use crate::backend::{Identity, Info};
use crate::disk::DiskBackend;
use crate::engine::Call;
use crate::identity::{self, Continuity};
use crate::lock;
use crate::open::{check_geometry, open_path, OpenError, OpenOptions};
use crate::size::format_size;
use crate::sysfs::{self, SysDisk};
use crate::target::{Abilities, Target};

/// How long a loop device is waited for that may be about to go.
const LOOP_PATIENCE: Duration = Duration::from_millis(500);

/// What is special about regular files.
struct FileTarget {
    file: Arc<OwnedFd>,
    /// The file system answers `fstat` from memory.
    local: bool,
    continuity: Continuity,
}

/// Opens and locks a file that is there.
///
/// # Errors
/// In use by another server or a loop device; empty; a size that is no multiple of the block size; what the system said.
pub fn open_file(path: &Path, options: &OpenOptions) -> Result<DiskBackend, OpenError> {
    let (file, stat) = open_locked(path, options.read_only)?;
    if !options.read_only {
        refuse_under_a_loop_device(path)?;
    }
    let size = stat.st_size as u64;
    let name = path.display().to_string();
    let logical_block = options.block_size.unwrap_or(512);
    check_geometry(&name, size, logical_block)?;

    let export = identity::of_file(file.as_fd(), path, stat.st_ino, options)?;
    let facts = identity::file_facts(file.as_fd());
    let continuity = Continuity::new(export, facts, path, stat.st_ino, options);
    let abilities = match options.read_only {
        true => Abilities {
            punch: false,
            zero_range: false,
        },
        false => probe(&file, path, &stat),
    };
    let disk = SysDisk::find(major(stat.st_dev), minor(stat.st_dev));
    let fs_block = stat.st_blksize as u32;
    let sensible = fs_block.is_power_of_two() && (logical_block..=65536).contains(&fs_block);
    let physical_block = if sensible {
        fs_block
    } else {
        logical_block.max(4096)
    };
    let info = Info {
        size,
        logical_block,
        physical_block,
        read_only: options.read_only,
        rotational: disk.is_some_and(|disk| disk.queue("rotational") == 1),
        discard: abilities.punch,
        discard_granularity: if abilities.punch { physical_block } else { 0 },
        write_zeroes: !options.read_only,
        // For some requests: where only holes are fast (tmpfs), those that may unmap.
        fast_zeroes: abilities.punch || abilities.zero_range,
        // What statx reports as atomic holds for direct I/O with RWF_ATOMIC, not for what goes through the page cache.
        max_atomic_write: 0,
        description: format!("file {name}, {}", format_size(size)),
    };
    let target = FileTarget {
        local: is_local(&file),
        file: file.clone(),
        continuity,
    };
    DiskBackend::start(file, info, Box::new(target), abilities, options.engine)
}

/// Opens the file and takes its lock. Looks again afterwards, because the name may have got another file while the lock was
/// waited for.
pub(crate) fn open_locked(path: &Path, read_only: bool) -> Result<(Arc<OwnedFd>, Stat), OpenError> {
    let what = || format!("open {}", path.display());
    loop {
        let file = open_path(path, OFlags::NOCTTY, read_only)?;
        lock::lock(file.as_fd(), path)?;
        let stat = fstat(&file).map_err(OpenError::io(what()))?;
        let named = fs::metadata(path).map_err(OpenError::io(what()))?;
        if (named.dev(), named.ino()) == (stat.st_dev, stat.st_ino) {
            return Ok((Arc::new(file), stat));
        }
    }
}

/// What is mounted on a loop device over the file would be overwritten behind its back; such a device takes no lock. One that
/// is on its way out, after an unmount, is waited for.
fn refuse_under_a_loop_device(path: &Path) -> Result<(), OpenError> {
    let until = Instant::now() + LOOP_PATIENCE;
    while let Some(device) = sysfs::loop_over(path) {
        if Instant::now() >= until {
            return Err(OpenError::UnderLoop {
                path: path.display().to_string(),
                device: device.display().to_string(),
            });
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

const KEEP_SIZE: FallocateFlags = FallocateFlags::KEEP_SIZE;

/// Finds out which fast ways the file system has, on a scratch file without a name where possible.
fn probe(file: &OwnedFd, path: &Path, stat: &Stat) -> Abilities {
    let scratch = scratch_file(path).filter(|scratch| {
        fstat(scratch).is_ok_and(|other| other.st_dev == stat.st_dev)
            && ftruncate(scratch, 1 << 20).is_ok()
    });
    // Being full is not being unable.
    let able = |result| matches!(result, Ok(()) | Err(Errno::NOSPC | Errno::DQUOT));
    match scratch {
        Some(scratch) => {
            let try_mode = |mode| able(fallocate(&scratch, mode | KEEP_SIZE, 0, 65536));
            Abilities {
                punch: try_mode(FallocateFlags::PUNCH_HOLE),
                zero_range: try_mode(FallocateFlags::ZERO_RANGE),
            }
        }
        // Beyond the end there is nothing to be punched, so this does no harm. Zeroing would allocate; so it is not tried
        // and not promised.
        None => {
            let beyond = (stat.st_size as u64).next_multiple_of(65536);
            let mode = FallocateFlags::PUNCH_HOLE | KEEP_SIZE;
            Abilities {
                punch: able(fallocate(file, mode, beyond, 4096)),
                zero_range: false,
            }
        }
    }
}

fn scratch_file(path: &Path) -> Option<OwnedFd> {
    let full = fs::canonicalize(path).ok()?;
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    open(full.parent()?, flags, Mode::RUSR | Mode::WUSR).ok()
}

/// Whether the file system is on this machine: asking it for the size then costs no round trip.
fn is_local(file: &OwnedFd) -> bool {
    /// Magic numbers of linux/magic.h: ext4 (and its elders), XFS, btrfs, tmpfs, F2FS.
    const LOCAL: [u32; 5] = [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994, 0xf2f5_2010];
    fstatfs(file).is_ok_and(|stat| LOCAL.contains(&(stat.f_type as u32)))
}

impl Target for FileTarget {
    fn size(&self) -> io::Result<u64> {
        Ok(fstat(&self.file)?.st_size as u64)
    }

    fn cheap_size(&self) -> Option<u64> {
        self.local.then(|| self.size().ok())?
    }

    fn discard(&self, offset: u64, len: u64) -> Call {
        Call::Allocate {
            mode: FallocateFlags::PUNCH_HOLE | KEEP_SIZE,
            offset,
            len,
        }
    }

    fn has_holes(&self) -> bool {
        true
    }

    fn identity(&self) -> Identity {
        self.continuity.identity()
    }

    fn cache_is_doubtful(&self) -> bool {
        self.continuity.was_cut_short()
    }

    fn sync_begins(&self) {
        self.continuity.sync_begins();
    }

    fn sync_succeeded(&self) {
        self.continuity.sync_succeeded();
    }

    fn new_incarnation(&mut self, running: usize) {
        self.continuity.new_incarnation(running);
    }
}
