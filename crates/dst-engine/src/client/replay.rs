//! Replay: in a fresh session, what is retained is written again before anything else.
//!
//! Entries go out in order of completion, several at once in slots of their own, but never two that overlap: the later
//! waits for the acknowledgement of the earlier. When all are acknowledged, REPLAYED goes out and the session is live.
//! The entries stay retained: the server has them only in its cache again. Unless a write has failed whose outcome was lost
//! with its session: the replay may have written over it, and what the device shows from now on must not change once
//! more when the cache is lost. Then a FLUSH comes between the replay and REPLAYED. A session lost meanwhile begins the replay anew.

use super::super::proto::{Kind, OpFlags, Status};
use super::event::{FailReason, Phase};
use super::retained::{Entries, Retained};
use super::session::Session;
use super::slot::{Request, Slot, Source, State};
use super::{user_slots, REPLAY_SLOTS};

/// How far the replay has got.
#[derive(Debug, Default)]
pub(super) struct Cursor {
    seq: u64,
    from: u64,
    /// Replays that have no answer yet.
    out: u16,
}

impl<W: AsRef<[u64]> + AsMut<[u64]>> Session<W> {
    /// Begins the replay in a session just opened.
    pub(super) fn start_replay<E: Entries>(&mut self, retained: &Retained<E>) {
        self.phase = Phase::Replaying;
        self.replay = Cursor {
            seq: retained.head(),
            from: 0,
            out: 0,
        };
    }

    /// Whether everything retained has been acknowledged anew.
    pub(super) fn replay_complete<E: Entries>(&self, retained: &Retained<E>) -> bool {
        self.replay.out == 0 && self.next_replay(retained).is_none()
    }

    /// Whether a FLUSH has to succeed before the session is live; sends it.
    pub(super) fn flush_replayed<E: Entries>(
        &mut self,
        slots: &mut [Slot],
        retained: &Retained<E>,
    ) -> bool {
        if !self.unsettled || !retained.is_enabled() || !retained.is_dirty() {
            self.unsettled = false;
            return false;
        }
        self.send_flush(slots, retained);
        true
    }

    fn next_replay<E: Entries>(&self, retained: &Retained<E>) -> Option<super::retained::Part> {
        if !retained.is_enabled() {
            return None;
        }
        // Only payload is limited: a discard of gigabytes stays one request.
        retained.next_part(self.replay.seq, self.replay.from, |kind| {
            if kind == Kind::WRITE {
                u64::from(self.config.limits.max_payload)
            } else {
                u64::MAX
            }
        })
    }

    /// Puts the next part to replay into a slot, ready to be sent. False: nothing can go out now.
    pub(super) fn prepare_replay<E: Entries>(
        &mut self,
        slots: &mut [Slot],
        retained: &Retained<E>,
    ) -> bool {
        let Some(part) = self.next_replay(retained) else {
            return false;
        };
        let first = user_slots(self.config.limits.slots);
        let last = first.saturating_add(REPLAY_SLOTS);
        let mut free = None;
        for at in first..last {
            let Some(slot) = slots.get(usize::from(at)) else {
                break;
            };
            if slot.is_free() {
                free = free.or(Some(at));
            } else if slot.request.overlaps(&part.request) {
                return false;
            }
        }
        let Some(at) = free else {
            return false;
        };
        if !self.has_credit(&part.request) || !self.has_id() {
            return false;
        }
        if let Some(slot) = slots.get_mut(usize::from(at)) {
            *slot = Slot {
                state: State::Free,
                request: Request {
                    flags: replay_flags(part.request.flags),
                    ..part.request
                },
                source: Source::Retained {
                    seq: part.seq,
                    from: part.from,
                },
                ..Slot::default()
            };
        }
        self.take_id(slots, retained, at);
        self.replay.seq = part.seq;
        self.replay.from = part.from.saturating_add(part.request.length);
        self.replay.out = self.replay.out.saturating_add(1);
        self.stats.replayed = self.stats.replayed.saturating_add(1);
        true
    }

    /// A replay has been answered.
    pub(super) fn replay_done<E: Entries>(
        &mut self,
        slots: &mut [Slot],
        retained: &mut Retained<E>,
        status: Status,
    ) {
        self.replay.out = self.replay.out.saturating_sub(1);
        // A discard too: its range may have been read as zeroes since, and would be something else now.
        if status != Status::OK {
            self.fail(slots, retained, FailReason::ReplayFailed(status));
        }
    }
}

/// Flags of a replayed request: a barrier has done its work, order is kept by waiting for acknowledgements.
fn replay_flags(flags: OpFlags) -> OpFlags {
    let kept = flags.without(OpFlags::BARRIER).without(OpFlags::FUA);
    let kept = kept.without(OpFlags::FAST_ONLY);
    kept.union(OpFlags::REPLAY)
}
