//! Options of a frame: type, length, value, padding (PROTOCOL.md section 3.3).

use super::bytes::{padded, Fill, Take};
use super::header::MAX_OPTIONS;
use super::option::number;
use super::status::Status;

/// Bit 15 of the type: a receiver that doesn't know the option must refuse the frame.
const CRITICAL: u16 = 1 << 15;

/// Why options can't be written or are refused. Numbers are option types without the critical bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OptionError {
    /// Writing: no room, or a value longer than its type allows.
    Full,
    /// An option goes beyond the end of the options.
    Truncated,
    /// An option with the critical bit that is not defined for this frame.
    UnknownCritical(u16),
    /// An option occurs twice that may occur once.
    Duplicate(u16),
    /// An option that the frame must have is not there.
    Missing(u16),
    /// A value has a length that its type doesn't allow.
    Length(u16),
    /// A value is outside what its type allows.
    Value(u16),
}

impl OptionError {
    /// With which status a frame with such options is answered.
    pub fn status(self) -> Status {
        match self {
            OptionError::UnknownCritical(_) => Status::UNSUPPORTED,
            OptionError::Value(_) => Status::INVALID,
            _ => Status::PROTOCOL,
        }
    }

    /// The option concerned, if it is one.
    pub fn number(self) -> Option<u16> {
        match self {
            OptionError::Full | OptionError::Truncated => None,
            OptionError::UnknownCritical(n)
            | OptionError::Duplicate(n)
            | OptionError::Missing(n)
            | OptionError::Length(n)
            | OptionError::Value(n) => Some(n),
        }
    }

    /// What is wrong, for a person.
    pub fn text(self) -> &'static str {
        match self {
            OptionError::Full => "options don't fit",
            OptionError::Truncated => "truncated option",
            OptionError::UnknownCritical(_) => "unknown critical option",
            OptionError::Duplicate(_) => "option occurs twice",
            OptionError::Missing(_) => "option missing",
            OptionError::Length(_) => "bad length of option",
            OptionError::Value(_) => "bad value of option",
        }
    }
}

impl core::fmt::Display for OptionError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.text())?;
        if let Some(name) = self.number().map(number::name) {
            if name != number::UNKNOWN {
                f.write_str(": ")?;
                f.write_str(name)?;
            }
        }
        Ok(())
    }
}

impl core::error::Error for OptionError {}

/// Appends options to a buffer.
///
/// After an error nothing of the option that failed is there, and the ones before are whole.
pub struct OptionWriter<'b> {
    rest: &'b mut [u8],
    used: usize,
}

impl<'b> OptionWriter<'b> {
    /// Into `buf`, of which no more is used than a frame may have of options.
    pub fn new(buf: &'b mut [u8]) -> Self {
        let len = buf.len().min(usize::from(MAX_OPTIONS));
        let (rest, _) = buf.split_at_mut_checked(len).unwrap_or_default();
        OptionWriter { rest, used: 0 }
    }

    /// Bytes written so far, a multiple of 8: the length of options for the header.
    #[inline]
    pub fn len(&self) -> usize {
        self.used
    }

    /// Whether nothing has been written.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// Appends an option whose value is `parts` one after another.
    pub fn put(&mut self, kind: u16, critical: bool, parts: &[&[u8]]) -> Result<(), OptionError> {
        let mut len = 0usize;
        for part in parts {
            len = len.checked_add(part.len()).ok_or(OptionError::Full)?;
        }
        let mut value = self.reserve(kind, critical, len)?;
        for part in parts {
            value.put(part);
        }
        value.zeroes();
        Ok(())
    }

    /// Appends an option whose value is `entries` one after another.
    pub fn put_entries<const N: usize>(
        &mut self,
        kind: u16,
        critical: bool,
        entries: impl Iterator<Item = [u8; N]> + Clone,
    ) -> Result<(), OptionError> {
        // Ends early where the value would be longer than all options may be. (`count` could overflow, and would panic.)
        let mut len = 0usize;
        for _ in entries.clone() {
            len = len.saturating_add(N);
            if len > usize::from(MAX_OPTIONS) {
                return Err(OptionError::Full);
            }
        }
        let mut value = self.reserve(kind, critical, len)?;
        for entry in entries {
            value.put(&entry);
        }
        value.zeroes();
        Ok(())
    }

    /// Takes room for an option with a value of `len` bytes and gives back that of value and padding.
    fn reserve(&mut self, kind: u16, critical: bool, len: usize) -> Result<Fill<'_>, OptionError> {
        let wire_len = u16::try_from(len).map_err(|_| OptionError::Full)?;
        let total = len
            .checked_add(4)
            .and_then(padded)
            .ok_or(OptionError::Full)?;
        if total > self.rest.len() {
            return Err(OptionError::Full);
        }
        let used = self.used.checked_add(total).ok_or(OptionError::Full)?;
        let (room, rest) = core::mem::take(&mut self.rest)
            .split_at_mut_checked(total)
            .ok_or(OptionError::Full)?;
        self.rest = rest;
        self.used = used;
        let kind = if critical { kind | CRITICAL } else { kind };
        let mut fill = Fill::new(room);
        fill.put(&kind.to_le_bytes()).put(&wire_len.to_le_bytes());
        Ok(fill)
    }
}

/// One option as it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawOption<'b> {
    /// Type without the critical bit.
    pub kind: u16,
    /// Whether a receiver that doesn't know it must refuse the frame.
    pub critical: bool,
    /// Value without padding.
    pub value: &'b [u8],
}

/// Goes through the options of a frame; ends after the first error.
#[derive(Clone, Debug)]
pub struct OptionReader<'b> {
    rest: &'b [u8],
}

impl<'b> OptionReader<'b> {
    /// Over the options of a frame, padding included.
    pub fn new(options: &'b [u8]) -> Self {
        OptionReader { rest: options }
    }

    fn step(&mut self) -> Option<RawOption<'b>> {
        let mut take = Take::new(core::mem::take(&mut self.rest));
        let kind = take.u16()?;
        let len = usize::from(take.u16()?);
        let value = take.slice(len)?;
        // Type and length take 4 bytes, so this is what is missing to a multiple of 8.
        take.slice(len.wrapping_add(4).wrapping_neg() & 7)?;
        self.rest = take.rest();
        Some(RawOption {
            kind: kind & !CRITICAL,
            critical: kind & CRITICAL != 0,
            value,
        })
    }
}

impl<'b> Iterator for OptionReader<'b> {
    type Item = Result<RawOption<'b>, OptionError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        Some(self.step().ok_or(OptionError::Truncated))
    }
}

/// Checks the options of a frame for which version 1 defines none: well formed and none critical.
pub fn check_none(options: &[u8]) -> Result<(), OptionError> {
    for option in OptionReader::new(options) {
        refuse_critical(&option?)?;
    }
    Ok(())
}

/// What to do with an option that is not defined for the frame: refuse it if it is critical, else nothing.
pub(super) fn refuse_critical(option: &RawOption<'_>) -> Result<(), OptionError> {
    if option.critical {
        Err(OptionError::UnknownCritical(option.kind))
    } else {
        Ok(())
    }
}
