//! What the rules of sessions and of the export want done.

use dst_engine::server::{Action, Event};
use dst_proto::Status;

use super::{Data, Server, Stable};
use crate::ctx::Ctx;
use crate::disk::Disk;
use crate::queue::{MICRO, MILLI};
use crate::trace;

impl Server {
    pub(super) fn events(&mut self, ctx: &mut Ctx) -> bool {
        let now = ctx.now();
        let mut busy = false;
        let mut index = 0;
        while index < self.members.len() {
            let member = &mut self.members[index];
            let Some(event) = member.session.poll_event(&mut member.slots) else {
                index += 1;
                continue;
            };
            busy = true;
            let number = member.number;
            match event {
                Event::Close { conn, reason } => {
                    trace!(
                        ctx,
                        "server closes stream {} of session {number}: {reason:?}",
                        conn.0
                    );
                    self.leave(ctx, conn.0, reason);
                }
                Event::Drop { slot } => member.data[usize::from(slot)] = Data::None,
                Event::Replayed => {
                    trace!(ctx, "server: session {number} has replayed");
                    self.export.replayed(number);
                }
                Event::ProbeAnswered => self.export.probe_answered(number, now),
                Event::Release => {
                    if self.export.release(number) {
                        member.session.closed(Status::OK);
                    }
                }
                Event::Settled => {
                    trace!(ctx, "server: session {number} is settled");
                    self.export.heard(number, member.session.last_heard());
                    self.export.settled(number);
                }
                Event::Over => {
                    self.members.remove(index);
                }
            }
        }
        busy
    }

    pub(super) fn actions(&mut self, ctx: &mut Ctx, disk: &mut Disk, stable: &mut Stable) -> bool {
        let mut busy = false;
        while let Some(action) = self.export.poll_action(ctx.now()) {
            busy = true;
            trace!(ctx, "server: {action:?}");
            match action {
                Action::Probe { session } => {
                    if let Some(member) = self.member(session) {
                        member.session.probe();
                    }
                }
                Action::Settle { session, reason } => match self.member(session) {
                    Some(member) => member.session.settle(&mut member.slots, reason),
                    None => self.export.settled(session),
                },
                Action::Flush => self.flush_wanted = true,
                Action::Persist(record) => {
                    let delay = ctx.rng.spread(20 * MICRO, 5 * MILLI);
                    self.persisting = Some((ctx.now() + delay, record));
                }
                Action::Grant { session } => self.granted(ctx, session),
                Action::Refuse { session, refused } => self.refused(ctx, session, refused),
                Action::Released { session, status } => {
                    if let Some(member) = self.member(session) {
                        member.session.closed(status);
                    }
                }
                Action::Renew => {
                    self.sync.new_incarnation(&mut self.answers);
                    disk.evict();
                    stable.continuity = true;
                    self.answer_syncs(ctx, stable);
                }
                Action::Ungate => {
                    stable.replay_owed = false;
                    ctx.model.show();
                    for member in &mut self.members {
                        member.session.set_gate(&mut member.slots, false);
                    }
                }
            }
        }
        busy
    }
}
