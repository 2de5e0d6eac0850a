//! The first frames of a stream: HELLO, then OPEN or JOIN.

use dst_engine::rx::Fault;
use dst_engine::server::{seal, Admission, Config, ConnId, Lane, Refused, Session, Slot};
use dst_proto::{
    proof, Credit, Header, Hello, JoinRequest, Joined, Kind, Limits, Message, Mode, OpenRequest,
    Opened, Refusal, Role, SessionGrant, Status, Times, HEADER_LEN, HELLO_LEN, NO_SLOT,
};

use super::{digest_choice, geometry, new_receiver, Asking, Conn, Data, Member, Server, Stage};
use crate::ctx::Ctx;
use crate::disk::Disk;
use crate::network::StreamId;
use crate::outbox::Outbox;
use crate::plant::Plant;
use crate::queue::MILLI;
use crate::trace;

/// Most slots, payload and window that this server grants.
const LIMITS: Limits = Limits {
    slots: dst_proto::MAX_SLOTS,
    connections: 8,
    max_payload: 1 << 20,
    window: 4096,
    credit_bytes: u32::MAX,
};

/// A frame that has only options.
fn frame(header: Header, options: impl FnOnce(&mut [u8]) -> Option<usize>) -> Vec<u8> {
    let mut out = vec![0; 4096];
    let options_len = options(&mut out[HEADER_LEN..]).unwrap_or(0) as u16;
    let length = seal(
        &Header {
            options_len,
            ..header
        },
        &mut out,
    );
    out.truncate(length);
    out
}

impl Server {
    /// A connection attempt has arrived.
    pub fn accept(&mut self, ctx: &mut Ctx, stream: StreamId) {
        let nonce = ctx.rng.bytes16();
        let mut hello = [0; HELLO_LEN];
        Hello::new(Role::Server, nonce, "sim").encode(&mut hello);
        let mut out = Outbox::new();
        out.push(&hello);
        self.conns.push(Conn {
            stream,
            stage: Stage::Greeting,
            rx: new_receiver(),
            hello,
            nonce,
            body: None,
            out,
            until: ctx.now() + super::HANDSHAKE_TIME,
            ended: false,
            zombie: false,
        });
    }

    /// The first frame of a stream.
    pub(super) fn first_frame(
        &mut self,
        ctx: &mut Ctx,
        disk: &Disk,
        at: usize,
        header: &Header,
    ) -> Result<(), Fault> {
        match (header.kind, header.reply) {
            (Kind::OPEN, false) => self.open(ctx, at),
            (Kind::JOIN, false) => self.join(ctx, disk, at, header),
            _ => Err(Fault::protocol("neither OPEN nor JOIN")),
        }
    }

    fn open(&mut self, ctx: &mut Ctx, at: usize) -> Result<(), Fault> {
        for member in &self.members {
            self.export
                .heard(member.number, member.session.last_heard());
        }
        let conn = &mut self.conns[at];
        let stream = conn.stream;
        let request = OpenRequest::decode(conn.rx.options())
            .map_err(|error| Fault::protocol(error.text()))?;
        if request.nonce != conn.nonce {
            return Err(Fault::protocol("OPEN for another connection"));
        }
        if self.drain.is_some() {
            self.refuse(ctx, at, Kind::OPEN, Status::DRAINING, None);
            return Ok(());
        }
        // Numbers of sessions are never used twice.
        let number = (u64::from(stream) << 8) | (1 + ctx.rng.below(255));
        let asking = Asking {
            number,
            stream,
            mode: request.mode,
            holder: request.holder,
            limits: request.limits,
            digests: request.digests,
        };
        match self.export.open(number, &request, ctx.queue.now()) {
            Admission::Granted => {
                conn.stage = Stage::Asking(number);
                self.asking.push(asking);
                self.granted(ctx, number);
            }
            Admission::Pending => {
                conn.stage = Stage::Asking(number);
                conn.until = u64::MAX;
                self.asking.push(asking);
            }
            Admission::Refused(refused) => {
                self.refuse(ctx, at, Kind::OPEN, refused.status, refused.wait);
            }
        }
        Ok(())
    }

    fn refuse(&mut self, ctx: &mut Ctx, at: usize, kind: Kind, status: Status, wait: Option<u32>) {
        let conn = &mut self.conns[at];
        trace!(
            ctx,
            "server refuses {} on stream {}: {status:?}",
            kind.name(),
            conn.stream
        );
        let header = Header::reply(kind, NO_SLOT, 0, status, Credit::default());
        let refusal = Refusal {
            message: Message::new("no"),
            wait_ms: wait,
        };
        conn.out
            .push(&frame(header, |out| refusal.encode(out).ok()));
        conn.stage = Stage::Leaving;
        conn.until = ctx.now() + super::HANDSHAKE_TIME;
    }

    /// An OPEN that was being decided is refused.
    pub(super) fn refused(&mut self, ctx: &mut Ctx, session: u64, refused: Refused) {
        let Some(at) = self
            .asking
            .iter()
            .position(|asking| asking.number == session)
        else {
            return;
        };
        let asking = self.asking.swap_remove(at);
        if let Some(at) = self.conn(asking.stream) {
            self.refuse(ctx, at, Kind::OPEN, refused.status, refused.wait);
        }
    }

    /// An OPEN is granted.
    pub(super) fn granted(&mut self, ctx: &mut Ctx, session: u64) {
        let found = self
            .asking
            .iter()
            .position(|asking| asking.number == session);
        let place = found.map(|at| self.asking.swap_remove(at));
        let Some((asking, at)) = place.and_then(|asking| Some((asking, self.conn(asking.stream)?)))
        else {
            return ctx.fail(format!(
                "session {session} is granted, and nobody has asked"
            ));
        };
        let writable = asking.mode == Mode::SoleWriter;
        let state = self.export.state();
        if let (true, Some(holder)) = (writable, asking.holder) {
            let known = ctx.wire.granted(session, holder, state.epoch);
            ctx.check(known);
        }
        // A crowded server grants little, and the next session of the same client may get more.
        let crowded = ctx.rng.one_in(6);
        let credit_bytes = match crowded {
            true => ctx.scenario.max_len,
            false => ctx.scenario.credit_bytes,
        };
        let limits = Limits {
            credit_bytes: credit_bytes.min(asking.limits.credit_bytes),
            ..LIMITS.min(&asking.limits)
        };
        let digests = digest_choice(ctx, &asking.digests);
        let config = Config {
            number: session,
            geometry: self.geometry,
            limits,
            writable,
            digests,
            piece: ctx.scenario.piece,
            keepalive: ctx.scenario.keepalive,
            session_time: ctx.scenario.session_time,
        };
        let secret = ctx.rng.bytes16();
        let slots = usize::from(limits.slots);
        let mut table = vec![Slot::default(); slots];
        let conn = ConnId(asking.stream);
        let window = vec![0; (limits.window as usize).div_ceil(64)];
        let lanes = vec![Lane::default(); usize::from(limits.connections)];
        let now = ctx.now();
        let mut engine = Session::new(config.clone(), window, lanes, &mut table, conn, now);
        let gated = self.export.is_gated(session) && !ctx.planted(Plant::GateIgnored);
        engine.set_gate(&mut table, gated);
        let opened = Opened {
            session: SessionGrant {
                number: session,
                secret,
            },
            export: state,
            geometry: self.geometry,
            limits,
            digests,
            times: Times {
                keepalive_ms: (ctx.scenario.keepalive / MILLI) as u32,
                session_ms: (ctx.scenario.session_time / MILLI) as u32,
                lease_ms: (ctx.scenario.lease_time / MILLI) as u32,
            },
        };
        let header = Header::reply(Kind::OPEN, NO_SLOT, 0, Status::OK, engine.credit());
        trace!(
            ctx,
            "server grants session {session} on stream {}, gated {gated}",
            asking.stream
        );
        let place = &mut self.conns[at];
        place
            .out
            .push(&frame(header, |out| opened.encode(out).ok()));
        place.stage = Stage::Joined(session);
        place.until = u64::MAX;
        place
            .rx
            .accept_payload(limits.max_payload, digests.algorithm, digests.granule);
        place.rx.forget_hello();
        self.members.push(Member {
            key: self.next_key,
            number: session,
            session: engine,
            slots: table,
            secret,
            data: std::iter::repeat_with(|| Data::None).take(slots).collect(),
            running: vec![(0, Kind::FLUSH); slots],
            limits,
            config,
        });
        self.next_key += 1;
        if self.credit.is_some() {
            self.set_credit(ctx, self.credit);
        }
    }

    fn join(
        &mut self,
        ctx: &mut Ctx,
        disk: &Disk,
        at: usize,
        header: &Header,
    ) -> Result<(), Fault> {
        let now = ctx.now();
        let conn = &self.conns[at];
        let request = JoinRequest::decode(conn.rx.options())
            .map_err(|error| Fault::protocol(error.text()))?;
        if request.nonce != conn.nonce {
            return Err(Fault::protocol("JOIN for another connection"));
        }
        let transcript = proof::Transcript {
            server_hello: &conn.hello,
            client_hello: conn.rx.hello_bytes(),
            binding: &proof::NO_BINDING,
        };
        let join = request.join;
        let id = conn.id();
        let found = self.members.iter_mut().find(|m| m.number == join.session);
        let Some(member) = found else {
            self.refuse(ctx, at, Kind::JOIN, Status::SESSION_LOST, None);
            return Ok(());
        };
        if !proof::verify(&member.secret, &transcript, &join, &request.proof) {
            self.refuse(ctx, at, Kind::JOIN, Status::NOT_ADMITTED, None);
            return Ok(());
        }
        let mut generation = join.generation;
        if ctx.planted(Plant::GenerationIgnored) {
            self.fake_generation += 1 << 16;
            generation += self.fake_generation;
        }
        let acked = if ctx.planted(Plant::NoDedup) {
            0
        } else {
            header.acked
        };
        let joined = member
            .session
            .join(&mut member.slots, id, join.index, generation, acked, now);
        if let Err(status) = joined {
            self.refuse(ctx, at, Kind::JOIN, status, None);
            return Ok(());
        }
        let known = ctx.wire.joined(join.session, join.index, join.generation);
        ctx.check(known);
        if ctx.planted(Plant::NoDedup) && ctx.scenario.barrier_percent == 0 {
            forget_outcomes(member, id, now);
        }
        trace!(
            ctx,
            "server: stream {} joins session {} as {} generation {}",
            id.0,
            join.session,
            join.index,
            join.generation
        );
        let state = self.export.state();
        let shape = geometry(ctx, disk);
        let entries = member.session.slot_entries(&member.slots, header.acked);
        let mut out = vec![0; 20 << 10];
        let written = Joined::encode_from(&state, &shape, entries, &mut out[HEADER_LEN..]);
        let reply = Header {
            options_len: written.map_or(0, |len| len as u16),
            ..Header::reply(Kind::JOIN, NO_SLOT, 0, Status::OK, member.session.credit())
        };
        let length = seal(&reply, &mut out);
        let digests = member.session.digests();
        let max_payload = member.limits.max_payload;
        let conn = &mut self.conns[at];
        conn.out.push(&out[..length]);
        conn.stage = Stage::Joined(join.session);
        conn.until = u64::MAX;
        conn.rx
            .accept_payload(max_payload, digests.algorithm, digests.granule);
        conn.rx.forget_hello();
        Ok(())
    }
}

/// For [`Plant::NoDedup`]: the session begins anew with what it knows of its slots gone, where nothing is in progress.
fn forget_outcomes(member: &mut Member, conn: ConnId, now: u64) {
    let session = &member.session;
    if session.unanswered() > 0 || session.executing() > 0 || session.connections() > 1 {
        return;
    }
    let config = Config {
        limits: Limits {
            window: u32::MAX,
            ..member.limits
        },
        ..member.config.clone()
    };
    let lanes = vec![Lane::default(); usize::from(member.limits.connections)];
    member.session = Session::new(config, vec![0; 64], lanes, &mut member.slots, conn, now);
}
