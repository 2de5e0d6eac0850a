//! Unix stream sockets.
//!
//! A listening socket is created with mode 0600, removed when the listener is dropped, and takes the place of one that
//! a dead server left behind; a live server's socket, and anything that is no socket, is refused and not touched. What
//! stands between looking and replacing is done under a lock of the directory, so that of two servers that start at
//! once one wins.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode};
use rustix::io::Errno;
use rustix::net::{sockopt, AddressFamily, SocketAddrUnix};

use crate::socket::{self, SocketStream};
use crate::url::{Address, Endpoint};
use crate::{Listener, Stream, Transport};

/// How long a server with a full queue may take before it counts as alive all the same.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// How long others may hold the lock of the directory, and how often to look.
const LOCK_TIMEOUT: Duration = Duration::from_secs(3);
const LOCK_INTERVAL: Duration = Duration::from_millis(10);

/// Connects to a Unix socket.
pub struct UnixTransport {
    path: PathBuf,
}

impl UnixTransport {
    /// `path` is absolute.
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
        }
    }
}

impl Transport for UnixTransport {
    fn connect(&self, timeout: Duration) -> io::Result<Box<dyn Stream>> {
        let socket = connect_within(&self.path, timeout).map_err(|e| {
            io::Error::new(
                io::Error::from(e).kind(),
                format!("{}: {e}", self.describe()),
            )
        })?;
        stream(socket)
    }

    fn describe(&self) -> String {
        self.path.display().to_string()
    }

    fn is_local(&self) -> bool {
        true
    }

    fn is_trusted(&self) -> bool {
        true
    }
}

/// Connects; where the server's queue is full, waits for room up to `timeout`.
fn connect_within(path: &Path, timeout: Duration) -> rustix::io::Result<OwnedFd> {
    let socket = socket::new_socket(AddressFamily::UNIX)?;
    // Connecting is bounded by the sending timeout (unix(7) leaves that to socket(7)); zero would mean none.
    let timeout = timeout.max(Duration::from_millis(1));
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(timeout))?;
    match rustix::net::connect(&socket, &SocketAddrUnix::new(path)?) {
        Err(Errno::AGAIN) => Err(Errno::TIMEDOUT),
        other => other.map(|()| socket),
    }
}

fn stream(socket: OwnedFd) -> io::Result<Box<dyn Stream>> {
    let peer = sockopt::socket_peercred(&socket)?;
    let name = format!("process {} of user {}", peer.pid, peer.uid);
    Ok(Box::new(SocketStream::new(socket, name, true, true)?))
}

/// Listens at a path.
pub struct UnixListener {
    socket: OwnedFd,
    path: PathBuf,
    /// Device and inode of the socket file, to know it again.
    file: (u64, u64),
    url: String,
}

impl UnixListener {
    /// Creates the socket file and listens.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let context = |e: io::Error| {
            io::Error::new(e.kind(), format!("can't listen at {}: {e}", path.display()))
        };
        let url = Endpoint::new(
            Address::Unix {
                path: path.to_owned(),
            },
            None,
        )
        .map_err(io::Error::other)?
        .to_string();
        let _lock = lock_directory(path).map_err(context)?;
        let socket = socket::new_socket(AddressFamily::UNIX)?;
        // A bound socket file takes its mode from the socket (unix_bind in the kernel), so it never is open to others.
        rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
        let address = SocketAddrUnix::new(path)?;
        match rustix::net::bind(&socket, &address) {
            Err(Errno::ADDRINUSE) => {
                remove_if_stale(path).map_err(context)?;
                rustix::net::bind(&socket, &address).map_err(|e| context(e.into()))?;
            }
            other => other.map_err(|e| context(e.into()))?,
        }
        let file = identity(path).map_err(context)?;
        let listener = Self {
            socket,
            path: path.to_owned(),
            file,
            url,
        };
        // Under the lock still: a socket that is bound and does not listen yet looks like a dead server's.
        socket::listen(&listener.socket)?;
        Ok(listener)
    }
}

/// Locks the directory of `path` against other servers that start or stop there; ends with the file. Bounded, since
/// anyone who may read a directory can lock it.
fn lock_directory(path: &Path) -> io::Result<File> {
    let directory = File::open(path.parent().unwrap_or(Path::new("/")))?;
    let deadline = Instant::now() + LOCK_TIMEOUT;
    loop {
        match rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(directory),
            Err(Errno::AGAIN | Errno::INTR) if Instant::now() < deadline => {
                std::thread::sleep(LOCK_INTERVAL)
            }
            Err(e) => return Err(e.into()),
        }
    }
}

/// Removes the socket of a server that is gone; everything else is an error.
fn remove_if_stale(path: &Path) -> io::Result<()> {
    if !fs::symlink_metadata(path)?.file_type().is_socket() {
        return Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "the file there is no socket; it is left alone",
        ));
    }
    match connect_within(path, PROBE_TIMEOUT) {
        Err(Errno::CONNREFUSED) => fs::remove_file(path),
        Err(Errno::NOENT) => Ok(()),
        // A full queue, or a socket that we may not enter: its server lives.
        Ok(_) | Err(_) => Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "another server is listening there",
        )),
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let file = fs::symlink_metadata(path)?;
    Ok((file.dev(), file.ino()))
}

impl Drop for UnixListener {
    fn drop(&mut self) {
        // Someone may have removed it and put another server's in its place. Without the lock the file stays, as it
        // does after a crash; the next server replaces it.
        if let Ok(_lock) = lock_directory(&self.path) {
            if identity(&self.path).is_ok_and(|file| file == self.file) {
                let _ = fs::remove_file(&self.path);
            }
        }
    }
}

impl Listener for UnixListener {
    fn accept(&mut self) -> io::Result<Box<dyn Stream>> {
        let (socket, _) = socket::accept(&self.socket)?;
        stream(socket)
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn local_url(&self) -> String {
        self.url.clone()
    }
}
