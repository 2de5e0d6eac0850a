//! The server's memory: one budget that all sessions of all exports share.
//!
//! # What is counted
//!
//! * At OPEN a session *reserves* what it can cost without being asked again: tables, buffers of its connections, one READ of
//!   the largest payload, and for a writer its credit, which is a promise that can't be taken back ([`Budget::reserve`]).
//! * What a session has read for its client beyond that one READ is taken from another part, and only while it lasts
//!   ([`Reservation::cover`]): who gets nothing reads one piece after another.
//! * The pool's free buffers.
//!
//! Payload lies in the pool's blocks, which can be four times as large as it: what counts is the block.
//!
//! # How it is shared
//!
//! No session is given more than a part of what is still free, so that credit gets smaller the more sessions there are, down
//! to what lets one largest request go on; where not even that is free there is no session. Readers leave room for
//! two writers of each export, the holder and the next one, which is let in before the holder has gone. Of what is for reading ahead, no session has more than all sessions' equal share.
//!
//! # Invariants
//!
//! * `reserved <= for_sessions`, and `ahead <= for_ahead`; both are what the living [`Reservation`]s hold.
//! * Nobody waits for memory that another session holds: each can go on with what it has reserved.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use dst_proto::Limits;

use crate::port::lock;

/// The least that a server can work with, bytes: one session with the largest payload there is.
pub(crate) const LEAST: u64 = 64 << 20;
/// Most free buffers that the pool keeps, bytes.
const CACHED: u64 = 64 << 20;
/// The part of what is free that one session is given at most.
const PART: u64 = 8;
/// Most bytes that a session may have read, or be about to read, that its client has not taken.
const READ_AHEAD: u64 = 32 << 20;
/// A connection that is full: the receive buffer, the head of a frame, and answers that the client does not take, whose bytes
/// lie in memory that grows by doubling.
const CONNECTION: u64 = 5 << 20;
/// One slot in the tables of session and driver.
pub(crate) const SLOT: u64 = 256;
/// Blocks of the pool are at most so many times as large as what is in them, ...
const BLOCK_FACTOR: u64 = 4;
/// ... but for the smallest one, ...
const SMALLEST_BLOCK: u64 = 4 << 10;
/// ... and longer payloads than this have blocks of their own size.
const LARGEST_BLOCK: u64 = 1 << 20;
/// Writers of one export that there may be at once: the holder, and the next one while it takes over.
const WRITERS: u32 = 2;
/// What is kept free for a writer: what most clients ask for.
const USUAL: Limits = Limits {
    slots: 256,
    connections: 1,
    max_payload: 1 << 20,
    window: 65536,
    credit_bytes: 1 << 20,
};

/// The budget.
pub(crate) struct Budget {
    for_sessions: u64,
    for_ahead: u64,
    cached: u64,
    state: Mutex<State>,
    ahead: AtomicU64,
    /// Each session's share of `for_ahead`.
    share: AtomicU64,
}

struct State {
    reserved: u64,
    sessions: u64,
    /// Of each export that can be written, the sessions that write; of others none.
    writers: Vec<Option<u32>>,
}

/// What one session has; given back when it is dropped.
pub(crate) struct Reservation {
    budget: Arc<Budget>,
    reserved: u64,
    writes: Option<usize>,
    /// Taken for reading ahead, in whole steps.
    ahead: u64,
    step: u64,
}

impl Budget {
    /// A budget of `memory` bytes, at least [`LEAST`], for exports of which these can be written.
    pub fn new(memory: u64, writable: &[bool]) -> Arc<Self> {
        let cached = CACHED.min(memory / 8);
        let for_ahead = (memory - cached) / 4;
        let writers = writable.iter().map(|writable| writable.then_some(0));
        Arc::new(Self {
            for_sessions: memory - cached - for_ahead,
            for_ahead,
            cached,
            state: Mutex::new(State {
                reserved: 0,
                sessions: 0,
                writers: writers.collect(),
            }),
            ahead: AtomicU64::new(0),
            share: AtomicU64::new(READ_AHEAD),
        })
    }

    /// Bytes of free buffers that the pool may keep.
    pub fn cached(&self) -> u64 {
        self.cached
    }

    /// Reserves what a session needs that asks for `wanted`, to write to export `writes` if that is given. Answers what the
    /// session is granted, never more than wanted: the largest payload and what is small as it is, connections and credit as
    /// there is room. `None`: there is no room for a session.
    pub fn reserve(
        self: &Arc<Self>,
        wanted: &Limits,
        writes: Option<usize>,
    ) -> Option<(Limits, Reservation)> {
        let mut state = lock(&self.state);
        let left = self.for_sessions - state.reserved;
        let free = match writes {
            Some(_) => left,
            None => left.saturating_sub(self.kept_for_writers(&state)),
        };
        let mut granted = Limits {
            connections: wanted.connections.min(1),
            credit_bytes: wanted.credit_bytes.min(wanted.max_payload),
            ..*wanted
        };
        let least = cost(&granted, writes.is_some());
        if least > free {
            return None;
        }
        let more = (free / PART).saturating_sub(least);
        let connection = connection_cost(wanted.max_payload, writes.is_some());
        let connections = u64::from(granted.connections) + more / 2 / connection;
        granted.connections = wanted
            .connections
            .min(u16::try_from(connections).unwrap_or(u16::MAX));
        let used = cost(&granted, writes.is_some()) - least;
        let credit = u64::from(granted.credit_bytes) + more.saturating_sub(used) / BLOCK_FACTOR;
        granted.credit_bytes = wanted
            .credit_bytes
            .min(u32::try_from(credit).unwrap_or(u32::MAX));
        if writes.is_none() {
            // What is never taken in costs nothing.
            granted.credit_bytes = wanted.credit_bytes;
        }
        let reserved = cost(&granted, writes.is_some());
        state.reserved += reserved;
        state.sessions += 1;
        if let Some(Some(writers)) = writes.and_then(|export| state.writers.get_mut(export)) {
            *writers += 1;
        }
        self.set_share(&state);
        let reservation = Reservation {
            budget: Arc::clone(self),
            reserved,
            writes,
            ahead: 0,
            step: block(wanted.max_payload),
        };
        Some((granted, reservation))
    }

    /// What readers leave free. Not all of a small budget for many exports.
    fn kept_for_writers(&self, state: &State) -> u64 {
        let writers = state.writers.iter().flatten();
        let to_come = writers.map(|writers| u64::from(WRITERS.saturating_sub(*writers)));
        (to_come.sum::<u64>() * cost(&USUAL, true)).min(self.for_sessions / 2)
    }

    fn set_share(&self, state: &State) {
        let share = self.for_ahead / state.sessions.max(1);
        self.share.store(share.min(READ_AHEAD), Ordering::Relaxed);
    }
}

impl Reservation {
    /// Makes sure that `bytes` beyond the READ that the session may always have are the session's. False: they are not to be
    /// had now, so that it has to give back some first.
    pub fn cover(&mut self, bytes: u64) -> bool {
        let wanted = bytes.next_multiple_of(self.step);
        if wanted > self.budget.share.load(Ordering::Relaxed) {
            return false;
        }
        let Some(more) = wanted.checked_sub(self.ahead).filter(|more| *more > 0) else {
            return true;
        };
        let add = |taken: u64| {
            taken
                .checked_add(more)
                .filter(|sum| *sum <= self.budget.for_ahead)
        };
        // A count alone: it orders nothing else.
        let taken = self
            .budget
            .ahead
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        if taken.is_ok() {
            self.ahead = wanted;
        }
        taken.is_ok()
    }

    /// Only `bytes` of what is covered are needed any more.
    pub fn uncover(&mut self, bytes: u64) {
        let kept = bytes.next_multiple_of(self.step);
        if kept < self.ahead {
            let back = self.ahead - kept;
            self.budget.ahead.fetch_sub(back, Ordering::Relaxed);
            self.ahead = kept;
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.uncover(0);
        let mut state = lock(&self.budget.state);
        state.reserved -= self.reserved;
        state.sessions -= 1;
        if let Some(Some(writers)) = self.writes.and_then(|export| state.writers.get_mut(export)) {
            *writers -= 1;
        }
        self.budget.set_share(&state);
    }
}

/// Most bytes that a payload of `length` takes in the pool.
fn block(length: u32) -> u64 {
    let length = u64::from(length);
    match length > LARGEST_BLOCK {
        true => length.next_multiple_of(SMALLEST_BLOCK),
        false => (length * BLOCK_FACTOR).clamp(SMALLEST_BLOCK, LARGEST_BLOCK),
    }
}

/// One more connection. On a writer's a payload may arrive that is not wanted any more.
fn connection_cost(max_payload: u32, writes: bool) -> u64 {
    CONNECTION + if writes { block(max_payload) } else { 0 }
}

/// What a session with these limits can cost, but for what is read ahead.
fn cost(limits: &Limits, writes: bool) -> u64 {
    let slots = u64::from(limits.slots);
    let tables = slots * SLOT + u64::from(limits.window) / 8;
    let connection = connection_cost(limits.max_payload, writes);
    let connections = u64::from(limits.connections) * connection;
    let payloads = match writes {
        true => u64::from(limits.credit_bytes) * BLOCK_FACTOR + slots * SMALLEST_BLOCK,
        false => 0,
    };
    tables + connections + block(limits.max_payload) + payloads
}

/// A quarter of what this process may use of the machine's memory, at least [`LEAST`].
pub(crate) fn of_this_machine() -> u64 {
    let system = rustix::system::sysinfo();
    let machine = system.totalram.saturating_mul(u64::from(system.mem_unit));
    (machine.min(group_limit().unwrap_or(u64::MAX)) / 4).max(LEAST)
}

/// The least of the limits of this process's control groups (cgroup v2, `memory.max`); `None` where there is none.
fn group_limit() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    let group = std::path::Path::new("/sys/fs/cgroup").join(path.trim_start_matches('/'));
    let limit = |dir: &std::path::Path| {
        let text = std::fs::read_to_string(dir.join("memory.max")).ok()?;
        text.trim().parse().ok()
    };
    group.ancestors().filter_map(limit).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKED: Limits = Limits {
        slots: 145,
        connections: 4,
        max_payload: 1 << 20,
        window: 65536,
        credit_bytes: 16 << 20,
    };

    fn is_empty(budget: &Budget) -> bool {
        let state = lock(&budget.state);
        let writers = state.writers.iter().flatten().sum::<u32>();
        (state.reserved, state.sessions, writers) == (0, 0, 0)
            && budget.ahead.load(Ordering::Relaxed) == 0
            && budget.share.load(Ordering::Relaxed) == READ_AHEAD.min(budget.for_ahead)
    }

    #[test]
    fn a_session_alone_on_a_usual_machine_gets_what_it_asks_for() {
        let budget = Budget::new(4 << 30, &[true]);
        let (granted, session) = budget.reserve(&ASKED, Some(0)).unwrap();
        assert_eq!(granted, ASKED);
        drop(session);
        assert!(is_empty(&budget));
    }

    #[test]
    fn the_least_memory_is_enough_for_one_session_of_any_kind() {
        let budget = Budget::new(LEAST, &[true, true, true]);
        let asked = Limits {
            slots: 1000,
            connections: 8,
            max_payload: 4 << 20,
            window: 65536,
            credit_bytes: 16 << 20,
        };
        for writes in [None, Some(1)] {
            let (granted, _session) = budget.reserve(&asked, writes).unwrap();
            assert!(granted.connections >= 1 && granted.credit_bytes >= granted.max_payload);
        }
        assert!(is_empty(&budget));
    }

    #[test]
    fn credit_shrinks_with_every_session_down_to_one_request_and_then_there_are_no_more() {
        let budget = Budget::new(512 << 20, &[true]);
        let mut sessions = Vec::new();
        let mut before = (ASKED, u64::MAX);
        while let Some((granted, session)) = budget.reserve(&ASKED, Some(0)) {
            assert!((ASKED.max_payload..=ASKED.credit_bytes).contains(&granted.credit_bytes));
            assert!((1..=before.0.connections).contains(&granted.connections));
            assert!(session.reserved <= before.1);
            before = (granted, session.reserved);
            sessions.push(session);
        }
        assert!(sessions.len() > 16, "{}", sessions.len());
        let last = before.0;
        assert_eq!(
            (last.connections, last.credit_bytes),
            (1, ASKED.max_payload)
        );
        let reserved = sessions.iter().map(|session| session.reserved).sum::<u64>();
        assert!(reserved <= budget.for_sessions);
        assert_eq!(reserved, lock(&budget.state).reserved);
        // One that goes makes room for one.
        sessions.pop();
        assert!(budget.reserve(&ASKED, Some(0)).is_some());
        sessions.clear();
        assert!(is_empty(&budget));
    }

    #[test]
    fn readers_leave_room_for_two_writers_of_each_export() {
        let budget = Budget::new(512 << 20, &[true, false, true]);
        let mut readers = Vec::new();
        while let Some((_, reader)) = budget.reserve(&ASKED, None) {
            readers.push(reader);
        }
        let writers = [0, 2, 0, 2].map(|export| budget.reserve(&USUAL, Some(export)).unwrap().1);
        assert!(budget.reserve(&ASKED, None).is_none());
        // The room of a writer that has gone is kept for the next.
        drop(writers);
        assert!(budget.reserve(&ASKED, None).is_none());
        assert!(budget.reserve(&ASKED, Some(2)).is_some());
    }

    #[test]
    fn in_the_least_memory_readers_leave_room_for_the_next_writer_beside_the_holder() {
        let budget = Budget::new(LEAST, &[true]);
        let (_, _holder) = budget.reserve(&ASKED, Some(0)).unwrap();
        let mut readers = Vec::new();
        while let Some((_, reader)) = budget.reserve(&ASKED, None) {
            readers.push(reader);
        }
        assert!(!readers.is_empty());
        assert!(budget.reserve(&ASKED, Some(0)).is_some());
    }

    #[test]
    fn what_is_read_ahead_is_shared_in_equal_parts_and_never_more_than_there_is() {
        let budget = Budget::new(128 << 20, &[true]);
        let (_, mut first) = budget.reserve(&ASKED, None).unwrap();
        let all = budget.for_ahead.min(READ_AHEAD) / first.step * first.step;
        assert!(first.cover(all) && !first.cover(all + 1));
        let (_, mut second) = budget.reserve(&ASKED, None).unwrap();
        // The first has it all, and may not keep what is above its share once that is used.
        assert!(!second.cover(all / 2));
        assert!(!first.cover(all));
        first.uncover(all / 2);
        assert!(second.cover(budget.for_ahead / 2 / second.step * second.step));
        assert!(budget.ahead.load(Ordering::Relaxed) <= budget.for_ahead);
        drop((first, second));
        assert!(is_empty(&budget));
    }

    #[test]
    fn a_block_of_the_pool_is_never_larger_than_what_is_counted_for_it() {
        let pool = dst_buf::Pool::new(0);
        for length in [
            1,
            511,
            4096,
            4097,
            65_537,
            300_000,
            1 << 20,
            (1 << 20) + 1,
            4 << 20,
        ] {
            let held = pool.get(length as usize).capacity() as u64;
            assert!(held <= block(length), "{length}");
            // In credit, many small ones.
            let slots = SMALLEST_BLOCK;
            assert!(held <= u64::from(length) * BLOCK_FACTOR + slots, "{length}");
        }
    }

    #[test]
    fn the_default_is_within_the_machine() {
        let memory = of_this_machine();
        assert!(memory >= LEAST);
        let machine = rustix::system::sysinfo();
        assert!(memory <= LEAST.max(machine.totalram * u64::from(machine.mem_unit) / 4));
    }
}
