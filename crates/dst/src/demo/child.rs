//! Running other programs, and blocking work, so that a signal or a time limit ends the wait.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{mpsc, Arc};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal};

use crate::exit::{Code, Failure, Outcome};
use crate::signals::Signals;

/// How long a program that is to end may take: `dst attach` has to clean up.
const ENDING: Duration = Duration::from_secs(8);

/// What a program did.
#[derive(Debug)]
pub struct Ran {
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to standard output.
    pub output: String,
    /// What it wrote to standard error.
    pub errors: String,
}

/// Waits for things, until a signal comes.
pub struct Runner<'a> {
    signals: &'a Signals,
    /// Signals that have come and are seen to already.
    known: usize,
    /// Blocking works that go on.
    beside: Arc<AtomicUsize>,
}

impl<'a> Runner<'a> {
    /// One that the first signal ends.
    #[must_use]
    pub fn new(signals: &'a Signals) -> Self {
        Self {
            signals,
            known: 0,
            beside: Arc::default(),
        }
    }

    /// The same, that no signal ends that has come so far, or none at all.
    #[must_use]
    pub fn steadfast(&self, against_all: bool) -> Runner<'a> {
        Runner {
            signals: self.signals,
            known: match against_all {
                true => usize::MAX,
                false => self.signals.count(),
            },
            beside: Arc::clone(&self.beside),
        }
    }

    /// Fails if a signal has come.
    ///
    /// # Errors
    /// `Interrupted`.
    pub fn check(&self) -> Outcome {
        match self.signals.count() > self.known {
            true => Err(Failure::interrupted()),
            false => Ok(()),
        }
    }

    /// Waits until `fd` is readable.
    ///
    /// # Errors
    /// `Interrupted`, or `what` took too long.
    pub fn wait_for(&self, fd: BorrowedFd<'_>, limit: Duration, what: &str) -> Outcome {
        let until = Instant::now() + limit;
        let ready = self
            .signals
            .wait_readable(fd, Some(until), self.known)
            .map_err(Failure::io("can't wait"))?;
        self.check()?;
        match ready {
            true => Ok(()),
            false => Err(Failure::new(
                Code::Other,
                format!("{what} took longer than {} s", limit.as_secs()),
            )),
        }
    }

    /// Waits for some time.
    ///
    /// # Errors
    /// `Interrupted`.
    pub fn sleep(&self, time: Duration) -> Outcome {
        let (quiet, _other) = UnixStream::pair().map_err(Failure::io("can't wait"))?;
        let until = Instant::now() + time;
        self.signals
            .wait_readable(quiet.as_fd(), Some(until), self.known)
            .map_err(Failure::io("can't wait"))?;
        self.check()
    }

    /// Runs a program to its end, in a process group of its own so that the terminal's signals come to this process alone.
    /// A signal ends the program first.
    ///
    /// # Errors
    /// It can't be run, `Interrupted`, or it took too long. That it failed is no error here.
    pub fn run(&self, command: &mut Command, limit: Duration) -> Outcome<Ran> {
        let what = command.get_program().to_string_lossy().into_owned();
        let mut output =
            tempfile::tempfile().map_err(Failure::io("can't make a temporary file"))?;
        let mut errors =
            tempfile::tempfile().map_err(Failure::io("can't make a temporary file"))?;
        let into = |file: &File| file.try_clone().map(Stdio::from);
        command
            .stdin(Stdio::null())
            .stdout(into(&output).map_err(Failure::io("out of descriptors"))?)
            .stderr(into(&errors).map_err(Failure::io("out of descriptors"))?)
            .process_group(0);
        let mut child = command
            .spawn()
            .map_err(Failure::io(format!("can't run {what}")))?;
        let process = pidfd(&child).map_err(Failure::io(format!("can't wait for {what}")))?;
        if let Err(failure) = self.wait_for(process.as_fd(), limit, &what) {
            end(&mut child, ENDING);
            return Err(failure);
        }
        let status = child
            .wait()
            .map_err(Failure::io(format!("can't wait for {what}")))?;
        Ok(Ran {
            status,
            output: contents(&mut output).map_err(Failure::io("can't read the output"))?,
            errors: contents(&mut errors).map_err(Failure::io("can't read the output"))?,
        })
    }

    /// As [`Runner::run`], for a program that must succeed; returns its standard output.
    ///
    /// # Errors
    /// It failed, too, with what it said.
    pub fn succeed(&self, command: &mut Command, limit: Duration) -> Outcome<String> {
        let ran = self.run(command, limit)?;
        if ran.status.success() {
            return Ok(ran.output);
        }
        let words: Vec<_> = std::iter::once(command.get_program())
            .chain(command.get_args())
            .map(|word| word.to_string_lossy())
            .collect();
        let mut said = ran.errors;
        said.push_str(&ran.output);
        Err(Failure::new(
            Code::Other,
            format!(
                "{} failed ({}): {}",
                words.join(" "),
                ran.status,
                said.trim()
            ),
        ))
    }

    /// Runs blocking work on a thread of its own. After a signal the thread goes on: see [`Runner::all_done`].
    ///
    /// # Errors
    /// That of the work, `Interrupted`, or it took too long.
    pub fn block<T: Send + 'static>(
        &self,
        what: &str,
        limit: Duration,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Outcome<T> {
        let task = self.start(what, work)?;
        self.finish(task, limit)
    }

    /// Starts blocking work on a thread of its own.
    ///
    /// # Errors
    /// There can be no thread.
    pub fn start<T: Send + 'static>(
        &self,
        what: &str,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Outcome<Task<T>> {
        let (done, done_here) = UnixStream::pair().map_err(Failure::io("out of descriptors"))?;
        let (sender, receiver) = mpsc::channel();
        let beside = Arc::clone(&self.beside);
        beside.fetch_add(1, Ordering::SeqCst);
        let counted = Counted(beside);
        std::thread::Builder::new()
            .name("beside".to_owned())
            .spawn(move || {
                let result = work();
                drop(counted);
                let _ = sender.send(result);
                drop(done);
            })
            .map_err(Failure::io("can't start a thread"))?;
        Ok(Task {
            what: what.to_owned(),
            done: done_here,
            receiver,
        })
    }

    /// Waits for the outcome of what was started.
    ///
    /// # Errors
    /// As [`Runner::block`].
    pub fn finish<T>(&self, task: Task<T>, limit: Duration) -> Outcome<T> {
        self.wait_for(task.done.as_fd(), limit, &task.what)?;
        match task.receiver.recv() {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => {
                let code = match error.kind() {
                    io::ErrorKind::InvalidData => Code::Mismatch,
                    _ => Code::Io,
                };
                Err(Failure::new(code, format!("{}: {error}", task.what)))
            }
            Err(_) => Err(Failure::new(
                Code::Other,
                format!("{} ended badly", task.what),
            )),
        }
    }

    /// Whether all blocking work that was ever started has ended, after waiting for it for `limit` at most.
    #[must_use]
    pub fn all_done(&self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        while self.beside.load(Ordering::SeqCst) > 0 {
            if Instant::now() >= until {
                return false;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        true
    }
}

/// Blocking work that goes on.
#[derive(Debug)]
pub struct Task<T> {
    what: String,
    done: UnixStream,
    receiver: mpsc::Receiver<io::Result<T>>,
}

impl<T> Task<T> {
    /// Whether it has ended.
    #[must_use]
    pub fn is_done(&self) -> bool {
        let mut fds = [rustix::event::PollFd::new(
            &self.done,
            rustix::event::PollFlags::IN,
        )];
        let now = rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        matches!(rustix::event::poll(&mut fds, Some(&now)), Ok(1))
    }
}

/// One work that goes on, until it is dropped, by a panic too.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A descriptor that is readable when the child has ended.
///
/// # Errors
/// The kernel has no such thing.
pub fn pidfd(child: &Child) -> io::Result<OwnedFd> {
    Ok(rustix::process::pidfd_open(
        Pid::from_child(child),
        PidfdFlags::empty(),
    )?)
}

/// Asks a child to end, waits, and then makes it. One that the kernel does not let end is left alone. Returns how it ended.
pub fn end(child: &mut Child, patience: Duration) -> Option<ExitStatus> {
    let pid = Pid::from_child(child);
    let stages = [
        (Signal::TERM, patience),
        (Signal::KILL, Duration::from_secs(2)),
    ];
    for (signal, time) in stages {
        // Not waited for yet: the number is its own.
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        let _ = rustix::process::kill_process(pid, signal);
        let until = Instant::now() + time;
        while Instant::now() < until {
            if let Ok(Some(status)) = child.try_wait() {
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    None
}

fn contents(file: &mut File) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.take(1 << 20).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.arg("-c").arg(script);
        command
    }

    #[test]
    fn programs_and_blocking_work_end_by_themselves_by_time_and_by_signal() {
        let _alone = crate::signals::RAISING.lock();
        let signals = Signals::install().unwrap();
        let runner = Runner::new(&signals);
        let ran = runner
            .run(&mut shell("echo out; echo err >&2; exit 3"), LONG)
            .unwrap();
        assert_eq!(ran.status.code(), Some(3));
        assert_eq!(
            (ran.output.as_str(), ran.errors.as_str()),
            ("out\n", "err\n")
        );
        let failure = runner
            .succeed(&mut shell("echo why; false"), LONG)
            .unwrap_err();
        assert!(failure.message.contains("why"), "{failure}");

        let short = Duration::from_millis(20);
        let failure = runner.run(&mut shell("sleep 60"), short).unwrap_err();
        assert!(failure.message.contains("longer"), "{failure}");

        assert_eq!(runner.block("work", LONG, || Ok(7)).unwrap(), 7);
        let bad = || Err::<(), _>(io::Error::from(io::ErrorKind::InvalidData));
        assert_eq!(
            runner.block("work", LONG, bad).unwrap_err().code,
            Code::Mismatch
        );

        let (hold, held) = mpsc::channel::<()>();
        signal_hook::low_level::raise(signal_hook::consts::SIGTERM).unwrap();
        let work = move || {
            let _ = held.recv();
            Ok(())
        };
        let failure = runner.block("work", LONG, work).unwrap_err();
        assert_eq!(failure.code, Code::Interrupted);
        assert!(!runner.all_done(short));
        drop(hold);
        assert!(runner.all_done(LONG));
        let failure = runner.run(&mut shell("sleep 60"), LONG).unwrap_err();
        assert_eq!(failure.code, Code::Interrupted);
        assert!(runner
            .steadfast(false)
            .succeed(&mut shell("true"), LONG)
            .is_ok());
    }
}
