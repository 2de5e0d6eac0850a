//! A connected, non-blocking stream socket: what TCP, Unix sockets and commands have in common.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendFlags, Shutdown, SocketAddrAny, SocketFlags, SocketType,
};

use crate::Stream;

/// Connections that the kernel may hold until they are accepted.
const BACKLOG: i32 = 128;

/// A stream socket with what is known about its peer.
pub(crate) struct SocketStream {
    socket: OwnedFd,
    peer: String,
    local: bool,
    trusted: bool,
}

impl SocketStream {
    /// Takes over a connected socket and makes it non-blocking.
    pub(crate) fn new(
        socket: OwnedFd,
        peer: String,
        local: bool,
        trusted: bool,
    ) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        Ok(Self {
            socket,
            peer,
            local,
            trusted,
        })
    }
}

impl Stream for SocketStream {
    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn write_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn read_vectored(&mut self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        Ok(rustix::io::retry_on_intr(|| {
            rustix::io::readv(&self.socket, bufs)
        })?)
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        // Not writev: that raises SIGPIPE in programs that don't ignore it.
        let mut no_control = SendAncillaryBuffer::default();
        Ok(rustix::io::retry_on_intr(|| {
            rustix::net::sendmsg(
                &self.socket,
                bufs,
                &mut no_control,
                SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
            )
        })?)
    }

    fn shutdown(&mut self) {
        // Fails only where the peer has gone, and then the reading side says so.
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Write);
    }

    fn peer(&self) -> String {
        self.peer.clone()
    }

    fn is_local(&self) -> bool {
        self.local
    }

    fn is_trusted(&self) -> bool {
        self.trusted
    }
}

/// A new stream socket, closed on exec.
pub(crate) fn new_socket(family: AddressFamily) -> rustix::io::Result<OwnedFd> {
    rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)
}

/// Starts to listen on a bound socket; accepting never blocks.
pub(crate) fn listen(socket: &OwnedFd) -> rustix::io::Result<()> {
    rustix::io::ioctl_fionbio(socket, true)?;
    rustix::net::listen(socket, BACKLOG)
}

/// Accepts the next connection, passing over those that died in the queue (`accept(2)`, "Error handling").
pub(crate) fn accept(listener: &OwnedFd) -> io::Result<(OwnedFd, Option<SocketAddrAny>)> {
    loop {
        match rustix::net::acceptfrom_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Err(
                Errno::INTR
                | Errno::CONNABORTED
                | Errno::PROTO
                | Errno::NETDOWN
                | Errno::NOPROTOOPT
                | Errno::HOSTDOWN
                | Errno::NONET
                | Errno::HOSTUNREACH
                | Errno::NETUNREACH
                | Errno::PERM,
            ) => {}
            other => return Ok(other?),
        }
    }
}
