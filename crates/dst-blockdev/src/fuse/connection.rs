//! FUSE connections from outside: the control file system `fusectl` (fs/fuse/control.c).
//!
//! It has a directory for each connection, named by the minor number of the mount's device, and in it a file `abort`: what is
//! written to it makes the kernel fail every request that waits for an answer, and every later one. No process has to take
//! part, so that this works when the one that serves is stopped, or itself waits for its own device.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, CWD};
use rustix::io::Errno;
use rustix::mount::{fsconfig_create, fsmount, fsopen, FsMountFlags, FsOpenFlags, MountAttrFlags};

/// Where it is mounted on most systems.
const USUAL: &str = "/sys/fs/fuse/connections";

/// Aborts the connection whose device has this minor number.
///
/// # Errors
/// There is no such connection, or `fusectl` is not there and can't be had.
pub(super) fn abort(minor: u32) -> io::Result<()> {
    let name = format!("{minor}/abort");
    match abort_in(CWD, &format!("{USUAL}/{name}")) {
        // Not mounted there, which shows as an empty directory.
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(abort_in(control()?.as_fd(), &name)?),
        done => Ok(done?),
    }
}

/// Mounts `fusectl` where nobody sees it (Linux 5.2). It goes with the descriptor.
fn control() -> rustix::io::Result<OwnedFd> {
    let context = fsopen("fusectl", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

fn abort_in(dir: BorrowedFd<'_>, path: &str) -> rustix::io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(dir, path, flags, Mode::empty())?;
    rustix::io::write(&file, b"1").map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_is_not_there_is_reported() {
        let error = abort(u32::MAX).unwrap_err();
        assert!(
            matches!(
                error.kind(),
                // Without root, and where nobody has mounted it, there is no getting at it.
                io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied
            ),
            "{error}"
        );
    }
}
