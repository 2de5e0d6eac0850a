//! What a read may return, and what it decides.

use super::sector::{Sector, State, Version};
use super::{Model, Range, RequestId};
use crate::Violation;

/// A read under way.
#[derive(Debug)]
pub(super) struct Read {
    pub request: RequestId,
    pub client: u8,
    pub first: usize,
    pub submitted: u64,
    /// When the newest barrier before it was submitted that was pending at its submission.
    pub barrier: u64,
    /// May see any version that is not durable: reads of others while the holder replays.
    pub lenient: bool,
    /// For each sector the values that it may return, with the time of their submission.
    pub allowed: Vec<Vec<(u64, u64)>>,
}

impl Model {
    /// A read is handed in. `barrier`: when the newest pending barrier of its client was submitted; `lenient`: see there.
    pub fn submit_read(
        &mut self,
        request: RequestId,
        client: u8,
        range: Range,
        barrier: u64,
        lenient: bool,
    ) -> u64 {
        let submitted = self.tick();
        let mut allowed = Vec::with_capacity(range.count);
        for sector in &self.sectors[range.first..range.end()] {
            let mut values = self.spare.pop().unwrap_or_default();
            values.clear();
            sector.visible(|value, when| values.push((value, when)));
            allowed.push(values);
        }
        self.reads.push(Read {
            request,
            client,
            first: range.first,
            submitted,
            barrier,
            lenient,
            allowed,
        });
        if lenient {
            let at = self.reads.len() - 1;
            self.allow_all(at);
        }
        submitted
    }

    /// The holder replays in an incarnation in which others may read meanwhile.
    pub fn replay_while_read(&mut self) {
        for at in 0..self.reads.len() {
            if Some(self.reads[at].client) != self.holder && !self.reads[at].lenient {
                self.reads[at].lenient = true;
                self.allow_all(at);
            }
        }
    }

    pub(super) fn allow_all(&mut self, at: usize) {
        let read = &mut self.reads[at];
        for (sector, allowed) in self.sectors[read.first..].iter().zip(&mut read.allowed) {
            allowed.extend(sector.base.iter().map(|value| (*value, 0)));
            allowed.extend(sector.versions.iter().map(|v| (v.value, v.submitted)));
        }
    }

    /// A read has failed, or its client is gone.
    pub fn fail_read(&mut self, request: RequestId) {
        if let Some(at) = self.reads.iter().position(|read| read.request == request) {
            let read = self.reads.swap_remove(at);
            self.spare.extend(read.allowed);
        }
    }

    /// A read has returned these values (none: known to be zeroes or data, see the end of BLOCK STATUS).
    pub fn finish_read(
        &mut self,
        request: RequestId,
        values: impl Iterator<Item = Option<u64>>,
    ) -> Result<(), Violation> {
        let Some(at) = self.reads.iter().position(|read| read.request == request) else {
            return Err(Violation::new(format!("read #{request} completed twice")));
        };
        let read = self.reads.swap_remove(at);
        self.tick();
        for (index, value) in values.enumerate() {
            let sector = read.first + index;
            let Some(value) = value else {
                return Err(Violation::new(format!(
                    "read #{request}: sector {sector} holds what no write has put there"
                )));
            };
            let allowed = read.allowed.get(index).map_or(&[][..], |values| values);
            if !allowed.iter().any(|(good, _)| *good == value) {
                return Err(Violation::new(format!(
                    "read #{request} of client {} (submitted at {}): sector {sector} is {value}, allowed {:?}; {}",
                    read.client,
                    read.submitted,
                    allowed,
                    self.sectors[sector].describe()
                )));
            }
            if self.holder == Some(read.client) && !self.lost {
                Self::observe(&mut self.sectors[sector], value, read.submitted);
            }
        }
        self.spare.extend(read.allowed);
        Ok(())
    }

    /// The holder has read `value` by a request submitted at `when`: what had failed before that is decided.
    pub(super) fn observe(sector: &mut Sector, value: u64, when: u64) {
        let settled = sector.settled();
        let decided = |v: &Version| matches!(v.state, State::Failed(at) if at < when);
        let open_base = settled == 0 && sector.base.len() > 1;
        if !open_base && !sector.versions[settled..].iter().any(decided) {
            return;
        }
        let mut matches = 0;
        sector.visible(|seen, _| matches += u32::from(seen == value));
        if matches != 1 {
            return;
        }
        let hit = sector.versions[settled..]
            .iter()
            .position(|v| v.value == value);
        match hit.map(|at| settled + at) {
            Some(at) if decided(&sector.versions[at]) => {
                let ghosts = sector.versions[at + 1..].iter().filter(|v| decided(v));
                let ghosts: Vec<u64> = ghosts.map(|v| v.value).collect();
                sector.rebase(at);
                sector.ghosts = ghosts;
                sector.versions.retain(|v| !decided(v));
            }
            Some(_) => {}
            None => {
                if open_base {
                    sector.base = vec![value];
                }
                let mut index = 0;
                let ghosts = &mut sector.ghosts;
                sector.versions.retain(|v| {
                    let keep = index < settled || !decided(v);
                    index += 1;
                    if !keep {
                        ghosts.push(v.value);
                    }
                    keep
                });
            }
        }
    }

    /// Whether a read now pending may return `value` for sector number `index` of its range.
    pub fn allows(&self, request: RequestId, index: usize, value: u64) -> bool {
        let read = self.reads.iter().find(|read| read.request == request);
        read.and_then(|read| read.allowed.get(index))
            .is_some_and(|allowed| allowed.iter().any(|(good, _)| *good == value))
    }
}
