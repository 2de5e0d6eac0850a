//! The directory of the desks: of one user alone, and what is in it.
//!
//! `serve-KEY.sock` is the desk of whoever serves the file `KEY`, `serve-KEY.new` one that is being made, `serve-KEY.log` what a
//! server without a terminal says. A stranger can plant none of them: the directory and the one above belong to this user, no
//! symbolic link leads there, and nobody else may write to either. Sockets are reached through `/proc/self/fd`, so that it is
//! this very directory, and so that a long path fits an address.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{openat, renameat, statat, unlinkat, AtFlags, Mode, OFlags, CWD};
use rustix::io::Errno;
use rustix::net::{socket_with, sockopt, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::geteuid;

const PREFIX: &str = "serve-";
const SOCKET: &str = ".sock";
const NEW: &str = ".new";
const LOG: &str = ".log";

/// Carriers that the kernel may hold until the desk looks.
const BACKLOG: i32 = 128;

/// Where a server for the file `key` that has no terminal says what there is to say.
#[must_use]
pub fn log_path(directory: &Path, key: &str) -> PathBuf {
    directory.join(format!("{PREFIX}{key}{LOG}"))
}

/// Makes the directory if it is not there, and says whether it can be used.
///
/// # Errors
/// It belongs to somebody else, others may write there, or it can't be made.
pub fn check_directory(directory: &Path) -> io::Result<()> {
    Place::make(directory).map(drop)
}

/// The directory, open.
pub(super) struct Place {
    directory: OwnedFd,
}

impl Place {
    /// Opens the directory, made if it is not there.
    pub(super) fn make(path: &Path) -> io::Result<Self> {
        let above = path.parent().unwrap_or(Path::new("/"));
        // Other users may look up names in root's.
        let mode = if geteuid().is_root() { 0o755 } else { 0o700 };
        make_directory(above, mode)?;
        make_directory(path, 0o700)?;
        Self::open(path)
    }

    /// Opens the directory.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let parent = openat(CWD, above, flags, Mode::empty())?;
        check_owner(&parent, above, 0o022)?;
        let directory = openat(&parent, name, flags, Mode::empty())?;
        check_owner(&directory, path, 0o077)?;
        Ok(Self { directory })
    }

    /// Listens at the desk for `key`, in the place of whoever had it. Answers the socket and what its file is known by.
    pub(super) fn listen(&self, key: &str) -> io::Result<(OwnedFd, u64)> {
        let socket = self.bind(key)?;
        let file = self.announce(key, &socket)?;
        Ok((socket, file))
    }

    /// A socket for the desk for `key`, under a name by which nobody looks for one: as long as it does not listen it can't be
    /// told from a dead server's. What a server leaves that is killed here, the next one for `key` replaces.
    fn bind(&self, key: &str) -> io::Result<OwnedFd> {
        let name = new_name(key);
        match unlinkat(&self.directory, &name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
        let socket = new_socket(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
        rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
        rustix::net::bind(&socket, &self.address(&name)?)?;
        Ok(socket)
    }

    /// Listens, and makes it known. Answers what the file is known by.
    fn announce(&self, key: &str, socket: &OwnedFd) -> io::Result<u64> {
        rustix::net::listen(socket, BACKLOG)?;
        let (new, name) = (new_name(key), socket_name(key));
        renameat(&self.directory, new, &self.directory, name)?;
        Ok(self.file(key).ok_or(io::ErrorKind::NotFound)?)
    }

    /// What the file of the desk for `key` is known by, if there is one.
    pub(super) fn file(&self, key: &str) -> Option<u64> {
        let stat = statat(&self.directory, socket_name(key), AtFlags::SYMLINK_NOFOLLOW);
        stat.ok().map(|stat| stat.st_ino)
    }

    /// Removes the desk for `key` if it is this one.
    pub(super) fn remove(&self, key: &str, file: u64) {
        if self.file(key) == Some(file) {
            let _ = unlinkat(&self.directory, socket_name(key), AtFlags::empty());
        }
    }

    /// Connects to the desk for `key`; `None` if nobody is there.
    pub(super) fn connect(&self, key: &str, timeout: Duration) -> io::Result<Option<OwnedFd>> {
        self.connect_to(&socket_name(key), timeout)
    }

    fn connect_to(&self, name: &str, timeout: Duration) -> io::Result<Option<OwnedFd>> {
        let socket = new_socket(SocketFlags::CLOEXEC)?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(timeout))?;
        match rustix::net::connect(&socket, &self.address(name)?) {
            Ok(()) => Ok(Some(socket)),
            Err(Errno::NOENT | Errno::CONNREFUSED) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Removes what servers have left that were killed and whose file nobody serves now: their sockets, and their logs where
    /// those say nothing.
    pub(super) fn sweep(&self) {
        let entries = fs::read_dir(self.path()).into_iter().flatten().flatten();
        for entry in entries {
            let name = entry.file_name();
            let key = name
                .to_str()
                .and_then(|name| name.strip_prefix(PREFIX)?.strip_suffix(SOCKET));
            let Some(key) = key else {
                continue;
            };
            let known = self.file(key);
            // A queue that is full is a live server's.
            let dead = matches!(self.connect(key, Duration::from_millis(1)), Ok(None));
            if let (true, Some(file)) = (dead, known) {
                self.remove(key, file);
                let log = format!("{PREFIX}{key}{LOG}");
                let stat = statat(&self.directory, &log, AtFlags::SYMLINK_NOFOLLOW);
                if stat.is_ok_and(|stat| stat.st_size == 0) {
                    let _ = unlinkat(&self.directory, &log, AtFlags::empty());
                }
            }
        }
    }

    fn address(&self, name: &str) -> io::Result<SocketAddrUnix> {
        Ok(SocketAddrUnix::new(self.path().join(name))?)
    }

    fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.directory.as_raw_fd()))
    }
}

fn socket_name(key: &str) -> String {
    format!("{PREFIX}{key}{SOCKET}")
}

/// Of a desk that is being made.
fn new_name(key: &str) -> String {
    format!("{PREFIX}{key}{NEW}")
}

fn new_socket(flags: SocketFlags) -> rustix::io::Result<OwnedFd> {
    socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
}

fn make_directory(path: &Path, mode: u32) -> io::Result<()> {
    match rustix::fs::mkdir(path, Mode::from_raw_mode(mode)) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn check_owner(directory: &OwnedFd, path: &Path, forbidden: u32) -> io::Result<()> {
    let stat = rustix::fs::fstat(directory)?;
    if stat.st_uid == geteuid().as_raw() && stat.st_mode & forbidden == 0 {
        return Ok(());
    }
    let text = format!("{} is not a directory of this user alone", path.display());
    Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    const SOON: Duration = Duration::from_secs(10);

    fn place() -> (tempfile::TempDir, PathBuf, Place) {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("run/.server");
        fs::create_dir(root.path().join("run")).unwrap();
        let place = Place::make(&path).unwrap();
        (root, path, place)
    }

    #[test]
    fn a_desk_is_found_by_its_key_until_it_is_removed() {
        let (_root, path, place) = place();
        assert!(place.connect("k", SOON).unwrap().is_none());
        let (_socket, file) = place.listen("k").unwrap();
        let other = Place::open(&path).unwrap();
        assert!(other.connect("k", SOON).unwrap().is_some());
        assert!(other.connect("l", SOON).unwrap().is_none());
        place.remove("k", file + 1);
        assert!(other.connect("k", SOON).unwrap().is_some());
        place.remove("k", file);
        assert!(other.connect("k", SOON).unwrap().is_none());
        assert_eq!(fs::read_dir(path).unwrap().count(), 0);
    }

    #[test]
    fn what_a_dead_server_left_is_nobody_and_is_replaced_or_swept() {
        let (_root, path, place) = place();
        let (socket, _) = place.listen("k").unwrap();
        let _live = place.listen("live").unwrap();
        drop(socket);
        fs::write(log_path(&path, "k"), "").unwrap();
        assert!(place.connect("k", SOON).unwrap().is_none());
        let (socket, _) = place.listen("k").unwrap();
        assert!(place.connect("k", SOON).unwrap().is_some());
        drop(socket);
        fs::write(path.join("sync-1"), "").unwrap();
        place.sweep();
        let mut left: Vec<_> = fs::read_dir(&path)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["serve-live.sock", "sync-1"]);
        drop(place.listen("k").unwrap());
        fs::write(log_path(&path, "k"), "the last words").unwrap();
        place.sweep();
        assert!(log_path(&path, "k").exists());
    }

    #[test]
    fn a_desk_that_is_being_made_is_not_swept() {
        let (_root, path, place) = place();
        drop(place.listen("k").unwrap());
        let socket = place.bind("k").unwrap();
        // Another server starts.
        let other = Place::open(&path).unwrap();
        other.sweep();
        let file = place.announce("k", &socket).unwrap();
        other.sweep();
        assert_eq!(place.file("k"), Some(file));
        assert!(other.connect("k", SOON).unwrap().is_some());
        // One that was killed before it had announced it.
        drop(place.bind("k").unwrap());
        let _socket = place.listen("k").unwrap();
        assert_eq!(fs::read_dir(&path).unwrap().count(), 1);
    }

    #[test]
    fn a_directory_that_others_may_use_or_that_is_a_link_is_refused() {
        let (root, path, _place) = place();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o750)).unwrap();
        assert!(Place::make(&path).is_err());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        let run = root.path().join("run");
        fs::set_permissions(&run, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(Place::make(&path).is_err());
        fs::set_permissions(&run, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(Place::make(&path).is_ok());
        let link = run.join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(Place::make(&link).is_err());
        fs::write(run.join("file"), "").unwrap();
        assert!(Place::make(&run.join("file")).is_err());
    }
}
