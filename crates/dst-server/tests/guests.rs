//! Clients that come and go: who is let in, and what becomes of those that have gone.

mod raw;

use std::os::fd::OwnedFd;
use std::path::Path;

use dst_net::StdioStream;
use dst_proto::{Kind, Status};
use dst_server::Server;
use raw::{config, hears_first, start, streams, wait_for, Raw};
use rustix::event::{PollFd, PollFlags};

#[test]
fn readers_that_have_gone_make_room_for_others() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path(), &["memory:1M"]).unwrap();
    // More than an export has room for.
    for _ in 0..100 {
        let mut reader = Raw::connect(dir.path());
        reader.ask("memory", None);
        assert_eq!(reader.next().status(), Status::OK);
    }
    server.handle().drain();
    server.wait();
}

#[test]
fn readers_that_are_there_are_not_sent_away_and_leave_room_for_a_writer() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path(), &["memory:1M"]);
    // More than the table of an export has room for.
    config.memory = 4 << 30;
    let server = Server::start(config).unwrap();
    let mut here = Vec::new();
    loop {
        let mut reader = Raw::connect(dir.path());
        reader.ask("memory", None);
        match reader.next().status() {
            Status::OK => here.push(reader),
            status => break assert_eq!(status, Status::LIMIT),
        }
    }
    assert_eq!(here.len(), 254);
    let mut writer = Raw::connect(dir.path());
    writer.ask("memory", Some(1));
    assert_eq!(writer.next().status(), Status::OK);
    // One that goes makes room for one.
    here.remove(7);
    let mut reader = Raw::connect(dir.path());
    reader.ask("memory", None);
    assert_eq!(reader.next().status(), Status::OK);
    server.handle().drain();
    server.wait();
}

/// A server whose export has a holder.
fn start_held(dir: &Path) -> (Server, Raw) {
    let server = start(dir, &["memory:1M"]).unwrap();
    let mut holder = Raw::connect(dir);
    holder.ask("memory", Some(1));
    assert_eq!(holder.next().status(), Status::OK);
    (server, holder)
}

/// A client that asks for the holder's lease, and the number of the PING by which the holder is asked whether it lives.
/// `None`: the holder's time to answer has run out.
fn ask_for_the_lease(dir: &Path, holder: &mut Raw, instance: u8) -> Option<(Raw, u64)> {
    let mut client = Raw::connect(dir);
    client.ask("memory", Some(instance));
    if !hears_first(holder, &client) {
        // Nothing else is said to it before the holder has been asked.
        assert_eq!(client.next().status(), Status::OK);
        return None;
    }
    let asked = holder.next();
    (asked.kind == Kind::PING && !asked.reply).then_some((client, asked.id))
}

/// Runs `scene` until no holder's time to answer ran out in it, as happens when this machine is so busy that the test stands
/// still for seconds. A server that always takes holders for dead is found out.
fn in_time(scene: impl Fn(&Path) -> Option<()>) {
    let done = (0..10).find_map(|_| scene(tempfile::tempdir().unwrap().path()));
    assert!(done.is_some(), "holders are not given their time");
}

#[test]
fn a_client_that_goes_while_it_asks_is_forgotten() {
    in_time(|dir| {
        let (server, mut holder) = start_held(dir);
        let mut last = 0;
        for instance in 2..5 {
            // Were the one before still being decided, this one would be told to wait and the holder not be asked.
            let (client, ping) = ask_for_the_lease(dir, &mut holder, instance)?;
            assert!(ping > last);
            last = ping;
            drop(client);
        }
        server.handle().drain();
        server.wait();
        Some(())
    });
}

#[test]
fn who_is_asking_when_the_server_stops_is_told_so() {
    in_time(|dir| {
        let (server, mut holder) = start_held(dir);
        let (mut client, _) = ask_for_the_lease(dir, &mut holder, 2)?;
        server.handle().drain();
        let told = client.next().status();
        assert_eq!(server.wait().clean, ["memory"]);
        if told == Status::OK {
            return None;
        }
        assert_eq!(told, Status::DRAINING);
        Some(())
    });
}

/// An option as it is sent.
fn option(number: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = number.to_le_bytes().to_vec();
    bytes.extend((value.len() as u16).to_le_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes
}

#[test]
fn faulty_options_are_answered_with_the_status_of_the_fault() {
    const CRITICAL: u16 = 0x8000;
    const NONCE: u16 = 2;
    const MODE: u16 = 4;
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path(), &["memory:1M"]).unwrap();
    let status_of = |kind, add: &[u8], whole: bool| {
        let mut client = Raw::connect(dir.path());
        let mut options = match (kind, whole) {
            (Kind::OPEN, true) => client.open_options("memory", None),
            _ => Vec::new(),
        };
        options.extend(add);
        client.begin(kind, &options);
        let reply = client.next();
        assert_eq!((reply.kind, reply.reply), (kind, true));
        reply.status()
    };
    let unknown = option(99, &[1]);
    assert_eq!(status_of(Kind::OPEN, &unknown, true), Status::OK);
    let critical = option(CRITICAL | 99, &[1]);
    let nonce_again = option(NONCE, &[0; 16]);
    for (kind, add, whole, status) in [
        (Kind::OPEN, &critical, true, Status::UNSUPPORTED),
        (Kind::JOIN, &critical, false, Status::UNSUPPORTED),
        (Kind::OPEN, &option(MODE, &[9]), false, Status::INVALID),
        (Kind::OPEN, &nonce_again, true, Status::PROTOCOL),
        (Kind::OPEN, &option(MODE, &[0, 0]), false, Status::PROTOCOL),
        (Kind::OPEN, &Vec::new(), false, Status::PROTOCOL),
        (Kind::JOIN, &Vec::new(), false, Status::PROTOCOL),
    ] {
        assert_eq!(status_of(kind, add, whole), status, "{kind:?} {add:?}");
    }
    server.handle().drain();
    server.wait();
}

#[test]
fn a_pipe_that_nobody_reads_any_more_ends_the_connection() {
    let dir = tempfile::tempdir().unwrap();
    let (input, client_output) = std::io::pipe().unwrap();
    let (client_input, output) = std::io::pipe().unwrap();
    let stream = StdioStream::new(OwnedFd::from(input), OwnedFd::from(output)).unwrap();
    let config = config(dir.path(), &["memory:1M"]);
    let server = Server::start_with(config, streams(stream)).unwrap();
    let kept = client_output.try_clone().unwrap();
    let mut client = Raw::over(client_input, client_output);
    client.ask("memory", None);
    assert_eq!(client.next().status(), Status::OK);
    drop(client);
    // An error on the writing end tells that the server has closed its own.
    wait_for(&mut [PollFd::new(&kept, PollFlags::empty())]);
    server.handle().drain();
    server.wait();
}
