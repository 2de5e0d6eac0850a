//! Vectors of what must be refused, and with what.

use super::{cases, fixed, hex, options, print, Stanza};
use dst_proto::{
    Aborted, Header, Hello, JoinRequest, Kind, OpenRequest, OptionError, OptionWriter, HEADER_LEN,
};

/// The error that decoding the bytes gives, and how the frame is answered.
pub fn verdict(stanza: &Stanza) -> (String, String) {
    const CLOSED: &str = "connection ends";
    let bytes = stanza.bytes("bytes");
    let of_request = |error: Option<OptionError>| {
        let error = error.expect("refused");
        (error.to_string(), error.status().name().to_string())
    };
    match stanza.get("structure") {
        "header" => {
            let bytes: [u8; HEADER_LEN] = fixed(stanza.get("bytes"));
            let error = Header::decode(&bytes).expect_err("refused");
            (error.to_string(), CLOSED.into())
        }
        "HELLO" => {
            let error = Hello::decode(&bytes).expect_err("refused");
            (error.to_string(), CLOSED.into())
        }
        "options of OPEN" => of_request(OpenRequest::decode(&bytes).err()),
        "options of JOIN" => of_request(JoinRequest::decode(&bytes).err()),
        "options of a reply to ABORT" => {
            let error = Aborted::decode(&bytes).expect_err("refused");
            (error.to_string(), CLOSED.into())
        }
        other => panic!("structure {other}"),
    }
}

pub fn file() -> String {
    let stanzas: Vec<_> = headers()
        .into_iter()
        .chain(hellos())
        .chain(option_cases())
        .map(|stanza| {
            let (error, answer) = verdict(&stanza);
            let bytes = stanza.get("bytes").to_string();
            Stanza::new(&stanza.name)
                .with("structure", stanza.get("structure"))
                .with("error", error)
                .with("answer", answer)
                .with("bytes", bytes)
        })
        .collect();
    print(
        "What must be refused. answer: the status of the reply, or that the connection ends. CRCs are right unless said.",
        &stanzas,
    )
}

fn case(name: &str, structure: &str, bytes: &[u8]) -> Stanza {
    Stanza::new(name)
        .with("structure", structure)
        .with("bytes", hex(bytes))
}

/// With the CRC in the last four bytes made right.
fn seal(mut bytes: Vec<u8>) -> Vec<u8> {
    let at = bytes.len() - 4;
    let crc = crc32c::crc32c(&bytes[..at]).to_le_bytes();
    bytes[at..].copy_from_slice(&crc);
    bytes
}

fn headers() -> Vec<Stanza> {
    let good = Header {
        slot: 3,
        id: 9,
        length: 4096,
        payload_len: 4096,
        digest_len: 8,
        ..Header::new(Kind::WRITE)
    };
    let mut bytes = [0; HEADER_LEN];
    good.encode(&mut bytes);
    let patched = |name: &str, patches: &[(usize, u8)]| {
        let mut bytes = bytes.to_vec();
        for (at, value) in patches {
            bytes[*at] = *value;
        }
        case(name, "header", &seal(bytes))
    };
    let mut flipped = bytes;
    flipped[33] ^= 4;
    vec![
        case("header, one bit flipped", "header", &flipped),
        patched("header, wrong magic", &[(3, 0x32)]),
        patched("header, undefined flag", &[(5, 2)]),
        patched("header, MORE in a request", &[(5, 1)]),
        patched(
            "header, reply of a type without reply",
            &[(4, 33), (5, 0x80)],
        ),
        patched("header, options no multiple of 8", &[(10, 4)]),
        patched("header, options too long", &[(10, 8), (11, 0x40)]),
        patched("header, payload too long", &[(12, 1), (14, 0x40)]),
        patched("header, digest area no multiple of 8", &[(48, 9)]),
        patched("header, digest area too long", &[(48, 0x18), (50, 2)]),
        patched("header, payload in a request to READ", &[(4, 16)]),
        patched("header, digests without payload", &[(12, 0), (13, 0)]),
    ]
}

fn hellos() -> Vec<Stanza> {
    let good = cases::hello_cases()[0].bytes("hello");
    let patched = |name: &str, patches: &[(usize, u8)]| {
        let mut bytes = good.clone();
        for (at, value) in patches {
            bytes[*at] = *value;
        }
        case(name, "HELLO", &seal(bytes))
    };
    let mut flipped = good.clone();
    flipped[60] ^= 1;
    let mut long = good.clone();
    long.resize(1032, 0);
    long[8..10].copy_from_slice(&1032u16.to_le_bytes());
    vec![
        case("HELLO, one bit flipped", "HELLO", &flipped),
        patched("HELLO, wrong magic", &[(7, 1)]),
        patched("HELLO, too short", &[(8, 88)]),
        patched("HELLO, no multiple of 8", &[(8, 100)]),
        case("HELLO, too long", "HELLO", &seal(long)),
        patched("HELLO, no such role", &[(10, 2)]),
        patched("HELLO, lowest version above the highest", &[(12, 2)]),
        patched("HELLO, requires what it does not offer", &[(24, 1)]),
    ]
}

fn option_cases() -> Vec<Stanza> {
    let open = &cases::message_cases()[0];
    let with = |name: &str, change: fn(&mut OptionWriter<'_>)| {
        let mut bytes = options::build(open);
        let len = bytes.len();
        bytes.resize(len + 64, 0);
        let mut out = OptionWriter::new(&mut bytes[len..]);
        change(&mut out);
        let used = out.len();
        case(name, "options of OPEN", &bytes[..len + used])
    };
    let without = |option: &str| {
        let mut open = open.clone();
        open.lines.retain(|(name, _)| name != option);
        let name = format!("OPEN, without {option}");
        case(&name, "options of OPEN", &options::build(&open))
    };
    let good = options::build(open);
    let mut slash = good.clone();
    slash[5] = b'/';
    let mut beyond = good.clone();
    beyond[good.len() - 6] += 1;
    let mut cases = vec![
        with("OPEN, unknown critical option", |out| {
            out.put(700, true, &[b"x"]).unwrap();
        }),
        with("OPEN, option critical that OPEN doesn't have", |out| {
            out.put(21, true, &[&[0; 4]]).unwrap();
        }),
        with("OPEN, NONCE twice", |out| {
            out.put(2, false, &[&[0; 16]]).unwrap();
        }),
        with("OPEN, RETAINED too short", |out| {
            out.put(16, false, &[&[0; 12]]).unwrap();
        }),
        case("OPEN, slash in the name", "options of OPEN", &slash),
        case(
            "OPEN, last option beyond the end",
            "options of OPEN",
            &beyond,
        ),
        case("JOIN, nothing", "options of JOIN", &[]),
        case(
            "reply to ABORT, no such outcome",
            "options of a reply to ABORT",
            &[19, 0, 1, 0, 5, 0, 0, 0],
        ),
    ];
    for option in [
        "EXPORT_NAME",
        "NONCE",
        "MODE",
        "LIMITS",
        "DIGESTS",
        "HOLDER",
    ] {
        cases.push(without(option));
    }
    cases
}
