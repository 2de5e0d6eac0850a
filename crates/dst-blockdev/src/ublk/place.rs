//! Where a request is: on which of the device's queues, with which tag of that queue.

use super::abi::DevInfo;
use super::{DEPTH, QUEUES};
use crate::{Error, ErrorKind};

/// Places that a device may have: for the requests of so many there is room in the memory that is set aside (`tags.rs`).
const MOST: u32 = QUEUES as u32 * DEPTH as u32;

/// One place for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) queue: u16,
    pub(super) tag: u16,
}

impl Place {
    /// A number of its own, below 2^32: what commands and requests are known by.
    pub(super) fn number(self) -> u64 {
        u64::from(self.queue) << 16 | u64::from(self.tag)
    }

    /// The place with this number.
    pub(super) fn of(number: u64) -> Option<Place> {
        let number = u32::try_from(number).ok()?;
        Some(Place {
            queue: (number >> 16) as u16,
            tag: number as u16,
        })
    }
}

/// How many places a device has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    /// Queues, at least one.
    pub(super) queues: u16,
    /// Tags of each, at least one.
    pub(super) depth: u16,
}

impl Shape {
    /// That of a device as the driver has made it, which may have been for another version of this program.
    ///
    /// # Errors
    /// `NotAvailable` if it is none that can be served.
    pub(super) fn of(info: &DevInfo) -> Result<Shape, Error> {
        let shape = Shape {
            queues: info.nr_hw_queues,
            depth: info.queue_depth,
        };
        match shape.places() {
            1..=MOST => Ok(shape),
            _ => Err(Error::new(
                ErrorKind::NotAvailable,
                format!(
                    "a ublk device with {} queues of {} requests is not served by this version",
                    shape.queues, shape.depth
                ),
            )),
        }
    }

    /// All places together.
    pub(super) fn places(self) -> u32 {
        u32::from(self.queues) * u32::from(self.depth)
    }

    /// The place's index among all; `None` if there is no such place.
    pub(super) fn index(self, place: Place) -> Option<usize> {
        let there = place.queue < self.queues && place.tag < self.depth;
        there.then(|| usize::from(place.queue) * usize::from(self.depth) + usize::from(place.tag))
    }

    /// All places, by index.
    pub(super) fn iter(self) -> impl Iterator<Item = Place> {
        (0..self.queues).flat_map(move |queue| (0..self.depth).map(move |tag| Place { queue, tag }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_has_a_number_and_an_index_of_its_own() {
        let shape = Shape {
            queues: 3,
            depth: 5,
        };
        let mut numbers = Vec::new();
        for (at, place) in shape.iter().enumerate() {
            assert_eq!(shape.index(place), Some(at));
            assert_eq!(Place::of(place.number()), Some(place));
            numbers.push(place.number());
        }
        assert_eq!(numbers.len(), shape.places() as usize);
        numbers.dedup();
        assert_eq!(numbers.len(), 15);
        for (queue, tag) in [(3, 0), (0, 5), (u16::MAX, u16::MAX)] {
            assert_eq!(shape.index(Place { queue, tag }), None);
        }
        assert_eq!(Place::of(1 << 32), None);
        assert_eq!(Place::of(u64::MAX), None);
    }

    #[test]
    fn a_device_without_places_or_with_too_many_is_refused() {
        let of = |nr_hw_queues, queue_depth| {
            Shape::of(&DevInfo {
                nr_hw_queues,
                queue_depth,
                ..DevInfo::default()
            })
        };
        assert_eq!(of(1, 128).unwrap().places(), 128);
        assert_eq!(of(4, 128).unwrap().places(), MOST);
        assert_eq!(of(2, 256).unwrap().places(), MOST);
        for (queues, depth) in [(0, 128), (4, 0), (5, 128), (u16::MAX, u16::MAX)] {
            assert_eq!(
                of(queues, depth).unwrap_err().kind(),
                ErrorKind::NotAvailable
            );
        }
    }
}
