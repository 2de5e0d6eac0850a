//! What all backends share at opening: options, checks of the geometry, and errors that say what to do.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::size::format_size;

/// Block sizes that can be announced.
pub const BLOCK_SIZES: [u32; 2] = [512, 4096];

/// How an export is to be opened.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// Refuse writes.
    pub read_only: bool,
    /// Make a sparse file of this many bytes if there is none. Ignored for what exists.
    pub create_size: Option<u64>,
    /// Logical block size in bytes: 512 or 4096. Default: 512, or the block device's own.
    pub block_size: Option<u32>,
    /// Directory of the server's state: ids of exports that can't carry one themselves.
    pub state_dir: Option<PathBuf>,
    /// Directory for what needs to outlive the process but not the boot, such as `/run/dst`; best on a tmpfs. Default: the
    /// state directory. Without either, every start is a new incarnation.
    pub runtime_dir: Option<PathBuf>,
    /// How system calls are made.
    pub engine: EngineChoice,
}

/// How a file's or device's system calls are made without blocking the caller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineChoice {
    /// io_uring where it is there and permitted, else threads.
    #[default]
    Auto,
    /// io_uring or an error.
    Uring,
    /// A pool of threads.
    Threads,
}

/// Why an export could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A system call failed.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// There is nothing under the path.
    #[error("{path} does not exist; give --size to create it")]
    NotFound {
        /// As given.
        path: String,
    },
    /// Another process serves it, or uses the device.
    #[error("{path} is in use {by}")]
    InUse {
        /// As given.
        path: String,
        /// By whom, as far as can be told: "by another server (process 123)".
        by: String,
    },
    /// A loop device is over the file.
    #[error("{path} is in use by the loop device {device}, as far as its name tells")]
    UnderLoop {
        /// As given.
        path: String,
        /// Its node, as `/dev/loop0`.
        device: String,
    },
    /// Nothing to serve.
    #[error("{what} is empty (0 bytes): there is nothing to serve")]
    Empty {
        /// What was opened.
        what: String,
    },
    /// A size that no disk of this block size can have.
    #[error("the size of {what}, {size} bytes ({}), is not a multiple of the block size of {block} bytes", format_size(*size))]
    Misaligned {
        /// What was opened.
        what: String,
        /// Bytes.
        size: u64,
        /// Bytes.
        block: u32,
    },
    /// A block size that is not possible here.
    #[error("{what}: a block size of {block} bytes is not possible; {why}")]
    BlockSize {
        /// What was opened.
        what: String,
        /// Bytes.
        block: u32,
        /// What is.
        why: String,
    },
    /// A directory, a character device, ...
    #[error("{path} is {kind}; only regular files and block devices can be served")]
    Kind {
        /// As given.
        path: String,
        /// What it is.
        kind: &'static str,
    },
}

impl OpenError {
    /// Wraps a system's error: `.map_err(OpenError::io("open x"))`.
    pub(crate) fn io<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> OpenError {
        let what = what.into();
        move |source| OpenError::Io {
            what,
            source: source.into(),
        }
    }
}

/// Opens a file or device; says what to do if it may only be read.
pub(crate) fn open_path(path: &Path, flags: OFlags, read_only: bool) -> Result<OwnedFd, OpenError> {
    let access = if read_only {
        OFlags::RDONLY
    } else {
        OFlags::RDWR
    };
    rustix::fs::open(path, access | flags | OFlags::CLOEXEC, Mode::empty()).map_err(|error| {
        let hint = match error {
            Errno::ACCESS | Errno::ROFS | Errno::PERM if !read_only => {
                " for writing (try --read-only)"
            }
            _ => "",
        };
        OpenError::io(format!("open {}{hint}", path.display()))(error)
    })
}

/// Refuses sizes and block sizes that no disk can have.
pub(crate) fn check_geometry(what: &str, size: u64, block: u32) -> Result<(), OpenError> {
    let what = || what.to_owned();
    if !BLOCK_SIZES.contains(&block) {
        return Err(OpenError::BlockSize {
            what: what(),
            block,
            why: "512 and 4096 are".to_owned(),
        });
    }
    if size == 0 {
        return Err(OpenError::Empty { what: what() });
    }
    if !size.is_multiple_of(u64::from(block)) {
        return Err(OpenError::Misaligned {
            what: what(),
            size,
            block,
        });
    }
    Ok(())
}
