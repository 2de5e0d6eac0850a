//! `dst serve --stdio`: sessions and servers that outlive the process at the end of the pipe.

mod common;

use std::fs::File;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use common::{wait_until, Lab, Running};
use dst_client::{Device, Options};
use rustix::net::{
    RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
    SocketType,
};
use rustix::process::{kill_process, Pid, Signal};

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 512;

/// A URL that runs `dst serve --stdio` with these arguments in the laboratory, with the image `disk.img` as the export `disk`.
fn url(lab: &Lab, arguments: &str) -> String {
    let image = lab.path("disk.img");
    if !image.exists() {
        let file = File::create(&image).unwrap();
        file.set_len(BLOCK * BLOCKS).unwrap();
    }
    url_of(lab, &format!("{arguments} {}", image.display()), "disk")
}

fn url_of(lab: &Lab, arguments: &str, export: &str) -> String {
    let command = format!(
        "env DST_RUNTIME_DIR={} DST_STATE_DIR={} {} serve --stdio {arguments}",
        lab.text("run"),
        lab.text("server"),
        env!("CARGO_BIN_EXE_dst"),
    );
    format!(
        "dst+exec:///{export}?command={}",
        command.replace(' ', "%20")
    )
}

fn connect(url: &str, connections: u16, read_only: bool) -> Device {
    let mut options = Options::new(url.parse().unwrap());
    options.connections = connections;
    options.read_only = read_only;
    options.connect_timeout = Some(common::LONG);
    Device::connect_with(options).unwrap()
}

/// Processes of this lab with these words in their command line.
fn processes(lab: &Lab, words: &str) -> Vec<Pid> {
    let dir = lab.path("").display().to_string();
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    all.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let line = std::fs::read(entry.path().join("cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let program = line
            .split(' ')
            .next()
            .is_some_and(|program| program.ends_with("dst"));
        let matches = program && line.contains(words) && line.contains(&dir);
        Pid::from_raw(pid).filter(|_| matches)
    })
    .collect()
}

fn carriers(lab: &Lab) -> Vec<Pid> {
    processes(lab, " serve --stdio ")
}

fn servers(lab: &Lab) -> Vec<Pid> {
    processes(lab, " stdio-server ")
}

/// What servers keep but for sync marks.
fn kept(lab: &Lab) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(lab.path("run/.server")).into_iter();
    let paths = entries.flatten().flatten().map(|entry| entry.path());
    paths
        .filter(|path| !path.display().to_string().contains("/sync-"))
        .collect()
}

fn socket(lab: &Lab) -> Option<PathBuf> {
    let is_socket = |path: &PathBuf| path.extension().is_some_and(|end| end == "sock");
    kept(lab).into_iter().find(is_socket)
}

#[track_caller]
fn assert_nothing_left(lab: &Lab) {
    lab.assert_nothing_left();
    wait_until("the end of sockets and logs", || kept(lab).is_empty());
}

/// A block that says where and in which round it was written.
fn block(number: u64, round: u64) -> Vec<u8> {
    let words = (0..BLOCK / 8).flat_map(|word| (number << 40 | round << 16 | word).to_le_bytes());
    words.collect()
}

/// Writes all the time while carriers are killed, over so many connections, and then verifies.
fn survives_kills(connections: u16, kills: usize, url: fn(&Lab) -> String) {
    let lab = Lab::new();
    let device = connect(&url(&lab), connections, false);
    let all_there = || device.status().unwrap().connections[0] == connections;
    wait_until("all connections", all_there);
    let session = device.status().unwrap().session;
    let server = servers(&lab);
    assert_eq!(server.len(), 1);
    let stop = AtomicBool::new(false);
    let rounds = thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut rounds = 0;
            while !stop.load(Ordering::Relaxed) {
                rounds += 1;
                for number in 0..BLOCKS {
                    device
                        .write_at(&block(number, rounds), number * BLOCK)
                        .unwrap();
                }
                device.flush().unwrap();
            }
            rounds
        });
        for kill in 0..kills {
            let lost = device.status().unwrap().reconnects;
            let victims = carriers(&lab);
            let one = victims[kill % victims.len()];
            kill_process(one, Signal::KILL).unwrap();
            wait_until("the loss of a connection", || {
                device.status().unwrap().reconnects > lost
            });
            wait_until("all connections again", all_there);
        }
        stop.store(true, Ordering::Relaxed);
        writer.join().unwrap()
    });
    let status = device.status().unwrap();
    assert_eq!(status.session, session, "{status:?}");
    assert_eq!(status.fresh_sessions, 0, "{status:?}");
    assert_eq!(status.errors_and_replays(), (0, 0), "{status:?}");
    assert_eq!(servers(&lab), server);
    let mut found = vec![0; BLOCK as usize];
    for number in 0..BLOCKS {
        device.read_at(&mut found, number * BLOCK).unwrap();
        assert!(found == block(number, rounds), "block {number}");
    }
    device.close().unwrap();
    assert_nothing_left(&lab);
    let image = std::fs::read(lab.path("disk.img")).unwrap();
    let expected: Vec<u8> = (0..BLOCKS)
        .flat_map(|number| block(number, rounds))
        .collect();
    assert!(image == expected);
}

trait Troubles {
    fn errors_and_replays(&self) -> (u64, u64);
}

impl Troubles for dst_client::DeviceStatus {
    fn errors_and_replays(&self) -> (u64, u64) {
        (self.counters.errors, self.replayed)
    }
}

#[test]
fn a_session_goes_on_through_twenty_kills_of_the_pipes_process() {
    survives_kills(1, 20, |lab| url(lab, ""));
}

#[test]
fn several_connections_go_through_pipes_and_come_back_one_by_one() {
    survives_kills(4, 12, |lab| url(lab, ""));
}

/// Where input and output are not one socket but two pipes, each with somebody else's process at the other end.
#[test]
fn a_session_goes_on_over_pipes_that_are_not_the_clients_own() {
    survives_kills(2, 8, |lab| {
        let plain = url(lab, "");
        let (start, command) = plain.split_once("command=").unwrap();
        format!("{start}command=sh%20-c%20'cat%20|%20{command}%20|%20cat'")
    });
}

#[test]
fn of_commands_that_start_at_once_all_are_served_by_one_server() {
    let lab = Lab::new();
    let url = url(&lab, "");
    let devices: Vec<Device> = thread::scope(|scope| {
        let start = |reads| {
            scope.spawn({
                let url = &url;
                move || connect(url, 1, reads)
            })
        };
        let threads: Vec<_> = [false, true, true, true].map(start).into();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    wait_until("the end of those that came too late", || {
        servers(&lab).len() == 1
    });
    devices[0].write_at(&block(1, 1), 0).unwrap();
    for device in &devices {
        let mut found = vec![0; BLOCK as usize];
        device.read_at(&mut found, 0).unwrap();
        assert!(found == block(1, 1));
    }
    for device in devices {
        device.close().unwrap();
    }
    assert_nothing_left(&lab);
}

#[test]
fn whoever_comes_while_a_server_ends_is_served_by_the_next_one() {
    let lab = Lab::new();
    let url = url(&lab, "");
    let all_come_and_go = || {
        for _ in 0..12 {
            lab.dst(&["list", &url]).ok();
        }
    };
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(all_come_and_go);
        }
    });
    assert_nothing_left(&lab);
}

/// A writer that is killed without a word.
fn killed_writer(lab: &Lab, url: &str) {
    let words = [
        "bench",
        "--yes-destroy-data",
        "--rw",
        "randwrite",
        "--time",
        "1h",
        url,
    ];
    let mut bench = Running::start(lab.command(&words));
    let listed = || lab.dst(&["list", "--json", url]).ok().json();
    wait_until("the writer", || {
        listed()["exports"][0]["writer"].is_string()
    });
    bench.child.kill().unwrap();
    bench.child.wait().unwrap();
    wait_until("the end of its carrier", || carriers(lab).is_empty());
}

#[test]
fn a_server_outlives_its_streams_and_stops_in_order_when_asked() {
    let lab = Lab::new();
    let url = url(&lab, "");
    killed_writer(&lab, &url);
    let one = || servers(&lab).len() == 1;
    wait_until("the end of one that was started too late", one);
    let server = servers(&lab);
    let listed = lab.dst(&["list", "--json", &url]).ok().json();
    assert!(listed["exports"][0]["writer"].is_string(), "{listed}");
    assert_eq!(servers(&lab), server);
    kill_process(server[0], Signal::TERM).unwrap();
    lab.assert_nothing_left();
    assert_eq!(socket(&lab), None);
}

#[test]
fn a_server_ends_by_itself_once_the_last_session_has_expired() {
    let lab = Lab::new();
    killed_writer(&lab, &url(&lab, "--session-time 500ms"));
    assert_nothing_left(&lab);
}

#[test]
fn a_running_server_takes_streams_for_the_exports_that_were_asked_for_and_no_others() {
    let lab = Lab::new();
    let server = lab.serve(&["--size", "2M", "disk.img", "secret.img"]);
    let all = url(&lab, "").replace("exec:///disk?", "exec:///?");
    let listed = lab.dst(&["list", "--json", &all]).ok().json();
    let exports = listed["exports"].as_array().unwrap();
    assert_eq!(exports.len(), 1, "{listed}");
    assert_eq!(exports[0]["name"], "disk");
    let secret = url(&lab, "").replace("exec:///disk?", "exec:///secret?");
    lab.dst(&["bench", "--time", "1s", &secret]).expect(4);

    // Under a name of the command's own, and by another path.
    std::os::unix::fs::symlink(lab.path("disk.img"), lab.path("link")).unwrap();
    let other = url_of(&lab, &format!("x={}", lab.text("link")), "x");
    let device = connect(&other, 2, false);
    device.write_at(&block(3, 4), BLOCK).unwrap();
    assert!(servers(&lab).is_empty());
    // The same export by the other way in.
    let listed = lab.dst(&["list", "--json", &lab.url("disk")]).ok().json();
    assert!(listed["exports"][0]["writer"].is_string(), "{listed}");
    device.close().unwrap();
    server.stop();
    assert_nothing_left(&lab);
    let image = std::fs::read(lab.path("disk.img")).unwrap();
    assert!(image[4096..8192] == block(3, 4));
}

#[test]
fn what_a_running_server_does_otherwise_than_asked_is_refused() {
    let lab = Lab::new();
    let server = lab.serve(&["--size", "2M", "disk.img"]);
    File::create(lab.path("free.img"))
        .unwrap()
        .set_len(1 << 20)
        .unwrap();
    for (arguments, words) in [
        ("--read-only".to_owned(), "for writing"),
        ("--block-size 4096".to_owned(), "--block-size 512"),
        (
            format!("--state-dir {}", lab.text("elsewhere")),
            "--state-dir",
        ),
        (lab.text("disk.img"), "two exports are named disk"),
    ] {
        let done = lab.dst(&["list", &url(&lab, &arguments)]);
        assert_ne!(done.code, Some(0));
        assert!(done.err.contains(words), "{words}: {done:?}");
    }
    // Two names for one file are no conflict.
    let image = lab.text("disk.img");
    let twice = url_of(&lab, &format!("a={image} b={image}"), "b");
    lab.dst(&["list", &twice]).ok();
    let both = format!("{} {}", lab.text("disk.img"), lab.text("free.img"));
    let done = lab.dst(&["list", &url_of(&lab, &both, "disk")]);
    assert!(done.err.contains("free.img is not among"), "{done:?}");
    server.stop();

    let server = lab.serve(&["--read-only", "disk.img"]);
    let done = lab.dst(&["list", &url(&lab, "")]);
    assert!(done.err.contains("served read-only"), "{done:?}");
    lab.dst(&["list", &url(&lab, "--read-only")]).ok();
    server.stop();
    assert_nothing_left(&lab);
}

#[test]
fn a_server_that_is_killed_is_followed_by_another_one() {
    let lab = Lab::new();
    let device = connect(&url(&lab, ""), 1, false);
    for round in 1..4 {
        for number in 0..8 {
            device
                .write_at(&block(number, round), number * BLOCK)
                .unwrap();
        }
        let before = servers(&lab);
        kill_process(before[0], Signal::KILL).unwrap();
        let mut found = vec![0; BLOCK as usize];
        for number in 0..8 {
            device.read_at(&mut found, number * BLOCK).unwrap();
            assert!(found == block(number, round));
        }
        assert_ne!(servers(&lab), before);
    }
    device.close().unwrap();
    assert_nothing_left(&lab);
}

#[test]
fn a_socket_that_was_taken_away_comes_back() {
    let lab = Lab::new();
    let server = lab.serve(&["--size", "2M", "disk.img"]);
    let path = socket(&lab).unwrap();
    std::fs::remove_dir_all(lab.path("run/.server")).unwrap();
    wait_until("the socket", || path.exists());
    lab.dst(&["list", &url(&lab, "")]).ok();
    assert!(servers(&lab).is_empty());
    server.stop();
    assert_nothing_left(&lab);
}

fn knock(lab: &Lab, packet: &[u8], fds: &[BorrowedFd<'_>]) -> OwnedFd {
    let stream = rustix::net::socket_with(
        rustix::net::AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    let address = SocketAddrUnix::new(socket(lab).unwrap()).unwrap();
    rustix::net::connect(&stream, &address).unwrap();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
    }
    if !packet.is_empty() {
        let bytes = [IoSlice::new(packet)];
        rustix::net::sendmsg(&stream, &bytes, &mut control, SendFlags::NOSIGNAL).unwrap();
    }
    stream
}

#[test]
fn the_end_of_a_server_waits_for_one_that_says_nothing_at_most() {
    let lab = Lab::new();
    let server = lab.serve(&["--size", "2M", "disk.img"]);
    let silent: Vec<OwnedFd> = (0..16).map(|_| knock(&lab, b"", &[])).collect();
    server.stop();
    // The end of a connection that nobody had accepted is another one.
    let left = silent.iter().filter(|stream| {
        let ended = rustix::net::recv(stream, &mut [0; 1], RecvFlags::DONTWAIT);
        ended.is_err_and(|errno| errno == rustix::io::Errno::CONNRESET)
    });
    assert!(left.count() > 0, "it has waited for each of them");
    drop(silent);
    assert_nothing_left(&lab);
}

#[test]
fn garbage_on_the_socket_is_refused_and_harms_nobody() {
    let lab = Lab::new();
    let server = lab.serve(&["--size", "2M", "disk.img"]);
    let url = url(&lab, "");
    let device = connect(&url, 1, false);
    device.write_at(&block(1, 1), 0).unwrap();
    let key = socket(&lab).unwrap();
    let key = key.file_stem().unwrap().to_str().unwrap();
    let key = key.strip_prefix("serve-").unwrap();
    let request = format!(
        r#"dsthand1{{"exports":[{{"name":"disk","key":"{key}","path":"p","read_only":false,"block_size":null}}],"state_dir":null}}"#
    );
    let file = File::open(lab.path("disk.img")).unwrap();
    let fd = file.as_fd();
    let (pipe, _far) = rustix::pipe::pipe().unwrap();
    let pipe = pipe.as_fd();
    let huge = vec![b'x'; 100_000];
    let mut open = vec![knock(&lab, b"", &[])];
    for (packet, fds) in [
        (&b"\0"[..], &[][..]),
        (b"dsthand1", &[]),
        (b"dsthand1{}", &[pipe, pipe]),
        (b"dsthand2{}", &[pipe, pipe]),
        (&huge, &[pipe, pipe]),
        (request.as_bytes(), &[]),
        (request.as_bytes(), &[pipe]),
        (request.as_bytes(), &[pipe, pipe, pipe, pipe]),
        (request.as_bytes(), &[fd, fd]),
        (request.as_bytes(), &[pipe, fd]),
        // A stream that can't be written to.
        (request.as_bytes(), &[pipe, pipe]),
    ] {
        drop(knock(&lab, packet, fds));
        open.push(knock(&lab, packet, fds));
    }
    lab.dst(&["list", &url]).ok();
    let mut found = vec![0; BLOCK as usize];
    device.read_at(&mut found, 0).unwrap();
    assert!(found == block(1, 1));
    drop(open);
    device.close().unwrap();
    server.stop();
    assert_nothing_left(&lab);
}
