//! An orderly stop: tell the clients, finish what has arrived, flush, mark the export clean.
//!
//! ```text
//! No --drain--> Finishing --every session idle, or out of time--> Settling --nothing executes--> Flushing --done--> Flushed
//! ```
//!
//! From the start of a drain nobody new is let in; from *Settling* on nothing is taken from anybody, so nothing can start
//! behind the last flush. The mark is set when that has succeeded and the backend has nothing left.
//!
//! Clients keep their sessions for the next server: whatever it does not know is sent again, and with a clean mark the
//! incarnation goes on.

use dst_proto::Status;

use crate::worker::{nanoseconds, Worker};

/// How far the stop has come; see the module's diagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Drain {
    /// The export is served.
    No,
    /// Until this time at most.
    Finishing(u64),
    Settling,
    Flushing,
    /// Whether the flush has succeeded.
    Flushed(bool),
}

impl Drain {
    /// When there is something to do if nothing happens. Later states wait for the backend however long that takes.
    pub fn timeout(self) -> Option<u64> {
        match self {
            Self::Finishing(until) => Some(until),
            _ => None,
        }
    }
}

impl Worker {
    pub(crate) fn start_drain(&mut self) {
        if self.drain != Drain::No {
            return;
        }
        let time = nanoseconds(self.config.drain_timeout);
        self.drain = Drain::Finishing(self.now().saturating_add(time));
        for member in self.members.values_mut() {
            member.session.drain();
        }
        for number in self.asking.keys().copied().collect::<Vec<_>>() {
            self.cancel_asking(number, Some(Status::DRAINING));
        }
    }

    /// Takes a drain as far as it can go now. Answers, at its end, whether everything is flushed and marked so.
    pub(crate) fn drain_step(&mut self) -> Option<bool> {
        if let Drain::Finishing(until) = self.drain {
            let idle = self.members.values().all(|member| member.session.is_idle());
            let sent = self
                .conns
                .values()
                .all(|conn| !conn.framed.link.wants_write());
            if !(idle && sent) && self.now() < until {
                return None;
            }
            for member in self.members.values_mut() {
                member.session.settle(&mut member.slots, Status::DRAINING);
            }
            for id in self.conns.keys().copied().collect::<Vec<_>>() {
                self.drop_connection(id);
            }
            self.drain = Drain::Settling;
        }
        if self.drain == Drain::Settling && self.backend.in_flight() == 0 {
            self.drain = Drain::Flushing;
            self.flush_wanted = true;
            // The flush starts here and may end in turns to come; this one must not sleep before the first.
            self.execute_all();
        }
        match self.drain {
            Drain::Flushed(ok) if self.backend.in_flight() == 0 => {
                self.saved.clean = ok;
                Some(self.save() && ok)
            }
            _ => None,
        }
    }
}
