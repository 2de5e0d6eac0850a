//! What the vector files contain.

use super::{digests, frames, hello, hex, invalid, options, pattern, print, Stanza};
use dst_proto::{Algorithm, Credit, Header, Kind, OpFlags, Status, NO_SLOT};

const NONCE: &str = "000102030405060708090a0b0c0d0e0f";
const OTHER: &str = "101112131415161718191a1b1c1d1e1f";
const THIRD: &str = "202122232425262728292a2b2c2d2e2f";

/// Every file: name and text.
pub fn files() -> Vec<(&'static str, String)> {
    vec![
        ("hello.txt", hellos()),
        ("headers.txt", headers()),
        ("options.txt", all_options()),
        ("messages.txt", messages()),
        ("frames.txt", whole_frames()),
        ("functions.txt", functions()),
        ("digests.txt", areas()),
        ("proof.txt", proofs()),
        ("invalid.txt", invalid::file()),
    ]
}

fn hello_stanza(name: &str, role: &str, text: &str) -> Stanza {
    Stanza::new(name)
        .with("role", role)
        .with("lowest", 1)
        .with("highest", 1)
        .with("offered", "0x0")
        .with("required", "0x0")
        .with("nonce", if role == "client" { NONCE } else { OTHER })
        .with("name", text)
}

pub fn hello_cases() -> Vec<Stanza> {
    let later = Stanza::new("later version with features and extension")
        .with("role", "server")
        .with("lowest", 1)
        .with("highest", 700)
        .with("offered", "0x8000000000000005")
        .with("required", "0x1")
        .with("nonce", THIRD)
        .with("name", "ü, forty bytes long, not one more, 1234")
        .with("extension", hex(&pattern(28)));
    let plain = [
        hello_stanza("client", "client", "dst 0.1.0").with("extension", "00000000"),
        hello_stanza("server", "server", "dst 0.1.0").with("extension", "00000000"),
        hello_stanza("no name", "client", "").with("extension", "00000000"),
    ];
    plain
        .into_iter()
        .chain([later])
        .map(|s| hello::describe(&s.name, &hello::build(&s)))
        .collect()
}

fn hellos() -> String {
    print(
        "HELLO, PROTOCOL.md section 2.\n\
         extension: the bytes between name and CRC. hello: the whole, in hex.",
        &hello_cases(),
    )
}

fn header_cases() -> Vec<(String, Header)> {
    let mut cases = Vec::new();
    let credit = Credit {
        requests: 127,
        bytes: 0x0200_0000,
    };
    for (i, kind) in Kind::ALL.into_iter().enumerate() {
        let i = i as u64;
        let mut header = Header {
            options_len: 8 * i as u16,
            area_crc: if i == 0 { 0 } else { 0x0102_0304 << (i % 4) },
            ..Header::new(kind)
        };
        if kind.has_slot() {
            header.slot = 3 + i as u16;
            header.op_flags = kind.op_flags();
            header.attempt = i as u8;
            header.id = 0x0102_0304_0506_0700 + i;
            header.acked = header.id - 9;
            header.after = 2;
            if kind != Kind::FLUSH {
                header.offset = 0x1_0000_0000 + 4096 * i;
                header.length = 0x1000 * i;
            }
        }
        if kind == Kind::WRITE {
            header.payload_len = header.length as u32;
            header.digest_len = 40;
        }
        if matches!(kind, Kind::PING | Kind::ABORT) {
            header.id = 77;
        }
        if kind == Kind::ABORT {
            header.slot = 5;
        }
        if kind == Kind::ERROR {
            header.length = Header::error(Status::PROTOCOL).length;
        }
        cases.push((kind.name().to_string(), header));
        if kind.has_reply() {
            let reply = Header::reply(kind, header.slot, header.id, Status::OK, credit);
            cases.push((format!("reply to {}", kind.name()), reply));
        }
    }
    cases.push((
        "piece of a reply to READ".into(),
        Header {
            more: true,
            offset: 1 << 40,
            payload_len: 1 << 18,
            digest_len: 256,
            area_crc: 0xDEAD_BEEF,
            ..Header::reply(Kind::READ, 9, 12345, Status::OK, credit)
        },
    ));
    cases.push((
        "failed WRITE".into(),
        Header::reply(Kind::WRITE, 9, 12345, Status::NO_SPACE, Credit::default()),
    ));
    cases.push((
        "all limits at their highest".into(),
        Header {
            slot: NO_SLOT - 1,
            op_flags: OpFlags(0xFF),
            attempt: 255,
            options_len: 16384,
            payload_len: 4 << 20,
            id: u64::MAX,
            acked: u64::MAX,
            offset: u64::MAX,
            length: u64::MAX,
            digest_len: 131_088,
            area_crc: u32::MAX,
            after: u32::MAX,
            ..Header::new(Kind::WRITE)
        },
    ));
    cases.push((
        "unknown type in a slot".into(),
        Header {
            slot: 1,
            id: 4,
            payload_len: 8,
            ..Header::new(Kind(200))
        },
    ));
    cases
}

fn headers() -> String {
    let stanzas: Vec<_> = header_cases()
        .iter()
        .map(|(name, header)| {
            let mut bytes = [0; 64];
            header.encode(&mut bytes);
            frames::describe_header(name, &bytes)
        })
        .collect();
    print(
        "Headers, PROTOCOL.md section 3.1: one of every type in both directions. The areas they speak of are not shown.\n\
         A reply and ERROR have status and credit where a request has its length.",
        &stanzas,
    )
}

const EXAMPLES: [(&str, &str); 26] = [
    ("EXPORT_NAME", "disk"),
    ("EXPORT_NAME", "Größe 4 TiB: \"a\""),
    ("NONCE", NONCE),
    (
        "HOLDER",
        "identity=000102030405060708090a0b0c0d0e0f boot=101112131415161718191a1b1c1d1e1f \
         instance=202122232425262728292a2b2c2d2e2f",
    ),
    ("MODE", "1"),
    (
        "LIMITS",
        "slots=129 connections=4 payload=1048576 window=65536 credit=33554432",
    ),
    ("DIGESTS", "algorithms=15 granule=4096"),
    ("DIGESTS", "algorithms=2 granule=65536"),
    ("EXPECT", "export=101112131415161718191a1b1c1d1e1f epoch=3"),
    (
        "SESSION",
        "number=81985529216486895 secret=202122232425262728292a2b2c2d2e2f",
    ),
    ("JOIN", "session=81985529216486895 generation=7 index=2"),
    (
        "PROOF",
        "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f",
    ),
    (
        "EXPORT",
        "id=101112131415161718191a1b1c1d1e1f incarnation=202122232425262728292a2b2c2d2e2f epoch=4",
    ),
    (
        "GEOMETRY",
        "size=10737418240 logical=512 physical=4096 flags=0x7d discard=4096 atomic=0 rollback=1048576",
    ),
    ("SLOTS", ""),
    (
        "SLOTS",
        "id=41 slot=0 state=2 status=0; id=40 slot=5 state=1 status=0; id=39 slot=128 state=2 status=3",
    ),
    ("MESSAGE", "the export is in use by desk"),
    ("TIMES", "keepalive=5000 session=600000 lease=30000"),
    ("RETAINED", "entries=12 bytes=8589934592"),
    (
        "EXTENTS",
        "length=4096 kind=0; length=1099511627776 kind=2; length=512 kind=1",
    ),
    (
        "LISTED",
        "size=10737418240 logical=4096 flags=0x1 name=disk writer=desk",
    ),
    ("LISTED", "size=512 logical=512 flags=0x0 name=a writer="),
    ("OUTCOME", "2"),
    ("CLIENT", "desk"),
    ("WAIT", "2500"),
    ("GROUP", "id=9 part=3 last=4"),
];

fn example(name: &str) -> &'static str {
    EXAMPLES.iter().find(|(n, _)| *n == name).unwrap().1
}

fn all_options() -> String {
    let stanzas: Vec<_> = EXAMPLES
        .iter()
        .enumerate()
        .map(|(i, (name, text))| {
            let stanza = Stanza::new(&format!("{name}, {i}")).with(name, text);
            options::describe(&stanza.name, &options::build(&stanza))
        })
        .collect();
    print(
        "Every option, PROTOCOL.md section 3.3, with its padding. In numbers 0x is hexadecimal; ids, nonces and keys are hex.\n\
         Entries of a table are separated by semicolons.",
        &stanzas,
    )
}

pub fn message_cases() -> Vec<Stanza> {
    let of = |name: &str, list: &[&str]| {
        list.iter().fold(Stanza::new(name), |s, option| {
            s.with(option, example(option))
        })
    };
    let opened = of(
        "reply to OPEN",
        &["SESSION", "EXPORT", "GEOMETRY", "LIMITS"],
    )
    .with("DIGESTS", "algorithms=1 granule=4096")
    .with("TIMES", example("TIMES"));
    vec![
        of(
            "OPEN, first",
            &[
                "EXPORT_NAME",
                "NONCE",
                "MODE",
                "LIMITS",
                "DIGESTS",
                "HOLDER",
                "CLIENT",
            ],
        ),
        of(
            "OPEN, after a session",
            &[
                "EXPORT_NAME",
                "NONCE",
                "MODE",
                "LIMITS",
                "DIGESTS",
                "HOLDER",
                "CLIENT",
                "EXPECT",
                "RETAINED",
            ],
        ),
        of("OPEN, read-only", &["EXPORT_NAME", "NONCE"])
            .with("MODE", 0)
            .with("LIMITS", example("LIMITS"))
            .with("DIGESTS", "algorithms=1 granule=512")
            .with("CLIENT", ""),
        opened,
        of("JOIN", &["NONCE", "JOIN", "PROOF"]),
        of("reply to JOIN, no slots", &["EXPORT", "GEOMETRY", "SLOTS"]),
        of("reply to JOIN, slots", &["EXPORT", "GEOMETRY"]).with(
            "SLOTS",
            "id=41 slot=0 state=2 status=0; id=40 slot=5 state=1 status=0",
        ),
        of("LIST", &["CLIENT"]),
        Stanza::new("reply to LIST, none"),
        of("reply to LIST, two", &["LISTED"])
            .with("LISTED", "size=512 logical=512 flags=0x0 name=a writer="),
        of("refusal", &["MESSAGE", "WAIT"]),
        of("refusal, no hope", &["MESSAGE"]),
        of("CHANGED", &["GEOMETRY"]),
        of("reply to ABORT", &["OUTCOME"]),
        of("reply to BLOCK STATUS", &["EXTENTS"]),
    ]
}

fn messages() -> String {
    let stanzas: Vec<_> = message_cases()
        .iter()
        .map(|s| options::describe(&s.name, &options::build(s)))
        .collect();
    print(
        "The options of frames that have some, PROTOCOL.md section 6, in the format of options.txt.\n\
         A refusal is a reply with a status other than OK, or ERROR.",
        &stanzas,
    )
}

fn frame_stanza(name: &str, header: Header, options: &[u8], algorithm: Algorithm) -> Stanza {
    let bytes = frames::frame(header, options, algorithm, 512);
    frames::describe_frame(name, &bytes, algorithm, 512)
}

fn whole_frames() -> String {
    let open = options::build(&message_cases()[0]);
    let ping = Header {
        id: 5,
        ..Header::new(Kind::PING)
    };
    let write = Header {
        slot: 2,
        op_flags: OpFlags::FUA,
        id: 11,
        acked: 10,
        offset: 3 * 512,
        length: 1024,
        payload_len: 1024,
        ..Header::new(Kind::WRITE)
    };
    let read = Header {
        offset: 4096,
        payload_len: 512,
        ..Header::reply(
            Kind::READ,
            4,
            12,
            Status::OK,
            Credit {
                requests: 8,
                bytes: 65536,
            },
        )
    };
    print(
        "Whole frames, PROTOCOL.md section 3, in a session with the algorithm and granule given. Byte i of a payload is i mod 251.",
        &[
            frame_stanza("PING", ping, &[], Algorithm::None),
            frame_stanza("OPEN", Header::new(Kind::OPEN), &open, Algorithm::None),
            frame_stanza("WRITE without digests", write, &[], Algorithm::None),
            frame_stanza("WRITE with CRC-32C", write, &[], Algorithm::Crc32c),
            frame_stanza("WRITE with BLAKE3", write, &[], Algorithm::Blake3),
            frame_stanza("reply to READ with CRC-64/NVME", read, &[], Algorithm::Crc64Nvme),
        ],
    )
}

fn functions() -> String {
    let mut stanzas = Vec::new();
    let mut add = |stanza: Stanza| {
        let result = hex(&digests::function(&stanza));
        stanzas.push(stanza.with("result", result));
    };
    for function in ["CRC-32C", "CRC-64/NVME", "BLAKE3"] {
        add(Stanza::new(&format!("{function}, check"))
            .with("function", function)
            .with("input", "123456789"));
        let lengths: &[usize] = if function == "BLAKE3" {
            &[
                0, 1, 63, 64, 65, 127, 128, 129, 1023, 1024, 1025, 2048, 2049, 3072, 3073, 4096,
                4104, 5121, 7169, 8193, 16384, 31744, 65544, 262_144,
            ]
        } else {
            &[0, 1, 7, 8, 9, 15, 16, 17, 31, 60, 64, 520, 4104, 65544]
        };
        for len in lengths {
            add(Stanza::new(&format!("{function}, {len}"))
                .with("function", function)
                .with("input", "pattern")
                .with("length", len));
        }
    }
    for len in [0, 1, 64, 1024, 1025, 5000] {
        add(Stanza::new(&format!("BLAKE3 keyed, {len}"))
            .with("function", "BLAKE3 keyed")
            .with("key", format!("{NONCE}{THIRD}"))
            .with("input", "pattern")
            .with("length", len));
    }
    print(
        "The functions below the digests. input: a text, or `pattern`: byte i is i mod 251. CRCs are little-endian.",
        &stanzas,
    )
}

fn areas() -> String {
    let mut stanzas = Vec::new();
    for algorithm in Algorithm::ALL {
        for (granule, offset, len) in [
            (4096, 0u64, 0),
            (4096, 0, 4096),
            (4096, 4096, 4096),
            (4096, 512, 512),
            (4096, 3584, 1024),
            (512, 1, 1),
            (512, 511, 2),
            (512, 1000, 1500),
            (1024, 0xFFFF_FFFF_FE00, 2560),
            (65536, 65535, 65538),
            (65536, 0, 65536),
        ] {
            let stanza = Stanza::new(&format!("{}, {granule}, {offset}, {len}", algorithm.name()))
                .with("algorithm", algorithm.code())
                .with("granule", granule)
                .with("offset", offset)
                .with("length", len);
            let area = hex(&digests::area(&stanza));
            stanzas.push(stanza.with("area", area));
        }
    }
    print(
        "Digest areas with their padding, PROTOCOL.md section 3.4. Byte i of the payload is i mod 251.",
        &stanzas,
    )
}

fn proofs() -> String {
    let hellos = hello_cases();
    let mut stanzas = Vec::new();
    for (name, server, binding) in [
        ("no TLS", &hellos[1], "00".repeat(32)),
        (
            "with a channel binding",
            &hellos[1],
            format!("{OTHER}{THIRD}"),
        ),
        ("server with an extension", &hellos[3], "00".repeat(32)),
    ] {
        let stanza = Stanza::new(name)
            .with("secret", THIRD)
            .with("server-hello", server.get("hello"))
            .with("client-hello", hellos[0].get("hello"))
            .with("binding", binding)
            .with("session", 0x0123_4567_89AB_CDEFu64)
            .with("generation", 7)
            .with("index", 2)
            .with(
                "join",
                "efcdab8967452301".to_string() + "07000000" + "02000000",
            );
        let proof = hex(&digests::proof(&stanza));
        stanzas.push(stanza.with("proof", proof));
    }
    print(
        "The proof of JOIN, PROTOCOL.md section 6.3. join: the value of the option JOIN.",
        &stanzas,
    )
}
