//! Clients that say nothing wrong and mean no good: silent, slow, deaf, many.

use std::io::{ErrorKind, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{ensure, Context as _, Result};
use dst_proto::{Header, Kind, Mode, HELLO_LEN};

use super::hostile::{Case, Target, SCRATCH};
use crate::wait;
use crate::wire::{connect, frame, hello, open_options, read_to_end, Session, Wire};

/// The server allows 10 s for HELLO and first frame.
const GREETING: Duration = Duration::from_secs(16);
/// How soon an honest client must be served again.
const SERVED: Duration = Duration::from_secs(30);

/// The cases.
pub const CASES: &[Case] = &[
    ("client: says nothing, or a byte a second", silent_and_slow),
    ("client: a byte a second within a session", slow_session),
    ("client: never reads its replies", deaf),
    ("client: PINGs without end and reads nothing", deaf_ping),
    ("client: many connections", many),
    ("client: many sessions", many_sessions),
];

/// An honest client gets what it asks for.
fn served(target: &Target) -> Result<()> {
    let addr = target.addr;
    let mut last = None;
    let honest = || {
        let once = Session::open(addr, "scratch", Mode::ReadOnly).and_then(|mut session| {
            session.read(0, 4096)?;
            session.close()
        });
        Ok(once.map_err(|error| last = Some(error)).is_ok())
    };
    let done = wait::until("an honest client to be served", SERVED, honest);
    done.with_context(|| format!("last: {last:?}"))
}

fn silent_and_slow(target: &mut Target) -> Result<()> {
    let start = Instant::now();
    let mut silent: Vec<TcpStream> = (0..30)
        .map(|_| connect(target.addr))
        .collect::<Result<_>>()?;
    let mut slow: Vec<TcpStream> = (0..10)
        .map(|_| connect(target.addr))
        .collect::<Result<_>>()?;
    // One of the slow has said HELLO already.
    let mut bytes = [0; HELLO_LEN];
    hello().encode(&mut bytes);
    slow[0].write_all(&bytes)?;
    for byte in bytes {
        for stream in &mut slow[1..] {
            let _ = stream.write_all(&[byte]);
        }
        if start.elapsed() > Duration::from_secs(12) {
            break;
        }
        wait::let_pass(Duration::from_secs(1))?;
    }
    for stream in silent.iter_mut().chain(&mut slow) {
        let left = GREETING
            .saturating_sub(start.elapsed())
            .max(Duration::from_secs(2));
        read_to_end(stream, left).context("a connection without a first frame")?;
    }
    served(target)
}

fn slow_session(target: &mut Target) -> Result<()> {
    let mut sessions: Vec<Session> = (0..6)
        .map(|_| Session::open(target.addr, "scratch", Mode::ReadOnly))
        .collect::<Result<_>>()?;
    let requests: Vec<Vec<u8>> = sessions
        .iter_mut()
        .map(|session| frame(&session.request(Kind::READ, 0, 0, 4096), &[], &[], &[]))
        .collect();
    for at in 0..5 {
        for (session, request) in sessions.iter_mut().zip(&requests) {
            session.wire.send(&request[at..=at]);
        }
        served(target)?;
        wait::let_pass(Duration::from_secs(1))?;
    }
    for (session, request) in sessions.iter_mut().zip(&requests) {
        session.wire.send(&request[5..]);
    }
    for session in &mut sessions {
        let (status, data) = session
            .answer(1)
            .context("a request that took seconds to arrive")?;
        ensure!(status.is_ok() && data.len() == 4096, "{status}");
    }
    sessions.into_iter().try_for_each(Session::close)
}

/// Sends `bytes` again and again until the peer takes no more; how much it took.
fn fill(stream: &mut TcpStream, bytes: &[u8], most: usize) -> Result<usize> {
    stream.set_write_timeout(Some(Duration::from_millis(1500)))?;
    let mut sent = 0;
    while sent < most {
        match stream.write(bytes) {
            Ok(0) => break,
            Ok(len) => sent += len,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            // Closed on us: as good as taking no more.
            Err(_) => break,
        }
    }
    Ok(sent)
}

fn deaf(target: &mut Target) -> Result<()> {
    let mut sessions = Vec::new();
    for _ in 0..if target.short { 8 } else { 24 } {
        let mut session = Session::open(target.addr, "scratch", Mode::ReadOnly)?;
        let slots = session.opened.limits.slots - 1;
        let longest = u64::from(session.opened.limits.max_payload).min(SCRATCH);
        for slot in 0..slots {
            let header = session.request(Kind::READ, slot, 0, longest);
            session.wire.send(&frame(&header, &[], &[], &[]));
        }
        sessions.push(session);
    }
    // Gigabytes are asked for by now, and nobody reads. Others are served; memory is watched by the campaign.
    for _ in 0..6 {
        served(target)?;
        wait::let_pass(Duration::from_millis(500))?;
    }
    drop(sessions);
    served(target)
}

/// Answers that nobody takes must not pile up. (That the server goes on reading is fine where it can do so without keeping
/// anything; the campaign watches its memory.)
fn deaf_ping(target: &mut Target) -> Result<()> {
    let most = if target.short { 24 << 20 } else { 1 << 30 };
    let mut session = Session::open(target.addr, "scratch", Mode::ReadOnly)?;
    let ping = frame(&Header::new(Kind::PING), &[], &[], &[]).repeat(1000);
    fill(session.wire.stream(), &ping, most)?;
    served(target)?;
    drop(session);
    // The same before there is a session: one LIST is answered, and then it is over.
    let mut wire = Wire::connect(target.addr)?;
    let list = frame(&Header::new(Kind::LIST), &[], &[], &[]).repeat(1000);
    let sent = fill(wire.stream(), &list, most)?;
    ensure!(sent < most, "the server took {sent} bytes of LISTs");
    served(target)
}

fn many(target: &mut Target) -> Result<()> {
    let count = if target.short { 400 } else { 900 };
    let mut held = Vec::new();
    for at in 0..count {
        // Refusing some is fine, hanging is not.
        let Ok(mut stream) = connect(target.addr) else {
            continue;
        };
        match at % 3 {
            0 => {}
            1 => {
                let mut bytes = [0; HELLO_LEN];
                hello().encode(&mut bytes);
                let _ = stream.write_all(&bytes);
            }
            _ => {
                let len = target.rng.below(1..HELLO_LEN as u64) as usize;
                let mut bytes = [0; HELLO_LEN];
                hello().encode(&mut bytes);
                let _ = stream.write_all(&bytes[..len]);
            }
        }
        held.push(stream);
    }
    ensure!(
        held.len() > 50,
        "only {} connections were taken",
        held.len()
    );
    served(target).context("while many connections are held")?;
    drop(held);
    for _ in 0..count {
        // Gone before the server has looked.
        let _ = connect(target.addr).map(|stream| rustix::net::connect_unspec(&stream));
    }
    served(target)
}

fn many_sessions(target: &mut Target) -> Result<()> {
    let mut sessions = Vec::new();
    let mut refused = 0;
    // More than an export has places for.
    for _ in 0..300 {
        let mut wire = Wire::connect(target.addr)?;
        let options = open_options("scratch", wire.nonce, Mode::ReadOnly);
        let reply = wire.open_with(&options)?;
        match reply.header.status().is_ok() {
            true => sessions.push(wire),
            false => refused += 1,
        }
    }
    crate::report::say(&format!(
        "{} sessions granted, {refused} refused",
        sessions.len()
    ));
    ensure!(
        refused > 0,
        "300 sessions on one export are granted, each with buffers of its own"
    );
    // Connections lost, sessions kept: until they expire, which must be soon enough for others.
    drop(sessions);
    served(target).context("after 300 sessions were opened and abandoned")
}
