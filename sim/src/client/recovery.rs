//! The record that a client process keeps, its death at any store, and the successor that adopts what is there.
//!
//! The record is the engine's own ([`dst_engine::client::Record`]), kept as its module says: before a completion is told, a
//! byte given to a stream, or the memory of a retained write freed. Each store, and each of those steps, may be the last one
//! of a process that is to die: from then on nothing of it has any effect. After a while a successor takes its place (the
//! same [`Agent`]: its user and the books go on), adopts the record, finds the bytes of retained writes by their places, and
//! is handed every request that has not been told to be complete, with the same payload, as ublk hands them in anew.

use dst_engine::client::{Cells, Config, Entry, Failure, Record, Retained, Session, Slot};
use dst_proto::{Holder, Kind};

use super::link::{Kept, Link, Memory, Place};
use super::Agent;
use crate::content::{self, SECTOR};
use crate::ctx::Ctx;
use crate::model::RequestId;
use crate::network::Side;
use crate::plant::Plant;
use crate::queue::{Event, MICRO, SECOND};
use crate::trace;

/// Memory that outlives the process, and how many steps that still has to live.
#[derive(Debug)]
pub(super) struct Tape {
    cells: Vec<u64>,
    left: u64,
}

impl Tape {
    fn step(&mut self) -> bool {
        if self.left != u64::MAX {
            self.left = self.left.saturating_sub(1);
        }
        self.left > 0
    }
}

impl Cells for Tape {
    fn count(&self) -> usize {
        self.cells.len()
    }

    fn load(&self, at: usize) -> u64 {
        self.cells.get(at).copied().unwrap_or(0)
    }

    fn store(&mut self, at: usize, value: u64) {
        if self.step() {
            self.cells[at] = value;
        }
    }
}

/// A completion that has not been told.
type Untold = (u16, Result<(), Failure>, bool);

/// What a client has for a successor.
#[derive(Debug)]
pub(super) struct Recovery {
    record: Record<Tape>,
    /// By index of the retained write.
    places: Vec<u64>,
    next_place: u64,
    /// Completions that come after the next record.
    untold: Vec<Untold>,
    /// Durable; freed after the next record, and when no socket has them any more.
    released: Vec<Kept>,
    /// The process is dead.
    pub dead: bool,
}

impl Recovery {
    pub fn new(slots: u16, entries: usize, holder: &Holder) -> Recovery {
        let count = u32::try_from(entries).expect("a scenario retains few entries");
        let tape = Tape {
            cells: vec![0; Record::<Tape>::size(slots, count)],
            left: u64::MAX,
        };
        Recovery {
            record: Record::make(tape, slots, count, holder).expect("there are cells enough"),
            places: vec![0; entries],
            next_place: 1,
            untold: Vec::new(),
            released: Vec::new(),
            dead: false,
        }
    }

    /// Writes that are durable, and not freed yet.
    pub fn released(&self) -> impl Iterator<Item = &Kept> {
        self.released.iter()
    }
}

impl Agent {
    /// So many more steps, and the process is dead.
    pub fn doom(&mut self, steps: u64) {
        self.recovery.record.cells_mut().left = steps;
    }

    /// Whether it is to die, or has.
    pub fn is_doomed(&self) -> bool {
        self.recovery.record.cells().left != u64::MAX
    }

    /// A request has an outcome. What is retained finds its place; the user is told when the record has it.
    pub(super) fn finished(
        &mut self,
        ctx: &mut Ctx,
        slot: u16,
        result: Result<(), Failure>,
        retained: Option<usize>,
    ) {
        if let Some(index) = retained {
            let memory = &mut self.memory[usize::from(slot)];
            let Some(id) = memory.request else {
                return ctx.fail(format!("slot {slot} is retained, and nothing was in it"));
            };
            let range = ctx.book.get(id).range;
            let kept = &mut self.kept[index];
            if kept.live {
                ctx.fail(format!(
                    "#{id} is to be retained at {index}, which is in use"
                ));
            }
            let recovery = &mut self.recovery;
            std::mem::swap(&mut kept.bytes, &mut memory.bytes);
            kept.shift = memory.shift;
            kept.range = (range.first as u64, range.count as u64);
            kept.live = true;
            kept.place = recovery.next_place;
            recovery.places[index] = recovery.next_place;
            recovery.next_place += 1;
        }
        self.recovery
            .untold
            .push((slot, result, retained.is_some()));
    }

    /// What is kept at `index` is durable.
    pub(super) fn released(&mut self, index: usize) {
        let kept = std::mem::take(&mut self.kept[index]);
        self.recovery.released.push(kept);
    }

    /// Records, tells what is complete, and frees what is durable.
    pub(super) fn settle_up(&mut self, ctx: &mut Ctx) {
        if ctx.planted(Plant::ToldBeforeRecorded) {
            self.tell(ctx);
        }
        if self.record(ctx) {
            self.tell(ctx);
        }
    }

    fn tell(&mut self, ctx: &mut Ctx) {
        for (slot, result, retained) in std::mem::take(&mut self.recovery.untold) {
            if !self.alive(ctx) {
                return;
            }
            self.completed(ctx, slot, result, retained);
        }
        if self.alive(ctx) {
            let links = &self.links;
            self.recovery.released.retain(|kept| {
                let place = Place::Kept(kept.place);
                links.iter().any(|link| link.out.refers_to(place))
            });
        }
    }

    /// Brings the record up to date. Tells whether the process is still alive.
    pub(super) fn record(&mut self, ctx: &mut Ctx) -> bool {
        let recovery = &mut self.recovery;
        if recovery.dead {
            return false;
        }
        let (record, places) = (&mut recovery.record, &recovery.places);
        if ctx.planted(Plant::RetainedNotRecorded) {
            let nothing = Retained::new(vec![Entry::default(); places.len()], 1);
            self.session.record(&self.slots, &nothing, record, places);
        } else if ctx.planted(Plant::OrphansForgotten) {
            let free = vec![Slot::default(); self.slots.len()];
            self.session.record(&free, &self.retained, record, places);
        } else {
            self.session
                .record(&self.slots, &self.retained, record, places);
        }
        self.alive(ctx)
    }

    /// One step of the process that others can see. Whether it still does it.
    pub(super) fn alive(&mut self, ctx: &mut Ctx) -> bool {
        if !self.recovery.dead && !self.recovery.record.cells_mut().step() {
            self.die(ctx);
        }
        !self.recovery.dead
    }

    fn die(&mut self, ctx: &mut Ctx) {
        trace!(
            ctx,
            "client {} (life {}) dies",
            self.birth.number,
            self.birth.life
        );
        self.recovery.dead = true;
        self.frozen = true;
        self.close_streams(ctx);
        let pause = ctx.rng.spread(MICRO, 3 * SECOND);
        let client = Some(self.birth.number);
        ctx.queue.after(pause, Event::Thaw { client });
    }

    fn close_streams(&mut self, ctx: &mut Ctx) {
        for link in &mut self.links {
            if let Some(stream) = link.stream {
                ctx.net.close(&mut ctx.queue, stream, Side::Client);
            }
            *link = Link::new();
        }
    }

    /// A successor takes the place of the dead process.
    pub(super) fn succeed(&mut self, ctx: &mut Ctx) {
        let recovery = &mut self.recovery;
        recovery.dead = false;
        recovery.record.cells_mut().left = u64::MAX;
        recovery.untold.clear();
        let engine = self.session.stats();
        ctx.stats.count_engine(&engine);
        let entries = vec![Entry::default(); self.kept.len()];
        let scenario = &ctx.scenario;
        let adopted = Session::adopt(
            Agent::config(scenario, &self.birth),
            vec![0; (scenario.window / 64) as usize],
            &mut self.slots,
            entries,
            scenario.retain.0,
            &mut recovery.record,
        );
        self.frozen = false;
        self.awake_since = ctx.now();
        self.timer_at = u64::MAX;
        self.submit_scheduled = false;
        self.aborted.clear();
        self.last_out.fill((0, None));
        match adopted {
            Ok((session, retained)) => {
                self.session = session;
                self.retained = retained;
            }
            Err(unfit) => {
                trace!(
                    ctx,
                    "client {} is not adopted: {unfit:?}",
                    self.birth.number
                );
                return self.give_up(ctx);
            }
        }
        ctx.stats.adoptions += 1;
        trace!(
            ctx,
            "client {} is adopted: session {}, phase {:?}, {} retained",
            self.birth.number,
            self.session.number(),
            self.session.phase(),
            self.retained.entries(),
        );
        self.find_kept(ctx);
        self.hand_in_again(ctx);
        self.schedule_user(ctx);
        if ctx.rng.one_in(4) {
            let steps = ctx.rng.spread(1, 300);
            self.doom(steps);
        }
        self.step(ctx);
    }

    /// The device can't be adopted: it is gone, with what its user had asked for.
    fn give_up(&mut self, ctx: &mut Ctx) {
        self.forget_requests(ctx);
        for memory in &mut self.memory {
            *memory = Memory::default();
        }
        self.failed = Some(dst_engine::client::FailReason::Forced);
    }

    /// The bytes of retained writes are where the record says.
    fn find_kept(&mut self, ctx: &mut Ctx) {
        let recovery = &mut self.recovery;
        let old = std::mem::take(&mut self.kept).into_iter();
        let mut old: Vec<Kept> = old.chain(recovery.released.drain(..)).collect();
        recovery.places.fill(0);
        for index in 0..recovery.places.len() {
            let mut found = Kept::default();
            if let Some(length) = self.retained.payload(index) {
                let place = recovery.record.place(index);
                match old.iter().position(|kept| kept.place == place) {
                    Some(at) => found = old.swap_remove(at),
                    None => ctx.fail(format!("the bytes at place {place} are gone")),
                }
                if found.bytes.len() != length as usize {
                    ctx.fail(format!("other bytes are at place {place}"));
                }
                found.live = true;
                recovery.places[index] = place;
            }
            self.kept.push(found);
        }
    }

    /// Every request that has not been told to be complete, in the old order.
    fn hand_in_again(&mut self, ctx: &mut Ctx) {
        let mut waiting: Vec<(RequestId, usize)> = (0..)
            .zip(&self.memory)
            .filter_map(|(at, memory)| Some((memory.request?, at)))
            .collect();
        waiting.sort_unstable();
        let now = ctx.now();
        for (id, at) in waiting {
            let deadline = ctx.scenario.deadline.map_or(u64::MAX, |limit| now + limit);
            ctx.book.reissued(id, deadline);
            let asked = ctx.book.get(id).clone();
            let memory = &mut self.memory[at];
            memory.bytes.clear();
            memory.extents.clear();
            // Of an earlier session, or an earlier id: an outcome of the new one says nothing about that.
            memory.sent = memory.sent.map(|_| 0);
            let Some(request) = memory.handed else {
                return ctx.fail(format!("#{id} is pending and was never handed in"));
            };
            if matches!(asked.kind, Kind::READ | Kind::WRITE) {
                memory.bytes.resize(request.length as usize, 0xdd);
            }
            if asked.kind == Kind::WRITE {
                let first = (request.offset - memory.shift) / SECTOR as u64;
                content::fill(&mut memory.bytes, first, asked.value);
            }
            let accepted =
                self.session
                    .submit(&mut self.slots, &mut self.retained, at as u16, request, now);
            if !accepted {
                ctx.fail(format!("#{id} was not taken again in slot {at}"));
            }
        }
    }

    /// What the engine of this process, and of a successor, is given.
    pub(super) fn config(scenario: &crate::scenario::Scenario, birth: &super::Birth) -> Config {
        Config {
            writable: birth.writable,
            holder: birth.holder,
            limits: dst_proto::Limits {
                slots: scenario.slots,
                connections: scenario.connections,
                max_payload: scenario.max_len,
                window: scenario.window,
                credit_bytes: 1 << 24,
            },
            digests: scenario.algorithm.mask_bit(),
            granule: scenario.granule,
            deadline: scenario.deadline,
            retries: 3,
        }
    }
}
