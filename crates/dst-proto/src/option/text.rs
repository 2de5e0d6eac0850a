//! Options that are text: EXPORT_NAME, MESSAGE, CLIENT.

use super::super::options::{OptionError, OptionWriter};
use super::fixed::{put, Value};
use super::number;

/// EXPORT_NAME: 1 to 255 bytes, no control characters, no `/`, neither `.` nor `..`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ExportName<'a>(&'a str);

impl<'a> ExportName<'a> {
    /// Most bytes of a name.
    pub const MAX: usize = 255;

    /// `text` as a name, if it can be one.
    pub fn new(text: &'a str) -> Option<Self> {
        let good = !matches!(text, "" | "." | "..")
            && text.len() <= Self::MAX
            && !text.chars().any(|c| c.is_control() || c == '/');
        good.then_some(ExportName(text))
    }

    /// The name.
    pub fn as_str(&self) -> &'a str {
        self.0
    }
}

impl<'a> Value<'a> for ExportName<'a> {
    const NUMBER: u16 = number::EXPORT_NAME;

    fn write(&self, out: &mut OptionWriter<'_>) -> Result<(), OptionError> {
        put::<Self>(out, &[self.0.as_bytes()])
    }

    fn read(value: &'a [u8]) -> Result<Self, OptionError> {
        core::str::from_utf8(value)
            .ok()
            .and_then(ExportName::new)
            .ok_or(OptionError::Value(number::EXPORT_NAME))
    }
}

/// CLIENT: name of the client for people, at most 64 bytes, no control characters; may be empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ClientName<'a>(&'a str);

impl<'a> ClientName<'a> {
    /// Most bytes of a name.
    pub const MAX: usize = 64;

    /// `text` as a name, if it can be one.
    pub fn new(text: &'a str) -> Option<Self> {
        let good = text.len() <= Self::MAX && !text.chars().any(|c| c.is_control());
        good.then_some(ClientName(text))
    }

    /// The name.
    pub fn as_str(&self) -> &'a str {
        self.0
    }
}

impl<'a> Value<'a> for ClientName<'a> {
    const NUMBER: u16 = number::CLIENT;

    fn write(&self, out: &mut OptionWriter<'_>) -> Result<(), OptionError> {
        put::<Self>(out, &[self.0.as_bytes()])
    }

    fn read(value: &'a [u8]) -> Result<Self, OptionError> {
        core::str::from_utf8(value)
            .ok()
            .and_then(ClientName::new)
            .ok_or(OptionError::Value(number::CLIENT))
    }
}

/// MESSAGE: text for a person, at most 1024 bytes.
///
/// It comes from the peer: `Display` puts U+FFFD for control characters, so that it can be shown on a terminal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Message<'a>(&'a str);

impl<'a> Message<'a> {
    /// Most bytes of a message.
    pub const MAX: usize = 1024;

    /// `text`, cut at a character boundary to what fits.
    pub fn new(text: &'a str) -> Self {
        let mut end = text.len().min(Self::MAX);
        while !text.is_char_boundary(end) {
            end = end.saturating_sub(1);
        }
        Message(text.get(..end).unwrap_or_default())
    }

    /// The text as it came.
    pub fn as_str(&self) -> &'a str {
        self.0
    }
}

impl core::fmt::Display for Message<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        use core::fmt::Write;
        for c in self.0.chars() {
            f.write_char(if c.is_control() { '\u{FFFD}' } else { c })?;
        }
        Ok(())
    }
}

impl<'a> Value<'a> for Message<'a> {
    const NUMBER: u16 = number::MESSAGE;

    fn write(&self, out: &mut OptionWriter<'_>) -> Result<(), OptionError> {
        put::<Self>(out, &[self.0.as_bytes()])
    }

    fn read(value: &'a [u8]) -> Result<Self, OptionError> {
        if value.len() > Self::MAX {
            return Err(OptionError::Length(number::MESSAGE));
        }
        core::str::from_utf8(value)
            .map(Message)
            .map_err(|_| OptionError::Value(number::MESSAGE))
    }
}
