//! One device on one thread.
//!
//! A turn is: act on what the engine decided ([`crate::pump`]), sleep until something happens, take what came
//! ([`crate::receive`], [`crate::connect`]), act again. Nothing on the way of a request crosses threads; only connecting
//! and name resolution run beside, in the [`Connector`]'s thread.
//!
//! Memory: a request's bytes are one pool buffer from submission to completion and, for a write that is acknowledged and
//! not durable, on to the table of retained bytes; they are never copied on the way. With [`Options::reserve`] all of these
//! buffers are there before the first request.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use dst_buf::{Buf, Pool, Shared};
use dst_engine::client::{
    user_slots, Config, Entry, FailReason, Phase, Request as Transaction, Retained, Session, Slot,
    MAX_CONNECTIONS, REPLAY_SLOTS,
};
use dst_ids::hex;
use dst_net::{Connector, Event, Interest, Poller, Waker};
use dst_proto::{
    Algorithm, GeometryFlags, Holder, Kind, Limits, OpFlags, HEADER_LEN, MAX_DIGEST_AREA,
};

use crate::conn::Conn;
use crate::connect::Attempts;
use crate::error::fail_text;
use crate::identity::holder;
use crate::keeping::{Keeping, Memory};
use crate::{
    Completion, Counters, DeviceStatus, Geometry, IoError, Op, OpenError, Options, Reply, Request,
};

/// Tokens from here on are the user's, see [`Driver::poller`].
pub const USER_TOKEN: u64 = 1 << 32;

/// Token of the connector's waker; connections have their index.
pub(crate) const CONNECTOR_TOKEN: u64 = USER_TOKEN - 1;

/// Ids in flight between the oldest unfinished and the newest.
pub(crate) const ID_WINDOW: u32 = 65536;

/// Most payload in flight, bytes.
const CREDIT: u32 = 64 << 20;

/// Requests that find room in the queue without another allocation.
const QUEUE: usize = 1024;

/// Room for the handshake, and for a header with the digests of the largest payload.
const SCRATCH: usize = HEADER_LEN + MAX_DIGEST_AREA as usize;

/// Bytes of the request in a slot.
pub(crate) enum Data {
    None,
    Write(Shared),
    /// Filled as the pieces arrive.
    Read(Option<Buf>),
    Extents(Vec<crate::Extent>),
}

/// A request with the engine, by slot.
pub(crate) struct Pending {
    pub tag: u64,
    pub kind: Kind,
    pub length: u64,
    pub data: Data,
}

/// What a turn brought besides completions.
#[derive(Debug, Default)]
pub struct Turn {
    /// The export has a new size, bytes.
    pub resized: Option<u64>,
    /// The device failed for good, and why.
    pub failed: Option<String>,
    /// The session has been closed: in good order, or with what was not flushed perhaps lost, and why.
    pub closed: Option<Result<(), String>>,
}

/// The engine and its memory.
pub(crate) struct Engine {
    pub session: Session<Box<[u64]>>,
    pub slots: Vec<Slot>,
    pub retained: Retained<Box<[Entry]>>,
}

/// One device, driven by its owner's thread: see the module's documentation.
pub struct Driver {
    pub(crate) options: Options,
    pub(crate) poller: Poller,
    pub(crate) waker: Waker,
    pub(crate) connector: Connector,
    pub(crate) pool: Pool,
    pub(crate) engine: Engine,
    pub(crate) conns: Vec<Option<Conn>>,
    pub(crate) pending: Vec<Option<Pending>>,
    /// Bytes of retained writes, by the engine's index.
    pub(crate) kept: Vec<Option<Shared>>,
    pub(crate) free: Vec<u16>,
    /// Requests without a slot, each with when it came: its deadline counts from then.
    pub(crate) queue: VecDeque<(Request, u64)>,
    pub(crate) done: Vec<Completion>,
    pub(crate) scratch: Box<[u8]>,
    pub(crate) marks: Vec<u64>,
    pub(crate) started: Instant,
    pub(crate) attempts: [Attempts; MAX_CONNECTIONS],
    pub(crate) turn: Turn,
    pub(crate) opened: bool,
    /// Refused before the first session.
    pub(crate) refused: Option<OpenError>,
    pub(crate) message: Option<String>,
    pub(crate) failed: Option<FailReason>,
    pub(crate) keeping: Option<Keeping>,
    /// Why no record is kept although one was wanted.
    pub(crate) unrecorded: Option<String>,
    pub(crate) counters: Counters,
    /// Connections with more to take than one turn does.
    pub(crate) unfinished: Vec<u16>,
    events: Vec<Event>,
}

impl Driver {
    /// Opens the first session; blocks until it is there or [`Options::connect_timeout`] has passed.
    pub fn open(options: Options) -> Result<Self, OpenError> {
        let transport = options.endpoint.transport();
        if options.endpoint.export().is_none() {
            return Err(OpenError::NoExportNamed);
        }
        if !transport.is_trusted() && !options.insecure {
            return Err(OpenError::Insecure(transport.describe()));
        }
        let peer = transport.describe();
        let timeout = options.connect_timeout;
        let mut driver = Self::new(options, transport)?;
        let (mut done, mut ready) = (Vec::new(), Vec::new());
        while !driver.opened {
            let left = match timeout {
                Some(limit) => {
                    let left = limit.checked_sub(driver.started.elapsed());
                    Some(left.ok_or_else(|| {
                        OpenError::Unreachable {
                            peer: peer.clone(),
                            seconds: limit.as_secs(),
                            cause: driver
                                .message
                                .clone()
                                .unwrap_or_else(|| "no answer".to_owned()),
                        }
                    })?)
                }
                None => None,
            };
            let turn = driver.turn(left, &mut done, &mut ready)?;
            if let Some(error) = driver.refused.take() {
                return Err(error);
            }
            if let Some(reason) = turn.failed {
                return Err(OpenError::Unusable(reason));
            }
        }
        let geometry = driver.engine.session.geometry();
        if geometry.is_none_or(|geometry| geometry.size == 0) {
            return Err(OpenError::Unusable("it is 0 bytes long".into()));
        }
        Ok(driver)
    }

    pub(crate) fn new(
        options: Options,
        transport: std::sync::Arc<dyn dst_net::Transport>,
    ) -> Result<Self, OpenError> {
        let slots = options.depth.clamp(1, 512) + REPLAY_SLOTS + 1;
        let (entries, bytes) = match options.retain {
            // Enough entries for small writes, within reason for the table itself.
            Some(bytes) => ((bytes / 4096).clamp(1024, 65536) as usize, bytes),
            None => (0, 0),
        };
        let config = Self::config(&options, slots, holder(options.identity));
        let memory = Memory::of(&options, slots, entries, bytes, &config.holder)?;
        let window = vec![0; ID_WINDOW as usize / 64].into_boxed_slice();
        let engine = Engine {
            session: Session::new(config, window),
            slots: vec![Slot::default(); usize::from(slots)],
            retained: Retained::new(vec![Entry::default(); entries].into(), bytes),
        };
        let mut driver = Self::made_of(options, transport, engine, memory.pool)?;
        driver.keeping = memory.keeping;
        driver.unrecorded = memory.unrecorded;
        Ok(driver)
    }

    /// What the engine is given.
    pub(crate) fn config(options: &Options, slots: u16, holder: Holder) -> Config {
        Config {
            writable: !options.read_only,
            holder,
            limits: Limits {
                slots,
                connections: options.connections.clamp(1, MAX_CONNECTIONS as u16),
                max_payload: options.max_payload(),
                window: ID_WINDOW,
                credit_bytes: CREDIT,
            },
            // What the server can't do falls back to the digest that every peer has.
            digests: options.digest.mask_bit() | Algorithm::Crc32c.mask_bit(),
            granule: options.granule,
            deadline: options
                .deadline
                .map(|limit| u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX)),
            retries: 4,
        }
    }

    /// A driver of this engine, without any connection and without a record.
    pub(crate) fn made_of(
        options: Options,
        transport: std::sync::Arc<dyn dst_net::Transport>,
        engine: Engine,
        pool: Pool,
    ) -> io::Result<Self> {
        let local = transport.is_local();
        let poller = Poller::new()?;
        let waker = Waker::new()?;
        poller.add(waker.fd(), CONNECTOR_TOKEN, Interest::READ)?;
        let connector = Connector::spawn(transport, waker.clone())?;
        let slots = engine.slots.len();
        let entries = engine.retained.capacity();
        Ok(Self {
            poller,
            waker,
            connector,
            pool,
            conns: (0..MAX_CONNECTIONS).map(|_| None).collect(),
            pending: (0..slots).map(|_| None).collect(),
            kept: (0..entries).map(|_| None).collect(),
            free: (0..user_slots(slots as u16)).rev().collect(),
            engine,
            queue: VecDeque::with_capacity(QUEUE),
            done: Vec::with_capacity(QUEUE),
            scratch: vec![0; SCRATCH].into_boxed_slice(),
            marks: Vec::with_capacity(QUEUE),
            started: Instant::now(),
            attempts: std::array::from_fn(|_| Attempts::new(local)),
            turn: Turn::default(),
            opened: false,
            refused: None,
            message: None,
            failed: None,
            keeping: None,
            unrecorded: None,
            counters: Counters::default(),
            unfinished: Vec::new(),
            events: Vec::new(),
            options,
        })
    }

    /// Why no record is kept although [`Options::record`] asks for one.
    pub fn unrecorded(&self) -> Option<&str> {
        self.unrecorded.as_deref()
    }

    /// What the device looks like.
    pub fn geometry(&self) -> Geometry {
        let geometry = self
            .engine
            .session
            .geometry()
            .expect("a driver is given out only after the first session has been open");
        let has = |flag| geometry.flags.contains(flag);
        let writable = !self.options.read_only && !has(GeometryFlags::READ_ONLY);
        Geometry {
            size: geometry.size,
            logical_block: geometry.logical_block,
            physical_block: geometry.physical_block,
            max_transfer: self.engine.session.limits().max_payload,
            read_only: !writable,
            rotational: has(GeometryFlags::ROTATIONAL),
            discard: writable && has(GeometryFlags::DISCARD),
            discard_granularity: geometry.discard_granularity,
            write_zeroes: writable && has(GeometryFlags::WRITE_ZEROES),
            write_cache: true,
            fua: writable,
        }
    }

    /// Where buffers for writes come from.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// The event loop: other descriptors may be added with tokens of at least [`USER_TOKEN`], which [`Driver::turn`]
    /// reports.
    pub fn poller(&self) -> &Poller {
        &self.poller
    }

    /// Hands in a request. It goes out with the next turn, its completion comes from a turn.
    pub fn submit(&mut self, request: Request) {
        let result = match self.check(&request.op) {
            // Nothing was written. The kernel flushes read-only disks too, some of it with locks that the whole machine waits for,
            // while a server may keep readers waiting until the writer has replayed.
            Ok(()) if self.options.read_only && matches!(request.op, Op::Flush) => Ok(Reply::Done),
            Ok(()) => {
                let now = self.now();
                return self.queue.push_back((request, now));
            }
            Err(error) => Err(error),
        };
        self.complete(Completion {
            tag: request.tag,
            result,
        });
    }

    /// Ends the session once nothing is in flight. The caller has flushed, and submits nothing more.
    pub fn close(&mut self) {
        self.engine.session.close();
    }

    /// Whether a record is kept by which a successor can go on ([`crate::recover`]).
    pub fn is_recorded(&self) -> bool {
        self.keeping.is_some()
    }

    /// Brings the record up to date for a successor: from here on this process does nothing more, and ends.
    pub fn hand_over(&mut self) {
        self.keep_record();
    }

    /// Fails every request, now and later.
    pub fn fail(&mut self) {
        let engine = &mut self.engine;
        engine
            .session
            .fail(&mut engine.slots, &mut engine.retained, FailReason::Forced);
    }

    /// One turn of the event loop: sleeps at most `timeout` (`None`: until something happens). Completions go to `done`,
    /// tokens of the user's descriptors that are ready to `ready`.
    pub fn turn(
        &mut self,
        timeout: Option<Duration>,
        done: &mut Vec<Completion>,
        ready: &mut Vec<u64>,
    ) -> io::Result<Turn> {
        self.pump();
        let unfinished = std::mem::take(&mut self.unfinished);
        let mut events = std::mem::take(&mut self.events);
        let wait = if unfinished.is_empty() {
            self.sleep_for(timeout)
        } else {
            Some(Duration::ZERO)
        };
        let polled = self.poller.wait(wait, &mut events);
        for event in &events {
            match event.token {
                CONNECTOR_TOKEN => self.take_connected(),
                token if token >= USER_TOKEN => ready.push(token),
                index => self.handle_ready(index as u16),
            }
        }
        self.events = events;
        for index in unfinished {
            self.handle_ready(index);
        }
        polled?;
        let now = self.now();
        let engine = &mut self.engine;
        if engine.session.next_timeout().is_some_and(|due| due <= now) {
            engine
                .session
                .handle_timeout(&mut engine.slots, &mut engine.retained, now);
        }
        self.pump();
        self.keep_record();
        done.append(&mut self.done);
        Ok(std::mem::take(&mut self.turn))
    }

    /// How long to sleep: not past the next thing that is due, not at all when something is to be told.
    fn sleep_for(&self, timeout: Option<Duration>) -> Option<Duration> {
        let turn = &self.turn;
        let news = turn.resized.is_some() || turn.failed.is_some() || turn.closed.is_some();
        if !self.done.is_empty() || news || self.refused.is_some() {
            return Some(Duration::ZERO);
        }
        let due = [self.engine.session.next_timeout(), self.next_connect()];
        let now = self.now();
        let due = due.into_iter().flatten().min();
        let due = due.map(|due| Duration::from_nanos(due.saturating_sub(now)));
        match (due, timeout) {
            (Some(due), Some(timeout)) => Some(due.min(timeout)),
            (due, timeout) => due.or(timeout),
        }
    }

    /// A snapshot of everything there is to tell.
    pub fn status(&self) -> DeviceStatus {
        let session = &self.engine.session;
        let stats = session.stats();
        let live = session.live_connections();
        let export = session.export();
        // With the engine, which has not given an id to all of them: they wait for a session, room, or one another.
        let handed_in = self.pending.iter().flatten().count();
        DeviceStatus {
            state: match session.phase() {
                Phase::Opening if !self.opened => "opening",
                Phase::Failed(_) => "failed",
                Phase::Closing => "closing",
                Phase::Closed => "closed",
                _ if live == 0 => "reconnecting",
                Phase::Opening => "reconnecting",
                Phase::Replaying => "replaying",
                Phase::Live => "live",
            },
            message: match self.failed {
                Some(reason) => Some(fail_text(reason)),
                None => self.message.clone(),
            },
            server: self.options.endpoint.to_string(),
            session: session.number(),
            epoch: export.map_or(0, |export| export.epoch),
            export_id: export.map_or_else(String::new, |export| hex(&export.id)),
            incarnation: export.map_or_else(String::new, |export| hex(&export.incarnation)),
            connections: [live, self.options.connections],
            in_flight: session.in_flight(),
            queued: self.queue.len() + handed_in.saturating_sub(session.in_flight().into()),
            retained_entries: self.engine.retained.entries(),
            retained_bytes: self.engine.retained.bytes(),
            suspects: session.suspects(),
            reconnects: stats.reconnects,
            fresh_sessions: stats.fresh_sessions,
            resent: stats.resent,
            replayed: stats.replayed,
            expired: stats.expired,
            bad_digests: stats.bad_digests,
            counters: self.counters,
        }
    }

    /// Nanoseconds since the driver was made.
    pub(crate) fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    pub(crate) fn complete(&mut self, completion: Completion) {
        if completion.result.is_err() {
            self.counters.errors += 1;
        }
        self.done.push(completion);
    }

    /// Requests that no server could serve are answered here.
    fn check(&self, op: &Op) -> Result<(), IoError> {
        let geometry = self.geometry();
        let (offset, length, writes) = match op {
            Op::Read { offset, len } => (*offset, u64::from(*len), false),
            Op::Write { offset, data, .. } => (*offset, data.len() as u64, true),
            Op::Flush => return Ok(()),
            Op::Discard { offset, len } | Op::WriteZeroes { offset, len, .. } => {
                (*offset, *len, true)
            }
            Op::BlockStatus { offset, len } => (*offset, *len, false),
        };
        if writes && geometry.read_only {
            return Err(IoError::ReadOnly);
        }
        let transfers = matches!(op, Op::Read { .. } | Op::Write { .. });
        let block = u64::from(geometry.logical_block);
        let end = offset.checked_add(length);
        if length == 0
            || offset % block != 0
            || length % block != 0
            || end.is_none_or(|end| end > geometry.size)
            || transfers && length > u64::from(geometry.max_transfer)
        {
            return Err(IoError::OutOfRange);
        }
        Ok(())
    }
}

/// The engine's form of a request, and what is to be kept for it.
pub(crate) fn transaction(op: Op) -> (Transaction, Data) {
    let flags = OpFlags::NONE;
    let (kind, flags, offset, length, data) = match op {
        Op::Read { offset, len } => (Kind::READ, flags, offset, u64::from(len), Data::Read(None)),
        Op::Write {
            offset,
            data,
            fua,
            barrier,
        } => {
            let flags = flags
                .with(OpFlags::FUA, fua)
                .with(OpFlags::BARRIER, barrier);
            let length = data.len() as u64;
            (Kind::WRITE, flags, offset, length, Data::Write(data))
        }
        Op::Flush => (Kind::FLUSH, flags, 0, 0, Data::None),
        Op::Discard { offset, len } => (Kind::DISCARD, flags, offset, len, Data::None),
        Op::WriteZeroes {
            offset,
            len,
            may_unmap,
            fast_only,
            fua,
        } => {
            let flags = flags
                .with(OpFlags::MAY_UNMAP, may_unmap)
                .with(OpFlags::FAST_ONLY, fast_only)
                .with(OpFlags::FUA, fua);
            (Kind::WRITE_ZEROES, flags, offset, len, Data::None)
        }
        Op::BlockStatus { offset, len } => (Kind::BLOCK_STATUS, flags, offset, len, Data::None),
    };
    let request = Transaction {
        kind,
        flags,
        offset,
        length,
    };
    (request, data)
}
