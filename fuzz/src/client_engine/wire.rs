//! What one session of a server has seen and said: the rules for what a client may send and believe.

use std::collections::{BTreeMap, BTreeSet};

use dst_engine::client::{Failure, Request};
use dst_proto::{Credit, Header, Kind, Limits, OpFlags, Outcome, Status};

use super::world::{Arriving, World, SLOTS};

#[derive(Debug)]
pub struct Sent {
    pub header: Header,
    pub index: u16,
    pub stream: u32,
    /// When it was sent for the first time.
    first: u64,
    /// The connection is lost, or the answer was RETRY: it may be sent again.
    again: bool,
    received: u64,
    statuses: Vec<Status>,
}

/// An ABORT that is out.
#[derive(Debug)]
struct Abort {
    first: u64,
    answered: bool,
}

#[derive(Debug, Default)]
pub struct Wire {
    pub sent: BTreeMap<u64, Sent>,
    aborts: BTreeMap<u64, Abort>,
    /// Ids whose outcome came over the connection where they were out.
    certain: BTreeSet<u64>,
    /// Ids whose outcome has been told, anywhere: the client may act on it.
    answered: BTreeSet<u64>,
    newest_in_slot: BTreeMap<u16, u64>,
    pub replayed: bool,
    /// The server has told an outcome of what it can't know: nothing that it says can be checked against what was sent.
    pub liar: bool,
    replays: Vec<Header>,
    highest: Credit,
    limits: Option<Limits>,
}

impl Wire {
    pub fn fresh(limits: &Limits, credit: Credit) -> Wire {
        Wire {
            highest: Credit {
                requests: credit.requests.max(limits.slots - 1),
                bytes: credit.bytes.max(limits.credit_bytes),
            },
            limits: Some(*limits),
            ..Wire::default()
        }
    }

    /// Every id up to this one has an outcome.
    fn floor(&self) -> u64 {
        if self.liar {
            return u64::MAX >> 1;
        }
        (1..)
            .find(|id| !self.answered.contains(id))
            .expect("endless")
            - 1
    }

    fn unanswered(&self) -> impl Iterator<Item = (&u64, &Sent)> {
        self.sent
            .iter()
            .filter(|(id, _)| !self.answered.contains(id))
    }

    /// Requests that are out on stream `stream` of `index` and have no answer.
    pub fn out(&self, index: u16, stream: u32) -> Vec<u64> {
        let mine = |sent: &Sent| sent.index == index && sent.stream == stream && !sent.again;
        let open = self
            .sent
            .iter()
            .filter(|(id, _)| !self.certain.contains(id));
        open.filter(|(_, sent)| mine(sent))
            .map(|(id, _)| *id)
            .collect()
    }

    /// Ids whose ABORT has no answer.
    pub fn open_aborts(&self) -> Vec<u64> {
        let open = self.aborts.iter().filter(|(_, abort)| !abort.answered);
        open.map(|(id, _)| *id).collect()
    }

    pub fn slot_of(&self, id: u64) -> Option<u16> {
        let found = self
            .newest_in_slot
            .iter()
            .find(|(_, newest)| **newest == id);
        found.map(|(slot, _)| *slot)
    }

    pub fn lost(&mut self, index: u16, stream: u32) {
        for sent in self.sent.values_mut() {
            if (sent.index, sent.stream) == (index, stream) {
                sent.again = true;
            }
        }
    }

    pub fn sends(&mut self, header: &Header, index: u16, stream: u32, step: u64) {
        let limits = self.limits.expect("sends within a session");
        let id = header.id;
        assert!(header.slot < limits.slots && limits.slots <= SLOTS && id > 0);
        assert!(
            header.acked <= self.floor(),
            "acknowledges what was not answered"
        );
        assert!(
            self.open_aborts().is_empty(),
            "sends while an ABORT is open"
        );
        assert!(
            id <= self.floor() + u64::from(limits.window),
            "beyond the window"
        );
        let replay = header.op_flags.contains(OpFlags::REPLAY);
        let own_flush = header.slot == limits.slots - 1;
        if own_flush {
            assert_eq!(header.kind, Kind::FLUSH);
        }
        // A replay may have to be durable before anything else is served.
        let early = own_flush && !self.replayed;
        assert!(
            early || replay != self.replayed,
            "replays come first, and only then"
        );
        if header.after > 0 {
            let barrier = self.sent.get(&(id - u64::from(header.after)));
            let known = barrier.map(|sent| sent.header.op_flags.contains(OpFlags::BARRIER));
            assert_ne!(known, Some(false), "after what is no barrier");
        }
        let barriers = self.unanswered().filter(|(other, sent)| {
            **other < id && sent.header.op_flags.contains(OpFlags::BARRIER)
        });
        if let Some((newest, _)) = barriers.last() {
            let after = id.checked_sub(u64::from(header.after));
            assert!(
                after.is_some_and(|after| after >= *newest && after < id),
                "not marked"
            );
        }
        for (other, sent) in self.unanswered() {
            let apart = !overlap(header, &sent.header);
            assert!(
                *other == id || apart,
                "overlapping writes {other} and {id} out at once"
            );
        }
        if let Some(sent) = self.sent.get_mut(&id) {
            assert!(!self.certain.contains(&id), "sent again after its outcome");
            assert!(sent.again, "out on two connections");
            assert_eq!(header.attempt, sent.header.attempt.wrapping_add(1));
            let before = Header {
                attempt: header.attempt,
                acked: header.acked,
                ..sent.header
            };
            assert_eq!(*header, before, "one id for two requests");
            sent.header = *header;
            (sent.index, sent.stream) = (index, stream);
            (sent.again, sent.received) = (false, 0);
        } else {
            self.sends_new(header, index, stream, step);
        }
        let flush_slot = limits.slots - 1;
        let counted = self
            .unanswered()
            .filter(|(_, sent)| sent.header.slot != flush_slot);
        assert!(
            counted.count() <= usize::from(self.highest.requests),
            "more than the credit"
        );
        let bytes: u64 = self
            .unanswered()
            .map(|(_, sent)| u64::from(sent.header.payload_len))
            .sum();
        assert!(
            bytes <= u64::from(self.highest.bytes),
            "more bytes than the credit"
        );
    }

    fn sends_new(&mut self, header: &Header, index: u16, stream: u32, step: u64) {
        let id = header.id;
        assert_eq!(header.attempt, 0);
        for lower in 1..id {
            let known = self.sent.contains_key(&lower) || self.aborts.contains_key(&lower);
            assert!(known || self.liar, "id {lower} left out before {id}");
        }
        if let Some(before) = self.newest_in_slot.insert(header.slot, id) {
            let finished = self.answered.contains(&before) || self.liar;
            assert!(before < id && finished, "slot taken too early");
        }
        if header.op_flags.contains(OpFlags::REPLAY) {
            self.replays.push(*header);
        }
        let sent = Sent {
            header: *header,
            index,
            stream,
            first: step,
            again: false,
            received: 0,
            statuses: Vec::new(),
        };
        self.sent.insert(id, sent);
    }

    pub fn aborts(&mut self, header: &Header, step: u64) {
        assert!(header.id > 0 && header.acked <= self.floor());
        if let Some(sent) = self.sent.get(&header.id) {
            assert_eq!(sent.header.slot, header.slot);
        }
        self.newest_in_slot.insert(header.slot, header.id);
        let abort = self.aborts.entry(header.id).or_insert(Abort {
            first: step,
            answered: false,
        });
        assert!(!abort.answered, "aborted again after the answer");
    }

    /// An ABORT is answered. Tells up to when what had been acknowledged is durable now.
    pub fn settled(&mut self, id: u64, outcome: Outcome) -> Option<u64> {
        let abort = self.aborts.get_mut(&id)?;
        abort.answered = true;
        self.answered.insert(id);
        // Of one that was never sent this side does not know what it was.
        let write = self
            .sent
            .get(&id)
            .is_none_or(|sent| sent.header.kind.is_write());
        (write && outcome != Outcome::NeverExecuted).then_some(abort.first)
    }

    /// A reply of a request came. Tells up to when what had been acknowledged is durable now.
    pub fn answered(&mut self, index: u16, header: &Header, _step: u64) -> Option<u64> {
        if header.credit_requests() > 0 {
            let credit = header.credit();
            self.highest.requests = self.highest.requests.max(credit.requests);
            self.highest.bytes = self.highest.bytes.max(credit.bytes);
        }
        let sent = self.sent.get_mut(&header.id)?;
        let out = sent.index == index && !sent.again && sent.header.attempt == header.attempt;
        if header.status() == Status::RETRY {
            sent.again |= out;
        }
        if header.more || header.payload_len > 0 {
            // The last piece counts when its payload is there.
            return None;
        }
        let out = out && (sent.header.kind, sent.header.slot) == (header.kind, header.slot);
        // A READ that succeeded has its outcome with the last piece.
        let whole = header.kind != Kind::READ || !header.status().is_ok();
        if out && whole && World::is_final(header.status()) {
            self.certain.insert(header.id);
        }
        self.outcome(header.id, header.status())
    }

    /// The outcome of `id` is told.
    pub fn outcome(&mut self, id: u64, status: Status) -> Option<u64> {
        let Some(sent) = self.sent.get_mut(&id) else {
            self.liar = true;
            return None;
        };
        sent.statuses.push(status);
        if !World::is_final(status) {
            return None;
        }
        self.answered.insert(id);
        let flush = sent.header.kind == Kind::FLUSH && status.is_ok();
        flush.then_some(sent.first)
    }

    /// A piece of a READ has come with a bad digest: it is read again.
    pub fn bad_piece(&mut self, arriving: &Arriving, stream: u32) {
        let sent = self
            .sent
            .get_mut(&arriving.id)
            .filter(|sent| sent.stream == stream);
        if let Some(sent) = sent {
            sent.again = true;
            // Where it is given up instead.
            sent.statuses.push(Status::RETRY);
        }
    }

    /// A piece of a READ has come with a good digest.
    pub fn piece(&mut self, arriving: &Arriving, stream: u32) {
        let Some(sent) = self.sent.get_mut(&arriving.id) else {
            return;
        };
        if sent.stream != stream {
            return;
        }
        sent.received += u64::from(arriving.len);
        if sent.received == sent.header.length {
            self.certain.insert(arriving.id);
            self.outcome(arriving.id, Status::OK);
        }
    }

    pub fn received(&self, id: u64) -> u64 {
        self.sent.get(&id).map_or(0, |sent| sent.received)
    }

    /// A request is completed: it must have come to that.
    pub fn completed(&self, slot: u16, request: &Request, result: &Result<(), Failure>) {
        let status = match result {
            Ok(()) => Status::OK,
            Err(Failure::Status(status)) => *status,
            Err(Failure::Deadline | Failure::DeviceFailed) => return,
        };
        if self.liar {
            return;
        }
        let id = self
            .newest_in_slot
            .get(&slot)
            .expect("completed and never sent");
        let sent = self.sent.get(id).expect("completed and never sent");
        assert!(
            sent.statuses.contains(&status),
            "{status:?} of {id} was never said"
        );
        assert_eq!(sent.header.kind, request.kind);
        if request.kind == Kind::READ && result.is_ok() {
            assert_eq!(
                sent.received, request.length,
                "a READ without all its bytes"
            );
        }
        if !World::is_final(status) {
            return;
        }
        if request.flags.contains(OpFlags::BARRIER) {
            assert!(self.floor() >= id - 1, "a barrier before lower ids");
        }
        if sent.header.after > 0 {
            let barrier = id - u64::from(sent.header.after);
            assert!(self.answered.contains(&barrier), "before its barrier");
        }
    }

    /// The replays of this session that were answered.
    pub fn replays(&self) -> impl Iterator<Item = &Header> {
        let done = |header: &&Header| self.answered.contains(&header.id);
        self.replays.iter().filter(done)
    }

    /// Before CLOSE everything has an outcome.
    pub fn check_idle(&self) {
        assert_eq!(self.unanswered().count(), 0, "CLOSE with requests open");
        assert!(self.open_aborts().is_empty());
    }
}

pub fn overlap(one: &Header, other: &Header) -> bool {
    one.kind.is_write()
        && other.kind.is_write()
        && one.offset < other.offset + other.length
        && other.offset < one.offset + one.length
}
