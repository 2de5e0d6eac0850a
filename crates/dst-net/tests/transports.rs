//! Each transport over the real thing: connect, listen, exchange, refuse, close.

use std::fs;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

use dst_net::{Address, Endpoint, Event, Interest, Listener, Poller, Stream};
use rustix::process::{Pid, WaitOptions};

const TIMEOUT: Duration = Duration::from_secs(5);

fn endpoint(text: &str) -> Endpoint {
    text.parse().unwrap_or_else(|e| panic!("{e}"))
}

fn unix(path: &Path) -> Endpoint {
    Endpoint::new(
        Address::Unix {
            path: path.to_owned(),
        },
        None,
    )
    .unwrap()
}

fn exec(command: &str) -> Endpoint {
    Endpoint::new(
        Address::Exec {
            command: command.to_owned(),
        },
        None,
    )
    .unwrap()
}

fn wait_for(fd: BorrowedFd<'_>, interest: Interest) {
    let poller = Poller::new().unwrap();
    poller.add(fd, 0, interest).unwrap();
    let mut events: Vec<Event> = Vec::new();
    while events.is_empty() {
        poller.wait(None, &mut events).unwrap();
    }
}

fn accept(listener: &mut dyn Listener) -> Box<dyn Stream> {
    loop {
        wait_for(listener.fd(), Interest::READ);
        match listener.accept() {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            other => return other.unwrap(),
        }
    }
}

fn read_some(stream: &mut dyn Stream, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        wait_for(stream.fd(), Interest::READ);
        match stream.read(buffer) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            other => return other,
        }
    }
}

/// Both directions, and the end of one.
fn exchange(near: &mut dyn Stream, far: &mut dyn Stream) {
    let mut buffer = [0; 16];
    assert_eq!(
        near.read(&mut buffer).unwrap_err().kind(),
        io::ErrorKind::WouldBlock
    );
    assert_eq!(
        near.write_vectored(&[IoSlice::new(b"to "), IoSlice::new(b"far")])
            .unwrap(),
        6
    );
    let n = read_some(far, &mut buffer).unwrap();
    assert_eq!(&buffer[..n], b"to far");
    assert_eq!(far.write_vectored(&[IoSlice::new(b"to near")]).unwrap(), 7);
    let n = read_some(near, &mut buffer).unwrap();
    assert_eq!(&buffer[..n], b"to near");
    far.shutdown();
    assert_eq!(read_some(near, &mut buffer).unwrap(), 0);
}

fn connect_and_exchange(listener: &mut dyn Listener, url: &str) {
    let mut near = endpoint(url).transport().connect(TIMEOUT).unwrap();
    let mut far = accept(listener);
    assert!(
        near.is_trusted() && near.is_local() && far.is_trusted() && far.is_local(),
        "{url}"
    );
    exchange(&mut *near, &mut *far);
}

fn port_of(listener: &dyn Listener) -> u16 {
    match endpoint(&listener.local_url()).address() {
        Address::Tcp { port, .. } => *port,
        other => panic!("{other:?}"),
    }
}

#[test]
fn tcp_over_ipv4_and_ipv6() {
    for host in ["127.0.0.1", "[::1]"] {
        let mut listener = endpoint(&format!("dst://{host}:0")).listen().unwrap();
        let url = listener.local_url();
        assert_eq!(
            listener.accept().err().unwrap().kind(),
            io::ErrorKind::WouldBlock
        );
        connect_and_exchange(&mut *listener, &url);
    }
}

#[test]
fn a_listener_on_the_unspecified_ipv6_address_takes_ipv4_too() {
    let mut listener = endpoint("dst://[::]:0").listen().unwrap();
    let port = port_of(&*listener);
    for host in ["127.0.0.1", "[::1]", "localhost"] {
        connect_and_exchange(&mut *listener, &format!("dst://{host}:{port}"));
    }
}

#[test]
fn a_listener_on_a_name_takes_all_of_its_addresses() {
    let mut listener = endpoint("dst://localhost:0").listen().unwrap();
    let port = port_of(&*listener);
    let ipv6_too = fs::read_to_string("/etc/hosts").is_ok_and(|hosts| {
        hosts
            .lines()
            .any(|l| l.starts_with("::1") && l.split_whitespace().any(|w| w == "localhost"))
    });
    connect_and_exchange(&mut *listener, &format!("dst://127.0.0.1:{port}"));
    if ipv6_too {
        connect_and_exchange(&mut *listener, &format!("dst://[::1]:{port}"));
    }
}

#[test]
fn a_port_in_use_is_refused_and_one_just_left_is_not() {
    let mut listener = endpoint("dst://127.0.0.1:0").listen().unwrap();
    let url = listener.local_url();
    let error = endpoint(&url).listen().err().unwrap();
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    assert!(
        error.to_string().contains("can't listen at 127.0.0.1:"),
        "{error}"
    );
    let near = endpoint(&url).transport().connect(TIMEOUT).unwrap();
    // The accepting side closes first and keeps the port in TIME_WAIT.
    drop(accept(&mut *listener));
    drop(near);
    drop(listener);
    assert!(endpoint(&url).listen().is_ok());
}

#[test]
fn a_refused_connect_says_to_whom() {
    let listener = endpoint("dst://127.0.0.1:0").listen().unwrap();
    let url = listener.local_url();
    drop(listener);
    let error = endpoint(&url).transport().connect(TIMEOUT).err().unwrap();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    assert!(error.to_string().starts_with("127.0.0.1:"), "{error}");
}

#[test]
fn a_connect_to_an_address_that_never_answers_ends_in_time() {
    // A listener whose queue is full drops what comes, as a dead network does.
    let socket = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::STREAM,
        None,
    )
    .unwrap();
    rustix::net::bind(&socket, &std::net::SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    rustix::net::listen(&socket, 0).unwrap();
    let address =
        std::net::SocketAddr::try_from(rustix::net::getsockname(&socket).unwrap()).unwrap();
    let transport = endpoint(&format!("dst://{address}")).transport();
    let begin = Instant::now();
    let mut held = Vec::new();
    let error = loop {
        match transport.connect(Duration::from_millis(50)) {
            Ok(stream) => held.push(stream),
            Err(error) => break error,
        }
        assert!(held.len() < 16, "the queue is never full");
    };
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    assert!(begin.elapsed() >= Duration::from_millis(50));
}

#[test]
fn a_unix_socket_is_for_its_owner_only_and_goes_with_its_listener() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a b.sock");
    let mut listener = unix(&path).listen().unwrap();
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    assert_eq!(
        listener.accept().err().unwrap().kind(),
        io::ErrorKind::WouldBlock
    );
    let url = listener.local_url();
    connect_and_exchange(&mut *listener, &url);
    drop(listener);
    assert!(!path.exists());
}

#[test]
fn a_unix_socket_that_a_dead_server_left_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.sock");
    drop(StdUnixListener::bind(&path).unwrap());
    assert!(
        path.exists(),
        "std leaves it behind, as a killed server does"
    );
    let mut listener = unix(&path).listen().unwrap();
    let url = listener.local_url();
    connect_and_exchange(&mut *listener, &url);
}

#[test]
fn the_unix_socket_of_a_live_server_is_refused_and_stays() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.sock");
    let mut listener = unix(&path).listen().unwrap();
    let error = unix(&path).listen().err().unwrap();
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    assert!(
        error
            .to_string()
            .contains("another server is listening there"),
        "{error}"
    );
    // The probe of the refused server was a connection that is gone.
    assert_eq!(
        read_some(&mut *accept(&mut *listener), &mut [0]).unwrap(),
        0
    );
    let url = listener.local_url();
    connect_and_exchange(&mut *listener, &url);
}

#[test]
fn a_file_that_is_no_socket_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("precious");
    fs::write(&path, "data").unwrap();
    let error = unix(&path).listen().err().unwrap();
    assert!(error.to_string().contains("is no socket"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), b"data");
}

#[test]
fn a_listener_does_not_remove_the_socket_of_its_successor() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.sock");
    let first = unix(&path).listen().unwrap();
    fs::remove_file(&path).unwrap();
    let mut second = unix(&path).listen().unwrap();
    drop(first);
    let url = second.local_url();
    connect_and_exchange(&mut *second, &url);
}

#[test]
fn of_many_servers_that_start_at_once_on_a_stale_socket_one_wins() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.sock");
    drop(StdUnixListener::bind(&path).unwrap());
    let start = std::sync::Barrier::new(8);
    let listeners: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    start.wait();
                    unix(&path).listen()
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let mut winners: Vec<_> = listeners.into_iter().filter_map(Result::ok).collect();
    assert_eq!(winners.len(), 1);
    let near = unix(&path).transport().connect(TIMEOUT).unwrap();
    near.fd();
    accept(&mut *winners[0]);
}

#[test]
fn a_unix_connect_without_a_server_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.sock");
    let error = unix(&path).transport().connect(TIMEOUT).err().unwrap();
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
    drop(StdUnixListener::bind(&path).unwrap());
    let error = unix(&path).transport().connect(TIMEOUT).err().unwrap();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    assert!(error.to_string().contains("x.sock"), "{error}");
}

#[test]
fn a_unix_connect_to_a_server_with_a_full_queue_ends_in_time() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.sock");
    let listener = StdUnixListener::bind(&path).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let transport = unix(&path).transport();
    let mut held = Vec::new();
    let error = loop {
        match transport.connect(Duration::from_millis(50)) {
            Ok(stream) => held.push(stream),
            Err(error) => break error,
        }
        assert!(held.len() < 16, "the queue is never full");
    };
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
}

#[test]
fn a_command_is_a_peer() {
    let mut stream = exec("cat").transport().connect(TIMEOUT).unwrap();
    assert!(stream.is_trusted() && stream.is_local());
    let mut buffer = [0; 16];
    for _ in 0..3 {
        stream
            .write_vectored(&[IoSlice::new(b"through "), IoSlice::new(b"cat")])
            .unwrap();
        let n = read_some(&mut *stream, &mut buffer).unwrap();
        assert_eq!(&buffer[..n], b"through cat");
    }
}

#[test]
fn a_command_that_is_not_there_is_named() {
    let error = exec("no-such-command --now")
        .transport()
        .connect(TIMEOUT)
        .err()
        .unwrap();
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
    assert!(error.to_string().contains("`no-such-command`"), "{error}");
}

#[test]
fn what_a_command_said_before_it_failed_is_in_the_error() {
    let mut stream = exec("sh -c 'echo Permission denied >&2; exit 3'")
        .transport()
        .connect(TIMEOUT)
        .unwrap();
    let error = read_some(&mut *stream, &mut [0]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    let text = error.to_string();
    assert!(
        text.contains("exit status 3") && text.ends_with(": Permission denied"),
        "{text}"
    );
    let error = loop {
        match stream.write_vectored(&[IoSlice::new(b"x")]) {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(error.to_string().contains("Permission denied"), "{error}");
}

#[test]
fn a_command_that_floods_its_standard_error_is_not_held_up() {
    let script = "sh -c 'i=0; while [ $i -lt 3000 ]; do echo 0123456789012345678901234567890123456789; i=$((i+1)); \
                  done >&2; echo done; cat'";
    let mut stream = exec(script).transport().connect(TIMEOUT).unwrap();
    let mut buffer = [0; 16];
    let n = read_some(&mut *stream, &mut buffer).unwrap();
    assert_eq!(&buffer[..n], b"done\n");
}

fn number(stream: &mut dyn Stream) -> Pid {
    let mut text = Vec::new();
    while text.last() != Some(&b'\n') {
        let mut byte = [0];
        assert_eq!(read_some(stream, &mut byte).unwrap(), 1);
        text.push(byte[0]);
    }
    Pid::from_raw(String::from_utf8(text).unwrap().trim().parse().unwrap()).unwrap()
}

#[test]
fn dropping_the_stream_kills_and_reaps_the_command_and_what_it_started() {
    // Both ignore the end of their input and a polite request.
    let mut stream = exec("sh -c 'trap \"\" TERM HUP; echo $$; sleep 1000 & echo $!; wait'")
        .transport()
        .connect(TIMEOUT)
        .unwrap();
    let shell = number(&mut *stream);
    let sleeper = number(&mut *stream);
    let end = rustix::process::pidfd_open(sleeper, rustix::process::PidfdFlags::empty()).unwrap();
    drop(stream);
    // The drop waits for the command; a second wait finds no such child.
    assert_eq!(
        rustix::process::waitpid(Some(shell), WaitOptions::NOHANG).err(),
        Some(rustix::io::Errno::CHILD)
    );
    wait_for(end.as_fd(), Interest::READ);
}

#[test]
fn dropping_the_stream_of_a_command_that_has_ended_leaves_no_zombie() {
    let mut stream = exec("sh -c 'echo $$'")
        .transport()
        .connect(TIMEOUT)
        .unwrap();
    let shell = number(&mut *stream);
    assert!(read_some(&mut *stream, &mut [0]).is_err());
    drop(stream);
    assert_eq!(
        rustix::process::waitpid(Some(shell), WaitOptions::NOHANG).err(),
        Some(rustix::io::Errno::CHILD)
    );
}
