//! The server side of a command transport: the process's own standard streams as a [`Stream`].
//!
//! [`take`] moves the streams away and leaves `/dev/null` and standard error in their place, so that nothing printed by
//! mistake gets into the channel. Non-blocking mode belongs to the open file, which other processes
//! may share: what it was is put back when the stream is dropped (so end by returning from `main`, not by
//! `std::process::exit`).

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, IsTerminal as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, OFlags};
use rustix::net::{SendAncillaryBuffer, SendFlags, Shutdown};

use crate::Stream;

/// Size asked for pipes, in bytes: their usual 64 KiB means a wake-up for each.
const PIPE_SIZE: usize = 1024 * 1024;

/// Lowest descriptor number that is not a standard stream.
const FIRST_FREE: i32 = 3;

/// A pair of pipes or sockets, or one socket, that carries the channel.
pub struct StdioStream {
    input: Channel,
    /// Absent once [`Stream::shutdown`] has closed it.
    output: Option<Channel>,
}

/// One open file, non-blocking, with what it was like before.
struct Channel {
    fd: OwnedFd,
    socket: bool,
    flags: OFlags,
}

/// Takes the standard input and output of this process. An error, with everything left as it was, unless both are pipes or
/// sockets.
pub fn take() -> io::Result<(OwnedFd, OwnedFd)> {
    let null = File::open("/dev/null")?;
    let input = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), FIRST_FREE)?;
    let output = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), FIRST_FREE)?;
    look_at(&input, "input")?;
    look_at(&output, "output")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(rustix::stdio::stderr())?;
    Ok((input, output))
}

impl StdioStream {
    /// As [`take`], as a stream.
    pub fn take() -> io::Result<Self> {
        let (input, output) = take()?;
        Self::new(input, output)
    }

    /// A stream over a pair of descriptors, which may be of one socket.
    pub fn new(input: OwnedFd, output: OwnedFd) -> io::Result<Self> {
        // Both looked at before either is changed: they may be the same open file.
        let (input_kind, output_kind) = (look_at(&input, "input")?, look_at(&output, "output")?);
        let input = Channel::start(input, input_kind)?;
        let output = Channel::start(output, output_kind)?;
        Ok(Self {
            input,
            output: Some(output),
        })
    }
}

/// Whether it is a socket, and its flags; an error where it can't carry the channel.
fn look_at(fd: &OwnedFd, which: &str) -> io::Result<(bool, OFlags)> {
    let what = match FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode) {
        FileType::Socket => return Ok((true, rustix::fs::fcntl_getfl(fd)?)),
        FileType::Fifo => return Ok((false, rustix::fs::fcntl_getfl(fd)?)),
        FileType::RegularFile => "a file",
        _ if fd.is_terminal() => "a terminal",
        _ => "neither a pipe nor a socket",
    };
    Err(io::Error::new(
        io::ErrorKind::InvalidInput,
        format!(
            "standard {which} is {what}: serving on standard streams needs a program at the other end, as in \
             `dst attach 'dst+exec:///disk?command=ssh%20storage%20dst%20serve%20--stdio%20disk.img'`"
        ),
    ))
}

impl Channel {
    fn start(fd: OwnedFd, (socket, flags): (bool, OFlags)) -> io::Result<Self> {
        if !socket {
            // As large as the system's limits let it be; the channel works with any size.
            let _ = rustix::pipe::fcntl_setpipe_size(&fd, PIPE_SIZE);
        }
        rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
        Ok(Self { fd, socket, flags })
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        let _ = rustix::fs::fcntl_setfl(&self.fd, self.flags);
    }
}

impl Stream for StdioStream {
    fn fd(&self) -> BorrowedFd<'_> {
        self.input.fd.as_fd()
    }

    fn write_fd(&self) -> BorrowedFd<'_> {
        self.output.as_ref().unwrap_or(&self.input).fd.as_fd()
    }

    fn read_vectored(&mut self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        Ok(rustix::io::retry_on_intr(|| {
            rustix::io::readv(&self.input.fd, bufs)
        })?)
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let output = self.output.as_ref().ok_or(io::ErrorKind::BrokenPipe)?;
        let written = if output.socket {
            let mut no_control = SendAncillaryBuffer::default();
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            rustix::io::retry_on_intr(|| {
                rustix::net::sendmsg(&output.fd, bufs, &mut no_control, flags)
            })
        } else {
            // Raises SIGPIPE where a program has undone what the Rust runtime sets, which is to ignore it.
            rustix::io::retry_on_intr(|| rustix::io::writev(&output.fd, bufs))
        };
        Ok(written?)
    }

    fn shutdown(&mut self) {
        if let Some(output) = self.output.take() {
            if output.socket {
                // Input may be the same socket, and other processes may hold it too: closing would say nothing.
                let _ = rustix::net::shutdown(&output.fd, Shutdown::Write);
            }
            // Where they are one open file, input goes on without blocking.
            drop(output);
            let _ = rustix::fs::fcntl_setfl(&self.input.fd, self.input.flags | OFlags::NONBLOCK);
        }
    }

    fn peer(&self) -> String {
        "standard streams".to_owned()
    }

    fn is_local(&self) -> bool {
        true
    }

    fn is_trusted(&self) -> bool {
        true
    }
}
