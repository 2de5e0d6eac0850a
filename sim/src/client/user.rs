//! The user of a client's device: hands in requests and checks how they end.

use dst_engine::client::{user_slots, Failure};
use dst_proto::{Kind, OpFlags, Status};

use super::{Agent, Place, Taking};
use crate::check::{Asked, Ending};
use crate::content::{self, SECTOR};
use crate::ctx::Ctx;
use crate::model::{Range, RequestId};
use crate::plant::Plant;
use crate::queue::{Event, MICRO, MILLI, SECOND};
use crate::trace;
use crate::workload::{self, Wish};

impl Agent {
    /// The user looks at the device: hands in some requests.
    pub fn submit_some(&mut self, ctx: &mut Ctx) {
        if self.frozen {
            return;
        }
        self.submit_scheduled = false;
        let Some(size) = self.session.geometry().map(|geometry| geometry.size) else {
            return;
        };
        let depth = ctx.scenario.depth.min(user_slots(ctx.scenario.slots));
        let mut burst = ctx.rng.between(1, u64::from(depth));
        while burst > 0 && self.wants_more() && self.outstanding() < usize::from(depth) {
            burst -= 1;
            let Some(at) = (0..user_slots(ctx.scenario.slots)).find(|at| {
                let slot = usize::from(*at);
                self.slots[slot].is_free() && self.memory[slot].request.is_none()
            }) else {
                break;
            };
            let wish = match self.script.pop_front() {
                Some(wish) => wish,
                None => {
                    self.left -= 1;
                    workload::wish(&ctx.scenario, &mut ctx.rng, size, self.birth.writable)
                }
            };
            self.hand_in(ctx, at, wish);
        }
        self.schedule_user(ctx);
        self.step(ctx);
    }

    fn wants_more(&self) -> bool {
        self.left > 0 || !self.script.is_empty()
    }

    /// Whether the user has got everything that it wanted.
    pub fn is_satisfied(&self) -> bool {
        !self.wants_more() && self.outstanding() == 0
    }

    /// From now on the user wants these, and nothing else.
    pub fn follow(&mut self, ctx: &mut Ctx, script: Vec<Wish>) {
        self.left = 0;
        self.disappointed = 0;
        self.script = script.into();
        self.schedule_user(ctx);
    }

    /// The user wants more, after a while.
    pub fn ask_more(&mut self, ctx: &mut Ctx, requests: u32) {
        self.left += requests;
        self.submit_scheduled = true;
        let pause = ctx.rng.spread(10 * MILLI, SECOND);
        let client = self.birth.number;
        ctx.queue.after(pause, Event::Submit { client });
    }

    /// Size of the device, bytes; none before the first session.
    pub fn size(&self) -> Option<u64> {
        self.session.geometry().map(|geometry| geometry.size)
    }

    pub(super) fn schedule_user(&mut self, ctx: &mut Ctx) {
        let depth = ctx.scenario.depth.min(user_slots(ctx.scenario.slots));
        let room = self.outstanding() < usize::from(depth);
        if self.submit_scheduled || !self.opened || !self.wants_more() || !room {
            return;
        }
        self.submit_scheduled = true;
        let pause = ctx.rng.spread(MICRO, ctx.scenario.pause);
        let client = self.birth.number;
        ctx.queue.after(pause, Event::Submit { client });
    }

    fn hand_in(&mut self, ctx: &mut Ctx, at: u16, wish: Wish) {
        let mut request = wish.request;
        let (kind, flags) = (request.kind, request.flags);
        let range = if wish.beyond || kind == Kind::FLUSH {
            Range { first: 0, count: 0 }
        } else {
            Range {
                first: request.offset as usize / SECTOR,
                count: request.length as usize / SECTOR,
            }
        };
        let id = ctx.book.next_id();
        let life = self.birth.life;
        // Values of writes begin at 1 and are unique; 0 is zeroes.
        let value = if kind == Kind::WRITE {
            u64::from(id) + 1
        } else {
            0
        };
        let memory = &mut self.memory[usize::from(at)];
        memory.request = Some(id);
        memory.shift = 0;
        memory.sent = None;
        memory.extents.clear();
        memory.bytes.clear();
        if matches!(kind, Kind::READ | Kind::WRITE) {
            memory.bytes.resize(request.length as usize, 0xdd);
        }
        if kind == Kind::WRITE {
            let first = request.offset / SECTOR as u64;
            content::fill(&mut memory.bytes, first, value);
            if ctx.planted(Plant::OverlappingWritesNotHeldBack) && !wish.beyond {
                memory.shift = (u64::from(id) + 1) << 32;
                request.offset += memory.shift;
            }
        }
        let barrier = ctx.book.newest_barrier(life);
        let lenient = !self.birth.writable && ctx.quiet_replay;
        let submitted = match kind {
            _ if kind.is_write() => ctx.model.submit_write(id, life, range, value),
            Kind::FLUSH => ctx.model.tick(),
            _ => ctx.model.submit_read(id, life, range, barrier, lenient),
        };
        let now = ctx.now();
        ctx.book.submit(Asked {
            client: life,
            kind,
            flags,
            range,
            value,
            beyond: wish.beyond,
            submitted,
            deadline: ctx.scenario.deadline.map_or(u64::MAX, |limit| now + limit),
            ending: Ending::Pending,
        });
        ctx.stats.requests += 1;
        ctx.submitted += u32::from(self.birth.writable);
        trace!(
            ctx,
            "client {}: #{id} {} sectors {}+{} flags {} in slot {at}",
            self.birth.number,
            kind.name(),
            range.first,
            range.count,
            flags.0
        );
        self.memory[usize::from(at)].handed = Some(request);
        let accepted = self
            .session
            .submit(&mut self.slots, &mut self.retained, at, request, now);
        if !accepted {
            ctx.fail(format!("#{id} was not taken in the free slot {at}"));
        }
    }

    /// A request has completed.
    pub(super) fn completed(
        &mut self,
        ctx: &mut Ctx,
        slot: u16,
        result: Result<(), Failure>,
        retained: bool,
    ) {
        let at = usize::from(slot);
        let Some(id) = self.memory[at].request.take() else {
            return ctx.fail(format!("slot {slot} completes, and nothing was in it"));
        };
        self.check_memory(ctx, slot, id);
        let asked = ctx.book.get(id).clone();
        trace!(
            ctx,
            "client {}: #{id} {} is done: {}",
            self.birth.number,
            asked.kind.name(),
            match result {
                Ok(()) => "good".to_owned(),
                Err(failure) => format!("{failure:?}"),
            }
        );
        ctx.trace
            .mix(u64::from(id) << 1 | u64::from(result.is_ok()));
        match result {
            Ok(()) => ctx.stats.succeeded += 1,
            Err(Failure::Deadline) => {
                ctx.stats.expired += 1;
                self.disappointed += 1;
            }
            Err(_) => ctx.stats.failed += 1,
        }
        match result {
            Ok(()) => self.succeeded(ctx, at, id, &asked, retained),
            Err(failure) if asked.kind.is_write() => {
                let torn = matches!(failure, Failure::Status(status) if status != Status::RETRY);
                ctx.model.fail_write(id, asked.range, !torn);
            }
            Err(_) => ctx.model.fail_read(id),
        }
        if retained && !self.aborted.is_empty() {
            self.cut_after_ack(ctx);
        }
        if retained && result.is_err() {
            ctx.fail(format!("#{id} failed and is to be retained"));
        }
        let when = ctx.model.tick();
        let times = (ctx.now(), when);
        // The holder alone: readers are promised less.
        let writer = ctx.model.holder() == Some(self.birth.life);
        let failed = self.failed.or(match self.session.phase() {
            dst_engine::client::Phase::Failed(reason) => Some(reason),
            _ => None,
        });
        let legal = ctx
            .book
            .complete(id, result, writer, failed, times, self.awake_since);
        ctx.check(legal);
        self.schedule_user(ctx);
    }

    fn check_memory(&mut self, ctx: &mut Ctx, slot: u16, id: RequestId) {
        for (index, link) in self.links.iter().enumerate() {
            if link.out.refers_to(Place::Slot(slot)) {
                ctx.fail(format!(
                    "#{id} completes while connection {index} still sends its memory"
                ));
            }
            if matches!(link.taking, Some(Taking::Into { slot: into, .. }) if into == slot) {
                ctx.fail(format!(
                    "#{id} completes while connection {index} still receives into its memory"
                ));
            }
        }
    }

    fn succeeded(
        &mut self,
        ctx: &mut Ctx,
        at: usize,
        id: RequestId,
        asked: &Asked,
        retained: bool,
    ) {
        let range = asked.range;
        let fua = asked.flags.contains(OpFlags::FUA);
        let result = match asked.kind {
            _ if asked.beyond => Ok(()),
            Kind::READ => {
                ctx.stats.sectors_checked += range.count as u64;
                let sectors = self.memory[at].bytes.chunks_exact(SECTOR);
                let values = sectors
                    .enumerate()
                    .map(|(index, bytes)| content::parse(bytes, (range.first + index) as u64));
                ctx.model.finish_read(id, values)
            }
            Kind::FLUSH => {
                // It speaks for the writes of its own session.
                if self.birth.writable {
                    ctx.model.ack_flush(asked.submitted);
                }
                Ok(())
            }
            Kind::BLOCK_STATUS => self.check_extents(ctx, at, id, range),
            _ => ctx.model.ack_write(id, range, fua),
        };
        ctx.check(result);
        if !retained {
            // Nobody may look at this memory any more.
            self.memory[at].bytes.fill(0xee);
        }
    }

    fn check_extents(
        &mut self,
        ctx: &mut Ctx,
        at: usize,
        id: RequestId,
        range: Range,
    ) -> Result<(), crate::Violation> {
        let extents = std::mem::take(&mut self.memory[at].extents);
        let bytes: u64 = extents.iter().map(|extent| extent.0).sum();
        if extents.is_empty() || bytes > (range.count * SECTOR) as u64 {
            ctx.model.fail_read(id);
            return Err(crate::Violation::new(format!(
                "#{id}: extents of {bytes} bytes"
            )));
        }
        let mut index = 0;
        let mut result = Ok(());
        for (length, zero) in extents {
            for _ in 0..length / SECTOR as u64 {
                if zero && !ctx.model.allows(id, index, 0) {
                    result = Err(crate::Violation::new(format!(
                        "#{id}: sector {} is said to be zeroes",
                        range.first + index
                    )));
                }
                index += 1;
            }
        }
        ctx.model.fail_read(id);
        result
    }
}
