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

/// Something that happens. Clients are named by their place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Event {
    /// Bytes reach the other end of a stream.
    Arrive {
        /// The stream.
        stream: StreamId,
        /// The end that sent them.
        from: Side,
    },
    /// There is room to send again.
    Writable {
        /// The stream.
        stream: StreamId,
        /// The end that can send.
        side: Side,
    },
    /// An end notices that the stream has ended.
    Ended {
        /// The stream.
        stream: StreamId,
        /// The end.
        side: Side,
    },
    /// A connection attempt reaches the server.
    Accept {
        /// The stream.
        stream: StreamId,
    },
    /// The client learns that its attempt was accepted.
    Connected {
        /// The stream.
        stream: StreamId,
    },
    /// The time for which a client's engine asked.
    ClientTimer {
        /// The client.
        client: u8,
    },
    /// The time for which the server's engine asked.
    ServerTimer,
    /// A client tries to connect again.
    Reconnect {
        /// The client.
        client: u8,
        /// Index of the connection.
        index: u16,
    },
    /// The disk has finished an operation.
    Disk {
        /// Its number.
        op: u32,
    },
    /// The user of a client's device hands in requests.
    Submit {
        /// The client.
        client: u8,
    },
    /// A fault of the scenario.
    Fault {
        /// Its place in the plan.
        at: u16,
    },
    /// A server process starts.
    ServerStart,
    /// A process that was frozen goes on.
    Thaw {
        /// The client; none for the server.
        client: Option<u8>,
    },
    /// A client process starts.
    ClientStart {
        /// The client.
        client: u8,
    },
    /// A client that has not been let in until now gives up.
    GiveUp {
        /// The client.
        client: u8,
        /// Its life: another may be at its place by then.
        life: u8,
    },
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
