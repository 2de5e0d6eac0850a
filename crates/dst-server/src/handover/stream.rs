//! A stream that was handed over: two descriptors, and the socket to the process that they came with.
//!
//! What is to be waited on for reading is an epoll of its own, with the input and that socket: so the end of the process wakes
//! whoever serves the stream, wherever that is, and is the end of the stream for it, once what had come before is read.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

use dst_net::{Interest, Poller, StdioStream, Stream, Waker};
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::net::SendFlags;

use super::desk::answer;
use super::{Answer, ENDED};

/// How many streams there are that were handed over.
#[derive(Clone)]
pub(crate) struct Count {
    number: Arc<AtomicUsize>,
    /// Woken when there is one less.
    waker: Waker,
}

impl Count {
    pub fn new(waker: Waker) -> Self {
        let number = Arc::default();
        Self { number, waker }
    }

    /// None is left. What one of them began before it ended is visible to who has seen this.
    pub fn is_zero(&self) -> bool {
        self.number.load(Ordering::Acquire) == 0
    }
}

/// One of them, for as long as it exists.
struct Counted(Count);

impl Counted {
    fn new(count: &Count) -> Self {
        count.number.fetch_add(1, Ordering::AcqRel);
        Self(count.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.number.fetch_sub(1, Ordering::AcqRel);
        self.0.waker.wake();
    }
}

/// The socket to the carrier, which is told of the end.
struct Leash {
    socket: OwnedFd,
}

impl Drop for Leash {
    fn drop(&mut self) {
        // One that has gone need not know.
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let _ = rustix::net::send(&self.socket, ENDED, flags);
    }
}

/// See the [module](self). The fields are dropped in this order: the streams are closed, and blocking again, before the
/// carrier is told, and it is told before it counts as gone.
pub(crate) struct HandedStream {
    stream: StdioStream,
    either: Poller,
    leash: Leash,
    _counted: Counted,
    peer: String,
}

impl HandedStream {
    /// A stream over what process `pid` has sent.
    ///
    /// # Errors
    /// The descriptors are no stream.
    pub fn new(
        input: OwnedFd,
        output: OwnedFd,
        carrier: OwnedFd,
        pid: i32,
        count: &Count,
    ) -> Result<Self, (io::Error, OwnedFd)> {
        let start = || {
            let stream = StdioStream::new(input, output)?;
            let either = Poller::new()?;
            either.add(stream.fd(), 0, Interest::READ)?;
            either.add(carrier.as_fd(), 1, Interest::READ)?;
            Ok((stream, either))
        };
        match start() {
            Ok((stream, either)) => Ok(Self {
                stream,
                either,
                leash: Leash { socket: carrier },
                _counted: Counted::new(count),
                peer: format!("standard streams of process {pid}"),
            }),
            Err(error) => Err((error, carrier)),
        }
    }

    /// Tells the carrier what it is waiting for.
    pub(super) fn tell(&self, what: &Answer) -> io::Result<()> {
        answer(&self.leash.socket, what)
    }

    fn carrier_is_gone(&self) -> bool {
        let mut fds = [PollFd::new(&self.leash.socket, PollFlags::IN)];
        let ready = poll(&mut fds, Some(&Timespec::default()));
        // It has nothing more to say, so whatever comes is its end.
        ready.is_ok_and(|ready| ready > 0)
    }
}

impl Stream for HandedStream {
    fn fd(&self) -> BorrowedFd<'_> {
        self.either.as_fd()
    }

    fn write_fd(&self) -> BorrowedFd<'_> {
        self.stream.write_fd()
    }

    fn read_vectored(&mut self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        match self.stream.read_vectored(bufs) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && self.carrier_is_gone() => {
                let text = format!("the process of the {} has ended", self.peer);
                Err(io::Error::new(io::ErrorKind::UnexpectedEof, text))
            }
            other => other,
        }
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.stream.write_vectored(bufs)
    }

    fn shutdown(&mut self) {
        self.stream.shutdown();
    }

    fn peer(&self) -> String {
        self.peer.clone()
    }

    fn is_local(&self) -> bool {
        self.stream.is_local()
    }

    fn is_trusted(&self) -> bool {
        self.stream.is_trusted()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dst_net::Event;
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;

    fn handed() -> (HandedStream, UnixStream, UnixStream, Count) {
        let (far, near) = UnixStream::pair().unwrap();
        let (carrier, leash) = UnixStream::pair().unwrap();
        let count = Count::new(Waker::new().unwrap());
        let output = near.try_clone().unwrap();
        let stream = HandedStream::new(near.into(), output.into(), leash.into(), 1, &count);
        let Ok(stream) = stream else {
            panic!("no stream");
        };
        (stream, far, carrier, count)
    }

    fn wait(stream: &HandedStream) -> Vec<Event> {
        let poller = Poller::new().unwrap();
        poller.add(stream.fd(), 7, Interest::READ).unwrap();
        let mut events = Vec::new();
        poller.wait(None, &mut events).unwrap();
        events
    }

    #[test]
    fn the_end_of_the_carrier_ends_the_stream_after_what_had_come() {
        let (mut stream, mut far, carrier, _count) = handed();
        let mut byte = [0];
        let error = stream.read(&mut byte).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        far.write_all(b"x").unwrap();
        drop(carrier);
        assert!(wait(&stream)[0].readable);
        assert_eq!(stream.read(&mut byte).unwrap(), 1);
        assert!(wait(&stream)[0].readable);
        let error = stream.read(&mut byte).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_stream_that_is_dropped_is_closed_and_its_carrier_told() {
        let (stream, mut far, mut carrier, count) = handed();
        assert!(!count.is_zero());
        drop(stream);
        assert!(count.is_zero());
        let mut told = Vec::new();
        carrier.read_to_end(&mut told).unwrap();
        assert_eq!(told, ENDED);
        assert_eq!(far.read(&mut [0]).unwrap(), 0);
    }
}
