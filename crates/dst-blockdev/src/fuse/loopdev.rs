//! A loop device over the file (`include/uapi/linux/loop.h`, `drivers/block/loop.c`).
//!
//! - Direct I/O is asked for and read back: without it every byte would be cached twice and a flush of the device could
//!   find the file's cache dirty.
//! - Auto-clear is off while the device is attached, or the first `mkfs` that closes it would take it away. Detaching turns
//!   it on: with no other opener the device goes at once, otherwise when the last one closes it.
//! - A number may be taken over by somebody else at any time after its device is gone. So each step first makes sure that
//!   the device is still this one: by its `diskseq`, which rises with each use of the number (Linux 5.15), or, for what a
//!   dead process has left, by the path of the backing file. (`LOOP_GET_STATUS64` would ask the file system, which may be
//!   dead; the path changes when somebody unmounts it behind our back.)

use std::ffi::c_void;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::ioctl::{self, Ioctl, IoctlOutput, NoArg, Opcode, Setter};

use crate::{Error, ErrorKind};

const LOOP_CLR_FD: Opcode = 0x4C01;
const LOOP_SET_STATUS64: Opcode = 0x4C04;
const LOOP_SET_CAPACITY: Opcode = 0x4C07;
const LOOP_CONFIGURE: Opcode = 0x4C0A;
const LOOP_CTL_GET_FREE: Opcode = 0x4C82;

const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_PARTSCAN: u32 = 8;
const LO_FLAGS_DIRECT_IO: u32 = 16;
const LO_NAME_SIZE: usize = 64;
const LO_KEY_SIZE: usize = 32;

/// Others that take free loop devices between our look and our claim, before we give up.
const ATTEMPTS: usize = 64;
/// How long to wait for others to close the device before saying that it is open: udev opens every device for a moment.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long to wait for the device to go once it has been told to, before saying that it will.
const GOING: Duration = Duration::from_secs(1);

/// `struct loop_info64`
#[repr(C)]
#[derive(Clone, Copy)]
struct LoopInfo64 {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; LO_NAME_SIZE],
    crypt_name: [u8; LO_NAME_SIZE],
    encrypt_key: [u8; LO_KEY_SIZE],
    init: [u64; 2],
}

/// `struct loop_config`
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo64,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<LoopInfo64>() == 232 && size_of::<LoopConfig>() == 304);

impl LoopInfo64 {
    /// For a device over the file at `backing`: labelled with the name of its directory, which is the device's.
    fn new(backing: &Path, flags: u32) -> LoopInfo64 {
        let name = backing
            .parent()
            .and_then(Path::file_name)
            .unwrap_or_default();
        let label = [b"dst:", name.as_encoded_bytes()].concat();
        let mut file_name = [0; LO_NAME_SIZE];
        // The last byte stays NUL.
        for (to, from) in file_name[..LO_NAME_SIZE - 1].iter_mut().zip(label) {
            *to = from;
        }
        LoopInfo64 {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: 0,
            size_limit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags,
            file_name,
            crypt_name: [0; LO_NAME_SIZE],
            encrypt_key: [0; LO_KEY_SIZE],
            init: [0; 2],
        }
    }
}

/// `LOOP_CTL_GET_FREE`: no argument, the number is the return value.
struct GetFree;

// SAFETY: the call takes no argument and writes to no memory.
unsafe impl Ioctl for GetFree {
    type Output = u32;
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        LOOP_CTL_GET_FREE
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::null_mut()
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut c_void) -> rustix::io::Result<u32> {
        u32::try_from(out).map_err(|_| Errno::RANGE)
    }
}

/// What to make.
#[derive(Debug, Clone, Copy)]
pub(super) struct LoopOptions {
    /// Logical block size in bytes.
    pub(super) block_size: u32,
    pub(super) read_only: bool,
    pub(super) partitions: bool,
}

/// A loop device over the file at `backing`.
#[derive(Debug, Clone)]
pub(super) struct LoopDevice {
    number: u32,
    backing: PathBuf,
    /// The sequence number of this use of the device; `None` if it is not known.
    sequence: Option<String>,
}

/// What became of a device that was told to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Detached {
    /// It is gone.
    Gone,
    /// Somebody has it open; it goes when the last one closes it.
    WhenClosed,
}

fn control() -> Result<OwnedFd, Error> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    rustix::fs::open("/dev/loop-control", flags, Mode::empty()).map_err(|errno| {
        let error = Error::io("can't open /dev/loop-control", errno);
        match errno {
            Errno::NOENT | Errno::NODEV | Errno::NXIO => error
                .with_kind(ErrorKind::NoLoopDevice)
                .with_hint("load the loop driver with `modprobe loop`; a container needs /dev/loop-control and /dev/loop* passed in"),
            _ => error.with_hint("making a block device takes root (CAP_SYS_ADMIN) and, in a container, the device /dev/loop-control"),
        }
    })
}

/// Whether this machine and user can make loop devices at all.
pub(super) fn check() -> Result<(), Error> {
    control().map(drop)
}

impl LoopDevice {
    /// Makes a loop device over `file`, whose path is `backing`. Reads the device if partitions are wanted, so the file
    /// must be served meanwhile.
    ///
    /// # Errors
    /// `NoLoopDevice`, `Permission`, `Io`. Nothing is left then.
    pub(super) fn attach(
        file: BorrowedFd<'_>,
        backing: &Path,
        options: LoopOptions,
    ) -> Result<LoopDevice, Error> {
        let control = control()?;
        let mut flags = LO_FLAGS_DIRECT_IO;
        if options.read_only {
            flags |= LO_FLAGS_READ_ONLY;
        }
        if options.partitions {
            flags |= LO_FLAGS_PARTSCAN;
        }
        let fd = u32::try_from(file.as_raw_fd()).expect("descriptors are not negative");
        for _ in 0..ATTEMPTS {
            // SAFETY: `GetFree` describes this call, and the descriptor is that of the loop driver's control device.
            let number = unsafe { ioctl::ioctl(&control, GetFree) }.map_err(|e| {
                Error::io("there is no free loop device", e).with_kind(ErrorKind::NoLoopDevice)
            })?;
            let mut device = LoopDevice::new(number, backing);
            let node = match rustix::fs::open(
                device.path(),
                OFlags::RDWR | OFlags::CLOEXEC,
                Mode::empty(),
            ) {
                Ok(node) => node,
                Err(errno) => {
                    return Err(Error::io(
                        format!("can't open {}", device.path().display()),
                        errno,
                    )
                    .with_kind(ErrorKind::NoLoopDevice)
                    .with_hint(
                        "a container needs the nodes /dev/loop* and the right to use them",
                    ));
                }
            };
            let config = LoopConfig {
                fd,
                block_size: options.block_size,
                info: LoopInfo64::new(backing, flags),
                reserved: [0; 8],
            };
            // SAFETY: LOOP_CONFIGURE reads a `struct loop_config`, whose layout `LoopConfig` has.
            match unsafe { ioctl::ioctl(&node, Setter::<LOOP_CONFIGURE, _>::new(config)) } {
                Ok(()) => {
                    device.sequence = device.disk_sequence();
                    if device.attribute("dio").as_deref() != Some("1") {
                        drop(node);
                        device.detach(true)?;
                        return Err(Error::new(
                            ErrorKind::Io,
                            "the loop device refuses direct I/O",
                        ));
                    }
                    return Ok(device);
                }
                // Somebody was faster: ask for another.
                Err(Errno::BUSY) => {}
                Err(Errno::INVAL | Errno::NOTTY) => {
                    return Err(Error::new(
                        ErrorKind::NotAvailable,
                        format!("the loop driver refuses block size {}", options.block_size),
                    )
                    .with_hint(
                        "LOOP_CONFIGURE takes Linux 5.8, and the block size must be 512 to 4096",
                    ));
                }
                Err(errno) => {
                    return Err(Error::io(
                        format!("can't set up {}", device.path().display()),
                        errno,
                    ))
                }
            }
        }
        Err(Error::new(
            ErrorKind::NoLoopDevice,
            "others took every free loop device",
        ))
    }

    fn new(number: u32, backing: &Path) -> LoopDevice {
        LoopDevice {
            number,
            backing: backing.to_owned(),
            sequence: None,
        }
    }

    /// `loop3`
    pub(super) fn name(&self) -> String {
        format!("loop{}", self.number)
    }

    /// `/dev/loop3`
    pub(super) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/dev/loop{}", self.number))
    }

    /// `/sys/block/loop3`
    pub(super) fn sysfs(&self) -> PathBuf {
        PathBuf::from(format!("/sys/block/loop{}", self.number))
    }

    /// A value below `loop/` in sysfs; `None` if the device has no file.
    fn attribute(&self, name: &str) -> Option<String> {
        let text = fs::read_to_string(self.sysfs().join("loop").join(name)).ok()?;
        Some(text.trim_end_matches('\n').to_owned())
    }

    fn disk_sequence(&self) -> Option<String> {
        fs::read_to_string(self.sysfs().join("diskseq")).ok()
    }

    /// Whether the number still is this device.
    pub(super) fn is_ours(&self) -> bool {
        let Some(file) = self.attribute("backing_file") else {
            return false;
        };
        if self.sequence.is_some() {
            return self.sequence == self.disk_sequence();
        }
        Path::new(&file) == self.backing
    }

    fn open(&self) -> Result<OwnedFd, Error> {
        rustix::fs::open(self.path(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|e| Error::io(format!("can't open {}", self.path().display()), e))
    }

    /// Takes over the size of the file, which must have been looked at anew before.
    pub(super) fn update_size(&self) -> Result<(), Error> {
        let node = self.open()?;
        // SAFETY: LOOP_SET_CAPACITY takes no argument.
        unsafe { ioctl::ioctl(&node, NoArg::<LOOP_SET_CAPACITY>::new()) }
            .map_err(|e| Error::io(format!("can't resize {}", self.path().display()), e))
    }

    /// Its size in bytes.
    pub(super) fn size(&self) -> io::Result<u64> {
        let text = fs::read_to_string(self.sysfs().join("size"))?;
        let sectors: u64 = text.trim().parse().map_err(io::Error::other)?;
        Ok(sectors * 512)
    }

    /// Whether it refuses writes.
    pub(super) fn is_read_only(&self) -> bool {
        fs::read_to_string(self.sysfs().join("ro")).is_ok_and(|text| text.trim() == "1")
    }

    /// Writes back what is cached and takes the device away. Without `force` only if nobody else has it open, and with
    /// errors of the writing back reported; with `force` it goes with its last opener.
    ///
    /// # Errors
    /// `Busy` without `force` if somebody has it open, nothing has changed then; `Io`.
    pub(super) fn detach(&self, force: bool) -> Result<Detached, Error> {
        let since = Instant::now();
        loop {
            if !self.is_ours() {
                return Ok(Detached::Gone);
            }
            let node = self.open()?;
            if !force {
                rustix::fs::fsync(&node).map_err(|e| {
                    Error::io(format!("can't write back {}", self.path().display()), e)
                })?;
            }
            // SAFETY: LOOP_CLR_FD takes no argument.
            match unsafe { ioctl::ioctl(&node, NoArg::<LOOP_CLR_FD>::new()) } {
                Ok(()) => {}
                Err(Errno::NXIO) => return Ok(Detached::Gone),
                Err(errno) => {
                    return Err(Error::io(
                        format!("can't detach {}", self.path().display()),
                        errno,
                    ))
                }
            }
            if force {
                drop(node);
                return Ok(self.wait_until_gone());
            }
            // With no other opener the driver is now running the device down, and refuses this; otherwise it has only
            // set the mark that takes the device away at the last close, which is taken back.
            match self.keep(node.as_fd()) {
                Err(Errno::NXIO) => {
                    drop(node);
                    return Ok(self.wait_until_gone());
                }
                Ok(()) if since.elapsed() < PATIENCE => {
                    // Perhaps only udev having a look.
                    drop(node);
                    thread::sleep(Duration::from_millis(50));
                }
                Ok(()) => {
                    return Err(Error::new(
                        ErrorKind::Busy,
                        format!("{} is open", self.path().display()),
                    ))
                }
                Err(errno) => {
                    return Err(Error::io(
                        format!("can't keep {}", self.path().display()),
                        errno,
                    ))
                }
            }
        }
    }

    /// Takes the mark for removal at the last close back.
    fn keep(&self, node: BorrowedFd<'_>) -> rustix::io::Result<()> {
        // Of the flags only auto-clear is taken over, the others stay as they are.
        let info = LoopInfo64::new(&self.backing, 0);
        // SAFETY: LOOP_SET_STATUS64 reads a `struct loop_info64`, whose layout `LoopInfo64` has.
        unsafe { ioctl::ioctl(node, Setter::<LOOP_SET_STATUS64, _>::new(info)) }
    }

    fn wait_until_gone(&self) -> Detached {
        let since = Instant::now();
        while self.is_ours() {
            if since.elapsed() >= GOING {
                return Detached::WhenClosed;
            }
            thread::sleep(Duration::from_millis(10));
        }
        Detached::Gone
    }
}

/// The loop devices over the file at `backing`.
pub(super) fn over(backing: &Path) -> Vec<LoopDevice> {
    let entries = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let number = entry
                .file_name()
                .to_str()?
                .strip_prefix("loop")?
                .parse()
                .ok()?;
            let device = LoopDevice::new(number, backing);
            device.is_ours().then_some(device)
        })
        .collect()
}

/// Whether a link to `target` may be replaced by one to a device over `backing`: it leads to a loop device that is over
/// that very file or over none.
pub(super) fn replaceable(target: &Path, backing: &Path) -> bool {
    let number = target
        .to_str()
        .and_then(|t| t.strip_prefix("/dev/loop"))
        .and_then(|n| n.parse().ok());
    number.is_some_and(|number| {
        let device = LoopDevice::new(number, backing);
        device.attribute("backing_file").is_none() || device.is_ours()
    })
}
