//! The client of the exchange: what a driver does round a client's session.

use super::super::client::{
    Config, Entry, Event, Failure, Greeting, Names, Payload, Request, Retained, Slot, Source, Take,
    Transmit,
};
use super::super::frame::seal;
use super::super::proto::{
    digest, proof, Algorithm, ClientName, ExportName, Header, Kind, OpFlags, Role, Status,
    HEADER_LEN,
};
use super::super::rx::{Head, Receiver};
use super::pipe::Pipe;
use super::{copy, ensure, Checked, AREA, BLOCK, GRANULE, HOLDER, LIMITS, NAME, PLACE, RETAINED};
use super::{SLOTS, USER_SLOTS};

type Session = super::super::client::Session<[u64; 1]>;
type Block = [u8; BLOCK];

/// Nanoseconds after which a request fails.
pub(super) const DEADLINE: u64 = 1_000_000_000;

/// Sizes of what is not made in place.
#[cfg(test)]
pub(super) const ON_STACK: [usize; 4] = [
    core::mem::size_of::<Client<'static>>(),
    core::mem::size_of::<Receiver<[u8; AREA]>>(),
    core::mem::size_of::<Retained<[Entry; RETAINED]>>(),
    core::mem::size_of::<Slot>(),
];

/// What the client needs memory for.
#[derive(Debug)]
pub(super) struct Memory {
    session: Option<Session>,
    slots: [Slot; SLOTS],
    retained: Option<Retained<[Entry; RETAINED]>>,
    rx: Option<Receiver<[u8; AREA]>>,
    requests: [Block; USER_SLOTS],
    kept: [Block; RETAINED],
}

impl Memory {
    pub const fn new() -> Memory {
        Memory {
            session: None,
            slots: [const { Slot::FREE }; SLOTS],
            retained: None,
            rx: None,
            requests: [[0; BLOCK]; USER_SLOTS],
            kept: [[0; BLOCK]; RETAINED],
        }
    }
}

/// What the session has told.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Sessions that were opened.
    pub opened: u8,
    /// How the requests ended, by slot.
    pub done: [Option<Result<(), Failure>>; USER_SLOTS],
    /// Writes that the session wanted kept, and those let go.
    pub kept: u8,
    pub released: u8,
    pub closed: Option<Status>,
}

/// The client, with its memory.
#[derive(Debug)]
pub(super) struct Client<'m> {
    session: &'m mut Session,
    slots: &'m mut [Slot],
    retained: &'m mut Retained<[Entry; RETAINED]>,
    rx: &'m mut Receiver<[u8; AREA]>,
    /// The memory of the requests, by slot.
    pub requests: &'m mut [Block],
    kept: &'m mut [Block],
    /// The session's number of the stream.
    stream: u32,
    /// Where the payload on its way in goes: slot, and first byte there.
    into: Option<(u16, usize)>,
    /// The end was asked for.
    closing: bool,
    pub seen: Seen,
}

impl<'m> Client<'m> {
    pub fn new(memory: &'m mut Memory) -> Client<'m> {
        Client {
            session: place_session(&mut memory.session),
            slots: fresh(&mut memory.slots),
            retained: place_retained(&mut memory.retained),
            rx: place_receiver(&mut memory.rx),
            requests: &mut memory.requests,
            kept: &mut memory.kept,
            stream: 0,
            into: None,
            closing: false,
            seen: Seen::default(),
        }
    }

    /// A stream is there.
    pub fn connect(&mut self, now: u64) -> Checked {
        ensure(
            self.session.wants_connection(0),
            "a client without a connection wants none",
        )?;
        *self.rx = Receiver::new([0; AREA], Role::Server);
        self.stream = self.session.handle_connected(0, now);
        self.into = None;
        Ok(())
    }

    /// The stream is gone.
    pub fn lose(&mut self) {
        self.session.handle_lost(self.slots, self.retained, 0);
    }

    /// Hands in a request for the one place.
    pub fn submit(&mut self, slot: u16, kind: Kind, flags: OpFlags, now: u64) -> Checked {
        let moves = kind != Kind::FLUSH;
        let request = Request {
            kind,
            flags,
            offset: if moves { PLACE } else { 0 },
            length: if moves { BLOCK as u64 } else { 0 },
        };
        if let Some(done) = self.seen.done.get_mut(usize::from(slot)) {
            *done = None;
        }
        let taken = self
            .session
            .submit(self.slots, self.retained, slot, request, now);
        ensure(taken, "a request is not taken in a free slot")
    }

    /// The time is now `now`.
    pub fn timeout(&mut self, now: u64) {
        self.session.handle_timeout(self.slots, self.retained, now);
    }

    /// Ends the session.
    pub fn close(&mut self) {
        self.closing = true;
        self.session.close();
    }

    /// Takes what has come, sends what there is to send, and notes what the session tells.
    pub fn turn(&mut self, down: &mut Pipe, up: &mut Pipe, now: u64) -> Checked {
        self.receive(down, up, now)?;
        self.send(up)?;
        self.events()
    }

    fn receive(&mut self, down: &mut Pipe, up: &mut Pipe, now: u64) -> Checked {
        while down.len() > 0 {
            self.session.handle_alive(0, now);
            let bytes = down.readable();
            if self.rx.payload_left() > 0 {
                let used = self.payload(bytes)?;
                down.take(used);
                continue;
            }
            let (used, head) = self.rx.feed(bytes).map_err(|fault| fault.text)?;
            down.take(used);
            match head {
                Some(Head::Hello(_)) => self.greet(up)?,
                Some(Head::Frame(header)) => self.frame(&header)?,
                None => {}
            }
        }
        Ok(())
    }

    /// Answers the server's HELLO.
    #[inline(never)]
    fn greet(&mut self, up: &mut Pipe) -> Checked {
        let names = Names {
            export: ExportName::new(NAME).ok_or("a good name is refused")?,
            client: ClientName::new("selfcheck").unwrap_or_default(),
            implementation: "selfcheck",
        };
        let greeting = Greeting {
            hello: self.rx.hello_bytes(),
            nonce: [9; 16],
            binding: proof::NO_BINDING,
        };
        let written = self
            .session
            .handle_hello(self.retained, 0, self.stream, &greeting, &names, up.room())
            .map_err(|fault| fault.text)?;
        up.written(written);
        Ok(())
    }

    #[inline(never)]
    fn frame(&mut self, header: &Header) -> Checked {
        let take = self
            .session
            .handle_frame(
                self.slots,
                self.retained,
                0,
                self.stream,
                header,
                self.rx.options(),
            )
            .map_err(|fault| fault.text)?;
        if matches!(header.kind, Kind::OPEN | Kind::JOIN) {
            let (algorithm, granule) = self.session.digest();
            let max_payload = self.session.limits().max_payload;
            self.rx.accept_payload(max_payload, algorithm, granule);
            self.rx.forget_hello();
        }
        match take {
            Take::Nothing => Ok(()),
            Take::Payload { slot, at } => {
                self.into = Some((slot, usize::try_from(at).unwrap_or(usize::MAX)));
                Ok(())
            }
            Take::Discard | Take::Extents { .. } => {
                Err("the client wants what nobody has asked for")
            }
        }
    }

    /// Takes payload from `bytes`; tells how much.
    #[inline(never)]
    fn payload(&mut self, bytes: &[u8]) -> Result<usize, &'static str> {
        let (slot, at) = self.into.ok_or("payload for no request")?;
        let memory = self.requests.get_mut(usize::from(slot));
        let memory = memory.ok_or("payload for a slot that does not exist")?;
        let left = usize::try_from(self.rx.payload_left()).unwrap_or(usize::MAX);
        let bytes = bytes.get(..left).unwrap_or(bytes);
        let used = copy(memory.get_mut(at..).unwrap_or_default(), bytes);
        ensure(used == bytes.len(), "more payload than was asked for")?;
        self.into = Some((slot, at.saturating_add(used)));
        if self
            .rx
            .payload_received(u32::try_from(used).unwrap_or(u32::MAX))
        {
            self.into = None;
            let (algorithm, granule) = self.session.digest();
            let good = digest::verify(algorithm, granule, PLACE, memory, self.rx.digests());
            ensure(good, "the digest of a READ does not match")?;
            self.session
                .payload_done(self.slots, self.retained, 0, self.stream, good);
        }
        Ok(used)
    }

    /// Sends what there is to send.
    pub fn send(&mut self, up: &mut Pipe) -> Checked {
        loop {
            let transmit = self
                .session
                .poll_transmit(self.slots, self.retained, 0, up.room());
            match transmit {
                None => return Ok(()),
                Some(Transmit::Bytes(len)) => up.written(len),
                Some(Transmit::Write { header, payload }) => self.write(up, &header, payload)?,
            }
        }
    }

    #[inline(never)]
    fn write(&mut self, up: &mut Pipe, header: &Header, payload: Payload) -> Checked {
        let block = match payload.source {
            Source::Slot => self.requests.get(usize::from(payload.slot)),
            Source::Retained { seq, .. } => self.kept.get(self.retained.index(seq)),
        };
        let block = block.ok_or("a WRITE of bytes that are not there")?;
        let (algorithm, granule) = self.session.digest();
        let area = up.room().get_mut(HEADER_LEN..).unwrap_or_default();
        let area = area.get_mut(..header.digest_len as usize);
        let area = area.ok_or("the link is too short")?;
        let digested = digest::write(algorithm, granule, payload.offset, block, area);
        ensure(digested, "a payload can't be digested")?;
        let len = seal(header, up.room());
        up.written(len);
        up.write(block)?;
        self.session
            .handle_sent(self.slots, self.retained, 0, self.stream, header.slot);
        Ok(())
    }

    #[inline(never)]
    fn events(&mut self) -> Checked {
        while let Some(event) = self.session.poll_event(self.slots, self.retained) {
            match event {
                Event::Completed {
                    slot,
                    result,
                    retained,
                } => self.completed(slot, result, retained)?,
                Event::Released { .. } => self.seen.released = self.seen.released.saturating_add(1),
                Event::Opened { fresh: false } => {
                    self.seen.opened = self.seen.opened.saturating_add(1);
                }
                Event::Closed(status) => self.seen.closed = Some(status),
                Event::Close { .. } if self.closing => self.lose(),
                Event::Opened { fresh: true } => return Err("a session that lives is replaced"),
                Event::Refused { .. } => return Err("OPEN or JOIN is refused"),
                Event::Failed(_) => return Err("the device fails"),
                Event::Close { .. } | Event::Draining { .. } | Event::Changed => {
                    return Err("the client sees what has not happened");
                }
            }
        }
        Ok(())
    }

    fn completed(
        &mut self,
        slot: u16,
        result: Result<(), Failure>,
        retained: Option<usize>,
    ) -> Checked {
        let done = self.seen.done.get_mut(usize::from(slot));
        let done = done.ok_or("a request that was not handed in completes")?;
        ensure(done.is_none(), "a request completes twice")?;
        *done = Some(result);
        if let Some(index) = retained {
            let (Some(to), Some(from)) = (
                self.kept.get_mut(index),
                self.requests.get(usize::from(slot)),
            ) else {
                return Err("a write is to be kept where there is no room");
            };
            copy(to, from);
            self.seen.kept = self.seen.kept.saturating_add(1);
        }
        Ok(())
    }
}

fn fresh(slots: &mut [Slot]) -> &mut [Slot] {
    slots.iter_mut().for_each(|slot| *slot = Slot::FREE);
    slots
}

// Each in a function of its own, so that the compiler makes it where it stays; kernel/nopanic looks.

#[inline(never)]
fn place_session(place: &mut Option<Session>) -> &mut Session {
    let config = Config {
        writable: true,
        holder: HOLDER,
        limits: LIMITS,
        digests: Algorithm::Crc32c.mask_bit(),
        granule: GRANULE,
        deadline: Some(DEADLINE),
        retries: 1,
    };
    place.insert(Session::new(config, [0]))
}

#[inline(never)]
fn place_retained(
    place: &mut Option<Retained<[Entry; RETAINED]>>,
) -> &mut Retained<[Entry; RETAINED]> {
    place.insert(Retained::new([Entry::default(); RETAINED], 1 << 16))
}

#[inline(never)]
fn place_receiver(place: &mut Option<Receiver<[u8; AREA]>>) -> &mut Receiver<[u8; AREA]> {
    place.insert(Receiver::new([0; AREA], Role::Server))
}
