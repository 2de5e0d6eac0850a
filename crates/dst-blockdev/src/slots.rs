//! A table whose entries are named by tags that are not used twice: a late answer never meets another request.

/// Entries by tag. Freed places are used again first, so that the table is as long as there were entries at once.
#[derive(Debug)]
pub(crate) struct Slots<T> {
    places: Vec<(u32, Option<T>)>,
    free: Vec<u32>,
}

impl<T> Slots<T> {
    /// As many entries as `usual` at once need no allocation.
    pub(crate) fn new(usual: usize) -> Slots<T> {
        Slots {
            places: Vec::with_capacity(usual),
            free: Vec::with_capacity(usual),
        }
    }

    /// The new entry's tag: its place in the low half, in the high half how often the place was used before.
    pub(crate) fn insert(&mut self, value: T) -> u64 {
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push((0, None));
            u32::try_from(self.places.len() - 1).expect("fewer than 2^32 requests at once")
        });
        let (uses, entry) = &mut self.places[place as usize];
        debug_assert!(entry.is_none());
        *entry = Some(value);
        u64::from(*uses) << 32 | u64::from(place)
    }

    /// Takes an entry out.
    pub(crate) fn remove(&mut self, tag: u64) -> Option<T> {
        let (place, uses) = (tag as u32, (tag >> 32) as u32);
        let (current, entry) = self.places.get_mut(place as usize)?;
        if *current != uses {
            return None;
        }
        let value = entry.take()?;
        *current = current.wrapping_add(1);
        self.free.push(place);
        Some(value)
    }

    pub(crate) fn get_mut(&mut self, tag: u64) -> Option<&mut T> {
        let (current, entry) = self.places.get_mut(tag as u32 as usize)?;
        if *current == (tag >> 32) as u32 {
            entry.as_mut()
        } else {
            None
        }
    }

    /// The tags of all entries.
    pub(crate) fn tags(&self) -> impl Iterator<Item = u64> + '_ {
        let places = self.places.iter().zip(0_u64..);
        places
            .filter(|((_, entry), _)| entry.is_some())
            .map(|((uses, _), place)| u64::from(*uses) << 32 | place)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.places.iter().filter_map(|(_, entry)| entry.as_ref())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.places.len() == self.free.len()
    }

    /// Forgets all entries; their tags stay invalid.
    pub(crate) fn clear(&mut self) {
        for (place, (uses, entry)) in self.places.iter_mut().enumerate() {
            if entry.take().is_some() {
                *uses = uses.wrapping_add(1);
                self.free.push(place as u32);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_finds_its_entry_once_and_no_later_one_in_the_same_place() {
        let mut slots = Slots::new(1);
        let a = slots.insert('a');
        let b = slots.insert('b');
        assert_eq!(slots.get_mut(b), Some(&mut 'b'));
        assert_eq!(slots.remove(a), Some('a'));
        assert_eq!(slots.remove(a), None);
        let c = slots.insert('c');
        assert_ne!(a, c);
        assert_eq!(slots.get_mut(a), None);
        assert_eq!(slots.remove(a), None);
        assert_eq!(slots.iter().count(), 2);
        assert_eq!(slots.tags().collect::<Vec<_>>(), [c, b]);
        slots.clear();
        assert!(slots.is_empty());
        assert_eq!((slots.remove(b), slots.remove(c)), (None, None));
        assert_eq!(slots.remove(u64::MAX), None);
    }
}
