//! Putting frames together, for both ends.

use super::proto::{crc32c, Header, HEADER_LEN};

/// Completes a frame's head in place: options and digests stand in `out` behind the room of the header. Answers the length of
/// header, options and digest area together; 0 where `out` is too short.
pub fn seal(header: &Header, out: &mut [u8]) -> usize {
    let area = usize::try_from(header.area_len()).unwrap_or(usize::MAX);
    let Some((head, rest)) = out.split_first_chunk_mut::<HEADER_LEN>() else {
        return 0;
    };
    let Some(area_bytes) = rest.get(..area) else {
        return 0;
    };
    let mut header = *header;
    header.area_crc = if area == 0 { 0 } else { crc32c::of(area_bytes) };
    header.encode(head);
    HEADER_LEN.saturating_add(area)
}
