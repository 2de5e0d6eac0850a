//! HELLO, the first bytes in each direction (PROTOCOL.md section 2); its layout is frozen for ever.

use super::bytes::{Fill, Take};
use super::crc32c;

/// Bytes of a HELLO without extension, which is what this version sends.
pub const HELLO_LEN: usize = 96;
/// Most bytes of a HELLO with its extension.
pub const HELLO_MAX: usize = 1024;
/// The first eight bytes of every HELLO.
pub const MAGIC: [u8; 8] = [0x44, 0x53, 0x54, 0x0D, 0x0A, 0x1A, 0x0A, 0x00];
/// Bytes after which the length of a HELLO is known.
pub const HELLO_HEAD: usize = 16;
/// Bytes of the name of an implementation.
pub const NAME_LEN: usize = 40;
/// The version that this crate implements.
pub const VERSION: u16 = 1;

/// Which side sent a HELLO.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// The side that attaches.
    Client = 0,
    /// The side that exports.
    Server = 1,
}

/// A HELLO without magic, length and CRC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Who sent it.
    pub role: Role,
    /// Lowest version spoken.
    pub lowest: u16,
    /// Highest version spoken.
    pub highest: u16,
    /// Feature bits offered.
    pub offered: u64,
    /// Feature bits without which the sender can't work; among those offered.
    pub required: u64,
    /// Random, new for each connection.
    pub nonce: [u8; 16],
    /// Name of the implementation as it stands on the wire; see `name()`.
    pub name: [u8; NAME_LEN],
}

/// What both sides of a connection will use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreed {
    /// The version.
    pub version: u16,
    /// The feature bits.
    pub features: u64,
}

/// Why a HELLO is refused; each closes the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HelloError {
    /// Not a DST peer.
    Magic,
    /// The length is below 96, above 1024, no multiple of 8, or not that of the bytes given.
    Length,
    /// The CRC doesn't match.
    Crc,
    /// No such role, or the peer has the same as we.
    Role,
    /// The ranges of versions have nothing in common, or one is empty.
    Version,
    /// A feature that one side requires is not offered by the other, or not by itself.
    Features,
}

impl HelloError {
    /// What is wrong, for a person.
    pub fn text(self) -> &'static str {
        match self {
            HelloError::Magic => "the peer does not speak DST",
            HelloError::Length => "bad length of HELLO",
            HelloError::Crc => "HELLO CRC mismatch",
            HelloError::Role => "wrong role in HELLO",
            HelloError::Version => "no common protocol version",
            HelloError::Features => "a required feature is not offered",
        }
    }
}

impl core::fmt::Display for HelloError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.text())
    }
}

impl core::error::Error for HelloError {}

impl Hello {
    /// The HELLO of this implementation: version 1, no features.
    ///
    /// `name` is cut at a character boundary to what fits.
    pub fn new(role: Role, nonce: [u8; 16], name: &str) -> Hello {
        let mut field = [0; NAME_LEN];
        let mut end = name.len().min(NAME_LEN);
        while !name.is_char_boundary(end) {
            end = end.saturating_sub(1);
        }
        Fill::new(&mut field).put(name.as_bytes().get(..end).unwrap_or_default());
        Hello {
            role,
            lowest: VERSION,
            highest: VERSION,
            offered: 0,
            required: 0,
            nonce,
            name: field,
        }
    }

    /// The name of the implementation, up to the first byte that is padding, a control character or not UTF-8.
    pub fn name(&self) -> &str {
        let text = match core::str::from_utf8(&self.name) {
            Ok(text) => text,
            Err(error) => self
                .name
                .get(..error.valid_up_to())
                .and_then(|good| core::str::from_utf8(good).ok())
                .unwrap_or_default(),
        };
        match text.char_indices().find(|(_, c)| c.is_control()) {
            Some((end, _)) => text.get(..end).unwrap_or_default(),
            None => text,
        }
    }

    /// How many bytes of HELLO there are in all, as far as the bytes so far tell: `HELLO_HEAD` until that many are there.
    ///
    /// A stream that can't become a HELLO is refused at its first wrong byte.
    pub fn needed(so_far: &[u8]) -> Result<usize, HelloError> {
        if so_far.iter().zip(&MAGIC).any(|(is, must)| is != must) {
            return Err(HelloError::Magic);
        }
        let mut take = Take::new(so_far);
        let (Some(_magic), Some(len), Some(_to_head)) =
            (take.array::<8>(), take.u16(), take.array::<6>())
        else {
            return Ok(HELLO_HEAD);
        };
        let len = usize::from(len);
        if !(HELLO_LEN..=HELLO_MAX).contains(&len) || len & 7 != 0 {
            return Err(HelloError::Length);
        }
        Ok(len)
    }

    /// Writes the HELLO, CRC included.
    pub fn encode(&self, out: &mut [u8; HELLO_LEN]) {
        let mut covered = [0; HELLO_LEN - 4];
        Fill::new(&mut covered)
            .put(&MAGIC)
            .put(&(HELLO_LEN as u16).to_le_bytes())
            .put(&[self.role as u8, 0])
            .put(&self.lowest.to_le_bytes())
            .put(&self.highest.to_le_bytes())
            .put(&self.offered.to_le_bytes())
            .put(&self.required.to_le_bytes())
            .put(&self.nonce)
            .put(&self.name);
        let crc = crc32c::of(&covered);
        Fill::new(out).put(&covered).put(&crc.to_le_bytes());
    }

    /// Reads a whole HELLO: exactly the bytes that `needed` asked for. The extension is ignored.
    pub fn decode(bytes: &[u8]) -> Result<Hello, HelloError> {
        if Hello::needed(bytes)? != bytes.len() {
            return Err(HelloError::Length);
        }
        let Some((covered, crc)) = bytes.split_last_chunk::<4>() else {
            return Err(HelloError::Length);
        };
        if crc32c::of(covered) != u32::from_le_bytes(*crc) {
            return Err(HelloError::Crc);
        }
        let Some((role, hello)) = Hello::fields(covered) else {
            return Err(HelloError::Length);
        };
        let role = match role {
            0 => Role::Client,
            1 => Role::Server,
            _ => return Err(HelloError::Role),
        };
        let hello = Hello { role, ..hello };
        if hello.lowest > hello.highest {
            return Err(HelloError::Version);
        }
        if hello.required & !hello.offered != 0 {
            return Err(HelloError::Features);
        }
        Ok(hello)
    }

    /// The code of the role, and everything else.
    fn fields(covered: &[u8]) -> Option<(u8, Hello)> {
        let mut take = Take::new(covered);
        take.array::<10>()?;
        let [role, _reserved] = take.array()?;
        let hello = Hello {
            role: Role::Client,
            lowest: take.u16()?,
            highest: take.u16()?,
            offered: take.u64()?,
            required: take.u64()?,
            nonce: take.array()?,
            name: take.array()?,
        };
        Some((role, hello))
    }

    /// What two HELLOs have in common; both sides come to the same.
    pub fn negotiate(ours: &Hello, theirs: &Hello) -> Result<Agreed, HelloError> {
        if ours.role == theirs.role {
            return Err(HelloError::Role);
        }
        let version = ours.highest.min(theirs.highest);
        if version < ours.lowest.max(theirs.lowest) {
            return Err(HelloError::Version);
        }
        let features = ours.offered & theirs.offered;
        if (ours.required | theirs.required) & !features != 0 {
            return Err(HelloError::Features);
        }
        Ok(Agreed { version, features })
    }
}
