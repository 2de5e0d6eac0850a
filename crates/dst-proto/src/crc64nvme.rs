//! CRC-64/NVME, the 64-bit guard of NVMe protection information, eight bytes at a time by tables.

/// The polynomial 0xAD93D23594C93659, bits reversed.
const POLY: u64 = 0x9A6C_9329_AC4B_C9B5;

/// `TABLES[k][b]` is the effect of byte `b` followed by `k` zero bytes.
static TABLES: [[u64; 256]; 8] = tables();

// Runs at compile time only, where a fault would be a compile error.
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
const fn tables() -> [[u64; 256]; 8] {
    let mut t = [[0u64; 256]; 8];
    let mut b = 0;
    while b < 256 {
        let mut crc = b as u64;
        let mut bit = 0;
        while bit < 8 {
            crc = (crc >> 1) ^ (POLY * (crc & 1));
            bit += 1;
        }
        t[0][b] = crc;
        b += 1;
    }
    let mut k = 1;
    while k < 8 {
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
pub fn of(bytes: &[u8]) -> u64 {
    let mut crc = Crc64Nvme::new();
    crc.update(bytes);
    crc.finish()
}

/// A CRC over bytes that come in pieces.
#[derive(Clone, Copy, Debug)]
pub struct Crc64Nvme {
    state: u64,
}

impl Default for Crc64Nvme {
    fn default() -> Self {
        Self::new()
    }
}

impl Crc64Nvme {
    /// Over nothing yet.
    #[inline]
    pub const fn new() -> Self {
        Crc64Nvme { state: !0 }
    }

    /// Appends `bytes`.
    #[inline]
    pub fn update(&mut self, bytes: &[u8]) {
        let mut state = self.state;
        let mut rest = bytes;
        while let Some((block, tail)) = rest.split_first_chunk::<8>() {
            let [b0, b1, b2, b3, b4, b5, b6, b7] =
                (state ^ u64::from_le_bytes(*block)).to_le_bytes();
            state = at(&TABLES[7], b0)
                ^ at(&TABLES[6], b1)
                ^ at(&TABLES[5], b2)
                ^ at(&TABLES[4], b3)
                ^ at(&TABLES[3], b4)
                ^ at(&TABLES[2], b5)
                ^ at(&TABLES[1], b6)
                ^ at(&TABLES[0], b7);
            rest = tail;
        }
        for byte in rest {
            let [low, ..] = state.to_le_bytes();
            state = (state >> 8) ^ at(&TABLES[0], low ^ *byte);
        }
        self.state = state;
    }

    /// The CRC of everything so far.
    #[inline]
    pub const fn finish(self) -> u64 {
        !self.state
    }
}

#[inline(always)]
fn at(table: &[u64; 256], byte: u8) -> u64 {
    // A u8 is always inside: the compiler drops the other arm.
    match table.get(usize::from(byte)) {
        Some(value) => *value,
        None => 0,
    }
}
