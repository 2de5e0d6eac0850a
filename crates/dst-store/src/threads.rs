//! The I/O engine for systems where io_uring can't be used: a pool of threads that make blocking calls.
//!
//! # States of a call
//! staged (pushed) → queued (kicked) → on a thread → finished → reaped.
//!
//! Invariant: whenever `finished` is not empty and no `reap` is under way, the wake descriptor is readable. Threads raise it
//! when the list stops being empty; `reap` lowers it before it takes the list.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use crate::engine::{Call, Engine, Finished};
use crate::syscalls::perform;
use crate::wake::Wake;

/// Threads at most: enough to keep a disk's queue filled, few enough not to matter.
const MAX_THREADS: usize = 16;

/// See the [module](self).
pub(crate) struct ThreadEngine {
    hall: Arc<Hall>,
    threads: Vec<JoinHandle<()>>,
    staged: Vec<(u64, Call)>,
}

/// Where the owner and the threads meet.
struct Hall {
    file: Arc<OwnedFd>,
    queue: Mutex<Queue>,
    work: Condvar,
    finished: Mutex<Vec<Finished>>,
    wake: Wake,
}

#[derive(Default)]
struct Queue {
    calls: VecDeque<(u64, Call)>,
    idle: usize,
    stop: bool,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing under these locks can panic half-way through a change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ThreadEngine {
    /// Starts with one thread; more come as calls pile up.
    ///
    /// # Errors
    /// No threads or descriptors left.
    pub(crate) fn start(file: Arc<OwnedFd>) -> io::Result<ThreadEngine> {
        let hall = Hall {
            file,
            queue: Mutex::default(),
            work: Condvar::new(),
            finished: Mutex::default(),
            wake: Wake::new()?,
        };
        let mut engine = ThreadEngine {
            hall: Arc::new(hall),
            threads: Vec::new(),
            staged: Vec::new(),
        };
        engine.spawn()?;
        Ok(engine)
    }

    fn spawn(&mut self) -> io::Result<()> {
        let hall = self.hall.clone();
        let thread = std::thread::Builder::new()
            .name("dst-io".to_owned())
            .spawn(move || hall.serve())?;
        self.threads.push(thread);
        Ok(())
    }
}

impl Hall {
    fn serve(&self) {
        let mut queue = locked(&self.queue);
        loop {
            if let Some((key, mut call)) = queue.calls.pop_front() {
                drop(queue);
                let result = perform(self.file.as_fd(), &mut call);
                self.finish(Finished { key, call, result });
                queue = locked(&self.queue);
            } else if queue.stop {
                return;
            } else {
                queue.idle += 1;
                queue = self
                    .work
                    .wait(queue)
                    .unwrap_or_else(PoisonError::into_inner);
                queue.idle -= 1;
            }
        }
    }

    fn finish(&self, finished: Finished) {
        let mut list = locked(&self.finished);
        list.push(finished);
        if list.len() == 1 {
            self.wake.raise();
        }
    }
}

impl Engine for ThreadEngine {
    fn push(&mut self, key: u64, call: Call) {
        self.staged.push((key, call));
    }

    fn kick(&mut self) {
        if self.staged.is_empty() {
            return;
        }
        let mut queue = locked(&self.hall.queue);
        queue.calls.extend(self.staged.drain(..));
        let missing = queue.calls.len().saturating_sub(queue.idle);
        drop(queue);
        self.hall.work.notify_all();
        for _ in 0..missing.min(MAX_THREADS - self.threads.len()) {
            if self.spawn().is_err() {
                // There is at least one thread, which gets to everything in time.
                break;
            }
        }
    }

    fn reap(&mut self, finished: &mut Vec<Finished>) {
        self.hall.wake.lower();
        finished.append(&mut locked(&self.hall.finished));
    }

    fn nudge(&mut self) {
        self.hall.wake.raise();
    }

    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.hall.wake.fd()
    }

    fn name(&self) -> &'static str {
        "threads"
    }
}

impl Drop for ThreadEngine {
    fn drop(&mut self) {
        self.kick();
        locked(&self.hall.queue).stop = true;
        self.hall.work.notify_all();
        for thread in self.threads.drain(..) {
            // A thread that panicked has nothing left to wait for.
            let _ = thread.join();
        }
    }
}
