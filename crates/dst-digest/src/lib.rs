//! Payload digests of the DST wire by the fastest library for each.
//!
//! A payload is cut into pieces at natural multiples of the granule (in the export's own offsets, so the first and the
//! last piece may be partial). The digest of a piece is the algorithm's value over the export offset of the piece's
//! first byte (64 bits, little-endian) followed by the piece's bytes: right bytes in the wrong place don't match
//! (PROTOCOL.md section 3.4). The digests of all pieces, in order and padded with zeroes to a multiple of 8 bytes, are
//! the digest area of a frame.
//!
//! `dst_proto::digest` defines the same, portably; this crate must always agree with it, and its tests compare the two.
//!
//! ```
//! use dst_digest::{verify, write_digests, Algorithm};
//! let payload = [7; 8192];
//! let mut area = [0; 16];
//! assert_eq!(write_digests(Algorithm::Crc64Nvme, 4096, 1 << 20, &payload, &mut area), 16);
//! assert!(verify(Algorithm::Crc64Nvme, 4096, 1 << 20, &payload, &area).is_ok());
//! // The second granule is not what belongs at the first one's place.
//! let moved = verify(Algorithm::Crc64Nvme, 4096, (1 << 20) + 4096, &payload, &area);
//! assert_eq!(moved.unwrap_err().offset, (1 << 20) + 4096);
//! ```

pub use dst_proto::Algorithm;

use dst_proto::digest::{granule_ok, pieces, DEFAULT_GRANULE, MAX_DIGEST};

/// Digest areas are padded to a multiple of this many bytes.
const ALIGNMENT: usize = 8;

/// Bytes of the offset that goes before each piece.
const SEED: usize = 8;

/// A piece is not what its digest says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the data at offset {offset} does not match its digest")]
pub struct BadGranule {
    /// Export offset of the first byte of the first such piece.
    pub offset: u64,
}

/// Writes the digest area of `payload`, which starts at export offset `offset`, to the front of `area` and says how
/// long it is, padding included: `dst_proto::digest::area_len`.
///
/// # Panics
/// Where `area` is shorter, `granule` is none of the protocol's, or `payload` has 4 GiB or more: the first two are
/// fixed when a session opens, the last is far beyond any payload.
pub fn write_digests(
    algorithm: Algorithm,
    granule: u32,
    offset: u64,
    payload: &[u8],
    area: &mut [u8],
) -> usize {
    assert!(granule_ok(granule), "no granule: {granule}");
    let size = algorithm.len();
    if size == 0 {
        return 0;
    }
    let mut end = 0;
    let mut rest = payload;
    for (at, len) in pieces(granule, offset, payload_len(payload)) {
        let (piece, after) = rest.split_at(len as usize);
        rest = after;
        area[end..end + size].copy_from_slice(&digest(algorithm, at, piece)[..size]);
        end += size;
    }
    let padded = end.next_multiple_of(ALIGNMENT);
    area[end..padded].fill(0);
    padded
}

/// Checks `payload`, which starts at export offset `offset`, against its digest area; the padding is not looked at. An
/// area that is too short is an error at the first piece without a digest, a granule that is none at `offset`.
///
/// # Panics
/// Where `payload` has 4 GiB or more, which is far beyond any payload.
pub fn verify(
    algorithm: Algorithm,
    granule: u32,
    offset: u64,
    payload: &[u8],
    area: &[u8],
) -> Result<(), BadGranule> {
    let size = algorithm.len();
    if size == 0 {
        return Ok(());
    }
    if !granule_ok(granule) {
        return Err(BadGranule { offset });
    }
    let mut expected = area.chunks_exact(size);
    let mut rest = payload;
    for (at, len) in pieces(granule, offset, payload_len(payload)) {
        let (piece, after) = rest.split_at(len as usize);
        rest = after;
        if expected.next() != Some(&digest(algorithm, at, piece)[..size]) {
            return Err(BadGranule { offset: at });
        }
    }
    Ok(())
}

fn payload_len(payload: &[u8]) -> u32 {
    u32::try_from(payload.len()).expect("no payload is as long as 4 GiB")
}

/// The digest of one piece, in the first `algorithm.len()` bytes.
#[inline]
fn digest(algorithm: Algorithm, offset: u64, piece: &[u8]) -> [u8; MAX_DIGEST] {
    let seed = offset.to_le_bytes();
    let mut out = [0; MAX_DIGEST];
    match algorithm {
        Algorithm::None => {}
        Algorithm::Crc32c => {
            let crc = crc32c::crc32c_append(crc32c::crc32c(&seed), piece);
            out[..4].copy_from_slice(&crc.to_le_bytes());
        }
        Algorithm::Crc64Nvme => {
            let mut crc = crc64fast_nvme::Digest::new();
            crc.write(&seed);
            crc.write(piece);
            out[..8].copy_from_slice(&crc.sum64().to_le_bytes());
        }
        Algorithm::Blake3 => {
            let hash = blake3(&seed, piece);
            out.copy_from_slice(&hash.as_bytes()[..MAX_DIGEST]);
        }
    }
    out
}

/// The library hashes the chunks of one slice side by side; a seed given before the piece would shift them all and cost
/// two thirds of that speed. So pieces of the usual granule are copied behind their seed.
fn blake3(seed: &[u8; SEED], piece: &[u8]) -> blake3::Hash {
    let len = SEED + piece.len();
    let mut joined = [0; SEED + DEFAULT_GRANULE as usize];
    if len > joined.len() {
        return blake3::Hasher::new().update(seed).update(piece).finalize();
    }
    joined[..SEED].copy_from_slice(seed);
    joined[SEED..len].copy_from_slice(piece);
    blake3::hash(&joined[..len])
}

#[cfg(test)]
mod tests {
    use super::*;
    use dst_proto::digest as portable;
    use proptest::prelude::*;

    const DIGESTS: [Algorithm; 3] = [Algorithm::Crc32c, Algorithm::Crc64Nvme, Algorithm::Blake3];

    #[test]
    fn the_libraries_compute_the_published_check_values() {
        assert_eq!(crc32c::crc32c(b"123456789"), 0xE306_9283);
        let mut crc = crc64fast_nvme::Digest::new();
        crc.write(b"123456789");
        assert_eq!(crc.sum64(), 0xAE8B_1486_0A79_9888);
        let hash = blake3::hash(b"");
        assert_eq!(
            hash.as_bytes()[..8],
            [0xaf, 0x13, 0x49, 0xb9, 0xf5, 0xf9, 0xa1, 0xa6]
        );
    }

    /// A piece at the offset whose bytes are "12345678", with the rest of the check string.
    #[test]
    fn a_digest_is_the_check_value_of_seed_and_piece() {
        let offset = u64::from_le_bytes(*b"12345678");
        let mut area = [0xFF; 16];
        assert_eq!(
            write_digests(Algorithm::Crc32c, 512, offset, b"9", &mut area),
            8
        );
        assert_eq!(
            area[..8],
            [0x83, 0x92, 0x06, 0xE3, 0, 0, 0, 0],
            "padded with zeroes"
        );
        assert_eq!(
            write_digests(Algorithm::Crc64Nvme, 512, offset, b"9", &mut area),
            8
        );
        assert_eq!(area[..8], 0xAE8B_1486_0A79_9888_u64.to_le_bytes());
        assert_eq!(
            write_digests(Algorithm::Blake3, 512, offset, b"9", &mut area),
            16
        );
        assert_eq!(area, blake3::hash(b"123456789").as_bytes()[..16]);
    }

    #[test]
    fn without_digests_there_is_no_area_and_everything_is_right() {
        assert_eq!(
            write_digests(Algorithm::None, 4096, 0, &[1; 5000], &mut []),
            0
        );
        assert_eq!(verify(Algorithm::None, 4096, 0, &[1; 5000], &[]), Ok(()));
    }

    #[test]
    fn an_area_that_is_too_short_is_an_error_at_the_first_piece_without_digest() {
        for algorithm in DIGESTS {
            let mut area = [0; 64];
            write_digests(algorithm, 512, 100, &[1; 1000], &mut area);
            let short = &area[..algorithm.len() * 2];
            assert_eq!(
                verify(algorithm, 512, 100, &[1; 1000], short),
                Err(BadGranule { offset: 1024 })
            );
            assert_eq!(
                verify(algorithm, 1000, 100, &[1; 1000], &area),
                Err(BadGranule { offset: 100 })
            );
        }
    }

    fn cases() -> impl Strategy<Value = (Algorithm, u32, u64, Vec<u8>)> {
        let payload = prop_oneof![
            4 => proptest::collection::vec(any::<u8>(), 0..3000),
            1 => (any::<u8>(), 3000..150_000_usize)
                .prop_map(|(seed, len)| (0..len).map(|i| (i / 253 + i) as u8 ^ seed).collect()),
        ];
        // Ends below 2^64, as every export does.
        let offset = prop_oneof![0..100_000_u64, any::<u64>().prop_map(|o| o >> 1)];
        (
            proptest::sample::select(&DIGESTS[..]),
            9..=16_u32,
            offset,
            payload,
        )
            .prop_map(|(algorithm, shift, offset, payload)| {
                (algorithm, 1 << shift, offset, payload)
            })
    }

    proptest! {
        #[test]
        fn areas_are_those_of_the_portable_implementation((algorithm, granule, offset, payload) in cases()) {
            let len = portable::area_len(algorithm, granule, offset, payload.len() as u32).unwrap() as usize;
            let mut expected = vec![0; len];
            prop_assert!(portable::write(algorithm, granule, offset, &payload, &mut expected));
            let mut area = vec![0xEE; len + 8];
            prop_assert_eq!(write_digests(algorithm, granule, offset, &payload, &mut area), len);
            prop_assert_eq!(&area[..len], &expected);
            prop_assert_eq!(&area[len..], &[0xEE; 8]);
            prop_assert_eq!(verify(algorithm, granule, offset, &payload, &expected), Ok(()));
        }

        #[test]
        fn a_flipped_bit_or_another_place_is_found(
            (algorithm, granule, offset, payload) in cases(), at in any::<proptest::sample::Index>(), bit in 0..8_u32
        ) {
            prop_assume!(!payload.is_empty());
            let mut area = vec![0; portable::area_len(algorithm, granule, offset, payload.len() as u32).unwrap() as usize];
            write_digests(algorithm, granule, offset, &payload, &mut area);
            let moved = offset + u64::from(granule);
            prop_assert_eq!(verify(algorithm, granule, moved, &payload, &area), Err(BadGranule { offset: moved }));
            let at = at.index(payload.len());
            let mut flipped = payload;
            flipped[at] ^= 1 << bit;
            let place = offset + at as u64;
            let piece = (place & !u64::from(granule - 1)).max(offset);
            prop_assert_eq!(verify(algorithm, granule, offset, &flipped, &area), Err(BadGranule { offset: piece }));
        }
    }
}
