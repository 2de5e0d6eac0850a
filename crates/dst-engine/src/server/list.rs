//! Doubly linked lists through the slots: they need no memory of their own, and a slot leaves from the middle at once.
//!
//! Each slot has links for two lists: one [`QUEUE`] (held, ready, or the replies of a connection; never two of them) and the
//! [`WRITES`] that have not finished.

use super::slot::Slot;
use super::NONE;

/// Links for the queue that a slot's state names.
pub(super) const QUEUE: usize = 0;
/// Links for the list of unfinished writes.
pub(super) const WRITES: usize = 1;

/// A slot's neighbours in a list; `NONE` at the ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Links {
    previous: u16,
    next: u16,
}

impl Links {
    pub(super) const FREE: Links = Links {
        previous: NONE,
        next: NONE,
    };
}

/// Head and tail of a list of slots over the links `CHAIN`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct List<const CHAIN: usize> {
    head: u16,
    tail: u16,
}

impl<const CHAIN: usize> List<CHAIN> {
    pub(super) const EMPTY: Self = List {
        head: NONE,
        tail: NONE,
    };

    pub(super) fn is_empty(&self) -> bool {
        self.head == NONE
    }

    pub(super) fn head(&self) -> Option<u16> {
        (self.head != NONE).then_some(self.head)
    }

    /// The slot behind `at`.
    pub(super) fn next(slots: &[Slot], at: u16) -> Option<u16> {
        let next = slots.get(usize::from(at))?.links.get(CHAIN)?.next;
        (next != NONE).then_some(next)
    }

    pub(super) fn push_back(&mut self, slots: &mut [Slot], at: u16) {
        self.insert_behind(slots, self.tail, at);
    }

    /// Puts `at` where the ids stay ascending; mostly that is the end, so the search begins there.
    pub(super) fn insert_by_id(&mut self, slots: &mut [Slot], at: u16) {
        let id_of = |at: u16| slots.get(usize::from(at)).map_or(0, |slot| slot.id);
        let id = id_of(at);
        let mut previous = self.tail;
        for _ in 0..slots.len() {
            if previous == NONE || id_of(previous) < id {
                break;
            }
            previous = links(slots, previous, CHAIN).previous;
        }
        self.insert_behind(slots, previous, at);
    }

    /// Puts `at` behind `previous`, in front of all where that is `NONE`.
    fn insert_behind(&mut self, slots: &mut [Slot], previous: u16, at: u16) {
        let next = match links_mut(slots, previous, CHAIN) {
            Some(links) => core::mem::replace(&mut links.next, at),
            None => core::mem::replace(&mut self.head, at),
        };
        match links_mut(slots, next, CHAIN) {
            Some(links) => links.previous = at,
            None => self.tail = at,
        }
        if let Some(links) = links_mut(slots, at, CHAIN) {
            *links = Links { previous, next };
        }
    }

    pub(super) fn pop_front(&mut self, slots: &mut [Slot]) -> Option<u16> {
        let at = self.head()?;
        self.remove(slots, at);
        Some(at)
    }

    /// Takes out `at`, which must be in this list.
    pub(super) fn remove(&mut self, slots: &mut [Slot], at: u16) {
        let Links { previous, next } = links(slots, at, CHAIN);
        match links_mut(slots, previous, CHAIN) {
            Some(links) => links.next = next,
            None => self.head = next,
        }
        match links_mut(slots, next, CHAIN) {
            Some(links) => links.previous = previous,
            None => self.tail = previous,
        }
        if let Some(links) = links_mut(slots, at, CHAIN) {
            *links = Links::FREE;
        }
    }
}

fn links(slots: &[Slot], at: u16, chain: usize) -> Links {
    let slot = slots.get(usize::from(at));
    let links = slot.and_then(|slot| slot.links.get(chain));
    links.copied().unwrap_or(Links::FREE)
}

fn links_mut(slots: &mut [Slot], at: u16, chain: usize) -> Option<&mut Links> {
    slots.get_mut(usize::from(at))?.links.get_mut(chain)
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use std::vec;
    use std::vec::Vec;

    fn order<const CHAIN: usize>(list: &List<CHAIN>, slots: &[Slot]) -> Vec<u16> {
        let first = list.head();
        std::iter::successors(first, |at| List::<CHAIN>::next(slots, *at)).collect()
    }

    #[test]
    fn keeps_order_through_every_kind_of_removal() {
        let mut slots = vec![Slot::default(); 5];
        let mut list = List::<QUEUE>::EMPTY;
        for at in 0..5 {
            list.push_back(&mut slots, at);
        }
        list.remove(&mut slots, 2);
        list.remove(&mut slots, 4);
        assert_eq!(list.pop_front(&mut slots), Some(0));
        list.push_back(&mut slots, 4);
        assert_eq!(order(&list, &slots), [1, 3, 4]);
        while list.pop_front(&mut slots).is_some() {}
        assert!(list.is_empty());
        list.push_back(&mut slots, 3);
        assert_eq!(order(&list, &slots), [3]);
    }

    #[test]
    fn inserts_by_id() {
        let mut slots = vec![Slot::default(); 4];
        let mut list = List::<QUEUE>::EMPTY;
        for (at, id) in [(0u16, 7), (1, 3), (2, 9), (3, 5)] {
            slots[usize::from(at)].id = id;
            list.insert_by_id(&mut slots, at);
        }
        assert_eq!(order(&list, &slots), [1, 3, 0, 2]);
    }

    #[test]
    fn the_two_chains_of_a_slot_do_not_touch() {
        let mut slots = vec![Slot::default(); 2];
        let mut queue = List::<QUEUE>::EMPTY;
        let mut writes = List::<WRITES>::EMPTY;
        queue.push_back(&mut slots, 0);
        queue.push_back(&mut slots, 1);
        writes.push_back(&mut slots, 1);
        writes.push_back(&mut slots, 0);
        queue.remove(&mut slots, 0);
        assert_eq!(order(&queue, &slots), [1]);
        assert_eq!(order(&writes, &slots), [1, 0]);
    }
}
