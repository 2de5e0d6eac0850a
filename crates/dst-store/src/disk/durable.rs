//! How FLUSH and FUA are answered: by the sync rule alone.

use crate::disk::task::Work;
use crate::disk::DiskBackend;
use crate::engine::Call;
use crate::request::{Outcome, StoreError};

impl DiskBackend {
    /// Starts the sync call of a FLUSH or FUA, if the sync rule lets it.
    pub(super) fn sync_begin(&mut self, slot: usize) {
        let begun = self.sync.begin(slot as u64, &mut self.answers);
        let task = self.task(slot);
        match begun {
            Some(id) => {
                task.work = Work::Sync(id);
                // A ranged sync flushes the range and its metadata, not the world. Length 0 means everything.
                let (offset, len) = match u32::try_from(task.len) {
                    Ok(len) => (task.offset, len),
                    Err(_) => (0, 0),
                };
                self.target.sync_begins();
                self.push(slot as u64, Call::Sync { offset, len });
            }
            None => task.work = Work::Refused,
        }
        self.pass_sync_answers();
    }

    pub(super) fn pass_sync_answers(&mut self) {
        let mut answers = std::mem::take(&mut self.answers);
        for answer in answers.drain(..) {
            let result = match answer.durable {
                true => Ok(Outcome::Done),
                false => Err(StoreError::SyncFailed),
            };
            self.end_task(answer.owner as usize, result);
        }
        self.answers = answers;
    }

    /// A write in the wide sense has its data in place: syncs it if that was asked.
    pub(super) fn written(&mut self, slot: usize) {
        match self.task(slot).fua {
            true => self.sync_begin(slot),
            false => self.end_task(slot, Ok(Outcome::Done)),
        }
    }
}
