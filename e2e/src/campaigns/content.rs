//! Sectors that say of themselves which they are: of any 512 bytes on a disk one can tell whether they are intact, and of
//! which file, place and version.

use crate::rng::Rng;

/// Bytes of a sector: the unit in which a power cut tears writes.
pub const SECTOR: usize = 512;

const MAGIC: u64 = 0x0D15_C0DE_5EC7_0001;

/// What a sector says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label {
    /// Which file.
    pub file: u64,
    /// Which sector of the file.
    pub index: u64,
    /// Which write; ascending.
    pub version: u64,
}

/// What was found in a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Never written.
    Zeroes,
    /// An intact sector.
    Sector(Label),
    /// Neither: torn, or foreign.
    Garbage,
}

impl Label {
    /// Writes the sector.
    pub fn write(self, sector: &mut [u8]) {
        let mix = self.file.wrapping_mul(0x9E37_79B9) ^ self.index.rotate_left(32) ^ self.version;
        Rng::new(mix).fill(sector);
        for (at, word) in [MAGIC, self.file, self.index, self.version]
            .iter()
            .enumerate()
        {
            sector[at * 8..at * 8 + 8].copy_from_slice(&word.to_le_bytes());
        }
    }
}

/// The bytes of a run of sectors of one version.
pub fn run(file: u64, first: u64, count: u64, version: u64) -> Vec<u8> {
    let mut bytes = vec![0; count as usize * SECTOR];
    for (index, sector) in (first..).zip(bytes.chunks_exact_mut(SECTOR)) {
        Label {
            file,
            index,
            version,
        }
        .write(sector);
    }
    bytes
}

/// What a sector is.
pub fn look(sector: &[u8]) -> Found {
    if sector.iter().all(|b| *b == 0) {
        return Found::Zeroes;
    }
    let word = |at: usize| {
        let bytes = sector.get(at * 8..at * 8 + 8)?;
        Some(u64::from_le_bytes(bytes.try_into().ok()?))
    };
    let (Some(MAGIC), Some(file), Some(index), Some(version)) =
        (word(0), word(1), word(2), word(3))
    else {
        return Found::Garbage;
    };
    let label = Label {
        file,
        index,
        version,
    };
    let mut whole = [0; SECTOR];
    label.write(&mut whole);
    match whole[..] == *sector {
        true => Found::Sector(label),
        false => Found::Garbage,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sector_is_known_again_and_a_torn_one_is_not() {
        let bytes = run(3, 10, 2, 77);
        let label = |index| Label {
            file: 3,
            index,
            version: 77,
        };
        assert_eq!(look(&bytes[..SECTOR]), Found::Sector(label(10)));
        assert_eq!(look(&bytes[SECTOR..]), Found::Sector(label(11)));
        assert_eq!(look(&[0; SECTOR]), Found::Zeroes);
        let mut torn = bytes[..SECTOR].to_vec();
        torn[400] ^= 1;
        assert_eq!(look(&torn), Found::Garbage);
    }
}
