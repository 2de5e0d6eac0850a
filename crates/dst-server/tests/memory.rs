//! What many clients that ask for much and take nothing can cost. One test only: it measures the whole process.

mod raw;

use dst_proto::{Kind, Limits, Status};
use dst_server::Server;
use raw::{config, figure, Raw};

const MEMORY: u64 = 128 << 20;
const MIB: u32 = 1 << 20;
/// READs that each reader sends at once.
const READS: u64 = 65;

fn connect(dir: &std::path::Path) -> Raw {
    let mut raw = Raw::connect(dir);
    raw.limits = Limits {
        slots: READS as u16 + 1,
        connections: 1,
        max_payload: MIB,
        window: 128,
        credit_bytes: 16 * MIB,
    };
    raw
}

#[test]
fn clients_that_take_nothing_stay_within_the_budget_and_all_of_them_get_on() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut config = config(dir, &["disk=null:1G"]);
    config.memory = MEMORY;
    let server = Server::start(config).unwrap();
    let before = figure("VmRSS");

    let mut readers = Vec::new();
    loop {
        let mut reader = connect(dir);
        reader.ask("disk", None);
        match reader.next().status() {
            Status::OK => readers.push(reader),
            status => break assert_eq!(status, Status::LIMIT),
        }
    }
    assert!(readers.len() > 8, "{}", readers.len());
    for reader in &mut readers {
        for id in 1..=READS {
            reader.request(Kind::READ, id, 0, MIB);
        }
    }
    // All of them are being served, and none takes anything.
    readers.iter().for_each(Raw::wait);

    // The writer finds its room, and is not held up.
    let mut writer = connect(dir);
    writer.ask("disk", Some(1));
    let opened = writer.next();
    assert_eq!(opened.status(), Status::OK);
    let credit = opened.credit().bytes;
    assert!((MIB..16 * MIB).contains(&credit), "{credit}");
    for round in 0..4 {
        for id in 1..=u64::from(credit / MIB) {
            let id = round * u64::from(credit / MIB) + id;
            writer.request(Kind::WRITE, id, id << 20, MIB);
        }
        for _ in 0..credit / MIB {
            assert_eq!(writer.next().status(), Status::OK);
        }
    }

    // Each gets everything that it has asked for.
    for reader in &mut readers {
        let mut answered = 0;
        while answered < READS {
            let reply = reader.next();
            assert_eq!((reply.kind, reply.status()), (Kind::READ, Status::OK));
            answered += u64::from(!reply.more);
        }
    }
    let used = figure("VmHWM").saturating_sub(before);
    let asked = readers.len() as u64 * READS * u64::from(MIB);
    assert!(asked > 4 * MEMORY);
    assert!(used <= MEMORY, "{} MiB", used >> 20);
    println!("{} readers, {} MiB used", readers.len(), used >> 20);

    // One that goes makes room for one, at once.
    readers.pop();
    let mut reader = connect(dir);
    reader.ask("disk", None);
    assert_eq!(reader.next().status(), Status::OK);
    server.handle().drain();
    server.wait();
}
