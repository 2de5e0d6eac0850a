//! Adoption: a successor goes on with the session of a process that has died, from the [`super::record`] that it left.
//!
//! ```text
//! record live     --> Live, no connection --JOIN--> ABORT of every orphan --all settled--> FLUSH --> new ids
//!                           \--SESSION_LOST--> Opening (below)
//! record not live --> Opening --OPEN with EXPECT, same holder--> Replaying --> FLUSH --> REPLAYED, Live --> new ids
//! ```
//!
//! *Orphans* are the ids that may be open at the server: nobody waits for them any more. The front end hands in again what
//! it has not seen complete, and that gets new ids.
//!
//! # Invariants
//!
//! * Nothing gets an id before every orphan is settled: they are requests that failed at their deadline, whose ABORT is
//!   open. So an orphan's copy that is still under way on a connection of the predecessor finds a tombstone (G3). Where
//!   the session is lost, the server settles them before it grants a fresh one, in which the same holder has the same epoch.
//! * Ids go on above the highest that may have gone out, and none is left out: what is neither open nor above that has finished
//!   at the predecessor, so *acknowledged up to* never says too much.
//! * Generations go on above the highest that may have been used.
//! * Nothing gets an id before a FLUSH that follows the ABORTs (or the replay), where anything is retained. Two reasons. An
//!   orphan that the server had executed is *kept* and durable with the answer to its ABORT, but an older retained write may
//!   lie under it: replaying that after a power cut would change once more what has been settled, and what has been read
//!   since (G5, G6). And nobody knows whether the predecessor had sent some of these ABORTs before: the flush that they
//!   prove may be older than writes acknowledged after that, so they prove nothing about retention here ([`Abort::mark`] is
//!   the head).
//! * A write that the server had answered but the application has not been told of may be retained; it is handed in again
//!   and lands on itself. A FLUSH that had succeeded but is not in the record leaves too much retained: replaying it is
//!   right, since all that was acknowledged after it is retained behind it, or durable with a mask.
//! * A device that had failed is not adopted: after writes were lost no FLUSH may succeed.

use super::super::proto::{Credit, Limits};
use super::config::Config;
use super::event::Phase;
use super::record::{Cells, Last, Record, Unfit};
use super::retained::{Entries, Retained};
use super::session::Session;
use super::slot::{Abort, Slot};

impl<W: AsRef<[u64]> + AsMut<[u64]>> Session<W> {
    /// The session that a predecessor has left in `record`, and what it had retained; the driver has to have the bytes of that
    /// ready by index ([`Record::place`]). Of `config` the holder and the limits are taken from the record instead, but for the
    /// number of connections and the credit. `slots` and `entries` are as many as the record has.
    ///
    /// Requests may be submitted at once; they wait until [`Session::is_settled`].
    pub fn adopt<E: Entries, C: Cells>(
        config: Config,
        window: W,
        slots: &mut [Slot],
        entries: E,
        capacity_bytes: u64,
        record: &mut Record<C>,
    ) -> Result<(Self, Retained<E>), Unfit> {
        let last = record.last()?;
        let sizes = (slots.len(), entries.as_ref().len() as u64);
        if sizes != (usize::from(record.slots()), record.entries()) {
            return Err(Unfit::Shape);
        }
        let digest = last.algorithm.mask_bit() & config.digests != 0;
        if !digest {
            return Err(Unfit::Digest);
        }
        if !plausible(&last, slots.len()) {
            return Err(Unfit::Damaged);
        }
        let (head, tail) = record.ring();
        let mut retained = Retained::new(entries, capacity_bytes);
        let entry = |index| record.entry(index, &last.geometry);
        retained.restore(head, tail, entry).ok_or(Unfit::Damaged)?;

        let asked = config.limits;
        let mut config = config;
        config.holder = record.holder();
        config.limits = Limits {
            connections: asked.connections,
            credit_bytes: asked.credit_bytes,
            ..last.limits
        };
        let mut session = Self::new(config, window);
        session.granted_connections = last.limits.connections.min(asked.connections).max(1);
        session.granted_credit_bytes = last.limits.credit_bytes;
        session.number = last.number;
        session.secret = last.secret;
        session.export = Some(last.export);
        session.geometry = Some(last.geometry);
        session.algorithm = last.algorithm;
        session.granule = last.granule;
        session.keepalive = last.keepalive;
        // No more than was given once; the answer to JOIN says what it is now.
        session.credit = Credit {
            requests: last.limits.slots.saturating_sub(1),
            bytes: last.limits.credit_bytes,
        };
        session.unsettled = true;
        for (conn, generation) in session.conns.iter_mut().zip(last.generations) {
            conn.generation = generation;
        }
        for slot in slots.iter_mut() {
            *slot = Slot::default();
        }
        if last.live {
            session.phase = Phase::Live;
            session.take_orphans(slots, head, record)?;
        }
        record.forget_unissued();
        Ok((session, retained))
    }

    /// Whether nothing that a predecessor, or a request that failed, has left is to be settled: requests flow.
    pub fn is_settled(&self) -> bool {
        self.phase == Phase::Live && self.aborts == 0 && !self.unsettled
    }

    fn take_orphans<C: Cells>(
        &mut self,
        slots: &mut [Slot],
        head: u64,
        record: &Record<C>,
    ) -> Result<(), Unfit> {
        let issued = record.issued();
        // No session lives long enough to get there, and none could go on from it.
        if issued == u64::MAX {
            return Err(Unfit::Damaged);
        }
        let mut floor = issued;
        for (at, slot) in (0..u16::MAX).zip(slots.iter_mut()) {
            let Some((id, write)) = record.open_id(at) else {
                continue;
            };
            if id == 0 {
                return Err(Unfit::Damaged);
            }
            slot.abort = Abort {
                id,
                conn: None,
                write,
                mark: Some(head),
            };
            self.aborts = self.aborts.saturating_add(1);
            self.stats.orphans = self.stats.orphans.saturating_add(1);
            floor = floor.min(id.saturating_sub(1));
        }
        if issued.saturating_sub(floor) > self.window.capacity() {
            return Err(Unfit::Damaged);
        }
        self.next_id = issued.wrapping_add(1);
        self.window.resume(floor);
        let mut id = floor.wrapping_add(1);
        while id <= issued {
            let mut open = slots.iter().filter(|slot| slot.abort.id == id);
            match (open.next(), open.next()) {
                (Some(_), None) => {}
                (Some(_), Some(_)) => return Err(Unfit::Damaged),
                (None, _) => {
                    self.window.finish(id);
                }
            }
            id = id.wrapping_add(1);
        }
        Ok(())
    }
}

/// Whether a server can have granted this.
fn plausible(last: &Last, slots: usize) -> bool {
    let (limits, geometry) = (&last.limits, &last.geometry);
    // The server may have granted fewer than were asked for.
    usize::from(limits.slots) <= slots
        && limits.slots >= super::REPLAY_SLOTS.saturating_add(2)
        && limits.connections >= 1
        && limits.window > 0
        && geometry.logical_block.is_power_of_two()
        && last.granule.is_power_of_two()
}
