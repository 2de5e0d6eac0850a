//! What an agent does to its own process so that the machine can't deadlock on it.
//!
//! When memory is short the kernel writes dirty pages out, perhaps to the very device that the agent serves. So the agent
//! must not wait for memory that only such a write-out could free, must not be swapped out, and must not be the one that
//! is killed to make room. Two things see to the first, each for what the other can't reach:
//!
//! - The agent needs no new memory while it serves: buffers are set aside when it attaches
//!   ([`dst_client::Options::reserve`]), and stack and heap are there beforehand and stay ([`prepare_agent`],
//!   [`reserve_heap`]).
//! - `PR_SET_IO_FLUSHER`, where it is permitted: memory that the kernel needs on the agent's behalf is found without
//!   waiting for I/O.

use rustix::mm::MlockAllFlags;
use rustix::process::Resource;
use rustix::thread::CapabilitySet;

/// Bytes of stack that the main thread can use without a page fault: many times what its deepest call needs.
const STACK: usize = 256 << 10;

/// Bytes of heap that are free and present when a device comes up: what the connections after a break take, for all the
/// connections that a device may have, and what status queries take.
const HEAP: usize = 4 << 20;

/// What became of [`prepare_agent`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Preparation {
    /// What could not be done, one text for each. Empty when all is done.
    pub missing: Vec<String>,
    /// The process's memory is locked, and what it takes from now on will be.
    pub locked: bool,
}

/// Prepares this process to serve a device. To be called before any thread starts, since threads inherit the first of
/// these from the one that starts them:
///
/// - `PR_SET_IO_FLUSHER`: allocations don't wait for I/O, and writing is not throttled by dirty pages;
/// - an own session, so that the terminal's signals and its end don't reach it (`own_session`; wants a process that leads
///   no group);
/// - `oom_score_adj` -1000;
/// - memory locked, now and later; heap that is never given back, and stack that is there.
///
/// Nothing here fails the agent: without root most is not permitted, and a device then is as good as any program.
#[must_use]
pub fn prepare_agent(own_session: bool) -> Preparation {
    let mut missing = Vec::new();
    let mut note = |what: &str, result: Result<(), String>| {
        let done = result.is_ok();
        if let Err(why) = result {
            missing.push(format!("{what}: {why}"));
        }
        done
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
    let locked = note("its memory may be swapped out (mlockall)", lock_memory());
    if locked {
        keep_heap();
        touch_stack();
    }
    Preparation { missing, locked }
}

/// Makes free heap present, so that small allocations from now on need none of the system. Of use once everything large has
/// been allocated, in a process that [`prepare_agent`] has locked.
pub fn reserve_heap() {
    let mut space = vec![0_u8; HEAP];
    // Written, or the compiler leaves it out.
    std::hint::black_box(&mut space).fill(1);
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

/// Makes glibc take all memory of all threads from one heap, and keep what has been freed (mallopt(3)). Otherwise a large
/// block is a mapping of its own: new pages each time, and given back when it is freed.
#[cfg(target_env = "gnu")]
fn keep_heap() {
    for (parameter, value) in [
        (libc::M_ARENA_MAX, 1),
        (libc::M_MMAP_MAX, 0),
        (libc::M_TRIM_THRESHOLD, i32::MAX),
    ] {
        // SAFETY: mallopt only sets a parameter of the allocator. One that it does not know it refuses, and nothing is lost.
        unsafe { libc::mallopt(parameter, value) };
    }
}

/// Other C libraries have no such parameters.
#[cfg(not(target_env = "gnu"))]
fn keep_heap() {}

/// Makes the stack of this thread as large as it will ever be.
#[inline(never)]
fn touch_stack() {
    let mut space = [0_u8; STACK];
    std::hint::black_box(&mut space).fill(1);
}

#[cfg(test)]
mod tests {
    /// Minor faults of this thread so far: field 10 of `/proc/thread-self/stat` (proc_pid_stat(5)).
    fn faults() -> u64 {
        let text = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        let (_, rest) = text.rsplit_once(") ").unwrap();
        rest.split(' ').nth(7).unwrap().parse().unwrap()
    }

    #[test]
    #[cfg(target_env = "gnu")]
    fn a_reserved_heap_gives_memory_without_faults() {
        super::keep_heap();
        super::reserve_heap();
        let before = faults();
        for _ in 0..10 {
            // More than the size from which on glibc would make a mapping.
            let mut block = vec![0_u8; 512 << 10];
            std::hint::black_box(&mut block).fill(1);
        }
        // Without it each round has 128. Other threads of the test program use the same heap.
        assert!(faults() - before < 128, "{} faults", faults() - before);
    }
}
