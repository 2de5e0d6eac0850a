//! Clients that come and go: who is let in, and what becomes of those that have gone.

mod raw;

use std::os::fd::OwnedFd;
use std::time::Instant;

use dst_net::StdioStream;
use dst_proto::{Kind, Status};
use dst_server::Server;
use raw::{config, start, streams, Raw, PATIENCE};
use rustix::event::{poll, PollFd, PollFlags, Timespec};

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
fn readers_that_are_there_are_not_sent_away() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path(), &["memory:1M"]).unwrap();
    let mut here = Vec::new();
    loop {
        let mut reader = Raw::connect(dir.path());
        reader.ask("memory", None);
        match reader.next().status() {
            Status::OK => here.push(reader),
            status => break assert_eq!(status, Status::LIMIT),
        }
    }
    assert!(here.len() > 50);
    // One that goes makes room for one.
    here.remove(7);
    let mut reader = Raw::connect(dir.path());
    reader.ask("memory", None);
    assert_eq!(reader.next().status(), Status::OK);
    server.handle().drain();
    server.wait();
}

#[test]
fn a_client_that_goes_while_it_asks_is_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path(), &["memory:1M"]).unwrap();
    let mut holder = Raw::connect(dir.path());
    holder.ask("memory", Some(1));
    assert_eq!(holder.next().status(), Status::OK);
    let mut last = 0;
    for instance in 2..5 {
        // Were the one before still being decided, this one would be told to wait and the holder not be asked.
        let mut client = Raw::connect(dir.path());
        client.ask("memory", Some(instance));
        let ping = holder.next();
        assert_eq!((ping.kind, ping.reply), (Kind::PING, false));
        assert!(ping.id > last);
        last = ping.id;
    }
    server.handle().drain();
    server.wait();
}

#[test]
fn who_is_asking_when_the_server_stops_is_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path(), &["memory:1M"]).unwrap();
    let mut holder = Raw::connect(dir.path());
    holder.ask("memory", Some(1));
    assert_eq!(holder.next().status(), Status::OK);
    let mut client = Raw::connect(dir.path());
    client.ask("memory", Some(2));
    assert_eq!(holder.next().kind, Kind::PING);
    server.handle().drain();
    assert_eq!(client.next().status(), Status::DRAINING);
    assert_eq!(server.wait().clean, ["memory"]);
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
    let started = Instant::now();
    let timeout = Timespec {
        tv_sec: PATIENCE.as_secs() as i64,
        tv_nsec: 0,
    };
    let mut watched = [PollFd::new(&kept, PollFlags::empty())];
    let ready = poll(&mut watched, Some(&timeout)).unwrap();
    assert_eq!(ready, 1, "after {:?}", started.elapsed());
    server.handle().drain();
    server.wait();
}
