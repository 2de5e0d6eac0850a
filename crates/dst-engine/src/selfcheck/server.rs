//! The server of the exchange: what a driver does round an export and a session, with a disk of one block.

use super::super::proto::{
    digest, proof, Algorithm, DigestChoice, ExportName, Geometry, GeometryFlags, Header, Hello,
    JoinRequest, Joined, Kind, OpenRequest, Opened, Role, SessionGrant, Status, Times, HEADER_LEN,
    HELLO_LEN, NO_SLOT,
};
use super::super::rx::{Head, Receiver};
use super::super::server::{
    seal, Action, Admission, Config, ConnId, Entry, Event, Execute, Export, ExportConfig, Lane,
    Piece, Record, Slot, Take, Transmit, PIECE,
};
use super::pipe::Pipe;
use super::{copy, ensure, Checked, AREA, BLOCK, GRANULE, LIMITS, NAME, PLACE, SLOTS};

type Session = super::super::server::Session<[u64; 1], [Lane; 1]>;
type Block = [u8; BLOCK];

/// Number of the only session.
const NUMBER: u64 = 7;
const SECRET: [u8; 16] = [8; 16];
/// Nanoseconds of silence after which an end asks for a sign of life.
const KEEPALIVE: u64 = 10_000_000_000;
const GEOMETRY: Geometry = Geometry {
    size: 1 << 20,
    logical_block: BLOCK as u32,
    physical_block: BLOCK as u32,
    flags: GeometryFlags::NONE,
    discard_granularity: 0,
    atomic_limit: 0,
    rollback_limit: 0,
};
const DIGESTS: DigestChoice = DigestChoice {
    algorithm: Algorithm::Crc32c,
    granule: GRANULE,
};

/// Sizes of what is not made in place.
#[cfg(test)]
pub(super) const ON_STACK: [usize; 4] = [
    core::mem::size_of::<Server<'static>>(),
    core::mem::size_of::<Receiver<[u8; AREA]>>(),
    core::mem::size_of::<Export<[Entry; 2]>>(),
    core::mem::size_of::<Session>(),
];

/// What the server needs memory for.
#[derive(Debug)]
pub(super) struct Memory {
    export: Option<Export<[Entry; 2]>>,
    session: Option<Session>,
    slots: [Slot; SLOTS],
    rx: Option<Receiver<[u8; AREA]>>,
    hello: [u8; HELLO_LEN],
    payload: Block,
    data: Block,
    disk: Block,
}

impl Memory {
    pub const fn new() -> Memory {
        Memory {
            export: None,
            session: None,
            slots: [const { Slot::EMPTY }; SLOTS],
            rx: None,
            hello: [0; HELLO_LEN],
            payload: [0; BLOCK],
            data: [0; BLOCK],
            disk: [0; BLOCK],
        }
    }
}

/// What the disk has been asked to do.
#[derive(Debug, Default)]
pub(super) struct Asked {
    pub reads: u8,
    pub writes: u8,
    pub flushes: u8,
}

/// The server, with its memory.
#[derive(Debug)]
pub(super) struct Server<'m> {
    export: &'m mut Export<[Entry; 2]>,
    session: &'m mut Option<Session>,
    slots: &'m mut [Slot],
    rx: &'m mut Receiver<[u8; AREA]>,
    hello: &'m mut [u8; HELLO_LEN],
    /// What is received for a WRITE, and how much of it.
    payload: &'m mut Block,
    got: usize,
    /// What was read.
    data: &'m mut Block,
    pub disk: &'m mut Block,
    conn: ConnId,
    nonce: [u8; 16],
    /// OPEN or JOIN has been answered.
    joined: bool,
    pub asked: Asked,
}

impl<'m> Server<'m> {
    #[inline(never)]
    pub fn new(memory: &'m mut Memory) -> Server<'m> {
        let config = ExportConfig {
            id: [5; 16],
            incarnation: [6; 16],
            fresh: true,
            record: Record::NONE,
            read_only: false,
            lease_time: KEEPALIVE,
        };
        memory.session = None;
        memory.disk = [0; BLOCK];
        Server {
            export: memory
                .export
                .insert(Export::new(&config, [Entry::default(); 2], 0)),
            session: &mut memory.session,
            slots: &mut memory.slots,
            rx: memory.rx.insert(Receiver::new([0; AREA], Role::Client)),
            hello: &mut memory.hello,
            payload: &mut memory.payload,
            got: 0,
            data: &mut memory.data,
            disk: &mut memory.disk,
            conn: ConnId(0),
            nonce: [0; 16],
            joined: false,
            asked: Asked::default(),
        }
    }

    /// A stream is there: says HELLO.
    pub fn accept(&mut self, down: &mut Pipe) -> Checked {
        *self.rx = Receiver::new([0; AREA], Role::Client);
        self.conn = ConnId(self.conn.0.saturating_add(1));
        self.nonce = [u8::try_from(self.conn.0).unwrap_or(0); 16];
        self.joined = false;
        Hello::new(Role::Server, self.nonce, "selfcheck").encode(self.hello);
        down.write(self.hello)
    }

    /// The stream is gone.
    pub fn lose(&mut self, now: u64) {
        if let Some(session) = self.session {
            session.conn_lost(self.slots, self.conn, now);
        }
    }

    /// Whether a stream that claims the generation of the one in use is let in.
    pub fn lets_in_again(&mut self, generation: u32, now: u64) -> bool {
        let conn = ConnId(u32::MAX);
        self.session.as_mut().is_none_or(|session| {
            session.join(self.slots, conn, 0, generation, 0, now) != Err(Status::STALE_GENERATION)
        })
    }

    /// Whether the lease has been given back.
    pub fn is_free(&self) -> bool {
        !self.export.record().held
    }

    /// Takes what has come.
    pub fn receive(&mut self, up: &mut Pipe, down: &mut Pipe, now: u64) -> Checked {
        while up.len() > 0 {
            let bytes = up.readable();
            if let (Some(session), true) = (&mut self.session, self.joined) {
                session.handle_received(self.conn, now);
            }
            if self.rx.payload_left() > 0 {
                let used = self.payload(bytes)?;
                up.take(used);
                continue;
            }
            let (used, head) = self.rx.feed(bytes).map_err(|fault| fault.text)?;
            up.take(used);
            if let Some(Head::Frame(header)) = head {
                match (header.kind, self.joined) {
                    (Kind::OPEN, false) => self.open(down, now)?,
                    (Kind::JOIN, false) => self.join(&header, down, now)?,
                    (_, true) => self.request(&header, now)?,
                    (_, false) => return Err("neither OPEN nor JOIN comes first"),
                }
            }
        }
        Ok(())
    }

    #[inline(never)]
    fn open(&mut self, down: &mut Pipe, now: u64) -> Checked {
        let request = OpenRequest::decode(self.rx.options()).map_err(|error| error.text())?;
        let good = request.nonce == self.nonce
            && request.limits == LIMITS
            && Some(request.name) == ExportName::new(NAME);
        ensure(good, "OPEN says something else than the client meant")?;
        let admission = self.export.open(NUMBER, &request, now);
        ensure(
            admission == Admission::Pending,
            "a writer is let in without a record of it",
        )?;
        self.actions(down, now)
    }

    #[inline(never)]
    fn actions(&mut self, down: &mut Pipe, now: u64) -> Checked {
        while let Some(action) = self.export.poll_action(now) {
            match action {
                Action::Flush => {
                    self.asked.flushes = self.asked.flushes.saturating_add(1);
                    self.export.flushed();
                }
                Action::Persist(_) => self.export.persisted(true, now),
                Action::Grant { session: NUMBER } => self.grant(down, now)?,
                Action::Released { status, .. } => {
                    if let Some(session) = self.session {
                        session.closed(status);
                    }
                }
                _ => return Err("the export wants what has no reason"),
            }
        }
        Ok(())
    }

    #[inline(never)]
    fn grant(&mut self, down: &mut Pipe, now: u64) -> Checked {
        let config = Config {
            number: NUMBER,
            geometry: GEOMETRY,
            limits: LIMITS,
            writable: true,
            digests: DIGESTS,
            piece: PIECE,
            keepalive: KEEPALIVE,
            session_time: 6 * KEEPALIVE,
        };
        let lanes = [Lane::default()];
        let session = Session::new(config, [0], lanes, self.slots, self.conn, now);
        let session = self.session.insert(session);
        session.set_gate(self.slots, self.export.is_gated(NUMBER));
        let milliseconds = 10_000;
        let opened = Opened {
            session: SessionGrant {
                number: NUMBER,
                secret: SECRET,
            },
            export: self.export.state(),
            geometry: GEOMETRY,
            limits: LIMITS,
            digests: DIGESTS,
            times: Times {
                keepalive_ms: milliseconds,
                session_ms: 6 * milliseconds,
                lease_ms: milliseconds,
            },
        };
        let written = opened.encode(options(down));
        let header = Header::reply(Kind::OPEN, NO_SLOT, 0, Status::OK, session.credit());
        self.answer(down, &header, written.map_err(|error| error.text())?)
    }

    #[inline(never)]
    fn join(&mut self, header: &Header, down: &mut Pipe, now: u64) -> Checked {
        let request = JoinRequest::decode(self.rx.options()).map_err(|error| error.text())?;
        let transcript = proof::Transcript {
            server_hello: self.hello,
            client_hello: self.rx.hello_bytes(),
            binding: &proof::NO_BINDING,
        };
        let join = request.join;
        let proved = proof::verify(&SECRET, &transcript, &join, &request.proof);
        ensure(
            proved && request.nonce == self.nonce && join.session == NUMBER,
            "a client can't prove whose session it is",
        )?;
        let session = self.session.as_mut().ok_or("JOIN without a session")?;
        let acked = header.acked;
        session
            .join(
                self.slots,
                self.conn,
                join.index,
                join.generation,
                acked,
                now,
            )
            .map_err(|_| "a new connection is not let in")?;
        let entries = session.slot_entries(self.slots, acked);
        let state = self.export.state();
        let written = Joined::encode_from(&state, &GEOMETRY, entries, options(down));
        let header = Header::reply(Kind::JOIN, NO_SLOT, 0, Status::OK, session.credit());
        self.answer(down, &header, written.map_err(|error| error.text())?)
    }

    /// Answers OPEN or JOIN, whose options have been written.
    fn answer(&mut self, down: &mut Pipe, header: &Header, options: usize) -> Checked {
        let header = Header {
            options_len: u16::try_from(options).unwrap_or(u16::MAX),
            ..*header
        };
        let len = seal(&header, down.room());
        down.written(len);
        self.joined = true;
        let DigestChoice { algorithm, granule } = DIGESTS;
        self.rx
            .accept_payload(LIMITS.max_payload, algorithm, granule);
        self.rx.forget_hello();
        ensure(len > 0, "the link is too short")
    }

    #[inline(never)]
    fn request(&mut self, header: &Header, now: u64) -> Checked {
        let session = self.session.as_mut().ok_or("a request without a session")?;
        let take = session
            .handle_request(self.slots, self.conn, header, self.rx.options(), now)
            .map_err(|fault| fault.text)?;
        self.got = 0;
        let fits = header.payload_len == 0 || header.payload_len as usize == BLOCK;
        ensure(
            fits && (take == Take::Nothing) == (header.payload_len == 0),
            "a payload is not taken, or one that is not there",
        )
    }

    /// Takes payload from `bytes`; tells how much.
    #[inline(never)]
    fn payload(&mut self, bytes: &[u8]) -> Result<usize, &'static str> {
        let session = self.session.as_mut().ok_or("payload without a session")?;
        let left = usize::try_from(self.rx.payload_left()).unwrap_or(usize::MAX);
        let bytes = bytes.get(..left).unwrap_or(bytes);
        let used = copy(self.payload.get_mut(self.got..).unwrap_or_default(), bytes);
        ensure(used == bytes.len(), "more payload than was announced")?;
        self.got = self.got.saturating_add(used);
        let whole = self
            .rx
            .payload_received(u32::try_from(used).unwrap_or(u32::MAX));
        if whole && session.payload_wanted(self.conn) {
            let DigestChoice { algorithm, granule } = DIGESTS;
            let area = self.rx.digests();
            let good = digest::verify(algorithm, granule, PLACE, self.payload, area);
            ensure(good, "the digest of a WRITE does not match")?;
            session.payload_done(self.slots, self.conn, good);
        }
        Ok(used)
    }

    /// Executes what may be, does what else there is to do, and sends what there is to send.
    pub fn work(&mut self, down: &mut Pipe, now: u64) -> Checked {
        self.execute()?;
        self.events()?;
        self.actions(down, now)?;
        self.send(down)
    }

    #[inline(never)]
    fn execute(&mut self) -> Checked {
        let Some(session) = self.session else {
            return Ok(());
        };
        while let Some(execute) = session.poll_execute(self.slots) {
            let Execute { slot, id, kind, .. } = execute;
            let block = execute.offset == PLACE && execute.length == BLOCK as u64;
            let count = match kind {
                Kind::READ if block => {
                    copy(self.data, self.disk);
                    &mut self.asked.reads
                }
                Kind::WRITE if block => {
                    copy(self.disk, self.payload);
                    &mut self.asked.writes
                }
                Kind::FLUSH => &mut self.asked.flushes,
                _ => return Err("another request is executed than was sent"),
            };
            *count = count.saturating_add(1);
            if kind == Kind::FLUSH {
                self.export.sync_succeeded(NUMBER);
            }
            session.executed(self.slots, slot, id, Status::OK);
        }
        Ok(())
    }

    #[inline(never)]
    fn events(&mut self) -> Checked {
        let Some(session) = self.session else {
            return Ok(());
        };
        while let Some(event) = session.poll_event(self.slots) {
            match event {
                Event::Replayed => self.export.replayed(NUMBER),
                Event::Release => {
                    if self.export.release(NUMBER) {
                        session.closed(Status::OK);
                    }
                }
                Event::Settled => self.export.settled(NUMBER),
                Event::Drop { .. } | Event::Close { .. } | Event::Over => {}
                Event::ProbeAnswered => return Err("an answer to a PING that was not sent"),
            }
        }
        Ok(())
    }

    #[inline(never)]
    fn send(&mut self, down: &mut Pipe) -> Checked {
        let Some(session) = self.session else {
            return Ok(());
        };
        while let Some(transmit) = session.poll_reply(self.slots, self.conn, down.room()) {
            match transmit {
                Transmit::Bytes(len) => down.written(len),
                Transmit::Data { header, piece } => read_reply(down, &header, piece, self.data)?,
                Transmit::Extents { .. } => return Err("extents that nobody has asked for"),
            }
        }
        Ok(())
    }
}

/// Room for the options of a frame.
fn options(down: &mut Pipe) -> &mut [u8] {
    down.room().get_mut(HEADER_LEN..).unwrap_or_default()
}

#[inline(never)]
fn read_reply(down: &mut Pipe, header: &Header, piece: Piece, data: &Block) -> Checked {
    let whole = piece.from == 0 && piece.len as usize == BLOCK && piece.last && !header.more;
    ensure(whole, "a READ is answered in part")?;
    let area = options(down).get_mut(..header.digest_len as usize);
    let area = area.ok_or("the link is too short")?;
    let DigestChoice { algorithm, granule } = DIGESTS;
    let digested = digest::write(algorithm, granule, header.offset, data, area);
    ensure(digested, "what was read can't be digested")?;
    let len = seal(header, down.room());
    down.written(len);
    down.write(data)
}
