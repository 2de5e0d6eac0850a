//! How connections begin and end.

use dst_engine::rx::Receiver;

use super::{Agent, AREA};
use crate::ctx::Ctx;
use crate::network::{Side, StreamId};
use crate::outbox::Outbox;
use crate::queue::{self, MICRO, MILLI, SECOND};
use crate::trace;

/// How long a connection attempt may take.
const CONNECT_TIMEOUT: u64 = 3 * SECOND;
/// The longest pause between attempts.
const MAX_BACKOFF: u64 = SECOND;

impl Agent {
    pub(super) fn connect(&mut self, ctx: &mut Ctx, index: u16) {
        let now = ctx.now();
        if self.recovery.dead {
            return;
        }
        let link = &mut self.links[usize::from(index)];
        let wanted = link.stream.is_none() && self.session.wants_connection(index);
        if !wanted || link.retry_at > now {
            return;
        }
        let mut delay = ctx
            .rng
            .between(ctx.net.weather.latency.0, ctx.net.weather.latency.1);
        if now < ctx.slow_connect_until {
            delay += ctx.rng.spread(MILLI, 2 * CONNECT_TIMEOUT);
        }
        let stream = ctx
            .net
            .connect(&mut ctx.queue, self.birth.number, index, delay);
        trace!(
            ctx,
            "client {} connects {index} as stream {stream}",
            self.birth.number
        );
        link.stream = Some(stream);
        link.number = None;
        link.deadline = now + CONNECT_TIMEOUT;
        link.taking = None;
        link.ended = false;
        link.drained = false;
        link.doomed = ctx.rng.one_in(40);
        link.greeted = false;
    }

    /// The server has accepted the stream.
    pub fn connected(&mut self, ctx: &mut Ctx, stream: StreamId) {
        let Some(index) = self.index_of(stream) else {
            return;
        };
        if self.frozen {
            return;
        }
        self.set_up(ctx, index);
        self.step(ctx);
    }

    pub(super) fn set_up(&mut self, ctx: &mut Ctx, index: u16) {
        let link = &mut self.links[usize::from(index)];
        if link.number.is_none() {
            link.rx = Receiver::new(vec![0; AREA], dst_proto::Role::Server);
            link.number = Some(self.session.handle_connected(index, ctx.queue.now()));
            link.deadline = u64::MAX;
        }
    }

    pub(super) fn index_of(&self, stream: StreamId) -> Option<u16> {
        let at = self
            .links
            .iter()
            .position(|link| link.stream == Some(stream))?;
        u16::try_from(at).ok()
    }

    /// A stream has ended.
    pub fn ended(&mut self, ctx: &mut Ctx, stream: StreamId) {
        let Some(index) = self.index_of(stream) else {
            return;
        };
        if self.frozen {
            self.links[usize::from(index)].ended = true;
            return;
        }
        // What has arrived is read before the end is.
        self.receive(ctx, index, stream);
        if self.links[usize::from(index)].stream == Some(stream) {
            trace!(ctx, "client {} loses connection {index}", self.birth.number);
            self.drop_link(ctx, index);
        }
        self.step(ctx);
    }

    /// Closes the stream of a connection, if it has one, and tells the engine.
    pub(super) fn drop_link(&mut self, ctx: &mut Ctx, index: u16) {
        let now = ctx.now();
        let link = &mut self.links[usize::from(index)];
        let Some(stream) = link.stream.take() else {
            return;
        };
        ctx.net.close(&mut ctx.queue, stream, Side::Client);
        link.out = Outbox::new();
        link.taking = None;
        link.ended = false;
        let wait = if link.drained {
            MICRO
        } else {
            ctx.rng.between(link.backoff / 2, link.backoff)
        };
        link.backoff = (link.backoff * 2).min(MAX_BACKOFF);
        link.retry_at = now + wait;
        let client = self.birth.number;
        ctx.queue
            .at(link.retry_at, queue::Event::Reconnect { client, index });
        if link.number.take().is_some() {
            self.session
                .handle_lost(&mut self.slots, &mut self.retained, index);
        }
    }
}
