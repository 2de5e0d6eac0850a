//! Waiting for descriptors: a small wrapper of `epoll(7)`, level-triggered, and a way to wake it from other threads.
//!
//! Level-triggered: an event comes again until its cause is gone, so a loop may stop halfway and go on next time. A
//! descriptor must be removed before it is closed where a duplicate of it stays open.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{epoll, EventfdFlags, Timespec};
use rustix::io::Errno;

/// Events taken by one wait.
const BATCH: usize = 64;

/// Longest single wait. Longer ones end early, with no event, as any wait may; it keeps within what `epoll_wait`
/// takes.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// What to wait for. With neither, only errors and hang-ups are reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interest {
    /// Bytes, a connection or the end of the stream to read.
    pub read: bool,
    /// Room to write.
    pub write: bool,
}

impl Interest {
    /// Reading only.
    pub const READ: Self = Self {
        read: true,
        write: false,
    };
    /// Writing only.
    pub const WRITE: Self = Self {
        read: false,
        write: true,
    };
    /// Both.
    pub const BOTH: Self = Self {
        read: true,
        write: true,
    };
    /// Only errors and hang-ups, which are always reported.
    pub const NONE: Self = Self {
        read: false,
        write: false,
    };

    fn flags(self) -> epoll::EventFlags {
        let mut flags = epoll::EventFlags::empty();
        flags.set(epoll::EventFlags::IN | epoll::EventFlags::RDHUP, self.read);
        flags.set(epoll::EventFlags::OUT, self.write);
        flags
    }
}

/// What happened to one descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// As given to [`Poller::add`].
    pub token: u64,
    /// A read won't block. Set for errors and hang-ups too: the read says what it was.
    pub readable: bool,
    /// A write won't block. Set for errors and hang-ups too.
    pub writable: bool,
    /// The descriptor has an error or both directions are closed. Comes whatever the interest, so a loop that has no
    /// interest in the descriptor must remove it now or it will spin.
    pub hangup: bool,
}

/// A set of descriptors to wait on.
#[derive(Debug)]
pub struct Poller {
    epoll: OwnedFd,
}

impl Poller {
    /// An empty set.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
        })
    }

    /// Adds a descriptor; its events carry `token`. An error if it is in the set already.
    pub fn add(&self, fd: BorrowedFd<'_>, token: u64, interest: Interest) -> io::Result<()> {
        Ok(epoll::add(
            &self.epoll,
            fd,
            epoll::EventData::new_u64(token),
            interest.flags(),
        )?)
    }

    /// Changes token and interest of a descriptor in the set.
    pub fn modify(&self, fd: BorrowedFd<'_>, token: u64, interest: Interest) -> io::Result<()> {
        Ok(epoll::modify(
            &self.epoll,
            fd,
            epoll::EventData::new_u64(token),
            interest.flags(),
        )?)
    }

    /// Takes a descriptor out of the set. Events of it that a wait has returned already are the caller's to ignore.
    pub fn remove(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        Ok(epoll::delete(&self.epoll, fd)?)
    }

    /// Waits for events, up to `timeout` (`None`: without limit), and puts them into `events`, which is cleared
    /// first. Returning with none means that time is up or a signal came.
    pub fn wait(&self, timeout: Option<Duration>, events: &mut Vec<Event>) -> io::Result<()> {
        events.clear();
        let timeout = timeout.map(|t| {
            let t = t.min(LONGEST_WAIT);
            Timespec {
                tv_sec: i64::try_from(t.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(t.subsec_nanos()),
            }
        });
        let mut taken = [MaybeUninit::<epoll::Event>::uninit(); BATCH];
        let (taken, _) = match epoll::wait(&self.epoll, &mut taken, timeout.as_ref()) {
            Ok(taken) => taken,
            Err(Errno::INTR) => return Ok(()),
            Err(e) => return Err(e.into()),
        };
        events.extend(taken.iter().map(|event| {
            let flags = event.flags;
            let hangup = flags.intersects(epoll::EventFlags::ERR | epoll::EventFlags::HUP);
            Event {
                token: event.data.u64(),
                readable: hangup
                    || flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::RDHUP),
                writable: hangup || flags.contains(epoll::EventFlags::OUT),
                hangup,
            }
        }));
        Ok(())
    }
}

impl AsFd for Poller {
    /// Readable when an event is there, so that a poller can be waited on by another.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

/// Wakes a poller from any thread. Clones wake the same one.
#[derive(Debug, Clone)]
pub struct Waker {
    event: Arc<OwnedFd>,
}

impl Waker {
    /// A new one; add [`Waker::fd`] to the poller with an interest in reading.
    pub fn new() -> io::Result<Self> {
        let event = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self {
            event: Arc::new(event),
        })
    }

    /// Makes the descriptor readable; never blocks.
    pub fn wake(&self) {
        // Fails only where the counter is at its end, and then it is readable.
        let _ = rustix::io::write(&*self.event, &1_u64.to_ne_bytes());
    }

    /// Takes back all wake-ups so far. What they were about must be looked at after this, not before.
    pub fn clear(&self) {
        // Fails only where there was none.
        let _ = rustix::io::read(&*self.event, &mut [0_u8; 8]);
    }

    /// Readable from the first wake-up on, until cleared.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;

    const AT_ONCE: Option<Duration> = Some(Duration::ZERO);

    #[test]
    fn events_carry_their_token_until_their_cause_is_gone() {
        let (mut near, mut far) = UnixStream::pair().unwrap();
        let poller = Poller::new().unwrap();
        let mut events = Vec::new();
        poller.add(near.as_fd(), u64::MAX, Interest::READ).unwrap();
        poller.wait(AT_ONCE, &mut events).unwrap();
        assert_eq!(events, []);

        far.write_all(b"x").unwrap();
        let event = Event {
            token: u64::MAX,
            readable: true,
            writable: false,
            hangup: false,
        };
        for _ in 0..2 {
            poller.wait(None, &mut events).unwrap();
            assert_eq!(events, [event], "level-triggered");
        }
        near.read_exact(&mut [0]).unwrap();
        poller.wait(AT_ONCE, &mut events).unwrap();
        assert_eq!(events, []);
    }

    #[test]
    fn interest_can_be_changed_and_taken_back() {
        let (near, _far) = UnixStream::pair().unwrap();
        let poller = Poller::new().unwrap();
        let mut events = Vec::new();
        poller.add(near.as_fd(), 1, Interest::READ).unwrap();
        poller.modify(near.as_fd(), 2, Interest::BOTH).unwrap();
        poller.wait(AT_ONCE, &mut events).unwrap();
        assert_eq!(
            events,
            [Event {
                token: 2,
                readable: false,
                writable: true,
                hangup: false
            }]
        );
        poller.remove(near.as_fd()).unwrap();
        poller.wait(AT_ONCE, &mut events).unwrap();
        assert_eq!(events, []);
        assert!(poller.remove(near.as_fd()).is_err());
    }

    #[test]
    fn a_closed_peer_is_reported_even_without_interest() {
        let (near, far) = UnixStream::pair().unwrap();
        let poller = Poller::new().unwrap();
        let mut events = Vec::new();
        poller.add(near.as_fd(), 3, Interest::NONE).unwrap();
        drop(far);
        poller.wait(None, &mut events).unwrap();
        assert_eq!(
            events,
            [Event {
                token: 3,
                readable: true,
                writable: true,
                hangup: true
            }]
        );
    }

    #[test]
    fn a_waker_wakes_from_another_thread_and_is_cleared_at_once() {
        let waker = Waker::new().unwrap();
        let poller = Poller::new().unwrap();
        let mut events = Vec::new();
        poller.add(waker.fd(), 7, Interest::READ).unwrap();
        let other = waker.clone();
        std::thread::spawn(move || {
            other.wake();
            other.wake();
        })
        .join()
        .unwrap();
        poller.wait(None, &mut events).unwrap();
        assert!(events[0].token == 7 && events[0].readable);
        waker.clear();
        poller.wait(AT_ONCE, &mut events).unwrap();
        assert_eq!(events, []);
    }

    #[test]
    fn a_wait_ends_in_time_and_takes_any_timeout() {
        let poller = Poller::new().unwrap();
        let mut events = vec![Event {
            token: 0,
            readable: true,
            writable: true,
            hangup: true,
        }];
        poller
            .wait(Some(Duration::from_micros(1)), &mut events)
            .unwrap();
        assert_eq!(events, []);
        let waker = Waker::new().unwrap();
        waker.wake();
        poller.add(waker.fd(), 0, Interest::READ).unwrap();
        poller.wait(Some(Duration::MAX), &mut events).unwrap();
        assert_eq!(events.len(), 1);
    }
}
