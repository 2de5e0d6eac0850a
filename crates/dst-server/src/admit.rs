//! Streams that ask to be let in: OPEN and JOIN.

use dst_engine::rx::Receiver;
use dst_engine::server::{Admission, Config as SessionConfig, ConnId, Refused, PIECE};
use dst_net::Link;
use dst_proto::{
    digest, proof, Algorithm, DigestChoice, Digests, Header, JoinRequest, Joined, Kind, Limits,
    Mode, OpenRequest, Opened, SessionGrant, Status, Times, MAX_PAYLOAD, MAX_SLOTS, NO_SLOT,
};

use crate::conn::Conn;
use crate::frames::{frame, refusal};
use crate::member::Member;
use crate::port::Arrival;
use crate::worker::{nanoseconds, random, Worker};

/// The most of everything that one session gets.
const LIMITS: Limits = Limits {
    slots: MAX_SLOTS,
    connections: 8,
    max_payload: MAX_PAYLOAD,
    window: 65536,
    credit_bytes: 16 << 20,
};

/// An OPEN whose answer is being decided.
pub(crate) struct Asking {
    link: Link,
    receiver: Receiver<Box<[u8]>>,
    limits: Limits,
    digests: Digests,
    writable: bool,
    client: String,
}

impl Asking {
    pub fn is_writer(&self) -> bool {
        self.writable
    }

    /// Name of the client, for people.
    pub fn client(&self) -> &str {
        &self.client
    }
}

impl Worker {
    /// Takes a stream whose first frame has come.
    pub(crate) fn arrive(&mut self, arrival: Arrival) {
        match arrival.header.kind {
            Kind::OPEN => self.handle_open(arrival),
            _ => {
                self.handle_join(arrival);
                // A session remembers one displaced stream for each index: take it before the next comes.
                self.close_all();
            }
        }
    }

    fn handle_open(&mut self, arrival: Arrival) {
        let Arrival {
            link,
            receiver,
            nonce,
            ..
        } = arrival;
        let open = match OpenRequest::decode(receiver.options()) {
            Ok(open) if open.nonce == nonce => open,
            Ok(_) => {
                return turn_away(
                    link,
                    Kind::OPEN,
                    Status::PROTOCOL,
                    "the nonce is not this stream's",
                )
            }
            Err(error) => {
                return turn_away(link, Kind::OPEN, error.status(), "malformed options");
            }
        };
        if self.drain.is_some() {
            return turn_away(
                link,
                Kind::OPEN,
                Status::DRAINING,
                "this server is about to stop",
            );
        }
        let limits = open.limits.min(&LIMITS);
        if !self.is_enough(&limits) {
            let text = "the limits leave no room for a session";
            return turn_away(link, Kind::OPEN, Status::INVALID, text);
        }
        let number = self.directory.assign(self.index);
        self.tell_signs_of_life();
        let now = self.now();
        let admission = self.rules.open(number, &open, now);
        if let Admission::Refused(refused) = admission {
            self.directory.remove(number);
            return self.refuse_open(link, refused);
        }
        let asking = Asking {
            limits,
            digests: open.digests,
            writable: open.mode == Mode::SoleWriter,
            client: open.client.as_str().to_owned(),
            link,
            receiver,
        };
        self.asking.insert(number, asking);
        if admission == Admission::Granted {
            self.grant(number);
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

    /// The rules refused an OPEN.
    pub(crate) fn refuse_asking(&mut self, number: u64, refused: Refused) {
        self.directory.remove(number);
        if let Some(asking) = self.asking.remove(&number) {
            self.refuse_open(asking.link, refused);
        }
    }

    fn refuse_open(&self, mut link: Link, refused: Refused) {
        let writer = self
            .rules
            .writer()
            .and_then(|number| self.members.get(&number));
        let text = match refused.status {
            Status::LEASE_BUSY => match writer.map(|member| member.client.as_str()) {
                Some(client) => format!("{client} has it attached for writing"),
                None => match &self.saved.lease {
                    Some(lease) => format!(
                        "{} had it attached for writing and may come back",
                        lease.client
                    ),
                    None => "it is attached for writing".to_owned(),
                },
            },
            Status::LEASE_LOST => "another client has been let in to write since".to_owned(),
            Status::EXPORT_CHANGED => "another disk has this name now".to_owned(),
            Status::READ_ONLY => "the export is read-only; attach it with --read-only".to_owned(),
            Status::LIMIT => "too many sessions".to_owned(),
            status => status.name().to_owned(),
        };
        link.push_bytes(&refusal(Kind::OPEN, refused.status, &text, refused.wait));
        say_farewell(link);
    }

    /// The rules let an OPEN in: the session begins.
    pub(crate) fn grant(&mut self, number: u64) {
        let Some(asking) = self.asking.remove(&number) else {
            return;
        };
        let now = self.now();
        let config = SessionConfig {
            number,
            geometry: self.geometry(),
            limits: asking.limits,
            writable: asking.writable,
            digests: choose(&asking.digests),
            piece: PIECE,
            keepalive: nanoseconds(self.config.keepalive),
            session_time: nanoseconds(self.config.session_time),
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
        let mut member = Member::new(key, config, secret, &asking.client, ConnId(conn), now);
        let gated = self.rules.is_gated(number);
        member.session.set_gate(&mut member.slots, gated);
        let header = Header::reply(Kind::OPEN, NO_SLOT, 0, Status::OK, member.session.credit());
        let answer = frame(header, |out| opened.encode(out));
        self.members.insert(number, member);
        self.keys.insert(key, number);
        self.adopt(number, asking.link, asking.receiver, &answer);
        self.publish();
    }

    fn handle_join(&mut self, arrival: Arrival) {
        let Arrival {
            link,
            receiver,
            header,
            hello,
            nonce,
        } = arrival;
        let lost = "this server does not know the session";
        let conn = ConnId(self.next_conn);
        let now = self.now();
        let request = match JoinRequest::decode(receiver.options()) {
            Ok(request) if request.nonce == nonce => request,
            Ok(_) => {
                return turn_away(
                    link,
                    Kind::JOIN,
                    Status::PROTOCOL,
                    "the nonce is not this stream's",
                )
            }
            Err(error) => {
                return turn_away(link, Kind::JOIN, error.status(), "malformed options");
            }
        };
        let join = request.join;
        let Some(member) = self.members.get_mut(&join.session) else {
            return turn_away(link, Kind::JOIN, Status::SESSION_LOST, lost);
        };
        let transcript = proof::Transcript {
            server_hello: &hello,
            client_hello: receiver.hello_bytes(),
            binding: &proof::NO_BINDING,
        };
        // Whoever does not know the secret means another session of that number, of another server's life.
        if !proof::verify(&member.secret, &transcript, &join, &request.proof) {
            return turn_away(link, Kind::JOIN, Status::SESSION_LOST, lost);
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
            return turn_away(link, Kind::JOIN, status, status.name());
        }
        let entries = member.session.slot_entries(&member.slots, header.acked);
        let state = self.rules.state();
        let reply = Header::reply(Kind::JOIN, NO_SLOT, 0, Status::OK, member.session.credit());
        let geometry = *member.session.geometry();
        let answer = frame(reply, |out| {
            Joined::encode_from(&state, &geometry, entries, out)
        });
        self.adopt(join.session, link, receiver, &answer);
    }

    /// A stream becomes a connection of session `number`, under the id that the session knows.
    fn adopt(
        &mut self,
        number: u64,
        mut link: Link,
        mut receiver: Receiver<Box<[u8]>>,
        answer: &[u8],
    ) {
        let id = self.next_conn;
        self.next_conn = self.next_conn.wrapping_add(1);
        if link.stream().is_local() && !self.local_clients {
            self.local_clients = true;
            protect_from_local_clients();
        }
        link.push_bytes(answer);
        if let Some(member) = self.members.get(&number) {
            let digests = member.session.digests();
            receiver.forget_hello();
            receiver.accept_payload(
                member.limits.max_payload,
                digests.algorithm,
                digests.granule,
            );
        }
        match Conn::new(link, receiver, number, &self.poller, u64::from(id)) {
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

fn turn_away(mut link: Link, kind: Kind, status: Status, text: &str) {
    link.push_bytes(&refusal(kind, status, text, None));
    say_farewell(link);
}

/// Sends what is queued and closes. What does not go at once is not worth keeping the stream for.
fn say_farewell(mut link: Link) {
    let _ = link.flush();
    link.shutdown();
}

/// Writing out dirty pages for a client on this machine must not wait for that client's own write-out: the kernel then
/// lets this thread use memory reserves and throttles it less (`PR_SET_IO_FLUSHER`, prctl(2)).
fn protect_from_local_clients() {
    // Needs CAP_SYS_RESOURCE; without it the kernel's defaults stay.
    let _ = rustix::process::configure_io_flusher_behavior(true);
}
