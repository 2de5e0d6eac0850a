//! Gets a `/dev/fuse` descriptor and mounts it on a file: as root by `mount(2)`, otherwise through `fusermount3`.
//!
//! The mount point is the empty file `disk` in the device's run-time directory, so that nobody else gets near it. When the
//! process dies, the kernel closes the descriptor and every access to the file fails from then on; the dead mount stays
//! until [`Mount::remove`] or [`remove_leftover`] takes it away.

use std::ffi::CString;
use std::fs::{self, OpenOptions};
use std::io::{self, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{Access, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

use super::connection;
use crate::{mountinfo, runtime, Error, ErrorKind};

/// The file system's name in lists of mounts.
const FS_TYPE: &str = "fuse.dst";
const HELPER: &str = "fusermount3";

/// The mount point in the run-time directory `dir`.
pub(super) fn point_in(dir: &Path) -> PathBuf {
    dir.join("disk")
}

/// Whether this machine and user can mount FUSE at all.
pub(super) fn check() -> Result<(), Error> {
    if !runtime::is_root() {
        // The helper opens /dev/fuse itself, but with the caller's rights.
        return match rustix::fs::access("/dev/fuse", Access::READ_OK | Access::WRITE_OK) {
            Ok(()) => helper().map(drop),
            Err(Errno::NOENT) => Err(no_fuse("there is no /dev/fuse")),
            Err(errno) => Err(Error::io("can't use /dev/fuse", errno)
                .with_hint("it is meant for all users: `chmod 666 /dev/fuse`, or run as root")),
        };
    }
    open_device().map(drop)
}

fn no_fuse(what: &str) -> Error {
    Error::new(ErrorKind::NotAvailable, what)
        .with_hint("load it with `modprobe fuse`; a container needs the device passed in")
}

fn open_device() -> Result<OwnedFd, Error> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    rustix::fs::open("/dev/fuse", flags, Mode::empty()).map_err(|errno| match errno {
        Errno::NOENT => no_fuse("there is no /dev/fuse"),
        Errno::NODEV | Errno::NXIO => no_fuse("the kernel has no FUSE"),
        Errno::PERM | Errno::ACCESS => Error::io("can't open /dev/fuse", errno).with_hint(
            "a container must be allowed the device (`--device /dev/fuse`) and CAP_SYS_ADMIN",
        ),
        _ => Error::io("can't open /dev/fuse", errno),
    })
}

/// The path of `fusermount3`.
fn helper() -> Result<PathBuf, Error> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/bin", "/bin", "/usr/local/bin"].map(PathBuf::from))
        .map(|dir| dir.join(HELPER))
        .find(|file| file.is_file())
        .ok_or_else(|| {
            Error::new(
                ErrorKind::MissingProgram,
                format!("without root a file is mounted by {HELPER}, which is not installed"),
            )
            .with_hint("install the package fuse3, or run as root")
        })
}

/// A mount of ours.
#[derive(Debug, Clone)]
pub(super) struct Mount {
    point: PathBuf,
}

/// Mounts a new connection on the file `disk` in `dir`. Returns before anything has been asked of it.
///
/// `transfer`: the largest READ in bytes.
pub(super) fn mount(
    dir: &Path,
    name: &str,
    read_only: bool,
    transfer: u32,
) -> Result<(Mount, OwnedFd), Error> {
    let point = point_in(dir);
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&point)
        .map_err(|e| Error::io(format!("can't make {}", point.display()), e))?;
    let mounted = if runtime::is_root() {
        mount_directly(&point, name, read_only, transfer)
    } else {
        mount_by_helper(&point, name, read_only, transfer)
    };
    match mounted {
        Ok(fd) => Ok((Mount { point }, fd)),
        Err(error) => {
            let _ = fs::remove_file(&point);
            Err(error)
        }
    }
}

fn mount_directly(
    point: &Path,
    name: &str,
    read_only: bool,
    transfer: u32,
) -> Result<OwnedFd, Error> {
    let fd = open_device()?;
    // rootmode: S_IFREG in octal, as the mount point is a file.
    let options = format!(
        "fd={},rootmode=100000,user_id=0,group_id=0,max_read={transfer}",
        fd.as_raw_fd()
    );
    let options = CString::new(options).expect("numbers hold no NUL");
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    if read_only {
        flags |= MountFlags::RDONLY;
    }
    let source = format!("dst:{name}");
    rustix::mount::mount(source, point, FS_TYPE, flags, options.as_c_str()).map_err(|errno| {
        let error = Error::io(format!("can't mount {}", point.display()), errno);
        match errno {
            Errno::PERM | Errno::ACCESS => {
                error.with_hint("mounting takes CAP_SYS_ADMIN; a container must be given it")
            }
            Errno::NODEV => error
                .with_kind(ErrorKind::NotAvailable)
                .with_hint("the kernel has no FUSE: `modprobe fuse`"),
            _ => error,
        }
    })?;
    Ok(fd)
}

/// `fusermount3` mounts and sends the descriptor over a socket whose number is in `_FUSE_COMMFD`: its standard input.
fn mount_by_helper(
    point: &Path,
    name: &str,
    read_only: bool,
    transfer: u32,
) -> Result<OwnedFd, Error> {
    let failed = |error: io::Error| Error::io(format!("can't run {HELPER}"), error);
    let helper = helper()?;
    let (ours, theirs) = UnixStream::pair().map_err(failed)?;
    let access = if read_only { "ro" } else { "rw" };
    let options =
        format!("{access},nosuid,nodev,noexec,fsname=dst:{name},subtype=dst,max_read={transfer}");
    let mut child = Command::new(&helper)
        .args(["-o", &options, "--"])
        .arg(point)
        .env("_FUSE_COMMFD", "0")
        .env("LC_ALL", "C")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let mut said = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        let _ = stderr.read_to_string(&mut said);
    }
    let status = child.wait().map_err(failed)?;
    let received = receive_descriptor(&ours);
    match received {
        Ok(Some(fd)) if status.success() => {
            let flags = rustix::fs::fcntl_getfl(&fd).map_err(|e| failed(e.into()))?;
            rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK).map_err(|e| failed(e.into()))?;
            Ok(fd)
        }
        Err(error) => Err(failed(error)),
        _ => {
            let kind = if said.contains("not permitted") || said.contains("denied") {
                ErrorKind::Permission
            } else {
                ErrorKind::Io
            };
            Err(
                Error::new(kind, format!("{HELPER} failed: {}", said.trim())).with_hint(format!(
                    "{} must be set-user-id root and /dev/fuse usable, or run as root",
                    helper.display()
                )),
            )
        }
    }
}

/// The descriptor in the first message, if there is one (SCM_RIGHTS, unix(7)).
fn receive_descriptor(socket: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0; 1];
    rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut byte)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
    )?;
    Ok(control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    }))
}

impl Mount {
    /// The file.
    pub(super) fn path(&self) -> &Path {
        &self.point
    }

    /// Unmounts if nobody has the file open.
    ///
    /// # Errors
    /// `Busy` if somebody has.
    pub(super) fn remove_unused(&self) -> Result<(), Error> {
        unmount(&self.point, false)?;
        let _ = fs::remove_file(&self.point);
        Ok(())
    }

    /// Takes the mount away at once; whoever has the file open keeps it.
    pub(super) fn remove(&self) -> Result<(), Error> {
        unmount(&self.point, true)?;
        let _ = fs::remove_file(&self.point);
        Ok(())
    }
}

/// Unmounts everything of ours at `point`; nothing there is fine. `lazy`: also if it is in use.
fn unmount(point: &Path, lazy: bool) -> Result<(), Error> {
    let failed = |error| Error::io(format!("can't unmount {}", point.display()), error);
    while is_mounted(point).map_err(failed)? {
        if runtime::is_root() {
            let flags = if lazy {
                UnmountFlags::DETACH | UnmountFlags::NOFOLLOW
            } else {
                UnmountFlags::NOFOLLOW
            };
            match rustix::mount::unmount(point, flags) {
                Ok(()) => {}
                // Gone between the look and the call.
                Err(Errno::INVAL | Errno::NOENT) => break,
                Err(errno) => return Err(failed(errno.into())),
            }
        } else {
            unmount_by_helper(point, lazy)?;
        }
    }
    Ok(())
}

fn unmount_by_helper(point: &Path, lazy: bool) -> Result<(), Error> {
    let flags: &[&str] = if lazy { &["-u", "-z"] } else { &["-u"] };
    let output = Command::new(helper()?)
        .args(flags)
        .arg("--")
        .arg(point)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|e| Error::io(format!("can't run {HELPER}"), e))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let kind = if said.contains("busy") {
        ErrorKind::Busy
    } else {
        ErrorKind::Io
    };
    Err(Error::new(
        kind,
        format!("can't unmount {}: {}", point.display(), said.trim()),
    ))
}

fn is_mounted(point: &Path) -> io::Result<bool> {
    let mounts = mountinfo::mounts()?;
    Ok(mounts
        .iter()
        .any(|m| m.point == point && m.fs_type == FS_TYPE))
}

/// Cuts the connection of the mount in `dir` from outside, whatever the process that serves it is doing. False: nothing is
/// mounted there.
///
/// # Errors
/// The kernel offers no way to it, or not to this user.
pub(super) fn abort(dir: &Path) -> Result<bool, Error> {
    let point = point_in(dir);
    let failed = |error: io::Error| {
        Error::io(
            format!("can't abort the FUSE connection of {}", point.display()),
            error,
        )
    };
    let mounts = mountinfo::mounts().map_err(failed)?;
    let ours = mounts
        .iter()
        .find(|m| m.point == point && m.fs_type == FS_TYPE);
    match ours {
        Some(mount) => connection::abort(mount.device.1)
            .map(|()| true)
            .map_err(failed),
        None => Ok(false),
    }
}

/// Removes the mount that a dead process left in `dir`, aborting its connection should a child still hold it open.
/// Returns whether there was one.
///
/// # Errors
/// It can't be unmounted.
pub(super) fn remove_leftover(dir: &Path) -> Result<bool, Error> {
    let point = point_in(dir);
    let mounts =
        mountinfo::mounts().map_err(|e| Error::io("can't read /proc/self/mountinfo", e))?;
    let left = mounts
        .iter()
        .find(|m| m.point == point && m.fs_type == FS_TYPE);
    if let Some(mount) = left {
        // Needed only if somebody inherited the descriptor.
        let _ = connection::abort(mount.device.1);
        unmount(&point, true)?;
    }
    // Only ever an empty file; a directory or a file with content is not ours.
    let ours = fs::symlink_metadata(&point)
        .is_ok_and(|m| m.is_file() && m.len() == 0 && m.permissions().mode() & 0o777 == 0o600);
    if ours {
        let _ = fs::remove_file(&point);
    }
    Ok(left.is_some())
}
