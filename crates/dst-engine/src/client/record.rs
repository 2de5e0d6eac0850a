//! The record of a session: what a successor needs when the process of a device dies.
//!
//! It lies in memory that outlives the process (a shared mapping), as cells of 64 bits that are written one at a time.
//! [`Session::record`] brings it up to date; the process may be killed between any two stores, and what is there then can
//! be adopted ([`Session::adopt`]). Payload is not in it: for a retained write it has the *place*, a number by which the
//! driver finds the bytes in memory that outlives the process as well.
//!
//! # When to call what
//!
//! ```text
//! handle_*, submit, close ... -> poll_event until nothing -> [ record ] -> tell completions, let released bytes go
//! handle_hello, poll_transmit                             -> [ record ] -> give bytes to a socket
//! ```
//!
//! So: nothing leaves the process (a completion, a byte, a buffer for new use) before the record says why. The bytes of what
//! `poll_event` said to retain are at their places before the record is made.
//!
//! # What is in it
//!
//! | cells | what | written |
//! | --- | --- | --- |
//! | `LAYOUT` | tells a record of this layout | last when it is made |
//! | `STATE` | running, closed, failed | once, instead of everything else |
//! | `HEAD`, entries, `TAIL` | retained writes and masks, as in [`Retained`] | in this order |
//! | `TURN` | which of two session blocks and slot tables is in force: its lowest bit; 0: none yet | after the other block is whole and the other table empty |
//! | block | number, secret, terms, geometry, generation of each index, live or not | before `TURN`; later single cells |
//! | table | a cell for each slot: the id that may be open there, and whether it writes | each before `ISSUED` |
//! | `ISSUED` | the highest id that may have gone out | last |
//!
//! # Invariants, between any two stores
//!
//! * Entries in [head, tail) are whole, in order of completion. An entry is overwritten only after `HEAD` has passed it.
//!   What lies below `HEAD` is durable.
//! * Every write that was acknowledged to the application and is not durable is in [head, tail) (its completion comes after
//!   the record that has it), and so is the mask of a FUA write that lies over one.
//! * Every id that a server can have seen in the session in force is at most `ISSUED`, and is open in the table or has
//!   finished at the client. An id above `ISSUED` in the table never went out: it is not open.
//! * A write that has finished well and is not yet told to the application is retained before its id is closed. Neither happens
//!   before its completion has been polled: the place of its bytes is not known before.
//! * No generation was ever used that is above the one in the block.
//! * *Live* is set only when everything retained before was acknowledged in the session in force.

use core::sync::atomic::{AtomicU64, Ordering};

use super::super::proto::{
    Algorithm, ExportState, Geometry, GeometryFlags, Holder, Kind, Limits, OpFlags,
};
use super::event::Phase;
use super::retained::{Entries, Entry, Retained};
use super::session::Session;
use super::slot::{Request, Slot, State};
use super::MAX_CONNECTIONS;

/// Names this layout; another one gets another number.
const MAGIC: u64 = 0x0001_6472_6f63_6572;

const LAYOUT: usize = 0;
const SHAPE: usize = 1;
const STATE: usize = 2;
const TURN: usize = 3;
const HEAD: usize = 4;
const TAIL: usize = 5;
const ISSUED: usize = 6;
const HOLDER: usize = 8;
const BLOCKS: usize = 16;
const BLOCK_CELLS: usize = 32;
const TABLES: usize = BLOCKS + 2 * BLOCK_CELLS;
const ENTRY_CELLS: usize = 4;

// Within a block.
const NUMBER: usize = 0;
const SECRET: usize = 1;
const EXPORT: usize = 3;
const INCARNATION: usize = 5;
const EPOCH: usize = 7;
const SIZE: usize = 8;
const BLOCK_SIZES: usize = 9;
const FLAGS: usize = 10;
const ATOMICITY: usize = 11;
const LIMITS: usize = 12;
const WINDOW: usize = 13;
const DIGEST: usize = 14;
const KEEPALIVE: usize = 15;
const LIVE: usize = 16;
const GENERATIONS: usize = 17;

const RUNNING: u64 = 0;
const CLOSED: u64 = 1;
const FAILED: u64 = 2;

/// Memory that outlives the process, in cells of 64 bits. A store is one access, and whoever sees its value sees what was
/// stored before it.
pub trait Cells {
    /// How many there are.
    fn count(&self) -> usize;
    /// What is in cell `at`; 0 beyond the end.
    fn load(&self, at: usize) -> u64;
    /// Puts `value` into cell `at`; beyond the end nothing happens.
    fn store(&mut self, at: usize, value: u64);
}

/// Cells in memory that another process may look at.
#[derive(Debug, Clone, Copy)]
pub struct Words<'m>(pub &'m [AtomicU64]);

impl Cells for Words<'_> {
    fn count(&self) -> usize {
        self.0.len()
    }

    fn load(&self, at: usize) -> u64 {
        self.0
            .get(at)
            .map_or(0, |cell| cell.load(Ordering::Acquire))
    }

    fn store(&mut self, at: usize, value: u64) {
        if let Some(cell) = self.0.get(at) {
            cell.store(value, Ordering::Release);
        }
    }
}

/// Why a record can't be adopted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unfit {
    /// It has another layout, or was never finished.
    Layout,
    /// Its tables have other sizes than what was lent.
    Shape,
    /// No session had been open.
    NeverOpened,
    /// The session was closed in order.
    Closed,
    /// The device had failed for good.
    Failed,
    /// It was sent with digests that the successor does not compute.
    Digest,
    /// It contradicts itself.
    Damaged,
}

/// See the module.
#[derive(Debug)]
pub struct Record<C> {
    cells: C,
    slots: u16,
    entries: u64,
}

impl<C: Cells> Record<C> {
    /// Cells that a record of so many slots and retained entries takes.
    pub fn size(slots: u16, entries: u32) -> usize {
        let tables = usize::from(slots).saturating_mul(2);
        let ring = usize::try_from(entries).unwrap_or(usize::MAX);
        TABLES
            .saturating_add(tables)
            .saturating_add(ring.saturating_mul(ENTRY_CELLS))
    }

    /// Makes an empty record for a session of `holder`. None: there are too few cells.
    pub fn make(mut cells: C, slots: u16, entries: u32, holder: &Holder) -> Option<Self> {
        let size = Self::size(slots, entries);
        if cells.count() < size {
            return None;
        }
        cells.store(LAYOUT, 0);
        for at in 1..size {
            cells.store(at, 0);
        }
        cells.store(SHAPE, pack(u32::from(slots), entries));
        let parts = [&holder.identity, &holder.boot, &holder.instance];
        for (at, part) in (HOLDER..).step_by(2).zip(parts) {
            put16(&mut cells, at, part);
        }
        cells.store(LAYOUT, MAGIC);
        Some(Self {
            cells,
            slots,
            entries: u64::from(entries),
        })
    }

    /// What a predecessor has left.
    pub fn open(cells: C) -> Result<Self, Unfit> {
        if cells.load(LAYOUT) != MAGIC {
            return Err(Unfit::Layout);
        }
        let (slots, entries) = unpack(cells.load(SHAPE));
        let slots = u16::try_from(slots).map_err(|_| Unfit::Damaged)?;
        if cells.count() < Self::size(slots, entries) {
            return Err(Unfit::Damaged);
        }
        Ok(Self {
            cells,
            slots,
            entries: u64::from(entries),
        })
    }

    /// The memory.
    pub fn cells(&self) -> &C {
        &self.cells
    }

    /// The memory.
    pub fn cells_mut(&mut self) -> &mut C {
        &mut self.cells
    }

    /// The memory, when the record is not looked at any more.
    pub fn into_cells(self) -> C {
        self.cells
    }

    /// Slots of its table.
    pub fn slots(&self) -> u16 {
        self.slots
    }

    /// Entries of its ring.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// Whose session it is; a successor goes on as the same holder.
    pub fn holder(&self) -> Holder {
        Holder {
            identity: get16(&self.cells, HOLDER),
            boot: get16(&self.cells, HOLDER.saturating_add(2)),
            instance: get16(&self.cells, HOLDER.saturating_add(4)),
        }
    }

    /// Whether a write is in it that may not be durable.
    pub fn retains(&self) -> bool {
        let (head, tail) = self.ring();
        head != tail
    }

    /// Where the bytes of the retained write `index` are, where it is one with bytes: see [`Retained::payload`].
    pub fn place(&self, index: usize) -> u64 {
        self.get(self.entry_cell(index), 3)
    }

    fn get(&self, base: usize, at: usize) -> u64 {
        self.cells.load(base.saturating_add(at))
    }

    /// Stores what differs: a store makes the line dirty.
    fn set(&mut self, base: usize, at: usize, value: u64) {
        let at = base.saturating_add(at);
        if self.cells.load(at) != value {
            self.cells.store(at, value);
        }
    }

    fn block(&self, turn: u64) -> usize {
        if turn & 1 == 0 {
            BLOCKS
        } else {
            BLOCKS.saturating_add(BLOCK_CELLS)
        }
    }

    fn table(&self, turn: u64) -> usize {
        if turn & 1 == 0 {
            TABLES
        } else {
            TABLES.saturating_add(usize::from(self.slots))
        }
    }

    fn issued_cell(turn: u64) -> usize {
        if turn & 1 == 0 {
            ISSUED
        } else {
            ISSUED.saturating_add(1)
        }
    }

    fn entry_cell(&self, index: usize) -> usize {
        TABLES
            .saturating_add(usize::from(self.slots).saturating_mul(2))
            .saturating_add(index.saturating_mul(ENTRY_CELLS))
    }

    fn read_entry(&self, index: usize) -> Entry {
        let at = self.entry_cell(index);
        let (code, mask) = unpack(self.get(at, 2));
        let [kind, flags, ..] = code.to_le_bytes();
        let request = Request {
            kind: Kind(kind),
            flags: OpFlags(flags),
            offset: self.get(at, 0),
            length: self.get(at, 1),
        };
        Entry::new(request, mask != 0)
    }

    /// Brings the ring up to date, with the entries below `tail`.
    fn keep<E: Entries>(&mut self, retained: &Retained<E>, tail: u64, places: &[u64]) {
        // First: the entries below may be overwritten.
        self.set(0, HEAD, retained.head());
        let mut seq = self.cells.load(TAIL).max(retained.head());
        while retained.is_enabled() && seq < tail {
            let index = retained.index(seq);
            let entry = retained.entry(seq);
            let request = entry.request();
            let at = self.entry_cell(index);
            let code = u32::from_le_bytes([request.kind.0, request.flags.0, 0, 0]);
            self.set(at, 0, request.offset);
            self.set(at, 1, request.length);
            self.set(at, 2, pack(code, u32::from(entry.is_mask())));
            self.set(at, 3, places.get(index).copied().unwrap_or(0));
            seq = seq.wrapping_add(1);
        }
        self.set(0, TAIL, tail);
    }

    /// The terms of a fresh session, and then its turn.
    fn begin(&mut self, last: &Last) {
        let turn = self.cells.load(TURN).wrapping_add(1);
        let table = self.table(turn);
        for at in 0..usize::from(self.slots) {
            self.set(table, at, 0);
        }
        self.set(0, Self::issued_cell(turn), 0);
        let block = self.block(turn);
        put16(&mut self.cells, block.saturating_add(SECRET), &last.secret);
        put16(
            &mut self.cells,
            block.saturating_add(EXPORT),
            &last.export.id,
        );
        let incarnation = block.saturating_add(INCARNATION);
        put16(&mut self.cells, incarnation, &last.export.incarnation);
        let limits = &last.limits;
        let cells = [
            (NUMBER, last.number),
            (EPOCH, last.export.epoch),
            (
                LIMITS,
                pack(
                    u32::from(limits.slots) | u32::from(limits.connections) << 16,
                    limits.max_payload,
                ),
            ),
            (WINDOW, pack(limits.window, limits.credit_bytes)),
            (DIGEST, pack(last.algorithm.code(), last.granule)),
            (KEEPALIVE, last.keepalive),
        ];
        for (at, value) in cells {
            self.set(block, at, value);
        }
        self.update(block, last);
        self.set(0, TURN, turn);
    }

    /// What changes during a session.
    fn update(&mut self, block: usize, last: &Last) {
        let geometry = &last.geometry;
        let cells = [
            (SIZE, geometry.size),
            (
                BLOCK_SIZES,
                pack(geometry.logical_block, geometry.physical_block),
            ),
            (FLAGS, pack(geometry.flags.0, geometry.discard_granularity)),
            (
                ATOMICITY,
                pack(geometry.atomic_limit, geometry.rollback_limit),
            ),
            (LIVE, u64::from(last.live)),
        ];
        for (at, value) in cells {
            self.set(block, at, value);
        }
        for (at, generation) in (GENERATIONS..).zip(last.generations) {
            self.set(block, at, u64::from(generation));
        }
    }

    fn is_of(&self, number: u64, secret: &[u8; 16]) -> bool {
        let turn = self.cells.load(TURN);
        let block = self.block(turn);
        turn != 0
            && self.get(block, NUMBER) == number
            && get16(&self.cells, block.saturating_add(SECRET)) == *secret
    }

    /// The session in force.
    pub(super) fn last(&self) -> Result<Last, Unfit> {
        match self.cells.load(STATE) {
            RUNNING => {}
            CLOSED => return Err(Unfit::Closed),
            FAILED => return Err(Unfit::Failed),
            _ => return Err(Unfit::Damaged),
        }
        let turn = self.cells.load(TURN);
        if turn == 0 {
            return Err(Unfit::NeverOpened);
        }
        let block = self.block(turn);
        let (logical_block, physical_block) = unpack(self.get(block, BLOCK_SIZES));
        let (flags, discard_granularity) = unpack(self.get(block, FLAGS));
        let (atomic_limit, rollback_limit) = unpack(self.get(block, ATOMICITY));
        let (counts, max_payload) = unpack(self.get(block, LIMITS));
        let (window, credit_bytes) = unpack(self.get(block, WINDOW));
        let (algorithm, granule) = unpack(self.get(block, DIGEST));
        let mut generations = [0; MAX_CONNECTIONS];
        for (at, generation) in (GENERATIONS..).zip(&mut generations) {
            *generation = unpack(self.get(block, at)).0;
        }
        let low = |value: u32| u16::try_from(value & 0xffff).unwrap_or(0);
        Ok(Last {
            number: self.get(block, NUMBER),
            secret: get16(&self.cells, block.saturating_add(SECRET)),
            export: ExportState {
                id: get16(&self.cells, block.saturating_add(EXPORT)),
                incarnation: get16(&self.cells, block.saturating_add(INCARNATION)),
                epoch: self.get(block, EPOCH),
            },
            geometry: Geometry {
                size: self.get(block, SIZE),
                logical_block,
                physical_block,
                flags: GeometryFlags(flags),
                discard_granularity,
                atomic_limit,
                rollback_limit,
            },
            limits: Limits {
                slots: low(counts),
                connections: low(counts >> 16),
                max_payload,
                window,
                credit_bytes,
            },
            algorithm: Algorithm::from_code(algorithm).ok_or(Unfit::Damaged)?,
            granule,
            keepalive: self.get(block, KEEPALIVE),
            live: self.get(block, LIVE) != 0,
            generations,
        })
    }

    /// The highest id that may have gone out.
    pub(super) fn issued(&self) -> u64 {
        self.cells.load(Self::issued_cell(self.cells.load(TURN)))
    }

    /// The id that may be open in slot `at`, and whether it writes.
    pub(super) fn open_id(&self, at: u16) -> Option<(u64, bool)> {
        let table = self.table(self.cells.load(TURN));
        let word = self.get(table, usize::from(at));
        let id = word >> 2;
        (word & 1 != 0 && id <= self.issued()).then_some((id, word & 2 != 0))
    }

    /// Takes ids that never went out from the table, before others get them.
    pub(super) fn forget_unissued(&mut self) {
        let table = self.table(self.cells.load(TURN));
        for at in 0..self.slots {
            if self.open_id(at).is_none() {
                self.set(table, usize::from(at), 0);
            }
        }
    }

    /// What is retained: head, tail.
    pub(super) fn ring(&self) -> (u64, u64) {
        let head = self.cells.load(HEAD);
        // The head is stored first, and may be ahead.
        (head, self.cells.load(TAIL).max(head))
    }

    /// Entry `index` of the ring, where it can be one of `geometry`'s.
    pub(super) fn entry(&self, index: usize, geometry: &Geometry) -> Option<Entry> {
        let entry = self.read_entry(index);
        let request = entry.request();
        let fits = request.offset.checked_add(request.length)? <= geometry.size;
        (request.kind.is_write() && request.length > 0 && fits).then_some(entry)
    }
}

/// A session as it stands in the record.
#[derive(Debug, Clone, Copy)]
pub(super) struct Last {
    pub number: u64,
    pub secret: [u8; 16],
    pub export: ExportState,
    pub geometry: Geometry,
    /// As granted.
    pub limits: Limits,
    pub algorithm: Algorithm,
    pub granule: u32,
    pub keepalive: u64,
    pub live: bool,
    pub generations: [u32; MAX_CONNECTIONS],
}

impl<W: AsRef<[u64]> + AsMut<[u64]>> Session<W> {
    /// Brings `record` up to date. `places[index]` tells where the driver has the bytes of the retained write with that index.
    /// When to call it: see the [module](self).
    pub fn record<E: Entries, C: Cells>(
        &self,
        slots: &[Slot],
        retained: &Retained<E>,
        record: &mut Record<C>,
        places: &[u64],
    ) {
        match self.phase {
            Phase::Failed(_) => return record.set(0, STATE, FAILED),
            Phase::Closed => return record.set(0, STATE, CLOSED),
            Phase::Opening | Phase::Replaying | Phase::Live | Phase::Closing => {}
        }
        // The driver knows the place of an entry only when it has polled its completion. What it has not waits for the next
        // record, and so do the ids of all that is done.
        let unpolled = slots.iter().filter(|slot| slot.state == State::Done);
        let unplaced = unpolled.filter_map(|slot| slot.retained).min();
        let tail = unplaced.map_or(retained.tail(), |seq| seq.min(retained.tail()));
        record.keep(retained, tail.max(retained.head()), places);
        let (Some(export), Some(geometry)) = (self.export, self.geometry) else {
            return;
        };
        let fresh = !record.is_of(self.number, &self.secret);
        let block = record.block(record.cells.load(TURN));
        let live = match self.phase {
            Phase::Live | Phase::Closing => true,
            // Lost, or given up, which the successor will find out.
            Phase::Opening => !fresh && record.get(block, LIVE) != 0,
            _ => false,
        };
        let last = Last {
            number: self.number,
            secret: self.secret,
            export,
            geometry,
            limits: Limits {
                connections: self.granted_connections,
                credit_bytes: self.granted_credit_bytes,
                ..self.config.limits
            },
            algorithm: self.algorithm,
            granule: self.granule,
            keepalive: self.keepalive,
            live,
            generations: self.generations(),
        };
        if fresh {
            record.begin(&last);
        } else {
            record.update(block, &last);
        }
        let turn = record.cells.load(TURN);
        let table = record.table(turn);
        for (at, slot) in (0..usize::from(record.slots)).zip(slots) {
            if slot.abort.id == 0 && slot.state == State::Done && !fresh {
                continue;
            }
            let word = match (slot.abort.id, slot.is_open()) {
                (0, true) => open_word(slot.id, slot.request.kind.is_write()),
                (0, false) => 0,
                (id, _) => open_word(id, slot.abort.write),
            };
            record.set(table, at, word);
        }
        let issued = Record::<C>::issued_cell(turn);
        record.set(0, issued, self.next_id.wrapping_sub(1));
    }

    fn generations(&self) -> [u32; MAX_CONNECTIONS] {
        let mut generations = [0; MAX_CONNECTIONS];
        for (generation, conn) in generations.iter_mut().zip(&self.conns) {
            *generation = conn.generation;
        }
        generations
    }
}

fn open_word(id: u64, write: bool) -> u64 {
    id << 2 | u64::from(write) << 1 | 1
}

fn pack(low: u32, high: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

fn unpack(cell: u64) -> (u32, u32) {
    let half = |value: u64| u32::try_from(value & 0xffff_ffff).unwrap_or(0);
    (half(cell), half(cell >> 32))
}

fn put16<C: Cells>(cells: &mut C, at: usize, bytes: &[u8; 16]) {
    let (low, high) = bytes.split_at(8);
    let cell = |half: &[u8]| u64::from_le_bytes(half.try_into().unwrap_or_default());
    cells.store(at, cell(low));
    cells.store(at.saturating_add(1), cell(high));
}

fn get16<C: Cells>(cells: &C, at: usize) -> [u8; 16] {
    let mut bytes = [0; 16];
    let (low, high) = bytes.split_at_mut(8);
    let put = |half: &mut [u8], at| {
        for (to, from) in half.iter_mut().zip(cells.load(at).to_le_bytes()) {
            *to = from;
        }
    };
    put(low, at);
    put(high, at.saturating_add(1));
    bytes
}
