//! Acting on what the rules of the sessions and of the export decide.

use dst_engine::server::{Action, CloseReason, Event, Record};
use dst_ids::{hex, random};
use dst_proto::Status;

use crate::drain::Drain;
use crate::frames;
use crate::record::SavedLease;
use crate::worker::{Worker, LEAVING};

impl Worker {
    /// Does what the rules want until they want nothing more. Answers whether there was anything.
    pub(crate) fn decide_all(&mut self) -> bool {
        let mut any = false;
        while let Some(action) = self.rules.poll_action(self.now()) {
            any = true;
            self.act(action);
        }
        any
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Probe { session } => {
                if let Some(member) = self.members.get_mut(&session) {
                    member.session.probe();
                }
            }
            Action::Settle { session, reason } => {
                if let Some(member) = self.members.get_mut(&session) {
                    member.session.settle(&mut member.slots, reason);
                } else {
                    // It never came to be.
                    self.rules.settled(session);
                }
            }
            Action::Flush => self.flush_wanted = true,
            Action::Persist(record) => self.persist(&record),
            Action::Grant { session } => self.grant(session),
            Action::Refuse { session, refused } => self.refuse_asking(session, refused),
            Action::Released { session, status } => {
                if let Some(member) = self.members.get_mut(&session) {
                    member.session.closed(status);
                }
                self.publish();
            }
            Action::Renew => {
                self.backend.new_incarnation();
                let identity = self.backend.identity();
                self.saved.replay_owed = self.rules.record().held;
                self.saved.incarnation = hex(&self.rules.state().incarnation);
                self.saved.continuity = identity.continuity.map(|hash| hex(&hash));
                self.saved.clean = false;
                // Where this fails the backend's continuity no longer matches what is saved: a restart begins anew.
                self.save();
            }
            Action::Ungate => {
                for member in self.members.values_mut() {
                    member.session.set_gate(&mut member.slots, false);
                }
                self.saved.replay_owed = false;
                // Where this fails the next start only holds readers back for nothing.
                self.save();
            }
        }
    }

    fn persist(&mut self, record: &Record) {
        let before = self.saved.lease.as_ref().map(|lease| lease.client.clone());
        let client = match record.held {
            true => self.admitted_client.clone(),
            false => before.unwrap_or_default(),
        };
        let previous = self.saved.lease.replace(SavedLease::new(record, &client));
        // Who gets the lease is let in next: the mark goes with the same write.
        let clean = std::mem::replace(&mut self.saved.clean, false);
        let saved = self.save();
        if !saved {
            self.saved.lease = previous;
            self.saved.clean = clean;
        }
        self.rules.persisted(saved, self.now());
    }

    /// Takes what the sessions have to tell, and closes streams that are done with. Answers whether there was anything.
    pub(crate) fn take_events(&mut self) -> bool {
        let mut any = false;
        let mut closing = Vec::new();
        let mut over = Vec::new();
        let now = self.now();
        for (&number, member) in &mut self.members {
            while let Some(event) = member.session.poll_event(&mut member.slots) {
                any = true;
                match event {
                    Event::Close { conn, reason } => closing.push((conn.0, reason)),
                    Event::Drop { slot } => drop(member.take(slot)),
                    Event::Replayed => self.rules.replayed(number),
                    Event::ProbeAnswered => self.rules.probe_answered(number, now),
                    Event::Release => {
                        if self.rules.release(number) {
                            member.session.closed(Status::OK);
                        }
                    }
                    Event::Settled => {
                        self.rules.heard(number, member.session.last_heard());
                        self.rules.settled(number);
                    }
                    Event::Over => over.push(number),
                }
            }
        }
        for (conn, reason) in closing {
            self.close(conn, reason);
        }
        for number in over {
            if let Some(member) = self.members.remove(&number) {
                self.keys.remove(&member.key);
                self.remains.insert(number, member);
            }
            self.forget_remains(number);
            self.publish();
        }
        any
    }

    /// The session is done with a stream: it goes when what is queued has left, where there is somebody to read that.
    fn close(&mut self, id: u32, reason: CloseReason) {
        let CloseReason::Ended(status) = reason else {
            return self.drop_connection(id);
        };
        let until = self.now().saturating_add(LEAVING);
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        if status != Status::OK && conn.framed.has_room() {
            let text = "the session has ended";
            conn.framed.link.push_bytes(&frames::error(status, text));
        }
        conn.framed.drop_place();
        conn.leaving = Some(until);
    }

    /// Tells the rules when each session was heard from last.
    pub(crate) fn tell_signs_of_life(&mut self) {
        if let Some(number) = self.rules.writer() {
            if let Some(member) = self.members.get(&number) {
                self.rules.heard(number, member.session.last_heard());
            }
        }
    }

    /// A flush of the export's own is done: the last one of a drain, or one that the rules asked for.
    pub(crate) fn own_flush_done(&mut self, ok: bool) {
        if self.drain == Drain::Flushing {
            self.drain = Drain::Flushed(ok);
        } else if ok {
            self.rules.flushed();
        } else {
            if self.drain == Drain::Flushed(true) {
                self.drain = Drain::Flushed(false);
            }
            self.rules.sync_failed(None, random(), self.now());
        }
    }
}
