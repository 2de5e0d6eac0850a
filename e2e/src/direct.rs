//! Direct I/O on block devices: aligned buffers, and requests in threads that may hang for as long as the server is away.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::mpsc::{channel, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{bail, Context as _, Result};

use crate::{interrupt, wait};

/// What direct I/O must be aligned to.
const ALIGN: usize = 4096;

/// Memory that direct I/O takes.
pub struct Aligned {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    /// Zeroes.
    pub fn new(len: usize) -> Aligned {
        let memory = vec![0; len + ALIGN];
        let start = memory.as_ptr().align_offset(ALIGN);
        Aligned { memory, start, len }
    }

    /// A copy of these bytes.
    pub fn of(bytes: &[u8]) -> Aligned {
        let mut aligned = Aligned::new(bytes.len());
        aligned.copy_from_slice(bytes);
        aligned
    }
}

impl Deref for Aligned {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

/// Opens a device for direct I/O.
///
/// # Errors
/// It can't be opened.
pub fn open(device: &Path, write: bool) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(write)
        .custom_flags(rustix::fs::OFlags::DIRECT.bits() as i32)
        .open(device)
        .with_context(|| format!("can't open {}", device.display()))
}

/// Reads directly.
///
/// # Errors
/// As the system tells.
pub fn read(file: &File, offset: u64, len: usize) -> io::Result<Aligned> {
    let mut buffer = Aligned::new(len);
    file.read_exact_at(&mut buffer, offset)?;
    Ok(buffer)
}

/// Writes directly.
///
/// # Errors
/// As the system tells.
pub fn write(file: &File, offset: u64, data: &[u8]) -> io::Result<()> {
    file.write_all_at(&Aligned::of(data), offset)
}

/// Something that may hang, in a thread of its own.
pub struct Pending<T> {
    outcome: Receiver<(T, Duration)>,
    start: Instant,
}

impl<T: Send + 'static> Pending<T> {
    /// Starts it.
    pub fn start(work: impl FnOnce() -> T + Send + 'static) -> Pending<T> {
        let (send, outcome) = channel();
        let start = Instant::now();
        std::thread::spawn(move || {
            let value = work();
            // Nobody waits any more if the campaign is over.
            let _ = send.send((value, start.elapsed()));
        });
        Pending { outcome, start }
    }

    /// # Errors
    /// It has ended.
    pub fn still_pending_after(&self, time: Duration) -> Result<()> {
        while let Some(left) = time.checked_sub(self.start.elapsed()) {
            interrupt::check()?;
            match self
                .outcome
                .recv_timeout(left.min(Duration::from_millis(100)))
            {
                Err(RecvTimeoutError::Timeout) => {}
                _ => bail!("it ended after {:.1} s", self.start.elapsed().as_secs_f64()),
            }
        }
        Ok(())
    }

    /// Its outcome and how long it took.
    ///
    /// # Errors
    /// It has not ended within the bound.
    pub fn outcome(self, bound: Duration) -> Result<(T, Duration)> {
        let until = Instant::now() + wait::patient(bound);
        loop {
            interrupt::check()?;
            match self.outcome.recv_timeout(Duration::from_millis(100)) {
                Ok(outcome) => return Ok(outcome),
                Err(RecvTimeoutError::Disconnected) => bail!("its thread panicked"),
                Err(RecvTimeoutError::Timeout) if Instant::now() > until => {
                    bail!(
                        "still pending after {:.1} s",
                        self.start.elapsed().as_secs_f64()
                    )
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }
}
