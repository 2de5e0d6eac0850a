//! What was executed and what was said in a session, and the rules for both.
//!
//! A request is known by its slot and id. A client that uses one id in two slots harms only the order of its own session: from
//! then on that is not checked.

use std::collections::{BTreeMap, BTreeSet};

use dst_engine::server::Execute;
use dst_proto::{Credit, Header, Kind, OpFlags, Outcome, Status};

type Place = (u16, u64);

#[derive(Debug)]
pub struct Rules {
    /// The highest id that the client has used on its way up.
    pub next_id: u64,
    highest: Credit,
    /// The newest copy of what was sent under each id, let in or not.
    sent: BTreeMap<u64, Header>,
    /// Every different copy that was let in.
    requests: BTreeMap<Place, Vec<Header>>,
    /// What the backend has had, and the id up to which all had to be finished.
    started: BTreeMap<Place, u64>,
    /// What the backend answered last.
    ended: BTreeMap<Place, Status>,
    bad_payload: BTreeSet<Place>,
    outcomes: BTreeMap<Place, Outcome>,
    /// Statuses told for good.
    told: BTreeMap<Place, Status>,
    /// The slot of each id; an id with two slots makes `ordered` false.
    slots: BTreeMap<u64, u16>,
    ordered: bool,
}

fn is_reread(kind: Kind) -> bool {
    matches!(kind, Kind::READ | Kind::BLOCK_STATUS)
}

impl Rules {
    pub fn new(credit: Credit) -> Rules {
        Rules {
            next_id: 0,
            highest: credit,
            sent: BTreeMap::new(),
            requests: BTreeMap::new(),
            started: BTreeMap::new(),
            ended: BTreeMap::new(),
            bad_payload: BTreeSet::new(),
            outcomes: BTreeMap::new(),
            told: BTreeMap::new(),
            slots: BTreeMap::new(),
            ordered: true,
        }
    }

    pub fn highest(&self) -> Credit {
        self.highest
    }

    pub fn credit(&mut self, credit: Credit) {
        self.highest.requests = self.highest.requests.max(credit.requests);
        self.highest.bytes = self.highest.bytes.max(credit.bytes);
    }

    pub fn sent(&mut self, header: &Header) {
        self.sent.insert(header.id, *header);
    }

    pub fn request(&self, id: u64) -> Option<&Header> {
        self.sent.get(&id)
    }

    pub fn last_in(&self, slot: u16) -> Option<u64> {
        let mut mine = self.sent.values().filter(|header| header.slot == slot);
        mine.next_back().map(|header| header.id)
    }

    pub fn any_sent(&self, nth: usize) -> Option<&Header> {
        let nth = nth.checked_rem(self.sent.len())?;
        self.sent.values().nth(nth)
    }

    /// A request or an ABORT was let in, or thrown away without a fault.
    pub fn arrived(&mut self, header: &Header) {
        let slot = *self.slots.entry(header.id).or_insert(header.slot);
        self.ordered &= slot == header.slot;
        if header.kind == Kind::ABORT {
            return;
        }
        let copies = self.requests.entry((header.slot, header.id)).or_default();
        if !copies.contains(header) {
            copies.push(*header);
        }
    }

    fn has_kind(&self, place: Place, allowed: impl Fn(Kind) -> bool) -> bool {
        let copies = self.requests.get(&place);
        copies.is_some_and(|copies| copies.iter().any(|copy| allowed(copy.kind)))
    }

    pub fn payload(&mut self, place: Place, good: bool) {
        if good {
            self.bad_payload.remove(&place);
        } else {
            self.bad_payload.insert(place);
        }
    }

    pub fn starts(&mut self, execute: &Execute, running: &[Execute]) {
        let Execute {
            id,
            kind,
            flags,
            slot,
            ..
        } = *execute;
        let place = (slot, id);
        let copies = self.requests.get(&place).expect("executes what never came");
        let same = |copy: &&Header| {
            (copy.kind, copy.op_flags) == (kind, flags)
                && (copy.offset, copy.length) == (execute.offset, execute.length)
        };
        let after = copies.iter().filter(same).map(|copy| match copy.after {
            0 => 0,
            after => id.saturating_sub(u64::from(after)),
        });
        let mut not_before = after.min().expect("executes what was not asked");
        assert!(
            !running.iter().any(|other| (other.slot, other.id) == place),
            "twice at once"
        );
        assert!(
            !self.outcomes.contains_key(&place),
            "{id} executed after its ABORT was answered"
        );
        let bad = kind == Kind::WRITE && self.bad_payload.contains(&place);
        assert!(!bad, "{id} executed with a bad digest");

        let again = self.started.contains_key(&place);
        assert!(!again || is_reread(kind), "{id} executed twice");
        if again {
            return;
        }
        if flags.contains(OpFlags::BARRIER) {
            not_before = id - 1;
        }
        if self.ordered {
            for other in running {
                // What is read again has finished before.
                let again = self.ended.contains_key(&(other.slot, other.id));
                let apart = other.id > not_before || other.id == 0 || again;
                assert!(apart, "{id} while {} runs", other.id);
            }
            for ((_, other), needs) in &self.started {
                assert!(id > *needs, "{id} after {other}, which had to follow it");
            }
        }
        self.started.insert(place, not_before);
    }

    pub fn ends(&mut self, place: Place, status: Status) {
        self.ended.insert(place, status);
    }

    /// A reply to a request goes out.
    pub fn says(&mut self, header: &Header) {
        assert!(header.reply);
        let (place, status) = ((header.slot, header.id), header.status());
        self.credit(header.credit());
        let copies = self.requests.get(&place).expect("answers what never came");
        let same = |copy: &&Header| (copy.kind, copy.attempt) == (header.kind, header.attempt);
        assert!(
            copies.iter().any(|copy| same(&copy)),
            "answers what was not asked"
        );
        assert!(
            !self.outcomes.contains_key(&place),
            "{place:?} answered after its OUTCOME"
        );
        if status == Status::RETRY && !self.ended.contains_key(&place) {
            assert!(
                self.bad_payload.contains(&place),
                "RETRY without a bad digest"
            );
        } else {
            self.told(place, status);
        }
    }

    /// The client learns that a request has come to this.
    pub fn told(&mut self, place: Place, status: Status) {
        match self.ended.get(&place) {
            Some(ended) => assert_eq!(*ended, status, "another status than the backend's"),
            None => assert!(!status.is_ok(), "{place:?} succeeds without the backend"),
        }
        let before = self.told.insert(place, status);
        let same = before.is_none_or(|before| before == status);
        assert!(
            same || self.has_kind(place, is_reread),
            "told otherwise before"
        );
    }

    /// An ABORT is answered.
    pub fn outcome(&mut self, header: &Header, outcome: Outcome) {
        assert!(header.reply && header.status().is_ok());
        let place = (header.slot, header.id);
        let before = self.outcomes.insert(place, outcome);
        assert!(
            before.is_none_or(|before| before == outcome),
            "another outcome"
        );
        match outcome {
            Outcome::NeverExecuted => {
                let had = self.started.contains_key(&place);
                assert!(
                    !had || self.has_kind(place, is_reread),
                    "never executed, but it was"
                );
            }
            Outcome::Kept => assert!(self.ended.contains_key(&place)),
            other => panic!("{other:?} without rollback"),
        }
    }
}
