//! The test vectors in `vectors/` mean what this crate encodes and decodes, both ways, and other implementations of the
//! checksums agree with them.

mod support;

use std::collections::BTreeSet;
use support::{cases, digests, frames, hello, hex, invalid, options, parse, pattern, Stanza};

fn stanzas(file: &str) -> Vec<Stanza> {
    let text = std::fs::read_to_string(support::dir().join(file)).expect("the vector file");
    let stanzas = parse(&text);
    assert!(!stanzas.is_empty());
    let names: BTreeSet<_> = stanzas.iter().map(|s| &s.name).collect();
    assert_eq!(names.len(), stanzas.len(), "names in {file} are unique");
    stanzas
}

#[test]
fn files_are_what_the_generator_writes() {
    for (name, text) in cases::files() {
        let file = std::fs::read_to_string(support::dir().join(name)).expect(name);
        assert!(file == text, "{name} is stale: run the example `vectors`");
    }
}

#[test]
fn hellos_agree_both_ways() {
    for stanza in stanzas("hello.txt") {
        let bytes = stanza.bytes("hello");
        assert_eq!(hex(&hello::build(&stanza)), hex(&bytes));
        assert_eq!(hello::describe(&stanza.name, &bytes), stanza);
    }
}

#[test]
fn headers_agree_both_ways_and_are_of_every_type() {
    let stanzas = stanzas("headers.txt");
    for stanza in &stanzas {
        let bytes = stanza.bytes("header");
        assert_eq!(hex(&frames::build_header(stanza)), hex(&bytes));
        assert_eq!(&frames::describe_header(&stanza.name, &bytes), stanza);
        assert_eq!(crc32c::crc32c(&bytes[..60]).to_le_bytes(), bytes[60..]);
    }
    for kind in dst_proto::Kind::ALL {
        let found = stanzas.iter().any(|s| s.get("type") == kind.name());
        assert!(found, "{kind} has a vector");
    }
}

#[test]
fn options_agree_both_ways_and_are_of_every_number() {
    let stanzas = stanzas("options.txt");
    for stanza in &stanzas {
        let bytes = stanza.bytes("options");
        assert_eq!(hex(&options::build(stanza)), hex(&bytes));
        assert_eq!(&options::describe(&stanza.name, &bytes), stanza);
    }
    for number in (0..=32).filter(|n| dst_proto::option::number::name(*n) != "unknown option") {
        let name = dst_proto::option::number::name(number);
        assert!(
            stanzas.iter().any(|s| s.lines[0].0 == name),
            "{name} has a vector"
        );
    }
}

#[test]
fn messages_agree_both_ways() {
    for stanza in stanzas("messages.txt") {
        let bytes = stanza.bytes("options");
        assert_eq!(hex(&options::build(&stanza)), hex(&bytes));
        assert_eq!(options::describe(&stanza.name, &bytes), stanza);
        assert_eq!(
            hex(&options::through_message(&stanza.name, &bytes)),
            hex(&bytes)
        );
    }
}

#[test]
fn frames_agree_both_ways() {
    for stanza in stanzas("frames.txt") {
        let bytes = stanza.bytes("frame");
        let (algorithm, granule) = frames::session_digests(&stanza);
        assert_eq!(hex(&frames::build_frame(&stanza)), hex(&bytes));
        let described = frames::describe_frame(&stanza.name, &bytes, algorithm, granule);
        assert_eq!(described, stanza);
    }
}

#[test]
fn invalid_ones_are_refused_as_the_file_says() {
    for stanza in stanzas("invalid.txt") {
        let expected = (stanza.get("error").into(), stanza.get("answer").into());
        assert_eq!(invalid::verdict(&stanza), expected, "{}", stanza.name);
    }
}

#[test]
fn functions_agree_with_other_implementations() {
    for stanza in stanzas("functions.txt") {
        let result = stanza.bytes("result");
        assert_eq!(
            hex(&digests::function(&stanza)),
            hex(&result),
            "{}",
            stanza.name
        );
        let input = match stanza.get("input") {
            "pattern" => pattern(stanza.number("length")),
            text => text.as_bytes().to_vec(),
        };
        assert_eq!(
            hex(&reference(&stanza, &input)),
            hex(&result),
            "{}",
            stanza.name
        );
    }
}

fn reference(stanza: &Stanza, input: &[u8]) -> Vec<u8> {
    match stanza.get("function") {
        "CRC-32C" => crc32c::crc32c(input).to_le_bytes().to_vec(),
        "CRC-64/NVME" => {
            let mut digest = crc64fast_nvme::Digest::new();
            digest.write(input);
            digest.sum64().to_le_bytes().to_vec()
        }
        "BLAKE3" => blake3::hash(input).as_bytes().to_vec(),
        "BLAKE3 keyed" => {
            let key = support::fixed(stanza.get("key"));
            blake3::keyed_hash(&key, input).as_bytes().to_vec()
        }
        other => panic!("function {other}"),
    }
}

#[test]
fn digest_areas_agree_with_other_implementations() {
    for stanza in stanzas("digests.txt") {
        let area = stanza.bytes("area");
        assert_eq!(hex(&digests::area(&stanza)), hex(&area), "{}", stanza.name);
        assert_eq!(hex(&reference_area(&stanza)), hex(&area), "{}", stanza.name);
    }
}

/// The area by the words of PROTOCOL.md, a byte of the export at a time.
fn reference_area(stanza: &Stanza) -> Vec<u8> {
    let (granule, offset): (u64, u64) = (stanza.number("granule"), stanza.number("offset"));
    let payload = pattern(stanza.number("length"));
    let mut pieces: Vec<Vec<u8>> = Vec::new();
    for (i, byte) in payload.iter().enumerate() {
        let at = offset + i as u64;
        if i == 0 || at % granule == 0 {
            pieces.push(at.to_le_bytes().to_vec());
        }
        pieces.last_mut().unwrap().push(*byte);
    }
    let mut area = Vec::new();
    for piece in pieces {
        match stanza.get("algorithm") {
            "0" => {}
            "1" => area.extend(crc32c::crc32c(&piece).to_le_bytes()),
            "2" => {
                let mut digest = crc64fast_nvme::Digest::new();
                digest.write(&piece);
                area.extend(digest.sum64().to_le_bytes());
            }
            "3" => area.extend(&blake3::hash(&piece).as_bytes()[..16]),
            other => panic!("algorithm {other}"),
        }
    }
    area.resize(area.len().next_multiple_of(8), 0);
    area
}

#[test]
fn proofs_agree_with_another_blake3() {
    for stanza in stanzas("proof.txt") {
        let proof = stanza.bytes("proof");
        assert_eq!(hex(&digests::proof(&stanza)), hex(&proof));
        let mut key = [0; 32];
        key[..16].copy_from_slice(&stanza.bytes("secret"));
        let transcript = [
            b"DST1 join proof".to_vec(),
            stanza.bytes("server-hello"),
            stanza.bytes("client-hello"),
            stanza.bytes("binding"),
            stanza.bytes("join"),
        ]
        .concat();
        assert_eq!(
            blake3::keyed_hash(&key, &transcript).as_bytes()[..],
            proof[..]
        );
    }
}
