//! The server's disk: a medium, a volatile layer over it (the code of `dst-store` that ships), and operations that take time.
//!
//! A write is in the volatile layer at some moment between its submission and its completion. A power cut leaves of each
//! unflushed sector any version or none, and of a write in flight any of its sectors. A process that is killed leaves the
//! layer alone; of its operations in flight each happens or doesn't.
//!
//! Syncs follow Linux: when writeback fails, some of what was dirty is *lost*: clean, not on the medium, and still seen
//! until it is evicted. The error is reported by one sync of those that run, the others succeed. (Linux may evict such a page
//! at any time, even before the sync returns. No server can help that, so here it happens with the new incarnation.)

use dst_store::dice::Dice;
use dst_store::volatile::{ToMedium, Volatile};

use crate::content::SECTOR;
use crate::queue::{Event, Queue, MICRO};
use crate::rng::Rng;

/// An operation of the disk.
#[derive(Debug, Clone)]
pub enum DiskOp {
    /// Reads whole sectors.
    Read {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// Writes whole sectors.
    Write {
        /// First byte.
        offset: u64,
        /// The bytes.
        data: Vec<u8>,
        /// They are on the medium at completion, unless a sync error is met.
        fua: bool,
    },
    /// Makes a range read as zeroes.
    Zero {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// As in a write.
        fua: bool,
    },
    /// Puts everything on the medium.
    Flush,
}

impl DiskOp {
    /// Range of a write, in bytes.
    fn written(&self) -> Option<(u64, u64)> {
        match self {
            DiskOp::Write { offset, data, .. } => Some((*offset, data.len() as u64)),
            DiskOp::Zero { offset, len, .. } => Some((*offset, *len)),
            DiskOp::Read { .. } | DiskOp::Flush => None,
        }
    }
}

/// What became of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskResult {
    /// Done; of a read the bytes are in the operation's data.
    Done,
    /// An error of this operation alone.
    Io,
    /// A sync call returned an error.
    SyncFailed,
}

#[derive(Debug)]
struct Running {
    op: DiskOp,
    token: u64,
    applied: bool,
    /// Reports the error of a sync that failed.
    reports: bool,
    data: Vec<u8>,
}

/// A finished operation.
#[derive(Debug)]
pub struct Finished {
    /// As given to [`Disk::submit`].
    pub token: u64,
    /// What became of it.
    pub result: DiskResult,
    /// What a read has read.
    pub data: Vec<u8>,
}

/// How fast the disk is, and what goes wrong.
#[derive(Debug, Clone, Copy)]
pub struct DiskShape {
    /// Shortest and longest time of an operation, nanoseconds.
    pub latency: (u64, u64),
    /// Percent of written sectors that reach the medium early.
    pub early: u32,
}

/// See the [module](self).
#[derive(Debug)]
pub struct Disk {
    medium: Vec<u8>,
    layer: Volatile,
    /// Lost to a failed sync, but still seen: sector and bytes.
    lost: Vec<(u64, [u8; SECTOR])>,
    running: Vec<Option<Running>>,
    first_op: u32,
    shape: DiskShape,
    rng: Rng,
    dice: Dice,
    to_medium: Vec<ToMedium>,
    /// So many of the next syncs fail.
    pub failing_syncs: u32,
    /// So many of the next writes (or reads) fail with an error of their own.
    pub failing_writes: u32,
    /// See [`Disk::failing_writes`].
    pub failing_reads: u32,
    slow: Option<Slow>,
}

/// A time in which the disk is slow: the next write and some after it finish only when `span` nanoseconds have passed, and
/// then syncs take their time.
#[derive(Debug, Clone, Copy)]
struct Slow {
    span: u64,
    /// When the first of those writes came.
    since: Option<u64>,
}

impl Disk {
    /// A disk of zeroes.
    pub fn new(size: u64, shape: DiskShape, mut rng: Rng) -> Disk {
        Disk {
            medium: vec![0; size as usize],
            layer: Volatile::new(),
            lost: Vec::new(),
            running: Vec::new(),
            first_op: 0,
            shape,
            dice: Dice::new(rng.next_u64()),
            rng,
            to_medium: Vec::new(),
            failing_syncs: 0,
            failing_writes: 0,
            failing_reads: 0,
            slow: None,
        }
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.medium.len() as u64
    }

    /// Makes it larger.
    pub fn grow(&mut self, size: u64) {
        self.medium.resize(size as usize, 0);
    }

    /// Starts an operation; [`Event::Disk`] follows.
    pub fn submit(&mut self, queue: &mut Queue, token: u64, op: DiskOp) {
        let mut running = Running {
            op,
            token,
            applied: false,
            reports: false,
            data: Vec::new(),
        };
        let slow = self.slowness(queue.now(), &running.op);
        let sync = matches!(running.op, DiskOp::Flush);
        if self.rng.chance(50) && (slow == 0 || sync) {
            self.apply(&mut running);
        }
        let id = self.first_op + self.running.len() as u32;
        self.running.push(Some(running));
        let usual = self.rng.between(self.shape.latency.0, self.shape.latency.1);
        queue.after(usual + slow, Event::Disk { op: id });
    }

    /// From the next write on the disk is slow, see [`Slow`].
    pub fn slow_down(&mut self, span: u64) {
        self.slow = Some(Slow { span, since: None });
    }

    /// How much longer an operation takes than usual.
    fn slowness(&mut self, now: u64, op: &DiskOp) -> u64 {
        let Some(Slow { span, since }) = self.slow else {
            return 0;
        };
        let begun = since.unwrap_or(now);
        let end = begun + span;
        if now > end + span {
            self.slow = None;
            return 0;
        }
        match op {
            DiskOp::Write { .. } | DiskOp::Zero { .. } if now < end => {
                self.slow = Some(Slow {
                    span,
                    since: Some(begun),
                });
                if since.is_some() && self.rng.chance(60) {
                    return 0;
                }
                end - now + self.rng.spread(10 * MICRO, span / 2)
            }
            DiskOp::Flush if now >= end => self.rng.spread(10 * MICRO, span / 2),
            _ => 0,
        }
    }

    /// Takes an operation whose time has come; none where the process that wanted it is gone.
    pub fn finish(&mut self, op: u32) -> Option<Finished> {
        let index = op.checked_sub(self.first_op)? as usize;
        let mut running = self.running.get_mut(index)?.take()?;
        while self.running.first().is_some_and(Option::is_none) {
            self.running.remove(0);
            self.first_op += 1;
        }
        let result = self.complete(&mut running);
        Some(Finished {
            token: running.token,
            result,
            data: running.data,
        })
    }

    fn complete(&mut self, running: &mut Running) -> DiskResult {
        match &running.op {
            DiskOp::Read { .. } if self.failing_reads > 0 => {
                self.failing_reads -= 1;
                return DiskResult::Io;
            }
            DiskOp::Write { .. } | DiskOp::Zero { .. } if self.failing_writes > 0 => {
                self.failing_writes -= 1;
                self.apply_part(running);
                return DiskResult::Io;
            }
            _ => {}
        }
        if !running.applied {
            self.apply(running);
        }
        let (syncs, range) = match &running.op {
            DiskOp::Flush => (true, None),
            DiskOp::Write { fua, .. } | DiskOp::Zero { fua, .. } => (*fua, running.op.written()),
            DiskOp::Read { .. } => (false, None),
        };
        if syncs && self.failing_syncs > 0 {
            self.failing_syncs -= 1;
            running.reports |= self.fail_sync();
        }
        if running.reports {
            return DiskResult::SyncFailed;
        }
        if let (true, Some((offset, len))) = (syncs, range) {
            self.layer
                .write_back_some(offset, len, 100, &mut self.dice, &mut self.to_medium);
            self.settle();
        }
        DiskResult::Done
    }

    /// Writeback fails: some of what is dirty is lost. Whether the sync now ending is the one that reports it.
    fn fail_sync(&mut self) -> bool {
        let mut bytes = [0; SECTOR];
        for sector in 0..self.medium.len() / SECTOR {
            let offset = (sector * SECTOR) as u64;
            if !self.rng.chance(60) {
                continue;
            }
            self.read(offset, &mut bytes);
            self.layer.forget(offset, SECTOR as u64);
            if bytes != self.medium[sector * SECTOR..][..SECTOR] {
                self.lose(sector as u64, bytes);
            } else {
                self.lost.retain(|(lost, _)| *lost != sector as u64);
            }
        }
        let is_sync = |running: &&mut Running| match running.op {
            DiskOp::Flush => true,
            DiskOp::Write { fua, .. } | DiskOp::Zero { fua, .. } => fua,
            DiskOp::Read { .. } => false,
        };
        let others = self.running.iter_mut().flatten().filter(is_sync);
        let mut others: Vec<&mut Running> = others.collect();
        if others.is_empty() || self.rng.chance(50) {
            return true;
        }
        let reporter = self.rng.index(others.len());
        others[reporter].reports = true;
        false
    }

    fn lose(&mut self, sector: u64, bytes: [u8; SECTOR]) {
        self.lost.retain(|(lost, _)| *lost != sector);
        self.lost.push((sector, bytes));
    }

    fn apply(&mut self, running: &mut Running) {
        running.applied = true;
        match &running.op {
            DiskOp::Read { offset, len } => {
                let mut data = vec![0; *len as usize];
                self.read(*offset, &mut data);
                running.data = data;
            }
            DiskOp::Write { offset, data, .. } => {
                self.forget_lost(*offset, data.len() as u64);
                self.layer.write(*offset, data);
                self.early(*offset, data.len() as u64);
            }
            DiskOp::Zero { offset, len, .. } => {
                self.forget_lost(*offset, *len);
                self.layer.zero(*offset, *len);
                self.early(*offset, *len);
            }
            DiskOp::Flush => {
                self.layer.flush(&mut self.to_medium);
                self.settle();
            }
        }
    }

    /// Some sectors of a write that is broken off.
    fn apply_part(&mut self, running: &mut Running) {
        if std::mem::replace(&mut running.applied, true) {
            return;
        }
        let Some((offset, len)) = running.op.written() else {
            return;
        };
        for at in (0..len).step_by(SECTOR) {
            if self.rng.chance(50) {
                let sector = offset + at;
                self.forget_lost(sector, SECTOR as u64);
                match &running.op {
                    DiskOp::Write { data, .. } => {
                        self.layer.write(sector, &data[at as usize..][..SECTOR]);
                    }
                    _ => self.layer.zero(sector, SECTOR as u64),
                }
            }
        }
    }

    fn early(&mut self, offset: u64, len: u64) {
        if self.shape.early > 0 {
            let percent = self.shape.early;
            self.layer
                .write_back_some(offset, len, percent, &mut self.dice, &mut self.to_medium);
            self.settle();
        }
    }

    fn forget_lost(&mut self, offset: u64, len: u64) {
        if !self.lost.is_empty() {
            let sectors = offset / SECTOR as u64..(offset + len) / SECTOR as u64;
            self.lost.retain(|(sector, _)| !sectors.contains(sector));
        }
    }

    fn settle(&mut self) {
        for ToMedium { offset, data } in self.to_medium.drain(..) {
            self.medium[offset as usize..][..SECTOR].copy_from_slice(&data[..]);
        }
    }

    /// What a read sees now.
    pub fn read(&self, offset: u64, out: &mut [u8]) {
        out.copy_from_slice(&self.medium[offset as usize..][..out.len()]);
        let first = offset / SECTOR as u64;
        let last = first + (out.len() / SECTOR) as u64;
        for (sector, bytes) in &self.lost {
            if (first..last).contains(sector) {
                out[(sector - first) as usize * SECTOR..][..SECTOR].copy_from_slice(bytes);
            }
        }
        self.layer.overlay(offset, out);
    }

    /// What is on the medium itself.
    pub fn medium(&self) -> &[u8] {
        &self.medium
    }

    /// What a failed sync has lost is seen no more: the system's cache is dropped, as a new incarnation must do.
    pub fn evict(&mut self) {
        self.lost.clear();
    }

    /// The process is killed: each of its operations in flight happens, in part, or doesn't.
    pub fn kill(&mut self) {
        self.first_op += self.running.len() as u32;
        for mut running in std::mem::take(&mut self.running).into_iter().flatten() {
            match self.rng.below(3) {
                0 => self.apply_part(&mut running),
                1 if !running.applied => self.apply(&mut running),
                _ => {}
            }
        }
    }

    /// The machine loses power.
    pub fn power_cut(&mut self) {
        self.kill();
        self.lost.clear();
        self.layer.power_cut(&mut self.dice, &mut self.to_medium);
        self.settle();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::{fill, parse};

    fn disk(seed: u64) -> (Disk, Queue) {
        let shape = DiskShape {
            latency: (10, 1000),
            early: 0,
        };
        (Disk::new(8192, shape, Rng::new(seed)), Queue::new())
    }

    fn write(offset: u64, value: u64, fua: bool) -> DiskOp {
        let mut data = vec![0; 1024];
        fill(&mut data, offset / SECTOR as u64, value);
        DiskOp::Write { offset, data, fua }
    }

    fn run(disk: &mut Disk, queue: &mut Queue) -> Vec<(u64, DiskResult)> {
        let mut done = Vec::new();
        while let Some(Event::Disk { op }) = queue.pop() {
            done.extend(disk.finish(op).map(|f| (f.token, f.result)));
        }
        done
    }

    fn value(disk: &Disk, sector: u64) -> Option<u64> {
        parse(&disk.medium()[sector as usize * SECTOR..][..SECTOR], sector)
    }

    #[test]
    fn what_was_flushed_or_fua_survives_a_power_cut_and_the_rest_may_not() {
        let mut dropped = false;
        for seed in 0..50 {
            let (mut disk, mut queue) = disk(seed);
            disk.submit(&mut queue, 1, write(0, 7, false));
            run(&mut disk, &mut queue);
            disk.submit(&mut queue, 2, DiskOp::Flush);
            run(&mut disk, &mut queue);
            disk.submit(&mut queue, 3, write(1024, 8, true));
            disk.submit(&mut queue, 4, write(2048, 9, false));
            run(&mut disk, &mut queue);
            disk.power_cut();
            assert_eq!((value(&disk, 0), value(&disk, 2)), (Some(7), Some(8)));
            dropped |= value(&disk, 4) == Some(0);
        }
        assert!(dropped);
    }

    #[test]
    fn of_two_syncs_that_meet_an_error_one_reports_it() {
        let mut lost = false;
        for seed in 0..50 {
            let (mut disk, mut queue) = disk(seed);
            disk.submit(&mut queue, 1, write(0, 7, false));
            run(&mut disk, &mut queue);
            disk.failing_syncs = 1;
            disk.submit(&mut queue, 2, write(1024, 8, true));
            disk.submit(&mut queue, 3, write(4096, 9, true));
            let done = run(&mut disk, &mut queue);
            let failed = done.iter().filter(|d| d.1 == DiskResult::SyncFailed);
            assert_eq!(failed.count(), 1);
            disk.power_cut();
            lost |= value(&disk, 2) != Some(8) && value(&disk, 8) != Some(9);
        }
        assert!(lost, "the one that succeeded may be gone, too");
    }
}
