//! Headers and HELLO.

use super::super::flags::OpFlags;
use super::super::header::{Credit, Header, HeaderError, HEADER_LEN};
use super::super::hello::{Agreed, Hello, HelloError, Role, HELLO_HEAD, HELLO_LEN};
use super::super::kind::Kind;
use super::super::status::Status;
use super::check;

pub(super) fn run() -> Result<(), &'static str> {
    header_known()?;
    header_faults()?;
    hello()
}

/// [WRITE] of `vectors/headers.txt`.
const HEADER: Header = Header {
    kind: Kind::WRITE,
    reply: false,
    more: false,
    slot: 11,
    op_flags: OpFlags(0x13),
    attempt: 0,
    options_len: 64,
    payload_len: 32768,
    id: 0x0102_0304_0506_0708,
    acked: 0x0102_0304_0506_06FF,
    offset: 0x1_0000_8000,
    length: 32768,
    digest_len: 40,
    area_crc: 0x0102_0304,
    after: 2,
};

const HEADER_BYTES: [u8; HEADER_LEN] = [
    0x44, 0x53, 0x54, 0x31, 0x11, 0x00, 0x0B, 0x00, 0x13, 0x00, 0x40, 0x00, 0x00, 0x80, 0x00, 0x00,
    0x08, 0x07, 0x06, 0x05, 0x04, 0x03, 0x02, 0x01, 0xFF, 0x06, 0x06, 0x05, 0x04, 0x03, 0x02, 0x01,
    0x00, 0x80, 0x00, 0x00, 0x01, 0x00, 0x00, 0x00, 0x00, 0x80, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x28, 0x00, 0x00, 0x00, 0x04, 0x03, 0x02, 0x01, 0x02, 0x00, 0x00, 0x00, 0x56, 0xA3, 0x11, 0x4F,
];

#[inline(never)]
fn header_known() -> Result<(), &'static str> {
    let mut bytes = [0; HEADER_LEN];
    HEADER.encode(&mut bytes);
    check(bytes == HEADER_BYTES, "header encode")?;
    check(Header::decode(&bytes) == Ok(HEADER), "header decode")?;
    check(HEADER.frame_len() == 64 + 104 + 32768, "frame length")?;
    let credit = Credit {
        requests: 3,
        bytes: 70000,
    };
    let reply = Header::reply(Kind::READ, 5, 6, Status::RANGE, credit);
    reply.encode(&mut bytes);
    let back = Header::decode(&bytes).map_err(HeaderError::text)?;
    check(
        back.status() == Status::RANGE && back.credit() == credit && back.reply,
        "reply header",
    )?;
    Header::error(Status::PROTOCOL).encode(&mut bytes);
    let back = Header::decode(&bytes).map_err(HeaderError::text)?;
    check(back.status() == Status::PROTOCOL, "ERROR header")
}

#[inline(never)]
fn header_faults() -> Result<(), &'static str> {
    for at in 0..HEADER_LEN {
        let mut bytes = HEADER_BYTES;
        if let Some(byte) = bytes.get_mut(at) {
            *byte ^= 0x10;
        }
        check(
            Header::decode(&bytes) == Err(HeaderError::Crc),
            "flipped bit in a header",
        )?;
    }
    let faults = [
        (
            Header {
                options_len: 12,
                ..HEADER
            },
            HeaderError::OptionsLength,
        ),
        (
            Header {
                payload_len: (4 << 20) + 1,
                ..HEADER
            },
            HeaderError::PayloadLength,
        ),
        (
            Header {
                kind: Kind::READ,
                ..HEADER
            },
            HeaderError::UnexpectedPayload,
        ),
        (
            Header {
                more: true,
                ..HEADER
            },
            HeaderError::Flags,
        ),
    ];
    for (header, error) in faults {
        let mut bytes = [0; HEADER_LEN];
        header.encode(&mut bytes);
        check(Header::decode(&bytes) == Err(error), error.text())?;
    }
    Ok(())
}

#[inline(never)]
fn hello() -> Result<(), &'static str> {
    let client = Hello::new(Role::Client, [3; 16], "dst");
    let mut bytes = [0; HELLO_LEN];
    client.encode(&mut bytes);
    check(Hello::decode(&bytes) == Ok(client), "HELLO")?;
    check(client.name() == "dst", "name in HELLO")?;
    check(Hello::needed(&[]) == Ok(HELLO_HEAD), "HELLO, no byte yet")?;
    check(Hello::needed(&bytes) == Ok(HELLO_LEN), "length of HELLO")?;
    check(
        Hello::needed(b"SSH-") == Err(HelloError::Magic),
        "HELLO of another protocol",
    )?;
    let server = Hello {
        highest: 9,
        offered: 6,
        ..Hello::new(Role::Server, [4; 16], "dst")
    };
    let agreed = Agreed {
        version: 1,
        features: 0,
    };
    check(
        Hello::negotiate(&client, &server) == Ok(agreed),
        "negotiation",
    )?;
    let demanding = Hello {
        required: 2,
        ..server
    };
    check(
        Hello::negotiate(&client, &demanding) == Err(HelloError::Features),
        "required feature",
    )?;
    if let Some(byte) = bytes.get_mut(50) {
        *byte ^= 1;
    }
    check(
        Hello::decode(&bytes) == Err(HelloError::Crc),
        "flipped bit in HELLO",
    )
}
