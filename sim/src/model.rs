//! What a disk may show: for each sector the values that a read may return and those that a power cut may leave.
//!
//! A sector has a *base*, the value that is surely on the medium (or several, of which one is), and behind it the *versions*
//! written since, in order of submission, which for overlapping writes is the order of execution. A version is
//!
//! * *pending*: may or may not have happened; a read may see it or what was before;
//! * *acked*: has happened; nothing before it is ever seen again, but after a power cut that nobody replays;
//! * *failed*: old or new, the same for ever: the first read of the writer that was submitted after the failure tells which,
//!   and from then on that is the value, also after a power cut.
//!
//! A FLUSH makes the last version that was acked before its submission the base. The content is *lost* from the moment of
//! a power cut (or of a sync error) until the holder has replayed; meanwhile nobody may read it. When the holder goes away
//! before that, any version may be what is there.
//!
//! *Ghosts* are failed versions that were seen to have no effect: they may lie on the medium under a retained write, but
//! no read may return them again.

mod holder;
mod reads;
mod sector;
#[cfg(test)]
mod tests;

use reads::Read;
use sector::{Sector, State, Version};

use crate::rng::Rng;
use crate::Violation;

/// Names a request of the scenario.
pub type RequestId = u32;

/// A range in sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First sector.
    pub first: usize,
    /// Sectors.
    pub count: usize,
}

impl Range {
    fn end(&self) -> usize {
        self.first + self.count
    }
}

/// See the [module](self).
#[derive(Debug)]
pub struct Model {
    sectors: Vec<Sector>,
    reads: Vec<Read>,
    time: u64,
    /// The client that may write.
    holder: Option<u8>,
    /// Of the lease, as the server has written it down.
    epoch: u64,
    lost: bool,
    /// It was lost, and the server has let others read again since.
    shown: bool,
    /// The holder replays: what is there may be older than what was.
    replaying: bool,
    spare: Vec<Vec<(u64, u64)>>,
}

impl Model {
    /// A disk of zeroes.
    pub fn new(sectors: usize) -> Model {
        let sector = Sector {
            base: vec![0],
            versions: Vec::new(),
            ghosts: Vec::new(),
        };
        Model {
            sectors: vec![sector; sectors],
            reads: Vec::new(),
            time: 0,
            holder: None,
            epoch: 0,
            lost: false,
            shown: false,
            replaying: false,
            spare: Vec::new(),
        }
    }

    /// The disk has become larger, with zeroes.
    pub fn grow(&mut self, sectors: usize) {
        let sector = Sector {
            base: vec![0],
            versions: Vec::new(),
            ghosts: Vec::new(),
        };
        self.sectors.resize(sectors, sector);
    }

    /// The epoch of the lease as the server has written it down.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The client that may write, as far as clients know.
    pub fn holder(&self) -> Option<u8> {
        self.holder
    }

    /// The server has seen all of a replay: others may read, though the client that replayed may die before it knows, and
    /// its successor replay once more.
    pub fn show(&mut self) {
        self.shown = true;
    }

    /// Whether others than the holder may read.
    pub fn is_shown(&self) -> bool {
        !self.lost || self.shown
    }

    /// The next moment of the model's time.
    pub fn tick(&mut self) -> u64 {
        self.time += 1;
        self.time
    }

    /// A write is handed in. Tells when, in the time of the model.
    pub fn submit_write(
        &mut self,
        request: RequestId,
        client: u8,
        range: Range,
        value: u64,
    ) -> u64 {
        let submitted = self.tick();
        let version = Version {
            value,
            request,
            client,
            submitted,
            state: State::Pending,
            sent: false,
        };
        for sector in &mut self.sectors[range.first..range.end()] {
            sector.versions.push(version);
        }
        for read in &mut self.reads {
            let last = read.first + read.allowed.len();
            for at in range.first.max(read.first)..range.end().min(last) {
                read.allowed[at - read.first].push((value, submitted));
            }
        }
        submitted
    }

    fn each_version(
        &mut self,
        request: RequestId,
        range: Range,
        mut f: impl FnMut(&mut Sector, usize) -> Result<(), Violation>,
    ) -> Result<(), Violation> {
        for sector in &mut self.sectors[range.first..range.end()] {
            let at = sector.versions.iter().position(|v| v.request == request);
            if let Some(at) = at {
                f(sector, at)?;
            }
        }
        Ok(())
    }

    /// The first byte of a write has gone out.
    pub fn sent(&mut self, request: RequestId, range: Range) {
        let mark = |sector: &mut Sector, at: usize| {
            sector.versions[at].sent = true;
            Ok(())
        };
        self.each_version(request, range, mark)
            .expect("marking can't fail");
    }

    /// A write has succeeded.
    pub fn ack_write(
        &mut self,
        request: RequestId,
        range: Range,
        fua: bool,
    ) -> Result<(), Violation> {
        let now = self.tick();
        for at in range.first..range.end() {
            let sector = &mut self.sectors[at];
            let Some(index) = sector.versions.iter().position(|v| v.request == request) else {
                continue;
            };
            let version = sector.versions[index];
            if version.state != State::Pending {
                continue;
            }
            if !version.sent && version.value != 0 {
                return Err(Violation::new(format!(
                    "#{request} succeeded and was never sent"
                )));
            }
            let earlier = sector.versions[..index]
                .iter()
                .find(|v| v.state == State::Pending && v.client == version.client);
            if let Some(earlier) = earlier {
                return Err(Violation::new(format!(
                    "#{request} completed before the earlier #{} that it overlaps",
                    earlier.request
                )));
            }
            sector.versions[index].state = State::Acked(now);
            if fua {
                sector.rebase(index);
            }
            for read in &mut self.reads {
                let covers = (read.first..read.first + read.allowed.len()).contains(&at);
                if covers && read.client == version.client && version.submitted <= read.barrier {
                    read.allowed[at - read.first].retain(|(_, when)| *when >= version.submitted);
                }
            }
        }
        Ok(())
    }

    /// A write has failed, or its client is gone: from here on it has happened or not, sector by sector. Not `settled`: with
    /// an error of the backend, after which nobody flushes; so it may still vanish in a power cut.
    pub fn fail_write(&mut self, request: RequestId, range: Range, settled: bool) {
        let now = self.tick();
        let now = if settled { now } else { u64::MAX };
        let fail = |sector: &mut Sector, at: usize| {
            if sector.versions[at].state == State::Pending {
                if sector.versions[at].sent {
                    sector.versions[at].state = State::Failed(now);
                } else {
                    sector.versions.remove(at);
                }
            }
            Ok(())
        };
        self.each_version(request, range, fail)
            .expect("failing can't fail");
    }

    /// The server said that a failed write was never executed.
    pub fn never_executed(&mut self, request: RequestId, range: Range) {
        let forget = |sector: &mut Sector, at: usize| {
            sector.versions.remove(at);
            Ok(())
        };
        self.each_version(request, range, forget)
            .expect("forgetting can't fail");
    }

    /// A FLUSH submitted at `when` has succeeded.
    pub fn ack_flush(&mut self, when: u64) {
        for sector in &mut self.sectors {
            if !sector.versions.is_empty() {
                sector.durable_before(when);
            }
        }
    }

    /// Checks what a power cut has left against what it may leave.
    pub fn check_medium(&self, values: impl Iterator<Item = Option<u64>>) -> Result<(), Violation> {
        for (at, (sector, value)) in self.sectors.iter().zip(values).enumerate() {
            let good = value.is_some_and(|value| {
                sector.base.contains(&value)
                    || sector.ghosts.contains(&value)
                    || sector.versions.iter().any(|v| v.value == value && v.sent)
            });
            if !good {
                return Err(Violation::new(format!(
                    "after a power cut sector {at} of the medium is {value:?}, which was overwritten durably; {}",
                    sector.describe()
                )));
            }
        }
        Ok(())
    }

    /// A sector that has been written, for the scenario to aim at.
    pub fn some_written_sector(&self, rng: &mut Rng) -> usize {
        let start = rng.index(self.sectors.len());
        (start..self.sectors.len())
            .find(|at| !self.sectors[*at].versions.is_empty())
            .unwrap_or(start)
    }
}
