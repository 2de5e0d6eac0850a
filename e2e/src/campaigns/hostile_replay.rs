//! Frames that come twice, connections that come late, JOINs of strangers: none may have an effect, all leave the session alone.

use anyhow::{ensure, Context as _, Result};
use dst_proto::{Header, Join, Kind, Status};

use super::hostile::{Case, Target};
use super::hostile_session::{expect, session};
use crate::wire::{frame, Wire};

/// The cases.
pub const CASES: &[Case] = &[
    (
        "client: frames repeated, by the same and by an old connection",
        repeated,
    ),
    ("client: JOINs that prove nothing", joins),
];

fn repeated(target: &mut Target) -> Result<()> {
    let mut session = session(target)?;
    let (one, two, three) = (vec![1; 4096], vec![2; 4096], vec![3; 4096]);
    let first = session.write_frame(0, 0, &one);
    let id = session.next_id - 1;
    session.wire.send(&first);
    expect("the first write", session.answer(id)?.0, &[Status::OK])?;
    // The same id with other data: answered from what is kept, not executed.
    let forged = Header {
        slot: 0,
        id,
        attempt: 1,
        length: 4096,
        ..Header::new(Kind::WRITE)
    };
    let digests = session.digests(0, &two);
    session.wire.send(&frame(&forged, &[], &digests, &two));
    expect("the same id again", session.answer(id)?.0, &[Status::OK])?;
    ensure!(session.read(0, 4096)? == one, "an id was executed twice");

    // A second connection takes over index 0.
    let join = Join {
        session: session.opened.session.number,
        generation: 2,
        index: 0,
    };
    let mut wire = Wire::connect(target.addr)?;
    let options = wire.join_options(&session.opened.session.secret, join)?;
    let reply = wire.join_with(&options)?;
    ensure!(
        reply.header.status().is_ok(),
        "JOIN: {}",
        reply.header.status()
    );
    wire.send(&frame(&Header::new(Kind::REPLAYED), &[], &[], &[]));
    let late = session.write_frame(1, 0, &three);
    session.next_id -= 1;
    let mut old = std::mem::replace(&mut session.wire, wire);
    old.send(&late);
    old.send(&first);
    old.finish();
    let answered = std::iter::from_fn(|| old.reply().ok().flatten())
        .any(|frame| frame.header.kind == Kind::WRITE && frame.header.reply);
    ensure!(!answered, "a superseded connection is answered");
    session.ping()?;
    ensure!(
        session.read(0, 4096)? == one,
        "a superseded connection had an effect"
    );

    // The very bytes of that JOIN once more, on a connection of its own.
    let mut thief = Wire::connect(target.addr)?;
    let reply = thief.join_with(&options)?;
    ensure!(
        !reply.header.status().is_ok(),
        "a recorded JOIN is accepted"
    );
    session.ping()?;
    // A generation that was there already, properly proved.
    let mut stale = Wire::connect(target.addr)?;
    let options = stale.join_options(&session.opened.session.secret, join)?;
    let status = stale.join_with(&options)?.header.status();
    expect(
        "a generation used before",
        status,
        &[Status::STALE_GENERATION],
    )?;
    session.ping()?;
    session.close()
}

fn joins(target: &mut Target) -> Result<()> {
    let mut session = session(target)?;
    let number = session.opened.session.number;
    let secret = session.opened.session.secret;
    let mut guess = secret;
    guess[15] ^= 1;
    for (what, secret, join, wanted) in [
        (
            "a wrong secret",
            guess,
            Join {
                session: number,
                generation: 9,
                index: 0,
            },
            Status::SESSION_LOST,
        ),
        (
            "no such session",
            secret,
            Join {
                session: number ^ (1 << 50),
                generation: 9,
                index: 0,
            },
            Status::SESSION_LOST,
        ),
        (
            "an index that was not granted",
            secret,
            Join {
                session: number,
                generation: 1,
                index: 900,
            },
            Status::PROTOCOL,
        ),
    ] {
        let mut wire = Wire::connect(target.addr)?;
        let options = wire.join_options(&secret, join)?;
        let reply = wire.join_with(&options).with_context(|| what.to_owned())?;
        let status = reply.header.status();
        expect(what, status, &[wanted])?;
        session
            .ping()
            .with_context(|| format!("{what}: the session itself"))?;
    }
    session.close()
}
