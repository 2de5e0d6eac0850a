//! OPEN and its reply (PROTOCOL.md section 6.1).

use super::super::header::MAX_PAYLOAD;
use super::super::option::{
    number, ClientName, DigestChoice, Digests, Expect, ExportName, ExportState, Geometry, Holder,
    Limits, Mode, Nonce, Retained, SessionGrant, Times, Value, MAX_SLOTS,
};
use super::super::options::{refuse_critical, OptionError, OptionReader, OptionWriter};
use super::{must, set};

/// The options of OPEN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenRequest<'a> {
    /// Which export.
    pub name: ExportName<'a>,
    /// The nonce of the server's HELLO.
    pub nonce: [u8; 16],
    /// What the session is to be allowed.
    pub mode: Mode,
    /// What the client can use.
    pub limits: Limits,
    /// What the client can check.
    pub digests: Digests,
    /// Who asks; must be there unless the mode is read-only.
    pub holder: Option<Holder>,
    /// The client's name for people; empty if it was not sent.
    pub client: ClientName<'a>,
    /// What must be unchanged since the last session.
    pub expect: Option<Expect>,
    /// What will be replayed.
    pub retained: Option<Retained>,
}

impl<'a> OpenRequest<'a> {
    /// Writes the options; gives their length.
    pub fn encode(&self, out: &mut [u8]) -> Result<usize, OptionError> {
        let mut out = OptionWriter::new(out);
        self.name.write(&mut out)?;
        Nonce(self.nonce).write(&mut out)?;
        self.mode.write(&mut out)?;
        self.limits.write(&mut out)?;
        self.digests.write(&mut out)?;
        if let Some(holder) = &self.holder {
            holder.write(&mut out)?;
        }
        self.client.write(&mut out)?;
        if let Some(expect) = &self.expect {
            expect.write(&mut out)?;
        }
        if let Some(retained) = &self.retained {
            retained.write(&mut out)?;
        }
        Ok(out.len())
    }

    /// Reads the options.
    pub fn decode(options: &'a [u8]) -> Result<Self, OptionError> {
        let (mut name, mut nonce, mut mode, mut limits) = (None, None, None, None);
        let (mut digests, mut holder, mut client) = (None, None, None);
        let (mut expect, mut retained) = (None, None);
        for option in OptionReader::new(options) {
            let option = option?;
            match option.kind {
                number::EXPORT_NAME => set(&mut name, option.value)?,
                number::NONCE => set::<Nonce>(&mut nonce, option.value)?,
                number::MODE => set(&mut mode, option.value)?,
                number::LIMITS => set(&mut limits, option.value)?,
                number::DIGESTS => set(&mut digests, option.value)?,
                number::HOLDER => set(&mut holder, option.value)?,
                number::CLIENT => set(&mut client, option.value)?,
                number::EXPECT => set(&mut expect, option.value)?,
                number::RETAINED => set(&mut retained, option.value)?,
                _ => refuse_critical(&option)?,
            }
        }
        let mode = must(mode)?;
        if mode == Mode::SoleWriter && holder.is_none() {
            return Err(OptionError::Missing(number::HOLDER));
        }
        Ok(OpenRequest {
            name: must(name)?,
            nonce: must(nonce)?.0,
            mode,
            limits: must(limits)?,
            digests: must(digests)?,
            holder,
            client: client.unwrap_or_default(),
            expect,
            retained,
        })
    }
}

/// The options of the reply to OPEN with status OK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// The fresh session.
    pub session: SessionGrant,
    /// Which content, in which state.
    pub export: ExportState,
    /// The shape of the export.
    pub geometry: Geometry,
    /// What the server grants: 2 to `MAX_SLOTS` slots, at least one connection, a payload of one logical block to
    /// `MAX_PAYLOAD`, a window above 0.
    pub limits: Limits,
    /// The digests that the session uses.
    pub digests: DigestChoice,
    /// Times of the session.
    pub times: Times,
}

impl Opened {
    /// Writes the options; gives their length.
    pub fn encode(&self, out: &mut [u8]) -> Result<usize, OptionError> {
        let mut out = OptionWriter::new(out);
        self.session.write(&mut out)?;
        self.export.write(&mut out)?;
        self.geometry.write(&mut out)?;
        self.limits.write(&mut out)?;
        self.digests.write(&mut out)?;
        self.times.write(&mut out)?;
        Ok(out.len())
    }

    /// Reads the options. Limits under which no session can work are refused.
    pub fn decode(options: &[u8]) -> Result<Self, OptionError> {
        let (mut session, mut export, mut geometry) = (None, None, None);
        let (mut limits, mut digests, mut times) = (None, None, None);
        for option in OptionReader::new(options) {
            let option = option?;
            match option.kind {
                number::SESSION => set(&mut session, option.value)?,
                number::EXPORT => set(&mut export, option.value)?,
                number::GEOMETRY => set(&mut geometry, option.value)?,
                number::LIMITS => set(&mut limits, option.value)?,
                number::DIGESTS => set(&mut digests, option.value)?,
                number::TIMES => set(&mut times, option.value)?,
                _ => refuse_critical(&option)?,
            }
        }
        let geometry: Geometry = must(geometry)?;
        let limits: Limits = must(limits)?;
        let usable = (2..=MAX_SLOTS).contains(&limits.slots)
            && limits.connections != 0
            && (geometry.logical_block..=MAX_PAYLOAD).contains(&limits.max_payload)
            && limits.window != 0;
        if !usable {
            return Err(OptionError::Value(number::LIMITS));
        }
        Ok(Opened {
            session: must(session)?,
            export: must(export)?,
            geometry,
            limits,
            digests: must(digests)?,
            times: must(times)?,
        })
    }
}
