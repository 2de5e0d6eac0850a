//! Between the sessions and the disk. A token is a session's key and a slot, as in the real driver; a sync is answered by
//! the rules of `dst-store`'s tracker.

use dst_engine::server::Execute;
use dst_proto::{Extent, ExtentKind, Kind, OpFlags, Status, NO_SLOT};
use dst_store::sync::SyncId;

use super::{Data, Server, Stable};
use crate::content::SECTOR;
use crate::ctx::Ctx;
use crate::disk::{Disk, DiskOp, DiskResult, Finished};
use crate::model::Range;
use crate::plant::Plant;
use crate::trace;

/// Key of the export's own flush.
const OWN: u32 = 0;
/// Key of the flush at the end of a drain.
pub(super) const DRAIN: u32 = u32::MAX;

fn token(key: u32, slot: u16) -> u64 {
    u64::from(key) << 16 | u64::from(slot)
}

impl Server {
    /// Hands the disk everything that may start.
    pub(super) fn execute(&mut self, ctx: &mut Ctx, disk: &mut Disk) -> bool {
        let mut busy = false;
        for index in 0..self.members.len() {
            loop {
                let member = &mut self.members[index];
                let Some(execute) = member.session.poll_execute(&mut member.slots) else {
                    break;
                };
                busy = true;
                self.execute_one(ctx, disk, index, execute);
            }
        }
        if std::mem::take(&mut self.flush_wanted) {
            busy = true;
            self.own_flush(ctx, disk, OWN);
        }
        busy
    }

    fn execute_one(&mut self, ctx: &mut Ctx, disk: &mut Disk, index: usize, execute: Execute) {
        let member = &mut self.members[index];
        let (number, key, slot) = (member.number, member.key, execute.slot);
        let (offset, len) = (execute.offset, execute.length);
        trace!(
            ctx,
            "server executes {} of session {number} slot {} id {} offset {offset} length {len}",
            execute.kind.name(),
            slot as i16,
            execute.id
        );
        let fua = execute.flags.contains(OpFlags::FUA);
        if slot != NO_SLOT {
            let range = Range {
                first: offset as usize / SECTOR,
                count: len as usize / SECTOR,
            };
            let known = ctx
                .wire
                .started(number, execute.id, execute.kind, range, &ctx.book);
            ctx.check(known);
            member.running[usize::from(slot)] = (execute.id, execute.kind);
        }
        let fua = fua && !ctx.planted(Plant::FuaIgnored);
        let op = match execute.kind {
            Kind::READ => DiskOp::Read {
                offset,
                len: len as u32,
            },
            // Extents are looked up when the time of a read has passed.
            Kind::BLOCK_STATUS => DiskOp::Read {
                offset,
                len: len as u32,
            },
            Kind::WRITE => match std::mem::take(&mut member.data[usize::from(slot)]) {
                Data::Payload(data) if data.len() as u64 == len => {
                    DiskOp::Write { offset, data, fua }
                }
                _ => return ctx.fail(format!("id {} executes without its payload", execute.id)),
            },
            Kind::FLUSH => DiskOp::Flush,
            _ => DiskOp::Zero { offset, len, fua },
        };
        if ctx.trace.on {
            if let DiskOp::Write { offset, data, .. } = &op {
                let value = crate::content::parse(&data[..SECTOR], offset / SECTOR as u64);
                trace!(ctx, "  value {value:?}");
            }
        }
        let skipped = matches!(op, DiskOp::Flush)
            && (ctx.planted(Plant::FlushDoesNothing) && slot != NO_SLOT
                || ctx.planted(Plant::SettledWithoutFlush) && slot == NO_SLOT);
        if skipped {
            return self.finish_request(ctx, token(key, slot), Status::OK, Data::None);
        }
        self.submit(ctx, disk, token(key, slot), op);
    }

    /// A flush of the driver's own.
    pub(super) fn own_flush(&mut self, ctx: &mut Ctx, disk: &mut Disk, key: u32) {
        if ctx.planted(Plant::SettledWithoutFlush) && key == OWN {
            return self.export.flushed();
        }
        self.submit(ctx, disk, token(key, NO_SLOT), DiskOp::Flush);
    }

    fn submit(&mut self, ctx: &mut Ctx, disk: &mut Disk, token: u64, op: DiskOp) {
        let syncs = match &op {
            DiskOp::Flush => true,
            DiskOp::Write { fua, .. } | DiskOp::Zero { fua, .. } => *fua,
            DiskOp::Read { .. } => false,
        };
        if syncs {
            match self.sync.begin(token, &mut self.answers) {
                Some(id) => self.syncs.push((token, id)),
                // A failure is among the answers.
                None => return,
            }
        }
        disk.submit(&mut ctx.queue, token, op);
    }

    /// The disk has finished something.
    pub fn disk_done(
        &mut self,
        ctx: &mut Ctx,
        disk: &mut Disk,
        stable: &mut Stable,
        mut done: Finished,
    ) {
        match done.result {
            DiskResult::Done => {}
            DiskResult::Io => ctx.book.excuses.io_errors += 1,
            DiskResult::SyncFailed => {}
        }
        if let Some(at) = self
            .syncs
            .iter()
            .position(|(token, _)| *token == done.token)
        {
            let (_, id) = self.syncs.swap_remove(at);
            self.sync_done(ctx, id, done.result);
        } else {
            let data = self.data_of(&mut done);
            let status = match done.result {
                DiskResult::Done => Status::OK,
                DiskResult::Io | DiskResult::SyncFailed => Status::IO,
            };
            self.finish_request(ctx, done.token, status, data);
        }
        self.answer_syncs(ctx, stable);
        self.step(ctx, disk, stable);
    }

    fn sync_done(&mut self, ctx: &mut Ctx, id: SyncId, result: DiskResult) {
        let good = result == DiskResult::Done;
        if !good {
            trace!(ctx, "server: a sync call failed");
            ctx.book.excuses.sync_errors += 1;
            ctx.stats.sync_errors += 1;
        }
        let good = good || ctx.planted(Plant::SyncErrorIgnored);
        self.sync.end(id, good, &mut self.answers);
    }

    /// Tells the owners of syncs what became of them.
    pub(super) fn answer_syncs(&mut self, ctx: &mut Ctx, stable: &mut Stable) {
        let mut answers = std::mem::take(&mut self.answers);
        for answer in answers.drain(..) {
            self.answer_sync(ctx, stable, answer.owner, answer.durable);
        }
        self.answers = answers;
    }

    fn answer_sync(&mut self, ctx: &mut Ctx, stable: &mut Stable, token: u64, durable: bool) {
        let key = (token >> 16) as u32;
        if key == DRAIN {
            if !durable {
                self.incarnation_over(ctx, stable, None);
            }
            return self.drain_flushed(stable, durable);
        }
        if durable {
            match self.number_of(key) {
                _ if key == OWN => return self.export.flushed(),
                Some(number) => self.export.sync_succeeded(number),
                None => {}
            }
            return self.finish_request(ctx, token, Status::OK, Data::None);
        }
        let session = self.number_of(key).filter(|_| key != OWN);
        let status = self.incarnation_over(ctx, stable, session);
        if key != OWN {
            self.finish_request(ctx, token, status, Data::None);
        }
    }

    /// A sync has failed. Answers the status for whoever wanted it.
    fn incarnation_over(
        &mut self,
        ctx: &mut Ctx,
        stable: &mut Stable,
        session: Option<u64>,
    ) -> Status {
        let next = ctx.rng.bytes16();
        let status = self.export.sync_failed(session, next, ctx.now());
        let now = self.export.state().incarnation;
        if now == next {
            trace!(
                ctx,
                "server: incarnation {:02x} begins after a sync error",
                next[0]
            );
            stable.incarnation = next;
            stable.continuity = false;
            stable.replay_owed = true;
            ctx.incarnation = Some(next);
            ctx.book.excuses.losses += 1;
            ctx.model.lose();
        }
        status
    }

    fn number_of(&self, key: u32) -> Option<u64> {
        let member = self.members.iter().find(|member| member.key == key);
        member.map(|member| member.number)
    }

    fn data_of(&self, done: &mut Finished) -> Data {
        let (key, slot) = ((done.token >> 16) as u32, done.token as u16);
        let Some(member) = self.members.iter().find(|member| member.key == key) else {
            return Data::None;
        };
        if done.data.is_empty() || done.result != DiskResult::Done {
            return Data::None;
        }
        if member.running[usize::from(slot)].1 == Kind::BLOCK_STATUS {
            return Data::Extents(extents(&done.data));
        }
        Data::Read(std::mem::take(&mut done.data))
    }

    fn finish_request(&mut self, ctx: &mut Ctx, token: u64, status: Status, data: Data) {
        let (key, slot) = ((token >> 16) as u32, token as u16);
        let Some(member) = self.members.iter_mut().find(|member| member.key == key) else {
            return;
        };
        let id = if slot == NO_SLOT {
            0
        } else {
            member.data[usize::from(slot)] = data;
            member.running[usize::from(slot)].0
        };
        if slot != NO_SLOT {
            ctx.wire.done(member.number, id);
        }
        member.session.executed(&mut member.slots, slot, id, status);
    }
}

/// What parts of a range are: sectors of zeroes are holes.
fn extents(bytes: &[u8]) -> Vec<Extent> {
    let mut extents: Vec<Extent> = Vec::new();
    for sector in bytes.chunks_exact(SECTOR) {
        let kind = if sector.iter().all(|byte| *byte == 0) {
            ExtentKind::Hole
        } else {
            ExtentKind::Data
        };
        match extents.last_mut().filter(|last| last.kind == kind) {
            Some(last) => last.length += SECTOR as u64,
            None => extents.push(Extent {
                length: SECTOR as u64,
                kind,
            }),
        }
    }
    extents
}
