//! What a session that has been opened means for the books.

use dst_engine::client::Phase;

use super::link::Kept;
use super::Agent;
use crate::ctx::Ctx;
use crate::plant::Plant;
use crate::trace;

impl Agent {
    pub(super) fn session_opened(&mut self, ctx: &mut Ctx, fresh: bool) {
        self.opened = true;
        let incarnation = self.session.export().map(|export| export.incarnation);
        let current = incarnation.is_some() && incarnation == ctx.incarnation;
        let epoch = self.session.export().map_or(0, |export| export.epoch);
        trace!(
            ctx,
            "client {} has session {}, fresh {fresh}, epoch {}, incarnation {:02x}{}",
            self.birth.number,
            self.session.number(),
            epoch,
            incarnation.map_or(0, |i| i[0]),
            if current { "" } else { " (over)" },
        );
        // The answer may come so late that somebody else has the lease, and this session is none any more.
        if self.birth.writable && epoch >= ctx.model.epoch() {
            let before = ctx.model.holder();
            let readers_see_replay = fresh && ctx.model.is_shown();
            let replays = fresh && self.retained.is_enabled();
            ctx.model.grant(self.birth.life, current, replays);
            if before != Some(self.birth.life) {
                ctx.stats.takeovers += 1;
            }
            self.replaying = true;
            if readers_see_replay {
                ctx.model.replay_while_read();
                ctx.quiet_replay = true;
            }
            if fresh && ctx.planted(Plant::ReplayOutOfOrder) {
                self.swap_retained();
            }
        }
        // ABORTs end with their session, and ids begin anew.
        self.aborted.clear();
        self.last_out.fill((0, None));
        self.schedule_user(ctx);
    }

    pub(super) fn note_replayed(&mut self, ctx: &mut Ctx) {
        if !self.replaying || !matches!(self.session.phase(), Phase::Live | Phase::Closing) {
            return;
        }
        self.replaying = false;
        ctx.quiet_replay = false;
        let incarnation = self.session.export().map(|export| export.incarnation);
        let current = incarnation.is_some() && incarnation == ctx.incarnation;
        if current && ctx.model.holder() == Some(self.birth.life) {
            ctx.model.replayed();
        }
    }

    /// Exchanges the bytes of retained writes of the same range.
    pub(super) fn swap_retained(&mut self) {
        for first in 0..self.kept.len() {
            let (head, tail) = self.kept.split_at_mut(first + 1);
            let this = &mut head[first];
            let same = |other: &&mut Kept| {
                other.live && other.range == this.range && other.bytes.len() == this.bytes.len()
            };
            if let (true, Some(other)) = (this.live, tail.iter_mut().find(same)) {
                std::mem::swap(&mut this.bytes, &mut other.bytes);
            }
        }
    }

    /// Nothing is written by this client any more.
    pub(super) fn gone(&mut self, ctx: &mut Ctx) {
        if std::mem::take(&mut self.replaying) {
            ctx.quiet_replay = false;
        }
        ctx.model.client_gone(self.birth.life);
    }
}
