//! A command as transport: its standard input and output are the channel (`ssh host dst serve --stdio ...`).
//!
//! The command line is split into words as a POSIX shell would, with nothing expanded, and run directly: no shell, so
//! no surprise from quoting twice; who wants one writes `sh -c '...'`. Its standard input and output are one Unix
//! socket; it runs in a process group of its own, out of reach of the terminal's Ctrl-C. So it can't ask anything
//! either: `ssh` needs a key that works without (`-o BatchMode=yes` turns questions into errors).
//!
//! Standard error is read all the time by a thread (a full pipe would stop the command) and its last lines are kept
//! for the message when the stream ends.
//!
//! **Life of the process.** It is waited for only after the stream has been dropped: until then its id, and the
//! process group's, can't be used again, so that killing them hits nobody else. Dropping the stream kills the group
//! and lets the thread reap the command, and waits a moment for that; a process that the kernel can't end at once is
//! reaped later, without holding up the caller. A peer that should get everything first is given time by
//! [`Stream::shutdown`] and reading to the end.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};

use crate::poller::Waker;
use crate::socket::SocketStream;
use crate::{Stream, Transport};

/// Lines of standard error kept.
const LINES: usize = 10;
/// Bytes kept of each.
const LINE: usize = 200;
/// Reads of standard error in a row, so that a command that writes without end can't hold a caller.
const READS: usize = 64;
/// How long a drop waits until the killed command is reaped.
const REAP_TIMEOUT: Duration = Duration::from_millis(500);
/// How long a command that has closed its output may take to exit, for the message that says why.
const EXIT_TIMEOUT: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// Runs a command for each connection.
pub struct ExecTransport {
    words: Vec<String>,
}

impl ExecTransport {
    /// `words`: the program, found through `PATH`, and its arguments.
    pub fn new(words: Vec<String>) -> Self {
        Self { words }
    }
}

impl Transport for ExecTransport {
    /// Starts the command. Whether it gets anywhere is seen when its output is read.
    fn connect(&self, _timeout: Duration) -> io::Result<Box<dyn Stream>> {
        Ok(Box::new(ExecStream::spawn(&self.words)?))
    }

    fn describe(&self) -> String {
        format!("command `{}`", self.words.join(" "))
    }

    fn is_local(&self) -> bool {
        true
    }

    fn is_trusted(&self) -> bool {
        true
    }
}

/// The channel to a running command.
struct ExecStream {
    socket: SocketStream,
    /// The command, and its process group.
    process: Pid,
    errors: Arc<ErrorOutput>,
    /// Tells the watching thread that the stream has been dropped.
    dropped: Waker,
    /// Closed by that thread once the command is reaped.
    reaped: Receiver<()>,
}

impl ExecStream {
    fn spawn(words: &[String]) -> io::Result<Self> {
        let (program, arguments) = words
            .split_first()
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "an empty command"))?;
        let (near, far) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )?;
        let dropped = Waker::new()?;
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(far.try_clone()?)
            .stdout(far)
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|e| io::Error::new(e.kind(), format!("can't run `{program}`: {e}")))?;
        let process = Pid::from_child(&child);
        Self::watch(
            near,
            child.stderr.take().map(OwnedFd::from),
            child,
            words,
            dropped,
        )
        .inspect_err(|_| {
            // The child was handed on and is not waited for by anyone else.
            kill_group(process);
            let _ = rustix::process::waitpid(Some(process), rustix::process::WaitOptions::empty());
        })
    }

    /// Puts a thread beside the new process and makes the stream.
    fn watch(
        socket: OwnedFd,
        stderr: Option<OwnedFd>,
        child: Child,
        words: &[String],
        dropped: Waker,
    ) -> io::Result<Self> {
        let process = Pid::from_child(&child);
        let name = format!(
            "command `{}` (process {})",
            words.join(" "),
            process.as_raw_nonzero()
        );
        let stderr = stderr.ok_or_else(|| io::Error::other("no standard error"))?;
        rustix::io::ioctl_fionbio(&stderr, true)?;
        let errors = Arc::new(ErrorOutput {
            pipe: stderr,
            tail: Mutex::default(),
        });
        let socket = SocketStream::new(socket, name, true, true)?;
        let (reaper, reaped) = mpsc::channel();
        let (thread_errors, thread_dropped) = (Arc::clone(&errors), dropped.clone());
        std::thread::Builder::new()
            .name("dst-exec".to_owned())
            .spawn(move || {
                collect_until_dropped(&thread_errors, &thread_dropped);
                let mut child = child;
                let _ = child.wait();
                drop(reaper);
            })?;
        Ok(Self {
            socket,
            process,
            errors,
            dropped,
            reaped,
        })
    }

    /// Why the stream has ended, as far as the command tells.
    fn ended(&self, kind: io::ErrorKind) -> io::Error {
        let mut text = format!("{} ended", self.socket.peer());
        if let Some(status) = self.exit_status() {
            let _ = write!(text, " ({status})");
        }
        self.errors.collect();
        let tail = self.errors.text();
        if !tail.is_empty() {
            let _ = write!(text, ": {tail}");
        }
        io::Error::new(kind, text)
    }

    /// How the process ended, without reaping it; waits a moment, since its output closes shortly before it ends.
    fn exit_status(&self) -> Option<String> {
        if let Ok(handle) = rustix::process::pidfd_open(self.process, PidfdFlags::empty()) {
            let _ = rustix::event::poll(
                &mut [PollFd::new(&handle, PollFlags::IN)],
                Some(&EXIT_TIMEOUT),
            );
        }
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let status = rustix::process::waitid(WaitId::Pid(self.process), options).ok()??;
        match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Some(format!("exit status {code}")),
            (None, Some(signal)) => Some(format!("signal {signal}")),
            (None, None) => None,
        }
    }
}

fn kill_group(leader: Pid) {
    // Fails where all of it has ended by itself.
    let _ = rustix::process::kill_process_group(leader, Signal::KILL);
}

impl Drop for ExecStream {
    fn drop(&mut self) {
        kill_group(self.process);
        self.dropped.wake();
        // Ends with the closing of the channel, or by time.
        let _ = self.reaped.recv_timeout(REAP_TIMEOUT);
    }
}

impl Stream for ExecStream {
    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.fd()
    }

    fn write_fd(&self) -> BorrowedFd<'_> {
        self.socket.write_fd()
    }

    fn read_vectored(&mut self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        match self.socket.read_vectored(bufs) {
            Ok(0) if bufs.iter().any(|b| !b.is_empty()) => {
                Err(self.ended(io::ErrorKind::UnexpectedEof))
            }
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => {
                Err(self.ended(io::ErrorKind::UnexpectedEof))
            }
            other => other,
        }
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        match self.socket.write_vectored(bufs) {
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
                ) =>
            {
                Err(self.ended(e.kind()))
            }
            other => other,
        }
    }

    fn shutdown(&mut self) {
        self.socket.shutdown();
    }

    fn peer(&self) -> String {
        self.socket.peer()
    }

    fn is_local(&self) -> bool {
        self.socket.is_local()
    }

    fn is_trusted(&self) -> bool {
        self.socket.is_trusted()
    }
}

/// Standard error of the command: the thread takes what comes, and whoever writes a message takes the rest.
struct ErrorOutput {
    pipe: OwnedFd,
    tail: Mutex<Tail>,
}

/// The last lines, each cut to [`LINE`] bytes.
#[derive(Default)]
struct Tail {
    lines: VecDeque<String>,
    partial: Vec<u8>,
}

impl ErrorOutput {
    /// Takes what is in the pipe; `false` at its end.
    fn collect(&self) -> bool {
        let mut tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        let mut chunk = [0; 1024];
        for _ in 0..READS {
            match rustix::io::read(&self.pipe, &mut chunk) {
                Ok(0) => return false,
                Ok(n) => tail.add(&chunk[..n]),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => return false,
            }
        }
        true
    }

    fn text(&self) -> String {
        self.tail
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .text()
    }
}

impl Tail {
    fn add(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte == b'\n' {
                self.end_line();
            } else if self.partial.len() < LINE {
                self.partial.push(byte);
            }
        }
    }

    fn end_line(&mut self) {
        let line = printable(&self.partial);
        self.partial.clear();
        if line.is_empty() {
            return;
        }
        if self.lines.len() == LINES {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }

    fn text(&self) -> String {
        let last = printable(&self.partial);
        let lines = self
            .lines
            .iter()
            .map(String::as_str)
            .chain(Some(last.as_str()).filter(|l| !l.is_empty()));
        lines.collect::<Vec<_>>().join("; ")
    }
}

/// What a stranger's program printed, fit for a message on a terminal.
fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect::<String>()
        .trim()
        .to_owned()
}

/// The body of the watching thread: returns once the stream is dropped.
fn collect_until_dropped(errors: &ErrorOutput, dropped: &Waker) {
    let mut open = true;
    loop {
        let dropped_fd = dropped.fd();
        let mut fds = [
            PollFd::new(&dropped_fd, PollFlags::IN),
            PollFd::new(&errors.pipe, PollFlags::IN),
        ];
        let watched = if open { &mut fds[..] } else { &mut fds[..1] };
        match rustix::event::poll(watched, None) {
            Ok(_) | Err(Errno::INTR) => {}
            // Without poll there is nothing to wait with; the drop still kills and this thread still reaps.
            Err(_) => return,
        }
        if !watched[0].revents().is_empty() {
            return;
        }
        open = open && errors.collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_kept_and_long_ones_cut() {
        let mut tail = Tail::default();
        tail.add(b"first\n\n");
        for n in 0..LINES {
            tail.add(format!("line {n}\n").as_bytes());
        }
        tail.add(&vec![b'x'; 10 * LINE]);
        let text = tail.text();
        assert!(text.starts_with("line 0; line 1;"), "{text}");
        assert!(text.ends_with(&format!("; {}", "x".repeat(LINE))), "{text}");
        assert!(tail.lines.len() == LINES && tail.partial.len() == LINE);
    }

    #[test]
    fn escape_sequences_and_broken_text_are_made_printable() {
        let mut tail = Tail::default();
        tail.add(b"\x1b[31mred\xff\r\nnext");
        assert_eq!(tail.text(), "[31mred\u{fffd}; next");
    }
}
