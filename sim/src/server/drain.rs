//! The end of a server process in order.

use dst_proto::Status;

use super::{backend, Server, Stable};
use crate::ctx::Ctx;
use crate::disk::Disk;
use crate::queue::SECOND;
use crate::trace;

/// How long a stop waits for what is in flight.
const DRAIN_TIME: u64 = 2 * SECOND;

impl Server {
    /// The server is told to stop.
    pub fn start_drain(&mut self, ctx: &mut Ctx, disk: &mut Disk, stable: &mut Stable) {
        if self.drain.is_some() {
            return;
        }
        trace!(ctx, "server drains");
        self.drain = Some(ctx.now() + DRAIN_TIME);
        for member in &mut self.members {
            member.session.drain();
        }
        self.step(ctx, disk, stable);
    }

    /// When nothing is in progress any more, a flush ends the drain.
    pub(super) fn drain_step(&mut self, ctx: &mut Ctx, disk: &mut Disk) {
        let Some(until) = self.drain else {
            return;
        };
        if ctx.now() >= until {
            self.drained.get_or_insert(false);
            return;
        }
        let idle = self.members.iter().all(|m| m.session.is_idle()) && self.asking.is_empty();
        if idle && !self.drain_flush {
            self.drain_flush = true;
            // Whatever comes from here on is not served any more.
            for member in &mut self.members {
                member.session.settle(&mut member.slots, Status::DRAINING);
            }
            self.own_flush(ctx, disk, backend::DRAIN);
        }
    }

    pub(super) fn drain_flushed(&mut self, stable: &mut Stable, good: bool) {
        self.drained = Some(good);
        stable.clean = good && !self.sync.is_latched();
    }
}
