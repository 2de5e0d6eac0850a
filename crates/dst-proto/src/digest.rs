//! Payload digests, one for each granule, seeded with the export offset (PROTOCOL.md section 3.4).
//!
//! The digests here are portable: they serve the kernel, tests, and as the reference for faster ones.

use super::blake3::Hasher;
use super::bytes::padded;
use super::crc32c::Crc32c;
use super::crc64nvme::Crc64Nvme;
use super::header::MAX_PAYLOAD;

/// The granule unless another is negotiated, in bytes.
pub const DEFAULT_GRANULE: u32 = 4096;
/// Smallest granule, in bytes.
pub const MIN_GRANULE: u32 = 512;
/// Largest granule, in bytes.
pub const MAX_GRANULE: u32 = 65536;
/// Bytes of the longest digest.
pub const MAX_DIGEST: usize = 16;

/// A digest algorithm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// No digests.
    #[default]
    None = 0,
    /// CRC-32C.
    Crc32c = 1,
    /// CRC-64/NVME.
    Crc64Nvme = 2,
    /// The first 16 bytes of BLAKE3.
    Blake3 = 3,
}

impl Algorithm {
    /// All, by code.
    pub const ALL: [Algorithm; 4] = [
        Algorithm::None,
        Algorithm::Crc32c,
        Algorithm::Crc64Nvme,
        Algorithm::Blake3,
    ];

    /// The algorithm with this code.
    pub fn from_code(code: u32) -> Option<Algorithm> {
        Some(match code {
            0 => Algorithm::None,
            1 => Algorithm::Crc32c,
            2 => Algorithm::Crc64Nvme,
            3 => Algorithm::Blake3,
            _ => return None,
        })
    }

    /// The code on the wire.
    #[inline]
    pub fn code(self) -> u32 {
        self as u32
    }

    /// The bit that stands for it in a mask of algorithms.
    #[inline]
    pub fn mask_bit(self) -> u32 {
        match self {
            Algorithm::None => 1,
            Algorithm::Crc32c => 1 << 1,
            Algorithm::Crc64Nvme => 1 << 2,
            Algorithm::Blake3 => 1 << 3,
        }
    }

    /// Bytes of a digest; 0 for none.
    // It is a length of something else, so there is no sense in asking whether it is empty.
    #[allow(clippy::len_without_is_empty)]
    #[inline]
    pub fn len(self) -> usize {
        match self {
            Algorithm::None => 0,
            Algorithm::Crc32c => 4,
            Algorithm::Crc64Nvme => 8,
            Algorithm::Blake3 => MAX_DIGEST,
        }
    }

    /// Name for a person.
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::None => "none",
            Algorithm::Crc32c => "CRC-32C",
            Algorithm::Crc64Nvme => "CRC-64/NVME",
            Algorithm::Blake3 => "BLAKE3",
        }
    }
}

/// Whether `granule` is one: a power of two, 512 to 65536.
#[inline]
pub fn granule_ok(granule: u32) -> bool {
    granule.is_power_of_two() && (MIN_GRANULE..=MAX_GRANULE).contains(&granule)
}

/// How many pieces `len` bytes at `offset` are cut into; none if the granule isn't one or the payload is too long.
#[inline]
pub fn piece_count(granule: u32, offset: u64, len: u32) -> Option<u32> {
    if !granule_ok(granule) || len > MAX_PAYLOAD {
        return None;
    }
    if len == 0 {
        return Some(0);
    }
    let within = granule.wrapping_sub(1);
    // Below the granule, so nothing is cut.
    let lead = offset as u32 & within;
    // At most 4 MiB and twice 64 KiB: no overflow.
    let span = lead.wrapping_add(len).wrapping_add(within);
    Some(span >> granule.trailing_zeros())
}

/// Bytes of the digest area, padding included, for a payload of `len` bytes at `offset`.
///
/// None if the granule isn't one or the payload is too long.
#[inline]
pub fn area_len(algorithm: Algorithm, granule: u32, offset: u64, len: u32) -> Option<u32> {
    let pieces = usize::try_from(piece_count(granule, offset, len)?).ok()?;
    let bytes = padded(pieces.checked_mul(algorithm.len())?)?;
    u32::try_from(bytes).ok()
}

/// The pieces of a payload: export offset and length of each, in order.
///
/// Nothing for a granule that isn't one. Offsets wrap at 2^64, where no export reaches.
pub fn pieces(granule: u32, offset: u64, len: u32) -> Pieces {
    let left = if granule_ok(granule) { len } else { 0 };
    Pieces {
        granule,
        offset,
        left,
    }
}

/// See `pieces`.
#[derive(Clone, Debug)]
pub struct Pieces {
    granule: u32,
    offset: u64,
    left: u32,
}

impl Iterator for Pieces {
    type Item = (u64, u32);

    #[inline]
    fn next(&mut self) -> Option<(u64, u32)> {
        if self.left == 0 {
            return None;
        }
        let offset = self.offset;
        let within = offset as u32 & self.granule.wrapping_sub(1);
        let len = self.granule.wrapping_sub(within).min(self.left);
        self.left = self.left.wrapping_sub(len);
        self.offset = offset.wrapping_add(u64::from(len));
        Some((offset, len))
    }
}

/// A digest of one piece under way.
// There is no heap to put the large one on.
#[allow(clippy::large_enum_variant)]
#[derive(Clone, Debug)]
enum Running {
    None,
    Crc32c(Crc32c),
    Crc64Nvme(Crc64Nvme),
    Blake3(Hasher),
}

impl Running {
    fn new(algorithm: Algorithm) -> Running {
        match algorithm {
            Algorithm::None => Running::None,
            Algorithm::Crc32c => Running::Crc32c(Crc32c::new()),
            Algorithm::Crc64Nvme => Running::Crc64Nvme(Crc64Nvme::new()),
            Algorithm::Blake3 => Running::Blake3(Hasher::new()),
        }
    }

    /// Begins the piece at `offset`; in place, since a hasher is large.
    fn restart(&mut self, offset: u64) {
        match self {
            Running::None => {}
            Running::Crc32c(crc) => *crc = Crc32c::new(),
            Running::Crc64Nvme(crc) => *crc = Crc64Nvme::new(),
            Running::Blake3(hasher) => hasher.reset(),
        }
        self.update(&offset.to_le_bytes());
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Running::None => {}
            Running::Crc32c(crc) => crc.update(bytes),
            Running::Crc64Nvme(crc) => crc.update(bytes),
            // A granule with its seed is far below the limit of the hasher.
            Running::Blake3(hasher) => _ = hasher.update(bytes),
        }
    }

    fn finish(&self) -> Option<Digest> {
        let mut bytes = [0; MAX_DIGEST];
        let len = match self {
            Running::None => return None,
            Running::Crc32c(crc) => fill(&mut bytes, &crc.finish().to_le_bytes()),
            Running::Crc64Nvme(crc) => fill(&mut bytes, &crc.finish().to_le_bytes()),
            Running::Blake3(hasher) => fill(&mut bytes, &hasher.finish()),
        };
        Some(Digest { bytes, len })
    }
}

fn fill(bytes: &mut [u8; MAX_DIGEST], from: &[u8]) -> usize {
    for (to, from) in bytes.iter_mut().zip(from) {
        *to = *from;
    }
    from.len().min(MAX_DIGEST)
}

/// The digest of one piece.
#[derive(Clone, Copy, Debug)]
pub struct Digest {
    bytes: [u8; MAX_DIGEST],
    len: usize,
}

impl Digest {
    /// Its bytes as they stand in the digest area.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

/// The digests of a payload that comes in any number of parts.
///
/// `update` takes input up to the end of a piece and gives that piece's digest. Input beyond the payload is not taken.
#[derive(Clone, Debug)]
pub struct Digester {
    pieces: Pieces,
    /// Bytes missing to the end of the piece under way; 0 between pieces.
    missing: u32,
    running: Running,
}

impl Digester {
    /// For a payload of `len` bytes at `offset`; none if the granule isn't one or the payload is too long.
    pub fn new(algorithm: Algorithm, granule: u32, offset: u64, len: u32) -> Option<Digester> {
        piece_count(granule, offset, len)?;
        Some(Digester {
            pieces: pieces(granule, offset, len),
            missing: 0,
            running: Running::new(algorithm),
        })
    }

    /// Takes input from the front of `part`; gives a digest if it reached the end of a piece, else none, and then `part` is
    /// empty or the payload is complete. Call it until it gives none.
    pub fn update(&mut self, part: &mut &[u8]) -> Option<Digest> {
        while !part.is_empty() {
            if self.missing == 0 {
                let (offset, len) = self.pieces.next()?;
                self.missing = len;
                self.running.restart(offset);
            }
            let missing = usize::try_from(self.missing).unwrap_or(usize::MAX);
            let (taken, rest) = part.split_at_checked(missing).unwrap_or((part, &[]));
            *part = rest;
            // Not longer than what was missing, so nothing is cut.
            self.missing = self.missing.wrapping_sub(taken.len() as u32);
            self.running.update(taken);
            if self.missing == 0 {
                let digest = self.running.finish();
                if digest.is_some() {
                    return digest;
                }
            }
        }
        None
    }

    /// Whether the whole payload has been taken.
    pub fn is_complete(&self) -> bool {
        self.missing == 0 && self.pieces.left == 0
    }
}

/// Writes the digest area of a payload that comes in any number of parts.
#[derive(Debug)]
pub struct AreaWriter<'b> {
    digester: Digester,
    rest: &'b mut [u8],
}

impl<'b> AreaWriter<'b> {
    /// Into `area`, which must be exactly as long as `area_len` says; else none.
    pub fn new(
        algorithm: Algorithm,
        granule: u32,
        offset: u64,
        len: u32,
        area: &'b mut [u8],
    ) -> Option<Self> {
        let expected = area_len(algorithm, granule, offset, len)?;
        if usize::try_from(expected) != Ok(area.len()) {
            return None;
        }
        Some(AreaWriter {
            digester: Digester::new(algorithm, granule, offset, len)?,
            rest: area,
        })
    }

    /// Takes the next part of the payload.
    pub fn update(&mut self, part: &[u8]) {
        let mut part = part;
        while let Some(digest) = self.digester.update(&mut part) {
            let bytes = digest.as_bytes();
            let rest = core::mem::take(&mut self.rest);
            if let Some((place, rest)) = rest.split_at_mut_checked(bytes.len()) {
                for (to, from) in place.iter_mut().zip(bytes) {
                    *to = *from;
                }
                self.rest = rest;
            }
        }
    }

    /// Puts the padding; gives whether the payload was complete.
    pub fn finish(self) -> bool {
        self.rest.fill(0);
        self.digester.is_complete()
    }
}

/// Checks a payload that comes in any number of parts against its digest area.
#[derive(Debug)]
pub struct AreaVerifier<'b> {
    digester: Digester,
    rest: &'b [u8],
    good: bool,
}

impl<'b> AreaVerifier<'b> {
    /// Against `area`, which must be exactly as long as `area_len` says; else none.
    pub fn new(
        algorithm: Algorithm,
        granule: u32,
        offset: u64,
        len: u32,
        area: &'b [u8],
    ) -> Option<Self> {
        let expected = area_len(algorithm, granule, offset, len)?;
        if usize::try_from(expected) != Ok(area.len()) {
            return None;
        }
        Some(AreaVerifier {
            digester: Digester::new(algorithm, granule, offset, len)?,
            rest: area,
            good: true,
        })
    }

    /// Takes the next part of the payload.
    pub fn update(&mut self, part: &[u8]) {
        let mut part = part;
        while let Some(digest) = self.digester.update(&mut part) {
            let bytes = digest.as_bytes();
            match self.rest.split_at_checked(bytes.len()) {
                Some((expected, rest)) => {
                    self.good &= expected == bytes;
                    self.rest = rest;
                }
                None => self.good = false,
            }
        }
    }

    /// Whether the payload was complete and every digest right.
    pub fn finish(self) -> bool {
        self.good && self.digester.is_complete()
    }
}

/// Writes the digest area of a whole payload; false, and nothing of use in `area`, if the lengths don't fit.
pub fn write(
    algorithm: Algorithm,
    granule: u32,
    offset: u64,
    payload: &[u8],
    area: &mut [u8],
) -> bool {
    let Ok(len) = u32::try_from(payload.len()) else {
        return false;
    };
    let Some(mut writer) = AreaWriter::new(algorithm, granule, offset, len, area) else {
        return false;
    };
    writer.update(payload);
    writer.finish()
}

/// Whether `area` is the digest area of `payload`; padding is not looked at.
pub fn verify(
    algorithm: Algorithm,
    granule: u32,
    offset: u64,
    payload: &[u8],
    area: &[u8],
) -> bool {
    let Ok(len) = u32::try_from(payload.len()) else {
        return false;
    };
    let Some(mut verifier) = AreaVerifier::new(algorithm, granule, offset, len, area) else {
        return false;
    };
    verifier.update(payload);
    verifier.finish()
}
