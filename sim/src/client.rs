//! A client process: the driver of the client engine, with its device's user. It moves bytes between streams and the
//! memory of requests exactly as the engine says, and asserts what the engine must not do: complete a request whose memory
//! a stream still refers to.

mod connecting;
mod inbound;
mod link;
mod outbound;
mod recovery;
mod session;
mod user;

use std::collections::VecDeque;

use dst_engine::client::{
    self as engine, Entry, Event, FailReason, Phase, Retained, Session, Slot,
};
use dst_proto::{Holder, Kind, OpFlags, Status};

use link::{Kept, Link, Memory, Place, Sent, Taking};
use recovery::Recovery;

use crate::ctx::Ctx;
use crate::model::{Range, RequestId};
use crate::network::{Side, StreamId};
use crate::queue::{self, MICRO};
use crate::trace;
use crate::workload::Wish;

/// Memory for options and digests of a frame.
const AREA: usize = 6 << 10;

/// What a client process is started with.
#[derive(Clone, Copy, Debug)]
pub struct Birth {
    /// Its place among the clients; events name it.
    pub number: u8,
    /// Unique in the scenario.
    pub life: u8,
    /// Whether it wants to write.
    pub writable: bool,
    /// Who it is.
    pub holder: Holder,
    /// Requests that its user will ask for.
    pub requests: u32,
}

/// One client process.
#[derive(Debug)]
pub struct Agent {
    /// See [`Birth`].
    pub birth: Birth,
    session: Session<Vec<u64>>,
    slots: Vec<Slot>,
    retained: Retained<Vec<Entry>>,
    kept: Vec<Kept>,
    memory: Vec<Memory>,
    links: Vec<Link>,
    timer_at: u64,
    /// Does nothing.
    pub frozen: bool,
    awake_since: u64,
    /// Why the device has failed.
    pub failed: Option<FailReason>,
    /// The session has ended in order.
    pub closed: Option<Status>,
    /// A session has been open.
    pub opened: bool,
    /// Replays in a session opened anew.
    replaying: bool,
    script: VecDeque<Wish>,
    /// Requests that the user still wants.
    pub left: u32,
    /// Requests that failed at their deadline since the user began to follow a script.
    pub disappointed: u32,
    submit_scheduled: bool,
    /// When the end of the session was asked for, in the time of the model.
    close_asked: u64,
    /// ABORTs on the wire: slot, id, request.
    aborted: Vec<(u16, u64, RequestId)>,
    /// The last request that went out in each slot, with its id; none where it had gone out in an earlier session.
    last_out: Vec<(u64, Option<RequestId>)>,
    recovery: Recovery,
}

impl Agent {
    /// A process that has just started.
    pub fn new(ctx: &mut Ctx, birth: Birth) -> Agent {
        let scenario = &ctx.scenario;
        let config = Agent::config(scenario, &birth);
        let window = vec![0; (scenario.window / 64) as usize];
        let (bytes, entries) = if birth.writable {
            scenario.retain
        } else {
            (0, 0)
        };
        let slots = usize::from(scenario.slots);
        if birth.writable {
            ctx.book.excuses.writers += 1;
        }
        trace!(
            ctx,
            "client {} (life {}) starts, writable {}",
            birth.number,
            birth.life,
            birth.writable
        );
        Agent {
            birth,
            session: Session::new(config, window),
            slots: vec![Slot::default(); slots],
            retained: Retained::new(vec![Entry::default(); entries], bytes),
            kept: std::iter::repeat_with(Kept::default)
                .take(entries)
                .collect(),
            memory: std::iter::repeat_with(Memory::default)
                .take(slots)
                .collect(),
            links: (0..scenario.connections).map(|_| Link::new()).collect(),
            timer_at: u64::MAX,
            frozen: false,
            awake_since: 0,
            failed: None,
            closed: None,
            opened: false,
            replaying: false,
            script: VecDeque::new(),
            left: birth.requests,
            disappointed: 0,
            submit_scheduled: false,
            close_asked: 0,
            aborted: Vec::new(),
            last_out: vec![(0, None); slots],
            recovery: Recovery::new(scenario.slots, entries, &birth.holder),
        }
    }

    /// Where the session stands.
    pub fn phase(&self) -> Phase {
        self.session.phase()
    }

    /// Whether the end of the session has been asked for.
    pub fn is_closing(&self) -> bool {
        matches!(self.session.phase(), Phase::Closing | Phase::Closed)
    }

    /// Counters of the engine.
    pub fn engine_stats(&self) -> engine::Stats {
        self.session.stats()
    }

    /// Streams that this process has.
    pub fn streams(&self) -> impl Iterator<Item = StreamId> + '_ {
        self.links.iter().filter_map(|link| link.stream)
    }

    /// Requests of the user that have not completed.
    pub fn outstanding(&self) -> usize {
        self.memory
            .iter()
            .filter(|memory| memory.request.is_some())
            .count()
    }

    /// What stands still, for the report of a hang.
    pub fn describe(&self) -> String {
        format!(
            "client {} (life {}): phase {:?}, {} outstanding, {} in flight, {} retained ({} bytes), {} live connections, left {}, script {}, {:?}",
            self.birth.number,
            self.birth.life,
            self.session.phase(),
            self.outstanding(),
            self.session.in_flight(),
            self.retained.entries(),
            self.retained.bytes(),
            self.session.live_connections(),
            self.left,
            self.script.len(),
            self.session.stats(),
        )
    }

    /// Does whatever there is to do now; to be called after anything that happened.
    pub fn step(&mut self, ctx: &mut Ctx) {
        if self.frozen {
            return;
        }
        loop {
            let mut busy = self.events(ctx);
            for index in 0..self.links.len() as u16 {
                self.connect(ctx, index);
                busy |= self.send(ctx, index);
            }
            if !busy || ctx.violation.is_some() {
                break;
            }
        }
        if self.recovery.dead {
            return;
        }
        self.note_replayed(ctx);
        self.schedule(ctx);
    }

    fn schedule(&mut self, ctx: &mut Ctx) {
        let links = self.links.iter().filter(|link| link.stream.is_some());
        let attempts = links.map(|link| link.deadline).min().unwrap_or(u64::MAX);
        let due = self
            .session
            .next_timeout()
            .unwrap_or(u64::MAX)
            .min(attempts);
        let now = ctx.now();
        if due != u64::MAX && (due < self.timer_at || self.timer_at <= now) {
            // An engine that asks for a time that has passed must not stop the clock.
            self.timer_at = due.max(now + MICRO);
            let client = self.birth.number;
            ctx.queue
                .at(self.timer_at, queue::Event::ClientTimer { client });
        }
    }

    /// The time for which the engine asked has come, or one that it no longer cares for.
    pub fn timer(&mut self, ctx: &mut Ctx) {
        if self.frozen {
            return;
        }
        let now = ctx.now();
        if self.timer_at <= now {
            self.timer_at = u64::MAX;
        }
        for index in 0..self.links.len() as u16 {
            let link = &self.links[usize::from(index)];
            if link.stream.is_some() && link.deadline <= now {
                trace!(
                    ctx,
                    "client {} gives up connecting {index}",
                    self.birth.number
                );
                self.drop_link(ctx, index);
            }
        }
        self.session
            .handle_timeout(&mut self.slots, &mut self.retained, now);
        self.step(ctx);
    }

    /// The process goes on after a freeze.
    pub fn thaw(&mut self, ctx: &mut Ctx) {
        if self.recovery.dead {
            return self.succeed(ctx);
        }
        if !self.frozen {
            return;
        }
        self.frozen = false;
        self.awake_since = ctx.now();
        self.timer_at = u64::MAX;
        for index in 0..self.links.len() as u16 {
            if let Some(stream) = self.links[usize::from(index)].stream {
                self.receive(ctx, index, stream);
            }
            if self.links[usize::from(index)].ended {
                self.drop_link(ctx, index);
            }
        }
        self.timer(ctx);
        self.submit_scheduled = false;
        self.schedule_user(ctx);
    }

    /// The process is killed: its streams close, its requests are lost.
    pub fn kill(&mut self, ctx: &mut Ctx) {
        trace!(
            ctx,
            "client {} (life {}) is gone",
            self.birth.number,
            self.birth.life
        );
        for link in &self.links {
            if let Some(stream) = link.stream {
                ctx.net.close(&mut ctx.queue, stream, Side::Client);
            }
        }
        self.forget_requests(ctx);
        ctx.stats.count_engine(&self.session.stats());
    }

    /// Nothing that the user had asked for comes of this process any more.
    fn forget_requests(&mut self, ctx: &mut Ctx) {
        self.gone(ctx);
        let when = ctx.model.tick();
        for id in ctx.book.client_gone(self.birth.life, when) {
            let asked = ctx.book.get(id);
            let (kind, range) = (asked.kind, asked.range);
            if kind.is_write() {
                ctx.model.fail_write(id, range, true);
            } else {
                ctx.model.fail_read(id);
            }
        }
    }

    /// Asks for the end of the session; nothing is outstanding.
    pub fn close(&mut self, ctx: &mut Ctx) {
        self.close_asked = ctx.model.tick();
        trace!(ctx, "client {} detaches", self.birth.number);
        self.session.close();
        self.step(ctx);
    }

    fn events(&mut self, ctx: &mut Ctx) -> bool {
        let mut busy = false;
        while let Some(event) = self.session.poll_event(&mut self.slots, &mut self.retained) {
            busy = true;
            if !matches!(event, Event::Completed { .. } | Event::Released { .. }) {
                // What was complete before is told before.
                self.settle_up(ctx);
            }
            if self.recovery.dead {
                return false;
            }
            match event {
                Event::Completed {
                    slot,
                    result,
                    retained,
                } => self.finished(ctx, slot, result, retained),
                Event::Released { index } => self.released(index),
                Event::Close { index, reason } => {
                    trace!(
                        ctx,
                        "client {} closes connection {index}: {reason:?}",
                        self.birth.number
                    );
                    self.drop_link(ctx, index);
                }
                Event::Opened { fresh } => self.session_opened(ctx, fresh),
                Event::Draining { index } => self.links[usize::from(index)].drained = true,
                Event::Refused { status } => {
                    trace!(ctx, "client {} is refused: {status:?}", self.birth.number);
                }
                Event::Failed(reason) => {
                    trace!(
                        ctx,
                        "client {}: device failed: {reason:?}",
                        self.birth.number
                    );
                    self.failed = Some(reason);
                    ctx.stats.devices_failed += 1;
                    let legal =
                        ctx.book
                            .device_failed(self.birth.life, reason, self.retained.is_enabled());
                    ctx.check(legal);
                    self.gone(ctx);
                }
                Event::Closed(status) => {
                    trace!(ctx, "client {} is closed: {status:?}", self.birth.number);
                    self.closed = Some(status);
                }
                Event::Changed => trace!(ctx, "client {} sees a new size", self.birth.number),
            }
            if ctx.violation.is_some() {
                return false;
            }
        }
        self.settle_up(ctx);
        busy && !self.recovery.dead
    }

    fn range_of(&self, ctx: &Ctx, request: RequestId) -> (Kind, OpFlags, Range) {
        let asked = ctx.book.get(request);
        (asked.kind, asked.flags, asked.range)
    }
}
