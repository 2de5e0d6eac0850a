//! The network: streams of bytes between clients and the server, each direction with its own delay.
//!
//! Every stream is reliable and ordered as long as it lives, but nothing holds between two streams: an older one's bytes
//! may arrive after those of a newer one. A stream can be cut at any byte, with each end noticing at its own time or not at
//! all (half-open), and what one end has sent before it closed still arrives, perhaps much later.
//!
//! States of a direction: bytes *written* by one end, of which a prefix has *arrived* at the other (by the times in
//! `flights`), of which a prefix has been *taken*. Invariant: taken <= arrived <= written, and the bytes not taken are in
//! `bytes`. After a cut, or in a black hole, what is written counts as sent and goes nowhere.

use std::collections::VecDeque;

use crate::queue::{Event, Queue, MICRO};
use crate::rng::Rng;

/// Fewer bytes than that are taken at a time only where there is no more room: each write is an event, which costs time.
const SMALLEST_WRITE: u64 = 512;

/// Names a stream; never reused in a scenario.
pub type StreamId = u32;

/// The two ends of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// The end that attaches.
    Client,
    /// The end that exports.
    Server,
}

impl Side {
    /// The other end.
    pub fn peer(self) -> Side {
        match self {
            Side::Client => Side::Server,
            Side::Server => Side::Client,
        }
    }
}

/// One direction.
#[derive(Debug, Default)]
struct Pipe {
    /// Written and not taken, behind `start` bytes that have been.
    bytes: Vec<u8>,
    start: usize,
    written: u64,
    arrived: u64,
    taken: u64,
    flights: VecDeque<(u64, u64)>,
    /// Nothing arrives before this time.
    stalled_until: u64,
    /// What is written from now on goes nowhere.
    hole: bool,
    /// So many bytes have gone nowhere; they still take up room at the writer.
    swallowed: usize,
    /// The writer waits for room.
    blocked: bool,
    latency: (u64, u64),
}

impl Pipe {
    fn last_arrival(&self) -> u64 {
        self.flights.back().map_or(0, |flight| flight.0)
    }

    fn in_flight(&self) -> usize {
        (self.written - self.arrived) as usize
    }

    /// Forgets what has not arrived beyond byte `keep` of it.
    fn truncate(&mut self, keep: u64) {
        self.written = self.arrived + keep;
        let stay = (self.written - self.taken) as usize;
        self.bytes.truncate(self.start + stay);
        let written = self.written;
        for flight in &mut self.flights {
            flight.1 = flight.1.min(written);
        }
        self.hole = true;
    }
}

/// One stream.
#[derive(Debug)]
pub struct Stream {
    /// Number of the client.
    pub client: u8,
    /// Index of the connection at the client.
    pub index: u16,
    up: Pipe,
    down: Pipe,
    open: [bool; 2],
    capacity: usize,
    pieces: u64,
}

impl Stream {
    fn pipe(&mut self, from: Side) -> &mut Pipe {
        match from {
            Side::Client => &mut self.up,
            Side::Server => &mut self.down,
        }
    }
}

/// How streams behave that are made from now on.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    /// Shortest and longest time on the way, nanoseconds.
    pub latency: (u64, u64),
    /// Bytes that fit between the two ends.
    pub capacity: usize,
    /// Reads and writes transfer at most this many bytes at a time; 0: as many as there are.
    pub pieces: u64,
}

/// All streams of a scenario.
#[derive(Debug)]
pub struct Network {
    streams: Vec<Stream>,
    rng: Rng,
    /// For streams to come.
    pub weather: Weather,
    /// So many bits of what is sent from now on flip.
    pub corruptions: u32,
}

impl Network {
    /// With no stream.
    pub fn new(rng: Rng, weather: Weather) -> Network {
        Network {
            streams: Vec::new(),
            rng,
            weather,
            corruptions: 0,
        }
    }

    /// Begins a connection attempt, which reaches the server after `delay`.
    pub fn connect(&mut self, queue: &mut Queue, client: u8, index: u16, delay: u64) -> StreamId {
        let id = self.streams.len() as StreamId;
        let low = self
            .rng
            .between(self.weather.latency.0, self.weather.latency.1);
        let latency = (low, low.saturating_mul(self.rng.between(1, 8)));
        let pipe = || Pipe {
            latency,
            ..Pipe::default()
        };
        self.streams.push(Stream {
            client,
            index,
            up: pipe(),
            down: pipe(),
            open: [true; 2],
            capacity: self.weather.capacity,
            pieces: self.weather.pieces,
        });
        queue.after(delay, Event::Accept { stream: id });
        id
    }

    /// The stream.
    pub fn stream(&self, id: StreamId) -> &Stream {
        &self.streams[id as usize]
    }

    /// How many streams there have been.
    pub fn count(&self) -> usize {
        self.streams.len()
    }

    /// Whether `side` still has the stream.
    pub fn is_open(&self, id: StreamId, side: Side) -> bool {
        self.streams[id as usize].open[side as usize]
    }

    /// Streams that both ends have.
    pub fn whole_streams(&self) -> impl Iterator<Item = StreamId> + '_ {
        let whole = |stream: &Stream| stream.open == [true; 2];
        (0..)
            .zip(&self.streams)
            .filter(move |(_, s)| whole(s))
            .map(|(id, _)| id)
    }

    /// Sends from one end: takes as many of `bytes` as there is room for and tells how many. Where it is not all, an
    /// [`Event::Writable`] follows.
    pub fn write(&mut self, queue: &mut Queue, id: StreamId, from: Side, bytes: &[u8]) -> usize {
        let stream = &mut self.streams[id as usize];
        let (capacity, pieces) = (stream.capacity, stream.pieces);
        let pipe = stream.pipe(from);
        let used = (pipe.written - pipe.taken) as usize + pipe.swallowed;
        let mut len = bytes.len().min(capacity.saturating_sub(used));
        if pieces > 0 && len > 0 {
            len = len.min(self.rng.between(SMALLEST_WRITE, SMALLEST_WRITE.max(pieces)) as usize);
        }
        if len < bytes.len() {
            pipe.blocked = true;
            if len > 0 {
                pipe.blocked = false;
                queue.after(
                    MICRO,
                    Event::Writable {
                        stream: id,
                        side: from,
                    },
                );
            }
        }
        if len == 0 {
            return 0;
        }
        if pipe.hole {
            pipe.swallowed += len;
            return len;
        }
        pipe.bytes.extend_from_slice(&bytes[..len]);
        pipe.written += len as u64;
        if self.corruptions > 0 && self.rng.one_in(3) {
            self.corruptions -= 1;
            let at = pipe.bytes.len() - 1 - self.rng.index(len);
            pipe.bytes[at] ^= 1 << self.rng.below(8);
        }
        let latency = self.rng.between(pipe.latency.0, pipe.latency.1);
        let time = (queue.now() + latency)
            .max(pipe.last_arrival())
            .max(pipe.stalled_until);
        match pipe.flights.back_mut() {
            Some(last) if last.0 == time => last.1 = pipe.written,
            _ => {
                pipe.flights.push_back((time, pipe.written));
                queue.at(time, Event::Arrive { stream: id, from });
            }
        }
        len
    }

    /// Bytes have had time to arrive: whether there is something to read at the other end.
    pub fn arrive(&mut self, now: u64, id: StreamId, from: Side) -> bool {
        let pipe = self.streams[id as usize].pipe(from);
        while let Some((time, upto)) = pipe.flights.front().copied() {
            if time > now {
                break;
            }
            pipe.arrived = pipe.arrived.max(upto);
            pipe.flights.pop_front();
        }
        pipe.arrived > pipe.taken
    }

    /// What the end other than `from` can read now, or some of it.
    pub fn readable(&mut self, id: StreamId, from: Side) -> &[u8] {
        let stream = &mut self.streams[id as usize];
        let pieces = stream.pieces;
        let pipe = stream.pipe(from);
        let mut len = (pipe.arrived - pipe.taken) as usize;
        if pieces > 0 && len > 1 {
            len = len.min(self.rng.between(1, pieces) as usize);
        }
        &pipe.bytes[pipe.start..pipe.start + len]
    }

    /// Takes `len` bytes of what is readable.
    pub fn take(&mut self, queue: &mut Queue, id: StreamId, from: Side, len: usize) {
        let pipe = self.streams[id as usize].pipe(from);
        pipe.start += len;
        pipe.taken += len as u64;
        if pipe.start == pipe.bytes.len() {
            pipe.bytes.clear();
            pipe.start = 0;
        }
        if pipe.blocked {
            pipe.blocked = false;
            queue.after(
                MICRO,
                Event::Writable {
                    stream: id,
                    side: from,
                },
            );
        }
    }

    /// One end closes. What it sent before still arrives; then the other end notices, unless the way there is a hole.
    pub fn close(&mut self, queue: &mut Queue, id: StreamId, side: Side) {
        if std::mem::replace(&mut self.streams[id as usize].open[side as usize], false) {
            self.shut(queue, id, side);
        }
    }

    /// One end sends nothing more, and the other end takes that for the end of the stream; what the other end has sent still
    /// arrives.
    pub fn shut(&mut self, queue: &mut Queue, id: StreamId, side: Side) {
        let now = queue.now();
        let stream = &mut self.streams[id as usize];
        let was_hole = std::mem::replace(&mut stream.pipe(side).hole, true);
        if !was_hole && stream.open[side.peer() as usize] {
            let pipe = stream.pipe(side);
            let at = pipe.last_arrival().max(pipe.stalled_until).max(now + MICRO);
            queue.at(
                at,
                Event::Ended {
                    stream: id,
                    side: side.peer(),
                },
            );
        }
    }

    /// When the last that was sent from `from` arrives; 0 where everything has.
    pub fn last_arrival(&self, id: StreamId, from: Side) -> u64 {
        let stream = &self.streams[id as usize];
        match from {
            Side::Client => stream.up.last_arrival(),
            Side::Server => stream.down.last_arrival(),
        }
    }

    /// Cuts a stream at some byte of each direction. `notice`: after how long each end (client, server) sees it; never
    /// where none. `late`: how much later what is on its way from the client arrives.
    pub fn cut(&mut self, queue: &mut Queue, id: StreamId, notice: [Option<u64>; 2], late: u64) {
        for from in [Side::Client, Side::Server] {
            let keep = {
                let flying = self.streams[id as usize].pipe(from).in_flight() as u64;
                if self.rng.chance(50) {
                    flying
                } else {
                    self.rng.below(flying + 1)
                }
            };
            let pipe = self.streams[id as usize].pipe(from);
            if !pipe.hole {
                pipe.truncate(keep);
            }
        }
        if late > 0 {
            self.delay(queue, id, Side::Client, late);
        }
        let last = self.streams[id as usize].up.last_arrival();
        for (side, notice) in [Side::Client, Side::Server].into_iter().zip(notice) {
            if let Some(delay) = notice {
                let mut at = queue.now() + delay;
                if side == Side::Server {
                    at = at.max(last);
                }
                queue.at(at, Event::Ended { stream: id, side });
            }
        }
    }

    /// Nothing sent from `from` arrives for so long; what is on its way is late by that.
    pub fn delay(&mut self, queue: &mut Queue, id: StreamId, from: Side, delay: u64) {
        let pipe = self.streams[id as usize].pipe(from);
        pipe.stalled_until = queue.now() + delay;
        for flight in &mut pipe.flights {
            flight.0 += delay;
            queue.at(flight.0, Event::Arrive { stream: id, from });
        }
    }

    /// The end `side` has noticed the end of the stream.
    pub fn ended(&mut self, id: StreamId, side: Side) -> bool {
        std::mem::replace(&mut self.streams[id as usize].open[side as usize], false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network() -> (Network, Queue) {
        let weather = Weather {
            latency: (1000, 2000),
            capacity: 1000,
            pieces: 0,
        };
        (Network::new(Rng::new(1), weather), Queue::new())
    }

    fn drain(network: &mut Network, queue: &mut Queue, id: StreamId) -> Vec<u8> {
        let mut got = Vec::new();
        while let Some(event) = queue.pop() {
            if let Event::Arrive {
                from: Side::Client, ..
            } = event
            {
                network.arrive(queue.now(), id, Side::Client);
                let bytes = network.readable(id, Side::Client).to_vec();
                network.take(queue, id, Side::Client, bytes.len());
                got.extend(bytes);
            }
        }
        got
    }

    #[test]
    fn bytes_arrive_in_order_and_not_before_their_time() {
        let (mut network, mut queue) = network();
        let id = network.connect(&mut queue, 0, 0, 10);
        assert_eq!(network.write(&mut queue, id, Side::Client, b"abc"), 3);
        assert_eq!(network.write(&mut queue, id, Side::Client, b"def"), 3);
        assert!(network.readable(id, Side::Client).is_empty());
        assert_eq!(drain(&mut network, &mut queue, id), b"abcdef");
        assert!(queue.now() >= 1000);
    }

    #[test]
    fn a_full_stream_takes_no_more_and_tells_when_there_is_room() {
        let (mut network, mut queue) = network();
        let id = network.connect(&mut queue, 0, 0, 10);
        assert_eq!(
            network.write(&mut queue, id, Side::Client, &[1; 2000]),
            1000
        );
        assert_eq!(network.write(&mut queue, id, Side::Client, &[1; 1000]), 0);
        assert_eq!(drain(&mut network, &mut queue, id).len(), 1000);
        assert_eq!(
            network.write(&mut queue, id, Side::Client, &[1; 1000]),
            1000
        );
    }

    #[test]
    fn a_cut_keeps_a_prefix_and_late_bytes_come_late() {
        let (mut network, mut queue) = network();
        let id = network.connect(&mut queue, 0, 0, 10);
        let sent: Vec<u8> = (0..200).collect();
        network.write(&mut queue, id, Side::Client, &sent);
        network.cut(&mut queue, id, [Some(0), None], 1_000_000);
        assert_eq!(network.write(&mut queue, id, Side::Client, &sent), 200);
        let got = drain(&mut network, &mut queue, id);
        assert!(sent.starts_with(&got), "nothing after the cut");
        assert!(queue.now() >= 1_000_000);
    }
}
