//! A session with its memory, its connections, and a driver that keeps one thing for each slot, as the engine asks.

use dst_engine::frame::seal;
use dst_engine::rx::Receiver;
use dst_engine::server::{Config, ConnId, Event, Execute, Lane, Session, Slot, Transmit};
use dst_proto::{
    digest, Aborted, Algorithm, Changed, Credit, DigestChoice, Geometry, GeometryFlags, Header,
    Kind, Limits, OpFlags, Role, SlotState, Status, HEADER_LEN, NO_SLOT,
};

use super::rules::Rules;
use crate::frames;
use crate::input::Input;
use crate::trace;

pub const SLOTS: u16 = 8;
pub const LANES: u16 = 3;
pub const BLOCK: u64 = 512;
pub const BLOCKS: u64 = 32;
pub const MAX_PAYLOAD: u32 = 8192;
const KEEPALIVE: u64 = 1000;
const SESSION_TIME: u64 = 20_000;

/// What the driver keeps for a slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Data {
    #[default]
    None,
    /// The payload of a WRITE; whether all of it is there.
    Payload {
        id: u64,
        whole: bool,
    },
    /// What a READ has read, and how much of it was sent.
    Read {
        id: u64,
        sent: u64,
        len: u64,
    },
    Extents {
        id: u64,
    },
}

/// Payload that is arriving.
#[derive(Clone, Copy, Debug)]
pub(super) enum Body {
    Slot { slot: u16, id: u64 },
    Nowhere,
}

pub struct Conn {
    pub id: ConnId,
    pub(super) rx: Receiver<Vec<u8>>,
    pub(super) body: Option<Body>,
}

pub struct World {
    pub session: Session<Vec<u64>, Vec<Lane>>,
    pub slots: Vec<Slot>,
    pub conns: Vec<Conn>,
    pub rules: Rules,
    pub now: u64,
    /// At the backend.
    pub running: Vec<Execute>,
    pub generations: [u32; LANES as usize],
    pub geometry: Geometry,
    pub digests: DigestChoice,
    pub(super) data: Vec<Data>,
    next_conn: u32,
    over: bool,
}

impl World {
    pub fn new(input: &mut Input<'_>) -> Self {
        let form = input.u8();
        let mut flags = GeometryFlags::DISCARD.union(GeometryFlags::BLOCK_STATUS);
        flags = flags.with(GeometryFlags::WRITE_ZEROES, form & 1 == 0);
        flags = flags.with(GeometryFlags::READ_ONLY, form & 0x70 == 0x70);
        let geometry = Geometry {
            size: BLOCKS * BLOCK,
            logical_block: BLOCK as u32,
            physical_block: 4096,
            flags,
            discard_granularity: 0,
            atomic_limit: 0,
            rollback_limit: 0,
        };
        let digests = DigestChoice {
            algorithm: if form & 2 == 0 {
                Algorithm::None
            } else {
                Algorithm::Crc32c
            },
            granule: 1024,
        };
        let config = Config {
            number: 77,
            geometry,
            limits: Limits {
                slots: SLOTS,
                connections: LANES,
                max_payload: MAX_PAYLOAD,
                window: 64,
                credit_bytes: 16 * 1024,
            },
            writable: form & 0x0C != 0x0C,
            digests,
            piece: [1024, 512, 4096, 1 << 20][usize::from(form >> 6)],
            keepalive: KEEPALIVE,
            session_time: SESSION_TIME,
        };
        let mut slots = vec![Slot::default(); usize::from(SLOTS)];
        let lanes = vec![Lane::default(); usize::from(LANES)];
        let session = Session::new(config, vec![0; 1], lanes, &mut slots, ConnId(1), 0);
        let mut world = World {
            rules: Rules::new(session.credit()),
            session,
            slots,
            conns: Vec::new(),
            now: 0,
            running: Vec::new(),
            generations: [1, 0, 0],
            geometry,
            digests,
            data: vec![Data::None; usize::from(SLOTS)],
            next_conn: 2,
            over: false,
        };
        world.new_conn(ConnId(1));
        world
    }

    fn new_conn(&mut self, id: ConnId) {
        let mut rx = Receiver::new(vec![0; 2048], Role::Client);
        rx.feed(&frames::hello(Role::Client, 1))
            .expect("a good HELLO");
        rx.accept_payload(MAX_PAYLOAD, self.digests.algorithm, self.digests.granule);
        rx.forget_hello();
        self.conns.push(Conn { id, rx, body: None });
    }

    /// The driver's turn after anything that has happened.
    pub(super) fn turn(&mut self) {
        for _ in 0..500 {
            let Some(event) = self.session.poll_event(&mut self.slots) else {
                return self.check();
            };
            trace!("  event {event:?}");
            assert!(!self.over, "something to do after the end");
            match event {
                Event::Close { conn, .. } => {
                    let at = self.conns.iter().position(|other| other.id == conn);
                    let at = at.expect("closes a stream that is not there");
                    self.conns.remove(at);
                    self.session.conn_lost(&mut self.slots, conn, self.now);
                    assert!(!self.session.has_reply(conn));
                }
                Event::Drop { slot } => {
                    let data = std::mem::take(&mut self.data[usize::from(slot)]);
                    assert_ne!(data, Data::None, "nothing to drop for slot {slot}");
                    let busy = self
                        .running
                        .iter()
                        .any(|execute| execute.slot == slot && execute.kind == Kind::WRITE);
                    assert!(!busy, "drops what the backend writes from");
                }
                Event::Replayed | Event::ProbeAnswered | Event::Release => {}
                Event::Settled => {
                    assert!(self.session.is_ended() && self.running.is_empty());
                }
                Event::Over => {
                    assert!(self.session.is_ended() && self.conns.is_empty());
                    self.over = true;
                }
            }
        }
        panic!("events without end");
    }

    fn check(&self) {
        let session = &self.session;
        let own = self
            .running
            .iter()
            .filter(|execute| execute.slot == NO_SLOT)
            .count();
        assert!(own <= 1, "two flushes of its own");
        assert_eq!(usize::from(session.executing()), self.running.len() - own);
        assert_eq!(session.settled(), self.running.is_empty());
        assert_eq!(usize::from(session.connections()), self.conns.len());
        let highest = self.rules.highest();
        assert!(
            session.unanswered() <= highest.requests,
            "more than the credit"
        );
        assert!(
            session.unanswered_bytes() <= u64::from(highest.bytes),
            "more bytes"
        );
        if let Some(at) = session.next_timeout() {
            assert!(at > 0);
        }
    }

    pub fn pass_time(&mut self, by: u64) {
        self.now += by;
        trace!("time {}", self.now);
        self.session.handle_timeout(&mut self.slots, self.now);
        self.turn();
    }

    pub fn lose(&mut self, at: usize) {
        let conn = self.conns.remove(at);
        trace!("lose {:?}", conn.id);
        self.session.conn_lost(&mut self.slots, conn.id, self.now);
        assert!(!self.session.payload_wanted(conn.id));
        self.turn();
    }

    pub fn join(&mut self, index: u16, generation: u32, acked: u64) {
        let conn = ConnId(self.next_conn);
        self.next_conn += 1;
        let joined = self
            .session
            .join(&mut self.slots, conn, index, generation, acked, self.now);
        trace!("join {conn:?} {index} {generation} acked {acked}: {joined:?}");
        let highest = self.generations.get_mut(usize::from(index));
        match joined {
            Ok(()) => {
                let highest = highest.expect("an index that there is");
                assert!(generation > *highest, "an old generation");
                *highest = generation;
                self.new_conn(conn);
                for entry in self.session.slot_entries(&self.slots, acked) {
                    assert!(entry.id > acked && entry.slot < SLOTS);
                    if entry.state == SlotState::Done {
                        self.rules.told((entry.slot, entry.id), entry.status);
                    }
                }
            }
            Err(Status::STALE_GENERATION) => {
                assert!(highest.is_some_and(|highest| generation <= *highest));
            }
            Err(status) => assert!(!status.is_ok()),
        }
        self.turn();
    }

    /// The backend takes one request.
    pub fn execute(&mut self) -> bool {
        let Some(execute) = self.session.poll_execute(&mut self.slots) else {
            return false;
        };
        trace!("execute {execute:?}");
        assert!(!self.session.is_ended(), "starts something after the end");
        let Execute { slot, id, kind, .. } = execute;
        if slot != NO_SLOT {
            self.check_request(&execute);
            let data = &mut self.data[usize::from(slot)];
            if kind == Kind::WRITE {
                assert_eq!(
                    *data,
                    Data::Payload { id, whole: true },
                    "not received in full"
                );
            } else {
                *data = Data::None;
            }
            self.rules.starts(&execute, &self.running);
        } else {
            assert_eq!((kind, id, execute.length), (Kind::FLUSH, 0, 0));
        }
        self.running.push(execute);
        self.turn();
        true
    }

    fn check_request(&self, execute: &Execute) {
        let Execute {
            kind,
            offset,
            length,
            flags,
            ..
        } = *execute;
        let end = offset.checked_add(length).expect("within the size");
        assert!(end <= self.geometry.size && self.geometry.is_aligned(offset | length));
        assert_eq!(kind == Kind::FLUSH, length == 0);
        assert!(flags.allowed_for(kind), "{flags:?} for {kind}");
        let read_only = self.geometry.flags.contains(GeometryFlags::READ_ONLY);
        let writable = self.session.is_writable() && !read_only;
        assert!(writable || !kind.is_write(), "a write without the right");
        if matches!(kind, Kind::READ | Kind::WRITE) {
            assert!(length <= u64::from(MAX_PAYLOAD));
        }
        for other in &self.running {
            let both = kind.is_write() && other.kind.is_write();
            let apart = end <= other.offset || other.offset + other.length <= offset;
            assert!(
                !both || apart,
                "overlapping writes {} and {}",
                other.id,
                execute.id
            );
        }
    }

    /// The backend gives one back.
    pub fn executed(&mut self, at: usize, status: Status) {
        if self.running.is_empty() {
            return;
        }
        let at = at % self.running.len();
        let Execute {
            slot,
            id,
            kind,
            flags,
            length,
            ..
        } = self.running.swap_remove(at);
        let sync = kind == Kind::FLUSH || flags.contains(OpFlags::FUA);
        let status = match status {
            Status::SYNC_FAILED | Status::SESSION_LOST if !sync => Status::IO,
            other => other,
        };
        trace!("executed {slot} {id} {kind}: {status:?}");
        if slot != NO_SLOT {
            let data = &mut self.data[usize::from(slot)];
            match kind {
                Kind::READ if status.is_ok() => {
                    *data = Data::Read {
                        id,
                        sent: 0,
                        len: length,
                    }
                }
                Kind::BLOCK_STATUS if status.is_ok() => *data = Data::Extents { id },
                Kind::WRITE => *data = Data::None,
                _ => {}
            }
            self.rules.ends((slot, id), status);
        }
        self.session.executed(&mut self.slots, slot, id, status);
        self.turn();
    }

    /// One frame goes out over the connection at `at`, if there is one.
    pub fn reply(&mut self, at: usize) -> bool {
        let Some(conn) = self.conns.get(at).map(|conn| conn.id) else {
            return false;
        };
        let mut out = [0; 2048];
        let said = self.session.has_reply(conn);
        let transmit = self.session.poll_reply(&mut self.slots, conn, &mut out);
        assert!(
            said || transmit.is_none(),
            "something to say that was not announced"
        );
        let Some(transmit) = transmit else {
            return false;
        };
        trace!("out {conn:?}: {transmit:?}");
        match transmit {
            Transmit::Bytes(len) => self.said(&out[..len]),
            Transmit::Data { header, piece } => {
                let data = &mut self.data[usize::from(piece.slot)];
                let Data::Read { id, sent, len } = data else {
                    panic!("a piece of {data:?}");
                };
                let from = u64::from(piece.from);
                assert!(from == *sent || from == 0, "pieces with a gap");
                assert_eq!((header.id, header.slot), (*id, piece.slot));
                *sent = from + u64::from(piece.len);
                assert_eq!(piece.last, *sent == *len);
                assert_eq!((header.more, header.payload_len), (!piece.last, piece.len));
                assert!(piece.len > 0 && header.payload_len <= MAX_PAYLOAD);
                let (algorithm, granule) = (self.digests.algorithm, self.digests.granule);
                let area = digest::area_len(algorithm, granule, header.offset, piece.len);
                assert_eq!(Some(header.digest_len), area);
                self.rules.says(&header);
                let len = seal(&header, &mut out);
                Header::decode(out[..len].first_chunk().expect("a header")).expect("good");
                if piece.last {
                    self.data[usize::from(piece.slot)] = Data::None;
                }
            }
            Transmit::Extents { header, slot } => {
                let data = std::mem::take(&mut self.data[usize::from(slot)]);
                assert_eq!(data, Data::Extents { id: header.id });
                assert!(header.status().is_ok());
                self.rules.says(&header);
            }
        }
        self.turn();
        true
    }

    fn said(&mut self, bytes: &[u8]) {
        let (head, options) = bytes.split_first_chunk::<HEADER_LEN>().expect("a header");
        let header = Header::decode(head).expect("a good header");
        assert_eq!(options.len(), usize::from(header.options_len));
        if header.reply {
            self.rules.credit(header.credit());
        }
        match header.kind {
            Kind::ABORT => {
                let aborted = Aborted::decode(options).expect("an outcome");
                self.rules.outcome(&header, aborted.outcome);
            }
            Kind::CHANGED => {
                let changed = Changed::decode(options).expect("a geometry");
                assert_eq!(changed.geometry, self.geometry);
            }
            Kind::PING | Kind::DRAINING | Kind::CLOSE => {}
            _ => self.rules.says(&header),
        }
    }

    pub fn set_credit(&mut self, credit: Credit) {
        self.session.set_credit(credit);
    }

    pub fn settle(&mut self, reason: Status) {
        trace!("settle {reason:?}");
        self.session.settle(&mut self.slots, reason);
        self.turn();
    }

    /// What is in progress comes to its end, and nobody is left: nothing counts any more.
    pub fn finish(&mut self) {
        trace!("--- finish");
        for _ in 0..500 {
            self.session.set_gate(&mut self.slots, false);
            while self.execute() {}
            if self.running.is_empty() {
                break;
            }
            self.executed(0, Status::OK);
        }
        assert!(self.running.is_empty(), "executions without end");
        for at in (0..self.conns.len()).rev() {
            for _ in 0..2000 {
                if !self.reply(at) {
                    break;
                }
            }
            if at < self.conns.len() {
                assert!(!self.reply(at), "replies without end");
            }
        }
        while !self.conns.is_empty() {
            self.lose(0);
        }
        if !self.session.is_waiting() {
            assert_eq!(self.session.unanswered(), 0, "credit is lost");
            assert_eq!(self.session.unanswered_bytes(), 0, "bytes are lost");
        }
        while self.execute() {
            self.executed(0, Status::OK);
        }
        self.settle(Status::SESSION_LOST);
        assert_eq!(
            (self.session.unanswered(), self.session.unanswered_bytes()),
            (0, 0)
        );
        assert!(self.over, "the end is never told");
        for (slot, data) in self.data.iter().enumerate() {
            assert_eq!(*data, Data::None, "slot {slot} keeps memory");
        }
        assert_eq!(self.session.next_timeout(), None);
    }
}
