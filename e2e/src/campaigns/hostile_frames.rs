//! What may be said to a server before there is a session, and may not.

use std::io::Write as _;
use std::time::Duration;

use anyhow::{ensure, Context as _, Result};
use dst_proto::option::number;
use dst_proto::{Header, Hello, Kind, Mode, Role, Status, HEADER_LEN, HELLO_LEN};

use super::hostile::{Case, Target};
use crate::wire::{connect, frame, hello, open_options, option, read_to_end, Session, Wire};

/// A connection on which nothing more can come must end within this time; the server allows 10 s for HELLO and first frame.
const GREETING: Duration = Duration::from_secs(16);

/// The cases.
pub const CASES: &[Case] = &[
    ("client: random bytes", random_bytes),
    ("client: HELLOs that are none", bad_hellos),
    ("client: frames that are none", bad_frames),
    ("client: frames that end early", truncated),
    ("client: OPENs that can't be", bad_opens),
    ("client: one bit wrong, or a few bytes missing", mutations),
];

fn random_bytes(target: &mut Target) -> Result<()> {
    for round in 0..if target.short { 60 } else { 2000 } {
        let mut stream = connect(target.addr)?;
        let len = target.rng.below(1..20_000) as usize;
        let bytes = target.rng.bytes(len);
        // The server may close before it has read all.
        let _ = stream.write_all(&bytes);
        // Below 16 bytes, or with 8 bytes like the magic, it may wait for more; not so here.
        if round % 8 == 0 && len > 64 {
            read_to_end(&mut stream, GREETING).with_context(|| format!("round {round}"))?;
        }
    }
    Ok(())
}

fn bad_hellos(target: &mut Target) -> Result<()> {
    let good = hello();
    let encoded = |hello: &Hello| {
        let mut bytes = [0; HELLO_LEN];
        hello.encode(&mut bytes);
        bytes.to_vec()
    };
    let resealed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = encoded(&good);
        change(&mut bytes);
        let end = bytes.len() - 4;
        let crc = dst_proto::crc32c::of(&bytes[..end]);
        bytes[end..].copy_from_slice(&crc.to_le_bytes());
        bytes
    };
    let mut wrong_crc = encoded(&good);
    wrong_crc[50] ^= 0x10;
    let cases = [
        (
            "role of a server",
            encoded(&Hello {
                role: Role::Server,
                ..good
            }),
        ),
        ("no such role", resealed(&|b| b[10] = 9)),
        (
            "version from the future",
            encoded(&Hello {
                lowest: 2,
                highest: 9,
                ..good
            }),
        ),
        (
            "empty range of versions",
            resealed(&|b| b[12..16].copy_from_slice(&[2, 0, 1, 0])),
        ),
        (
            "feature that nobody has",
            encoded(&Hello {
                offered: 1 << 40,
                required: 1 << 40,
                ..good
            }),
        ),
        ("required but not offered", resealed(&|b| b[24] = 1)),
        ("wrong magic", resealed(&|b| b[0] = b'X')),
        (
            "length below 96",
            resealed(&|b| b[8..10].copy_from_slice(&88_u16.to_le_bytes())),
        ),
        (
            "length that is no multiple",
            resealed(&|b| b[8..10].copy_from_slice(&97_u16.to_le_bytes())),
        ),
        (
            "length above 1024",
            resealed(&|b| b[8..10].copy_from_slice(&1032_u16.to_le_bytes())),
        ),
        ("wrong CRC", wrong_crc),
    ];
    for (what, bytes) in cases {
        let mut stream = connect(target.addr)?;
        stream.write_all(&bytes)?;
        // At once: nothing that could still come would make it right.
        read_to_end(&mut stream, Duration::from_secs(5)).with_context(|| what.to_owned())?;
    }
    // An extension is ignored.
    let mut stream = connect(target.addr)?;
    let mut long = encoded(&good);
    long.truncate(HELLO_LEN - 4);
    long.resize(1020, 0xAA);
    long[8..10].copy_from_slice(&1024_u16.to_le_bytes());
    let crc = dst_proto::crc32c::of(&long);
    long.extend(crc.to_le_bytes());
    long.extend(frame(&Header::new(Kind::LIST), &[], &[], &[]));
    stream.write_all(&long)?;
    let said = read_to_end(&mut stream, GREETING)?;
    ensure!(
        said.len() > HELLO_LEN,
        "a HELLO of 1024 bytes and LIST were not answered"
    );
    Ok(())
}

/// A header with a good CRC over whatever stands in it.
fn resealed(header: &Header, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut bytes = [0; HEADER_LEN];
    header.encode(&mut bytes);
    change(&mut bytes);
    let crc = dst_proto::crc32c::of(&bytes[..HEADER_LEN - 4]);
    bytes[HEADER_LEN - 4..].copy_from_slice(&crc.to_le_bytes());
    bytes.to_vec()
}

fn bad_frames(target: &mut Target) -> Result<()> {
    let list = Header::new(Kind::LIST);
    let write = Header::new(Kind::WRITE);
    let mut wrong_crc = resealed(&list, |_| {});
    wrong_crc[20] ^= 1;
    let mut wrong_area = frame(&list, &option(number::CLIENT, b"x"), &[], &[]);
    let last = wrong_area.len() - 1;
    wrong_area[last] ^= 1;
    let cases = [
        ("wrong magic", resealed(&list, |b| b[0] = b'X')),
        ("wrong header CRC", wrong_crc),
        ("wrong CRC of the options", wrong_area),
        (
            "options above the limit",
            resealed(&list, |b| {
                b[10..12].copy_from_slice(&16392_u16.to_le_bytes())
            }),
        ),
        ("options no multiple of 8", resealed(&list, |b| b[10] = 7)),
        (
            "payload above the limit",
            resealed(&write, |b| {
                b[12..16].copy_from_slice(&(u32::MAX - 7).to_le_bytes())
            }),
        ),
        ("payload in a frame without", resealed(&list, |b| b[12] = 8)),
        (
            "digests above the limit",
            resealed(&write, |b| {
                b[12..16].copy_from_slice(&4096_u32.to_le_bytes());
                b[48..52].copy_from_slice(&0xFFFF_FFF8_u32.to_le_bytes());
            }),
        ),
        ("undefined flag", resealed(&list, |b| b[5] = 0x20)),
        ("a reply from a client", resealed(&list, |b| b[5] = 0x80)),
        (
            "a reply to PING that was not sent",
            resealed(&Header::new(Kind::PING), |b| b[5] = 0x80),
        ),
        (
            "READ before OPEN",
            frame(
                &Header {
                    slot: 0,
                    id: 1,
                    length: 4096,
                    ..Header::new(Kind::READ)
                },
                &[],
                &[],
                &[],
            ),
        ),
        (
            "CLOSE before OPEN",
            frame(&Header::new(Kind::CLOSE), &[], &[], &[]),
        ),
        (
            "an unknown type",
            frame(&Header::new(Kind(99)), &[], &[], &[]),
        ),
        (
            "CHANGED from a client",
            frame(&Header::new(Kind::CHANGED), &[], &[], &[]),
        ),
        (
            "ERROR from a client",
            frame(&Header::error(Status::IO), &[], &[], &[]),
        ),
    ];
    for (what, bytes) in cases {
        let mut wire = Wire::connect(target.addr)?;
        wire.send(&bytes);
        let said = read_to_end(wire.stream(), GREETING).with_context(|| what.to_owned())?;
        ensure!(said.len() < 4096, "{what}: {} bytes in answer", said.len());
    }
    Ok(())
}

fn truncated(target: &mut Target) -> Result<()> {
    let mut whole = Wire::connect(target.addr)?;
    let bytes = frame(
        &Header::new(Kind::OPEN),
        &open_options("scratch", whole.nonce, Mode::ReadOnly),
        &[],
        &[],
    );
    whole.finish();
    for _ in 0..if target.short { 20 } else { 300 } {
        let cut = target.rng.below(0..bytes.len() as u64) as usize;
        let mut wire = Wire::connect(target.addr)?;
        wire.send(&bytes[..cut]);
        wire.finish();
        read_to_end(wire.stream(), GREETING).with_context(|| format!("cut at {cut}"))?;
    }
    Ok(())
}

fn bad_opens(target: &mut Target) -> Result<()> {
    let all = |target: &Target| -> Result<(Wire, Vec<u8>)> {
        let wire = Wire::connect(target.addr)?;
        let options = open_options("scratch", wire.nonce, Mode::ReadOnly);
        Ok((wire, options))
    };
    let refused =
        |what: &str, wire: &mut Wire, options: &[u8], wanted: Option<Status>| -> Result<()> {
            let reply = wire.open_with(options).with_context(|| what.to_owned())?;
            let status = reply.header.status();
            ensure!(!status.is_ok(), "{what}: granted");
            ensure!(
                wanted.is_none_or(|wanted| [wanted, Status::PROTOCOL].contains(&status)),
                "{what}: {status} instead of {wanted:?}"
            );
            wire.expect_closed()
                .with_context(|| format!("{what}: after the refusal"))
        };
    let (mut wire, options) = all(target)?;
    let critical = [&options[..], &option(0x8000 | 300, b"must know")].concat();
    refused(
        "unknown critical option",
        &mut wire,
        &critical,
        Some(Status::UNSUPPORTED),
    )?;
    let (mut wire, options) = all(target)?;
    let twice = [&options[..], &option(number::MODE, &[0])].concat();
    refused("an option twice", &mut wire, &twice, Some(Status::PROTOCOL))?;
    let (mut wire, _) = all(target)?;
    refused("no options", &mut wire, &[], Some(Status::PROTOCOL))?;
    let (mut wire, _) = all(target)?;
    let nonce = [3; 16];
    refused(
        "another connection's nonce",
        &mut wire,
        &open_options("scratch", nonce, Mode::ReadOnly),
        None,
    )?;
    let mut wire = Wire::connect(target.addr)?;
    let options = open_options("no-such-export", wire.nonce, Mode::ReadOnly);
    refused(
        "no such export",
        &mut wire,
        &options,
        Some(Status::NO_EXPORT),
    )?;
    let (mut wire, mut options) = all(target)?;
    // The first option is the name: its length beyond the end.
    options[2..4].copy_from_slice(&60_000_u16.to_le_bytes());
    refused(
        "an option beyond the end",
        &mut wire,
        &options,
        Some(Status::PROTOCOL),
    )?;
    let (mut wire, mut options) = all(target)?;
    options[5] = b'/';
    refused(
        "a name with a slash",
        &mut wire,
        &options,
        Some(Status::INVALID),
    )?;
    // An unknown option that is not critical changes nothing.
    let (mut wire, options) = all(target)?;
    let more = [&options[..], &option(300, b"whatever")].concat();
    let reply = wire.open_with(&more)?;
    ensure!(
        reply.header.status().is_ok(),
        "an unknown option that is not critical: {}",
        reply.header.status()
    );
    Ok(())
}

/// A valid conversation, of which one byte is changed or some are left out. Whatever the server makes of it, it neither
/// crashes nor keeps the connection for ever.
fn mutations(target: &mut Target) -> Result<()> {
    for round in 0..if target.short { 80 } else { 3000 } {
        let mut wire = Wire::connect(target.addr)?;
        let mut script = frame(
            &Header::new(Kind::OPEN),
            &open_options("scratch", wire.nonce, Mode::ReadOnly),
            &[],
            &[],
        );
        script.extend(frame(&Header::new(Kind::REPLAYED), &[], &[], &[]));
        for id in 1..6_u64 {
            let kind = [Kind::READ, Kind::BLOCK_STATUS, Kind::FLUSH, Kind::PING][(id % 4) as usize];
            let length = if kind == Kind::FLUSH { 0 } else { 8192 };
            let header = Header {
                slot: id as u16,
                id,
                length,
                ..Header::new(kind)
            };
            script.extend(frame(&header, &[], &[], &[]));
        }
        script.extend(frame(&Header::new(Kind::CLOSE), &[], &[], &[]));
        let at = target.rng.below(0..script.len() as u64) as usize;
        match round % 3 {
            0 => script[at] ^= 1 << target.rng.below(0..8),
            1 => {
                let len = target.rng.below(1..100) as usize;
                script.drain(at..(at + len).min(script.len()));
            }
            _ => {
                let end = (at + 64).min(script.len());
                target.rng.fill(&mut script[at..end]);
            }
        }
        wire.send(&script);
        wire.finish();
        // With its own direction closed by the client, the connection has to end.
        read_to_end(wire.stream(), Duration::from_secs(30))
            .with_context(|| format!("round {round}"))?;
    }
    // And an honest one is served.
    let mut session = Session::open(target.addr, "scratch", Mode::ReadOnly)?;
    session.read(0, 4096)?;
    session.close()
}
