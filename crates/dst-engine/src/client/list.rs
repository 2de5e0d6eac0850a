//! Singly linked lists through the slots: no memory of their own, a slot is in at most one.

use super::slot::Slot;
use super::NONE;

/// Head and tail of a list of slots.
#[derive(Debug)]
pub(super) struct List {
    head: u16,
    tail: u16,
}

impl List {
    pub fn new() -> Self {
        Self {
            head: NONE,
            tail: NONE,
        }
    }

    pub fn head(&self) -> Option<u16> {
        (self.head != NONE).then_some(self.head)
    }

    pub fn is_empty(&self) -> bool {
        self.head == NONE
    }

    /// The slot behind `at`.
    pub fn next(slots: &[Slot], at: u16) -> Option<u16> {
        let next = slots.get(usize::from(at))?.next;
        (next != NONE).then_some(next)
    }

    pub fn push_back(&mut self, slots: &mut [Slot], at: u16) {
        self.insert_after(slots, self.tail, at);
    }

    /// Puts `at` behind `previous`, or in front of all where that is `NONE`.
    pub fn insert_after(&mut self, slots: &mut [Slot], previous: u16, at: u16) {
        let next = match slots.get_mut(usize::from(previous)) {
            Some(slot) => core::mem::replace(&mut slot.next, at),
            None => core::mem::replace(&mut self.head, at),
        };
        if let Some(slot) = slots.get_mut(usize::from(at)) {
            slot.next = next;
        }
        if next == NONE {
            self.tail = at;
        }
    }

    /// Puts `at` where the ids stay ascending.
    pub fn insert_by_id(&mut self, slots: &mut [Slot], at: u16) {
        let id_of = |slots: &[Slot], at: u16| slots.get(usize::from(at)).map_or(0, |slot| slot.id);
        let id = id_of(slots, at);
        // Most often it is the newest.
        if self.tail != NONE && id_of(slots, self.tail) < id {
            return self.push_back(slots, at);
        }
        let mut previous = NONE;
        let mut cursor = self.head();
        while let Some(here) = cursor {
            if id_of(slots, here) > id {
                break;
            }
            previous = here;
            cursor = Self::next(slots, here);
        }
        self.insert_after(slots, previous, at);
    }

    pub fn pop_front(&mut self, slots: &mut [Slot]) -> Option<u16> {
        let at = self.head()?;
        self.unlink(slots, NONE, at);
        Some(at)
    }

    /// Takes out `at`, whose predecessor is `previous` (`NONE` where it is the first).
    pub fn unlink(&mut self, slots: &mut [Slot], previous: u16, at: u16) {
        let Some(slot) = slots.get_mut(usize::from(at)) else {
            return;
        };
        let next = core::mem::replace(&mut slot.next, NONE);
        match slots.get_mut(usize::from(previous)) {
            Some(slot) => slot.next = next,
            None => self.head = next,
        }
        if self.tail == at {
            self.tail = previous;
        }
    }

    /// Takes out `at`, wherever it is. False where it is not in the list.
    pub fn remove(&mut self, slots: &mut [Slot], at: u16) -> bool {
        let mut previous = NONE;
        let mut cursor = self.head();
        while let Some(here) = cursor {
            if here == at {
                self.unlink(slots, previous, at);
                return true;
            }
            previous = here;
            cursor = Self::next(slots, here);
        }
        false
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use std::vec::Vec;

    fn order(list: &List, slots: &[Slot]) -> Vec<u16> {
        let mut cursor = list.head();
        let mut out = Vec::new();
        while let Some(at) = cursor {
            out.push(at);
            cursor = List::next(slots, at);
        }
        out
    }

    #[test]
    fn keeps_order_through_every_kind_of_removal() {
        let mut slots = std::vec![Slot::default(); 5];
        let mut list = List::new();
        for at in 0..5 {
            list.push_back(&mut slots, at);
        }
        assert!(list.remove(&mut slots, 2));
        assert!(!list.remove(&mut slots, 2));
        assert!(list.remove(&mut slots, 4));
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
        let mut slots = std::vec![Slot::default(); 4];
        let mut list = List::new();
        for (at, id) in [(0u16, 7), (1, 3), (2, 9), (3, 5)] {
            slots[usize::from(at)].id = id;
            list.insert_by_id(&mut slots, at);
        }
        assert_eq!(order(&list, &slots), [1, 3, 0, 2]);
    }
}
