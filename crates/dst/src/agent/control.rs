//! The answering side of the control socket: never blocks, and bounded against clients that mean harm or are slow.
//!
//! - At most [`MAX_CLIENTS`] connections. When they are all taken, a new one displaces the oldest that waits for nothing,
//!   strangers first; so nobody keeps the owner out.
//! - A request is at most [`MAX_REQUEST`] bytes, one is read per turn, and none while its client has not taken the answer to
//!   the one before.
//! - A connection that has been idle for [`IDLE`] is closed; one that waits for a detach is not.
//!
//! Everybody on this machine may ask how the device is. Only root and the agent's own user may change or detach it.

use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use dst_net::{Interest, Poller};

use crate::control::{Reply, Request, MAX_REQUEST};
use crate::exit::{Code, Failure};

/// Connections at once.
pub const MAX_CLIENTS: usize = 16;

/// Longest time that a connection may do nothing.
const IDLE: Duration = Duration::from_secs(10);

/// Pause after a failed `accept`, since its cause may last.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// Names a client until its connection ends, and nobody after that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientId {
    place: usize,
    serial: u64,
}

/// The socket and its connections.
pub struct ControlServer {
    listener: UnixListener,
    clients: Vec<Option<Client>>,
    first_token: u64,
    serial: u64,
    /// Not accepting until then.
    paused: Option<Instant>,
}

struct Client {
    stream: UnixStream,
    serial: u64,
    /// May detach.
    trusted: bool,
    input: Vec<u8>,
    output: Vec<u8>,
    /// A reply is owed.
    waits: bool,
    last_active: Instant,
    interest: Interest,
}

impl ControlServer {
    /// Listens at `path`, in place of whatever is there: the caller holds the lock of the device. Uses the tokens from
    /// `first_token` on, [`MAX_CLIENTS`] and one more.
    ///
    /// # Errors
    /// The socket can't be made.
    pub fn listen(path: &Path, poller: &Poller, first_token: u64) -> io::Result<Self> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
        poller.add(listener.as_fd(), first_token, Interest::READ)?;
        Ok(Self {
            listener,
            clients: (0..MAX_CLIENTS).map(|_| None).collect(),
            first_token,
            serial: 0,
            paused: None,
        })
    }

    /// Whether `token` is one of this server's.
    #[must_use]
    pub fn owns(&self, token: u64) -> bool {
        token
            .checked_sub(self.first_token)
            .is_some_and(|place| place <= MAX_CLIENTS as u64)
    }

    /// Acts on a ready descriptor; gives the request that came with it, if one did.
    pub fn handle_ready(
        &mut self,
        poller: &Poller,
        token: u64,
        now: Instant,
    ) -> Option<(ClientId, Request)> {
        let place = token.checked_sub(self.first_token)?;
        let Some(place) = place.checked_sub(1) else {
            self.accept(poller, now);
            return None;
        };
        let place = usize::try_from(place).ok()?;
        let client = self.clients.get_mut(place)?.as_mut()?;
        client.last_active = now;
        let id = ClientId {
            place,
            serial: client.serial,
        };
        let request = match client.flush().and_then(|()| client.take_request()) {
            Ok(request) => request,
            Err(_) => {
                self.close(poller, place);
                return None;
            }
        };
        match request {
            Some(Ok(Request::Detach { .. } | Request::HandOver | Request::Resize))
                if !client.trusted =>
            {
                let refusal = Failure::new(Code::Permission, "this device is another user's")
                    .hint("only root and the user who attached it may change it");
                self.reply(poller, id, &Reply::Refused(refusal));
                None
            }
            Some(Ok(request)) => {
                client.waits = true;
                client.update_interest(poller, self.first_token, place);
                Some((id, request))
            }
            Some(Err(failure)) => {
                self.reply(poller, id, &Reply::Refused(failure));
                None
            }
            None => {
                client.update_interest(poller, self.first_token, place);
                None
            }
        }
    }

    /// Answers a request. A client that is gone gets nothing.
    pub fn reply(&mut self, poller: &Poller, id: ClientId, reply: &Reply) {
        let Some(Some(client)) = self.clients.get_mut(id.place) else {
            return;
        };
        if client.serial != id.serial {
            return;
        }
        client.waits = false;
        if let Ok(mut line) = serde_json::to_vec(reply) {
            line.push(b'\n');
            client.output.append(&mut line);
        }
        match client.flush() {
            Ok(()) => client.update_interest(poller, self.first_token, id.place),
            Err(_) => self.close(poller, id.place),
        }
    }

    /// Whether the client that `id` names is still there.
    #[must_use]
    pub fn is_there(&self, id: ClientId) -> bool {
        matches!(self.clients.get(id.place), Some(Some(client)) if client.serial == id.serial)
    }

    /// Closes what has been idle for too long and goes on accepting after a pause. Returns when to call it again.
    pub fn expire(&mut self, poller: &Poller, now: Instant) -> Option<Instant> {
        if self.paused.is_some_and(|until| until <= now) {
            self.paused = None;
            let _ = poller.modify(self.listener.as_fd(), self.first_token, Interest::READ);
        }
        let mut next = self.paused;
        for place in 0..self.clients.len() {
            let Some(client) = &self.clients[place] else {
                continue;
            };
            if client.waits {
                continue;
            }
            let due = client.last_active + IDLE;
            if due <= now {
                self.close(poller, place);
            } else {
                next = Some(next.map_or(due, |next| next.min(due)));
            }
        }
        next
    }

    fn accept(&mut self, poller: &Poller, now: Instant) {
        let stream = match self.listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(_) => {
                self.paused = Some(now + ACCEPT_PAUSE);
                let _ = poller.modify(self.listener.as_fd(), self.first_token, Interest::NONE);
                return;
            }
        };
        let uid = rustix::net::sockopt::socket_peercred(&stream).map(|cred| cred.uid);
        let own = rustix::process::geteuid();
        let trusted = uid.is_ok_and(|uid| uid.is_root() || uid == own);
        let Some(place) = self.make_room(poller, trusted) else {
            return;
        };
        self.serial += 1;
        let token = self.first_token + 1 + place as u64;
        let added = stream
            .set_nonblocking(true)
            .and_then(|()| poller.add(stream.as_fd(), token, Interest::READ));
        if added.is_ok() {
            self.clients[place] = Some(Client {
                stream,
                serial: self.serial,
                trusted,
                input: Vec::new(),
                output: Vec::new(),
                waits: false,
                last_active: now,
                interest: Interest::READ,
            });
        }
    }

    /// A free place, made free if need be. A stranger displaces only strangers.
    fn make_room(&mut self, poller: &Poller, trusted: bool) -> Option<usize> {
        if let Some(place) = self.clients.iter().position(Option::is_none) {
            return Some(place);
        }
        let occupied = self.clients.iter().enumerate();
        let (place, _) = occupied
            .filter_map(|(place, client)| client.as_ref().map(|client| (place, client)))
            .filter(|(_, client)| !client.waits && (trusted || !client.trusted))
            .min_by_key(|(_, client)| (client.trusted, client.last_active, client.serial))?;
        self.close(poller, place);
        Some(place)
    }

    fn close(&mut self, poller: &Poller, place: usize) {
        if let Some(client) = self.clients[place].take() {
            let _ = poller.remove(client.stream.as_fd());
        }
    }
}

impl Client {
    /// Sends what is to be sent, as far as the client takes it.
    fn flush(&mut self) -> io::Result<()> {
        while !self.output.is_empty() {
            match (&self.stream).write(&self.output) {
                Ok(written) => {
                    self.output.drain(..written);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reads and takes one request, if the client may have one now. An error ends the connection.
    fn take_request(&mut self) -> io::Result<Option<Result<Request, Failure>>> {
        if !self.output.is_empty() {
            return Ok(None);
        }
        if self.waits {
            // It can only say that it is gone.
            return match (&self.stream).read(&mut [0]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
                _ => Err(io::ErrorKind::UnexpectedEof.into()),
            };
        }
        let mut room = [0; MAX_REQUEST];
        let wanted = MAX_REQUEST - self.input.len();
        match (&self.stream).read(&mut room[..wanted]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => self.input.extend_from_slice(&room[..read]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        let Some(end) = self.input.iter().position(|&b| b == b'\n') else {
            if self.input.len() == MAX_REQUEST {
                return Err(io::ErrorKind::InvalidData.into());
            }
            return Ok(None);
        };
        let request = serde_json::from_slice(&self.input[..end])
            .map_err(|error| Failure::new(Code::Protocol, format!("not understood: {error}")));
        // One at a time: whoever sends more before the reply has misunderstood the protocol.
        self.input.clear();
        Ok(Some(request))
    }

    fn update_interest(&mut self, poller: &Poller, first_token: u64, place: usize) {
        let interest = match self.output.is_empty() {
            true => Interest::READ,
            false => Interest::WRITE,
        };
        if interest != self.interest {
            let token = first_token + 1 + place as u64;
            if poller.modify(self.stream.as_fd(), token, interest).is_ok() {
                self.interest = interest;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};

    use super::*;
    use crate::control::DeviceReport;

    const FIRST: u64 = 1 << 40;

    struct Bench {
        _dir: tempfile::TempDir,
        path: std::path::PathBuf,
        poller: Poller,
        server: ControlServer,
        now: Instant,
    }

    impl Bench {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("control");
            let poller = Poller::new().unwrap();
            let server = ControlServer::listen(&path, &poller, FIRST).unwrap();
            Self {
                _dir: dir,
                path,
                poller,
                server,
                now: Instant::now(),
            }
        }

        /// Handles everything that is ready, and returns the requests.
        fn turn(&mut self) -> Vec<(ClientId, Request)> {
            let mut requests = Vec::new();
            let mut events = Vec::new();
            loop {
                self.poller.wait(Some(Duration::ZERO), &mut events).unwrap();
                if events.is_empty() {
                    return requests;
                }
                for event in &events {
                    assert!(self.server.owns(event.token));
                    let server = &mut self.server;
                    requests.extend(server.handle_ready(&self.poller, event.token, self.now));
                }
            }
        }

        fn connect(&mut self) -> UnixStream {
            let stream = UnixStream::connect(&self.path).unwrap();
            self.turn();
            stream
        }

        fn clients(&self) -> usize {
            self.server.clients.iter().flatten().count()
        }
    }

    fn closed(mut stream: &UnixStream) -> bool {
        stream.set_nonblocking(true).unwrap();
        !matches!(stream.read(&mut [0]), Err(e) if e.kind() == io::ErrorKind::WouldBlock)
    }

    #[test]
    fn a_request_in_pieces_is_answered_once() {
        let mut bench = Bench::new();
        let mut stream = bench.connect();
        stream.write_all(b"{\"cmd\":\"sta").unwrap();
        assert!(bench.turn().is_empty());
        stream.write_all(b"tus\"}\n").unwrap();
        let requests = bench.turn();
        let [(id, Request::Status)] = requests[..] else {
            panic!("{requests:?}");
        };
        let reply = Reply::Status(Box::default());
        bench.server.reply(&bench.poller, id, &reply);
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).unwrap();
        assert_eq!(serde_json::from_str::<Reply>(&line).unwrap(), reply);
    }

    #[test]
    fn nonsense_is_refused_and_endless_lines_end_the_connection() {
        let mut bench = Bench::new();
        let mut stream = bench.connect();
        stream.write_all(b"hello\n").unwrap();
        assert!(bench.turn().is_empty());
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).unwrap();
        assert!(line.contains("not understood"), "{line}");

        stream.write_all(&[b'x'; MAX_REQUEST]).unwrap();
        assert!(bench.turn().is_empty());
        assert_eq!(bench.clients(), 0);
    }

    #[test]
    fn new_connections_displace_idle_ones_but_not_those_that_wait() {
        let mut bench = Bench::new();
        let mut first = bench.connect();
        first.write_all(b"{\"cmd\":\"detach\"}\n").unwrap();
        assert_eq!(bench.turn().len(), 1);
        let idle: Vec<_> = (1..MAX_CLIENTS).map(|_| bench.connect()).collect();
        assert_eq!(bench.clients(), MAX_CLIENTS);
        let mut last = bench.connect();
        assert_eq!(bench.clients(), MAX_CLIENTS);
        assert!(closed(&idle[0]) && !closed(&idle[1]) && !closed(&first));
        last.write_all(b"{\"cmd\":\"status\"}\n").unwrap();
        assert_eq!(bench.turn().len(), 1);
    }

    #[test]
    fn idle_connections_expire_and_waiting_ones_do_not() {
        let mut bench = Bench::new();
        let _idle = bench.connect();
        let mut waiting = bench.connect();
        waiting.write_all(b"{\"cmd\":\"detach\"}\n").unwrap();
        let requests = bench.turn();
        let next = bench.server.expire(&bench.poller, bench.now).unwrap();
        assert_eq!(next, bench.now + IDLE);
        assert_eq!(bench.server.expire(&bench.poller, next), None);
        assert_eq!(bench.clients(), 1);
        assert!(bench.server.is_there(requests[0].0));
    }

    #[test]
    fn a_client_that_never_reads_holds_one_reply_at_most() {
        let mut bench = Bench::new();
        let mut stream = bench.connect();
        let report = DeviceReport {
            message: Some("x".repeat(100_000)),
            ..DeviceReport::default()
        };
        let reply = Reply::Status(Box::new(report));
        stream.set_nonblocking(true).unwrap();
        for _ in 0..100 {
            let _ = stream.write(b"{\"cmd\":\"status\"}\n");
            for (id, _) in bench.turn() {
                bench.server.reply(&bench.poller, id, &reply);
            }
        }
        let held = bench
            .server
            .clients
            .iter()
            .flatten()
            .map(|c| c.output.len());
        assert!(held.sum::<usize>() <= 110_000);
    }

    #[test]
    fn a_client_that_leaves_while_it_waits_is_forgotten() {
        let mut bench = Bench::new();
        let mut stream = bench.connect();
        stream.write_all(b"{\"cmd\":\"detach\"}\n").unwrap();
        let requests = bench.turn();
        drop(stream);
        assert!(bench.turn().is_empty());
        assert!(!bench.server.is_there(requests[0].0));
        let reply = Reply::Detached { lost: None };
        bench.server.reply(&bench.poller, requests[0].0, &reply);
    }
}
