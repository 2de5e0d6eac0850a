//! Replies on their way to the kernel: queued, and written many at a time.
//!
//! A reply that has begun is always finished, since the kernel takes the bytes behind its header for the data that were
//! asked for. The bytes of a READ stay in the buffer in which they came from the server.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;

use dst_buf::Shared;
use rustix::io::Errno;
use rustix::net::SendFlags;

use super::wire::{self, NbdError, REPLY_LEN};

/// Replies that one system call takes.
const BATCH: usize = 64;

/// How far the queue came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pushed {
    /// All has been written.
    All,
    /// The socket takes no more now.
    Blocked,
    /// The kernel has closed the connection.
    Closed,
}

/// A reply; or what follows of the data of the one before, without a header.
#[derive(Debug)]
struct Answer {
    header: Option<[u8; REPLY_LEN]>,
    data: Option<Shared>,
}

impl Answer {
    fn parts(&self) -> [&[u8]; 2] {
        let header = self.header.as_ref().map_or(&[][..], |header| header);
        [header, self.data.as_deref().unwrap_or_default()]
    }

    fn len(&self) -> usize {
        self.parts().iter().map(|part| part.len()).sum()
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Output {
    queue: VecDeque<Answer>,
    /// Bytes of the first one that have been written.
    written: usize,
}

impl Output {
    /// For as many replies as there are requests at once.
    pub(super) fn new(depth: usize) -> Output {
        Output {
            queue: VecDeque::with_capacity(depth),
            written: 0,
        }
    }

    /// Drops every reply, also one that has begun: nobody reads any more.
    pub(super) fn clear(&mut self) {
        self.queue.clear();
        self.written = 0;
    }

    /// Queues a reply.
    pub(super) fn push(&mut self, cookie: u64, result: Result<Option<Shared>, NbdError>) {
        let (error, data) = match result {
            Ok(data) => (None, data),
            Err(error) => (Some(error), None),
        };
        self.queue.push_back(Answer {
            header: Some(wire::reply(cookie, error)),
            data,
        });
    }

    /// Queues the reply to a READ whose bytes came in `pieces`.
    pub(super) fn push_pieces(&mut self, cookie: u64, pieces: impl IntoIterator<Item = Shared>) {
        self.push(cookie, Ok(None));
        self.queue.extend(pieces.into_iter().map(|data| Answer {
            header: None,
            data: Some(data),
        }));
    }

    /// Writes what the socket takes without blocking.
    ///
    /// # Errors
    /// What the socket says, unless it is an end of the connection.
    pub(super) fn write(&mut self, socket: BorrowedFd<'_>) -> io::Result<Pushed> {
        while !self.queue.is_empty() {
            match self.write_once(socket) {
                Ok(written) => self.forget(written),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(Pushed::Blocked),
                Err(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => return Ok(Pushed::Closed),
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(Pushed::All)
    }

    fn write_once(&self, socket: BorrowedFd<'_>) -> rustix::io::Result<usize> {
        let mut parts = [IoSlice::new(&[]); 2 * BATCH];
        let mut skip = self.written;
        let slices = self.queue.iter().take(BATCH).flat_map(Answer::parts);
        for (part, slice) in parts.iter_mut().zip(slices) {
            // Only the first answer has been begun.
            let (_, rest) = slice.split_at(skip.min(slice.len()));
            skip -= slice.len() - rest.len();
            *part = IoSlice::new(rest);
        }
        let used = parts
            .get(..2 * self.queue.len().min(BATCH))
            .unwrap_or_default();
        let mut nothing = rustix::net::SendAncillaryBuffer::default();
        rustix::net::sendmsg(socket, used, &mut nothing, SendFlags::NOSIGNAL)
    }

    /// Drops what has been written.
    fn forget(&mut self, written: usize) {
        self.written += written;
        while let Some(first) = self.queue.front() {
            if self.written < first.len() {
                break;
            }
            self.written -= first.len();
            self.queue.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use dst_buf::Pool;

    use super::super::wire::tests::read_reply;
    use super::*;

    #[test]
    fn replies_arrive_whole_and_in_order_however_little_the_socket_takes() {
        let (ours, mut kernel) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let pool = Pool::new(1 << 20);
        let mut output = Output::new(1);
        let sizes: Vec<usize> = (0..300).map(|i| [0, 5000, 300_000, 1][i % 4]).collect();
        for (cookie, &size) in sizes.iter().enumerate() {
            let mut data = pool.get(size);
            data.fill(cookie as u8);
            let data = (size > 0).then(|| data.share());
            match data {
                // Every second long one in pieces.
                Some(data) if cookie % 8 == 2 => {
                    let pieces = [0..100_000, 100_000..100_001, 100_001..size];
                    let pieces = pieces.map(|piece| data.slice(piece));
                    output.push_pieces(cookie as u64, pieces);
                }
                data => output.push(cookie as u64, Ok(data)),
            }
        }
        output.push(7, Err(NbdError::Io));
        assert_eq!(output.write(ours.as_fd()).unwrap(), Pushed::Blocked);
        let reader = std::thread::spawn(move || {
            for (cookie, &size) in sizes.iter().enumerate() {
                let mut bytes = vec![0; REPLY_LEN + size];
                kernel.read_exact(&mut bytes).unwrap();
                assert_eq!(read_reply(&bytes), (cookie as u64, 0));
                assert!(bytes[REPLY_LEN..].iter().all(|b| *b == cookie as u8));
            }
            let mut last = [0; REPLY_LEN];
            kernel.read_exact(&mut last).unwrap();
            assert_eq!(read_reply(&last), (7, 5));
        });
        while output.write(ours.as_fd()).unwrap() == Pushed::Blocked {
            let mut fds = [rustix::event::PollFd::new(
                &ours,
                rustix::event::PollFlags::OUT,
            )];
            rustix::event::poll(&mut fds, None).unwrap();
        }
        reader.join().unwrap();
        assert_eq!(pool.outstanding_bytes(), 0);
        output.push(1, Ok(None));
        assert_eq!(output.write(ours.as_fd()).unwrap(), Pushed::Closed);
    }
}
