//! Making a sparse file whose name survives a power loss.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use rustix::fs::{fsync, ftruncate, linkat, open, AtFlags, Mode, OFlags, CWD};
use rustix::io::Errno;

use crate::open::OpenError;

/// Makes a sparse file of `size` bytes under a name that is free. The name appears only when the file has its size, and is
/// on stable storage when this returns. Somebody else's file that came first is left alone.
///
/// # Errors
/// What the system said; the largest file of the file system is too small, for example.
pub fn create_sparse(path: &Path, size: u64) -> Result<(), OpenError> {
    let what = || format!("create {}", path.display());
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let made = match create_unnamed(directory, path, size) {
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT | Errno::INVAL) => {
            create_named(path, size)
        }
        other => other,
    };
    match made {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(OpenError::io(what())(error)),
    }
    sync_directory(directory).map_err(OpenError::io(what()))
}

/// With `O_TMPFILE` a crash leaves nothing half made behind.
fn create_unnamed(directory: &Path, path: &Path, size: u64) -> Result<(), Errno> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let file = open(directory, flags, mode())?;
    ftruncate(&file, size)?;
    fsync(&file)?;
    let unnamed = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
    linkat(CWD, unnamed, CWD, path, AtFlags::SYMLINK_FOLLOW)
}

/// For file systems without `O_TMPFILE`. A crash in between can leave an empty file, which no server accepts.
fn create_named(path: &Path, size: u64) -> Result<(), Errno> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
    let file = open(path, flags, mode())?;
    let sized = ftruncate(&file, size).and_then(|()| fsync(&file));
    if sized.is_err() {
        // The error at hand says more than a second one could.
        let _ = fs::remove_file(path);
    }
    sized
}

/// A disk's content is its owner's only.
fn mode() -> Mode {
    Mode::RUSR | Mode::WUSR
}

/// Makes names in a directory durable.
pub(crate) fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_created_file_is_sparse_and_has_its_size() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk.img");
        create_sparse(&path, 15 << 40).unwrap();
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!(metadata.len(), 15 << 40);
        assert!(metadata.blocks() < 64);
        assert_eq!(metadata.mode() & 0o777, 0o600);
    }

    #[test]
    fn a_file_that_is_there_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk.img");
        fs::write(&path, b"mine").unwrap();
        create_sparse(&path, 4096).unwrap();
        assert_eq!(create_named(&path, 4096), Err(Errno::EXIST));
        assert_eq!(fs::read(&path).unwrap(), b"mine");
    }

    #[test]
    fn without_unnamed_files_it_works_too_and_a_failure_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk.img");
        create_named(&path, 1 << 30).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), 1 << 30);
        let other = directory.path().join("other.img");
        assert!(create_named(&other, u64::MAX / 2).is_err());
        assert!(!other.exists());
        let error = create_sparse(&directory.path().join("no/such/dir"), 4096).unwrap_err();
        assert!(error.to_string().contains("no/such/dir"), "{error}");
    }
}
