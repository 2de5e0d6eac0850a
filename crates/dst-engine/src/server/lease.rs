//! The right to write: who has it, and who may take it (PROTOCOL.md 6.1).
//!
//! # Invariants
//!
//! * The record in memory is the one on stable storage, or the one before it while a newer is being written.
//! * `epoch` rises exactly when the holder recorded differs in any part from the one before; a released lease keeps its
//!   last holder, so the same one coming back meets its own epoch.
//! * An expired lease stays its holder's until somebody takes it.

use super::super::proto::Holder;

/// What is kept on stable storage about an export's lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// The holder, or the last one where the lease is released.
    pub holder: Holder,
    /// Rises with every change of holder; 0 before the first.
    pub epoch: u64,
    /// Whether the lease is held.
    pub held: bool,
}

impl Record {
    /// Of an export that never had a writer.
    pub const NONE: Record = Record {
        holder: Holder {
            identity: [0; 16],
            boot: [0; 16],
            instance: [0; 16],
        },
        epoch: 0,
        held: false,
    };

    /// What the record will be when `holder` has got the lease.
    pub fn granted_to(&self, holder: &Holder) -> Record {
        let same = self.epoch > 0 && self.holder == *holder;
        Record {
            holder: *holder,
            epoch: self.epoch.saturating_add(u64::from(!same)),
            held: true,
        }
    }

    /// What the record will be when the lease has been given back.
    pub fn released(&self) -> Record {
        Record {
            held: false,
            ..*self
        }
    }
}

/// On what condition somebody gets the lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Claim {
    /// At once.
    Granted,
    /// When the holder's session doesn't answer.
    Probe,
    /// Not before this time.
    Busy(u64),
}

/// The lease of one export.
#[derive(Clone, Debug)]
pub(super) struct Lease {
    pub(super) record: Record,
    /// Last sign of life of the holder, or since when the server waits for one.
    pub(super) heard: u64,
    /// Nanoseconds that a lease outlives the last sign of life.
    time: u64,
}

impl Lease {
    pub(super) fn new(record: Record, time: u64, now: u64) -> Self {
        Lease {
            record,
            heard: now,
            time,
        }
    }

    /// When the lease becomes takeable.
    pub(super) fn expiry(&self) -> u64 {
        self.heard.saturating_add(self.time)
    }

    /// Whether `holder` may have the lease. `session` tells whether the holder of now has a session that can be asked.
    pub(super) fn claim(&self, holder: &Holder, session: bool, now: u64) -> Claim {
        let record = &self.record;
        if !record.held || record.holder == *holder || now >= self.expiry() {
            Claim::Granted
        } else if session && record.holder.identity == holder.identity {
            Claim::Probe
        } else {
            Claim::Busy(self.expiry())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(identity: u8, instance: u8) -> Holder {
        Holder {
            identity: [identity; 16],
            boot: [1; 16],
            instance: [instance; 16],
        }
    }

    fn held_by(holder: &Holder) -> Lease {
        Lease::new(Record::NONE.granted_to(holder), 100, 1000)
    }

    #[test]
    fn the_epoch_rises_with_every_other_holder_only() {
        let first = Record::NONE.granted_to(&holder(1, 1));
        assert_eq!(first.epoch, 1);
        assert_eq!(first.granted_to(&holder(1, 1)), first);
        assert_eq!(first.released().granted_to(&holder(1, 1)), first);
        assert_eq!(first.granted_to(&holder(1, 2)).epoch, 2);
        assert_eq!(first.released().granted_to(&holder(2, 1)).epoch, 2);
        let other_boot = Holder {
            boot: [9; 16],
            ..holder(1, 1)
        };
        assert_eq!(first.granted_to(&other_boot).epoch, 2);
    }

    #[test]
    fn a_holder_of_all_zeroes_is_not_taken_for_the_first() {
        assert_eq!(Record::NONE.granted_to(&Record::NONE.holder).epoch, 1);
    }

    #[test]
    fn only_the_holder_gets_a_lease_that_lives() {
        let lease = held_by(&holder(1, 1));
        assert_eq!(lease.claim(&holder(1, 1), false, 1050), Claim::Granted);
        assert_eq!(lease.claim(&holder(2, 1), true, 1050), Claim::Busy(1100));
        assert_eq!(lease.claim(&holder(1, 2), true, 1050), Claim::Probe);
        // After a start there is nobody to ask, so even the same identity waits.
        assert_eq!(lease.claim(&holder(1, 2), false, 1050), Claim::Busy(1100));
    }

    #[test]
    fn an_expired_or_released_lease_is_anybodys() {
        let mut lease = held_by(&holder(1, 1));
        assert_eq!(lease.claim(&holder(2, 1), true, 1100), Claim::Granted);
        lease.record = lease.record.released();
        assert_eq!(lease.claim(&holder(2, 1), true, 1001), Claim::Granted);
    }
}
