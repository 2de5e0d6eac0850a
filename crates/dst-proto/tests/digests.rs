//! Checksums and digest areas: the same in parts as in one, the same as of other implementations, and flipped bits found.

use dst_proto::digest::{self, AreaVerifier, AreaWriter};
use dst_proto::{
    blake3, crc32c, crc64nvme, frame, Algorithm, Header, Joined, Kind, OpenRequest, Opened,
};
use proptest::collection::vec;
use proptest::prelude::*;

proptest! {
    #[test]
    fn checksums_in_parts_agree_with_other_implementations(
        bytes in vec(any::<u8>(), 0..5000),
        cuts in vec(0..5000usize, 0..6),
    ) {
        let mut crc = crc32c::Crc32c::new();
        let mut crc64 = crc64nvme::Crc64Nvme::new();
        let mut hasher = blake3::Hasher::new();
        for part in parts(&bytes, cuts) {
            crc.update(part);
            crc64.update(part);
            hasher.update(part).unwrap();
        }
        prop_assert_eq!(crc.finish(), ::crc32c::crc32c(&bytes));
        let mut reference = crc64fast_nvme::Digest::new();
        reference.write(&bytes);
        prop_assert_eq!(crc64.finish(), reference.sum64());
        prop_assert_eq!(hasher.finish(), *::blake3::hash(&bytes).as_bytes());
    }

    #[test]
    fn pieces_cover_the_payload_and_meet_at_granules(
        granule in 9..=16u32,
        offset: u64,
        len in 0..=4u32 << 20,
    ) {
        let granule = 1 << granule;
        let offset = offset >> 1;
        let mut at = offset;
        let mut count = 0;
        for (start, size) in digest::pieces(granule, offset, len) {
            prop_assert_eq!(start, at);
            prop_assert!(size > 0 && size <= granule);
            prop_assert!(count == 0 || start % u64::from(granule) == 0);
            at += u64::from(size);
            count += 1;
        }
        prop_assert_eq!(at, offset + u64::from(len));
        prop_assert_eq!(digest::piece_count(granule, offset, len), Some(count));
        for algorithm in Algorithm::ALL {
            let area = digest::area_len(algorithm, granule, offset, len).unwrap();
            prop_assert_eq!(area, (count * algorithm.len() as u32).next_multiple_of(8));
            prop_assert!(area <= dst_proto::MAX_DIGEST_AREA);
        }
    }

    #[test]
    fn digests_in_parts_are_the_same_and_find_a_flipped_bit(
        code in 0..4u32,
        offset in 0..100_000u64,
        payload in vec(any::<u8>(), 1..4000),
        cuts in vec(0..4000usize, 0..5),
        bit: prop::sample::Index,
    ) {
        let algorithm = Algorithm::from_code(code).unwrap();
        let len = payload.len() as u32;
        let size = digest::area_len(algorithm, 1024, offset, len).unwrap() as usize;
        let mut area = vec![0xEE; size];
        prop_assert!(digest::write(algorithm, 1024, offset, &payload, &mut area));
        let mut in_parts = vec![0xEE; size];
        let mut writer = AreaWriter::new(algorithm, 1024, offset, len, &mut in_parts).unwrap();
        let mut verifier = AreaVerifier::new(algorithm, 1024, offset, len, &area).unwrap();
        for part in parts(&payload, cuts) {
            writer.update(part);
            verifier.update(part);
        }
        prop_assert!(writer.finish() && verifier.finish());
        prop_assert_eq!(&in_parts, &area);
        prop_assert!(digest::verify(algorithm, 1024, offset, &payload, &area));
        if algorithm != Algorithm::None {
            let bit = bit.index(payload.len() * 8);
            let mut flipped = payload.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(!digest::verify(algorithm, 1024, offset, &flipped, &area));
            // The same bytes a granule further on are a misplaced block.
            prop_assert!(!digest::verify(algorithm, 1024, offset + 1024, &payload, &area));
        }
    }

    #[test]
    fn a_wrong_area_is_found(options in vec(any::<u8>(), 0..64), digests in vec(any::<u8>(), 0..64), bit: prop::sample::Index) {
        let header = Header {
            options_len: options.len() as u16,
            digest_len: digests.len() as u32,
            area_crc: frame::area_crc(&options, &digests),
            ..Header::new(Kind::WRITE)
        };
        let mut area = [options.clone(), digests.clone()].concat();
        prop_assert!(frame::area_ok(&header, &area));
        prop_assert_eq!(frame::split_area(&header, &area), Some((&options[..], &digests[..])));
        if !area.is_empty() {
            let bit = bit.index(area.len() * 8);
            prop_assert!(!frame::area_ok(&header, &area[1..]));
            area[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(!frame::area_ok(&header, &area));
        }
    }
}

/// `bytes` cut at `cuts`.
fn parts(bytes: &[u8], mut cuts: Vec<usize>) -> Vec<&[u8]> {
    cuts.sort_unstable();
    let mut parts = Vec::new();
    let mut from = 0;
    for cut in cuts.into_iter().map(|c| c.min(bytes.len())) {
        parts.push(&bytes[from..cut]);
        from = cut;
    }
    parts.push(&bytes[from..]);
    parts
}

#[test]
fn a_hash_of_the_longest_input_works_and_one_more_byte_is_refused() {
    let input = vec![7; blake3::MAX_INPUT + 1];
    let longest = &input[..blake3::MAX_INPUT];
    assert_eq!(
        blake3::hash(longest).as_ref(),
        Ok(::blake3::hash(longest).as_bytes())
    );
    assert_eq!(blake3::hash(&input), Err(blake3::TooLong));
}

#[test]
fn no_value_is_too_large_for_a_kernel_stack() {
    assert!(size_of::<blake3::Hasher>() <= 512);
    assert!(size_of::<digest::Digester>() <= 512);
    assert!(size_of::<AreaWriter>() <= 512);
    assert!(size_of::<AreaVerifier>() <= 512);
    assert!(size_of::<OpenRequest>() <= 512);
    assert!(size_of::<Opened>() <= 512);
    assert!(size_of::<Joined>() <= 512);
}
