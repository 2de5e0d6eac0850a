//! What the sectors of the simulated disk hold. Every WRITE of a scenario has a unique value, and every sector that it writes
//! tells that value and where it belongs, in every word: so what a read returns says which write it comes from, and a
//! misplaced, mixed or flipped sector is seen as such. Value 0 is zeroes.

/// Bytes in a sector: the unit in which a disk tears.
pub const SECTOR: usize = 512;

const WORDS: usize = SECTOR / 8;

fn word(value: u64, sector: u64, index: usize) -> u64 {
    (value ^ sector << 40)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add((index as u64).wrapping_mul(0xd1b5_4a32_d192_ed03))
}

/// Fills `bytes`, whole sectors from `sector` on, with `value`.
pub fn fill(bytes: &mut [u8], sector: u64, value: u64) {
    for (sector, chunk) in (sector..).zip(bytes.chunks_exact_mut(SECTOR)) {
        if value == 0 {
            chunk.fill(0);
            continue;
        }
        chunk[..8].copy_from_slice(&value.to_le_bytes());
        for (index, out) in chunk.chunks_exact_mut(8).enumerate().skip(1) {
            out.copy_from_slice(&word(value, sector, index).to_le_bytes());
        }
    }
}

/// The value that `bytes`, the content of `sector`, hold; none where they are not what any write has put there.
pub fn parse(bytes: &[u8], sector: u64) -> Option<u64> {
    let value = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?);
    let good = bytes
        .chunks_exact(8)
        .enumerate()
        .take(WORDS)
        .skip(1)
        .all(|(index, is)| {
            let must = if value == 0 {
                0
            } else {
                word(value, sector, index)
            };
            is == must.to_le_bytes()
        });
    good.then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sector_tells_its_value_and_any_damage() {
        let mut bytes = [0xee; 2 * SECTOR];
        fill(&mut bytes, 7, 42);
        assert_eq!(parse(&bytes[..SECTOR], 7), Some(42));
        assert_eq!(parse(&bytes[SECTOR..], 8), Some(42));
        assert_eq!(parse(&bytes[SECTOR..], 7), None, "misplaced");
        for at in [0, 9, 511] {
            let mut bad = bytes;
            bad[at] ^= 1;
            assert_eq!(parse(&bad[..SECTOR], 7), None, "flipped at {at}");
        }
        fill(&mut bytes, 7, 0);
        assert_eq!(parse(&bytes[..SECTOR], 7), Some(0));
        bytes[100] = 1;
        assert_eq!(parse(&bytes[..SECTOR], 7), None);
    }
}
