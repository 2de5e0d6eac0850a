//! Checks of what stands between header and payload: options and digest area (PROTOCOL.md sections 3.1 and 3.4).

use super::crc32c::Crc32c;
use super::digest::{area_len, Algorithm};
use super::header::Header;

/// The CRC for the header over options and digest area as they are sent.
pub fn area_crc(options: &[u8], digests: &[u8]) -> u32 {
    if options.is_empty() && digests.is_empty() {
        return 0;
    }
    let mut crc = Crc32c::new();
    crc.update(options);
    crc.update(digests);
    crc.finish()
}

/// Whether `area`, options and digest area in one, has the length and the CRC that the header says.
pub fn area_ok(header: &Header, area: &[u8]) -> bool {
    usize::try_from(header.area_len()) == Ok(area.len()) && area_crc(area, &[]) == header.area_crc
}

/// Cuts options and digest area apart; none if `area` is shorter than the header says.
pub fn split_area<'a>(header: &Header, area: &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
    let (options, rest) = area.split_at_checked(usize::from(header.options_len))?;
    let digests = rest.get(..usize::try_from(header.digest_len).ok()?)?;
    Some((options, digests))
}

/// Whether the digest area has exactly the length that the session's algorithm and granule ask for; if not, the
/// connection ends.
pub fn digest_len_ok(header: &Header, algorithm: Algorithm, granule: u32) -> bool {
    let expected = area_len(algorithm, granule, header.offset, header.payload_len);
    expected == Some(header.digest_len)
}
