//! Tests of the sync rule: named cases, and every interleaving of a few calls against a model of the kernel.

use super::*;

/// A tracker with shorter calls for the named cases.
struct Fixture {
    tracker: SyncTracker,
    answers: Vec<SyncAnswer>,
}

impl Fixture {
    fn new() -> Fixture {
        Fixture {
            tracker: SyncTracker::new(),
            answers: Vec::new(),
        }
    }

    fn begin(&mut self, owner: u64) -> SyncId {
        self.tracker
            .begin(owner, &mut self.answers)
            .expect("it is not latched")
    }

    fn refused(&mut self, owner: u64) {
        assert_eq!(self.tracker.begin(owner, &mut self.answers), None);
    }

    fn end(&mut self, id: SyncId, ok: bool) {
        self.tracker.end(id, ok, &mut self.answers);
    }

    fn new_incarnation(&mut self) {
        self.tracker.new_incarnation(&mut self.answers);
    }

    /// What has been answered since the last look.
    fn answers(&mut self) -> Vec<(u64, bool)> {
        self.answers
            .drain(..)
            .map(|answer| (answer.owner, answer.durable))
            .collect()
    }
}

#[test]
fn a_lone_flush_is_answered_when_its_call_returns() {
    let mut t = Fixture::new();
    let call = t.begin(7);
    assert_eq!(t.answers(), []);
    t.end(call, true);
    assert_eq!(t.answers(), [(7, true)]);
}

#[test]
fn of_two_flushes_at_once_neither_succeeds_when_only_the_second_call_gets_the_error() {
    let mut t = Fixture::new();
    let (one, two) = (t.begin(1), t.begin(2));
    t.end(one, true);
    assert_eq!(t.answers(), [], "the other call may have taken its error");
    t.end(two, false);
    assert_eq!(t.answers(), [(2, false), (1, false)]);
    assert!(t.tracker.is_latched());
}

#[test]
fn of_two_flushes_at_once_neither_succeeds_when_only_the_first_call_gets_the_error() {
    let mut t = Fixture::new();
    let (one, two) = (t.begin(1), t.begin(2));
    t.end(one, false);
    assert_eq!(t.answers(), [], "failures wait until nothing is running");
    t.end(two, true);
    assert_eq!(t.answers(), [(1, false), (2, false)]);
}

#[test]
fn after_a_fua_that_failed_first_every_flush_fails_until_a_new_incarnation() {
    let mut t = Fixture::new();
    let fua = t.begin(1);
    t.end(fua, false);
    t.refused(2);
    t.refused(3);
    assert_eq!(t.answers(), [(1, false), (2, false), (3, false)]);
    t.new_incarnation();
    let flush = t.begin(4);
    t.end(flush, true);
    assert_eq!(t.answers(), [(4, true)]);
}

#[test]
fn a_flush_that_comes_while_a_failure_waits_fails_with_it() {
    let mut t = Fixture::new();
    let (one, two) = (t.begin(1), t.begin(2));
    t.end(one, false);
    t.refused(3);
    assert_eq!(t.answers(), []);
    t.end(two, false);
    assert_eq!(t.answers(), [(1, false), (3, false), (2, false)]);
}

#[test]
fn calls_that_do_not_overlap_do_not_wait_for_each_other() {
    let mut t = Fixture::new();
    let one = t.begin(1);
    t.end(one, true);
    let two = t.begin(2);
    assert_eq!(t.answers(), [(1, true)]);
    t.end(two, false);
    assert_eq!(t.answers(), [(2, false)]);
}

#[test]
fn a_stream_of_later_calls_does_not_hold_an_earlier_one_for_ever() {
    let mut t = Fixture::new();
    let (one, two) = (t.begin(1), t.begin(2));
    t.end(one, true);
    let three = t.begin(3);
    t.end(two, true);
    assert_eq!(
        t.answers(),
        [(1, true)],
        "call 3 began after call 1 had returned"
    );
    t.end(three, true);
    assert_eq!(t.answers(), [(2, true), (3, true)]);
}

#[test]
fn a_call_of_an_earlier_incarnation_never_succeeds_and_its_error_latches_the_new_one() {
    let mut t = Fixture::new();
    let (old, older) = (t.begin(1), t.begin(2));
    t.new_incarnation();
    let new = t.begin(3);
    t.end(new, true);
    t.end(older, true);
    assert_eq!(t.answers(), []);
    t.end(old, false);
    assert!(t.tracker.is_latched());
    assert_eq!(t.answers(), [(2, false), (1, false), (3, false)]);
}

#[test]
fn a_returned_call_that_still_waits_fails_in_a_new_incarnation() {
    let mut t = Fixture::new();
    let (one, two) = (t.begin(1), t.begin(2));
    t.end(one, true);
    t.new_incarnation();
    t.end(two, true);
    assert_eq!(t.answers(), [(1, false), (2, false)]);
    assert!(!t.tracker.is_latched());
}

/// Every interleaving of a few FLUSHes, writeback errors at any time, and a new incarnation after an answered failure,
/// against the kernel's behaviour: the first sync call that looks after the error gets it, the others nothing. When a call
/// looks and when its return is seen are two things, and that is what the rule is about.
#[test]
fn no_interleaving_lets_a_flush_succeed_after_its_writes_were_lost() {
    for (calls, errors) in [(3, 2), (4, 1)] {
        let mut paths = 0;
        let limits = Limits { calls, errors };
        explore(limits, &mut Vec::new(), &mut paths);
        assert!(paths > 1000, "{paths} interleavings");
    }
}

#[derive(Clone, Copy)]
struct Limits {
    calls: usize,
    errors: usize,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Step {
    /// Page n is written, then FLUSH n is submitted.
    Begin,
    /// In the kernel, the n-th sync call has written everything that is dirty and looks for an error.
    Look(usize),
    /// The n-th sync call returns what it found.
    End(usize),
    /// The kernel loses every page that is dirty.
    WritebackError,
    /// Everything lost is replayed.
    NewIncarnation,
}

struct Flush {
    id: Option<SyncId>,
    found: Option<bool>,
    returned: bool,
    answer: Option<bool>,
}

/// The world after a sequence of steps, made anew from the start each time.
struct World {
    tracker: SyncTracker,
    flushes: Vec<Flush>,
    /// Pages by number, one bit each. A page is clean once a call that began after it was written has found no error.
    dirty: u32,
    lost: u32,
    error_unseen: bool,
    errors: usize,
    failure_answered: bool,
    incarnations: usize,
}

impl World {
    fn after(steps: &[Step]) -> World {
        let mut world = World {
            tracker: SyncTracker::new(),
            flushes: Vec::new(),
            dirty: 0,
            lost: 0,
            error_unseen: false,
            errors: 0,
            failure_answered: false,
            incarnations: 0,
        };
        for step in steps {
            world.step(*step, steps);
        }
        world
    }

    fn step(&mut self, step: Step, steps: &[Step]) {
        let mut answers = Vec::new();
        match step {
            Step::Begin => {
                let n = self.flushes.len();
                self.dirty |= 1 << n;
                self.flushes.push(Flush {
                    id: None,
                    found: None,
                    returned: false,
                    answer: None,
                });
                self.flushes[n].id = self.tracker.begin(n as u64, &mut answers);
            }
            Step::Look(n) => {
                let ok = !std::mem::take(&mut self.error_unseen);
                self.flushes[n].found = Some(ok);
                if ok {
                    self.dirty &= !pages_before(n);
                }
            }
            Step::End(n) => {
                let flush = &mut self.flushes[n];
                flush.returned = true;
                let id = flush.id.expect("only calls that were made end");
                let ok = flush.found.expect("a call looks before it returns");
                self.tracker.end(id, ok, &mut answers);
            }
            Step::WritebackError => {
                self.error_unseen = true;
                self.errors += 1;
                self.lost |= std::mem::take(&mut self.dirty);
            }
            Step::NewIncarnation => {
                self.dirty |= std::mem::take(&mut self.lost);
                self.failure_answered = false;
                self.incarnations += 1;
                self.tracker.new_incarnation(&mut answers);
            }
        }
        for answer in answers {
            let n = answer.owner as usize;
            assert_eq!(self.flushes[n].answer, None, "answered twice: {steps:?}");
            self.flushes[n].answer = Some(answer.durable);
            if answer.durable {
                assert_eq!(
                    self.lost & pages_before(n),
                    0,
                    "success after a loss: {steps:?}"
                );
            } else {
                assert_eq!(
                    self.tracker.running(),
                    0,
                    "failure while a call runs: {steps:?}"
                );
                self.failure_answered = true;
            }
        }
    }

    fn next_steps(&self, limits: Limits) -> Vec<Step> {
        let mut next = Vec::new();
        if self.flushes.len() < limits.calls {
            next.push(Step::Begin);
        }
        for (n, flush) in self.flushes.iter().enumerate() {
            match flush.found {
                None if flush.id.is_some() => next.push(Step::Look(n)),
                Some(_) if !flush.returned => next.push(Step::End(n)),
                _ => {}
            }
        }
        if self.errors < limits.errors && self.dirty != 0 {
            next.push(Step::WritebackError);
        }
        if self.failure_answered && self.incarnations < 2 {
            next.push(Step::NewIncarnation);
        }
        next
    }
}

/// The pages that FLUSH n is for.
fn pages_before(n: usize) -> u32 {
    (1 << (n + 1)) - 1
}

fn explore(limits: Limits, steps: &mut Vec<Step>, paths: &mut usize) {
    let world = World::after(steps);
    if world.tracker.running() == 0 {
        for (n, flush) in world.flushes.iter().enumerate() {
            assert!(
                flush.answer.is_some(),
                "FLUSH {n} was never answered: {steps:?}"
            );
        }
    }
    let next = world.next_steps(limits);
    if next.is_empty() {
        *paths += 1;
    }
    for step in next {
        steps.push(step);
        explore(limits, steps, paths);
        steps.pop();
    }
}
