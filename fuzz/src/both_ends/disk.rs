//! The medium, which forgets what was not flushed, and what a device may show of it.

use std::collections::BTreeSet;

use dst_engine::client::Request;
use dst_proto::Kind;

use crate::trace;

pub const BLOCK: u64 = 512;
pub const BLOCKS: u64 = 32;

/// The blocks of a range.
pub fn blocks(offset: u64, length: u64) -> std::ops::Range<usize> {
    (offset / BLOCK) as usize..((offset + length) / BLOCK) as usize
}

#[derive(Clone, Copy, Debug, Default)]
struct Cell {
    /// Rises with every write of the block.
    version: u64,
    value: u64,
}

/// Blocks that hold one number each.
pub struct Disk {
    cache: Vec<Cell>,
    medium: Vec<Cell>,
}

/// What a flush will make durable.
pub struct Snapshot(Vec<Cell>);

impl Disk {
    pub fn new() -> Disk {
        let cells = vec![Cell::default(); BLOCKS as usize];
        Disk {
            cache: cells.clone(),
            medium: cells,
        }
    }

    pub fn read(&self, block: usize) -> u64 {
        self.cache[block].value
    }

    pub fn durable(&self, block: usize) -> u64 {
        self.medium[block].value
    }

    pub fn write(&mut self, block: usize, value: u64, durable: bool) {
        let cell = &mut self.cache[block];
        *cell = Cell {
            version: cell.version + 1,
            value,
        };
        if durable {
            self.medium[block] = *cell;
        }
    }

    pub fn snapshot(&self) -> Snapshot {
        Snapshot(self.cache.clone())
    }

    pub fn flushed(&mut self, snapshot: &Snapshot) {
        for (cell, flushed) in self.medium.iter_mut().zip(&snapshot.0) {
            if flushed.version > cell.version {
                *cell = *flushed;
            }
        }
    }

    /// What was not flushed is lost where `lost` has a bit, and has reached the medium elsewhere.
    pub fn lose(&mut self, lost: u64) {
        for (at, (cell, durable)) in self.cache.iter_mut().zip(&mut self.medium).enumerate() {
            if lost >> (at % 64) & 1 != 0 {
                trace!(
                    "  block {at}: {} is lost, {} is back",
                    cell.value,
                    durable.value
                );
                cell.value = durable.value;
            }
            // Versions only rise, so that an older snapshot is never taken for newer.
            *durable = *cell;
        }
    }
}

#[derive(Clone, Debug, Default)]
struct Block {
    /// What it may hold while no write of it is open.
    allowed: BTreeSet<u64>,
    /// Values of open writes.
    open: Vec<u64>,
    /// Changes with every event.
    stamp: u64,
}

/// A request of the device's, as the model sees it.
#[derive(Clone, Debug)]
pub struct Open {
    pub request: Request,
    /// What a write writes: 0 for zeroes.
    pub value: u64,
    /// For each block of a READ what it may show.
    may: Vec<BTreeSet<u64>>,
    /// For a READ its blocks, for a FLUSH all.
    stamps: Vec<u64>,
    number: u64,
}

/// What the device may show.
pub struct Model {
    blocks: Vec<Block>,
    reads: Vec<(u64, usize, u64)>,
    next: u64,
}

impl Model {
    pub fn new() -> Model {
        let block = Block {
            allowed: BTreeSet::from([0]),
            ..Block::default()
        };
        Model {
            blocks: vec![block; BLOCKS as usize],
            reads: Vec::new(),
            next: 1,
        }
    }

    pub fn submit(&mut self, request: Request) -> Open {
        let number = self.next;
        self.next += 1;
        let value = if request.kind == Kind::WRITE {
            number
        } else {
            0
        };
        let range = blocks(request.offset, request.length);
        let mut open = Open {
            request,
            value,
            may: Vec::new(),
            stamps: Vec::new(),
            number,
        };
        if request.kind.is_write() {
            for at in range {
                let block = &mut self.blocks[at];
                block.open.push(value);
                block.stamp += 1;
                self.reads.push((number, at, value));
            }
        } else if request.kind == Kind::READ {
            for at in range {
                let block = &self.blocks[at];
                let mut may = block.allowed.clone();
                may.extend(&block.open);
                open.may.push(may);
                open.stamps.push(block.stamp);
            }
        } else {
            open.stamps = self.blocks.iter().map(|block| block.stamp).collect();
        }
        open
    }

    /// A write is over; where it failed, it may have had an effect or not.
    pub fn written(&mut self, open: &Open, ok: bool) {
        for at in blocks(open.request.offset, open.request.length) {
            let block = &mut self.blocks[at];
            let place = block.open.iter().position(|value| *value == open.value);
            block.open.remove(place.expect("an open write"));
            block.stamp += 1;
            if ok {
                block.allowed.clear();
            }
            block.allowed.insert(open.value);
        }
    }

    /// A READ has shown these values.
    pub fn shown(&mut self, open: &Open, values: &[u64]) {
        let range = blocks(open.request.offset, open.request.length);
        for (nth, at) in range.enumerate() {
            let value = values[nth];
            let meanwhile = self.reads.iter().any(|(number, block, other)| {
                *number > open.number && (*block, *other) == (at, value)
            });
            let may = open.may[nth].contains(&value) || meanwhile;
            assert!(may, "block {at} shows {value}, not {:?}", open.may[nth]);
            let block = &mut self.blocks[at];
            // What was served once stays, until it is written again.
            if block.stamp == open.stamps[nth] && block.open.is_empty() {
                block.allowed = BTreeSet::from([value]);
            }
        }
    }

    /// A FLUSH has succeeded.
    pub fn flushed(&self, open: &Open, disk: &Disk) {
        for (at, block) in self.blocks.iter().enumerate() {
            if block.stamp == open.stamps[at] && block.open.is_empty() {
                let value = disk.durable(at);
                let good = block.allowed.contains(&value);
                assert!(
                    good,
                    "flushed, but block {at} has {value}, not {:?}",
                    block.allowed
                );
            }
        }
    }

    /// A write with FUA has succeeded.
    pub fn durable(&self, open: &Open, disk: &Disk) {
        for at in blocks(open.request.offset, open.request.length) {
            if self.blocks[at].open.is_empty() {
                assert_eq!(disk.durable(at), open.value, "FUA of block {at}");
            }
        }
    }
}
