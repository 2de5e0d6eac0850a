//! Vectors of headers, and of whole frames.

use super::{hex, number, pattern, Stanza};
use dst_proto::{digest, frame, Algorithm, Header, Kind, OpFlags, Status, HEADER_LEN};

fn kind(name: &str) -> Kind {
    let known = Kind::ALL.into_iter().find(|k| k.name() == name);
    known.unwrap_or_else(|| Kind(number(name)))
}

fn kind_name(kind: Kind) -> String {
    if kind.is_known() {
        kind.name().into()
    } else {
        kind.0.to_string()
    }
}

/// The header of `bytes`, as lines.
fn header_lines(name: &str, header: &Header) -> Stanza {
    let stanza = Stanza::new(name)
        .with("type", kind_name(header.kind))
        .with("reply", u8::from(header.reply))
        .with("more", u8::from(header.more))
        .with("slot", header.slot)
        .with("operation-flags", format!("{:#x}", header.op_flags.0))
        .with("attempt", header.attempt)
        .with("options-length", header.options_len)
        .with("payload-length", header.payload_len)
        .with("id", header.id)
        .with("acknowledged", header.acked)
        .with("offset", header.offset);
    let stanza = if header.reply || header.kind == Kind::ERROR {
        stanza
            .with("status", header.status().0)
            .with("credit-requests", header.credit_requests())
            .with("credit-bytes", header.credit_bytes())
    } else {
        stanza.with("length", header.length)
    };
    stanza
        .with("digest-length", header.digest_len)
        .with("area-crc", format!("{:#010x}", header.area_crc))
        .with("after", header.after)
}

fn header(stanza: &Stanza) -> Header {
    let reply = stanza.number::<u8>("reply") == 1;
    let kind = kind(stanza.get("type"));
    let length = if reply || kind == Kind::ERROR {
        let status = Status(stanza.number("status"));
        let credit = dst_proto::Credit {
            requests: stanza.number("credit-requests"),
            bytes: stanza.number("credit-bytes"),
        };
        Header::reply(kind, 0, 0, status, credit).length
    } else {
        stanza.number("length")
    };
    Header {
        kind,
        reply,
        more: stanza.number::<u8>("more") == 1,
        slot: stanza.number("slot"),
        op_flags: OpFlags(stanza.number("operation-flags")),
        attempt: stanza.number("attempt"),
        options_len: stanza.number("options-length"),
        payload_len: stanza.number("payload-length"),
        id: stanza.number("id"),
        acked: stanza.number("acknowledged"),
        offset: stanza.number("offset"),
        length,
        digest_len: stanza.number("digest-length"),
        area_crc: stanza.number("area-crc"),
        after: stanza.number("after"),
    }
}

pub fn describe_header(name: &str, bytes: &[u8]) -> Stanza {
    let bytes: &[u8; HEADER_LEN] = bytes.try_into().expect("64 bytes");
    let header = Header::decode(bytes).expect("a good header");
    header_lines(name, &header).with("header", hex(bytes))
}

pub fn build_header(stanza: &Stanza) -> Vec<u8> {
    let mut bytes = [0; HEADER_LEN];
    header(stanza).encode(&mut bytes);
    bytes.to_vec()
}

/// A frame: `header` completed for `options` and a payload of `payload_len` bytes of the pattern.
pub fn frame(mut header: Header, options: &[u8], algorithm: Algorithm, granule: u32) -> Vec<u8> {
    let payload = pattern(header.payload_len as usize);
    let len = digest::area_len(algorithm, granule, header.offset, header.payload_len).unwrap();
    let mut area = vec![0xEE; len as usize];
    assert!(digest::write(
        algorithm,
        granule,
        header.offset,
        &payload,
        &mut area
    ));
    header.options_len = options.len() as u16;
    header.digest_len = len;
    header.area_crc = frame::area_crc(options, &area);
    let mut bytes = [0; HEADER_LEN];
    header.encode(&mut bytes);
    [&bytes[..], options, &area, &payload].concat()
}

pub fn describe_frame(name: &str, bytes: &[u8], algorithm: Algorithm, granule: u32) -> Stanza {
    let (head, rest) = bytes.split_first_chunk().expect("a header");
    let header = Header::decode(head).expect("a good header");
    let (area, payload) = rest.split_at(header.area_len() as usize);
    assert!(frame::area_ok(&header, area), "[{name}] area");
    assert!(
        frame::digest_len_ok(&header, algorithm, granule),
        "[{name}] digest length"
    );
    let (options, digests) = frame::split_area(&header, area).unwrap();
    assert!(
        digest::verify(algorithm, granule, header.offset, payload, digests),
        "[{name}]"
    );
    assert_eq!(payload, pattern(header.payload_len as usize));
    assert_eq!(header.frame_len(), bytes.len() as u64);
    header_lines(name, &header)
        .with("algorithm", algorithm.code())
        .with("granule", granule)
        .with("options", hex(options))
        .with("digests", hex(digests))
        .with("frame", hex(bytes))
}

pub fn build_frame(stanza: &Stanza) -> Vec<u8> {
    let (algorithm, granule) = session_digests(stanza);
    frame(header(stanza), &stanza.bytes("options"), algorithm, granule)
}

pub fn session_digests(stanza: &Stanza) -> (Algorithm, u32) {
    let algorithm = Algorithm::from_code(stanza.number("algorithm")).expect("an algorithm");
    (algorithm, stanza.number("granule"))
}
