//! Signals as something to poll: a count, and a descriptor that is readable once one has come.

use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// The signals that ask this process to end, from its creation on. Without it they end the process at once.
pub struct Signals {
    arrivals: UnixStream,
    seen: AtomicUsize,
    flag: Arc<AtomicBool>,
}

impl Signals {
    /// Takes over SIGINT, SIGTERM and, unless it is ignored, SIGHUP.
    ///
    /// # Errors
    /// The system is out of descriptors.
    pub fn install() -> io::Result<Self> {
        let (arrivals, sender) = UnixStream::pair()?;
        arrivals.set_nonblocking(true)?;
        let flag = Arc::new(AtomicBool::new(false));
        // `nohup` has it ignored, and means it.
        let hangup = (!is_ignored(SIGHUP)).then_some(SIGHUP);
        for signal in [SIGINT, SIGTERM].into_iter().chain(hangup) {
            signal_hook::flag::register(signal, Arc::clone(&flag))?;
            signal_hook::low_level::pipe::register(signal, sender.try_clone()?)?;
        }
        Ok(Self {
            arrivals,
            seen: AtomicUsize::new(0),
            flag,
        })
    }

    /// How many have come so far.
    #[must_use]
    pub fn count(&self) -> usize {
        let mut bytes = [0; 64];
        while let Ok(read @ 1..) = (&self.arrivals).read(&mut bytes) {
            self.seen.fetch_add(read, Ordering::Relaxed);
        }
        self.seen.load(Ordering::Relaxed)
    }

    /// Set by the first one. For loops that must not pay a system call.
    #[must_use]
    pub fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.flag)
    }

    /// Waits until `fd` is readable, one more signal than `known` has come, or time is up; true in the first case.
    ///
    /// # Errors
    /// `poll` fails.
    pub fn wait_readable(
        &self,
        fd: BorrowedFd<'_>,
        until: Option<Instant>,
        known: usize,
    ) -> io::Result<bool> {
        loop {
            if self.count() > known {
                return Ok(false);
            }
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            let mut fds = [
                PollFd::from_borrowed_fd(fd, PollFlags::IN),
                PollFd::new(&self.arrivals, PollFlags::IN),
            ];
            match rustix::event::poll(&mut fds, left.map(timespec).as_ref()) {
                Ok(0) => return Ok(false),
                Ok(_) if !fds[0].revents().is_empty() => return Ok(true),
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Waits until one has come, or until then; true in the first case.
    pub fn wait_until(&self, until: Instant) -> bool {
        loop {
            if self.count() > 0 {
                return true;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let mut fds = [PollFd::new(&self.arrivals, PollFlags::IN)];
            // A signal may interrupt it, and is counted then.
            let _ = rustix::event::poll(&mut fds, Some(&timespec(left)));
        }
    }

    /// Waits until more than `known` have come.
    pub fn wait(&self, known: usize) {
        while self.count() <= known {
            let mut fds = [PollFd::new(&self.arrivals, PollFlags::IN)];
            // Nothing but a signal interrupts it, and that is what is waited for.
            let _ = rustix::event::poll(&mut fds, None);
        }
    }
}

impl AsFd for Signals {
    /// Readable when [`Signals::count`] has something new.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.arrivals.as_fd()
    }
}

/// Whether this process was started with the signal ignored, or ignores it now.
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    // Signal 1 is the lowest bit.
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

fn timespec(time: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(time.subsec_nanos()),
    }
}

/// Held by tests that raise signals: a signal comes to everybody in the process.
#[cfg(test)]
pub static RAISING: std::sync::Mutex<()> = std::sync::Mutex::new(());

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_known() {
        // The runtime ignores the first one.
        assert!(is_ignored(signal_hook::consts::SIGPIPE));
        assert!(!is_ignored(signal_hook::consts::SIGUSR2));
    }

    #[test]
    fn signals_are_counted_and_wake_a_wait() {
        let _alone = RAISING.lock();
        let signals = Signals::install().unwrap();
        let (near, mut far) = UnixStream::pair().unwrap();
        let soon = || Some(Instant::now() + Duration::from_millis(1));
        assert!(!signals.wait_readable(near.as_fd(), soon(), 0).unwrap());
        assert!(!signals.flag().load(Ordering::Relaxed));

        io::Write::write_all(&mut far, b"x").unwrap();
        assert!(signals.wait_readable(near.as_fd(), None, 0).unwrap());

        signal_hook::low_level::raise(SIGTERM).unwrap();
        assert!(!signals.wait_readable(near.as_fd(), None, 0).unwrap());
        signal_hook::low_level::raise(SIGTERM).unwrap();
        assert_eq!(signals.count(), 2);
        assert!(signals.flag().load(Ordering::Relaxed));
    }
}
