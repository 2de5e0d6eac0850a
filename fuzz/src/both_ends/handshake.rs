//! The first frames of a stream at the server: HELLO, then OPEN or JOIN.

use dst_engine::rx::Fault;
use dst_engine::server::{Admission, Config, ConnId, Lane, Refused, Session, Slot};
use dst_proto::{
    proof, Algorithm, Credit, DigestChoice, Geometry, GeometryFlags, Header, JoinRequest, Joined,
    Kind, Limits, OpenRequest, Opened, Refusal, Role, SessionGrant, Status, Times, NO_SLOT,
};

use super::device::SLOTS;
use super::disk::{BLOCK, BLOCKS};
use super::server::{Conn, Data, Member, Server, Stage};
use super::wire::Wires;
use super::LANES;
use crate::{frames, trace};

const KEEPALIVE_MS: u32 = 2000;
const SESSION_MS: u32 = 20_000;

fn geometry() -> Geometry {
    Geometry {
        size: BLOCK * BLOCKS,
        logical_block: BLOCK as u32,
        physical_block: BLOCK as u32,
        flags: GeometryFlags::DISCARD.union(GeometryFlags::WRITE_ZEROES),
        discard_granularity: 0,
        atomic_limit: 0,
        rollback_limit: 0,
    }
}

fn nonce(stream: u32) -> u8 {
    stream as u8 ^ 0x80
}

impl Server {
    /// A stream is there.
    pub fn accept(&mut self, wires: &mut Wires, stream: u32) {
        let hello = frames::hello(Role::Server, nonce(stream));
        wires.server_sends(stream, &hello);
        self.conns.push(Conn::new(stream, hello));
    }

    pub(super) fn first_frame(
        &mut self,
        wires: &mut Wires,
        at: usize,
        header: &Header,
        now: u64,
    ) -> Result<(), Fault> {
        match (header.kind, header.reply) {
            (Kind::OPEN, false) => self.open(wires, at, now),
            (Kind::JOIN, false) => self.join(wires, at, header, now),
            _ => Err(Fault::protocol("neither OPEN nor JOIN")),
        }
    }

    fn limits(&self) -> Limits {
        Limits {
            slots: SLOTS,
            connections: LANES,
            max_payload: 4 * BLOCK as u32,
            window: 64,
            credit_bytes: self.setup.credit_bytes,
        }
    }

    fn open(&mut self, wires: &mut Wires, at: usize, now: u64) -> Result<(), Fault> {
        for member in &self.members {
            self.export
                .heard(member.number, member.session.last_heard());
        }
        let conn = &mut self.conns[at];
        let request = OpenRequest::decode(conn.rx.options())
            .map_err(|error| Fault::protocol(error.text()))?;
        if request.nonce != [nonce(conn.stream); 16] {
            return Err(Fault::protocol("OPEN for another connection"));
        }
        let number = self.next_session;
        self.next_session += 1;
        conn.stage = Stage::Asking(number);
        match self.export.open(number, &request, now) {
            Admission::Granted => panic!("a writer let in at once"),
            Admission::Pending => {}
            Admission::Refused(refused) => self.refused(wires, number, refused),
        }
        Ok(())
    }

    pub(super) fn refused(&mut self, wires: &mut Wires, number: u64, refused: Refused) {
        trace!("  refused {refused:?}");
        let asks = |conn: &Conn| conn.stage == Stage::Asking(number);
        if let Some(at) = self.conns.iter().position(asks) {
            self.refuse(wires, at, Kind::OPEN, refused.status, refused.wait);
        }
    }

    fn refuse(
        &mut self,
        wires: &mut Wires,
        at: usize,
        kind: Kind,
        status: Status,
        wait: Option<u32>,
    ) {
        let conn = self.conns.remove(at);
        let header = Header::reply(kind, NO_SLOT, 0, status, Credit::default());
        let refusal = Refusal {
            wait_ms: wait,
            ..Refusal::default()
        };
        let encode = |out: &mut [u8]| refusal.encode(out).expect("fits");
        wires.server_sends(conn.stream, &frames::with_options(&header, encode));
        wires.server_leaves(conn.stream);
    }

    pub(super) fn granted(&mut self, wires: &mut Wires, number: u64, now: u64) {
        let asks = |conn: &Conn| conn.stage == Stage::Asking(number);
        let at = self
            .conns
            .iter()
            .position(asks)
            .expect("somebody who has asked");
        let limits = self.limits();
        let digests = DigestChoice {
            algorithm: if self.setup.digests {
                Algorithm::Crc32c
            } else {
                Algorithm::None
            },
            granule: 1024,
        };
        let config = Config {
            number,
            geometry: geometry(),
            limits,
            writable: true,
            digests,
            piece: self.setup.piece,
            keepalive: u64::from(KEEPALIVE_MS) * 1_000_000,
            session_time: u64::from(SESSION_MS) * 1_000_000,
        };
        let mut slots = vec![Slot::default(); usize::from(SLOTS)];
        let lanes = vec![Lane::default(); usize::from(LANES)];
        let id = ConnId(self.conns[at].stream);
        let mut session = Session::new(config, vec![0; 1], lanes, &mut slots, id, now);
        session.set_gate(&mut slots, self.export.is_gated(number));
        let secret = [number as u8; 16];
        let opened = Opened {
            session: SessionGrant { number, secret },
            export: self.export.state(),
            geometry: geometry(),
            limits,
            digests,
            times: Times {
                keepalive_ms: KEEPALIVE_MS,
                session_ms: SESSION_MS,
                lease_ms: 30_000,
            },
        };
        let header = Header::reply(Kind::OPEN, NO_SLOT, 0, Status::OK, session.credit());
        let encode = |out: &mut [u8]| opened.encode(out).expect("fits");
        let conn = &mut self.conns[at];
        wires.server_sends(conn.stream, &frames::with_options(&header, encode));
        conn.joined(number, &limits, &digests);
        self.members.push(Member {
            number,
            session,
            slots,
            data: vec![Data::None; usize::from(SLOTS)],
            secret,
        });
    }

    fn join(
        &mut self,
        wires: &mut Wires,
        at: usize,
        header: &Header,
        now: u64,
    ) -> Result<(), Fault> {
        let limits = self.limits();
        let conn = &self.conns[at];
        let request = JoinRequest::decode(conn.rx.options())
            .map_err(|error| Fault::protocol(error.text()))?;
        if request.nonce != [nonce(conn.stream); 16] {
            return Err(Fault::protocol("JOIN for another connection"));
        }
        let transcript = proof::Transcript {
            server_hello: &conn.hello,
            client_hello: conn.rx.hello_bytes(),
            binding: &proof::NO_BINDING,
        };
        let join = request.join;
        let mut known = self
            .members
            .iter_mut()
            .filter(|member| member.number == join.session);
        let Some(member) = known.next() else {
            self.refuse(wires, at, Kind::JOIN, Status::SESSION_LOST, None);
            return Ok(());
        };
        let proved = proof::verify(&member.secret, &transcript, &join, &request.proof);
        assert!(proved, "a proof that is not good");
        let id = ConnId(conn.stream);
        let joined = member.session.join(
            &mut member.slots,
            id,
            join.index,
            join.generation,
            header.acked,
            now,
        );
        if let Err(status) = joined {
            assert_ne!(status, Status::PROTOCOL, "the server accuses the client");
            self.refuse(wires, at, Kind::JOIN, status, None);
            return Ok(());
        }
        let entries = member.session.slot_entries(&member.slots, header.acked);
        let reply = Header::reply(Kind::JOIN, NO_SLOT, 0, Status::OK, member.session.credit());
        let state = self.export.state();
        let bytes = frames::with_options(&reply, |out| {
            Joined::encode_from(&state, &geometry(), entries.clone(), out).expect("fits")
        });
        let digests = member.session.digests();
        let conn = &mut self.conns[at];
        wires.server_sends(conn.stream, &bytes);
        conn.joined(join.session, &limits, &digests);
        Ok(())
    }
}

impl Conn {
    fn joined(&mut self, number: u64, limits: &Limits, digests: &DigestChoice) {
        self.stage = Stage::Joined(number);
        self.rx
            .accept_payload(limits.max_payload, digests.algorithm, digests.granule);
        self.rx.forget_hello();
    }
}
