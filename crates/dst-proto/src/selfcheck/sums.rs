//! Checksums, hashes and digest areas.

use super::super::blake3;
use super::super::crc32c;
use super::super::crc64nvme;
use super::super::digest::{self, Algorithm, AreaVerifier, AreaWriter};
use super::super::frame;
use super::super::header::Header;
use super::super::kind::Kind;
use super::{check, pattern};

pub(super) fn run() -> Result<(), &'static str> {
    checksums()?;
    hashes()?;
    areas()?;
    area_in_parts()
}

#[inline(never)]
fn checksums() -> Result<(), &'static str> {
    check(crc32c::of(b"123456789") == 0xE306_9283, "CRC-32C")?;
    check(
        crc64nvme::of(b"123456789") == 0xAE8B_1486_0A79_9888,
        "CRC-64/NVME",
    )?;
    let mut bytes = [0; crc32c::HEADER_COVERED];
    pattern(&mut bytes);
    check(crc32c::of_header(&bytes) == 0x3F69_148B, "header CRC")?;
    let mut crc = crc32c::Crc32c::new();
    let mut crc64 = crc64nvme::Crc64Nvme::new();
    for part in bytes.chunks(7) {
        crc.update(part);
        crc64.update(part);
    }
    check(crc.finish() == 0x3F69_148B, "CRC-32C in parts")?;
    check(
        crc64.finish() == crc64nvme::of(&bytes),
        "CRC-64/NVME in parts",
    )
}

#[inline(never)]
fn hashes() -> Result<(), &'static str> {
    const EMPTY: [u8; 32] = [
        0xAF, 0x13, 0x49, 0xB9, 0xF5, 0xF9, 0xA1, 0xA6, 0xA0, 0x40, 0x4D, 0xEA, 0x36, 0xDC, 0xC9,
        0x49, 0x9B, 0xCB, 0x25, 0xC9, 0xAD, 0xC1, 0x12, 0xB7, 0xCC, 0x9A, 0x93, 0xCA, 0xE4, 0x1F,
        0x32, 0x62,
    ];
    check(blake3::hash(&[]) == Ok(EMPTY), "BLAKE3 of nothing")?;
    // 13 chunks, the last of one byte: three subtrees on the stack.
    let mut block = [0; 64];
    pattern(&mut block);
    let mut hasher = blake3::Hasher::new();
    for _ in 0..192 {
        check(hasher.update(&block).is_ok(), "BLAKE3 input")?;
    }
    check(hasher.update(&[0]).is_ok(), "BLAKE3 input")?;
    check(hasher.finish() == TREE, "BLAKE3 tree")?;
    let mut key = [0; 32];
    pattern(&mut key);
    check(
        blake3::keyed_hash(&key, &block) == Ok(KEYED),
        "BLAKE3 keyed",
    )
}

/// BLAKE3 of 192 times the first 64 bytes of the pattern, and a zero.
const TREE: [u8; 32] = [
    0xCC, 0x66, 0x2E, 0xBE, 0xF4, 0xFF, 0xA0, 0x36, 0x35, 0x2D, 0x07, 0x27, 0x28, 0x28, 0x1A, 0x23,
    0xB8, 0xC0, 0x66, 0x1F, 0x8D, 0x0E, 0xF4, 0x45, 0x4A, 0x66, 0x6B, 0x90, 0xB8, 0x22, 0xF8, 0x31,
];

/// BLAKE3 of the first 64 bytes of the pattern, keyed with the first 32.
const KEYED: [u8; 32] = [
    0xCF, 0xAF, 0x83, 0x8F, 0xF3, 0x20, 0xE0, 0xD8, 0x73, 0x01, 0xDC, 0xBA, 0x02, 0xB1, 0xA4, 0xBB,
    0x39, 0x7D, 0x65, 0x11, 0x9F, 0x57, 0x40, 0x3D, 0xF2, 0x81, 0x7A, 0x51, 0xD4, 0x02, 0x5F, 0x9B,
];

/// Digest areas of the first 300 bytes of the pattern at 300, in granules of 512.
const AREAS: [(Algorithm, &[u8]); 4] = [
    (Algorithm::None, &[]),
    (
        Algorithm::Crc32c,
        &[0x85, 0x10, 0x3E, 0x20, 0xD3, 0x74, 0x61, 0x5C],
    ),
    (
        Algorithm::Crc64Nvme,
        &[
            0xDA, 0xB6, 0x41, 0x51, 0x53, 0x88, 0x29, 0xF8, 0xFA, 0x5C, 0x65, 0x31, 0x8D, 0x44,
            0x8B, 0x89,
        ],
    ),
    (
        Algorithm::Blake3,
        &[
            0xF2, 0xBD, 0xE6, 0x18, 0x1F, 0x7E, 0xD8, 0x0A, 0x52, 0xE5, 0x21, 0xB7, 0x35, 0x4A,
            0xCC, 0x96, 0x3D, 0x1A, 0x66, 0x29, 0x2E, 0xE7, 0xF7, 0x7B, 0x5D, 0xA7, 0x57, 0x8B,
            0x4C, 0x38, 0x6F, 0x4E,
        ],
    ),
];

#[inline(never)]
fn areas() -> Result<(), &'static str> {
    let mut payload = [0; 300];
    pattern(&mut payload);
    for (algorithm, known) in AREAS {
        let mut area = [0xEE; 32];
        let (area, _) = area
            .split_at_mut_checked(known.len())
            .ok_or("length of digest area")?;
        check(
            digest::write(algorithm, 512, 300, &payload, area),
            "digests written",
        )?;
        check(area == known, algorithm.name())?;
        check(
            digest::verify(algorithm, 512, 300, &payload, area),
            "digests verified",
        )?;
        let header = Header {
            offset: 300,
            payload_len: 300,
            digest_len: u32::try_from(area.len()).unwrap_or(0),
            area_crc: frame::area_crc(&[], area),
            ..Header::new(Kind::WRITE)
        };
        let good = frame::area_ok(&header, area)
            && frame::digest_len_ok(&header, algorithm, 512)
            && frame::split_area(&header, area) == Some((&[], area));
        check(good, "digest area in a frame")?;
        if let Some(byte) = area.first_mut() {
            *byte ^= 1;
            check(
                !digest::verify(algorithm, 512, 300, &payload, area),
                "wrong digest",
            )?;
        }
    }
    Ok(())
}

#[inline(never)]
fn area_in_parts() -> Result<(), &'static str> {
    const LEN: u32 = 1024;
    let mut part = [0; 64];
    pattern(&mut part);
    for algorithm in Algorithm::ALL {
        let mut area = [0; 48];
        let len = digest::area_len(algorithm, 512, 1000, LEN).ok_or("length of digest area")?;
        let len = usize::try_from(len).unwrap_or(0);
        let (area, _) = area
            .split_at_mut_checked(len)
            .ok_or("length of digest area")?;
        write_in_parts(algorithm, LEN, &part, area)?;
        let mut verifier =
            AreaVerifier::new(algorithm, 512, 1000, LEN, area).ok_or("verifier of digests")?;
        for _ in 0..LEN / 64 {
            verifier.update(&part);
        }
        check(verifier.finish(), "digests in parts")?;
    }
    Ok(())
}

/// In a frame of its own, beside that of the verifier.
#[inline(never)]
fn write_in_parts(
    algorithm: Algorithm,
    len: u32,
    part: &[u8; 64],
    area: &mut [u8],
) -> Result<(), &'static str> {
    let mut writer = AreaWriter::new(algorithm, 512, 1000, len, area).ok_or("writer of digests")?;
    for _ in 0..len / 64 {
        writer.update(part);
    }
    check(writer.finish(), "digests in parts written")
}
