//! JOIN and its reply (PROTOCOL.md section 6.3).

use super::super::option::{
    number, ExportState, Geometry, Join, Nonce, Proof, SlotEntry, Slots, Value,
};
use super::super::options::{refuse_critical, OptionError, OptionReader, OptionWriter};
use super::{must, set};

/// The options of JOIN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JoinRequest {
    /// The nonce of the server's HELLO.
    pub nonce: [u8; 16],
    /// Which connection of which session.
    pub join: Join,
    /// Proof of knowing the session's secret.
    pub proof: Proof,
}

impl JoinRequest {
    /// Writes the options; gives their length.
    pub fn encode(&self, out: &mut [u8]) -> Result<usize, OptionError> {
        let mut out = OptionWriter::new(out);
        Nonce(self.nonce).write(&mut out)?;
        self.join.write(&mut out)?;
        self.proof.write(&mut out)?;
        Ok(out.len())
    }

    /// Reads the options.
    pub fn decode(options: &[u8]) -> Result<Self, OptionError> {
        let (mut nonce, mut join, mut proof) = (None, None, None);
        for option in OptionReader::new(options) {
            let option = option?;
            match option.kind {
                number::NONCE => set::<Nonce>(&mut nonce, option.value)?,
                number::JOIN => set(&mut join, option.value)?,
                number::PROOF => set(&mut proof, option.value)?,
                _ => refuse_critical(&option)?,
            }
        }
        Ok(JoinRequest {
            nonce: must(nonce)?.0,
            join: must(join)?,
            proof: must(proof)?,
        })
    }
}

/// The options of the reply to JOIN with status OK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined<'a> {
    /// Which content, in which state.
    pub export: ExportState,
    /// The shape of the export.
    pub geometry: Geometry,
    /// Every slot whose id is above the client's acknowledged-up-to mark.
    pub slots: Slots<'a>,
}

impl<'a> Joined<'a> {
    /// Writes the options; gives their length.
    pub fn encode(&self, out: &mut [u8]) -> Result<usize, OptionError> {
        Joined::encode_from(&self.export, &self.geometry, self.slots.clone(), out)
    }

    /// Writes the options with slots from a table of the caller's; gives their length.
    ///
    /// `slots` is gone through twice and must give the same both times.
    pub fn encode_from(
        export: &ExportState,
        geometry: &Geometry,
        slots: impl Iterator<Item = SlotEntry> + Clone,
        out: &mut [u8],
    ) -> Result<usize, OptionError> {
        let mut out = OptionWriter::new(out);
        export.write(&mut out)?;
        geometry.write(&mut out)?;
        Slots::put(&mut out, slots)?;
        Ok(out.len())
    }

    /// Reads the options.
    pub fn decode(options: &'a [u8]) -> Result<Self, OptionError> {
        let (mut export, mut geometry, mut slots) = (None, None, None);
        for option in OptionReader::new(options) {
            let option = option?;
            match option.kind {
                number::EXPORT => set(&mut export, option.value)?,
                number::GEOMETRY => set(&mut geometry, option.value)?,
                number::SLOTS => set(&mut slots, option.value)?,
                _ => refuse_critical(&option)?,
            }
        }
        Ok(Joined {
            export: must(export)?,
            geometry: must(geometry)?,
            slots: must(slots)?,
        })
    }
}
