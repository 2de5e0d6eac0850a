//! Vectors of HELLO.

use super::{fixed, hex, Stanza};
use dst_proto::{Hello, Role, HELLO_LEN};

/// Where the name ends.
const EXTENSION_AT: usize = 88;

pub fn describe(name: &str, bytes: &[u8]) -> Stanza {
    let hello = Hello::decode(bytes).expect("a good HELLO");
    Stanza::new(name)
        .with(
            "role",
            if hello.role == Role::Client {
                "client"
            } else {
                "server"
            },
        )
        .with("lowest", hello.lowest)
        .with("highest", hello.highest)
        .with("offered", format!("{:#x}", hello.offered))
        .with("required", format!("{:#x}", hello.required))
        .with("nonce", hex(&hello.nonce))
        .with("name", hello.name())
        .with("extension", hex(&bytes[EXTENSION_AT..bytes.len() - 4]))
        .with("hello", hex(bytes))
}

pub fn build(stanza: &Stanza) -> Vec<u8> {
    let role = match stanza.get("role") {
        "client" => Role::Client,
        "server" => Role::Server,
        other => panic!("role {other}"),
    };
    let hello = Hello {
        lowest: stanza.number("lowest"),
        highest: stanza.number("highest"),
        offered: stanza.number("offered"),
        required: stanza.number("required"),
        ..Hello::new(role, fixed(stanza.get("nonce")), stanza.get("name"))
    };
    let mut bytes = [0; HELLO_LEN];
    hello.encode(&mut bytes);
    with_extension(&bytes, &stanza.bytes("extension"))
}

/// This version sends four zeroes; a later one may send more.
fn with_extension(bytes: &[u8; HELLO_LEN], extension: &[u8]) -> Vec<u8> {
    let mut long = bytes[..EXTENSION_AT].to_vec();
    long.extend_from_slice(extension);
    let len = u16::try_from(long.len() + 4).unwrap();
    long[8..10].copy_from_slice(&len.to_le_bytes());
    let crc = crc32c::crc32c(&long);
    long.extend_from_slice(&crc.to_le_bytes());
    if extension == [0; 4] {
        assert_eq!(long, bytes);
    }
    long
}
