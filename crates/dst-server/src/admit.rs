//! Streams that are let in, by OPEN or JOIN, or turned away at once.

use std::time::Duration;

use dst_engine::server::{Admission, Config as SessionConfig, ConnId, PIECE};
use dst_ids::random;
use dst_net::{Framed, Link};
use dst_proto::{
    digest, proof, Algorithm, DigestChoice, Digests, Header, JoinRequest, Joined, Kind, Limits,
    Mode, OpenRequest, Opened, SessionGrant, Status, Times, MAX_PAYLOAD, MAX_SLOTS, NO_SLOT,
};
use rustix::event::{poll, PollFd, PollFlags, Timespec};

use crate::asking::Asking;
use crate::budget::Reservation;
use crate::conn::{Conn, Incoming};
use crate::drain::Drain;
use crate::frames::{frame, refusal};
use crate::member::Member;
use crate::port::Arrival;
use crate::worker::{nanoseconds, Worker};

/// The most of everything that one session gets.
const LIMITS: Limits = Limits {
    slots: MAX_SLOTS,
    connections: 8,
    max_payload: MAX_PAYLOAD,
    window: 65536,
    credit_bytes: 16 << 20,
};

/// Milliseconds after which there may be room for another session.
const FULL_MS: u32 = 1000;
/// What a client is told that comes while the server stops.
pub(crate) const STOPPING: &str = "this server is about to stop";
/// How long a reader's session without a connection is kept at most. It has nothing to lose: its client reads again.
const READER_TIME: Duration = Duration::from_secs(30);

impl Worker {
    /// Takes a stream whose first frame has come.
    pub(crate) fn arrive(&mut self, arrival: Arrival) {
        match arrival.header.kind {
            Kind::OPEN => self.handle_open(arrival),
            _ => self.handle_join(arrival),
        }
    }

    fn handle_open(&mut self, arrival: Arrival) {
        let Arrival { framed, nonce, .. } = arrival;
        let open = match OpenRequest::decode(framed.options()) {
            Ok(open) if open.nonce == nonce => open,
            Ok(_) => {
                return turn_away(
                    framed.link,
                    Kind::OPEN,
                    Status::PROTOCOL,
                    "the nonce is not this stream's",
                )
            }
            Err(error) => {
                return turn_away(framed.link, Kind::OPEN, error.status(), error.text());
            }
        };
        if self.drain != Drain::No {
            return turn_away(framed.link, Kind::OPEN, Status::DRAINING, STOPPING);
        }
        let wanted = open.limits.min(&LIMITS);
        if !self.is_enough(&wanted) {
            let text = "the limits leave no room for a session";
            return turn_away(framed.link, Kind::OPEN, Status::INVALID, text);
        }
        let writable = open.mode == Mode::SoleWriter;
        if writable {
            self.forget_those_gone();
        }
        let Some((limits, memory)) = self.reserve(&wanted, writable) else {
            let mut link = framed.link;
            let text =
                "the server has no memory for another client; `dst serve --memory` allows more";
            link.push_bytes(&refusal(Kind::OPEN, Status::LIMIT, text, Some(FULL_MS)));
            return say_farewell(link);
        };
        let number = self.directory.assign(self.index);
        self.tell_signs_of_life();
        let now = self.now();
        let mut admission = self.rules.open(number, &open, now);
        let full = |admission: &Admission| match admission {
            Admission::Refused(refused) => refused.status == Status::LIMIT,
            _ => false,
        };
        if full(&admission) {
            self.drop_vanished_readers();
            if self.end_loneliest_reader() {
                admission = self.rules.open(number, &open, now);
            }
        }
        let asking = Asking {
            limits,
            memory,
            digests: open.digests,
            writable,
            client: open.client.as_str().to_owned(),
            framed,
        };
        match admission {
            Admission::Refused(refused) => {
                self.directory.remove(number);
                self.refuse_open(asking.framed.link, refused);
            }
            Admission::Granted => self.begin_session(number, asking),
            Admission::Pending => self.keep_asking(number, asking),
        }
    }

    /// Memory for a session: readers that have gone are ended for it.
    fn reserve(&mut self, wanted: &Limits, writable: bool) -> Option<(Limits, Reservation)> {
        let writes = writable.then_some(self.index);
        let mut reserved = self.budget.reserve(wanted, writes);
        if reserved.is_none() {
            self.drop_vanished_readers();
            reserved = self.budget.reserve(wanted, writes);
        }
        while reserved.is_none() && self.end_loneliest_reader() {
            reserved = self.budget.reserve(wanted, writes);
        }
        reserved
    }

    /// Drops the connections whose client has gone without the poller having told of it yet, but for those that write:
    /// what such a client sent last may still wait to be taken. Nothing is taken here, so that being asked often costs little.
    fn drop_vanished_readers(&mut self) {
        let reads = |conn: &Conn| {
            let member = self.members.get(&conn.session);
            member.is_none_or(|member| !member.session.is_writable())
        };
        let (ids, mut watched): (Vec<u32>, Vec<_>) = self
            .conns
            .iter()
            .filter(|(_, conn)| reads(conn))
            .map(|(id, conn)| {
                let fd = conn.framed.link.fd();
                (*id, PollFd::from_borrowed_fd(fd, PollFlags::RDHUP))
            })
            .unzip();
        // An error is as if nobody had gone: the poller tells later.
        let _ = poll(&mut watched, Some(&Timespec::default()));
        let gone = watched.iter().map(|fd| !fd.revents().is_empty());
        let gone: Vec<u32> = ids
            .into_iter()
            .zip(gone)
            .filter_map(|(id, gone)| gone.then_some(id))
            .collect();
        for id in gone {
            self.drop_connection(id);
        }
    }

    /// Ends the reader that has been without a connection longest, to make room, rather one for which the backend does nothing.
    /// Answers whether that made some.
    fn end_loneliest_reader(&mut self) -> bool {
        let readers = self.members.values_mut().filter_map(|member| {
            let reads = !member.session.is_writable() && !member.session.is_ended();
            let since = member.session.alone_since().filter(|_| reads)?;
            // What the backend still works for makes no room yet.
            Some(((!member.session.settled(), since), member))
        });
        let Some((_, member)) = readers.min_by_key(|(order, _)| *order) else {
            return false;
        };
        let number = member.session.number();
        member
            .session
            .settle(&mut member.slots, Status::SESSION_LOST);
        // Nor are last words worth the room.
        let its = |conn: &Conn| conn.session == number;
        let left: Vec<u32> = self
            .conns
            .iter()
            .filter_map(|(id, conn)| its(conn).then_some(*id))
            .collect();
        for id in left {
            self.drop_connection(id);
        }
        self.take_events();
        !self.members.contains_key(&number)
    }

    /// Whether a session can be had with these limits: a slot beside that for FLUSH, a connection, a block.
    fn is_enough(&self, limits: &Limits) -> bool {
        limits.slots >= 2
            && limits.connections >= 1
            && limits.window >= 1
            && limits.max_payload >= self.backend.info().logical_block
            && limits.credit_bytes >= limits.max_payload
    }

    /// The session of a granted OPEN begins, once a crash can't be taken for a clean stop any more.
    pub(crate) fn begin_session(&mut self, number: u64, asking: Asking) {
        if !self.begin_serving() {
            self.rules.settled(number);
            self.directory.remove(number);
            let text = "the server can't save its state";
            return turn_away(asking.framed.link, Kind::OPEN, Status::IO, text);
        }
        let now = self.now();
        let config = SessionConfig {
            number,
            geometry: self.geometry(),
            limits: asking.limits,
            writable: asking.writable,
            digests: choose(&asking.digests),
            piece: PIECE,
            keepalive: nanoseconds(self.config.keepalive),
            session_time: nanoseconds(if asking.writable {
                self.config.session_time
            } else {
                self.config.session_time.min(READER_TIME)
            }),
        };
        let conn = self.next_conn;
        let secret = random();
        let digests = config.digests;
        let opened = Opened {
            session: SessionGrant { number, secret },
            export: self.rules.state(),
            geometry: config.geometry,
            limits: config.limits,
            digests,
            times: Times {
                keepalive_ms: milliseconds(config.keepalive),
                session_ms: milliseconds(config.session_time),
                lease_ms: milliseconds(nanoseconds(self.config.lease_time)),
            },
        };
        let key = self.next_key;
        self.next_key = self.next_key.wrapping_add(1).max(1);
        let first = ConnId(conn);
        let mut member = Member::new(
            key,
            config,
            asking.memory,
            secret,
            &asking.client,
            first,
            now,
        );
        let gated = self.rules.is_gated(number);
        member.session.set_gate(&mut member.slots, gated);
        let header = Header::reply(Kind::OPEN, NO_SLOT, 0, Status::OK, member.session.credit());
        let answer = frame(header, |out| opened.encode(out));
        self.members.insert(number, member);
        self.keys.insert(key, number);
        self.adopt(number, asking.framed, &answer);
        self.publish();
    }

    fn handle_join(&mut self, arrival: Arrival) {
        let Arrival {
            framed,
            header,
            hello,
            nonce,
            ..
        } = arrival;
        let lost = "this server does not know the session";
        let conn = ConnId(self.next_conn);
        let now = self.now();
        let request = match JoinRequest::decode(framed.options()) {
            Ok(request) if request.nonce == nonce => request,
            Ok(_) => {
                return turn_away(
                    framed.link,
                    Kind::JOIN,
                    Status::PROTOCOL,
                    "the nonce is not this stream's",
                )
            }
            Err(error) => {
                return turn_away(framed.link, Kind::JOIN, error.status(), error.text());
            }
        };
        let join = request.join;
        let Some(member) = self.members.get_mut(&join.session) else {
            return turn_away(framed.link, Kind::JOIN, Status::SESSION_LOST, lost);
        };
        let transcript = proof::Transcript {
            server_hello: &hello,
            client_hello: framed.hello_bytes(),
            binding: &proof::NO_BINDING,
        };
        // Whoever does not know the secret means another session of that number, of another server's life.
        if !proof::verify(&member.secret, &transcript, &join, &request.proof) {
            return turn_away(framed.link, Kind::JOIN, Status::SESSION_LOST, lost);
        }
        let joined = member.session.join(
            &mut member.slots,
            conn,
            join.index,
            join.generation,
            header.acked,
            now,
        );
        if let Err(status) = joined {
            return turn_away(framed.link, Kind::JOIN, status, status.name());
        }
        let entries = member.session.slot_entries(&member.slots, header.acked);
        let state = self.rules.state();
        let reply = Header::reply(Kind::JOIN, NO_SLOT, 0, Status::OK, member.session.credit());
        let geometry = *member.session.geometry();
        let answer = frame(reply, |out| {
            Joined::encode_from(&state, &geometry, entries, out)
        });
        // The displaced stream goes before this one costs anything. A session remembers one for each index, too.
        self.take_events();
        self.make_room_for_connection(join.session);
        self.adopt(join.session, framed, &answer);
    }

    /// A session has no more streams than connections are counted for it: those with nothing but last words have to go.
    fn make_room_for_connection(&mut self, number: u64) {
        let granted = self.members.get(&number).map(|m| m.limits.connections);
        let its = |conn: &Conn| conn.session == number;
        while self.conns.values().filter(|conn| its(conn)).count() >= granted.map_or(0, usize::from)
        {
            let leaves = |(_, conn): &(&u32, &Conn)| its(conn) && conn.leaving.is_some();
            let Some(id) = self.conns.iter().find(leaves).map(|(id, _)| *id) else {
                return;
            };
            self.drop_connection(id);
        }
    }

    /// A stream becomes a connection of session `number`, under the id that the session knows.
    fn adopt(&mut self, number: u64, mut framed: Framed<Incoming>, answer: &[u8]) {
        let id = self.next_conn;
        self.next_conn = self.next_conn.wrapping_add(1);
        if framed.link.stream().is_local() && !self.local_clients {
            self.local_clients = true;
            protect_from_local_clients();
        }
        framed.link.push_bytes(answer);
        if let Some(member) = self.members.get(&number) {
            framed.begin(member.limits.max_payload, member.session.digests());
        }
        match Conn::new(framed, number, &self.poller, id) {
            Ok(conn) => {
                self.conns.insert(id, conn);
                // More may have come behind OPEN or JOIN already.
                self.handle_ready(id);
            }
            Err(_) => {
                let now = self.now();
                if let Some(member) = self.members.get_mut(&number) {
                    member.session.conn_lost(&mut member.slots, ConnId(id), now);
                }
            }
        }
    }
}

/// The strongest digest that both ends can compute.
fn choose(offer: &Digests) -> DigestChoice {
    let strongest = [
        Algorithm::Blake3,
        Algorithm::Crc64Nvme,
        Algorithm::Crc32c,
        Algorithm::None,
    ];
    let algorithm = strongest.into_iter().find(|&known| offer.accepts(known));
    DigestChoice {
        algorithm: algorithm.unwrap_or(Algorithm::None),
        granule: if digest::granule_ok(offer.granule) {
            offer.granule
        } else {
            digest::DEFAULT_GRANULE
        },
    }
}

fn milliseconds(nanoseconds: u64) -> u32 {
    u32::try_from(nanoseconds / 1_000_000).unwrap_or(u32::MAX)
}

pub(crate) fn turn_away(mut link: Link, kind: Kind, status: Status, text: &str) {
    link.push_bytes(&refusal(kind, status, text, None));
    say_farewell(link);
}

/// Sends what is queued and closes. What does not go at once is not worth keeping the stream for.
pub(crate) fn say_farewell(mut link: Link) {
    let _ = link.flush();
    link.shutdown();
}

/// Writing out dirty pages for a client on this machine must not wait for that client's own write-out: the kernel then
/// lets this thread use memory reserves and throttles it less (`PR_SET_IO_FLUSHER`, prctl(2)).
fn protect_from_local_clients() {
    // Needs CAP_SYS_RESOURCE; without it the kernel's defaults stay.
    let _ = rustix::process::configure_io_flusher_behavior(true);
}
