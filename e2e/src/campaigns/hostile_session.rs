//! What may be said within a session, and may not. Statuses as PROTOCOL.md gives them. (Frames and connections that come once
//! more are in `hostile_replay.rs`.)

use std::net::SocketAddr;

use anyhow::{ensure, Context as _, Result};
use dst_proto::option::number;
use dst_proto::{Aborted, Header, Kind, Mode, OpFlags, Outcome, Status};

use super::hostile::{Case, Target, SCRATCH};
use crate::wire::{frame, option, Session, Wire};

/// The cases.
pub const CASES: &[Case] = &[
    ("client: ranges and lengths that can't be", ranges),
    ("client: payloads with bad digests", digests),
    ("client: unknown options, flags and types", unknown),
    ("client: ids and slots outside of what was granted", ids),
    ("client: a write in a read-only session", read_only_session),
    ("client: more than the credit", credit),
    ("client: ABORT of what never came", aborts),
];

/// A session that may write.
pub fn session(target: &Target) -> Result<Session> {
    Session::open(target.addr, "scratch", Mode::SoleWriter)
        .context("a session of the hostile client")
}

/// # Errors
/// Another status.
pub fn expect(what: &str, is: Status, wanted: &[Status]) -> Result<()> {
    ensure!(wanted.contains(&is), "{what}: {is} instead of {wanted:?}");
    Ok(())
}

fn ranges(target: &mut Target) -> Result<()> {
    let mut session = session(target)?;
    let beyond = [Status::RANGE, Status::INVALID];
    let block = u64::from(session.opened.geometry.logical_block);
    let longest = u64::from(session.opened.limits.max_payload);
    for kind in [
        Kind::READ,
        Kind::DISCARD,
        Kind::WRITE_ZEROES,
        Kind::BLOCK_STATUS,
    ] {
        let mut run = |what: &str, offset, length, wanted: &[Status]| -> Result<()> {
            let status = session
                .run(kind, offset, length)
                .with_context(|| format!("{kind:?} {what}"))?;
            expect(&format!("{kind:?} {what}"), status, wanted)
        };
        run("beyond the end", SCRATCH, block, &beyond)?;
        run("across the end", SCRATCH - block, 2 * block, &beyond)?;
        run("of everything there is", 0, u64::MAX - block + 1, &beyond)?;
        run(
            "around the end of numbers",
            u64::MAX - block + 1,
            2 * block,
            &beyond,
        )?;
        run("of nothing", 0, 0, &[Status::INVALID])?;
        run("misaligned", 1, block, &[Status::INVALID])?;
        run("of half a block", 0, block / 2, &[Status::INVALID])?;
    }
    let status = session.run(Kind::READ, 0, longest + block)?;
    expect("READ above the largest payload", status, &[Status::INVALID])?;
    let status = session.run(Kind::FLUSH, block, block)?;
    expect("FLUSH with a range", status, &[Status::INVALID])?;
    let status = session.write(SCRATCH, &[1; 4096])?;
    expect("WRITE beyond the end", status, &beyond)?;
    let status = session.write(100, &[1; 4096])?;
    expect("WRITE misaligned", status, &[Status::INVALID])?;
    // A length that is not that of the payload.
    let header = Header {
        length: 512,
        ..session.request(Kind::WRITE, 0, 0, 0)
    };
    let digests = session.digests(0, &[1; 4096]);
    session
        .wire
        .send(&frame(&header, &[], &digests, &[1; 4096]));
    match session.wire.reply()? {
        Some(reply) => ensure!(
            !reply.header.status().is_ok(),
            "a WRITE of two lengths is done"
        ),
        None => return Ok(()),
    }
    ensure!(
        session.read(0, 4096)?.iter().all(|b| *b != 1),
        "a refused WRITE had an effect"
    );
    session.close()
}

fn digests(target: &mut Target) -> Result<()> {
    let mut session = session(target)?;
    let old = vec![0x11; 64 << 10];
    ensure!(session.write(0, &old)?.is_ok(), "the first write");
    let new = vec![0x22; 64 << 10];
    let header = session.request(Kind::WRITE, 0, 0, 64 << 10);
    let id = header.id;
    let area = session.digests(0, &new);
    // The last bit of the payload.
    let mut bad = new.clone();
    bad[(64 << 10) - 1] ^= 1;
    for attempt in 0..3 {
        session
            .wire
            .send(&frame(&Header { attempt, ..header }, &[], &area, &bad));
        let (status, _) = session.answer(id)?;
        expect("a flipped bit in a payload", status, &[Status::RETRY])?;
    }
    let mut reader = Session::open(target.addr, "scratch", Mode::ReadOnly)?;
    ensure!(
        reader.read(0, 64 << 10)? == old,
        "a payload with a bad digest had an effect"
    );
    reader.close()?;
    session.wire.send(&frame(
        &Header {
            attempt: 3,
            ..header
        },
        &[],
        &area,
        &new,
    ));
    let (status, _) = session.answer(id)?;
    expect("the same with good digests", status, &[Status::OK])?;
    ensure!(
        session.read(0, 64 << 10)? == new,
        "the repeated WRITE had no effect"
    );
    session.close()?;

    // An area of another length ends the connection.
    for len in [0, 8, 4096] {
        let mut session = self::session(target)?;
        let header = session.request(Kind::WRITE, 0, 0, 64 << 10);
        session.wire.send(&frame(&header, &[], &vec![0; len], &new));
        session
            .wire
            .expect_closed()
            .with_context(|| format!("a digest area of {len} bytes"))?;
    }
    Ok(())
}

fn unknown(target: &mut Target) -> Result<()> {
    let mut session = session(target)?;
    let send = |session: &mut Session,
                what: &str,
                change: &dyn Fn(&mut Header),
                options: &[u8],
                payload: &[u8]| {
        let kind = if payload.is_empty() {
            Kind::READ
        } else {
            Kind::WRITE
        };
        let mut header = session.request(kind, 0, 8192, 4096);
        change(&mut header);
        let digests = session.digests(8192, payload);
        session
            .wire
            .send(&frame(&header, options, &digests, payload));
        session
            .answer(header.id)
            .map(|(status, _)| status)
            .with_context(|| what.to_owned())
    };
    let payload = [0x77; 4096];
    let critical = option(0x8000 | 200, b"what is this");
    let group = option(0x8000 | number::GROUP, &[0; 16]);
    let plain = option(200, b"never mind");
    let same = |_: &mut Header| {};
    for (what, options, payload) in [
        ("READ, unknown critical option", &critical, &[][..]),
        ("WRITE, unknown critical option", &critical, &payload),
        ("WRITE, GROUP", &group, &payload),
    ] {
        let status = send(&mut session, what, &same, options, payload)?;
        expect(what, status, &[Status::UNSUPPORTED])?;
    }
    let status = send(&mut session, "unknown option", &same, &plain, &[])?;
    expect("READ, unknown option", status, &[Status::OK])?;
    for (what, flags) in [
        ("an undefined flag", 1 << 6),
        ("FUA on READ", OpFlags::FUA.0),
    ] {
        let status = send(
            &mut session,
            what,
            &|h| h.op_flags = OpFlags(flags),
            &[],
            &[],
        )?;
        expect(what, status, &[Status::UNSUPPORTED])?;
    }
    let status = send(
        &mut session,
        "unknown type",
        &|h| h.kind = Kind(60),
        &[],
        &[],
    )?;
    expect("an unknown type in a slot", status, &[Status::UNSUPPORTED])?;
    ensure!(
        session.read(8192, 4096)?.iter().all(|b| *b != 0x77),
        "an unsupported WRITE had an effect"
    );
    session.ping()?;
    session.close()?;
    for kind in [
        Kind::CHANGED,
        Kind::DRAINING,
        Kind::OPEN,
        Kind::LIST,
        Kind(61),
    ] {
        let mut session = self::session(target)?;
        session.wire.send(&frame(&Header::new(kind), &[], &[], &[]));
        session
            .wire
            .expect_closed()
            .with_context(|| format!("{kind:?} within a session"))?;
    }
    Ok(())
}

fn ids(target: &mut Target) -> Result<()> {
    let far = |id: u64| move |h: &mut Header| h.id = id;
    type Change = Box<dyn Fn(&mut Header)>;
    let changes: [(&str, Change); 4] = [
        ("an id far above the window", Box::new(far(1 << 40))),
        ("the greatest id", Box::new(far(u64::MAX))),
        ("a slot that was not granted", Box::new(|h| h.slot = 999)),
        ("no slot", Box::new(|h| h.slot = dst_proto::NO_SLOT)),
    ];
    for (what, change) in changes {
        let mut session = session(target)?;
        let mut header = session.request(Kind::READ, 0, 0, 4096);
        change(&mut header);
        session.wire.send(&frame(&header, &[], &[], &[]));
        session
            .wire
            .expect_closed()
            .with_context(|| what.to_owned())?;
    }
    // An id below the slot's is not answered, and nothing comes of it.
    let mut session = session(target)?;
    for _ in 0..5 {
        session.read(0, 4096)?;
    }
    let late = Header {
        slot: 0,
        id: 2,
        length: 4096,
        offset: 4096,
        ..Header::new(Kind::WRITE)
    };
    let digests = session.digests(4096, &[0x99; 4096]);
    session
        .wire
        .send(&frame(&late, &[], &digests, &[0x99; 4096]));
    session.ping().context("after an id below the slot's")?;
    ensure!(
        session.read(4096, 4096)?.iter().all(|b| *b != 0x99),
        "an id below the slot's had an effect"
    );
    session.close()
}

fn read_only_session(target: &mut Target) -> Result<()> {
    let mut session = Session::open(target.addr, "scratch", Mode::ReadOnly)?;
    write_is_refused(&mut session)?;
    session.close()
}

fn write_is_refused(session: &mut Session) -> Result<()> {
    let before = session.read(0, 4096)?;
    expect(
        "WRITE",
        session.write(0, &[0xEE; 4096])?,
        &[Status::READ_ONLY],
    )?;
    for kind in [Kind::DISCARD, Kind::WRITE_ZEROES] {
        // An export that can't be written does not offer these at all, perhaps.
        let refused = [Status::READ_ONLY, Status::UNSUPPORTED];
        expect(&format!("{kind:?}"), session.run(kind, 0, 4096)?, &refused)?;
    }
    ensure!(
        session.read(0, 4096)? == before,
        "a refused write had an effect"
    );
    Ok(())
}

/// A server that serves read-only: no session for writers, no writes in others.
pub fn read_only_export(addr: SocketAddr) -> Result<()> {
    let mut session = Session::open(addr, "ro", Mode::ReadOnly)?;
    write_is_refused(&mut session)?;
    session.close()?;
    let mut wire = Wire::connect(addr)?;
    let options = crate::wire::open_options("ro", wire.nonce, Mode::SoleWriter);
    let reply = wire.open_with(&options)?;
    if reply.header.status().is_ok() {
        let mut session = Wire::connect(addr)?.open("ro", Mode::SoleWriter)?;
        write_is_refused(&mut session)?;
        session.close()?;
    }
    Ok(())
}

fn credit(target: &mut Target) -> Result<()> {
    let mut session = session(target)?;
    let slots = session.opened.limits.slots;
    // All slots at once is allowed, but for the last, which is for FLUSH.
    let mut all = Vec::new();
    for slot in 0..slots - 1 {
        let header = session.request(Kind::READ, slot, 0, 4096);
        all.extend(frame(&header, &[], &[], &[]));
    }
    session.wire.send(&all);
    for _ in 0..slots - 1 {
        let reply = session
            .wire
            .reply()?
            .context("an answer within the credit")?;
        ensure!(
            reply.header.status().is_ok(),
            "within the credit: {}",
            reply.header.status()
        );
    }
    session.close()?;
    // Payloads beyond any credit in bytes, unanswered because they never end.
    let mut session = self::session(target)?;
    let payload = vec![5; 4 << 20];
    let mut ended = false;
    for slot in 0..slots - 1 {
        // Overlapping writes wait for each other, so that most are unanswered at any time.
        let bytes = session.write_frame(slot, 0, &payload);
        session.wire.send(&bytes);
        if session.wire.stream().take_error()?.is_some() {
            ended = true;
            break;
        }
    }
    // Either the connection has ended or everything was answered in the end; the server is not worse off.
    if !ended {
        while let Ok(Some(frame)) = session.wire.reply() {
            if frame.header.id == session.next_id - 1 {
                break;
            }
        }
    }
    Ok(())
}

fn aborts(target: &mut Target) -> Result<()> {
    let mut session = session(target)?;
    ensure!(session.write(0, &[0x31; 4096])?.is_ok(), "the first write");
    let id = session.next_id;
    let abort = Header {
        slot: 3,
        id,
        ..Header::new(Kind::ABORT)
    };
    for _ in 0..2 {
        session.wire.send(&frame(&abort, &[], &[], &[]));
        let reply = session.wire.reply()?.context("no answer to ABORT")?;
        let aborted =
            Aborted::decode(reply.options()).map_err(|error| anyhow::anyhow!("ABORT: {error}"))?;
        ensure!(
            aborted.outcome == Outcome::NeverExecuted,
            "ABORT of what never came: {:?}",
            aborted.outcome
        );
    }
    // It comes too late.
    let late = session.write_frame(3, 0, &[0x32; 4096]);
    session.wire.send(&late);
    session.ping()?;
    ensure!(
        session.read(0, 4096)? == [0x31; 4096],
        "an aborted WRITE had an effect"
    );
    session.close()
}
