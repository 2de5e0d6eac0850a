//! Sequences of events against a server's session and export, each with what must come of it.

extern crate std;

mod abort;
mod admission;
mod arbitrary;
mod arbitrary_export;
mod dedup;
mod ending;
mod joining;
mod liveness;
mod order;
mod replies;
mod syncs;

use super::super::proto::{
    Aborted, Algorithm, Credit, DigestChoice, Geometry, GeometryFlags, Header, Kind, Limits,
    OpFlags, Outcome, Status, HEADER_LEN, NO_SLOT,
};
use super::super::rx::Fault;
use super::*;
use std::vec;
use std::vec::Vec;

/// The connections that tests use.
pub const A: ConnId = ConnId(1);
pub const B: ConnId = ConnId(2);
pub const C: ConnId = ConnId(3);
pub const BLOCK: u64 = 512;
pub const SLOTS: u16 = 8;
pub const KEEPALIVE: u64 = 1000;
pub const SESSION_TIME: u64 = 50_000;
/// The slot for FLUSH alone.
pub const FLUSH_SLOT: u16 = SLOTS - 1;

/// What a test sees of a frame that goes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Out {
    /// A reply: type, slot, id, status.
    Reply(Kind, u16, u64, Status),
    /// The answer to an ABORT.
    Outcome(u16, u64, Outcome),
    /// A piece of a READ: slot, id, from, length, whether it is the last.
    Piece(u16, u64, u32, u32, bool),
    /// The answer to a BLOCK STATUS that succeeded.
    Extents(u16, u64),
    /// Anything that is no reply.
    Frame(Kind, u64),
}

/// A session with its memory.
pub struct Rig {
    pub session: Session<Vec<u64>, Vec<Lane>>,
    pub slots: Vec<Slot>,
    pub now: u64,
}

pub fn geometry() -> Geometry {
    let flags = GeometryFlags::DISCARD
        .union(GeometryFlags::WRITE_ZEROES)
        .union(GeometryFlags::BLOCK_STATUS);
    Geometry {
        size: 1 << 20,
        logical_block: BLOCK as u32,
        physical_block: 4096,
        flags,
        discard_granularity: 0,
        atomic_limit: 0,
        rollback_limit: 0,
    }
}

pub fn config() -> Config {
    Config {
        number: 77,
        geometry: geometry(),
        limits: Limits {
            slots: SLOTS,
            connections: 3,
            max_payload: 1 << 18,
            window: 64,
            credit_bytes: 1 << 19,
        },
        writable: true,
        digests: DigestChoice {
            algorithm: Algorithm::Crc32c,
            granule: 4096,
        },
        piece: 65536,
        keepalive: KEEPALIVE,
        session_time: SESSION_TIME,
    }
}

pub fn rig() -> Rig {
    rig_with(config())
}

pub fn rig_with(config: Config) -> Rig {
    let mut slots = vec![Slot::default(); usize::from(SLOTS)];
    let lanes = vec![Lane::default(); 3];
    let session = Session::new(config, vec![0; 1], lanes, &mut slots, A, 0);
    Rig {
        session,
        slots,
        now: 0,
    }
}

/// A request of `blocks` blocks at block `at`.
pub fn request(kind: Kind, slot: u16, id: u64, at: u64, blocks: u64) -> Header {
    let length = if kind == Kind::FLUSH {
        0
    } else {
        blocks * BLOCK
    };
    Header {
        slot,
        id,
        offset: at * BLOCK,
        length,
        payload_len: if kind == Kind::WRITE {
            length as u32
        } else {
            0
        },
        ..Header::new(kind)
    }
}

pub fn barrier(header: Header) -> Header {
    Header {
        op_flags: header.op_flags.union(OpFlags::BARRIER),
        ..header
    }
}

impl Rig {
    /// Handles a frame; a copy of a request already seen is the newest one.
    pub fn handle(&mut self, conn: ConnId, header: &Header) -> Result<Take, Fault> {
        let mut header = *header;
        if let Some(slot) = self.slots.get(usize::from(header.slot)) {
            if header.kind.has_slot() && slot.id == header.id && slot.id != 0 {
                header.attempt = slot.attempt.wrapping_add(1);
            }
        }
        self.handle_copy(conn, &header)
    }

    /// Handles a frame as it is.
    pub fn handle_copy(&mut self, conn: ConnId, header: &Header) -> Result<Take, Fault> {
        self.session
            .handle_request(&mut self.slots, conn, header, &[], self.now)
    }

    /// Handles a request that is no fault, its payload included.
    pub fn take(&mut self, conn: ConnId, header: &Header) -> Take {
        let take = self.handle(conn, header).expect("a good frame");
        if let Take::Payload { slot } = take {
            assert_eq!(slot, header.slot);
            assert!(self.session.payload_wanted(conn));
            self.session.payload_done(&mut self.slots, conn, true);
        }
        take
    }

    /// A request of one block at block `id * 10`, so that no two overlap.
    pub fn send(&mut self, conn: ConnId, kind: Kind, slot: u16, id: u64) -> Take {
        let at = if kind == Kind::FLUSH { 0 } else { id * 10 };
        self.take(conn, &request(kind, slot, id, at, 1))
    }

    pub fn abort(&mut self, conn: ConnId, slot: u16, id: u64) {
        let header = Header {
            slot,
            id,
            ..Header::new(Kind::ABORT)
        };
        assert_eq!(self.handle(conn, &header), Ok(Take::Nothing));
    }

    /// Ids that the backend is given now.
    pub fn start(&mut self) -> Vec<u64> {
        let mut ids = Vec::new();
        while let Some(execute) = self.session.poll_execute(&mut self.slots) {
            ids.push(execute.id);
        }
        ids
    }

    pub fn done(&mut self, slot: u16, id: u64) {
        self.done_with(slot, id, Status::OK);
    }

    pub fn done_with(&mut self, slot: u16, id: u64, status: Status) {
        self.session.executed(&mut self.slots, slot, id, status);
    }

    /// The session's own flush succeeds.
    pub fn flushed(&mut self) {
        self.done(NO_SLOT, 0);
    }

    /// Sends and executes a request to its end, reply included.
    pub fn run(&mut self, kind: Kind, slot: u16, id: u64) {
        self.send(A, kind, slot, id);
        assert_eq!(self.start(), [id]);
        self.done(slot, id);
        assert!(!self.out(A).is_empty());
    }

    pub fn out_one(&mut self, conn: ConnId) -> Option<Out> {
        let mut out = [0; 512];
        let transmit = self.session.poll_reply(&mut self.slots, conn, &mut out)?;
        let len = match transmit {
            Transmit::Bytes(len) => len,
            Transmit::Extents { header, slot } => {
                assert_eq!(slot, header.slot);
                return Some(Out::Extents(slot, header.id));
            }
            Transmit::Data { header, piece } => {
                assert_eq!(header.more, !piece.last);
                assert_eq!(header.payload_len, piece.len);
                let Piece {
                    slot,
                    from,
                    len,
                    last,
                } = piece;
                return Some(Out::Piece(slot, header.id, from, len, last));
            }
        };
        let (head, options) = out[..len].split_first_chunk::<HEADER_LEN>().unwrap();
        let header = Header::decode(head).expect("a good header");
        assert_eq!(usize::from(header.options_len), options.len());
        if !header.reply {
            return Some(Out::Frame(header.kind, header.id));
        }
        assert_eq!(header.credit(), self.session.credit());
        if header.kind == Kind::ABORT {
            let outcome = Aborted::decode(options).unwrap().outcome;
            return Some(Out::Outcome(header.slot, header.id, outcome));
        }
        let Header { kind, slot, id, .. } = header;
        Some(Out::Reply(kind, slot, id, header.status()))
    }

    /// Everything that goes out over `conn` now.
    pub fn out(&mut self, conn: ConnId) -> Vec<Out> {
        assert!(self.session.has_reply(conn) || self.out_one(conn).is_none());
        let mut all = Vec::new();
        while let Some(out) = self.out_one(conn) {
            all.push(out);
        }
        assert!(!self.session.has_reply(conn));
        all
    }

    pub fn events(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(event) = self.session.poll_event(&mut self.slots) {
            events.push(event);
        }
        events
    }

    pub fn join(&mut self, conn: ConnId, index: u16, generation: u32) -> Result<(), Status> {
        self.session
            .join(&mut self.slots, conn, index, generation, 0, self.now)
    }

    pub fn lose(&mut self, conn: ConnId) {
        self.session.conn_lost(&mut self.slots, conn, self.now);
    }
}

/// A successful reply.
pub fn ok(kind: Kind, slot: u16, id: u64) -> Out {
    Out::Reply(kind, slot, id, Status::OK)
}
