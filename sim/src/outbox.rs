//! What a driver has to send over one stream: bytes of its own and references to payload that lives elsewhere, as the queue
//! of a real socket has. The payload is read when the socket takes it, not before: memory that changes meanwhile is seen.

use std::collections::VecDeque;

/// A part of the queue; `P` says where payload lives.
#[derive(Clone, Copy, Debug)]
enum Part<P> {
    /// So many bytes from the front of `bytes`.
    Bytes(usize),
    /// Payload: where, from which byte, how many.
    Payload(P, usize, usize),
}

/// See the [module](self).
#[derive(Debug)]
pub struct Outbox<P> {
    bytes: VecDeque<u8>,
    parts: VecDeque<Part<P>>,
    queued: usize,
}

/// What can be sent next.
#[derive(Clone, Copy, Debug)]
pub enum Next<'o, P> {
    /// These bytes.
    Bytes(&'o [u8]),
    /// So many bytes of this payload, from this one on.
    Payload(P, usize, usize),
}

impl<P: Copy + PartialEq> Outbox<P> {
    /// With nothing in it.
    pub fn new() -> Self {
        Outbox {
            bytes: VecDeque::new(),
            parts: VecDeque::new(),
            queued: 0,
        }
    }

    /// Bytes to send.
    pub fn queued(&self) -> usize {
        self.queued
    }

    /// Appends bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.queued += bytes.len();
        self.bytes.extend(bytes);
        match self.parts.back_mut() {
            Some(Part::Bytes(len)) => *len += bytes.len(),
            _ => self.parts.push_back(Part::Bytes(bytes.len())),
        }
    }

    /// Appends payload.
    pub fn push_payload(&mut self, place: P, from: usize, len: usize) {
        self.queued += len;
        self.parts.push_back(Part::Payload(place, from, len));
    }

    /// What comes next.
    pub fn first(&mut self) -> Option<Next<'_, P>> {
        match self.parts.front()? {
            Part::Bytes(len) => {
                let len = *len;
                let contiguous = self.bytes.as_slices().0.len();
                if contiguous < len {
                    self.bytes.make_contiguous();
                }
                Some(Next::Bytes(&self.bytes.as_slices().0[..len]))
            }
            Part::Payload(place, from, len) => Some(Next::Payload(*place, *from, *len)),
        }
    }

    /// So many bytes of what comes next have gone. Tells a payload of which nothing is left here.
    pub fn sent(&mut self, n: usize) -> Option<P> {
        self.queued -= n;
        let mut done = None;
        match self.parts.front_mut()? {
            Part::Bytes(len) => {
                self.bytes.drain(..n);
                *len -= n;
                if *len > 0 {
                    return None;
                }
            }
            Part::Payload(place, from, len) => {
                *from += n;
                *len -= n;
                if *len > 0 {
                    return None;
                }
                done = Some(*place);
            }
        }
        self.parts.pop_front();
        done
    }

    /// Whether payload of this place is queued.
    pub fn refers_to(&self, place: P) -> bool {
        let is = |part: &Part<P>| matches!(part, Part::Payload(other, ..) if *other == place);
        self.parts.iter().any(is)
    }
}

impl<P: Copy + PartialEq> Default for Outbox<P> {
    fn default() -> Self {
        Outbox::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_go_in_order_and_in_any_pieces() {
        let mut outbox: Outbox<u16> = Outbox::new();
        outbox.push(b"ab");
        outbox.push(b"c");
        outbox.push_payload(7, 10, 5);
        outbox.push(b"d");
        assert_eq!(outbox.queued(), 9);
        assert!(matches!(outbox.first(), Some(Next::Bytes(b"abc"))));
        assert_eq!(outbox.sent(2), None);
        assert!(matches!(outbox.first(), Some(Next::Bytes(b"c"))));
        assert_eq!(outbox.sent(1), None);
        assert_eq!(outbox.sent(4), None);
        assert!(matches!(outbox.first(), Some(Next::Payload(7, 14, 1))));
        assert!(outbox.refers_to(7));
        assert_eq!(outbox.sent(1), Some(7));
        assert!(!outbox.refers_to(7));
        assert!(matches!(outbox.first(), Some(Next::Bytes(b"d"))));
        outbox.sent(1);
        assert!(outbox.first().is_none());
    }
}
