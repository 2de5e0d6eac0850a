//! Vectors of digests, of the functions below them, and of the join proof.

use super::{fixed, hex, pattern, Stanza};
use dst_proto::proof::{join_proof, Transcript};
use dst_proto::{blake3, crc32c, crc64nvme, digest, Algorithm, Join};

/// The digest area for a payload of the pattern.
pub fn area(stanza: &Stanza) -> Vec<u8> {
    let algorithm = Algorithm::from_code(stanza.number("algorithm")).expect("an algorithm");
    let (granule, offset, len) = (
        stanza.number("granule"),
        stanza.number("offset"),
        stanza.number("length"),
    );
    let size = digest::area_len(algorithm, granule, offset, len).expect("a good granule");
    let mut area = vec![0xEE; size as usize];
    assert!(digest::write(
        algorithm,
        granule,
        offset,
        &pattern(len as usize),
        &mut area
    ));
    area
}

/// The result of a function over the pattern or a text.
pub fn function(stanza: &Stanza) -> Vec<u8> {
    let input = match stanza.get("input") {
        "pattern" => pattern(stanza.number("length")),
        text => text.as_bytes().to_vec(),
    };
    match stanza.get("function") {
        "CRC-32C" => crc32c::of(&input).to_le_bytes().to_vec(),
        "CRC-64/NVME" => crc64nvme::of(&input).to_le_bytes().to_vec(),
        "BLAKE3" => blake3::hash(&input).unwrap().to_vec(),
        "BLAKE3 keyed" => blake3::keyed_hash(&fixed(stanza.get("key")), &input)
            .unwrap()
            .to_vec(),
        other => panic!("function {other}"),
    }
}

pub fn proof(stanza: &Stanza) -> Vec<u8> {
    let join = Join {
        session: stanza.number("session"),
        generation: stanza.number("generation"),
        index: stanza.number("index"),
    };
    assert_eq!(hex(&join.to_bytes()), stanza.get("join"));
    let transcript = Transcript {
        server_hello: &stanza.bytes("server-hello"),
        client_hello: &stanza.bytes("client-hello"),
        binding: &fixed(stanza.get("binding")),
    };
    let proof = join_proof(&fixed(stanza.get("secret")), &transcript, &join);
    proof.expect("HELLOs of a good length").0.to_vec()
}
