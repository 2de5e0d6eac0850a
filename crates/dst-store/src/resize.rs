//! Another size for the file of an export, also while a server has it.
//!
//! Growing needs no lock: the server that has the file takes the new size over by itself ([`Backend::refresh`]). It looks at
//! once when the file's times are set, which [`resize`] does last and which nothing on the way of a request does; otherwise
//! after some seconds. Shrinking takes the lock, so that no server has the file.
//!
//! [`Backend::refresh`]: crate::Backend::refresh

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::{FlockOperation, OFlags, Timespec, Timestamps, UTIME_NOW};

use crate::lock;
use crate::open::{OpenError, BLOCK_SIZES};
use crate::size::{format_size, parse_size, ParseSizeError};

/// The size that a file is to have, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewSize {
    /// So many.
    To(u64),
    /// So many more.
    By(u64),
}

impl NewSize {
    fn from(self, size: u64) -> Option<u64> {
        let new = match self {
            NewSize::To(new) => new,
            NewSize::By(more) => size.checked_add(more)?,
        };
        i64::try_from(new).is_ok().then_some(new)
    }
}

/// Reads `20G` or `+5G`.
///
/// # Errors
/// As [`parse_size`].
pub fn parse_new_size(text: &str) -> Result<NewSize, ParseSizeError> {
    match text.strip_prefix('+') {
        Some(more) => parse_size(more).map(NewSize::By),
        None => parse_size(text).map(NewSize::To),
    }
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resized {
    /// Bytes before.
    pub before: u64,
    /// Bytes now.
    pub after: u64,
    /// The server that has the file, if one has.
    pub server: Option<u32>,
    /// Bytes that its file system has free. What was added takes space only when it is written.
    pub free: u64,
}

/// Why a file did not get another size.
#[derive(Debug, thiserror::Error)]
pub enum ResizeError {
    /// A system call failed, or a server has the file that was to shrink.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Not a regular file.
    #[error("{path} is {kind}")]
    Kind {
        /// As given.
        path: String,
        /// What it is.
        kind: &'static str,
        /// It is a block device, which others can grow.
        block_device: bool,
    },
    /// No disk can have it.
    #[error("{size} bytes can't be the size of {path}: {why}")]
    Size {
        /// As given.
        path: String,
        /// Bytes.
        size: u64,
        /// What is wrong with it.
        why: String,
    },
    /// It would get shorter, and that was not asked for.
    #[error("{path} has {} and would shrink to {}: what lies beyond would be lost", format_size(*before), format_size(*after))]
    Shrinks {
        /// As given.
        path: String,
        /// Bytes now.
        before: u64,
        /// Bytes then.
        after: u64,
    },
}

/// Gives the file at `path` another size, durably, and makes the server that has it look. With `shrink` it may get shorter if
/// no server has it.
///
/// # Errors
/// Nothing has changed then, unless the system fails to make it durable.
pub fn resize(path: &Path, size: NewSize, shrink: bool) -> Result<Resized, ResizeError> {
    let name = || path.display().to_string();
    let file = open(path)?;
    let what = |what: &str| format!("{what} {}", path.display());
    // One at a time: a size that another one has set since must not be taken back. Servers have locks of another kind.
    rustix::fs::fcntl_lock(&file, FlockOperation::LockExclusive)
        .map_err(OpenError::io(what("lock")))?;
    let metadata = file.metadata().map_err(OpenError::io(what("look at")))?;
    let before = metadata.len();
    let after = size.from(before).ok_or_else(|| ResizeError::Size {
        path: name(),
        size: u64::MAX,
        why: "no file can be so large".to_owned(),
    })?;
    check(path, before, after)?;
    if after < before && !shrink {
        return Err(ResizeError::Shrinks {
            path: name(),
            before,
            after,
        });
    }
    if after < before {
        lock::lock(file.as_fd(), path)?;
    }
    if after != before {
        file.set_len(after)
            .and_then(|()| file.sync_all())
            .map_err(OpenError::io(what("change the size of")))?;
    }
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: UTIME_NOW,
    };
    let now = Timestamps {
        last_access: now,
        last_modification: now,
    };
    // Where that fails the server notices later.
    let _ = rustix::fs::futimens(&file, &now);
    let room = rustix::fs::fstatvfs(&file).map_err(OpenError::io(what("look at")))?;
    Ok(Resized {
        before,
        after,
        // Whoever shrinks a file has taken the lock: no server has it.
        server: match after < before {
            true => None,
            false => lock::live_holder(file.as_fd()),
        },
        free: room.f_bavail.saturating_mul(room.f_frsize),
    })
}

/// Opens a regular file, and nothing else: opening other things can do something.
fn open(path: &Path) -> Result<File, ResizeError> {
    let io =
        |what: &str, error: io::Error| OpenError::io(format!("{what} {}", path.display()))(error);
    let found = std::fs::metadata(path).map_err(|error| io("find", error))?;
    let kind = match found.file_type() {
        kind if kind.is_file() => {
            // It may have become something else.
            let file = OpenOptions::new()
                .write(true)
                .custom_flags(OFlags::NONBLOCK.bits() as i32)
                .open(path)
                .map_err(|error| io("open", error))?;
            let opened = file.metadata().map_err(|error| io("look at", error))?;
            if opened.is_file() {
                return Ok(file);
            }
            "no regular file"
        }
        kind if kind.is_block_device() => "a block device",
        kind if kind.is_dir() => "a directory",
        _ => "no regular file",
    };
    Err(ResizeError::Kind {
        path: path.display().to_string(),
        kind,
        block_device: found.file_type().is_block_device(),
    })
}

/// A file that could be served with large blocks stays so.
fn check(path: &Path, before: u64, after: u64) -> Result<(), ResizeError> {
    let fits = |size: u64, block: &u32| size.is_multiple_of(u64::from(*block));
    let block = BLOCK_SIZES.iter().rev().find(|block| fits(before, block));
    let block = block.unwrap_or(&BLOCK_SIZES[0]);
    let why = match after {
        0 => "a disk is not empty".to_owned(),
        size if fits(size, block) => return Ok(()),
        _ => format!("it is not a multiple of {block} bytes"),
    };
    Err(ResizeError::Size {
        path: path.display().to_string(),
        size: after,
        why,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(size: u64) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(size).unwrap();
        file
    }

    #[test]
    fn sizes_are_absolute_or_added() {
        assert_eq!(parse_new_size("20G"), Ok(NewSize::To(20 << 30)));
        assert_eq!(parse_new_size("+5G"), Ok(NewSize::By(5 << 30)));
        for bad in ["", "+", "++1", "-5G", "5X"] {
            assert!(parse_new_size(bad).is_err(), "{bad}");
        }
        assert_eq!(NewSize::By(u64::MAX).from(1), None);
        assert_eq!(NewSize::To(1 << 63).from(1), None);
    }

    #[test]
    fn a_file_grows_also_while_a_server_has_it() {
        let file = image(1 << 20);
        let grown = resize(file.path(), NewSize::By(1 << 20), false).unwrap();
        assert_eq!((grown.before, grown.after), (1 << 20, 2 << 20));
        assert_eq!(grown.server, None);
        let server = file.reopen().unwrap();
        lock::lock(server.as_fd(), file.path()).unwrap();
        let grown = resize(file.path(), NewSize::To(4 << 20), false).unwrap();
        assert_eq!(grown.server, Some(std::process::id()));
        assert_eq!(file.as_file().metadata().unwrap().len(), 4 << 20);
    }

    #[test]
    fn a_file_shrinks_only_if_that_is_meant_and_no_server_has_it() {
        let file = image(2 << 20);
        let to = NewSize::To(1 << 20);
        let refused = resize(file.path(), to, false).unwrap_err();
        assert!(matches!(refused, ResizeError::Shrinks { .. }), "{refused}");
        let server = file.reopen().unwrap();
        lock::lock(server.as_fd(), file.path()).unwrap();
        let refused = resize(file.path(), to, true).unwrap_err();
        assert!(
            matches!(refused, ResizeError::Open(OpenError::InUse { .. })),
            "{refused}"
        );
        assert_eq!(file.as_file().metadata().unwrap().len(), 2 << 20);
        drop(server);
        assert_eq!(resize(file.path(), to, true).unwrap().after, 1 << 20);
    }

    #[test]
    fn what_no_disk_can_be_is_refused() {
        let file = image(8192);
        for size in [0, 4096 + 512, 100] {
            let error = resize(file.path(), NewSize::To(size), true).unwrap_err();
            assert!(matches!(error, ResizeError::Size { .. }), "{error}");
        }
        // One with small blocks.
        let file = image(512);
        assert!(resize(file.path(), NewSize::By(1024), false).is_ok());
        let error = resize(Path::new("/"), NewSize::To(4096), false).unwrap_err();
        assert!(error.to_string().contains("a directory"), "{error}");
        let error = resize(Path::new("/none"), NewSize::To(4096), false).unwrap_err();
        assert!(error.to_string().contains("/none"), "{error}");
    }
}
