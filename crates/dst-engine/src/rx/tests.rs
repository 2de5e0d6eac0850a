//! Streams whole, in parts, and broken.

extern crate std;

use super::super::proto::Kind;
use super::super::proto::{digest, HELLO_LEN, HELLO_MAX, MAX_OPTIONS};
use super::*;
use proptest::prelude::*;
use std::vec;
use std::vec::Vec;

const GRANULE: u32 = 512;

fn hello_bytes(role: Role) -> Vec<u8> {
    let mut bytes = [0; HELLO_LEN];
    Hello::new(role, [7; 16], "test").encode(&mut bytes);
    bytes.to_vec()
}

fn receiver() -> Receiver<Vec<u8>> {
    let mut receiver = Receiver::new(vec![0; HELLO_MAX + 2048], Role::Client);
    receiver.accept_payload(4096, Algorithm::Crc32c, GRANULE);
    receiver
}

fn frame(mut header: Header, options: &[u8], payload: &[u8]) -> Vec<u8> {
    header.options_len = options.len() as u16;
    header.payload_len = payload.len() as u32;
    let area = digest::area_len(
        Algorithm::Crc32c,
        GRANULE,
        header.offset,
        header.payload_len,
    );
    header.digest_len = area.unwrap();
    let mut digests = vec![0; header.digest_len as usize];
    digest::write(
        Algorithm::Crc32c,
        GRANULE,
        header.offset,
        payload,
        &mut digests,
    );
    header.area_crc = frame::area_crc(options, &digests);
    let mut bytes = [0; HEADER_LEN];
    header.encode(&mut bytes);
    [&bytes, options, &digests, payload].concat()
}

fn write(payload: &[u8]) -> Vec<u8> {
    let header = Header {
        slot: 3,
        id: 9,
        offset: 512,
        length: payload.len() as u64,
        ..Header::new(Kind::WRITE)
    };
    frame(header, &[], payload)
}

/// What came of a stream: heads with their options and digests, and the payloads.
type Seen = Vec<(Head, Vec<u8>, Vec<u8>)>;

/// Feeds `stream` in parts of the given sizes, over and over.
fn run(stream: &[u8], parts: &[usize]) -> (Seen, Vec<u8>, Option<Fault>) {
    let mut receiver = receiver();
    let (mut seen, mut payload) = (Vec::new(), Vec::new());
    let mut parts = parts.iter().cycle();
    let mut stream = stream;
    while !stream.is_empty() {
        let len = stream.len().min(1 + parts.next().unwrap());
        let mut part = &stream[..len];
        stream = &stream[len..];
        while !part.is_empty() {
            let left = receiver.payload_left() as usize;
            if left > 0 {
                let n = left.min(part.len());
                payload.extend_from_slice(&part[..n]);
                receiver.payload_received(n as u32);
                part = &part[n..];
                continue;
            }
            match receiver.feed(part) {
                Ok((used, head)) => {
                    assert!(used > 0 || head.is_some());
                    part = &part[used..];
                    if let Some(head) = head {
                        let options = receiver.options().to_vec();
                        seen.push((head, options, receiver.digests().to_vec()));
                    }
                }
                Err(fault) => {
                    assert_eq!(receiver.feed(part), Err(fault));
                    return (seen, payload, Some(fault));
                }
            }
        }
    }
    (seen, payload, None)
}

fn good_stream() -> Vec<u8> {
    let option = [20, 0, 4, 0, b'a', b'b', b'c', b'd'];
    let mut stream = hello_bytes(Role::Client);
    stream.extend(frame(Header::new(Kind::PING), &option, &[]));
    stream.extend(write(&[1; 1000]));
    stream.extend(frame(Header::new(Kind::CLOSE), &[], &[]));
    stream
}

#[test]
fn a_stream_in_one_piece_gives_every_head() {
    let (seen, payload, fault) = run(&good_stream(), &[usize::MAX - 1]);
    assert_eq!(fault, None);
    assert_eq!(payload, [1; 1000]);
    let kinds: Vec<_> = seen
        .iter()
        .map(|(head, ..)| match head {
            Head::Hello(_) => None,
            Head::Frame(header) => Some(header.kind),
        })
        .collect();
    let expected = [None, Some(Kind::PING), Some(Kind::WRITE), Some(Kind::CLOSE)];
    assert_eq!(kinds, expected);
    assert_eq!(seen[1].1.len(), 8);
    assert_eq!(seen[2].2.len(), 8);
}

#[test]
fn the_hello_stays_beside_the_first_frame_until_forgotten() {
    let mut receiver = receiver();
    let mut stream = hello_bytes(Role::Client);
    let hello = stream.clone();
    stream.extend(frame(
        Header::new(Kind::PING),
        &[9, 0, 0, 0, 0, 0, 0, 0],
        &[],
    ));
    let (used, _) = receiver.feed(&stream).unwrap();
    receiver.feed(&stream[used..]).unwrap();
    assert_eq!(receiver.hello_bytes(), hello);
    assert_eq!(receiver.options(), [9, 0, 0, 0, 0, 0, 0, 0]);
    receiver.forget_hello();
    assert_eq!(receiver.hello_bytes(), []);
}

#[test]
fn a_hello_of_the_wrong_role_is_refused() {
    let (_, _, fault) = run(&hello_bytes(Role::Server), &[30]);
    assert_eq!(fault.unwrap().text, HelloError::Role.text());
}

#[test]
fn a_stranger_is_refused_at_the_first_byte() {
    let mut receiver = receiver();
    assert!(receiver.feed(b"G").is_err());
    assert!(receiver.feed(&hello_bytes(Role::Client)).is_err());
}

#[test]
fn nothing_is_parsed_while_payload_is_left() {
    let mut receiver = receiver();
    let hello = hello_bytes(Role::Client);
    receiver.feed(&hello).unwrap();
    let write = write(&[2; 512]);
    receiver.feed(&write).unwrap();
    assert_eq!(receiver.payload_left(), 512);
    assert_eq!(receiver.feed(&write), Err(MISUSE));
}

#[test]
fn payload_is_refused_before_a_session_allows_it() {
    let mut receiver = Receiver::new(vec![0; 4096], Role::Client);
    receiver.feed(&hello_bytes(Role::Client)).unwrap();
    assert!(receiver.feed(&write(&[2; 512])).is_err());
}

#[test]
fn an_area_beyond_the_lent_memory_is_refused_before_it_arrives() {
    let mut receiver = Receiver::new(vec![0; HELLO_LEN + 64], Role::Client);
    receiver.feed(&hello_bytes(Role::Client)).unwrap();
    let long = frame(
        Header::new(Kind::PING),
        &vec![0; usize::from(MAX_OPTIONS)],
        &[],
    );
    assert_eq!(receiver.feed(&long[..HEADER_LEN]), Err(SHORT_MEMORY));
}

#[test]
fn a_flipped_bit_in_head_or_area_is_a_fault() {
    let stream = good_stream();
    let head = HELLO_LEN + HEADER_LEN + 8 + HEADER_LEN + 8;
    for at in 0..head {
        let mut bad = stream.clone();
        bad[at] ^= 0x10;
        assert!(run(&bad, &[63]).2.is_some(), "byte {at}");
    }
}

#[test]
fn a_digest_area_of_another_length_is_a_fault() {
    let mut stream = hello_bytes(Role::Client);
    let header = Header {
        digest_len: 8,
        payload_len: 2048,
        length: 2048,
        ..Header::new(Kind::WRITE)
    };
    let mut bytes = [0; HEADER_LEN];
    header.encode(&mut bytes);
    stream.extend(bytes);
    assert!(run(&stream, &[500]).2.is_some());
}

proptest! {
    #[test]
    fn how_a_stream_is_cut_makes_no_difference(
        parts in proptest::collection::vec(0usize..200, 1..20),
        flip in proptest::option::of(0usize..1300),
    ) {
        let mut stream = good_stream();
        if let Some(at) = flip {
            let len = stream.len();
            stream[at % len] ^= 1;
        }
        prop_assert_eq!(run(&stream, &parts), run(&stream, &[usize::MAX - 1]));
    }

    #[test]
    fn arbitrary_bytes_never_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..600),
        with_hello: bool,
        parts in proptest::collection::vec(0usize..100, 1..8),
    ) {
        let mut stream = if with_hello { hello_bytes(Role::Client) } else { Vec::new() };
        stream.extend(bytes);
        run(&stream, &parts);
    }

    #[test]
    fn arbitrary_headers_with_a_good_crc_never_panic(
        raw in proptest::array::uniform32(any::<u8>()),
        raw2 in proptest::array::uniform28(any::<u8>()),
    ) {
        let mut header = [0; HEADER_LEN];
        header[..4].copy_from_slice(b"DST1");
        header[4..32].copy_from_slice(&raw[4..]);
        header[32..60].copy_from_slice(&raw2);
        let crc = super::super::proto::crc32c::of(&header[..60]);
        header[60..].copy_from_slice(&crc.to_le_bytes());
        let mut stream = hello_bytes(Role::Client);
        stream.extend(header);
        stream.extend([0; 5000]);
        run(&stream, &[70]);
    }
}
