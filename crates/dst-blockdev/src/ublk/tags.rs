//! The tags of a queue, sans I/O: whose turn it is on each, and what a request asks for.
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

/// Bytes of reads and writes with us from which on no more requests are taken: what a server gives credit for, and more.
/// With one more request of the largest size it is within [`crate::IN_FLIGHT`].
const FULL: u64 = 32 << 20;

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
    Request,
    /// The tag is gone.
    Nothing,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Tags {
    states: Vec<State>,
    gone: usize,
    /// Bytes of payload of all requests with us.
    bytes: u64,
}

impl Tags {
    /// `depth` tags, all fetching.
    pub(super) fn new(depth: u16) -> Tags {
        Tags {
            states: vec![State::Fetching; usize::from(depth)],
            gone: 0,
            bytes: 0,
        }
    }

    /// A command has completed with `result`. After `Came::Request` the request is to be read and [`Tags::take`] to be
    /// called.
    ///
    /// # Errors
    /// The driver does not do what it says.
    pub(super) fn completed(&mut self, tag: u64, result: i32) -> Result<Came, String> {
        let state = usize::try_from(tag)
            .ok()
            .and_then(|tag| self.states.get_mut(tag));
        let Some(state @ State::Fetching) = state else {
            return Err(format!("the driver answered on tag {tag} out of turn"));
        };
        if result == 0 {
            // Until its descriptor has been read it is one that fails.
            *state = State::Taken(Taken {
                reads: false,
                payload: 0,
            });
            return Ok(Came::Request);
        }
        *state = State::Gone;
        self.gone += 1;
        // What the driver ends commands with when the disk goes (`UBLK_IO_RES_ABORT`).
        if result == -Errno::NODEV.raw_os_error() {
            return Ok(Came::Nothing);
        }
        Err(format!(
            "the driver refused a command on tag {tag}: {}",
            std::io::Error::from_raw_os_error(-result)
        ))
    }

    /// Notes what the request on a tag asks for.
    pub(super) fn take(&mut self, tag: u16, asked: &Asked) {
        if let Some(State::Taken(taken)) = self.states.get_mut(usize::from(tag)) {
            self.bytes -= u64::from(taken.payload);
            *taken = Taken {
                reads: matches!(asked, Asked::Read { .. }),
                payload: asked.payload(),
            };
            self.bytes += u64::from(taken.payload);
        }
    }

    /// The request on a tag is answered: the tag is fetching again, which the caller makes true. `None`: no request is
    /// there.
    pub(super) fn answer(&mut self, tag: u64) -> Option<(u16, Taken)> {
        let at = u16::try_from(tag).ok()?;
        let state = self.states.get_mut(usize::from(at))?;
        let State::Taken(taken) = *state else {
            return None;
        };
        *state = State::Fetching;
        self.bytes -= u64::from(taken.payload);
        Some((at, taken))
    }

    /// The tags with a request on them.
    pub(super) fn taken(&self) -> impl Iterator<Item = u16> + '_ {
        (0..).zip(&self.states).filter_map(|(tag, state)| {
            let taken = matches!(state, State::Taken(_));
            taken.then_some(tag)
        })
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

    #[test]
    fn a_tag_goes_round_and_is_answered_once() {
        let mut tags = Tags::new(2);
        assert_eq!(tags.answer(1), None);
        assert_eq!(tags.completed(1, 0), Ok(Came::Request));
        let asked = Asked::parse(&desc(op::READ, 0, 8)).unwrap();
        tags.take(1, &asked);
        assert!(tags.completed(1, 0).is_err());
        assert_eq!(tags.taken().collect::<Vec<_>>(), [1]);
        let (tag, taken) = tags.answer(1).unwrap();
        assert_eq!((tag, taken.reads, taken.payload), (1, true, 4096));
        assert_eq!(tags.answer(1), None);
        assert_eq!(tags.taken().count(), 0);
        assert_eq!(tags.completed(1, 0), Ok(Came::Request));
        tags.take(1, &Asked::Flush);
        let (_, taken) = tags.answer(1).unwrap();
        assert_eq!((taken.reads, taken.payload), (false, 0));
    }

    #[test]
    fn it_is_full_by_bytes_until_something_is_answered() {
        let mut tags = Tags::new(33);
        let asked = Asked::parse(&desc(op::WRITE, 0, 2048)).unwrap();
        for tag in 0..33 {
            assert_eq!(tags.is_full(), tag == 32);
            assert_eq!(tags.completed(u64::from(tag), 0), Ok(Came::Request));
            tags.take(tag, &asked);
        }
        tags.answer(0).unwrap();
        assert!(tags.is_full());
        tags.answer(1).unwrap();
        assert!(!tags.is_full());
    }

    #[test]
    fn tags_are_gone_when_the_driver_lets_them_go() {
        let abort = -Errno::NODEV.raw_os_error();
        let mut tags = Tags::new(2);
        assert_eq!(tags.completed(0, abort), Ok(Came::Nothing));
        assert!(!tags.all_gone());
        assert!(tags.completed(0, 0).is_err());
        assert_eq!(tags.completed(1, 0), Ok(Came::Request));
        assert!(!tags.all_gone());
        tags.answer(1).unwrap();
        assert_eq!(tags.completed(1, abort), Ok(Came::Nothing));
        assert!(tags.all_gone());
    }

    #[test]
    fn another_error_or_tag_is_a_broken_driver() {
        let mut tags = Tags::new(1);
        assert!(tags.completed(1, 0).is_err());
        assert!(tags.completed(u64::MAX, 0).is_err());
        assert!(tags.completed(0, -22).is_err());
        assert!(tags.all_gone());
        assert_eq!(tags.answer(u64::MAX), None);
    }

    proptest! {
        #[test]
        fn no_descriptor_makes_it_panic(flags: u32, start: u64, count: u32) {
            if let Ok(asked) = Asked::parse(&desc(flags, start, count)) {
                let mut tags = Tags::new(1);
                prop_assert_eq!(tags.completed(0, 0), Ok(Came::Request));
                tags.take(0, &asked);
                prop_assert!(tags.answer(0).unwrap().1.payload <= LONGEST_PAYLOAD);
            }
        }
    }
}
