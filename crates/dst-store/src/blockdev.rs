//! The block device backend.
//!
//! Opened with `O_EXCL`, so that a device that is mounted or otherwise claimed is refused, and can't be mounted while it is
//! served. Buffered I/O; `fdatasync` flushes the page cache and then the device's own write cache.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{fstat, ioctl_blkpbszget, ioctl_blksszget, major, minor, OFlags};
use rustix::io::Errno;

use crate::backend::{Identity, Info};
use crate::disk::DiskBackend;
use crate::engine::Call;
use crate::identity::{self, Continuity};
use crate::lock;
use crate::open::{check_geometry, open_path, OpenError, OpenOptions};
use crate::size::format_size;
use crate::syscalls::{device_size, disk_sequence};
use crate::sysfs::SysDisk;
use crate::target::{Abilities, Target};

/// What is special about block devices.
struct BlockTarget {
    device: Arc<OwnedFd>,
    continuity: Continuity,
}

/// Opens, claims and locks a device.
///
/// # Errors
/// Mounted or in use; a block size smaller than the device's; an empty drive; what the system said.
pub fn open_block_device(path: &Path, options: &OpenOptions) -> Result<DiskBackend, OpenError> {
    let name = path.display().to_string();
    let what = || format!("open {name}");
    let device = open_exclusive(path, options.read_only)?;
    let size = device_size(&device).map_err(OpenError::io(what()))?;
    let own_block = ioctl_blksszget(&device).map_err(OpenError::io(what()))?;
    let own_physical = ioctl_blkpbszget(&device).map_err(OpenError::io(what()))?;
    let logical_block = options.block_size.unwrap_or(own_block);
    if logical_block < own_block {
        return Err(OpenError::BlockSize {
            what: name,
            block: logical_block,
            why: format!("the device's own is {own_block}"),
        });
    }
    check_geometry(&name, size, logical_block)?;

    let stat = fstat(&device).map_err(OpenError::io(what()))?;
    let disk = SysDisk::find(major(stat.st_rdev), minor(stat.st_rdev));
    let queue = |attribute| disk.as_ref().map_or(0, |disk| disk.queue(attribute));
    let permanent = disk.as_ref().and_then(SysDisk::permanent_name);
    let position = disk
        .as_ref()
        .map_or_else(|| name.clone(), SysDisk::position);
    let export = identity::of_device(permanent.as_deref(), &position, options)?;
    let facts = disk_sequence(&device).ok().map(|sequence| {
        let place = disk.as_ref().map(SysDisk::place).unwrap_or_default();
        vec![
            b"device".to_vec(),
            stat.st_rdev.to_le_bytes().to_vec(),
            sequence.to_le_bytes().to_vec(),
            place.into_bytes(),
        ]
    });
    let continuity = Continuity::new(export, facts, path, stat.st_rdev, options);

    let writable = !options.read_only;
    let fast = writable && queue("write_zeroes_max_bytes") > 0;
    let discard = writable && queue("discard_max_bytes") > 0;
    let granularity = u32::try_from(queue("discard_granularity")).unwrap_or(u32::MAX);
    let info = Info {
        size,
        logical_block,
        physical_block: own_physical.max(logical_block),
        read_only: options.read_only,
        rotational: queue("rotational") == 1,
        discard,
        discard_granularity: if discard {
            granularity.max(logical_block)
        } else {
            0
        },
        write_zeroes: writable,
        fast_zeroes: fast,
        // What the device keeps whole, the page cache may have cut up before.
        max_atomic_write: 0,
        description: format!("block device {name}, {}", format_size(size)),
    };
    let abilities = Abilities {
        punch: fast,
        zero_range: fast,
    };
    let target = BlockTarget {
        device: device.clone(),
        continuity,
    };
    DiskBackend::start(device, info, Box::new(target), abilities, options.engine)
}

/// How long the last writes of a dying server are waited for: it gives its claim up only after them.
const DYING_PATIENCE: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_millis(10);

/// Claims and locks a device. A live server is found by its lock, at once; a dying one is waited for.
fn open_exclusive(path: &Path, read_only: bool) -> Result<Arc<OwnedFd>, OpenError> {
    let start = Instant::now();
    let first = open_path(path, OFlags::empty(), true)?;
    lock::lock(first.as_fd(), path)?;
    loop {
        let error = match open_path(path, OFlags::EXCL, read_only) {
            Ok(device) => {
                // The claim keeps others out while the lock moves to the description that does the I/O.
                drop(first);
                lock::lock(device.as_fd(), path)?;
                return Ok(Arc::new(device));
            }
            Err(OpenError::Io { source, .. })
                if source.raw_os_error() == Some(Errno::BUSY.raw_os_error()) =>
            {
                OpenError::InUse {
                    path: path.display().to_string(),
                    by: "(mounted, part of another device, or served by another server)".to_owned(),
                }
            }
            Err(error) => return Err(error),
        };
        if is_mounted(&first) || start.elapsed() >= DYING_PATIENCE {
            return Err(error);
        }
        std::thread::sleep(RETRY);
    }
}

/// Whether the mount table names the device. Some file systems are in it under other numbers; this only saves waiting.
fn is_mounted(device: &OwnedFd) -> bool {
    let (Ok(stat), Ok(table)) = (fstat(device), fs::read_to_string("/proc/self/mountinfo")) else {
        return false;
    };
    let number = format!("{}:{}", major(stat.st_rdev), minor(stat.st_rdev));
    table
        .lines()
        .any(|line| line.split(' ').nth(2) == Some(number.as_str()))
}

impl Target for BlockTarget {
    fn size(&self) -> io::Result<u64> {
        Ok(device_size(&self.device)?)
    }

    fn cheap_size(&self) -> Option<u64> {
        device_size(&self.device).ok()
    }

    fn discard(&self, offset: u64, len: u64) -> Call {
        Call::DiscardDevice { offset, len }
    }

    fn has_holes(&self) -> bool {
        false
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
