//! Streams that are let in, by OPEN or JOIN, or turned away at once.

use std::time::Duration;

use dst_engine::server::{Admission, Config as SessionConfig, ConnId, PIECE};
use dst_ids::random;
use dst_net::{Framed, Link};
use dst_proto::{
    digest, proof, Algorithm, DigestChoice, Digests, Header, JoinRequest, Joined, Kind, Limits,
    Mode, OpenRequest, Opened, SessionGrant, Status, Times, MAX_PAYLOAD, MAX_SLOTS, NO_SLOT,
};

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
            _ => {
                self.handle_join(arrival);
                // A session remembers one displaced stream for each index: take it before the next comes.
                self.take_events();
            }
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
        if full(&admission) && self.end_loneliest_reader() {
            admission = self.rules.open(number, &open, now);
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
        loop {
            let reserved = self.budget.reserve(wanted, writable.then_some(self.index));
            if reserved.is_some() || !self.end_loneliest_reader() {
                return reserved;
            }
        }
    }

    /// Ends the reader that has been without a connection longest, to make room. Answers whether there was one.
    fn end_loneliest_reader(&mut self) -> bool {
        // One may have gone without the poller having told of it yet.
        for id in self.conns.keys().copied().collect::<Vec<_>>() {
            self.hear_reader(id);
        }
        let readers = self.members.values_mut().filter_map(|member| {
            let reads = !member.session.is_writable() && !member.session.is_ended();
            let since = member.session.alone_since().filter(|_| reads)?;
            Some((since, member))
        });
        let Some((_, member)) = readers.min_by_key(|(since, _)| *since) else {
            return false;
        };
        let reason = Status::SESSION_LOST;
        member.session.settle(&mut member.slots, reason);
        self.take_events();
        true
    }

    /// Takes what has come over connection `id` if it is a reader's, the end of the stream above all.
    fn hear_reader(&mut self, id: u32) {
        let member = self.conns.get(&id).map(|conn| conn.session);
        let member = member.and_then(|number| self.members.get(&number));
        if member.is_some_and(|member| !member.session.is_writable()) {
            self.handle_ready(id);
        }
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
        self.adopt(join.session, framed, &answer);
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
