//! A session with its memory, its connections, and a driver that does what the engine says.

use dst_engine::client::{
    user_slots, Config, Entry, Event, FailReason, Phase, Request, Retained, Session, Slot, Source,
    Transmit, REPLAY_SLOTS,
};
use dst_engine::rx::Receiver;
use dst_proto::{Algorithm, Header, Holder, Kind, Limits, OpFlags, Role, Status, HEADER_LEN};

use super::keep::Keep;
use super::wire::Wire;
use crate::input::Input;
use crate::trace;

pub const CONNECTIONS: u16 = 3;
pub const USER: u16 = 6;
pub const SLOTS: u16 = USER + REPLAY_SLOTS + 1;
pub const BLOCK: u64 = 512;
pub const BLOCKS: u64 = 24;
pub const WINDOW: u32 = 64;
const CREDIT_BYTES: u32 = 16 * 1024;

/// What refers to the memory of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pin {
    Send(u16),
    Receive(u16),
}

/// A request that has been submitted and not been completed.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) request: Request,
    pub(super) pins: Vec<Pin>,
}

/// Payload that is arriving.
#[derive(Clone, Copy, Debug)]
pub struct Arriving {
    pub slot: u16,
    pub id: u64,
    pub len: u32,
}

pub struct Conn {
    pub stream: u32,
    pub rx: Receiver<Vec<u8>>,
    /// What was asked in the handshake.
    pub asked: Option<Kind>,
    /// OPENED or JOINED has come.
    pub live: bool,
    pub arriving: Option<Arriving>,
    pub(super) close: bool,
}

pub struct World {
    pub session: Session<Vec<u64>>,
    pub slots: Vec<Slot>,
    pub retained: Retained<Vec<Entry>>,
    pub conns: [Option<Conn>; CONNECTIONS as usize],
    pub wire: Wire,
    pub keep: Keep,
    pub server: super::server::Server,
    pub now: u64,
    /// The driver has asked for the end, and submits nothing more.
    pub closing: bool,
    pub(super) asked: Vec<Option<Asked>>,
    /// A stream that is to be closed stays for some steps.
    lazy: bool,
    /// Counts everything that happens.
    pub(super) clock: u64,
    pub max_payload: u32,
}

impl World {
    pub fn new(input: &mut Input<'_>) -> Self {
        let form = input.u8();
        let retain = [32, 4, 0, 12][usize::from(form & 3)];
        let config = Config {
            writable: true,
            holder: Holder {
                identity: [1; 16],
                boot: [2; 16],
                instance: [3; 16],
            },
            limits: Limits {
                slots: SLOTS,
                connections: CONNECTIONS,
                max_payload: 4096,
                window: WINDOW,
                credit_bytes: CREDIT_BYTES,
            },
            digests: Algorithm::None.mask_bit(),
            granule: 4096,
            deadline: (form & 4 != 0).then_some(5_000_000_000),
            retries: 2,
        };
        let capacity = if form & 8 != 0 { 8 * BLOCK } else { 1 << 20 };
        World {
            session: Session::new(config, vec![0; 1]),
            slots: vec![Slot::default(); usize::from(SLOTS)],
            retained: Retained::new(vec![Entry::default(); retain], capacity),
            conns: [const { None }; CONNECTIONS as usize],
            wire: Wire::default(),
            keep: Keep::new(retain),
            server: super::server::Server::new(),
            now: 1,
            closing: false,
            asked: std::iter::repeat_with(|| None)
                .take(usize::from(USER))
                .collect(),
            lazy: form & 16 != 0,
            clock: 1,
            max_payload: 4096,
        }
    }

    pub fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    pub fn conn(&mut self, index: u16) -> Option<&mut Conn> {
        self.conns[usize::from(index)].as_mut()
    }

    /// A request of the device's.
    pub fn submit(&mut self, input: &mut Input<'_>) {
        // Before the first session nobody knows the geometry.
        if self.closing || self.session.geometry().is_none() {
            return;
        }
        let slot = input.below(usize::from(USER) + 1) as u16;
        let kinds = [
            Kind::WRITE,
            Kind::READ,
            Kind::WRITE,
            Kind::FLUSH,
            Kind::DISCARD,
            Kind::WRITE_ZEROES,
            Kind::BLOCK_STATUS,
        ];
        let kind = input.pick(&kinds);
        let form = input.u8();
        let at = u64::from(form) % BLOCKS;
        let blocks = (u64::from(form / 24) % 4 + 1).min(BLOCKS - at);
        let blocks = blocks.min(u64::from(self.max_payload) / BLOCK);
        let flags = OpFlags::NONE.with(OpFlags::BARRIER, input.one_in(6)).with(
            OpFlags::FUA,
            input.one_in(6) && Kind::op_flags(kind).contains(OpFlags::FUA),
        );
        let (offset, length) = match kind {
            Kind::FLUSH => (0, 0),
            _ => (at * BLOCK, blocks * BLOCK),
        };
        self.submit_as(
            slot,
            Request {
                kind,
                flags,
                offset,
                length,
            },
        );
    }

    /// Slots that the device may submit in.
    pub fn users(&self) -> u16 {
        user_slots(self.session.limits().slots)
    }

    pub fn submit_as(&mut self, slot: u16, request: Request) {
        let free = self.slots[usize::from(slot)].is_free() && slot < self.users();
        trace!("submit {slot} {request:?} free {free}");
        let taken =
            self.session
                .submit(&mut self.slots, &mut self.retained, slot, request, self.now);
        assert_eq!(taken, free, "slot {slot} taken");
        if taken {
            let asked = &mut self.asked[usize::from(slot)];
            assert!(asked.is_none(), "free with a request in it");
            *asked = Some(Asked {
                request,
                pins: Vec::new(),
            });
        }
        self.events();
    }

    /// Does what the engine has to say.
    pub fn events(&mut self) {
        for _ in 0..1000 {
            let Some(event) = self.session.poll_event(&mut self.slots, &mut self.retained) else {
                self.check();
                return;
            };
            self.tick();
            trace!("  event {event:?}");
            match event {
                Event::Completed {
                    slot,
                    result,
                    retained,
                } => {
                    let asked = self.asked[usize::from(slot)].take();
                    let asked = asked.expect("completed a request that was not there");
                    assert_eq!(asked.pins, [], "completed while pinned: slot {slot}");
                    assert!(self.slots[usize::from(slot)].is_free());
                    self.wire.completed(slot, &asked.request, &result);
                    let step = self.clock;
                    self.keep
                        .completed(&asked.request, result.is_ok(), retained, step);
                }
                Event::Released { index } => self.keep.released(index),
                Event::Close { index, .. } => {
                    let conn = self.conns[usize::from(index)].as_mut();
                    conn.expect("closes a stream that is not there").close = true;
                    if !self.lazy {
                        self.lose_quietly(index);
                    }
                }
                Event::Failed(_) => assert!(matches!(self.session.phase(), Phase::Failed(_))),
                Event::Closed(_) => assert_eq!(self.session.phase(), Phase::Closed),
                Event::Opened { .. } => assert!(self.session.geometry().is_some()),
                Event::Changed | Event::Draining { .. } | Event::Refused { .. } => {}
            }
        }
        panic!("events without end");
    }

    fn check(&self) {
        assert!(self.session.in_flight() <= SLOTS);
        assert!(self.session.live_connections() <= CONNECTIONS);
        for (slot, asked) in (0..self.users()).zip(&self.asked) {
            let free = self.slots[usize::from(slot)].is_free();
            assert_eq!(free, asked.is_none(), "slot {slot} and its request");
            if let Some(asked) = asked {
                let pinned = self.session.is_pinned(&self.slots, slot);
                assert!(
                    pinned || asked.pins.is_empty(),
                    "slot {slot} has {:?}",
                    asked.pins
                );
            }
        }
        if let Some(at) = self.session.next_timeout() {
            assert!(at > 0);
        }
        assert!(self.retained.entries() <= self.keep.capacity() as u64);
    }

    /// The stream of `index` is gone.
    pub fn lose(&mut self, index: u16) {
        if self.conns[usize::from(index)].is_some() {
            trace!("lose {index}");
            self.lose_quietly(index);
            self.events();
        }
    }

    fn lose_quietly(&mut self, index: u16) {
        let conn = self.conns[usize::from(index)].take();
        self.wire.lost(index, conn.map_or(0, |conn| conn.stream));
        for asked in self.asked.iter_mut().flatten() {
            asked
                .pins
                .retain(|pin| *pin != Pin::Send(index) && *pin != Pin::Receive(index));
        }
        self.session
            .handle_lost(&mut self.slots, &mut self.retained, index);
    }

    /// Streams that the engine wanted closed some time ago.
    pub fn close_wanted(&mut self) {
        for index in 0..CONNECTIONS {
            if self.conn(index).is_some_and(|conn| conn.close) {
                self.lose(index);
            }
        }
    }

    pub fn fail(&mut self, reason: FailReason) {
        self.session
            .fail(&mut self.slots, &mut self.retained, reason);
        self.events();
    }

    pub fn time(&mut self, now: u64) {
        self.now = self.now.max(now);
        trace!("time {}", self.now);
        self.session
            .handle_timeout(&mut self.slots, &mut self.retained, self.now);
        self.events();
    }

    /// One frame over `index`, if there is one.
    pub fn transmit(&mut self, index: u16) -> bool {
        let mut out = [0; 1024];
        let transmit =
            self.session
                .poll_transmit(&mut self.slots, &mut self.retained, index, &mut out);
        let Some(transmit) = transmit else {
            return false;
        };
        let step = self.tick();
        let conn = self.conns[usize::from(index)].as_ref();
        let conn = conn.expect("sends over nothing");
        assert!(conn.live, "sends before OPENED or JOINED");
        let stream = conn.stream;
        let (header, source) = match transmit {
            Transmit::Bytes(len) => {
                assert_eq!(len, HEADER_LEN);
                let head = out.first_chunk().expect("a header");
                (Header::decode(head).expect("a good header"), None)
            }
            Transmit::Write { header, payload } => {
                assert_eq!(u64::from(payload.length), header.length);
                assert_eq!((payload.offset, payload.slot), (header.offset, header.slot));
                assert_eq!((header.payload_len, header.digest_len), (payload.length, 0));
                (header, Some(payload.source))
            }
        };
        trace!("  out {index}: {header:?}");
        match header.kind {
            Kind::PING => {}
            Kind::REPLAYED => {
                // It may be said again when the replay is long over.
                if !self.wire.replayed {
                    self.keep.check_replayed(self.wire.replays());
                }
                self.wire.replayed = true;
            }
            Kind::CLOSE => self.wire.check_idle(),
            Kind::ABORT => self.wire.aborts(&header, step),
            _ => {
                assert!(header.kind.has_slot());
                if header.kind == Kind::FLUSH && !self.wire.replayed {
                    self.keep.check_replayed(self.wire.replays());
                }
                let asked = self.asked.get_mut(usize::from(header.slot));
                if header.slot < user_slots(self.session.limits().slots) {
                    let asked = asked
                        .and_then(Option::as_mut)
                        .expect("sends what nobody asked");
                    let Request {
                        kind,
                        flags,
                        offset,
                        length,
                    } = asked.request;
                    assert_eq!((header.kind, header.op_flags), (kind, flags));
                    assert_eq!((header.offset, header.length), (offset, length));
                    if kind == Kind::WRITE {
                        assert_eq!(source, Some(Source::Slot));
                        asked.pins.push(Pin::Send(index));
                    }
                } else if let Some(source) = source {
                    let Source::Retained { seq, from } = source else {
                        panic!("a replay of nothing");
                    };
                    let at = self.retained.index(seq);
                    self.keep.check_replay(at, from, &header);
                }
                self.wire.sends(&header, index, stream, step);
            }
        }
        self.check();
        true
    }

    /// The socket of `index` does not refer to the bytes of some slot any more.
    pub fn sent(&mut self, index: u16, slot: u16) {
        let Some(stream) = self.conn(index).map(|conn| conn.stream) else {
            return;
        };
        let asked = self.asked.get_mut(usize::from(slot));
        let Some(asked) = asked.and_then(Option::as_mut) else {
            return;
        };
        // One for each time that it was sent.
        let Some(at) = asked.pins.iter().position(|pin| *pin == Pin::Send(index)) else {
            return;
        };
        asked.pins.remove(at);
        trace!("sent {index} slot {slot}");
        self.session
            .handle_sent(&mut self.slots, &mut self.retained, index, stream, slot);
        self.events();
    }

    /// A stream for `index`, where the engine wants one.
    pub fn connect(&mut self, index: u16) {
        let there = self.conns[usize::from(index)].is_some();
        let wanted = self.session.wants_connection(index);
        assert!(!wanted || !there, "wants a stream that is there");
        if !wanted {
            return;
        }
        let stream = self.session.handle_connected(index, self.now);
        trace!("connect {index} stream {stream}");
        self.conns[usize::from(index)] = Some(Conn {
            stream,
            rx: Receiver::new(vec![0; 1024 + 16384], Role::Server),
            asked: None,
            live: false,
            arriving: None,
            close: false,
        });
        self.events();
    }

    pub fn is_idle(&self) -> bool {
        self.asked.iter().all(Option::is_none)
    }

    /// Nothing is left of any request.
    pub fn assert_empty(&mut self) {
        assert!(self.is_idle(), "requests are lost: {:?}", self.asked);
        assert!(self.slots.iter().all(Slot::is_free));
        assert_eq!(self.session.in_flight(), 0);
        for slot in 0..self.users() {
            let flush = Request {
                kind: Kind::FLUSH,
                flags: OpFlags::NONE,
                offset: 0,
                length: 0,
            };
            self.submit_as(slot, flush);
            assert!(self.is_idle(), "a failed device answers at once");
        }
        assert!((0..CONNECTIONS).all(|index| !self.session.wants_connection(index)));
    }

    /// Whether a status is one that a request may be answered with for good.
    pub fn is_final(status: Status) -> bool {
        status != Status::RETRY
    }
}
