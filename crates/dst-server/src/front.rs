//! The front door: accepts streams, greets, and hands each to the export that it asks for.
//!
//! A stream is a *guest* here until its first frame has come whole: LIST is answered at once, OPEN and JOIN go to the thread of
//! the export, with the link. What a guest can cost is bounded: few of them, a small receive area, and a deadline for the
//! whole greeting. When too many are there one has to go, whichever: were it the oldest, a flood would leave no time to
//! anybody farther away than the flood.
//!
//! Each guest has a *scope*: the exports that it may use and the names that it knows them by. Who comes through a listener may
//! use all of them; whose stream was handed over, what the command that brought it was started for.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dst_ids::random;
use dst_net::{
    Came, End, Event, Framed, Interest, Listener, NoMemory, Poller, Share, Stream, Waker,
};
use dst_proto::{
    ClientName, Credit, ExportName, Header, Hello, JoinRequest, Kind, ListReply, Listed,
    OpenRequest, OptionError, Role, Status, HELLO_LEN, MAX_OPTIONS, NO_SLOT,
};

use crate::conn::Incoming;
use crate::frames::{error, frame, refusal};
use crate::port::{Arrival, Directory, Listing, Message, Port};

/// The whole greeting has to be there within this time.
const GREETING: Duration = Duration::from_secs(10);
/// Most guests at once.
const GUESTS: usize = 256;
/// Most streams accepted before guests get their turn.
const ACCEPTS: usize = 64;
/// After an error of accept itself.
const PAUSE: Duration = Duration::from_millis(100);

/// Milliseconds after which an export should have taken the streams that were under way to it.
const BUSY_MS: u32 = 1000;

const WAKER: u64 = u64::MAX;
const FIRST_GUEST: u64 = 1 << 32;

/// The exports that a guest may use: names, and indices of ports.
pub(crate) type Scope = Arc<[(String, usize)]>;

/// A stream that comes from another thread, with its scope.
pub(crate) type Handed = (Box<dyn Stream>, Scope);

/// The way in for another thread's streams.
pub(crate) struct Entrance {
    pub inbox: Sender<Handed>,
    pub waker: Waker,
}

impl Entrance {
    /// Gives a stream to the front door. One that has stopped closes it.
    pub fn hand_in(&self, stream: Box<dyn Stream>, scope: Scope) {
        let _ = self.inbox.send((stream, scope));
        self.waker.wake();
    }
}

/// One stream that has not said yet what it wants.
struct Guest {
    framed: Framed<Incoming>,
    scope: Scope,
    hello: [u8; HELLO_LEN],
    nonce: [u8; 16],
    since: Instant,
}

/// What a look at a guest ended with.
enum Verdict {
    /// More has to come.
    Stays,
    /// It has been answered, or is not worth it.
    Leaves,
    /// It belongs to the export with this index.
    MovesTo(usize, Header),
}

/// The accepting thread's state.
pub(crate) struct Front {
    poller: Poller,
    listeners: Vec<Box<dyn Listener>>,
    guests: BTreeMap<u64, Guest>,
    next_guest: u64,
    ports: Arc<[Port]>,
    /// Of those who come through a listener.
    everything: Scope,
    handed: Receiver<Handed>,
    directory: Arc<Directory>,
    insecure: bool,
    waker: Waker,
    stop: Arc<AtomicBool>,
}

impl Front {
    pub fn new(
        listeners: Vec<Box<dyn Listener>>,
        ports: Arc<[Port]>,
        directory: Arc<Directory>,
        insecure: bool,
        handed: Receiver<Handed>,
        waker: Waker,
        stop: Arc<AtomicBool>,
    ) -> io::Result<Self> {
        let poller = Poller::new()?;
        poller.add(waker.fd(), WAKER, Interest::READ)?;
        for (token, listener) in listeners.iter().enumerate() {
            poller.add(listener.fd(), token as u64, Interest::READ)?;
        }
        let names = ports.iter().map(|port| port.name.clone());
        Ok(Self {
            poller,
            listeners,
            guests: BTreeMap::new(),
            next_guest: FIRST_GUEST,
            everything: names.zip(0..).collect(),
            handed,
            ports,
            directory,
            insecure,
            waker,
            stop,
        })
    }

    /// Takes a stream that came by another way than a listener.
    pub fn adopt(&mut self, stream: Box<dyn Stream>) {
        self.welcome(stream, Arc::clone(&self.everything));
    }

    /// Serves until `stop` is set.
    pub fn run(mut self) -> io::Result<()> {
        let mut events = Vec::new();
        while !self.stop.load(Ordering::Acquire) {
            self.poller.wait(self.patience(), &mut events)?;
            for event in &events {
                self.handle(event);
            }
            self.send_away_the_slow();
        }
        Ok(())
    }

    fn handle(&mut self, event: &Event) {
        match event.token {
            WAKER => {
                self.waker.clear();
                while let Ok((stream, scope)) = self.handed.try_recv() {
                    self.welcome(stream, scope);
                }
            }
            token if token >= FIRST_GUEST => self.listen_to(token),
            listener => self.accept(listener as usize),
        }
    }

    fn patience(&self) -> Option<Duration> {
        // Tokens count up, so the first is the oldest.
        let (_, oldest) = self.guests.first_key_value()?;
        Some(GREETING.saturating_sub(oldest.since.elapsed()))
    }

    fn send_away_the_slow(&mut self) {
        while let Some((_, oldest)) = self.guests.first_key_value() {
            if oldest.since.elapsed() < GREETING {
                return;
            }
            if let Some((_, oldest)) = self.guests.pop_first() {
                self.forget(&oldest);
            }
        }
    }

    /// Makes room: any guest has to go.
    fn send_one_away(&mut self) {
        let at = usize::from_le_bytes(random()) % self.guests.len().max(1);
        let token = self.guests.keys().nth(at).copied();
        if let Some(guest) = token.and_then(|token| self.guests.remove(&token)) {
            self.forget(&guest);
        }
    }

    fn accept(&mut self, listener: usize) {
        // What is left in the queue makes the listener ready again.
        for _ in 0..ACCEPTS {
            match self.listeners[listener].accept() {
                Ok(stream) => self.adopt(stream),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    // Out of descriptors, most likely: sending a guest away is all that helps.
                    self.send_one_away();
                    return std::thread::sleep(PAUSE);
                }
            }
        }
    }

    fn welcome(&mut self, stream: Box<dyn Stream>, scope: Scope) {
        let trusted = stream.is_trusted();
        let nonce = random();
        let ours = Hello::new(
            Role::Server,
            nonce,
            concat!("dst ", env!("CARGO_PKG_VERSION")),
        );
        let mut hello = [0; HELLO_LEN];
        ours.encode(&mut hello);
        let mut framed = Framed::new(stream, Role::Client);
        let link = &mut framed.link;
        link.push_bytes(&hello);
        if !trusted && !self.insecure {
            let text = "this server takes unencrypted connections from its own machine only; \
                        --insecure on both ends allows others";
            link.push_bytes(&error(Status::NOT_ADMITTED, text));
            // A few hundred bytes fit any fresh socket; who can't be told is turned away all the same.
            let _ = link.flush();
            link.shutdown();
            return;
        }
        if link.flush().is_err() {
            return;
        }
        if self.guests.len() >= GUESTS {
            self.send_one_away();
        }
        let token = self.next_guest;
        if self
            .poller
            .add(framed.link.fd(), token, Interest::READ)
            .is_err()
        {
            return;
        }
        self.next_guest += 1;
        let guest = Guest {
            framed,
            scope,
            hello,
            nonce,
            since: Instant::now(),
        };
        self.guests.insert(token, guest);
    }

    fn forget(&self, guest: &Guest) {
        // An error means that it is not there any more.
        let _ = self.poller.remove(guest.framed.link.fd());
    }

    fn listen_to(&mut self, token: u64) {
        let Some(mut guest) = self.guests.remove(&token) else {
            return;
        };
        match self.hear(&mut guest) {
            Verdict::Stays => {
                self.guests.insert(token, guest);
            }
            Verdict::Leaves => self.forget(&guest),
            Verdict::MovesTo(export, header) => {
                self.forget(&guest);
                let port = &self.ports[export];
                let Some(place) = port.places.take() else {
                    let text = "too many others want the same; try again";
                    let words = refusal(header.kind, Status::LIMIT, text, Some(BUSY_MS));
                    turn_away(&mut guest, words);
                    return;
                };
                port.send(Message::Arrival(Box::new(Arrival {
                    framed: guest.framed,
                    header,
                    hello: guest.hello,
                    nonce: guest.nonce,
                    _place: place,
                })));
            }
        }
    }

    fn hear(&self, guest: &mut Guest) -> Verdict {
        let mut share = Share::new();
        loop {
            match guest.framed.next(&mut NoMemory, &mut share) {
                Ok(Some(Came::Hello(theirs))) => {
                    let ours = Hello::new(Role::Server, guest.nonce, "");
                    if let Err(reason) = Hello::negotiate(&ours, &theirs) {
                        return turn_away(guest, error(Status::PROTOCOL, reason.text()));
                    }
                }
                Ok(Some(Came::Frame(header))) => return self.route(guest, header),
                // No payload is accepted here.
                Ok(Some(Came::Payload(_))) | Ok(None) => return Verdict::Stays,
                Err(End::Fault(fault)) => {
                    return turn_away(guest, error(fault.status, fault.text));
                }
                Err(End::Stream(_)) => return Verdict::Leaves,
            }
        }
    }

    fn route(&self, guest: &mut Guest, header: Header) -> Verdict {
        let options = guest.framed.options();
        match header.kind {
            Kind::OPEN => {
                let open = match OpenRequest::decode(options) {
                    Ok(open) => open,
                    Err(error) => return turn_away(guest, malformed(Kind::OPEN, error)),
                };
                let name = open.name.as_str();
                match guest.scope.iter().find(|(known, _)| known == name) {
                    Some(&(_, export)) => Verdict::MovesTo(export, header),
                    None => {
                        let text =
                            format!("no export named {name}; `dst list` shows what there is");
                        turn_away(guest, refusal(Kind::OPEN, Status::NO_EXPORT, &text, None))
                    }
                }
            }
            Kind::JOIN => {
                let join = match JoinRequest::decode(options) {
                    Ok(request) => request.join,
                    Err(error) => return turn_away(guest, malformed(Kind::JOIN, error)),
                };
                let export = self.directory.find(join.session);
                let within = |export: &usize| guest.scope.iter().any(|(_, index)| index == export);
                match export.filter(within) {
                    Some(export) => Verdict::MovesTo(export, header),
                    None => {
                        let text = "this server does not know the session";
                        turn_away(guest, refusal(Kind::JOIN, Status::SESSION_LOST, text, None))
                    }
                }
            }
            Kind::LIST => {
                let answer = self.list(&guest.scope);
                turn_away(guest, answer)
            }
            _ => turn_away(
                guest,
                error(Status::PROTOCOL, "OPEN, JOIN or LIST expected"),
            ),
        }
    }

    /// The answer to LIST: as many frames as it takes.
    fn list(&self, scope: &Scope) -> Vec<u8> {
        let listing = |(name, index): &(String, usize)| Listing {
            name: name.clone(),
            ..self.ports[*index].listing()
        };
        let listings: Vec<_> = scope.iter().map(listing).collect();
        let mut entries = listings.iter().filter_map(entry).peekable();
        let mut answer = Vec::new();
        loop {
            let mut options = vec![0; usize::from(MAX_OPTIONS)];
            // An entry is far shorter than a frame's options may be.
            let length = ListReply::encode(&mut entries, &mut options).unwrap_or(0);
            let more = entries.peek().is_some();
            let header = Header {
                more,
                ..Header::reply(Kind::LIST, NO_SLOT, 0, Status::OK, Credit::default())
            };
            answer.extend(frame(header, |out| {
                out[..length].copy_from_slice(&options[..length]);
                Ok(length)
            }));
            if !more {
                return answer;
            }
        }
    }
}

fn entry(listing: &Listing) -> Option<Listed<'_>> {
    // Names were checked when the exports were opened.
    Some(Listed {
        size: listing.size,
        logical_block: listing.logical_block,
        flags: listing.flags,
        name: ExportName::new(&listing.name)?,
        writer: ClientName::new(&listing.writer).or_else(|| ClientName::new(""))?,
    })
}

fn malformed(kind: Kind, error: OptionError) -> Vec<u8> {
    refusal(kind, error.status(), error.text(), None)
}

fn turn_away(guest: &mut Guest, words: Vec<u8>) -> Verdict {
    let link = &mut guest.framed.link;
    link.push_bytes(&words);
    // What does not go at once is not worth keeping the stream for.
    let _ = link.flush();
    link.shutdown();
    Verdict::Leaves
}
