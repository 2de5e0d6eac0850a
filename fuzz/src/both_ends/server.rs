//! The server's driver and its backend.

use dst_engine::frame::seal;
use dst_engine::rx::{Fault, Head, Receiver};
use dst_engine::server::{
    Action, ConnId, Entry, Event, Export, ExportConfig, Lane, Record, Session, Slot, Take, Transmit,
};
use dst_proto::{digest, Credit, Header, Role, Status, HEADER_LEN, HELLO_LEN};

use super::backend::{apply, Running};
use super::disk::{Disk, BLOCK};
use super::wire::Wires;
use super::Setup;
use crate::trace;

const LEASE: u64 = 30_000_000_000;

/// What the driver keeps for a slot.
#[derive(Clone, Debug, Default)]
pub enum Data {
    #[default]
    None,
    Payload(Vec<u8>),
    Read(Vec<u8>),
}

/// Where arriving payload goes.
enum Body {
    Slot {
        slot: u16,
        bytes: Vec<u8>,
        offset: u64,
    },
    Nowhere,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Greeting,
    /// OPEN is being decided for a session of this number.
    Asking(u64),
    Joined(u64),
}

pub struct Conn {
    pub stream: u32,
    pub stage: Stage,
    pub rx: Receiver<Vec<u8>>,
    pub hello: [u8; HELLO_LEN],
    body: Option<Body>,
}

impl Conn {
    pub fn new(stream: u32, hello: [u8; HELLO_LEN]) -> Conn {
        Conn {
            stream,
            stage: Stage::Greeting,
            rx: Receiver::new(vec![0; 1024 + 2048], Role::Client),
            hello,
            body: None,
        }
    }
}

pub struct Member {
    pub number: u64,
    pub session: Session<Vec<u64>, Vec<Lane>>,
    pub slots: Vec<Slot>,
    pub data: Vec<Data>,
    pub secret: [u8; 16],
}

pub struct Server {
    pub setup: Setup,
    pub export: Export<Vec<Entry>>,
    pub members: Vec<Member>,
    pub conns: Vec<Conn>,
    pub next_session: u64,
    pub(super) running: Vec<Running>,
    record: Record,
    persisting: Option<Record>,
    pub(super) incarnation: u8,
}

fn export(record: Record, incarnation: u8, fresh: bool, now: u64) -> Export<Vec<Entry>> {
    let config = ExportConfig {
        id: [7; 16],
        incarnation: [incarnation; 16],
        fresh,
        record,
        read_only: false,
        lease_time: LEASE,
    };
    Export::new(&config, vec![Entry::default(); 6], now)
}

impl Server {
    pub fn new(setup: Setup) -> Server {
        Server {
            setup,
            export: export(Record::NONE, 1, true, 0),
            members: Vec::new(),
            conns: Vec::new(),
            next_session: 1,
            running: Vec::new(),
            record: Record::NONE,
            persisting: None,
            incarnation: 1,
        }
    }

    /// The process dies: what the backend has is executed or not.
    pub fn die(&mut self, wires: &mut Wires, disk: &mut Disk, form: u8) {
        for stream in wires.at_server() {
            wires.server_leaves(stream);
        }
        self.conns.clear();
        for (nth, running) in std::mem::take(&mut self.running).into_iter().enumerate() {
            if form >> (nth % 7 + 1) & 1 != 0 {
                apply(disk, &running);
            }
        }
        self.members.clear();
    }

    /// A new process; a record that was being written is on stable storage where `persisted`.
    pub fn start(&mut self, fresh: bool, persisted: bool, now: u64) {
        if let (Some(record), true) = (self.persisting.take(), persisted) {
            self.record = record;
        }
        self.incarnation = self.incarnation.wrapping_add(u8::from(fresh));
        self.export = export(self.record, self.incarnation, fresh, now);
    }

    pub fn persisted(&mut self, ok: bool, now: u64) -> bool {
        let Some(record) = self.persisting.take() else {
            return false;
        };
        if ok {
            assert!(record.epoch >= self.record.epoch);
            self.record = record;
        }
        self.export.persisted(ok, now);
        true
    }

    /// The session's credit changes.
    pub fn session_credit(&mut self, form: u8) {
        let credit = Credit {
            requests: u16::from(form % 8),
            // A WRITE must have a chance.
            bytes: 4 * BLOCK as u32 + u32::from(form) * 64,
        };
        for member in &mut self.members {
            member.session.set_credit(credit);
        }
    }

    pub fn timeout(&mut self, now: u64) {
        for member in &mut self.members {
            member.session.handle_timeout(&mut member.slots, now);
            self.export
                .heard(member.number, member.session.last_heard());
        }
        self.export.handle_timeout(now);
    }

    pub fn next_timeout(&self) -> Option<u64> {
        let sessions = self
            .members
            .iter()
            .map(|member| member.session.next_timeout());
        sessions.chain([self.export.next_timeout()]).flatten().min()
    }

    fn member(&mut self, number: u64) -> Option<&mut Member> {
        self.members
            .iter_mut()
            .find(|member| member.number == number)
    }

    /// A stream is gone.
    pub fn lose(&mut self, wires: &mut Wires, stream: u32, now: u64) {
        wires.server_leaves(stream);
        let Some(at) = self.conns.iter().position(|conn| conn.stream == stream) else {
            return;
        };
        let conn = self.conns.remove(at);
        match conn.stage {
            Stage::Greeting => {}
            Stage::Asking(number) => self.export.cancel(number),
            Stage::Joined(number) => {
                if let Some(member) = self.member(number) {
                    let id = ConnId(stream);
                    member.session.conn_lost(&mut member.slots, id, now);
                }
            }
        }
    }

    /// Takes up to `len` bytes from a stream. Tells whether anything happened.
    pub fn receive(
        &mut self,
        wires: &mut Wires,
        disk: &mut Disk,
        stream: u32,
        len: usize,
        now: u64,
    ) -> bool {
        let Some(bytes) = wires.server_reads(stream, len) else {
            trace!("server: end of stream {stream}");
            self.lose(wires, stream, now);
            return true;
        };
        if bytes.is_empty() {
            return false;
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let Some(at) = self.conns.iter().position(|conn| conn.stream == stream) else {
                break;
            };
            match self.take(wires, at, rest, now) {
                Ok(used) => rest = &rest[used..],
                Err(fault) => {
                    trace!("server: fault on stream {stream}: {fault}");
                    assert!(
                        wires.is_damaged(stream),
                        "the server accuses the client: {fault}"
                    );
                    self.lose(wires, stream, now);
                }
            }
            self.turn(wires, disk, now);
        }
        true
    }

    fn take(
        &mut self,
        wires: &mut Wires,
        at: usize,
        bytes: &[u8],
        now: u64,
    ) -> Result<usize, Fault> {
        let conn = &mut self.conns[at];
        if let Stage::Joined(number) = conn.stage {
            let id = ConnId(conn.stream);
            if let Some(member) = self
                .members
                .iter_mut()
                .find(|member| member.number == number)
            {
                member.session.handle_received(id, now);
            }
        }
        let left = conn.rx.payload_left() as usize;
        if left > 0 {
            let used = left.min(bytes.len());
            if let Some(Body::Slot { bytes: got, .. }) = &mut conn.body {
                got.extend_from_slice(&bytes[..used]);
            }
            if conn.rx.payload_received(used as u32) {
                self.payload_done(at);
            }
            return Ok(used);
        }
        let (used, head) = conn.rx.feed(bytes)?;
        if let Some(Head::Frame(header)) = head {
            trace!("server <- stream {}: {header:?}", conn.stream);
            match conn.stage {
                Stage::Greeting => self.first_frame(wires, at, &header, now)?,
                Stage::Asking(_) => return Err(Fault::protocol("a frame before OPENED")),
                Stage::Joined(number) => self.request(at, number, &header, now)?,
            }
        }
        Ok(used)
    }

    fn request(&mut self, at: usize, number: u64, header: &Header, now: u64) -> Result<(), Fault> {
        let conn = &mut self.conns[at];
        let member = self
            .members
            .iter_mut()
            .find(|member| member.number == number);
        let member = member.expect("the session of a connection");
        let options = conn.rx.options().to_vec();
        let id = ConnId(conn.stream);
        let taken = member
            .session
            .handle_request(&mut member.slots, id, header, &options, now)?;
        conn.body = match taken {
            Take::Nothing => None,
            Take::Discard => Some(Body::Nowhere),
            Take::Payload { slot } => Some(Body::Slot {
                slot,
                bytes: Vec::new(),
                offset: header.offset,
            }),
        };
        Ok(())
    }

    fn payload_done(&mut self, at: usize) {
        let conn = &mut self.conns[at];
        let (
            Some(Body::Slot {
                slot,
                bytes,
                offset,
            }),
            Stage::Joined(number),
        ) = (conn.body.take(), conn.stage)
        else {
            return;
        };
        let member = self
            .members
            .iter_mut()
            .find(|member| member.number == number);
        let member = member.expect("the session of a connection");
        let id = ConnId(conn.stream);
        if !member.session.payload_wanted(id) {
            return;
        }
        let digests = member.session.digests();
        let area = conn.rx.digests();
        let good = digest::verify(digests.algorithm, digests.granule, offset, &bytes, area);
        member.data[usize::from(slot)] = Data::Payload(bytes);
        member.session.payload_done(&mut member.slots, id, good);
    }

    /// Everything that the engines want done at once.
    pub fn turn(&mut self, wires: &mut Wires, disk: &mut Disk, now: u64) {
        for _ in 0..1000 {
            let mut busy = self.start_all(disk);
            for at in 0..self.members.len() {
                let member = &mut self.members[at];
                if let Some(event) = member.session.poll_event(&mut member.slots) {
                    let number = member.number;
                    trace!("  server event of {number}: {event:?}");
                    self.event(wires, at, event, now);
                    busy = true;
                    break;
                }
            }
            if let Some(action) = self.export.poll_action(now) {
                trace!("  action {action:?}");
                self.act(wires, disk, action, now);
                busy = true;
            }
            if !busy {
                return;
            }
        }
        panic!("the server has something to do without end");
    }

    fn event(&mut self, wires: &mut Wires, at: usize, event: Event, now: u64) {
        let member = &mut self.members[at];
        let number = member.number;
        match event {
            Event::Close { conn, .. } => self.lose(wires, conn.0, now),
            Event::Drop { slot } => member.data[usize::from(slot)] = Data::None,
            Event::Replayed => self.export.replayed(number),
            Event::ProbeAnswered => self.export.probe_answered(number, now),
            Event::Release => {
                if self.export.release(number) {
                    member.session.closed(Status::OK);
                }
            }
            Event::Settled => {
                self.export.heard(number, member.session.last_heard());
                self.export.settled(number);
            }
            Event::Over => {
                let busy = self.running.iter().any(|running| running.member == number);
                assert!(!busy, "over while the backend has something");
                self.members.remove(at);
            }
        }
    }

    fn act(&mut self, wires: &mut Wires, disk: &mut Disk, action: Action, now: u64) {
        match action {
            Action::Probe { session } => {
                if let Some(member) = self.member(session) {
                    member.session.probe();
                }
            }
            Action::Settle { session, reason } => {
                if let Some(member) = self.member(session) {
                    member.session.settle(&mut member.slots, reason);
                }
            }
            Action::Flush => self.running.push(Running {
                member: 0,
                execute: None,
                payload: Vec::new(),
                snapshot: disk.snapshot(),
            }),
            Action::Persist(record) => {
                assert!(self.persisting.replace(record).is_none());
            }
            Action::Grant { session } => self.granted(wires, session, now),
            Action::Refuse { session, refused } => self.refused(wires, session, refused),
            Action::Released { session, status } => {
                if let Some(member) = self.member(session) {
                    member.session.closed(status);
                }
            }
            Action::Renew => {
                // Which of the pages were written, nobody knows.
                disk.lose(0x5A5A_5A5A_5A5A_5A5A_u64.rotate_left(u32::from(self.incarnation)));
            }
            Action::Ungate => {
                for member in &mut self.members {
                    member.session.set_gate(&mut member.slots, false);
                }
            }
        }
    }

    pub fn transmit_all(&mut self, wires: &mut Wires) {
        let mut out = [0; 4096];
        for conn in &self.conns {
            let Stage::Joined(number) = conn.stage else {
                continue;
            };
            let member = self
                .members
                .iter_mut()
                .find(|member| member.number == number);
            let member = member.expect("the session of a connection");
            for _ in 0..500 {
                let id = ConnId(conn.stream);
                let Some(transmit) = member.session.poll_reply(&mut member.slots, id, &mut out)
                else {
                    break;
                };
                trace!("  server {}: {transmit:?}", conn.stream);
                match transmit {
                    Transmit::Bytes(len) => wires.server_sends(conn.stream, &out[..len]),
                    Transmit::Data { header, piece } => {
                        let data = &mut member.data[usize::from(piece.slot)];
                        let Data::Read(bytes) = data else {
                            panic!("a piece of {data:?}");
                        };
                        let part = &bytes[piece.from as usize..][..piece.len as usize];
                        let digests = member.session.digests();
                        let area = &mut out[HEADER_LEN..][..header.digest_len as usize];
                        let (algorithm, granule) = (digests.algorithm, digests.granule);
                        assert!(digest::write(algorithm, granule, header.offset, part, area));
                        let len = seal(&header, &mut out);
                        wires.server_sends(conn.stream, &out[..len]);
                        wires.server_sends(conn.stream, part);
                        if piece.last {
                            *data = Data::None;
                        }
                    }
                    Transmit::Extents { .. } => panic!("nobody has asked"),
                }
            }
        }
    }
}
