//! Which ids of a session have finished.
//!
//! A session's ids count up from 1 without gaps, over all slots and connections, so "every id up to this one has
//! finished" is one number, the *floor*, and what has finished beyond it fits a bitmap as wide as the negotiated id
//! window. Both ends keep one: the client to act on replies in the order that barriers ask for, the server to know
//! when a barrier may start.
//!
//! Invariants: the bit of an id is set only while `floor < id <= floor + capacity`; the id right above the floor is
//! never set (the floor would have moved).

/// Finished ids of one session. `B` is the bitmap's memory; its length times 64 is the capacity.
#[derive(Debug)]
pub struct IdWindow<B> {
    bits: B,
    floor: u64,
}

impl<B: AsRef<[u64]> + AsMut<[u64]>> IdWindow<B> {
    /// A window in which nothing has finished yet.
    pub fn new(mut bits: B) -> Self {
        bits.as_mut().fill(0);
        Self { bits, floor: 0 }
    }

    /// Begins anew, as for a fresh session.
    pub fn reset(&mut self) {
        self.resume(0);
    }

    /// Begins where every id up to `floor` has finished, and none above it.
    pub fn resume(&mut self, floor: u64) {
        self.bits.as_mut().fill(0);
        self.floor = floor;
    }

    /// The highest id such that it and every lower one have finished; 0 at the start.
    pub fn floor(&self) -> u64 {
        self.floor
    }

    /// How far above the floor an id may be.
    pub fn capacity(&self) -> u64 {
        (self.bits.as_ref().len() as u64).saturating_mul(64)
    }

    /// Whether `id` is one that the window can hold: above the floor, within capacity.
    pub fn admits(&self, id: u64) -> bool {
        id > self.floor && id.wrapping_sub(self.floor) <= self.capacity()
    }

    /// Whether `id` has finished.
    pub fn is_finished(&self, id: u64) -> bool {
        if id <= self.floor {
            return true;
        }
        if !self.admits(id) {
            return false;
        }
        let (word, mask) = self.place(id);
        self.bits
            .as_ref()
            .get(word)
            .is_some_and(|bits| bits & mask != 0)
    }

    /// Notes that `id` has finished. False, and nothing changes, when it lies beyond the window. Finishing an id twice
    /// changes nothing.
    pub fn finish(&mut self, id: u64) -> bool {
        if id <= self.floor {
            return true;
        }
        if !self.admits(id) {
            return false;
        }
        let (word, mask) = self.place(id);
        if let Some(bits) = self.bits.as_mut().get_mut(word) {
            *bits |= mask;
        }
        self.advance();
        true
    }

    /// Moves the floor over what has finished. Amortised constant: each id is passed once.
    fn advance(&mut self) {
        loop {
            let next = self.floor.wrapping_add(1);
            let (word, mask) = self.place(next);
            match self.bits.as_mut().get_mut(word) {
                Some(bits) if *bits & mask != 0 => *bits &= !mask,
                _ => return,
            }
            self.floor = next;
        }
    }

    fn place(&self, id: u64) -> (usize, u64) {
        let words = self.bits.as_ref().len() as u64;
        let word = (id >> 6).checked_rem(words).unwrap_or(0);
        (word as usize, 1 << (id & 63))
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use proptest::prelude::*;

    #[test]
    fn floor_waits_for_the_lowest_id() {
        let mut window = IdWindow::new([0u64; 2]);
        assert!(window.finish(2) && window.finish(3));
        assert_eq!(window.floor(), 0);
        assert!(window.is_finished(3) && !window.is_finished(1));
        assert!(window.finish(1));
        assert_eq!(window.floor(), 3);
    }

    #[test]
    fn ids_beyond_the_window_are_refused() {
        let mut window = IdWindow::new([0u64; 1]);
        assert!(window.finish(64));
        assert!(!window.finish(65));
        assert!(window.finish(1));
        assert!(window.finish(65));
        assert!(!window.is_finished(2));
    }

    #[test]
    fn a_window_without_memory_admits_nothing() {
        let mut window = IdWindow::new([0u64; 0]);
        assert!(!window.finish(1));
        assert_eq!(window.floor(), 0);
    }

    proptest! {
        #[test]
        fn agrees_with_a_set(ids in proptest::collection::vec(1u64..400, 0..600)) {
            let mut window = IdWindow::new([0u64; 2]);
            let mut finished = std::collections::BTreeSet::new();
            for id in ids {
                if window.finish(id) {
                    finished.insert(id);
                }
                let floor = (1..).find(|id| !finished.contains(id)).unwrap() - 1;
                prop_assert_eq!(window.floor(), floor);
                for id in 1..400 {
                    prop_assert_eq!(window.is_finished(id), finished.contains(&id));
                }
            }
        }
    }
}
