//! Tests of connecting: resolving, trying addresses, socket options.

use super::*;
use std::net::TcpListener as StdListener;
use std::sync::atomic::{AtomicUsize, Ordering};

const TIMEOUT: Duration = Duration::from_secs(5);

fn resolver(answers: Vec<Addresses>) -> Resolver {
    let answers = Mutex::new(answers.into_iter());
    Arc::new(move |_, _| answers.lock().unwrap().next().expect("not asked again"))
}

fn fails() -> Addresses {
    Err(io::Error::other("no name service"))
}

/// A port of `ip` where nobody listens, for as long as the listener in use keeps it on another address.
fn deaf(listener: &StdListener, ip: [u8; 4]) -> SocketAddr {
    SocketAddr::new(ip.into(), listener.local_addr().unwrap().port())
}

#[test]
fn every_address_is_tried_until_one_answers() {
    let listener = StdListener::bind("127.0.0.1:0").unwrap();
    let good = listener.local_addr().unwrap();
    let bad = deaf(&listener, [127, 0, 0, 2]);
    let transport =
        TcpTransport::with_resolver("storage", good.port(), resolver(vec![Ok(vec![bad, good])]));
    let stream = transport.connect(TIMEOUT).unwrap();
    assert_eq!(stream.peer(), good.to_string());
}

#[test]
fn when_none_answers_the_error_names_each() {
    let listener = StdListener::bind("127.0.0.1:0").unwrap();
    let (a, b) = (
        deaf(&listener, [127, 0, 0, 2]),
        deaf(&listener, [127, 0, 0, 3]),
    );
    let transport = TcpTransport::with_resolver("storage", 1, resolver(vec![Ok(vec![a, b])]));
    let error = transport.connect(TIMEOUT).err().unwrap();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    let text = error.to_string();
    assert!(
        text.starts_with("storage:1: ")
            && text.contains(&a.to_string())
            && text.contains(&b.to_string())
    );
}

#[test]
fn the_name_is_resolved_again_and_the_last_good_address_stands_in_when_that_fails() {
    let old = StdListener::bind("127.0.0.1:0").unwrap();
    let new = StdListener::bind("127.0.0.2:0").unwrap();
    let (old_address, new_address) = (old.local_addr().unwrap(), new.local_addr().unwrap());
    let answers = vec![
        Ok(vec![old_address]),
        fails(),
        Ok(vec![]),
        Ok(vec![new_address]),
        fails(),
        fails(),
    ];
    let transport = TcpTransport::with_resolver("storage", 1, resolver(answers));
    let peer = || transport.connect(TIMEOUT).unwrap().peer();
    assert_eq!(peer(), old_address.to_string());
    assert_eq!(peer(), old_address.to_string(), "resolving failed");
    assert_eq!(peer(), old_address.to_string(), "the name had no address");
    assert_eq!(peer(), new_address.to_string(), "the name has moved");
    assert_eq!(peer(), new_address.to_string(), "resolving failed");
    drop(new);
    assert!(transport.connect(TIMEOUT).is_err());
}

#[test]
fn the_last_good_address_is_tried_before_the_others() {
    let first = StdListener::bind("127.0.0.1:0").unwrap();
    let second = StdListener::bind("127.0.0.2:0").unwrap();
    let (a, b) = (first.local_addr().unwrap(), second.local_addr().unwrap());
    let transport = TcpTransport::with_resolver(
        "storage",
        1,
        resolver(vec![Ok(vec![b]), Ok(vec![a, b]), Ok(vec![a])]),
    );
    assert_eq!(transport.connect(TIMEOUT).unwrap().peer(), b.to_string());
    assert_eq!(transport.connect(TIMEOUT).unwrap().peer(), b.to_string());
    assert_eq!(
        transport.connect(TIMEOUT).unwrap().peer(),
        a.to_string(),
        "no longer an address of the name"
    );
}

#[test]
fn a_slow_resolver_does_not_hold_a_connect_and_its_answer_is_used_by_the_next() {
    let old = StdListener::bind("127.0.0.1:0").unwrap();
    let new = StdListener::bind("127.0.0.2:0").unwrap();
    let (old_address, new_address) = (old.local_addr().unwrap(), new.local_addr().unwrap());
    let asked = Arc::new(AtomicUsize::new(0));
    let (release, released) = mpsc::channel::<()>();
    let (counter, released) = (Arc::clone(&asked), Mutex::new(released));
    let slow: Resolver = Arc::new(move |_, _| match counter.fetch_add(1, Ordering::SeqCst) {
        0 => Ok(vec![old_address]),
        _ => {
            let _ = released.lock().unwrap().recv();
            Ok(vec![new_address])
        }
    });
    let transport = TcpTransport::with_resolver("storage", 1, slow);
    let peer = |timeout| transport.connect(timeout).unwrap().peer();
    assert_eq!(peer(TIMEOUT), old_address.to_string());
    for _ in 0..3 {
        assert_eq!(
            peer(Duration::from_millis(20)),
            old_address.to_string(),
            "the resolver hangs"
        );
    }
    assert_eq!(asked.load(Ordering::SeqCst), 2, "one resolution at a time");
    release.send(()).unwrap();
    assert_eq!(peer(TIMEOUT), new_address.to_string());
    assert_eq!(asked.load(Ordering::SeqCst), 2);
}

#[test]
fn an_address_is_not_looked_up() {
    let listener = StdListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let transport = TcpTransport::with_resolver("127.0.0.1", port, resolver(vec![]));
    assert!(transport.connect(TIMEOUT).is_ok());
}

#[test]
fn a_socket_that_meets_itself_is_no_connection() {
    let socket = socket::new_socket(AddressFamily::INET).unwrap();
    rustix::net::bind(&socket, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let address = SocketAddr::try_from(rustix::net::getsockname(&socket).unwrap()).unwrap();
    rustix::net::connect(&socket, &address).expect("TCP lets a socket connect to itself");
    let error = connected(socket.into(), address).err().unwrap();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
}

#[test]
fn only_loopback_is_trusted() {
    for host in [
        "localhost",
        "LocalHost.",
        "127.0.0.1",
        "127.9.9.9",
        "::1",
        "::ffff:127.0.0.1",
    ] {
        assert!(TcpTransport::new(host, 1).is_trusted(), "{host}");
    }
    for host in [
        "storage",
        "localhost.example",
        "10.0.0.1",
        "::",
        "0.0.0.0",
        "fe80::1%lo",
    ] {
        assert!(!TcpTransport::new(host, 1).is_trusted(), "{host}");
    }
}

#[test]
fn every_stream_has_its_options() {
    let mut listener = TcpListener::bind("127.0.0.1", 0).unwrap();
    let endpoint: Endpoint = listener.local_url().parse().unwrap();
    let near = endpoint.transport().connect(TIMEOUT).unwrap();
    let far = listener.accept().unwrap();
    for stream in [&near, &far] {
        let fd = stream.fd();
        assert!(sockopt::tcp_nodelay(fd).unwrap() && sockopt::socket_keepalive(fd).unwrap());
        assert_eq!(sockopt::tcp_keepidle(fd).unwrap(), KEEPALIVE_IDLE);
        assert_eq!(sockopt::tcp_keepintvl(fd).unwrap(), KEEPALIVE_INTERVAL);
        assert_eq!(sockopt::tcp_keepcnt(fd).unwrap(), KEEPALIVE_COUNT);
        assert_eq!(sockopt::tcp_user_timeout(fd).unwrap(), USER_TIMEOUT_MS);
        assert!(rustix::fs::fcntl_getfl(fd)
            .unwrap()
            .contains(rustix::fs::OFlags::NONBLOCK));
        assert!(rustix::io::fcntl_getfd(fd)
            .unwrap()
            .contains(rustix::io::FdFlags::CLOEXEC));
    }
}
