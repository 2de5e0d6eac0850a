//! What an agent does to its own process so that the machine can't deadlock on it.
//!
//! When memory is short the kernel writes dirty pages out, perhaps to the very device that the agent serves. So the agent
//! must not wait for memory that only such a write-out could free, must not be swapped out, and must not be the one that
//! is killed to make room.

use rustix::mm::MlockAllFlags;
use rustix::process::Resource;
use rustix::thread::CapabilitySet;

/// What [`prepare_agent`] could not do, in words. Empty when all is done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Preparation {
    /// One text for each thing that is missing.
    pub missing: Vec<String>,
}

/// Prepares this process to serve a device. To be called before any thread starts, since threads inherit the first of
/// these from the one that starts them:
///
/// - `PR_SET_IO_FLUSHER`: allocations don't wait for I/O, and writing is not throttled by dirty pages;
/// - an own session, so that the terminal's signals and its end don't reach it (`own_session`; wants a process that leads
///   no group);
/// - `oom_score_adj` -1000;
/// - memory locked, now and later.
///
/// Nothing here fails the agent: without root most is not permitted, and a device then is as good as any program.
#[must_use]
pub fn prepare_agent(own_session: bool) -> Preparation {
    let mut missing = Vec::new();
    let mut note = |what: &str, result: Result<(), String>| {
        if let Err(why) = result {
            missing.push(format!("{what}: {why}"));
        }
    };
    note(
        "no protection from waiting for its own writes (PR_SET_IO_FLUSHER)",
        rustix::process::configure_io_flusher_behavior(true).map_err(|e| e.to_string()),
    );
    if own_session {
        note(
            "no session of its own",
            rustix::process::setsid()
                .map(drop)
                .map_err(|e| e.to_string()),
        );
    }
    note(
        "it may be killed when memory is short (oom_score_adj)",
        std::fs::write("/proc/self/oom_score_adj", "-1000").map_err(|e| e.to_string()),
    );
    note("its memory may be swapped out (mlockall)", lock_memory());
    Preparation { missing }
}

fn lock_memory() -> Result<(), String> {
    // With a limit, MCL_FUTURE would make later allocations fail instead of leaving them unlocked.
    let limit = rustix::process::getrlimit(Resource::Memlock);
    let exempt = rustix::thread::capabilities(None)
        .is_ok_and(|held| held.effective.contains(CapabilitySet::IPC_LOCK));
    if limit.current.is_some() && !exempt {
        return Err("the limit on locked memory (ulimit -l) is not unlimited".to_owned());
    }
    rustix::mm::mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE).map_err(|e| e.to_string())
}
