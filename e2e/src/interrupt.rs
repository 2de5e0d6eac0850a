//! Ctrl-C, SIGTERM and the bound on the time of a campaign.
//!
//! A signal first asks: every wait ends with an error and the campaign cleans up on its way out. If it can't (it may hang in
//! I/O on a device without a server), after [`GRACE`] or at a second signal this thread sweeps and ends the process. The
//! same happens when a campaign takes longer than it may.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{bail, Context as _, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::lab::sweep;

/// Time that a campaign has to clean up by itself.
const GRACE: Duration = Duration::from_secs(15);
/// Exit code after a signal.
const INTERRUPTED: i32 = 130;

static ASKED: AtomicBool = AtomicBool::new(false);
static STATE: Mutex<State> = Mutex::new(State {
    root: None,
    bound: None,
});

struct State {
    /// What to sweep.
    root: Option<PathBuf>,
    /// When the campaign must be over, and its name.
    bound: Option<(Instant, String)>,
}

fn state() -> std::sync::MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts the thread that handles signals and the bound.
///
/// # Errors
/// The handlers can't be installed.
pub fn install() -> Result<()> {
    let mut signals =
        Signals::new([SIGINT, SIGTERM, SIGHUP]).context("can't install signal handlers")?;
    let watch = move || {
        let mut asked_at: Option<Instant> = None;
        loop {
            std::thread::sleep(Duration::from_millis(50));
            for signal in signals.pending() {
                if asked_at.is_some() {
                    give_up(&format!("a second signal ({signal})"), INTERRUPTED);
                }
                eprintln!("e2e: signal {signal}, cleaning up");
                asked_at = Some(Instant::now());
                ASKED.store(true, Ordering::Relaxed);
            }
            if asked_at.is_some_and(|at| at.elapsed() > GRACE) {
                give_up("cleaning up hangs", INTERRUPTED);
            }
            let late = match &state().bound {
                Some((bound, name)) if Instant::now() > *bound => Some(name.clone()),
                _ => None,
            };
            if let Some(name) = late {
                println!("FAIL {name}: still running at the bound of its time");
                give_up("out of time", 1);
            }
        }
    };
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(watch)
        .context("can't start a thread")?;
    Ok(())
}

fn give_up(why: &str, code: i32) -> ! {
    eprintln!("e2e: {why}: sweeping");
    let root = state().root.take();
    if let Some(root) = root {
        sweep::save_logs(&root);
        for swept in sweep::sweep(&root) {
            eprintln!("e2e: removed {swept}");
        }
    }
    std::process::exit(code)
}

/// What has to be swept if the campaign can't.
pub fn set_root(root: Option<PathBuf>) {
    state().root = root;
}

/// When the campaign of this name must be over.
pub fn set_bound(name: &str, bound: Duration) {
    state().bound = Some((Instant::now() + bound, name.to_owned()));
}

/// No bound any more.
pub fn clear_bound() {
    state().bound = None;
}

/// Whether a signal has asked to stop.
pub fn asked() -> bool {
    ASKED.load(Ordering::Relaxed)
}

/// # Errors
/// A signal has asked to stop.
pub fn check() -> Result<()> {
    if asked() {
        bail!("interrupted by a signal");
    }
    Ok(())
}
