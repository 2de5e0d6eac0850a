//! The clock of a scenario: what happens when. Events of the same time happen in the order in which they were scheduled.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::network::{Side, StreamId};

/// Nanoseconds in a microsecond.
pub const MICRO: u64 = 1_000;
/// Nanoseconds in a millisecond.
pub const MILLI: u64 = 1_000_000;
/// Nanoseconds in a second.
pub const SECOND: u64 = 1_000_000_000;

/// Something that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Event {
    /// Bytes sent from `from` reach the other end of a stream.
    Arrive { stream: StreamId, from: Side },
    /// There is room again to send from `side`.
    Writable { stream: StreamId, side: Side },
    /// `side` notices that the stream has ended.
    Ended { stream: StreamId, side: Side },
    /// A connection attempt reaches the server.
    Accept { stream: StreamId },
    /// The client learns that its attempt was accepted.
    Connected { stream: StreamId },
    /// The time for which an engine asked: a client's (by number), or the server's.
    ClientTimer { client: u8 },
    /// See [`Event::ClientTimer`].
    ServerTimer,
    /// A client tries to connect again.
    Reconnect { client: u8, index: u16 },
    /// The disk has finished an operation.
    Disk { op: u32 },
    /// The user of a client's device hands in requests.
    Submit { client: u8 },
    /// The next fault of the scenario.
    Fault { at: u16 },
    /// A server process starts.
    ServerStart,
    /// A process that was frozen goes on: a client, or the server.
    Thaw { client: Option<u8> },
    /// A client process starts.
    ClientStart { client: u8 },
    /// A client that has not been let in until now gives up.
    GiveUp { client: u8, life: u8 },
    /// Nothing; looks whether the scenario still moves.
    Watch,
}

/// Events in order of time.
#[derive(Debug, Default)]
pub struct Queue {
    heap: BinaryHeap<Reverse<(u64, u64, Event)>>,
    scheduled: u64,
    now: u64,
}

impl Queue {
    /// With nothing scheduled, at time 0.
    pub fn new() -> Queue {
        Queue::default()
    }

    /// The time of the event under way, nanoseconds.
    pub fn now(&self) -> u64 {
        self.now
    }

    /// Schedules an event; one in the past happens next.
    pub fn at(&mut self, time: u64, event: Event) {
        self.scheduled += 1;
        let time = time.max(self.now);
        self.heap.push(Reverse((time, self.scheduled, event)));
    }

    /// Schedules an event so many nanoseconds from now.
    pub fn after(&mut self, delay: u64, event: Event) {
        self.at(self.now.saturating_add(delay), event);
    }

    /// Moves the clock to the next event and takes it.
    pub fn pop(&mut self) -> Option<Event> {
        let Reverse((time, _, event)) = self.heap.pop()?;
        self.now = time;
        Some(event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_in_order_of_time_and_then_of_scheduling() {
        let mut queue = Queue::new();
        queue.at(20, Event::ServerStart);
        queue.at(10, Event::ServerTimer);
        queue.at(10, Event::Submit { client: 1 });
        assert_eq!(queue.pop(), Some(Event::ServerTimer));
        assert_eq!(queue.pop(), Some(Event::Submit { client: 1 }));
        queue.at(5, Event::Submit { client: 2 });
        assert_eq!(queue.pop(), Some(Event::Submit { client: 2 }));
        assert_eq!(queue.now(), 10, "time never goes back");
        assert_eq!(queue.pop(), Some(Event::ServerStart));
        assert_eq!(queue.pop(), None);
    }
}
