//! Options about sessions and their connections: SESSION, JOIN, PROOF, and the reserved GROUP.

use super::super::bytes::Fill;
use super::super::options::{OptionError, OptionWriter};
use super::fixed::{put, read_fixed, Value};
use super::number;

/// SESSION: what the server gives a client that opened one. `Debug` leaves the secret out.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SessionGrant {
    /// Number, public.
    pub number: u64,
    /// Secret that proves at JOIN whose session it is.
    pub secret: [u8; 16],
}

impl core::fmt::Debug for SessionGrant {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("SessionGrant")
            .field("number", &self.number)
            .finish_non_exhaustive()
    }
}

impl<'a> Value<'a> for SessionGrant {
    const NUMBER: u16 = number::SESSION;

    fn write(&self, out: &mut OptionWriter<'_>) -> Result<(), OptionError> {
        put::<Self>(out, &[&self.number.to_le_bytes(), &self.secret])
    }

    fn read(value: &'a [u8]) -> Result<Self, OptionError> {
        read_fixed(value, |take| {
            Some(SessionGrant {
                number: take.u64()?,
                secret: take.array()?,
            })
        })
    }
}

/// JOIN: which connection of which session this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Join {
    /// Number of the session.
    pub session: u64,
    /// Counts up for each index; what is not above the highest seen is refused.
    pub generation: u32,
    /// Which of the session's connections.
    pub index: u16,
}

impl Join {
    /// The value as it stands on the wire, which the proof covers.
    pub fn to_bytes(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        Fill::new(&mut bytes)
            .put(&self.session.to_le_bytes())
            .put(&self.generation.to_le_bytes())
            .put(&self.index.to_le_bytes())
            .zeroes();
        bytes
    }
}

impl<'a> Value<'a> for Join {
    const NUMBER: u16 = number::JOIN;

    fn write(&self, out: &mut OptionWriter<'_>) -> Result<(), OptionError> {
        put::<Self>(out, &[&self.to_bytes()])
    }

    fn read(value: &'a [u8]) -> Result<Self, OptionError> {
        read_fixed(value, |take| {
            let join = Join {
                session: take.u64()?,
                generation: take.u32()?,
                index: take.u16()?,
            };
            take.u16()?;
            Some(join)
        })
    }
}

/// PROOF of knowing a session's secret; see `super::super::proof`. Compare with `super::super::proof::verify` only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proof(pub [u8; 32]);

impl<'a> Value<'a> for Proof {
    const NUMBER: u16 = number::PROOF;

    fn write(&self, out: &mut OptionWriter<'_>) -> Result<(), OptionError> {
        put::<Self>(out, &[&self.0])
    }

    fn read(value: &'a [u8]) -> Result<Self, OptionError> {
        read_fixed(value, |take| Some(Proof(take.array()?)))
    }
}

/// GROUP: reserved for atomic groups of writes; no frame of version 1 has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Group {
    /// Id of the group.
    pub id: u64,
    /// Which part of it.
    pub part: u32,
    /// Number of parts in the last one, else 0.
    pub last: u32,
}

impl<'a> Value<'a> for Group {
    const NUMBER: u16 = number::GROUP;
    const CRITICAL: bool = true;

    fn write(&self, out: &mut OptionWriter<'_>) -> Result<(), OptionError> {
        put::<Self>(
            out,
            &[
                &self.id.to_le_bytes(),
                &self.part.to_le_bytes(),
                &self.last.to_le_bytes(),
            ],
        )
    }

    fn read(value: &'a [u8]) -> Result<Self, OptionError> {
        read_fixed(value, |take| {
            Some(Group {
                id: take.u64()?,
                part: take.u32()?,
                last: take.u32()?,
            })
        })
    }
}
