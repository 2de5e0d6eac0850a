//! A session with its memory, and the few frames a server says.

extern crate std;

use std::boxed::Box;
use std::vec;
use std::vec::Vec;

use super::super::super::proto::{
    Aborted, Algorithm, ClientName, Credit, DigestChoice, ExportName, ExportState, Geometry,
    GeometryFlags, Header, Hello, Holder, Joined, Kind, Limits, OpFlags, Opened, Outcome, Role,
    SessionGrant, SlotEntry, Status, Times, HEADER_LEN, HELLO_LEN, NO_SLOT,
};
use super::super::super::rx::Fault;
use super::super::*;

pub const USER: u16 = 6;
pub const SLOTS: u16 = USER + REPLAY_SLOTS + 1;
pub const BLOCK: u64 = 512;

pub struct Rig {
    pub session: Session<Vec<u64>>,
    pub slots: Vec<Slot>,
    pub retained: Retained<Vec<Entry>>,
    pub streams: [u32; MAX_CONNECTIONS],
    pub now: u64,
    pub epoch: u64,
    pub incarnation: u8,
    pub export_id: u8,
    pub credit: Credit,
    pub size: u64,
}

/// What a session sent: header and, for a WRITE, where its bytes come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    pub header: Header,
    pub payload: Option<Payload>,
}

impl Rig {
    pub fn new() -> Self {
        Self::with(None, 64)
    }

    pub fn with(deadline: Option<u64>, retain: usize) -> Self {
        Self::of(true, deadline, retain)
    }

    /// A session of a reader that is live on connection 0.
    pub fn reader() -> Self {
        let mut rig = Self::of(false, None, 0);
        rig.open();
        rig
    }

    fn of(writable: bool, deadline: Option<u64>, retain: usize) -> Self {
        let config = Config {
            writable,
            holder: Holder {
                identity: [1; 16],
                boot: [2; 16],
                instance: [3; 16],
            },
            limits: Limits {
                slots: SLOTS,
                connections: 2,
                max_payload: 65536,
                window: 128,
                credit_bytes: 1 << 20,
            },
            digests: Algorithm::None.mask_bit(),
            granule: 4096,
            deadline,
            retries: 2,
        };
        Self {
            session: Session::new(config, vec![0; 2]),
            slots: vec![Slot::default(); usize::from(SLOTS)],
            retained: Retained::new(vec![Entry::default(); retain], 1 << 20),
            streams: [0; MAX_CONNECTIONS],
            now: 0,
            epoch: 1,
            size: 1 << 20,
            incarnation: 1,
            export_id: 9,
            credit: Credit {
                requests: SLOTS - 1,
                bytes: 1 << 20,
            },
        }
    }

    /// A session that is live on connection 0.
    pub fn live() -> Self {
        let mut rig = Self::new();
        rig.open();
        rig
    }

    /// Connects index 0, opens, and lets an empty replay pass.
    pub fn open(&mut self) {
        self.connect(0);
        self.opened();
        while self.send(0).is_some() {}
        while self.event().is_some() {}
    }

    /// A stream for `index` and both HELLOs; answers the type of the frame that follows.
    pub fn connect(&mut self, index: u16) -> Kind {
        let stream = self.session.handle_connected(index, self.now);
        self.streams[usize::from(index)] = stream;
        let sent = self.greet(index, stream).unwrap();
        Header::decode(sent[HELLO_LEN..].first_chunk().unwrap())
            .unwrap()
            .kind
    }

    /// The server's HELLO comes over a stream; answers what is sent back.
    pub fn greet(&mut self, index: u16, stream: u32) -> Result<Vec<u8>, Fault> {
        let mut hello = [0; HELLO_LEN];
        Hello::new(Role::Server, [5; 16], "test").encode(&mut hello);
        let greeting = Greeting {
            hello: &hello,
            nonce: [6; 16],
            binding: [0; 32],
        };
        let names = Names {
            export: ExportName::new("disk").unwrap(),
            client: ClientName::new("me").unwrap(),
            implementation: "test",
        };
        let mut out = vec![0; 2048];
        let length = self.session.handle_hello(
            &self.retained,
            index,
            stream,
            &greeting,
            &names,
            &mut out,
        )?;
        out.truncate(length);
        Ok(out)
    }

    pub fn export(&self) -> ExportState {
        ExportState {
            id: [self.export_id; 16],
            incarnation: [self.incarnation; 16],
            epoch: self.epoch,
        }
    }

    pub fn geometry(&self) -> Geometry {
        Geometry {
            size: self.size,
            logical_block: 512,
            physical_block: 4096,
            flags: GeometryFlags::NONE,
            discard_granularity: 4096,
            atomic_limit: 0,
            rollback_limit: 0,
        }
    }

    pub fn opened(&mut self) {
        let opened = Opened {
            session: SessionGrant {
                number: 77,
                secret: [8; 16],
            },
            export: self.export(),
            geometry: self.geometry(),
            limits: Limits {
                credit_bytes: self.credit.bytes,
                ..*self.session.limits()
            },
            digests: DigestChoice {
                algorithm: Algorithm::None,
                granule: 4096,
            },
            times: Times {
                keepalive_ms: 1000,
                session_ms: 60_000,
                lease_ms: 30_000,
            },
        };
        let mut options = vec![0; 1024];
        let length = opened.encode(&mut options).unwrap();
        let header = Header::reply(Kind::OPEN, NO_SLOT, 0, Status::OK, self.credit);
        self.frame(0, header, &options[..length]).unwrap();
    }

    pub fn joined(&mut self, index: u16, entries: &[SlotEntry]) {
        let mut options = vec![0; 4096];
        let length = Joined::encode_from(
            &self.export(),
            &self.geometry(),
            entries.iter().copied(),
            &mut options,
        )
        .unwrap();
        let header = Header::reply(Kind::JOIN, NO_SLOT, 0, Status::OK, self.credit);
        self.frame(index, header, &options[..length]).unwrap();
    }

    pub fn refuse(&mut self, kind: Kind, index: u16, status: Status) {
        let header = Header::reply(kind, NO_SLOT, 0, status, Credit::default());
        self.frame(index, header, &[]).unwrap();
    }

    pub fn frame(&mut self, index: u16, header: Header, options: &[u8]) -> Result<Take, Fault> {
        let stream = self.streams[usize::from(index)];
        self.session.handle_frame(
            &mut self.slots,
            &mut self.retained,
            index,
            stream,
            &header,
            options,
        )
    }

    pub fn reply(&mut self, index: u16, sent: Sent, status: Status) -> Take {
        let header = Header {
            attempt: sent.header.attempt,
            ..Header::reply(
                sent.header.kind,
                sent.header.slot,
                sent.header.id,
                status,
                self.credit,
            )
        };
        self.frame(index, header, &[]).unwrap()
    }

    pub fn outcome(&mut self, index: u16, slot: u16, id: u64, outcome: Outcome) {
        let mut options = vec![0; 64];
        let length = Aborted { outcome }.encode(&mut options).unwrap();
        let header = Header::reply(Kind::ABORT, slot, id, Status::OK, self.credit);
        self.frame(index, header, &options[..length]).unwrap();
    }

    pub fn submit(&mut self, slot: u16, request: Request) {
        let taken =
            self.session
                .submit(&mut self.slots, &mut self.retained, slot, request, self.now);
        assert!(taken);
    }

    /// The next frame over `index`; a WRITE has left the socket at once.
    pub fn send(&mut self, index: u16) -> Option<Sent> {
        let sent = self.send_pinned(index)?;
        if sent.payload.is_some() {
            self.sent(index, sent.header.slot);
        }
        Some(sent)
    }

    /// The next frame over `index`; the bytes of a WRITE stay with the socket.
    pub fn send_pinned(&mut self, index: u16) -> Option<Sent> {
        let mut out: Box<[u8]> = vec![0; 4096].into();
        let transmit =
            self.session
                .poll_transmit(&mut self.slots, &mut self.retained, index, &mut out)?;
        Some(match transmit {
            Transmit::Bytes(length) => {
                assert!(length >= HEADER_LEN);
                Sent {
                    header: Header::decode(out.first_chunk().unwrap()).unwrap(),
                    payload: None,
                }
            }
            Transmit::Write { header, payload } => Sent {
                header,
                payload: Some(payload),
            },
        })
    }

    pub fn sent(&mut self, index: u16, slot: u16) {
        let stream = self.streams[usize::from(index)];
        self.session
            .handle_sent(&mut self.slots, &mut self.retained, index, stream, slot);
    }

    pub fn lose(&mut self, index: u16) {
        self.session
            .handle_lost(&mut self.slots, &mut self.retained, index);
    }

    pub fn timeout(&mut self, now: u64) {
        self.now = now;
        self.session
            .handle_timeout(&mut self.slots, &mut self.retained, now);
    }

    pub fn event(&mut self) -> Option<Event> {
        self.session.poll_event(&mut self.slots, &mut self.retained)
    }

    pub fn events(&mut self) -> Vec<Event> {
        core::iter::from_fn(|| self.event()).collect()
    }

    /// Slots and results of what has completed.
    pub fn completed(&mut self) -> Vec<(u16, Result<(), Failure>)> {
        let done = |event| match event {
            Event::Completed { slot, result, .. } => Some((slot, result)),
            _ => None,
        };
        self.events().into_iter().filter_map(done).collect()
    }

    /// Writes and has it acknowledged.
    pub fn write_through(&mut self, slot: u16, request: Request) {
        self.submit(slot, request);
        let sent = self.send(0).unwrap();
        self.reply(0, sent, Status::OK);
        assert_eq!(self.completed(), [(slot, Ok(()))]);
    }
}

/// A request of `blocks` blocks from block `at` on.
pub fn request(kind: Kind, at: u64, blocks: u64) -> Request {
    Request {
        kind,
        flags: OpFlags::NONE,
        offset: at * BLOCK,
        length: blocks * BLOCK,
    }
}

pub fn write(at: u64, blocks: u64) -> Request {
    request(Kind::WRITE, at, blocks)
}

pub fn read(at: u64, blocks: u64) -> Request {
    request(Kind::READ, at, blocks)
}

pub fn flush() -> Request {
    request(Kind::FLUSH, 0, 0)
}

pub fn barrier(request: Request) -> Request {
    Request {
        flags: request.flags.union(OpFlags::BARRIER),
        ..request
    }
}

pub fn fua(request: Request) -> Request {
    Request {
        flags: request.flags.union(OpFlags::FUA),
        ..request
    }
}
