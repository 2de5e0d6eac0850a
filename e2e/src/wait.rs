//! Waiting for a condition: looked at again and again, with a bound, and ended early when the campaign is.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{bail, Result};

use crate::interrupt;

/// First pause between two looks; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(5);
/// Longest pause between two looks.
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// By how much bounds are longer than on an ordinary machine.
static PATIENCE: AtomicU32 = AtomicU32::new(1);

/// Makes all bounds of this process so many times longer. They only tell what hangs from what is slow.
pub fn set_patience(times: u32) {
    PATIENCE.store(times, Ordering::Relaxed);
}

/// What was set.
pub fn patience() -> u32 {
    PATIENCE.load(Ordering::Relaxed)
}

/// A bound on this machine.
pub fn patient(bound: Duration) -> Duration {
    bound * patience()
}

/// Waits until `found` gives something.
///
/// # Errors
/// The bound has passed (the text says for what), `found` failed, or the campaign was interrupted.
pub fn find<T>(
    what: &str,
    bound: Duration,
    mut found: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let bound = patient(bound);
    let start = Instant::now();
    let mut pause = FIRST_PAUSE;
    loop {
        if let Some(value) = found()? {
            return Ok(value);
        }
        interrupt::check()?;
        if start.elapsed() > bound {
            bail!("{what}: not within {:.1} s", bound.as_secs_f64());
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Waits until `is_so`.
///
/// # Errors
/// As [`find`].
pub fn until(what: &str, bound: Duration, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    find(what, bound, || Ok(is_so()?.then_some(())))
}

/// Lets time pass as part of a fault (an outage, the pause before a kill), never to wait for something to have happened.
///
/// # Errors
/// The campaign was interrupted.
pub fn let_pass(time: Duration) -> Result<()> {
    let start = Instant::now();
    while let Some(left) = time.checked_sub(start.elapsed()) {
        interrupt::check()?;
        std::thread::sleep(left.min(LONGEST_PAUSE));
    }
    Ok(())
}
