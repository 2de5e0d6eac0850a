//! Headers and HELLO: whatever bytes come, decoding doesn't panic; what is encoded comes back; flipped bits are found.

use dst_proto::{
    crc32c, Header, HeaderError, Hello, HelloError, Kind, OpFlags, Role, HEADER_LEN, HELLO_LEN,
    HELLO_MAX,
};
use proptest::collection::vec;
use proptest::prelude::*;

/// Any header that keeps the limits.
fn headers() -> impl Strategy<Value = Header> {
    let ids = (any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>());
    let lens = (0..=2048u16, 0..=4u32 << 20, 0..=131_088u32 / 8);
    let rest = (any::<u16>(), any::<[u8; 2]>(), any::<u32>(), any::<u32>());
    (any::<u8>(), any::<bool>(), any::<bool>(), ids, lens, rest).prop_map(
        |(kind, reply, more, (id, acked, offset, length), (options, payload, digests), rest)| {
            let kind = Kind(kind);
            let (slot, [op_flags, attempt], area_crc, after) = rest;
            let reply = reply && kind.has_reply();
            let has_payload = kind.may_have_payload(reply) && payload != 0;
            Header {
                kind,
                reply,
                more: more && reply && kind.may_have_more(),
                slot,
                op_flags: OpFlags(if reply { 0 } else { op_flags }),
                attempt,
                options_len: 8 * options,
                payload_len: if has_payload { payload } else { 0 },
                id,
                acked,
                offset,
                length,
                digest_len: if has_payload { 8 * digests } else { 0 },
                area_crc,
                after,
            }
        },
    )
}

/// The bytes with a CRC that is right, so that the checks behind it are reached.
fn seal<const N: usize>(mut bytes: [u8; N]) -> [u8; N] {
    let crc = crc32c::of(&bytes[..N - 4]);
    bytes[N - 4..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

proptest! {
    #[test]
    fn a_header_comes_back(header in headers()) {
        let mut bytes = [0; HEADER_LEN];
        header.encode(&mut bytes);
        prop_assert_eq!(Header::decode(&bytes), Ok(header));
    }

    #[test]
    fn up_to_three_flipped_bits_in_a_header_are_found(
        header in headers(),
        bits in prop::collection::hash_set(0..HEADER_LEN * 8, 1..=3),
    ) {
        let mut bytes = [0; HEADER_LEN];
        header.encode(&mut bytes);
        for bit in bits {
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        prop_assert_eq!(Header::decode(&bytes), Err(HeaderError::Crc));
    }

    #[test]
    fn what_a_header_decodes_from_it_encodes_to(
        bytes in prop::array::uniform32(any::<u8>()),
        kind in 0..40u8,
        flags in prop::sample::select(vec![0, 1, 0x80, 0x81, 2]),
        small in any::<bool>(),
    ) {
        let mut header = [0; HEADER_LEN];
        header[..4].copy_from_slice(b"DST1");
        header[4] = kind;
        header[5] = flags;
        header[6..38].copy_from_slice(&bytes);
        if small {
            // Lengths that have a chance to be within their limits.
            header[8..16].copy_from_slice(&[0, 0, bytes[4] & 0xF8, bytes[5] & 31, bytes[6], 0, 0, 0]);
        }
        let header = seal(header);
        if let Ok(decoded) = Header::decode(&header) {
            let mut again = [0; HEADER_LEN];
            decoded.encode(&mut again);
            prop_assert_eq!(again, header);
            prop_assert!(decoded.frame_len() <= 64 + 16384 + 131_088 + (4 << 20));
        }
    }

    #[test]
    fn any_bytes_as_header_or_hello_are_survived(bytes in vec(any::<u8>(), 0..HELLO_MAX + 9)) {
        if let Some(header) = bytes.first_chunk() {
            let _ = Header::decode(header);
            let _ = Header::decode(&seal(*header));
        }
        let _ = Hello::needed(&bytes);
        let _ = Hello::decode(&bytes);
    }

    #[test]
    fn any_hello_behind_magic_and_crc_is_survived(
        tail in vec(any::<u8>(), HELLO_LEN - 10..200),
        role in 0..3u8,
    ) {
        let mut bytes = dst_proto::hello::MAGIC.to_vec();
        let len = (10 + tail.len()) & !7;
        bytes.extend((len as u16).to_le_bytes());
        bytes.extend(tail);
        bytes.truncate(len);
        bytes[10] = role;
        let crc = crc32c::of(&bytes[..len - 4]);
        bytes[len - 4..].copy_from_slice(&crc.to_le_bytes());
        match Hello::decode(&bytes) {
            Ok(hello) => {
                prop_assert!(hello.lowest <= hello.highest);
                prop_assert_eq!(hello.required & !hello.offered, 0);
                prop_assert!(!hello.name().chars().any(char::is_control));
            }
            Err(error) => prop_assert!(matches!(
                error,
                HelloError::Role | HelloError::Version | HelloError::Features
            )),
        }
    }

    #[test]
    fn a_hello_comes_back_and_any_flipped_bit_is_found(
        nonce: [u8; 16],
        name in "\\PC{0,60}",
        versions: (u16, u16),
        features: (u64, u64),
        bit in 0..HELLO_LEN * 8,
    ) {
        let hello = Hello {
            lowest: versions.0.min(versions.1),
            highest: versions.0.max(versions.1),
            offered: features.0,
            required: features.0 & features.1,
            ..Hello::new(Role::Server, nonce, &name)
        };
        prop_assert!(name.starts_with(hello.name()));
        let mut bytes = [0; HELLO_LEN];
        hello.encode(&mut bytes);
        prop_assert_eq!(Hello::decode(&bytes), Ok(hello));
        for len in 0..HELLO_LEN {
            prop_assert_eq!(Hello::needed(&bytes[..len]), Ok(if len < 16 { 16 } else { 96 }));
            prop_assert_eq!(Hello::decode(&bytes[..len]), Err(HelloError::Length));
        }
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(Hello::decode(&bytes).is_err());
    }

    #[test]
    fn both_sides_negotiate_the_same(
        a: (u16, u16, u64, u64),
        b: (u16, u16, u64, u64),
    ) {
        let hello = |role, (v, w, f, r): (u16, u16, u64, u64)| Hello {
            lowest: v.min(w),
            highest: v.max(w),
            offered: f,
            required: f & r & 0x11,
            ..Hello::new(role, [0; 16], "")
        };
        let (client, server) = (hello(Role::Client, a), hello(Role::Server, b));
        let agreed = Hello::negotiate(&client, &server);
        prop_assert_eq!(agreed, Hello::negotiate(&server, &client));
        prop_assert_eq!(Hello::negotiate(&client, &client), Err(HelloError::Role));
        if let Ok(agreed) = agreed {
            for hello in [client, server] {
                prop_assert!((hello.lowest..=hello.highest).contains(&agreed.version));
                prop_assert_eq!(agreed.features & !hello.offered, 0);
                prop_assert_eq!(hello.required & !agreed.features, 0);
            }
        }
    }
}

#[test]
fn every_single_flipped_bit_in_a_header_is_found() {
    let mut bytes = [0; HEADER_LEN];
    Header::new(Kind::FLUSH).encode(&mut bytes);
    for bit in 0..HEADER_LEN * 8 {
        let mut flipped = bytes;
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(Header::decode(&flipped), Err(HeaderError::Crc));
    }
}

#[test]
fn header_limits_are_kept() {
    let write = Header {
        payload_len: 8,
        digest_len: 8,
        ..Header::new(Kind::WRITE)
    };
    let with = |change: fn(&mut Header)| {
        let mut header = write;
        change(&mut header);
        let mut bytes = [0; HEADER_LEN];
        header.encode(&mut bytes);
        Header::decode(&bytes).err()
    };
    assert_eq!(with(|_| ()), None);
    assert_eq!(with(|h| h.options_len = 16384), None);
    assert_eq!(
        with(|h| h.options_len = 16392),
        Some(HeaderError::OptionsLength)
    );
    assert_eq!(
        with(|h| h.options_len = 4),
        Some(HeaderError::OptionsLength)
    );
    assert_eq!(with(|h| h.payload_len = 4 << 20), None);
    assert_eq!(
        with(|h| h.payload_len = (4 << 20) + 1),
        Some(HeaderError::PayloadLength)
    );
    assert_eq!(
        with(|h| h.digest_len = 131_096),
        Some(HeaderError::DigestLength)
    );
    assert_eq!(with(|h| h.digest_len = 12), Some(HeaderError::DigestLength));
    assert_eq!(
        with(|h| h.payload_len = 0),
        Some(HeaderError::UnexpectedPayload)
    );
    assert_eq!(
        with(|h| h.kind = Kind::READ),
        Some(HeaderError::UnexpectedPayload)
    );
    assert_eq!(
        with(|h| h.reply = true),
        Some(HeaderError::UnexpectedPayload)
    );
    assert_eq!(with(|h| h.more = true), Some(HeaderError::Flags));
    assert_eq!(with(|h| h.kind = Kind(99)), None);
    assert_eq!(with(|h| h.op_flags = OpFlags(0x80)), None);
    assert_eq!(
        with(|h| *h = Header {
            reply: true,
            more: true,
            kind: Kind::READ,
            ..*h
        }),
        None
    );
    assert_eq!(
        with(|h| *h = Header {
            reply: true,
            op_flags: OpFlags::FUA,
            kind: Kind::READ,
            ..*h
        }),
        Some(HeaderError::Flags)
    );
    assert_eq!(
        with(|h| *h = Header {
            reply: true,
            ..Header::new(Kind::REPLAYED)
        }),
        Some(HeaderError::Flags)
    );
}

#[test]
fn the_first_wrong_byte_of_a_hello_is_found() {
    for good in 0..8 {
        let mut bytes = dst_proto::hello::MAGIC[..good].to_vec();
        assert_eq!(Hello::needed(&bytes), Ok(16));
        bytes.push(0xAA);
        assert_eq!(Hello::needed(&bytes), Err(HelloError::Magic));
    }
}
