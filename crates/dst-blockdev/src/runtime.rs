//! Names and run-time directories, and the lock that tells a live front end from a dead one's leftovers.
//!
//! Root uses `/run/dst/NAME/`, others `$XDG_RUNTIME_DIR/dst/NAME/` or, without that variable, `/tmp/dst-UID/NAME/`. The
//! directory of a name is 0700. In it this crate owns `front-end.lock`, `disk` (the mount point), `ublk` and `nbd` (which
//! device it is); an agent may keep other files there. Whoever takes the last file away may take the directory too, so make
//! it anew before each use.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use crate::{Error, ErrorKind};

const LOCK_FILE: &str = "front-end.lock";
/// Longest name in bytes: it has to fit the 64-byte field of a loop device with the prefix `dst:`.
const LONGEST_NAME: usize = 56;

/// Whether a name can be used for a device: letters, digits, `.`, `_`, `-`, not starting with `.` or `-`, at most 56 bytes.
#[must_use]
pub fn valid_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    name.len() <= LONGEST_NAME
        && bytes
            .next()
            .is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_')
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// Refuses a name that [`valid_name`] refuses.
pub(crate) fn check_name(name: &str) -> Result<(), Error> {
    if valid_name(name) {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::BadName,
        format!("{name:?} can't be the name of a device"),
    )
    .with_hint(format!(
        "letters, digits, '.', '_' and '-', not starting with '.' or '-', at most {LONGEST_NAME}"
    )))
}

/// Whether this process runs as root.
#[must_use]
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The directory that holds the run-time directories of this user's devices.
#[must_use]
pub fn runtime_root() -> PathBuf {
    if let Some(dir) = std::env::var_os("DST_RUNTIME_DIR").filter(|dir| !dir.is_empty()) {
        return dir.into();
    }
    if is_root() {
        return PathBuf::from("/run/dst");
    }
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(dir) if !dir.is_empty() => Path::new(&dir).join("dst"),
        _ => PathBuf::from(format!("/tmp/dst-{}", rustix::process::geteuid().as_raw())),
    }
}

/// Makes the run-time directory of a device (mode 0700) if it is not there, and returns it.
///
/// # Errors
/// `BadName`; `Permission` if the directory belongs to somebody else or others may write to it.
pub fn runtime_dir(name: &str) -> Result<PathBuf, Error> {
    check_name(name)?;
    let root = runtime_root();
    // Other users may look up names under /run/dst, but not in a directory below the shared /tmp.
    make_dir(&root, if is_root() { 0o755 } else { 0o700 })?;
    let dir = root.join(name);
    make_dir(&dir, 0o700)?;
    Ok(dir)
}

fn make_dir(path: &Path, mode: u32) -> Result<(), Error> {
    let failed = |error| Error::io(format!("can't make {}", path.display()), error);
    match DirBuilder::new().mode(mode).create(path) {
        // An agent makes its files for its user alone (umask).
        Ok(()) => fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed)?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(failed(error)),
    }
    // In a place like /tmp the name may have been there first, made by somebody else.
    let meta = fs::symlink_metadata(path)
        .map_err(|e| Error::io(format!("can't look at {}", path.display()), e))?;
    let own = meta.uid() == rustix::process::geteuid().as_raw();
    if !meta.is_dir() || !own || meta.mode() & 0o022 != 0 {
        return Err(Error::new(
            ErrorKind::Permission,
            format!("{} is not a directory of this user alone", path.display()),
        ));
    }
    Ok(())
}

/// Held as long as a front end lives, and let go by the kernel when its process dies. A good end removes the lock file,
/// and the directory if nobody has put anything else into it.
#[derive(Debug)]
pub(crate) struct NameLock {
    dir: PathBuf,
    /// What holds the lock.
    _file: File,
}

impl NameLock {
    /// Makes the run-time directory of the device and takes its lock.
    ///
    /// # Errors
    /// As [`runtime_dir`]; `NameTaken` if a live front end holds the lock.
    pub(crate) fn take(name: &str) -> Result<NameLock, Error> {
        NameLock::take_in(|| runtime_dir(name), name)
    }

    fn take_in(
        make_dir: impl Fn() -> Result<PathBuf, Error>,
        name: &str,
    ) -> Result<NameLock, Error> {
        // A file that its former holder removes between our opening and locking it is no lock any more: once more.
        for _ in 0..100 {
            let dir = make_dir()?;
            let path = dir.join(LOCK_FILE);
            let failed = |error| Error::io(format!("can't lock {}", path.display()), error);
            let opened = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path);
            let file = match opened {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(failed(error)),
            };
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    return Err(Error::new(
                        ErrorKind::NameTaken,
                        format!("a device with the name {name} is attached"),
                    )
                    .with_hint("choose another with --name, or detach it first"))
                }
                Err(errno) => return Err(failed(errno.into())),
            }
            let locked = file.metadata().map_err(failed)?;
            let there = fs::symlink_metadata(&path);
            if there.is_ok_and(|t| (t.dev(), t.ino()) == (locked.dev(), locked.ino())) {
                return Ok(NameLock { dir, _file: file });
            }
        }
        Err(Error::new(
            ErrorKind::NameTaken,
            format!("a device with the name {name} comes and goes"),
        ))
    }

    /// The run-time directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for NameLock {
    fn drop(&mut self) {
        // Still locked: the file is closed after this.
        let _ = fs::remove_file(self.dir.join(LOCK_FILE));
        let _ = fs::remove_dir(&self.dir);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_escape_a_directory_are_refused() {
        for good in ["disk", "a", "_x", "vm-1.img", "0"] {
            assert!(valid_name(good), "{good}");
            assert!(check_name(good).is_ok());
        }
        let long = "x".repeat(LONGEST_NAME + 1);
        for bad in ["", ".", "..", ".x", "-x", "a/b", "a b", "ä", "a\0", &long] {
            assert!(!valid_name(bad), "{bad}");
            assert_eq!(check_name(bad).unwrap_err().kind(), ErrorKind::BadName);
        }
    }

    #[test]
    fn a_name_is_locked_once_at_a_time_and_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("x");
        let take = || {
            NameLock::take_in(
                || {
                    make_dir(&dir, 0o700)?;
                    Ok(dir.clone())
                },
                "x",
            )
        };
        let first = take().unwrap();
        assert_eq!(take().unwrap_err().kind(), ErrorKind::NameTaken);
        drop(first);
        assert!(!dir.exists());
        let second = take().unwrap();
        fs::write(dir.join("other"), "x").unwrap();
        drop(second);
        assert!(dir.join("other").exists() && !dir.join(LOCK_FILE).exists());
    }

    #[test]
    fn a_directory_that_others_can_write_to_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d");
        make_dir(&path, 0o700).unwrap();
        make_dir(&path, 0o700).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        assert_eq!(
            make_dir(&path, 0o700).unwrap_err().kind(),
            ErrorKind::Permission
        );
    }
}
