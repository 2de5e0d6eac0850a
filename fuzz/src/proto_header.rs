//! The header: any bytes, and such whose CRC is right, against the table of PROTOCOL.md section 3.1.

use dst_proto::{
    crc32c, frame, Algorithm, Header, Kind, HEADER_LEN, MAX_DIGEST_AREA, MAX_OPTIONS, MAX_PAYLOAD,
};

use crate::input::Input;

/// The first byte says what is put right, the next 64 are the header, the rest its options and digests.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let how = input.u8();
    let mut bytes = [0; HEADER_LEN];
    let given = input.bytes(HEADER_LEN);
    bytes[..given.len()].copy_from_slice(given);
    if how & 1 != 0 {
        bytes[..4].copy_from_slice(b"DST1");
    }
    if how & 2 != 0 {
        let crc = crc32c::of(&bytes[..60]);
        bytes[60..].copy_from_slice(&crc.to_le_bytes());
    }
    let Ok(header) = Header::decode(&bytes) else {
        return;
    };
    let mut again = [0; HEADER_LEN];
    header.encode(&mut again);
    assert_eq!(again, bytes, "every bit has a meaning");
    check_limits(&header, bytes[5]);

    let area = input.rest();
    let cut = frame::split_area(&header, area);
    assert_eq!(cut.is_some(), area.len() >= header.area_len() as usize);
    if let Some((options, digests)) = cut {
        assert_eq!(options.len(), usize::from(header.options_len));
        assert_eq!(digests.len(), header.digest_len as usize);
        let exact = &area[..header.area_len() as usize];
        let crc = frame::area_crc(options, digests);
        assert_eq!(frame::area_ok(&header, exact), crc == header.area_crc);
        assert!(exact.is_empty() || crc == crc32c::of(exact));
    }
    let granule = 512 << (how >> 5);
    for algorithm in Algorithm::ALL {
        if frame::digest_len_ok(&header, algorithm, granule) {
            let pieces = dst_proto::digest::pieces(granule, header.offset, header.payload_len);
            let bytes = pieces.count() * algorithm.len();
            assert_eq!(header.digest_len as usize, bytes.next_multiple_of(8));
        }
    }
}

fn check_limits(header: &Header, flags: u8) {
    let kind = header.kind;
    assert_eq!(flags & !0x81, 0);
    assert_eq!(
        (header.reply, header.more),
        (flags & 0x80 != 0, flags & 1 != 0)
    );
    assert!(header.options_len <= MAX_OPTIONS && header.options_len.is_multiple_of(8));
    assert!(header.payload_len <= MAX_PAYLOAD);
    assert!(header.digest_len <= MAX_DIGEST_AREA && header.digest_len.is_multiple_of(8));
    if header.more {
        assert!(header.reply);
        assert!(matches!(kind, Kind::READ | Kind::LIST) || !kind.is_known());
    }
    let silent = [Kind::REPLAYED, Kind::CHANGED, Kind::DRAINING, Kind::ERROR];
    assert!(!header.reply || !silent.contains(&kind));
    assert!(!header.reply || header.op_flags.0 == 0);
    if header.payload_len > 0 && kind.is_known() {
        let carrier = if header.reply {
            Kind::READ
        } else {
            Kind::WRITE
        };
        assert_eq!(kind, carrier);
    }
    assert!(header.payload_len > 0 || header.digest_len == 0);
}
