//! Digest areas: both implementations agree, every flipped bit is found, any area may be checked.

use dst_proto::digest::{self, AreaVerifier, AreaWriter};
use dst_proto::Algorithm;

use crate::input::Input;

/// Algorithm, granule, offset and cuts, then the payload.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let algorithm = input.pick(&Algorithm::ALL);
    let granule = match input.u8() {
        shift @ 0..=7 => 512 << shift,
        odd => u32::from(odd) << (odd % 20),
    };
    let offset = input.u64();
    let form = input.u8();
    let flip = input.u16();
    let cuts = [input.u8(), input.u8(), input.u8()];
    let mut payload = input.rest().to_vec();
    if form & 1 != 0 {
        // Long payloads of short inputs.
        payload = payload.repeat(usize::from(form >> 2) * 4);
        payload.truncate(300_000);
    }
    let len = payload.len() as u32;
    let Some(area_len) = digest::area_len(algorithm, granule, offset, len) else {
        assert!(!digest::granule_ok(granule));
        assert!(!digest::verify(algorithm, granule, offset, &payload, &[]));
        return;
    };
    check_pieces(granule, offset, len, area_len, algorithm);

    let mut area = vec![0x55; area_len as usize];
    let mut writer =
        AreaWriter::new(algorithm, granule, offset, len, &mut area).expect("the right length");
    for part in parts(&payload, cuts) {
        writer.update(part);
    }
    assert!(writer.finish());
    let mut other = vec![0xAA; area_len as usize];
    let written = dst_digest::write_digests(algorithm, granule, offset, &payload, &mut other);
    assert_eq!(
        (written, &other),
        (area.len(), &area),
        "the implementations differ"
    );

    let good = |payload: &[u8], area: &[u8]| {
        let mut verifier =
            AreaVerifier::new(algorithm, granule, offset, len, area).expect("the right length");
        for part in parts(payload, cuts) {
            verifier.update(part);
        }
        let good = verifier.finish();
        let other = dst_digest::verify(algorithm, granule, offset, payload, area).is_ok();
        assert_eq!(good, other, "the implementations differ");
        good
    };
    assert!(good(&payload, &area));
    if algorithm == Algorithm::None || payload.is_empty() {
        return;
    }
    let at = usize::from(flip) % payload.len();
    payload[at] ^= 1 << (flip % 8);
    assert!(!good(&payload, &area), "a flipped bit of the payload");
    payload[at] ^= 1 << (flip % 8);
    let digests = digest::pieces(granule, offset, len).count() * algorithm.len();
    area[usize::from(flip) % digests] ^= 1 << (flip % 8);
    assert!(!good(&payload, &area), "a flipped bit of the area");
    assert!(!digest::verify(
        algorithm,
        granule,
        offset,
        &payload,
        &area[1..]
    ));
}

fn parts(payload: &[u8], cuts: [u8; 3]) -> impl Iterator<Item = &[u8]> {
    let mut rest = payload;
    let mut cuts = cuts.into_iter().cycle();
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        // 0 is for a part of no bytes, now and then.
        let cut = usize::from(cuts.next()?) * usize::from(cuts.next()?);
        let (part, tail) = rest.split_at(cut.min(rest.len()));
        rest = if cut == 0 { &rest[1..] } else { tail };
        Some(if cut == 0 {
            &payload[payload.len() - rest.len() - 1..][..1]
        } else {
            part
        })
    })
}

fn check_pieces(granule: u32, offset: u64, len: u32, area_len: u32, algorithm: Algorithm) {
    let mut at = offset;
    let mut count = 0;
    let mut left = len;
    for (start, piece) in digest::pieces(granule, offset, len) {
        assert_eq!(start, at);
        assert!(piece > 0 && piece <= left);
        let end = start.wrapping_add(u64::from(piece));
        assert!(
            piece == left || end % u64::from(granule) == 0,
            "cut at a granule"
        );
        assert!((start % u64::from(granule)) + u64::from(piece) <= u64::from(granule));
        at = end;
        left -= piece;
        count += 1;
    }
    assert_eq!(left, 0);
    assert_eq!(digest::piece_count(granule, offset, len), Some(count));
    assert_eq!(
        area_len as usize,
        (count as usize * algorithm.len()).next_multiple_of(8)
    );
}
