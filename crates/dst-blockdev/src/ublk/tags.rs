//! The tags of all queues, sans I/O: whose turn it is on each, and what a request asks for.
//!
//! # Invariants
//! - On each tag exactly one command is with the driver, or one request is with us, or neither for ever: never both.
//! - A request is answered exactly once; by its answer the tag goes back to the driver in the same command.
//! - A request's payload may be moved only while the request is with us.
//!
//! # States of a tag
//!
//! | state | who has the turn | ends when |
//! | --- | --- | --- |
//! | fetching | the driver: FETCH or COMMIT_AND_FETCH is in the ring | the command completes: with 0, taken; with an error, gone |
//! | taken | we: the request is in the device | it is answered: fetching |
//! | gone | nobody: the disk is being removed | never |
//!
//! All tags start as fetching. When all are gone the disk is gone: the driver ends the commands it holds only after every
//! request has been answered.

use rustix::io::Errno;

use super::abi::{op, IoDesc, LONGEST_PAYLOAD, SECTOR};
use super::params::LARGEST_TRANSFER;
use super::place::{Place, Shape};
use super::{DEPTH, QUEUES};

/// Bytes of reads and writes with us from which on no more requests are taken, on whatever queue: what a server gives credit
/// for, and more.
const FULL: u64 = 32 << 20;

// With one more request of the largest size, and each at the end of a page of which it has but a block, all requests that a
// device can have given us are within the memory that is set aside, and an eighth of that is left for gaps between them.
const _: () = assert!(
    FULL + LARGEST_TRANSFER as u64 + (QUEUES as u64 * DEPTH as u64) * 4096
        <= crate::IN_FLIGHT / 8 * 7
);

/// What a request asks for. Offsets and lengths in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    Read {
        offset: u64,
        len: u32,
    },
    Write {
        offset: u64,
        len: u32,
        fua: bool,
    },
    Flush,
    Discard {
        offset: u64,
        len: u64,
    },
    WriteZeroes {
        offset: u64,
        len: u64,
        may_unmap: bool,
        fua: bool,
    },
}

impl Asked {
    /// Reads a descriptor.
    ///
    /// # Errors
    /// What to answer: `OPNOTSUPP` for an operation that we have not asked for, `IO` for a range that makes no sense.
    pub(super) fn parse(desc: &IoDesc) -> Result<Asked, Errno> {
        let flag = |bit| desc.op_flags & bit != 0;
        let operation = desc.op_flags & op::MASK;
        if operation == op::FLUSH {
            return Ok(Asked::Flush);
        }
        let offset = desc.start_sector.checked_mul(SECTOR).ok_or(Errno::IO)?;
        let len = u64::from(desc.nr_sectors) * SECTOR;
        if len == 0 || offset.checked_add(len).is_none() {
            return Err(Errno::IO);
        }
        let payload = || match u32::try_from(len) {
            Ok(len) if len <= LONGEST_PAYLOAD => Ok(len),
            _ => Err(Errno::IO),
        };
        match operation {
            op::READ => Ok(Asked::Read {
                offset,
                len: payload()?,
            }),
            op::WRITE => Ok(Asked::Write {
                offset,
                len: payload()?,
                fua: flag(op::FUA),
            }),
            op::DISCARD => Ok(Asked::Discard { offset, len }),
            op::WRITE_ZEROES => Ok(Asked::WriteZeroes {
                offset,
                len,
                may_unmap: !flag(op::NO_UNMAP),
                fua: flag(op::FUA),
            }),
            _ => Err(Errno::OPNOTSUPP),
        }
    }

    /// Bytes of its payload.
    fn payload(&self) -> u32 {
        match self {
            Asked::Read { len, .. } | Asked::Write { len, .. } => *len,
            Asked::Flush | Asked::Discard { .. } | Asked::WriteZeroes { .. } => 0,
        }
    }
}

/// A request that is answered now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Taken {
    /// It is a read: its payload is to be handed over first.
    pub(super) reads: bool,
    /// Bytes of its payload, also the answer to a success.
    pub(super) payload: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Fetching,
    Taken(Taken),
    Gone,
}

/// What a completed command means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Came {
    /// A request is there.
    Request(Place),
    /// A tag is gone.
    Nothing,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Tags {
    shape: Shape,
    states: Vec<State>,
    gone: usize,
    /// Bytes of payload of all requests with us.
    bytes: u64,
}

impl Tags {
    /// Those of a device, all fetching.
    pub(super) fn new(shape: Shape) -> Tags {
        Tags {
            shape,
            states: vec![State::Fetching; shape.places() as usize],
            gone: 0,
            bytes: 0,
        }
    }

    /// The place with this number, and its index.
    fn find(&self, number: u64) -> Option<(Place, usize)> {
        let place = Place::of(number)?;
        Some((place, self.shape.index(place)?))
    }

    /// The command of the place with this number has completed with `result`. After `Came::Request` the request is to be read
    /// and [`Tags::take`] to be called.
    ///
    /// # Errors
    /// The driver does not do what it says.
    pub(super) fn completed(&mut self, number: u64, result: i32) -> Result<Came, String> {
        let found = self.find(number);
        let found = found.and_then(|(place, at)| Some((place, self.states.get_mut(at)?)));
        let Some((place, state @ State::Fetching)) = found else {
            return Err(format!("the driver answered at {number:#x} out of turn"));
        };
        if result == 0 {
            // Until its descriptor has been read it is one that fails.
            *state = State::Taken(Taken {
                reads: false,
                payload: 0,
            });
            return Ok(Came::Request(place));
        }
        *state = State::Gone;
        self.gone += 1;
        // What the driver ends commands with when the disk goes (`UBLK_IO_RES_ABORT`).
        if result == -Errno::NODEV.raw_os_error() {
            return Ok(Came::Nothing);
        }
        Err(format!(
            "the driver refused a command for tag {} of queue {}: {}",
            place.tag,
            place.queue,
            std::io::Error::from_raw_os_error(result.wrapping_neg())
        ))
    }

    /// Notes what the request at a place asks for.
    pub(super) fn take(&mut self, place: Place, asked: &Asked) {
        let at = self.shape.index(place);
        if let Some(State::Taken(taken)) = at.and_then(|at| self.states.get_mut(at)) {
            self.bytes -= u64::from(taken.payload);
            *taken = Taken {
                reads: matches!(asked, Asked::Read { .. }),
                payload: asked.payload(),
            };
            self.bytes += u64::from(taken.payload);
        }
    }

    /// The request at the place with this number is answered: its tag is fetching again, which the caller makes true. `None`:
    /// no request is there.
    pub(super) fn answer(&mut self, number: u64) -> Option<(Place, Taken)> {
        let (place, at) = self.find(number)?;
        let state = self.states.get_mut(at)?;
        let State::Taken(taken) = *state else {
            return None;
        };
        *state = State::Fetching;
        self.bytes -= u64::from(taken.payload);
        Some((place, taken))
    }

    /// The places with a request.
    pub(super) fn taken(&self) -> impl Iterator<Item = Place> + '_ {
        let places = self.shape.iter().zip(&self.states);
        places.filter_map(|(place, state)| matches!(state, State::Taken(_)).then_some(place))
    }

    /// Whether there is enough with us.
    pub(super) fn is_full(&self) -> bool {
        self.bytes >= FULL
    }

    /// Nothing comes any more.
    pub(super) fn all_gone(&self) -> bool {
        self.gone == self.states.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn desc(op_flags: u32, start_sector: u64, nr_sectors: u32) -> IoDesc {
        IoDesc {
            op_flags,
            nr_sectors,
            start_sector,
            addr: 0,
        }
    }

    #[test]
    fn every_operation_is_understood_with_its_flags() {
        let parse = |flags, sector, count| Asked::parse(&desc(flags, sector, count)).unwrap();
        assert_eq!(
            parse(op::READ | 1 << 8, 8, 16),
            Asked::Read {
                offset: 4096,
                len: 8192
            }
        );
        assert_eq!(
            parse(op::WRITE | op::FUA, 1, 1),
            Asked::Write {
                offset: 512,
                len: 512,
                fua: true
            }
        );
        assert_eq!(parse(op::FLUSH, 0, 0), Asked::Flush);
        assert_eq!(
            parse(op::DISCARD, 0, 1 << 22),
            Asked::Discard {
                offset: 0,
                len: 2 << 30
            }
        );
        for (flags, may_unmap) in [(0, true), (op::NO_UNMAP, false)] {
            assert_eq!(
                parse(op::WRITE_ZEROES | flags, 8, u32::MAX),
                Asked::WriteZeroes {
                    offset: 4096,
                    len: u64::from(u32::MAX) * 512,
                    may_unmap,
                    fua: false
                }
            );
        }
    }

    #[test]
    fn what_makes_no_sense_is_answered_with_an_error() {
        for (bad, errno) in [
            (desc(4, 0, 8), Errno::OPNOTSUPP),
            (desc(13, 0, 8), Errno::OPNOTSUPP),
            (desc(op::READ, 0, 0), Errno::IO),
            (desc(op::READ, u64::MAX / 512, 8), Errno::IO),
            (desc(op::WRITE, u64::MAX, 8), Errno::IO),
            (desc(op::WRITE, 0, (32 << 20) / 512 + 1), Errno::IO),
        ] {
            assert_eq!(Asked::parse(&bad), Err(errno), "{bad:?}");
        }
    }

    fn shape(queues: u16, depth: u16) -> Shape {
        Shape { queues, depth }
    }

    fn at(queue: u16, tag: u16) -> Place {
        Place { queue, tag }
    }

    #[test]
    fn a_tag_goes_round_and_is_answered_once() {
        let mut tags = Tags::new(shape(2, 2));
        let (place, number) = (at(1, 1), at(1, 1).number());
        assert_eq!(tags.answer(number), None);
        assert_eq!(tags.completed(number, 0), Ok(Came::Request(place)));
        let asked = Asked::parse(&desc(op::READ, 0, 8)).unwrap();
        tags.take(place, &asked);
        assert!(tags.completed(number, 0).is_err());
        assert_eq!(tags.taken().collect::<Vec<_>>(), [place]);
        assert_eq!(tags.answer(at(0, 1).number()), None, "another queue's");
        let (answered, taken) = tags.answer(number).unwrap();
        assert_eq!((answered, taken.reads, taken.payload), (place, true, 4096));
        assert_eq!(tags.answer(number), None);
        assert_eq!(tags.taken().count(), 0);
        assert_eq!(tags.completed(number, 0), Ok(Came::Request(place)));
        tags.take(place, &Asked::Flush);
        let (_, taken) = tags.answer(number).unwrap();
        assert_eq!((taken.reads, taken.payload), (false, 0));
    }

    #[test]
    fn it_is_full_by_bytes_over_all_queues_until_something_is_answered() {
        let mut tags = Tags::new(shape(3, 11));
        let asked = Asked::parse(&desc(op::WRITE, 0, 2048)).unwrap();
        for (taken, place) in shape(3, 11).iter().enumerate() {
            assert_eq!(tags.is_full(), taken == 32);
            assert_eq!(tags.completed(place.number(), 0), Ok(Came::Request(place)));
            tags.take(place, &asked);
        }
        tags.answer(0).unwrap();
        assert!(tags.is_full());
        tags.answer(1).unwrap();
        assert!(!tags.is_full());
    }

    #[test]
    fn tags_are_gone_when_the_driver_lets_them_go() {
        let abort = -Errno::NODEV.raw_os_error();
        let mut tags = Tags::new(shape(2, 1));
        let (first, second) = (at(0, 0).number(), at(1, 0).number());
        assert_eq!(tags.completed(first, abort), Ok(Came::Nothing));
        assert!(!tags.all_gone());
        assert!(tags.completed(first, 0).is_err());
        assert_eq!(tags.completed(second, 0), Ok(Came::Request(at(1, 0))));
        assert!(!tags.all_gone());
        tags.answer(second).unwrap();
        assert_eq!(tags.completed(second, abort), Ok(Came::Nothing));
        assert!(tags.all_gone());
    }

    #[test]
    fn another_error_or_place_is_a_broken_driver() {
        let mut tags = Tags::new(shape(1, 1));
        assert!(tags.completed(1, 0).is_err());
        assert!(tags.completed(at(1, 0).number(), 0).is_err());
        assert!(tags.completed(u64::MAX, 0).is_err());
        assert!(tags.completed(0, i32::MIN).is_err());
        assert!(tags.all_gone());
        assert_eq!(tags.answer(u64::MAX), None);
    }

    proptest! {
        #[test]
        fn no_descriptor_makes_it_panic(flags: u32, start: u64, count: u32) {
            if let Ok(asked) = Asked::parse(&desc(flags, start, count)) {
                let mut tags = Tags::new(shape(1, 1));
                prop_assert_eq!(tags.completed(0, 0), Ok(Came::Request(at(0, 0))));
                tags.take(at(0, 0), &asked);
                prop_assert!(tags.answer(0).unwrap().1.payload <= LONGEST_PAYLOAD);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(8))]

        /// Requests of any sizes, answered in any order, find room in what is set aside for them.
        #[test]
        fn what_a_device_can_give_has_room_in_the_memory_set_aside(
            requests in proptest::collection::vec(
                (prop_oneof![1_u32..=8, 1..=LARGEST_TRANSFER / 512], any::<prop::sample::Index>()),
                1..3000,
            ),
        ) {
            let pool = dst_buf::Pool::with_reserve(0, crate::IN_FLIGHT as usize).unwrap();
            let mut tags = Tags::new(shape(QUEUES, DEPTH));
            let mut free: Vec<Place> = shape(QUEUES, DEPTH).iter().collect();
            let mut taken = Vec::new();
            for (sectors, which) in requests {
                while tags.is_full() || free.is_empty() {
                    let (place, _): (Place, dst_buf::Buf) = taken.swap_remove(which.index(taken.len()));
                    tags.answer(place.number()).unwrap();
                    free.push(place);
                }
                let place = free.pop().unwrap();
                let asked = Asked::parse(&desc(op::WRITE, 0, sectors)).unwrap();
                prop_assert_eq!(tags.completed(place.number(), 0), Ok(Came::Request(place)));
                tags.take(place, &asked);
                taken.push((place, pool.get(asked.payload() as usize)));
            }
            prop_assert_eq!(pool.missed(), 0);
        }
    }
}
