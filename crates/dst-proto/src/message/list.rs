//! LIST and its replies (PROTOCOL.md section 6.6).

use super::super::option::{number, ClientName, Listed, Value};
use super::super::options::{refuse_critical, OptionError, OptionReader, OptionWriter};
use super::set;

/// The options of LIST.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ListRequest<'a> {
    /// The client's name for people; empty if it was not sent.
    pub client: ClientName<'a>,
}

impl<'a> ListRequest<'a> {
    /// Writes the options; gives their length.
    pub fn encode(&self, out: &mut [u8]) -> Result<usize, OptionError> {
        let mut out = OptionWriter::new(out);
        self.client.write(&mut out)?;
        Ok(out.len())
    }

    /// Reads the options.
    pub fn decode(options: &'a [u8]) -> Result<Self, OptionError> {
        let mut client = None;
        for option in OptionReader::new(options) {
            let option = option?;
            match option.kind {
                number::CLIENT => set(&mut client, option.value)?,
                _ => refuse_critical(&option)?,
            }
        }
        Ok(ListRequest {
            client: client.unwrap_or_default(),
        })
    }
}

/// The options of one reply to LIST: an iterator over the exports in it. Checked whole by `decode`.
#[derive(Clone, Debug)]
pub struct ListReply<'a> {
    rest: OptionReader<'a>,
}

impl<'a> ListReply<'a> {
    /// Writes as many of `exports` as fit into one reply; gives the length of options, and leaves in `exports` what did
    /// not fit for a reply of its own. The caller sets MORE on all replies but the last.
    ///
    /// `OptionError::Full` if `out` has no room for even the first.
    pub fn encode<'e, I>(
        exports: &mut core::iter::Peekable<I>,
        out: &mut [u8],
    ) -> Result<usize, OptionError>
    where
        I: Iterator<Item = Listed<'e>>,
    {
        let mut out = OptionWriter::new(out);
        while let Some(export) = exports.peek() {
            match export.write(&mut out) {
                Ok(()) => {}
                Err(OptionError::Full) if !out.is_empty() => break,
                Err(error) => return Err(error),
            }
            exports.next();
        }
        Ok(out.len())
    }

    /// Checks the options.
    pub fn decode(options: &'a [u8]) -> Result<Self, OptionError> {
        for option in OptionReader::new(options) {
            let option = option?;
            match option.kind {
                number::LISTED => {
                    Listed::read(option.value)?;
                }
                _ => refuse_critical(&option)?,
            }
        }
        Ok(ListReply {
            rest: OptionReader::new(options),
        })
    }
}

impl<'a> Iterator for ListReply<'a> {
    type Item = Listed<'a>;

    fn next(&mut self) -> Option<Listed<'a>> {
        // `decode` has found every option readable, so an error here can't be and would only end the list.
        loop {
            let option = self.rest.next()?.ok()?;
            if option.kind == number::LISTED {
                return Listed::read(option.value).ok();
            }
        }
    }
}
