//! The other frames with options: refusals and ERROR, CHANGED, and the replies to ABORT and BLOCK STATUS.

use super::super::option::{number, Extent, Extents, Geometry, Message, Value, Wait};
use super::super::options::{refuse_critical, OptionError, OptionReader, OptionWriter};
use super::super::status::Outcome;
use super::{must, set};

/// The options of ERROR and of replies with a status other than OK.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Refusal<'a> {
    /// Why, for a person; empty if it was not sent.
    pub message: Message<'a>,
    /// After how many milliseconds trying again may help.
    pub wait_ms: Option<u32>,
}

impl<'a> Refusal<'a> {
    /// Writes the options; gives their length.
    pub fn encode(&self, out: &mut [u8]) -> Result<usize, OptionError> {
        let mut out = OptionWriter::new(out);
        self.message.write(&mut out)?;
        if let Some(ms) = self.wait_ms {
            Wait(ms).write(&mut out)?;
        }
        Ok(out.len())
    }

    /// Reads the options. Whatever is wrong with them, the status in the header stands.
    pub fn decode(options: &'a [u8]) -> Result<Self, OptionError> {
        let (mut message, mut wait) = (None, None);
        for option in OptionReader::new(options) {
            let option = option?;
            match option.kind {
                number::MESSAGE => set(&mut message, option.value)?,
                number::WAIT => set::<Wait>(&mut wait, option.value)?,
                _ => refuse_critical(&option)?,
            }
        }
        Ok(Refusal {
            message: message.unwrap_or_default(),
            wait_ms: wait.map(|wait| wait.0),
        })
    }
}

/// The options of a frame that has exactly one.
fn decode_one<'a, V: Value<'a>>(options: &'a [u8]) -> Result<V, OptionError> {
    let mut found = None;
    for option in OptionReader::new(options) {
        let option = option?;
        if option.kind == V::NUMBER {
            set(&mut found, option.value)?;
        } else {
            refuse_critical(&option)?;
        }
    }
    must(found)
}

/// The options of CHANGED.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Changed {
    /// The new shape of the export.
    pub geometry: Geometry,
}

impl Changed {
    /// Writes the options; gives their length.
    pub fn encode(&self, out: &mut [u8]) -> Result<usize, OptionError> {
        let mut out = OptionWriter::new(out);
        self.geometry.write(&mut out)?;
        Ok(out.len())
    }

    /// Reads the options.
    pub fn decode(options: &[u8]) -> Result<Self, OptionError> {
        Ok(Changed {
            geometry: decode_one(options)?,
        })
    }
}

/// The options of the reply to ABORT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Aborted {
    /// What became of the target.
    pub outcome: Outcome,
}

impl Aborted {
    /// Writes the options; gives their length.
    pub fn encode(&self, out: &mut [u8]) -> Result<usize, OptionError> {
        let mut out = OptionWriter::new(out);
        self.outcome.write(&mut out)?;
        Ok(out.len())
    }

    /// Reads the options.
    pub fn decode(options: &[u8]) -> Result<Self, OptionError> {
        Ok(Aborted {
            outcome: decode_one(options)?,
        })
    }
}

/// The options of the reply to BLOCK STATUS with status OK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockStatus<'a> {
    /// The parts of the range, from its beginning; they may cover less than was asked.
    pub extents: Extents<'a>,
}

impl<'a> BlockStatus<'a> {
    /// Writes the options with extents from the caller, at most `MAX_EXTENTS`; gives their length.
    ///
    /// `extents` is gone through twice and must give the same both times.
    pub fn encode_from(
        extents: impl Iterator<Item = Extent> + Clone,
        out: &mut [u8],
    ) -> Result<usize, OptionError> {
        let mut out = OptionWriter::new(out);
        Extents::put(&mut out, extents)?;
        Ok(out.len())
    }

    /// Reads the options.
    pub fn decode(options: &'a [u8]) -> Result<Self, OptionError> {
        Ok(BlockStatus {
            extents: decode_one(options)?,
        })
    }
}
