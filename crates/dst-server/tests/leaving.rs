//! What connections cost that a session is done with, when their clients take nothing. One test only: it measures the whole
//! process.

mod raw;

use std::path::Path;

use dst_proto::{Kind, Limits, SessionGrant, Status};
use dst_server::Server;
use raw::{config, figure, Raw};

/// The least that there may be.
const MEMORY: u64 = 64 << 20;
const MIB: u32 = 1 << 20;
/// Enough connections to hold several times as much as there is.
const ROUNDS: u32 = 100;

fn connect(dir: &Path) -> Raw {
    let mut raw = Raw::connect(dir);
    raw.limits = Limits {
        slots: 128,
        connections: 1,
        max_payload: MIB,
        window: 128,
        credit_bytes: MIB,
    };
    raw
}

/// A reader that has asked for so much, and is being answered, but takes nothing.
fn reader(dir: &Path, reads: u64) -> Result<(Raw, SessionGrant), Status> {
    let mut raw = connect(dir);
    raw.ask("disk", None);
    let session = raw.opened()?;
    ask_for(&mut raw, 1, reads);
    Ok((raw, session))
}

fn ask_for(raw: &mut Raw, first: u64, reads: u64) {
    for id in first..first + reads {
        raw.request(Kind::READ, id, 0, MIB);
    }
    raw.wait();
}

fn join(dir: &Path, session: &SessionGrant, generation: u32) -> Raw {
    let mut raw = connect(dir);
    raw.join(session, generation);
    let joined = raw.next();
    assert_eq!((joined.kind, joined.status()), (Kind::JOIN, Status::OK));
    raw
}

#[test]
fn connections_that_are_left_behind_full_stay_within_the_budget() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut config = config(dir, &["disk=null:1G"]);
    config.memory = MEMORY;
    let server = Server::start(config).unwrap();
    let before = figure("VmRSS");
    let is_within = || {
        let used = figure("VmHWM").saturating_sub(before);
        assert!(used <= MEMORY, "{} MiB", used >> 20);
    };
    // Never read, and open to the end.
    let mut left = Vec::new();

    // Displaced, and the session closed over the stream that displaced it: nothing is left of it, so the next gets in.
    for _ in 0..ROUNDS {
        let (full, session) = reader(dir, 8).unwrap();
        left.push(full);
        let mut last = join(dir, &session, 2);
        last.close();
        assert_eq!(last.next().kind, Kind::CLOSE);
    }
    is_within();

    // Faulty, with the session going on.
    let (mut full, session) = reader(dir, 2).unwrap();
    for generation in 2..ROUNDS {
        full.babble();
        left.push(full);
        full = join(dir, &session, generation);
        full.request(Kind::READ, 2 + u64::from(generation), 0, MIB);
        full.wait();
    }
    drop(full);
    is_within();

    // Closed with the answers still on their way: their memory is still theirs, so that there is soon no more.
    let mut closed = Vec::new();
    let refused = (0..ROUNDS).find_map(|_| match reader(dir, 2) {
        Ok((mut full, _)) => {
            full.close();
            closed.push(full);
            None
        }
        Err(status) => Some(status),
    });
    assert_eq!(refused, Some(Status::LIMIT));
    // Those that go make room, at once.
    drop(closed);
    assert!(reader(dir, 2).is_ok());
    is_within();
    server.handle().drain();
    server.wait();
}
