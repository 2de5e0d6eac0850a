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

use crate::rng::Rng;
use crate::Violation;

/// Names a request of the scenario.
pub type RequestId = u32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Pending,
    /// At this time of the model.
    Acked(u64),
    Failed(u64),
}

#[derive(Clone, Copy, Debug)]
struct Version {
    value: u64,
    request: RequestId,
    client: u8,
    submitted: u64,
    state: State,
    /// Some byte of it has gone out. Before that it can have no effect.
    sent: bool,
}

#[derive(Clone, Debug)]
struct Sector {
    base: Vec<u64>,
    versions: Vec<Version>,
    ghosts: Vec<u64>,
}

impl Sector {
    /// Index behind the last acked version.
    fn settled(&self) -> usize {
        let acked = |version: &Version| matches!(version.state, State::Acked(_));
        self.versions.iter().rposition(acked).map_or(0, |at| at + 1)
    }

    /// Calls `f` with each value that a read may return now, and when it was submitted.
    fn visible(&self, mut f: impl FnMut(u64, u64)) {
        let settled = self.settled();
        match settled.checked_sub(1) {
            Some(at) => f(self.versions[at].value, self.versions[at].submitted),
            None => self.base.iter().for_each(|value| f(*value, 0)),
        }
        for version in &self.versions[settled..] {
            f(version.value, version.submitted);
        }
    }

    /// The last version acked before `time` is on the medium.
    fn durable_before(&mut self, time: u64) {
        let before = |v: &Version| matches!(v.state, State::Acked(at) if at < time);
        if let Some(at) = self.versions.iter().rposition(before) {
            self.rebase(at);
        }
    }

    /// Version `at` is on the medium, and with it nothing older.
    fn rebase(&mut self, at: usize) {
        let value = self.versions[at].value;
        self.base.clear();
        self.base.push(value);
        self.versions.drain(..=at);
        self.ghosts.clear();
    }

    fn describe(&self) -> String {
        let versions: Vec<String> = self
            .versions
            .iter()
            .map(|v| {
                let sent = if v.sent { "" } else { ", unsent" };
                format!(
                    "{}({:?} of #{} at {}{sent})",
                    v.value, v.state, v.request, v.submitted
                )
            })
            .collect();
        format!(
            "base {:?}, then [{}], ghosts {:?}",
            self.base,
            versions.join(", "),
            self.ghosts
        )
    }
}

#[derive(Debug)]
struct Read {
    request: RequestId,
    client: u8,
    first: usize,
    submitted: u64,
    /// When the newest barrier before it was submitted that was pending at its submission.
    barrier: u64,
    /// May see any version that is not durable: reads of others while the holder replays.
    lenient: bool,
    /// For each sector the values that it may return, with the time of their submission.
    allowed: Vec<Vec<(u64, u64)>>,
}

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
    lost: bool,
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
            lost: false,
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

    /// The client that may write, as far as clients know.
    pub fn holder(&self) -> Option<u8> {
        self.holder
    }

    /// Whether unflushed writes may be gone and have not been replayed.
    pub fn is_lost(&self) -> bool {
        self.lost
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

    fn allow_all(&mut self, at: usize) {
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
    fn observe(sector: &mut Sector, value: u64, when: u64) {
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

    /// A FLUSH submitted at `when` has succeeded.
    pub fn ack_flush(&mut self, when: u64) {
        for sector in &mut self.sectors {
            if !sector.versions.is_empty() {
                sector.durable_before(when);
            }
        }
    }

    /// A client has been let in to write, in the present incarnation where `current`. It is about to replay where `replays`.
    pub fn grant(&mut self, client: u8, current: bool, replays: bool) {
        let now = self.tick();
        if self.holder != Some(client) {
            for sector in &mut self.sectors {
                for version in &mut sector.versions {
                    if version.client != client && version.state == State::Pending {
                        version.state = State::Failed(now);
                    }
                }
                sector
                    .versions
                    .retain(|v| v.sent || v.state == State::Pending);
            }
            self.holder = Some(client);
            if self.lost || self.replaying {
                self.merge();
            }
        }
        self.replaying = replays;
        // A fresh session is granted only after a flush of the backend. (What is replayed goes over that again.)
        if current && !self.lost && !replays {
            for sector in &mut self.sectors {
                sector.durable_before(now);
            }
        }
    }

    /// The server has written down another holder: the one before can't replay any more, though nobody has been told.
    pub fn lease_moved(&mut self) {
        self.holder = None;
        if self.lost || std::mem::take(&mut self.replaying) {
            self.merge();
        }
    }

    /// A client is dead, or its device has failed: nothing of it comes any more, and nothing is replayed.
    pub fn client_gone(&mut self, client: u8) {
        if self.holder == Some(client) {
            self.holder = None;
            // Half a replay has put older writes over newer ones.
            if self.lost || std::mem::take(&mut self.replaying) {
                self.merge();
            }
        }
    }

    /// The holder has replayed everything.
    pub fn replayed(&mut self) {
        self.lost = false;
        self.replaying = false;
    }

    /// What was not flushed may be gone.
    pub fn lose(&mut self) {
        self.tick();
        self.lost = true;
        if self.holder.is_none() {
            self.merge();
        }
    }

    /// Nobody will replay: any version may be what is there.
    fn merge(&mut self) {
        self.lost = false;
        for sector in &mut self.sectors {
            let gone = sector.versions.iter().filter(|v| v.sent);
            sector.base.extend(gone.map(|v| v.value));
            sector.base.sort_unstable();
            sector.base.dedup();
            sector
                .versions
                .retain(|v| v.state == State::Pending && !v.sent);
        }
        for at in 0..self.reads.len() {
            self.allow_all(at);
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

#[cfg(test)]
#[path = "model_tests.rs"]
mod tests;
