//! Options that are tables: SLOTS and EXTENTS, 16 bytes an entry. A table is checked whole when it is read.

use super::super::bytes::{Fill, Take};
use super::super::header::MAX_OPTIONS;
use super::super::options::{OptionError, OptionWriter};
use super::super::status::Status;
use super::fixed::Value;
use super::number;

const ENTRY: usize = 16;

/// Most slots of a session: a SLOTS option that names them all fits into the reply to JOIN beside the others.
pub const MAX_SLOTS: u16 = 1000;

/// Most extents in one reply to BLOCK STATUS.
pub const MAX_EXTENTS: usize = (MAX_OPTIONS as usize - 8) / ENTRY;

/// Where the request of a slot stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SlotState {
    /// Received in full, not finished.
    InProgress = 1,
    /// Finished with the status.
    Done = 2,
}

/// What the server knows of one slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SlotEntry {
    /// Highest id seen in the slot.
    pub id: u64,
    /// The slot.
    pub slot: u16,
    /// Where the request stands.
    pub state: SlotState,
    /// Its outcome if done, else OK.
    pub status: Status,
}

impl SlotEntry {
    /// The entry as it stands on the wire.
    pub fn to_bytes(&self) -> [u8; 16] {
        let mut bytes = [0; ENTRY];
        Fill::new(&mut bytes)
            .put(&self.id.to_le_bytes())
            .put(&self.slot.to_le_bytes())
            .put(&[self.state as u8, 0])
            .put(&self.status.0.to_le_bytes())
            .zeroes();
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Option<SlotEntry> {
        let mut take = Take::new(bytes);
        let id = take.u64()?;
        let slot = take.u16()?;
        let [state, _reserved] = take.array()?;
        let status = Status(take.u16()?);
        let state = match state {
            1 => SlotState::InProgress,
            2 => SlotState::Done,
            _ => return None,
        };
        Some(SlotEntry {
            id,
            slot,
            state,
            status,
        })
    }
}

/// What a part of a range is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ExtentKind {
    /// Data.
    Data = 0,
    /// Reads as zeroes, space is allocated.
    Zeroes = 1,
    /// Reads as zeroes, no space is allocated.
    Hole = 2,
}

/// One part of a range; the first begins at the offset asked for, each other where the one before ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Extent {
    /// Length in bytes, not 0.
    pub length: u64,
    /// What it is.
    pub kind: ExtentKind,
}

impl Extent {
    /// The entry as it stands on the wire.
    pub fn to_bytes(&self) -> [u8; 16] {
        let mut bytes = [0; ENTRY];
        Fill::new(&mut bytes)
            .put(&self.length.to_le_bytes())
            .put(&(self.kind as u32).to_le_bytes())
            .zeroes();
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Option<Extent> {
        let mut take = Take::new(bytes);
        let length = take.u64()?;
        let kind = match take.u32()? {
            0 => ExtentKind::Data,
            1 => ExtentKind::Zeroes,
            2 => ExtentKind::Hole,
            _ => return None,
        };
        (length != 0).then_some(Extent { length, kind })
    }
}

macro_rules! table {
    ($(#[$doc:meta])* $name:ident, $entry:ident, $number:expr) => {
        $(#[$doc])*
        ///
        /// An iterator over its entries, in the order of the wire.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct $name<'a> {
            value: &'a [u8],
        }

        impl $name<'_> {
            /// Appends the option with these entries; `OptionError::Full` if they don't fit.
            pub fn put(
                out: &mut OptionWriter<'_>,
                entries: impl Iterator<Item = $entry> + Clone,
            ) -> Result<(), OptionError> {
                out.put_entries($number, false, entries.map(|entry| entry.to_bytes()))
            }
        }

        impl Iterator for $name<'_> {
            type Item = $entry;

            fn next(&mut self) -> Option<$entry> {
                let (entry, rest) = self.value.split_first_chunk::<ENTRY>()?;
                self.value = rest;
                $entry::from_bytes(entry)
            }

            fn size_hint(&self) -> (usize, Option<usize>) {
                let left = self.value.len() / ENTRY;
                (left, Some(left))
            }
        }

        impl ExactSizeIterator for $name<'_> {}

        impl<'a> Value<'a> for $name<'a> {
            const NUMBER: u16 = $number;

            fn write(&self, out: &mut OptionWriter<'_>) -> Result<(), OptionError> {
                out.put(Self::NUMBER, Self::CRITICAL, &[self.value])
            }

            fn read(value: &'a [u8]) -> Result<Self, OptionError> {
                let mut rest = value;
                while let Some((entry, tail)) = rest.split_first_chunk::<ENTRY>() {
                    if $entry::from_bytes(entry).is_none() {
                        return Err(OptionError::Value($number));
                    }
                    rest = tail;
                }
                if !rest.is_empty() {
                    return Err(OptionError::Length($number));
                }
                Ok($name { value })
            }
        }
    };
}

table!(
    /// SLOTS: what the server knows of the session's slots.
    Slots,
    SlotEntry,
    number::SLOTS
);

table!(
    /// EXTENTS: the parts of a range.
    Extents,
    Extent,
    number::EXTENTS
);
