//! Options that describe an export: EXPORT, GEOMETRY, LISTED.

use super::super::bytes::Take;
use super::super::flags::GeometryFlags;
use super::super::options::{OptionError, OptionWriter};
use super::fixed::{put, read_fixed, Value};
use super::number;
use super::text::{ClientName, ExportName};

/// EXPORT: which content this is, and in which state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ExportState {
    /// Stays with the content.
    pub id: [u8; 16],
    /// Changes when the server may have lost what it had not flushed.
    pub incarnation: [u8; 16],
    /// Rises with every change of lease holder.
    pub epoch: u64,
}

impl<'a> Value<'a> for ExportState {
    const NUMBER: u16 = number::EXPORT;

    fn write(&self, out: &mut OptionWriter<'_>) -> Result<(), OptionError> {
        put::<Self>(
            out,
            &[&self.id, &self.incarnation, &self.epoch.to_le_bytes()],
        )
    }

    fn read(value: &'a [u8]) -> Result<Self, OptionError> {
        read_fixed(value, |take| {
            Some(ExportState {
                id: take.array()?,
                incarnation: take.array()?,
                epoch: take.u64()?,
            })
        })
    }
}

/// GEOMETRY: the shape of an export; all numbers are bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Geometry {
    /// Size, a multiple of the logical block.
    pub size: u64,
    /// Unit of offsets and lengths: a power of two, 512 to 65536.
    pub logical_block: u32,
    /// Unit below which a write costs a read: a power of two, not below the logical block.
    pub physical_block: u32,
    /// What the export is and can do.
    pub flags: GeometryFlags,
    /// Unit in which DISCARD frees space; 0 if unknown.
    pub discard_granularity: u32,
    /// Largest write that is whole or not there after a crash; 0 for none.
    pub atomic_limit: u32,
    /// Largest write that is undone when it fails; 0 for none.
    pub rollback_limit: u32,
}

impl Geometry {
    /// Smallest and largest logical block, in bytes.
    pub const LOGICAL_BLOCK: core::ops::RangeInclusive<u32> = 512..=65536;

    /// Whether block sizes and size are what the fields' comments say.
    pub fn is_valid(&self) -> bool {
        self.logical_block.is_power_of_two()
            && Self::LOGICAL_BLOCK.contains(&self.logical_block)
            && self.physical_block.is_power_of_two()
            && self.physical_block >= self.logical_block
            && self.is_aligned(self.size)
    }

    /// Whether `bytes` is a multiple of the logical block; `is_valid` must hold.
    #[inline]
    pub fn is_aligned(&self, bytes: u64) -> bool {
        bytes & u64::from(self.logical_block.wrapping_sub(1)) == 0
    }
}

impl<'a> Value<'a> for Geometry {
    const NUMBER: u16 = number::GEOMETRY;

    fn write(&self, out: &mut OptionWriter<'_>) -> Result<(), OptionError> {
        put::<Self>(
            out,
            &[
                &self.size.to_le_bytes(),
                &self.logical_block.to_le_bytes(),
                &self.physical_block.to_le_bytes(),
                &self.flags.0.to_le_bytes(),
                &self.discard_granularity.to_le_bytes(),
                &self.atomic_limit.to_le_bytes(),
                &self.rollback_limit.to_le_bytes(),
            ],
        )
    }

    fn read(value: &'a [u8]) -> Result<Self, OptionError> {
        let geometry = read_fixed(value, |take| {
            Some(Geometry {
                size: take.u64()?,
                logical_block: take.u32()?,
                physical_block: take.u32()?,
                flags: GeometryFlags(take.u32()?),
                discard_granularity: take.u32()?,
                atomic_limit: take.u32()?,
                rollback_limit: take.u32()?,
            })
        })?;
        if !geometry.is_valid() {
            return Err(OptionError::Value(number::GEOMETRY));
        }
        Ok(geometry)
    }
}

/// LISTED: one export in the answer to LIST.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Listed<'a> {
    /// Size in bytes.
    pub size: u64,
    /// Logical block in bytes.
    pub logical_block: u32,
    /// As in GEOMETRY.
    pub flags: GeometryFlags,
    /// Name of the export.
    pub name: ExportName<'a>,
    /// Name of the client that holds the lease; empty if there is none.
    pub writer: ClientName<'a>,
}

impl<'a> Value<'a> for Listed<'a> {
    const NUMBER: u16 = number::LISTED;

    fn write(&self, out: &mut OptionWriter<'_>) -> Result<(), OptionError> {
        let name = self.name.as_str().as_bytes();
        let writer = self.writer.as_str().as_bytes();
        // The limits of the two types keep both lengths below 256.
        let lengths = [name.len() as u8, writer.len() as u8];
        put::<Self>(
            out,
            &[
                &self.size.to_le_bytes(),
                &self.logical_block.to_le_bytes(),
                &self.flags.0.to_le_bytes(),
                &lengths,
                &[0; 6],
                name,
                writer,
            ],
        )
    }

    fn read(value: &'a [u8]) -> Result<Self, OptionError> {
        const BAD: OptionError = OptionError::Length(number::LISTED);
        let mut take = Take::new(value);
        let (Some(size), Some(logical_block), Some(flags)) = (take.u64(), take.u32(), take.u32())
        else {
            return Err(BAD);
        };
        let Some([name_len, writer_len, _, _, _, _, _, _]) = take.array() else {
            return Err(BAD);
        };
        let (Some(name), Some(writer), []) = (
            take.slice(usize::from(name_len)),
            take.slice(usize::from(writer_len)),
            take.rest(),
        ) else {
            return Err(BAD);
        };
        let (Ok(name), Ok(writer)) = (ExportName::read(name), ClientName::read(writer)) else {
            return Err(OptionError::Value(number::LISTED));
        };
        Ok(Listed {
            size,
            logical_block,
            flags: GeometryFlags(flags),
            name,
            writer,
        })
    }
}
