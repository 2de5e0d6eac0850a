//! What all option values have in common, and the smallest of them.

use super::super::bytes::Take;
use super::super::options::{OptionError, OptionWriter};
use super::super::status::Outcome;
use super::number;

/// A value that one option carries.
pub trait Value<'a>: Sized {
    /// The option's number.
    const NUMBER: u16;

    /// Whether it is sent with the critical bit.
    const CRITICAL: bool = false;

    /// Appends the option.
    fn write(&self, out: &mut OptionWriter<'_>) -> Result<(), OptionError>;

    /// Reads the option's value; `OptionError::Length` or `Value` if it isn't one.
    fn read(value: &'a [u8]) -> Result<Self, OptionError>;
}

/// Appends an option of `V` with the value `parts`.
pub(super) fn put<'a, V: Value<'a>>(
    out: &mut OptionWriter<'_>,
    parts: &[&[u8]],
) -> Result<(), OptionError> {
    out.put(V::NUMBER, V::CRITICAL, parts)
}

/// Reads a value of a fixed length: `fields` must take every byte.
pub(super) fn read_fixed<'a, V: Value<'a>>(
    value: &'a [u8],
    fields: impl FnOnce(&mut Take<'a>) -> Option<V>,
) -> Result<V, OptionError> {
    let mut take = Take::new(value);
    match fields(&mut take) {
        Some(read) if take.rest().is_empty() => Ok(read),
        _ => Err(OptionError::Length(V::NUMBER)),
    }
}

/// NONCE: the nonce of the server's HELLO, sent back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nonce(pub [u8; 16]);

impl<'a> Value<'a> for Nonce {
    const NUMBER: u16 = number::NONCE;

    fn write(&self, out: &mut OptionWriter<'_>) -> Result<(), OptionError> {
        put::<Self>(out, &[&self.0])
    }

    fn read(value: &'a [u8]) -> Result<Self, OptionError> {
        read_fixed(value, |take| Some(Nonce(take.array()?)))
    }
}

/// WAIT: after how many milliseconds trying again may help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait(pub u32);

impl<'a> Value<'a> for Wait {
    const NUMBER: u16 = number::WAIT;

    fn write(&self, out: &mut OptionWriter<'_>) -> Result<(), OptionError> {
        put::<Self>(out, &[&self.0.to_le_bytes()])
    }

    fn read(value: &'a [u8]) -> Result<Self, OptionError> {
        read_fixed(value, |take| Some(Wait(take.u32()?)))
    }
}

impl<'a> Value<'a> for Outcome {
    const NUMBER: u16 = number::OUTCOME;

    fn write(&self, out: &mut OptionWriter<'_>) -> Result<(), OptionError> {
        put::<Self>(out, &[&[self.code()]])
    }

    fn read(value: &'a [u8]) -> Result<Self, OptionError> {
        let [code] = value else {
            return Err(OptionError::Length(number::OUTCOME));
        };
        Outcome::from_code(*code).ok_or(OptionError::Value(number::OUTCOME))
    }
}
