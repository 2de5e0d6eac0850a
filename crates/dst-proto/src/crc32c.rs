//! CRC-32C (Castagnoli), sixteen bytes at a time by tables.
//!
//! Portable: drivers with a CRC instruction use that for payloads. Tables are made at compile time.

/// Bytes of a header that its CRC covers.
pub const HEADER_COVERED: usize = 60;

/// The polynomial 0x1EDC6F41, bits reversed.
const POLY: u32 = 0x82F6_3B78;

/// `TABLES[k][b]` is the effect of byte `b` followed by `k` zero bytes.
static TABLES: [[u32; 256]; 16] = tables();

// Runs at compile time only, where a fault would be a compile error.
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
const fn tables() -> [[u32; 256]; 16] {
    let mut t = [[0u32; 256]; 16];
    let mut b = 0;
    while b < 256 {
        let mut crc = b as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = (crc >> 1) ^ (POLY * (crc & 1));
            bit += 1;
        }
        t[0][b] = crc;
        b += 1;
    }
    let mut k = 1;
    while k < 16 {
        let mut b = 0;
        while b < 256 {
            let before = t[k - 1][b];
            t[k][b] = (before >> 8) ^ t[0][(before & 0xFF) as usize];
            b += 1;
        }
        k += 1;
    }
    t
}

/// The CRC of `bytes`.
pub fn of(bytes: &[u8]) -> u32 {
    let mut crc = Crc32c::new();
    crc.update(bytes);
    crc.finish()
}

/// The CRC of the part of a header that its CRC covers, in four steps: 12 bytes and three times 16.
#[inline]
pub fn of_header(bytes: &[u8; HEADER_COVERED]) -> u32 {
    let Some((head, mut rest)) = bytes.split_first_chunk::<12>() else {
        return 0;
    };
    let mut state = step12(!0, head);
    while let Some((block, tail)) = rest.split_first_chunk::<16>() {
        state = step16(state, block);
        rest = tail;
    }
    !state
}

/// A CRC over bytes that come in pieces.
#[derive(Clone, Copy, Debug)]
pub struct Crc32c {
    state: u32,
}

impl Default for Crc32c {
    fn default() -> Self {
        Self::new()
    }
}

impl Crc32c {
    /// Over nothing yet.
    #[inline]
    pub const fn new() -> Self {
        Crc32c { state: !0 }
    }

    /// Appends `bytes`.
    #[inline]
    pub fn update(&mut self, bytes: &[u8]) {
        let mut state = self.state;
        let mut rest = bytes;
        while let Some((block, tail)) = rest.split_first_chunk::<16>() {
            state = step16(state, block);
            rest = tail;
        }
        if let Some((block, tail)) = rest.split_first_chunk::<8>() {
            state = step8(state, block);
            rest = tail;
        }
        for byte in rest {
            state = step(state, *byte);
        }
        self.state = state;
    }

    /// The CRC of everything so far.
    #[inline]
    pub const fn finish(self) -> u32 {
        !self.state
    }
}

#[inline(always)]
fn at(table: &[u32; 256], byte: u8) -> u32 {
    // A u8 is always inside: the compiler drops the other arm.
    match table.get(usize::from(byte)) {
        Some(value) => *value,
        None => 0,
    }
}

#[inline(always)]
fn step(state: u32, byte: u8) -> u32 {
    let [low, ..] = state.to_le_bytes();
    (state >> 8) ^ at(&TABLES[0], low ^ byte)
}

/// The tables of the numbers, each at its byte, all together.
macro_rules! lookup {
    ($($k:literal $byte:expr),+) => { 0 $(^ at(&TABLES[$k], $byte))+ };
}

// In each of these only the first four bytes depend on the step before, so the others are looked up while that one is
// under way.

#[inline(always)]
fn step8(state: u32, block: &[u8; 8]) -> u32 {
    let [s0, s1, s2, s3] = state.to_le_bytes();
    let [b0, b1, b2, b3, b4, b5, b6, b7] = *block;
    lookup!(3 b4, 2 b5, 1 b6, 0 b7) ^ lookup!(7 s0 ^ b0, 6 s1 ^ b1, 5 s2 ^ b2, 4 s3 ^ b3)
}

#[inline(always)]
fn step12(state: u32, block: &[u8; 12]) -> u32 {
    let [s0, s1, s2, s3] = state.to_le_bytes();
    let [b0, b1, b2, b3, b4, b5, b6, b7, b8, b9, b10, b11] = *block;
    lookup!(7 b4, 6 b5, 5 b6, 4 b7, 3 b8, 2 b9, 1 b10, 0 b11)
        ^ lookup!(11 s0 ^ b0, 10 s1 ^ b1, 9 s2 ^ b2, 8 s3 ^ b3)
}

#[inline(always)]
fn step16(state: u32, block: &[u8; 16]) -> u32 {
    let [s0, s1, s2, s3] = state.to_le_bytes();
    let [b0, b1, b2, b3, b4, b5, b6, b7, b8, b9, b10, b11, b12, b13, b14, b15] = *block;
    lookup!(11 b4, 10 b5, 9 b6, 8 b7, 7 b8, 6 b9, 5 b10, 4 b11, 3 b12, 2 b13, 1 b14, 0 b15)
        ^ lookup!(15 s0 ^ b0, 14 s1 ^ b1, 13 s2 ^ b2, 12 s3 ^ b3)
}
