//! The server process: the driver of the server engine for one export, and what outlives it on stable storage.

mod backend;
mod drain;
mod handshake;
mod inbound;
mod outbound;
mod rules;
mod stable;

use dst_engine::rx::Receiver;
use dst_engine::server::{
    CloseReason, ConnId, Entry, Export, ExportConfig, Lane, Record, Session, Slot,
};
use dst_proto::{
    Credit, DigestChoice, Digests, Extent, Geometry, GeometryFlags, Holder, Kind, Limits, Mode,
    Role,
};
use dst_store::sync::{SyncAnswer, SyncId, SyncTracker};

pub use stable::Stable;

use crate::ctx::Ctx;
use crate::disk::Disk;
use crate::network::{Side, StreamId};
use crate::outbox::Outbox;
use crate::plant::Plant;
use crate::queue::{self, MICRO, MILLI, SECOND};
use crate::trace;

/// The name of the only export.
pub const EXPORT_NAME: &str = "disk";
/// Its id.
const EXPORT_ID: [u8; 16] = *b"simulated export";
/// Sessions at a time.
const SESSIONS: usize = 16;
/// A stream that says nothing is closed after this time.
const HANDSHAKE_TIME: u64 = 10 * SECOND;
/// Memory for options and digests of a frame.
const AREA: usize = 6 << 10;

/// Bytes of the request in a slot.
#[derive(Debug, Default)]
enum Data {
    #[default]
    None,
    Payload(Vec<u8>),
    Read(Vec<u8>),
    Extents(Vec<Extent>),
}

/// One session.
#[derive(Debug)]
struct Member {
    /// In tokens of the disk; never used twice.
    key: u32,
    number: u64,
    session: Session<Vec<u64>, Vec<Lane>>,
    slots: Vec<Slot>,
    secret: [u8; 16],
    data: Vec<Data>,
    /// What the disk has, by slot: id and type.
    running: Vec<(u64, Kind)>,
    limits: Limits,
    config: dst_engine::server::Config,
}

/// Where an arriving payload goes.
#[derive(Debug)]
enum Body {
    Into {
        slot: u16,
        bytes: Vec<u8>,
        offset: u64,
    },
    Nowhere,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Before OPEN or JOIN.
    Greeting,
    /// OPEN is being decided, for a session of this number.
    Asking(u64),
    /// Part of the session of this number.
    Joined(u64),
    /// Last words are queued; nothing more is read.
    Leaving,
}

/// One stream. Payload lives in a session's slot.
#[derive(Debug)]
struct Conn {
    stream: StreamId,
    stage: Stage,
    rx: Receiver<Vec<u8>>,
    hello: [u8; dst_proto::HELLO_LEN],
    nonce: [u8; 16],
    body: Option<Body>,
    out: Outbox<()>,
    /// A stream that says nothing is closed then.
    until: u64,
    /// The end came while the process was frozen.
    ended: bool,
    /// For [`Plant::OldConnectionStillRead`]: no longer of any session, and still read.
    zombie: bool,
}

impl Conn {
    fn id(&self) -> ConnId {
        ConnId(self.stream)
    }
}

/// An OPEN that is being decided.
#[derive(Clone, Copy, Debug)]
struct Asking {
    number: u64,
    stream: StreamId,
    mode: Mode,
    holder: Option<Holder>,
    limits: Limits,
    digests: Digests,
}

/// One server process.
#[derive(Debug)]
pub struct Server {
    export: Export<Vec<Entry>>,
    members: Vec<Member>,
    conns: Vec<Conn>,
    asking: Vec<Asking>,
    sync: SyncTracker,
    answers: Vec<SyncAnswer>,
    /// Syncs that the disk has, by token.
    syncs: Vec<(u64, SyncId)>,
    next_key: u32,
    flush_wanted: bool,
    /// A record on its way to stable storage.
    persisting: Option<(u64, Record)>,
    timer_at: u64,
    /// Does nothing.
    pub frozen: bool,
    /// Draining until this time, at the latest.
    drain: Option<u64>,
    /// The flush at the end of a drain is out.
    drain_flush: bool,
    /// The drain is over; whether everything is flushed.
    pub drained: Option<bool>,
    credit: Option<Credit>,
    geometry: Geometry,
    /// For [`Plant::GenerationIgnored`].
    fake_generation: u32,
}

impl Server {
    /// Starts a process.
    pub fn start(ctx: &mut Ctx, disk: &mut Disk, stable: &mut Stable) -> Server {
        let goes_on = stable.goes_on() || ctx.planted(Plant::IncarnationKept);
        let first = stable.incarnation == [0; 16];
        if !goes_on || first {
            stable.incarnation = ctx.rng.bytes16();
        }
        stable.clean = false;
        stable.continuity = true;
        ctx.incarnation = Some(stable.incarnation);
        if !goes_on && !first {
            disk.evict();
            ctx.book.excuses.losses += 1;
            ctx.model.lose();
        }
        trace!(
            ctx,
            "server starts, incarnation {:02x}{}, epoch {}, lease {}",
            stable.incarnation[0],
            if goes_on { " kept" } else { " new" },
            stable.record.epoch,
            if stable.record.held { "held" } else { "free" },
        );
        if ctx.planted(Plant::LeaseNotPersisted) {
            stable.record = Record::NONE;
        }
        stable.replay_owed |= !goes_on;
        let config = ExportConfig {
            id: EXPORT_ID,
            incarnation: stable.incarnation,
            fresh: stable.replay_owed,
            record: stable.record,
            read_only: false,
            lease_time: ctx.scenario.lease_time,
        };
        Server {
            export: Export::new(&config, vec![Entry::default(); SESSIONS], ctx.now()),
            members: Vec::new(),
            conns: Vec::new(),
            asking: Vec::new(),
            sync: SyncTracker::new(),
            answers: Vec::new(),
            syncs: Vec::new(),
            next_key: 1,
            flush_wanted: false,
            persisting: None,
            timer_at: u64::MAX,
            frozen: false,
            drain: None,
            drain_flush: false,
            drained: None,
            credit: None,
            geometry: geometry(ctx, disk),
            fake_generation: 0,
        }
    }

    /// The process is gone: its streams close, what it was writing to stable storage may be there or not.
    pub fn stop(mut self, ctx: &mut Ctx, stable: &mut Stable) {
        if self.sync.running() > 0 || self.sync.is_latched() {
            stable.continuity = false;
        }
        if let Some((_, record)) = self.persisting.take() {
            if ctx.rng.chance(50) {
                stable.store(ctx, record);
            }
        }
        for conn in &self.conns {
            ctx.net.close(&mut ctx.queue, conn.stream, Side::Server);
        }
        ctx.wire.server_gone();
    }

    /// What stands still, for the report of a hang.
    pub fn describe(&self) -> String {
        let members: Vec<String> = self
            .members
            .iter()
            .map(|m| {
                format!(
                    "session {}: {} unanswered, {} executing, waiting {}, {} connections, ended {}",
                    m.number,
                    m.session.unanswered(),
                    m.session.executing(),
                    m.session.is_waiting(),
                    m.session.connections(),
                    m.session.is_ended()
                )
            })
            .collect();
        format!(
            "server: frozen {}, writer {:?}, {} asking, sync latched {}, [{}]",
            self.frozen,
            self.export.writer(),
            self.asking.len(),
            self.sync.is_latched(),
            members.join("; ")
        )
    }

    /// Does whatever there is to do now; to be called after anything that happened.
    pub fn step(&mut self, ctx: &mut Ctx, disk: &mut Disk, stable: &mut Stable) {
        if self.frozen {
            return;
        }
        loop {
            let mut busy = self.execute(ctx, disk);
            self.answer_syncs(ctx, stable);
            busy |= self.events(ctx);
            busy |= self.actions(ctx, disk, stable);
            busy |= self.send_all(ctx);
            if !busy || ctx.violation.is_some() {
                break;
            }
        }
        self.drain_step(ctx, disk);
        self.schedule(ctx);
    }

    fn schedule(&mut self, ctx: &mut Ctx) {
        let sessions = self.members.iter().filter_map(|m| m.session.next_timeout());
        let conns = self.conns.iter().map(|conn| conn.until);
        let other = [
            self.export.next_timeout(),
            self.drain,
            self.persisting.map(|p| p.0),
        ];
        let due = sessions
            .chain(conns)
            .chain(other.into_iter().flatten())
            .min()
            .unwrap_or(u64::MAX);
        let now = ctx.now();
        if due != u64::MAX && (due < self.timer_at || self.timer_at <= now) {
            self.timer_at = due.max(now + MICRO);
            ctx.queue.at(self.timer_at, queue::Event::ServerTimer);
        }
    }

    /// The time for which an engine asked has come, or one that it no longer cares for.
    pub fn timer(&mut self, ctx: &mut Ctx, disk: &mut Disk, stable: &mut Stable) {
        if self.frozen {
            return;
        }
        let now = ctx.now();
        if self.timer_at <= now {
            self.timer_at = u64::MAX;
        }
        if let Some((_, record)) = self.persisting.take_if(|(at, _)| *at <= now) {
            stable.store(ctx, record);
            self.export.persisted(true, now);
        }
        for member in &mut self.members {
            member.session.handle_timeout(&mut member.slots, now);
            self.export
                .heard(member.number, member.session.last_heard());
        }
        self.export.handle_timeout(now);
        let silent: Vec<StreamId> = self
            .conns
            .iter()
            .filter(|conn| conn.until <= now)
            .map(|conn| conn.stream)
            .collect();
        for stream in silent {
            self.drop_conn(ctx, stream);
        }
        self.step(ctx, disk, stable);
    }

    /// The process goes on after a freeze.
    pub fn thaw(&mut self, ctx: &mut Ctx, disk: &mut Disk, stable: &mut Stable) {
        self.frozen = false;
        self.timer_at = u64::MAX;
        let streams: Vec<StreamId> = self.conns.iter().map(|conn| conn.stream).collect();
        for stream in streams {
            self.receive(ctx, disk, stable, stream);
        }
        let ended: Vec<StreamId> = self
            .conns
            .iter()
            .filter(|conn| conn.ended)
            .map(|conn| conn.stream)
            .collect();
        for stream in ended {
            self.drop_conn(ctx, stream);
        }
        self.timer(ctx, disk, stable);
    }

    fn member(&mut self, number: u64) -> Option<&mut Member> {
        self.members
            .iter_mut()
            .find(|member| member.number == number)
    }

    fn conn(&self, stream: StreamId) -> Option<usize> {
        self.conns.iter().position(|conn| conn.stream == stream)
    }

    /// The stream has ended, or must.
    fn drop_conn(&mut self, ctx: &mut Ctx, stream: StreamId) {
        let Some(at) = self.conn(stream) else {
            return;
        };
        let conn = self.conns.remove(at);
        ctx.net.close(&mut ctx.queue, stream, Side::Server);
        match conn.stage {
            Stage::Joined(number) => {
                let now = ctx.now();
                if let Some(member) = self.member(number) {
                    member
                        .session
                        .conn_lost(&mut member.slots, ConnId(stream), now);
                }
            }
            Stage::Asking(number) => {
                self.asking.retain(|asking| asking.number != number);
                self.export.cancel(number);
            }
            Stage::Greeting | Stage::Leaving => {}
        }
    }

    /// A session wants a stream closed. What is queued for it still goes.
    fn leave(&mut self, ctx: &mut Ctx, stream: StreamId, reason: CloseReason) {
        let Some(at) = self.conn(stream) else {
            return;
        };
        let conn = &mut self.conns[at];
        if ctx.planted(Plant::OldConnectionStillRead) && matches!(reason, CloseReason::Ended(_)) {
            conn.zombie = true;
            conn.stage = Stage::Leaving;
            // What it has sent comes late, when its session has an heir.
            let late = ctx.rng.spread(MILLI, 4 * SECOND);
            ctx.net.delay(&mut ctx.queue, stream, Side::Client, late);
            return ctx.net.shut(&mut ctx.queue, stream, Side::Server);
        }
        conn.stage = Stage::Leaving;
        conn.body = None;
        if conn.out.queued() == 0 {
            self.drop_conn(ctx, stream);
        }
    }

    /// The export has grown.
    pub fn grown(&mut self, ctx: &mut Ctx, disk: &mut Disk, stable: &mut Stable) {
        self.geometry = geometry(ctx, disk);
        for member in &mut self.members {
            member.session.set_geometry(self.geometry);
        }
        self.step(ctx, disk, stable);
    }

    /// Changes the credit of all sessions, or gives them back what they had.
    pub fn set_credit(&mut self, ctx: &mut Ctx, credit: Option<Credit>) {
        self.credit = credit;
        for member in &mut self.members {
            let requests = member.limits.slots - 1;
            let bytes = member.limits.credit_bytes;
            let full = Credit { requests, bytes };
            let credit = credit.map_or(full, |credit| Credit {
                requests: credit.requests.min(requests),
                bytes: credit.bytes.clamp(ctx.scenario.max_len, bytes),
            });
            member.session.set_credit(credit);
        }
    }
}

fn geometry(ctx: &Ctx, disk: &Disk) -> Geometry {
    let flags = [
        GeometryFlags::DISCARD,
        GeometryFlags::WRITE_ZEROES,
        GeometryFlags::FAST_ZEROES,
        GeometryFlags::FUA,
        GeometryFlags::BLOCK_STATUS,
    ];
    Geometry {
        size: disk.size(),
        logical_block: ctx.scenario.block,
        physical_block: ctx.scenario.block,
        flags: flags
            .into_iter()
            .fold(GeometryFlags::NONE, GeometryFlags::union),
        discard_granularity: ctx.scenario.block,
        atomic_limit: 0,
        rollback_limit: 0,
    }
}

fn digest_choice(ctx: &Ctx, asked: &Digests) -> DigestChoice {
    DigestChoice {
        algorithm: ctx.scenario.algorithm,
        granule: asked.granule,
    }
}

fn new_receiver() -> Receiver<Vec<u8>> {
    Receiver::new(vec![0; AREA], Role::Client)
}
