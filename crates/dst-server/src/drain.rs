//! An orderly stop: tell the clients, finish what has arrived, flush, mark the export clean.
//!
//! ```text
//! (serving) --drain--> Finishing --every session idle, or out of time--> Settling --nothing executes--> Flushing --done--> (stopped)
//! ```
//!
//! Clients keep their sessions for the next server: whatever it does not know is sent again, and with a clean mark the
//! incarnation goes on.

use std::io;

use crate::worker::{nanoseconds, Worker};

impl Worker {
    pub(crate) fn start_drain(&mut self) {
        if self.drain.is_some() {
            return;
        }
        let until = self
            .now()
            .saturating_add(nanoseconds(self.config.drain_timeout));
        self.drain = Some(until);
        for member in self.members.values_mut() {
            member.session.drain();
        }
    }

    /// Takes a drain as far as it can go now. Answers, at its end, whether everything is flushed and marked so.
    pub(crate) fn drain_step(&mut self) -> Option<io::Result<bool>> {
        let until = self.drain?;
        let idle = self.members.values().all(|member| member.session.is_idle());
        let sent = self.conns.values().all(|conn| !conn.link.wants_write());
        if !(idle && sent) && self.now() < until {
            return None;
        }
        if !self.conns.is_empty() || self.members.values().any(|m| !m.session.is_ended()) {
            // From here on nothing is taken any more, so nothing can start behind the flush.
            for member in self.members.values_mut() {
                let reason = dst_proto::Status::DRAINING;
                member.session.settle(&mut member.slots, reason);
            }
            for id in self.conns.keys().copied().collect::<Vec<_>>() {
                self.drop_connection(id);
            }
        }
        if self.backend.in_flight() > 0 && self.drained.is_none() {
            return None;
        }
        match self.drained {
            None => {
                self.drain_flushing = true;
                self.flush_wanted = true;
                // The flush starts and ends in turns to come; this one must not sleep before the first.
                self.execute_all();
                self.drained.map(|ok| Ok(self.finish(ok)))
            }
            Some(ok) => Some(Ok(self.finish(ok))),
        }
    }

    fn finish(&mut self, flushed: bool) -> bool {
        self.saved.clean = flushed;
        self.save() && flushed
    }
}
