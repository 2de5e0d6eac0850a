//! Options by which a client says who it is and what it had: HOLDER, MODE, EXPECT, RETAINED.

use super::super::options::{OptionError, OptionWriter};
use super::fixed::{put, read_fixed, Value};
use super::number;

/// HOLDER: who asks for the lease; any change of the three parts is a change of holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Holder {
    /// The key's, or before there are keys a random one of the client's state directory.
    pub identity: [u8; 16],
    /// Of the client's boot.
    pub boot: [u8; 16],
    /// Random for each attach.
    pub instance: [u8; 16],
}

impl<'a> Value<'a> for Holder {
    const NUMBER: u16 = number::HOLDER;

    fn write(&self, out: &mut OptionWriter<'_>) -> Result<(), OptionError> {
        put::<Self>(out, &[&self.identity, &self.boot, &self.instance])
    }

    fn read(value: &'a [u8]) -> Result<Self, OptionError> {
        read_fixed(value, |take| {
            Some(Holder {
                identity: take.array()?,
                boot: take.array()?,
                instance: take.array()?,
            })
        })
    }
}

/// MODE: what a session may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Only read.
    ReadOnly = 0,
    /// Write, and nobody else may.
    SoleWriter = 1,
    /// Write beside others; reserved, UNSUPPORTED in version 1.
    SharedWriters = 2,
}

impl<'a> Value<'a> for Mode {
    const NUMBER: u16 = number::MODE;

    fn write(&self, out: &mut OptionWriter<'_>) -> Result<(), OptionError> {
        put::<Self>(out, &[&[*self as u8]])
    }

    fn read(value: &'a [u8]) -> Result<Self, OptionError> {
        match value {
            [0] => Ok(Mode::ReadOnly),
            [1] => Ok(Mode::SoleWriter),
            [2] => Ok(Mode::SharedWriters),
            [_] => Err(OptionError::Value(number::MODE)),
            _ => Err(OptionError::Length(number::MODE)),
        }
    }
}

/// EXPECT: what must be unchanged since the client's last session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Expect {
    /// Id of the export.
    pub export: [u8; 16],
    /// Epoch of the lease.
    pub epoch: u64,
}

impl<'a> Value<'a> for Expect {
    const NUMBER: u16 = number::EXPECT;

    fn write(&self, out: &mut OptionWriter<'_>) -> Result<(), OptionError> {
        put::<Self>(out, &[&self.export, &self.epoch.to_le_bytes()])
    }

    fn read(value: &'a [u8]) -> Result<Self, OptionError> {
        read_fixed(value, |take| {
            Some(Expect {
                export: take.array()?,
                epoch: take.u64()?,
            })
        })
    }
}

/// RETAINED: what the client will replay in the fresh session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Retained {
    /// Writes.
    pub entries: u32,
    /// Bytes of their payloads.
    pub bytes: u64,
}

impl<'a> Value<'a> for Retained {
    const NUMBER: u16 = number::RETAINED;

    fn write(&self, out: &mut OptionWriter<'_>) -> Result<(), OptionError> {
        let entries = self.entries.to_le_bytes();
        put::<Self>(out, &[&entries, &[0; 4], &self.bytes.to_le_bytes()])
    }

    fn read(value: &'a [u8]) -> Result<Self, OptionError> {
        read_fixed(value, |take| {
            let entries = take.u32()?;
            take.u32()?;
            Some(Retained {
                entries,
                bytes: take.u64()?,
            })
        })
    }
}
