//! The other end of the wire, as the input decides: mostly what a server might say.

use dst_engine::client::{FailReason, Greeting, Names, Phase};
use dst_proto::{
    Aborted, Changed, ClientName, Credit, DigestChoice, ExportName, ExportState, Extent,
    ExtentKind, Extents, Geometry, GeometryFlags, Header, Joined, Kind, Limits, OpFlags, Opened,
    OptionWriter, Outcome, Role, SessionGrant, SlotEntry, SlotState, Status, Times, HEADER_LEN,
    HELLO_LEN, NO_SLOT,
};

use super::world::{World, BLOCK, BLOCKS, CONNECTIONS, SLOTS, USER};
use crate::frames;
use crate::input::Input;
use crate::trace;

/// What the server is now.
pub struct Server {
    id: u8,
    incarnation: u8,
    epoch: u64,
    number: u64,
    /// It knows the session.
    pub(super) knows: bool,
    blocks: u64,
    pub(super) credit: Credit,
}

impl Server {
    pub fn new() -> Server {
        Server {
            id: 9,
            incarnation: 1,
            epoch: 1,
            number: 0,
            knows: false,
            blocks: BLOCKS,
            credit: Credit {
                requests: SLOTS - 1,
                bytes: 16 * 1024,
            },
        }
    }

    pub(super) fn state(&self) -> ExportState {
        ExportState {
            id: [self.id; 16],
            incarnation: [self.incarnation; 16],
            epoch: self.epoch,
        }
    }

    fn geometry(&self) -> Geometry {
        Geometry {
            size: self.blocks * BLOCK,
            logical_block: BLOCK as u32,
            physical_block: BLOCK as u32,
            flags: GeometryFlags::NONE,
            discard_granularity: 0,
            atomic_limit: 0,
            rollback_limit: 0,
        }
    }
}

const STATUSES: [Status; 8] = [
    Status::OK,
    Status::OK,
    Status::OK,
    Status::IO,
    Status::RETRY,
    Status::NO_SPACE,
    Status::SYNC_FAILED,
    Status(999),
];

impl World {
    /// One step of the input.
    pub fn step(&mut self, input: &mut Input<'_>) {
        let op = input.u8();
        let index = u16::from(op >> 5) % CONNECTIONS;
        match op & 31 {
            0..=5 => self.submit(input),
            6 => self.connect(index),
            7 => {
                self.connect(index);
                self.feed(index, &frames::hello(Role::Server, 5));
            }
            8..=10 => self.answer_handshake(index),
            11 => self.answer_handshake_oddly(index, input),
            12..=14 => {
                for _ in 0..=input.below(4) {
                    self.transmit(index);
                }
            }
            15..=18 => self.answer(index, input),
            19 => {
                let (len, good) = (u32::from(input.u8()) * 64, !input.one_in(4));
                self.payload(index, len.max(1), good);
            }
            20 => self.sent(index, input.below(usize::from(USER)) as u16),
            21 => self.lose(index),
            22 => self.pass_time(input),
            23 => self.any_frame(index, input),
            24 => {
                let len = input.below(100);
                let bytes = input.bytes(len);
                self.feed(index, bytes);
            }
            25 => self.speak(index, input),
            26 => self.settle_abort(index, input),
            27 => self.session.handle_alive(index, self.now),
            28 => match input.u8() {
                0..=2 => {
                    self.closing = true;
                    self.session.close();
                    self.events();
                }
                3 => self.fail(FailReason::Forced),
                _ => self.close_wanted(),
            },
            29 => {
                self.server.knows = false;
                if input.one_in(2) {
                    self.server.incarnation = self.server.incarnation.wrapping_add(1);
                }
            }
            30 => _ = self.round(),
            _ => self.close_wanted(),
        }
    }

    /// A HELLO has come: the client's answer.
    pub fn greet(&mut self, index: u16) {
        let conn = self.conns[usize::from(index)].as_mut().expect("there");
        let greeting = Greeting {
            hello: conn.rx.hello_bytes(),
            nonce: [6; 16],
            binding: [0; 32],
        };
        let names = Names {
            export: ExportName::new("disk").expect("a name"),
            client: ClientName::new("fuzz").expect("a name"),
            implementation: "fuzz",
        };
        let mut out = [0; 2048];
        let stream = conn.stream;
        let answer =
            self.session
                .handle_hello(&self.retained, index, stream, &greeting, &names, &mut out);
        let Ok(len) = answer else {
            return self.lose(index);
        };
        let head = out[HELLO_LEN..].first_chunk().expect("a header");
        let header = Header::decode(head).expect("a good header");
        assert_eq!(
            HELLO_LEN + HEADER_LEN + usize::from(header.options_len),
            len
        );
        let opening = self.session.phase() == Phase::Opening;
        assert_eq!(header.kind, if opening { Kind::OPEN } else { Kind::JOIN });
        trace!("hello {index}: {:?}", header.kind);
        if let Some(conn) = self.conn(index) {
            conn.asked = Some(header.kind);
        }
    }

    fn asked(&mut self, index: u16) -> Option<Kind> {
        self.conn(index).filter(|conn| !conn.live)?.asked
    }

    /// OPENED, JOINED or SESSION_LOST, as a good server would.
    pub fn answer_handshake(&mut self, index: u16) {
        match self.asked(index) {
            Some(Kind::OPEN) => {
                let limits = self.session.limits();
                let opened = self.opened(*limits);
                self.open(index, opened);
            }
            Some(_) if self.server.knows => self.joined(index, &[]),
            Some(_) => self.refuse(index, Kind::JOIN, Status::SESSION_LOST),
            None => {}
        }
    }

    fn opened(&mut self, limits: Limits) -> Opened {
        self.server.number += 1;
        Opened {
            session: SessionGrant {
                number: self.server.number,
                secret: [8; 16],
            },
            export: self.server.state(),
            geometry: self.server.geometry(),
            limits,
            digests: DigestChoice {
                algorithm: dst_proto::Algorithm::None,
                granule: 4096,
            },
            times: Times {
                keepalive_ms: 1000,
                session_ms: 60_000,
                lease_ms: 30_000,
            },
        }
    }

    fn open(&mut self, index: u16, opened: Opened) {
        self.server.knows = true;
        let header = Header::reply(Kind::OPEN, NO_SLOT, 0, Status::OK, self.server.credit);
        let encode = |out: &mut [u8]| opened.encode(out).expect("fits");
        let bytes = frames::with_options(&header, encode);
        self.feed(index, &bytes);
    }

    fn joined(&mut self, index: u16, entries: &[SlotEntry]) {
        let (state, geometry) = (self.server.state(), self.server.geometry());
        let header = Header::reply(Kind::JOIN, NO_SLOT, 0, Status::OK, self.server.credit);
        let bytes = frames::with_options(&header, |out| {
            Joined::encode_from(&state, &geometry, entries.iter().copied(), out).expect("fits")
        });
        self.feed(index, &bytes);
    }

    fn refuse(&mut self, index: u16, kind: Kind, status: Status) {
        let header = Header::reply(kind, NO_SLOT, 0, status, Credit::default());
        self.feed(index, &frames::frame(&header, &[], &[]));
    }

    fn answer_handshake_oddly(&mut self, index: u16, input: &mut Input<'_>) {
        let Some(kind) = self.asked(index) else {
            return;
        };
        let form = input.u8();
        match form % 8 {
            0 => {
                let status = input.pick(&Status::ALL);
                if status.is_ok() {
                    self.answer_handshake(index);
                } else {
                    self.refuse(index, kind, status);
                }
            }
            1 => self.server.incarnation = self.server.incarnation.wrapping_add(1),
            2 => self.server.epoch += u64::from(form >= 128),
            3 => self.server.blocks = u64::from(form / 8).max(BLOCKS - 1),
            4 if form >= 224 => self.server.id ^= 1,
            5 if kind == Kind::JOIN => {
                let mut entries = Vec::new();
                for slot in 0..SLOTS {
                    let how = input.u8();
                    entries.push(SlotEntry {
                        id: u64::from(how >> 3),
                        slot,
                        state: if how & 1 == 0 {
                            SlotState::Done
                        } else {
                            SlotState::InProgress
                        },
                        status: if how & 6 == 6 {
                            input.pick(&STATUSES)
                        } else {
                            Status::OK
                        },
                    });
                }
                self.joined(index, &entries);
            }
            6 if kind == Kind::JOIN => self.joined_honestly(index),
            _ if kind == Kind::OPEN => {
                let limits = *self.session.limits();
                let limits = Limits {
                    slots: limits.slots.saturating_sub(input.u8().into()),
                    connections: limits.connections.saturating_add(2) - input.below(5) as u16,
                    max_payload: limits.max_payload >> (input.u8() % 4),
                    window: limits.window >> (input.u8() % 8),
                    credit_bytes: limits.credit_bytes >> (input.u8() % 8),
                };
                let opened = self.opened(limits);
                self.open(index, opened);
            }
            _ => {}
        }
    }

    /// JOINED in which everything that was sent and has no answer is done.
    fn joined_honestly(&mut self, index: u16) {
        let done = self.wire.sent.values().map(|sent| SlotEntry {
            id: sent.header.id,
            slot: sent.header.slot,
            state: SlotState::Done,
            status: Status::OK,
        });
        let mut newest: Vec<SlotEntry> = Vec::new();
        for entry in done {
            newest.retain(|other| other.slot != entry.slot);
            newest.push(entry);
        }
        self.joined(index, &newest);
    }

    /// Answers one of the requests that are out on `index`.
    fn answer(&mut self, index: u16, input: &mut Input<'_>) {
        let Some(stream) = self.conn(index).map(|conn| conn.stream) else {
            return;
        };
        let out = self.wire.out(index, stream);
        let form = input.u8();
        let status = if form >= 192 {
            input.pick(&STATUSES)
        } else {
            Status::OK
        };
        if !out.is_empty() {
            let id = out[usize::from(form) % out.len()];
            let part = (form & 64 != 0).then(|| u64::from(input.u8()) * 64);
            self.reply(index, id, status, part);
        }
    }

    /// Ends the payload that is arriving over `index`, so that a frame may follow.
    pub(super) fn drain(&mut self, index: u16) {
        self.payload(index, u32::MAX, true);
    }

    pub(super) fn reply(&mut self, index: u16, id: u64, status: Status, part: Option<u64>) {
        self.drain(index);
        let Some(sent) = self.wire.sent.get(&id) else {
            return;
        };
        let asked = sent.header;
        let header = Header {
            attempt: asked.attempt,
            ..Header::reply(asked.kind, asked.slot, id, status, self.server.credit)
        };
        if asked.kind == Kind::READ && status.is_ok() {
            let from = self.wire.received(id);
            let left = asked.length - from;
            let len = part.unwrap_or(left).clamp(1, left.max(1));
            let header = Header {
                offset: asked.offset + from,
                payload_len: len as u32,
                more: len < left,
                ..header
            };
            return self.feed(index, &frames::frame(&header, &[], &[]));
        }
        let mut options = [0; 24];
        let mut len = 0;
        if asked.kind == Kind::BLOCK_STATUS && status.is_ok() {
            let extent = Extent {
                length: asked.length,
                kind: ExtentKind::Data,
            };
            let mut out = OptionWriter::new(&mut options);
            Extents::put(&mut out, [extent].into_iter()).expect("fits");
            len = out.len();
        }
        self.feed(index, &frames::frame(&header, &options[..len], &[]));
    }

    fn settle_abort(&mut self, index: u16, input: &mut Input<'_>) {
        let open = self.wire.open_aborts();
        if open.is_empty() {
            return;
        }
        let id = open[input.below(open.len())];
        let outcome = Outcome::from_code(input.u8() % 4).expect("an outcome");
        self.abort_reply(index, id, outcome);
    }

    pub(super) fn abort_reply(&mut self, index: u16, id: u64, outcome: Outcome) {
        self.drain(index);
        let slot = self.wire.slot_of(id).unwrap_or(NO_SLOT);
        let header = Header::reply(Kind::ABORT, slot, id, Status::OK, self.server.credit);
        let encode = |out: &mut [u8]| Aborted { outcome }.encode(out).expect("fits");
        let bytes = frames::with_options(&header, encode);
        self.feed(index, &bytes);
    }

    fn pass_time(&mut self, input: &mut Input<'_>) {
        let form = input.u8();
        let next = match form % 4 {
            0 => self.session.next_timeout().unwrap_or(self.now),
            1 => self.now + u64::from(form) * 1_000_000,
            2 => self.now + u64::from(form) * 100_000_000,
            _ => self.now,
        };
        self.time(next);
    }

    /// What a server says by itself.
    fn speak(&mut self, index: u16, input: &mut Input<'_>) {
        self.drain(index);
        let form = input.u8();
        match form % 8 {
            0 | 1 => {
                let ping = Header {
                    id: u64::from(form),
                    reply: form & 64 != 0,
                    ..Header::new(Kind::PING)
                };
                self.feed(index, &frames::frame(&ping, &[], &[]));
            }
            2 => self.feed(
                index,
                &frames::frame(&Header::new(Kind::DRAINING), &[], &[]),
            ),
            3 => self.feed(
                index,
                &frames::frame(&Header::error(Status::PROTOCOL), &[], &[]),
            ),
            4 => {
                let status = input.pick(&STATUSES);
                let header = Header::reply(Kind::CLOSE, NO_SLOT, 0, status, Credit::default());
                self.feed(index, &frames::frame(&header, &[], &[]));
            }
            5 => {
                // Credit that shrinks and grows.
                self.server.credit = Credit {
                    requests: u16::from(form) % SLOTS,
                    bytes: u32::from(form) * 128,
                };
            }
            _ => {
                self.server.blocks = self.server.blocks.max(u64::from(form));
                let geometry = self.server.geometry();
                let encode = |out: &mut [u8]| Changed { geometry }.encode(out).expect("fits");
                let bytes = frames::with_options(&Header::new(Kind::CHANGED), encode);
                self.feed(index, &bytes);
            }
        }
    }

    /// A frame that has little to do with what was asked.
    fn any_frame(&mut self, index: u16, input: &mut Input<'_>) {
        self.drain(index);
        let kind = input.pick(&Kind::ALL);
        let form = input.u8();
        let credit = Credit {
            requests: u16::from(input.u8()),
            bytes: u32::from(input.u16()),
        };
        let status = if form & 1 == 0 {
            Status::OK
        } else {
            Status(input.u8().into())
        };
        let header = Header {
            reply: form & 2 == 0,
            more: form & 4 != 0,
            payload_len: if form & 8 != 0 {
                u32::from(input.u16())
            } else {
                0
            },
            op_flags: OpFlags(if form & 16 != 0 { input.u8() } else { 0 }),
            attempt: form >> 6,
            offset: u64::from(input.u8()) * 64,
            ..Header::reply(
                kind,
                u16::from(input.u8()) % (SLOTS + 2),
                u64::from(input.u8()),
                status,
                credit,
            )
        };
        let len = if form & 32 != 0 {
            input.below(8) * 8
        } else {
            0
        };
        let mut options = input.bytes(len).to_vec();
        options.resize(len, 0);
        self.feed(index, &frames::frame(&header, &options, &[]));
    }
}
