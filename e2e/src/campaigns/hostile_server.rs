//! Servers that mean harm, against `dst list` and `dst attach`: each command ends within its bound with an exit code of its
//! own and leaves nothing behind. And one that turns hostile under a live device: requests fail at their deadline, never with
//! wrong data, the agent survives, and all is well when the server comes to its senses.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context as _, Result};
use dst_proto::{Header, Hello, Kind, Refusal, Role, Status, HEADER_LEN, HELLO_LEN};

use super::hostile_fake::{self as fake, Evil};
use crate::command::Running;
use crate::direct::{self, Pending};
use crate::lab::device::Device;
use crate::lab::{sweep, Lab};
use crate::report::Report;
use crate::rng::Rng;
use crate::wire::frame;

/// How long a command may take against a server that does not answer: its own 10 s and then some.
const BOUND: Duration = Duration::from_secs(25);

/// A command that goes on for longer hangs: they all run at once, and the machine may be busy.
const HANG: Duration = Duration::from_secs(90);

/// What a server does with a connection.
type Manner = fn(TcpStream, &mut Rng);

/// A server that treats each connection in its manner, until it is dropped.
struct Listener {
    addr: SocketAddr,
    stop: Arc<AtomicBool>,
}

impl Listener {
    fn start(manner: Manner, seed: u64) -> Result<Listener> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let addr = listener.local_addr()?;
        let stop = Arc::new(AtomicBool::new(false));
        let ended = stop.clone();
        std::thread::spawn(move || {
            let mut rng = Rng::new(seed);
            while !ended.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => {
                        let mut rng = rng.fork(rng.clone().next_u64());
                        let ready = stream.set_nonblocking(false).is_ok()
                            && stream.set_write_timeout(Some(BOUND)).is_ok()
                            && stream.set_read_timeout(Some(BOUND)).is_ok();
                        if ready {
                            std::thread::spawn(move || manner(stream, &mut rng));
                        }
                    }
                    Err(_) => std::thread::sleep(Duration::from_millis(5)),
                }
                rng.next_u64();
            }
        });
        Ok(Listener { addr, stop })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Says HELLO and takes the client's HELLO and first header.
fn greet(stream: &mut TcpStream) -> Option<Header> {
    let mut hello = [0; HELLO_LEN];
    Hello::new(Role::Server, [9; 16], "hostile").encode(&mut hello);
    stream.write_all(&hello).ok()?;
    stream.read_exact(&mut hello).ok()?;
    let mut head = [0; HEADER_LEN];
    stream.read_exact(&mut head).ok()?;
    let header = Header::decode(&head).ok()?;
    let mut area = vec![0; header.area_len() as usize];
    stream.read_exact(&mut area).ok()?;
    Some(header)
}

fn wait_for_end(stream: &mut TcpStream) {
    while matches!(stream.read(&mut [0; 512]), Ok(len) if len > 0) {}
}

fn refuse(stream: &mut TcpStream, status: Status) {
    let Some(request) = greet(stream) else {
        return;
    };
    let refusal = Refusal {
        message: dst_proto::Message::new("go away"),
        wait_ms: Some(60_000),
    };
    let mut options = [0; 256];
    let len = refusal.encode(&mut options).unwrap_or_default();
    let header = Header::reply(
        request.kind,
        dst_proto::NO_SLOT,
        0,
        status,
        Default::default(),
    );
    let _ = stream.write_all(&frame(&header, &options[..len], &[], &[]));
    wait_for_end(stream);
}

fn answer_with(stream: &mut TcpStream, bytes: impl Fn(&Header) -> Vec<u8>) {
    if let Some(request) = greet(stream) {
        let _ = stream.write_all(&bytes(&request));
        wait_for_end(stream);
    }
}

fn hello_with(stream: &mut TcpStream, change: impl Fn(&mut [u8; HELLO_LEN])) {
    let mut hello = [0; HELLO_LEN];
    Hello::new(Role::Server, [9; 16], "hostile").encode(&mut hello);
    change(&mut hello);
    let crc = dst_proto::crc32c::of(&hello[..HELLO_LEN - 4]);
    hello[HELLO_LEN - 4..].copy_from_slice(&crc.to_le_bytes());
    let _ = stream.write_all(&hello);
    wait_for_end(stream);
}

/// Name, manner, and the exit codes with which attach may end.
const MANNERS: &[(&str, Manner, &[i32])] = &[
    ("closes at once", |stream, _| drop(stream), &[3, 15]),
    (
        "never says anything",
        |mut stream, _| wait_for_end(&mut stream),
        &[3],
    ),
    (
        "random bytes",
        |mut stream, rng| {
            while stream.write_all(&rng.bytes(8192)).is_ok() {}
        },
        &[3, 15],
    ),
    (
        "speaks HTTP",
        |mut stream, _| {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nServer: x\r\n\r\n");
        },
        &[3, 15],
    ),
    (
        "version from the future",
        |mut stream, _| hello_with(&mut stream, |h| h[12..16].copy_from_slice(&[7, 0, 9, 0])),
        &[15],
    ),
    (
        "requires a feature",
        |mut stream, _| {
            hello_with(&mut stream, |h| {
                h[16] = 2;
                h[24] = 2;
            })
        },
        &[15],
    ),
    (
        "is a client",
        |mut stream, _| hello_with(&mut stream, |h| h[10] = 0),
        &[15],
    ),
    (
        "HELLO and nothing more",
        |mut stream, _| {
            greet(&mut stream);
            wait_for_end(&mut stream)
        },
        &[3],
    ),
    (
        "HELLO and random bytes",
        |mut stream, rng| {
            if greet(&mut stream).is_some() {
                while stream.write_all(&rng.bytes(8192)).is_ok() {}
            }
        },
        &[3, 15],
    ),
    (
        "no such export",
        |mut stream, _| refuse(&mut stream, Status::NO_EXPORT),
        &[4],
    ),
    (
        "another writes",
        |mut stream, _| refuse(&mut stream, Status::LEASE_BUSY),
        &[5],
    ),
    (
        "not admitted",
        |mut stream, _| refuse(&mut stream, Status::NOT_ADMITTED),
        &[9],
    ),
    (
        "a status that nobody knows",
        |mut stream, _| refuse(&mut stream, Status(999)),
        &[1, 3, 14, 15],
    ),
    (
        "OPENED without options",
        |mut stream, _| {
            answer_with(&mut stream, |request| {
                frame(
                    &Header::reply(
                        request.kind,
                        dst_proto::NO_SLOT,
                        0,
                        Status::OK,
                        Default::default(),
                    ),
                    &[],
                    &[],
                    &[],
                )
            })
        },
        &[1, 3, 14, 15],
    ),
    (
        "OPENED with a critical option",
        |mut stream, _| {
            answer_with(&mut stream, |request| {
                let header = Header::reply(
                    request.kind,
                    dst_proto::NO_SLOT,
                    0,
                    Status::OK,
                    Default::default(),
                );
                frame(
                    &header,
                    &crate::wire::option(0x8000 | 99, b"must"),
                    &[],
                    &[],
                )
            })
        },
        &[1, 3, 14, 15],
    ),
    (
        "an answer to a question not asked",
        |mut stream, _| {
            answer_with(&mut stream, |_| {
                frame(
                    &Header::reply(Kind::READ, 5, 77, Status::OK, Default::default()),
                    &[],
                    &[],
                    &[],
                )
            })
        },
        &[1, 3, 14, 15],
    ),
    (
        "an endless list",
        |mut stream, _| {
            if let Some(request) = greet(&mut stream) {
                let header = Header {
                    more: true,
                    ..Header::reply(
                        Kind::LIST,
                        dst_proto::NO_SLOT,
                        0,
                        Status::OK,
                        Default::default(),
                    )
                };
                let bytes = if request.kind == Kind::LIST {
                    frame(&header, &fake::listed(), &[], &[])
                } else {
                    vec![0; 64]
                };
                while stream.write_all(&bytes).is_ok() {}
            }
        },
        &[3, 15],
    ),
    (
        "a gigantic export",
        |mut stream, _| answer_with(&mut stream, |_| fake::opened(u64::MAX - 511, 512)),
        &[1, 3, 12, 14, 15, 16],
    ),
    (
        "an export of no bytes",
        |mut stream, _| answer_with(&mut stream, |_| fake::opened(0, 512)),
        &[1, 3, 12, 14, 15, 16],
    ),
    (
        "an export with blocks of 3 bytes",
        |mut stream, _| answer_with(&mut stream, |_| fake::opened(1 << 20, 3)),
        &[1, 3, 12, 14, 15, 16],
    ),
    (
        "an export with blocks of 1 GiB",
        |mut stream, _| answer_with(&mut stream, |_| fake::opened(1 << 30, 1 << 30)),
        &[1, 3, 12, 14, 15, 16],
    ),
];

/// Runs the cases.
pub fn run(lab: &Lab, report: &mut Report) {
    // Side by side, since most of the time is waiting.
    let mut started = Vec::new();
    for (at, (name, manner, codes)) in MANNERS.iter().enumerate() {
        let name = format!("server: {name}");
        if lab.plan.wants(&name) {
            let seed = lab.rng(500 + at as u64).next_u64();
            started.push((name, codes, Commands::start(lab, *manner, seed)));
        }
    }
    for (name, codes, commands) in started {
        report.case(&name, |_| commands?.end(codes));
        report.count("hostile-servers", 1);
    }
    report.case("server: nothing is left of any", |_| {
        let nothing = || Ok(sweep::find(lab.root()).describe().is_empty());
        crate::wait::until("nothing to be left", BOUND, nothing)
    });
    let turns = "server: turns hostile under a live device";
    if lab.plan.wants(turns) {
        report.case(turns, |_| turning(lab));
    }
}

/// The commands that talk to one such server.
struct Commands {
    _listener: Listener,
    attach: Running,
    list: Running,
}

impl Commands {
    fn start(lab: &Lab, manner: Manner, seed: u64) -> Result<Commands> {
        let listener = Listener::start(manner, seed)?;
        let url = format!("dst://{}/disk", listener.addr);
        let name = lab.unique("d");
        let attach = [
            "attach",
            &url,
            "--name",
            &name,
            "--connect-timeout",
            "3s",
            // What is retained is set aside at once, and many of these run side by side.
            "--retain",
            "4M",
        ];
        Ok(Commands {
            attach: Running::start(&mut lab.dst(attach))?,
            list: Running::start(&mut lab.dst(["list", &url]))?,
            _listener: listener,
        })
    }

    fn end(self, codes: &[i32]) -> Result<()> {
        let list = self.list.finish(HANG);
        let attach = self.attach.finish(HANG).context("attach")?;
        let list = list.context("list")?;
        for output in [&attach, &list] {
            let (line, ending, said) = (&output.line, output.ending(), output.said());
            ensure!(
                output.code.is_some_and(|code| code != 0),
                "`{line}` ended with {ending}"
            );
            ensure!(
                !output.stderr.contains("panicked"),
                "`{line}` panicked: {said}"
            );
            ensure!(
                !output.stderr.trim().is_empty(),
                "`{line}` fails without a word"
            );
            ensure!(
                output.took < HANG,
                "`{line}` took {:.1} s",
                output.took.as_secs_f64()
            );
        }
        let code = attach.code.unwrap_or_default();
        ensure!(
            codes.contains(&code),
            "attach ended with {}, not one of {codes:?}: {}",
            attach.ending(),
            attach.said()
        );
        Ok(())
    }
}

/// The evils of the live case, and what may come of a read then: always EIO at the deadline or before, never other data.
fn turning(lab: &Lab) -> Result<()> {
    let evil = Arc::new(AtomicU8::new(Evil::None as u8));
    let server = fake::Server::start(evil.clone())?;
    let device = Device::attach(lab, &server.url(), &["--deadline", "1s"])?;
    let file = direct::open(device.block(), true)?;
    for at in Evil::ALL {
        evil.store(Evil::None as u8, Ordering::Relaxed);
        let good = file.try_clone()?;
        let works = Pending::start(move || -> std::io::Result<bool> {
            let start = Instant::now();
            loop {
                match direct::read(&good, 8192, 4096) {
                    Err(_) if start.elapsed() < BOUND => {
                        std::thread::sleep(Duration::from_millis(50))
                    }
                    other => return other.map(|read| fake::is_content(8192, &read)),
                }
            }
        });
        let (works, _) = works
            .outcome(BOUND * 2)
            .with_context(|| format!("before {at:?}"))?;
        ensure!(
            works.with_context(|| format!("before {at:?}"))?,
            "before {at:?}: wrong data"
        );
        evil.store(at as u8, Ordering::Relaxed);
        let reader = file.try_clone()?;
        let bad = Pending::start(move || direct::read(&reader, 1 << 20, 65536));
        let (read, _) = bad
            .outcome(BOUND)
            .with_context(|| format!("a read while the server does {at:?}"))?;
        if let Ok(data) = read {
            ensure!(
                fake::is_content(1 << 20, &data),
                "{at:?}: wrong data was believed"
            );
        }
        if !device.agent_alive() {
            bail!("{at:?}: the agent died");
        }
    }
    evil.store(Evil::None as u8, Ordering::Relaxed);
    drop(file);
    let mut device = device;
    device.detach_by_force()?;
    device.check_gone()
}
