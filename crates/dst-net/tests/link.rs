//! The link over real sockets: batching, direct reads, marks, full sockets and peers that close or never read.

use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use dst_buf::{Pool, Shared};
use dst_net::{Endpoint, Event, Interest, Link, Poller, Stream};
use proptest::prelude::*;

const TIMEOUT: Duration = Duration::from_secs(5);

/// Two links over a loopback connection; where `small`, the near socket holds little of what it sends.
fn tcp_pair(small: bool) -> (Link, Link) {
    let mut listener = "dst://127.0.0.1:0"
        .parse::<Endpoint>()
        .unwrap()
        .listen()
        .unwrap();
    let transport = listener
        .local_url()
        .parse::<Endpoint>()
        .unwrap()
        .transport();
    let near = transport.connect(TIMEOUT).unwrap();
    let far = listener.accept().unwrap();
    if small {
        rustix::net::sockopt::set_socket_send_buffer_size(near.fd(), 256 << 10).unwrap();
    }
    (Link::new(near), Link::new(far))
}

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| (i / 251 + i + seed) as u8).collect()
}

fn payload(pool: &Pool, len: usize, seed: usize) -> Shared {
    pool.copy_of(&pattern(len, seed)).share()
}

fn wait_readable(link: &Link) {
    let poller = Poller::new().unwrap();
    poller.add(link.fd(), 0, Interest::READ).unwrap();
    let mut events: Vec<Event> = Vec::new();
    while events.is_empty() {
        poller.wait(None, &mut events).unwrap();
    }
}

/// What of `result` is no `WouldBlock`.
fn or_nothing(result: io::Result<usize>) -> usize {
    match result {
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => 0,
        other => other.unwrap(),
    }
}

fn marks(link: &mut Link) -> Vec<u64> {
    let mut marks = Vec::new();
    link.take_marks(&mut marks);
    marks
}

#[test]
fn many_small_frames_come_with_one_read() {
    let (mut near, mut far) = tcp_pair(false);
    for n in 0..100_u8 {
        near.push_bytes(&[n; 64]);
    }
    assert_eq!(near.queued_bytes(), 6400);
    assert!(near.flush().unwrap());
    assert!(!near.wants_write());
    wait_readable(&far);
    assert_eq!(far.fill().unwrap(), 6400);
    assert!(far.drained());
    for n in 0..100_u8 {
        assert_eq!(far.peek()[..64], [n; 64]);
        far.consume(64);
    }
    assert!(far.peek().is_empty());
    assert_eq!(far.fill().unwrap_err().kind(), io::ErrorKind::WouldBlock);
}

#[test]
fn a_payload_goes_to_its_place_and_what_follows_into_the_buffer() {
    let (mut near, mut far) = tcp_pair(false);
    let pool = Pool::default();
    near.push_bytes(b"head");
    near.push_payload(payload(&pool, 50_000, 1));
    near.push_bytes(b"next");
    assert!(near.flush().unwrap());
    wait_readable(&far);
    let mut head = [0; 4];
    assert_eq!(far.read_into(&mut head).unwrap(), 4);
    assert_eq!(&head, b"head");
    let mut place = vec![0; 50_000];
    let mut done = 0;
    while done < place.len() {
        done += or_nothing(far.read_into(&mut place[done..]));
    }
    assert!(place == pattern(50_000, 1));
    while far.peek().len() < 4 {
        or_nothing(far.fill());
    }
    assert_eq!(far.peek(), b"next");
}

#[test]
fn read_into_answers_would_block_only_when_no_byte_came() {
    let (mut near, mut far) = tcp_pair(false);
    assert_eq!(
        far.read_into(&mut [0; 8]).unwrap_err().kind(),
        io::ErrorKind::WouldBlock
    );
    assert_eq!(far.read_into(&mut []).unwrap(), 0);
    near.push_bytes(b"abc");
    near.flush().unwrap();
    wait_readable(&far);
    far.fill().unwrap();
    far.consume(1);
    let mut place = [0; 8];
    assert_eq!(far.read_into(&mut place).unwrap(), 2);
    assert_eq!(&place[..2], b"bc");
}

#[test]
fn marks_are_reported_when_all_before_them_has_gone_and_not_earlier() {
    let (mut near, mut far) = tcp_pair(true);
    let pool = Pool::default();
    near.push_mark(1);
    assert_eq!(marks(&mut near), [1], "nothing was before it");
    near.push_bytes(b"small");
    near.push_mark(2);
    near.push_mark(3);
    assert_eq!(marks(&mut near), [], "not flushed yet");
    near.push_payload(payload(&pool, 16 << 20, 0));
    near.push_mark(4);
    near.push_bytes(b"end");
    near.push_mark(5);
    assert!(!near.flush().unwrap(), "more than the socket takes");
    assert!(near.wants_write());
    assert_eq!(marks(&mut near), [2, 3]);
    assert!(pool.outstanding_bytes() >= 16 << 20);

    let total = 5 + (16 << 20) + 3;
    let mut received = Vec::with_capacity(total);
    while received.len() < total {
        near.flush().unwrap();
        or_nothing(far.fill());
        received.extend_from_slice(far.peek());
        far.consume(far.peek().len());
    }
    assert_eq!(marks(&mut near), [4, 5]);
    assert_eq!(near.queued_bytes(), 0);
    assert_eq!(
        pool.outstanding_bytes(),
        0,
        "the link holds nothing that has gone"
    );
    assert!(received[5..total - 3] == pattern(16 << 20, 0) && received.ends_with(b"end"));
}

#[test]
fn a_peer_that_never_reads_costs_what_was_pushed_and_no_more() {
    let (mut near, _far) = tcp_pair(true);
    let pool = Pool::default();
    let one = payload(&pool, 1 << 20, 0);
    for _ in 0..8 {
        near.push_payload(one.clone());
    }
    assert!(!near.flush().unwrap());
    let stuck = near.queued_bytes();
    assert!(stuck > 0 && stuck < 8 << 20);
    for _ in 0..100 {
        // The kernel may move a little within its own small buffers; nothing is taken twice or grows.
        assert!(!near.flush().unwrap());
        assert!(near.queued_bytes() <= stuck);
    }
    let before = near.queued_bytes();
    near.push_bytes(&[0; 1000]);
    assert_eq!(near.queued_bytes(), before + 1000);
    drop(near);
    drop(one);
    assert_eq!(
        pool.outstanding_bytes(),
        0,
        "a dropped link gives its payloads back"
    );
}

#[test]
fn a_closed_peer_is_an_error_of_both_halves() {
    let (mut near, mut far) = tcp_pair(false);
    near.push_bytes(b"last");
    near.flush().unwrap();
    drop(near);
    wait_readable(&far);
    assert_eq!(far.fill().unwrap(), 4);
    far.consume(2);
    let mut place = [0; 8];
    assert_eq!(
        far.read_into(&mut place).unwrap(),
        2,
        "what came before the end is not lost"
    );
    assert_eq!(
        far.read_into(&mut place).unwrap_err().kind(),
        io::ErrorKind::UnexpectedEof
    );
    assert_eq!(far.fill().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    let error = loop {
        far.push_bytes(b"x");
        if let Err(error) = far.flush() {
            break error;
        }
    };
    assert!(matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
    ));
}

#[test]
fn a_frame_longer_than_the_buffer_is_an_error_not_a_hang() {
    let (mut near, mut far) = tcp_pair(false);
    near.push_bytes(&vec![1; Link::RECEIVE_BUFFER + 1]);
    let error = loop {
        near.flush().unwrap();
        match far.fill() {
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    assert_eq!(far.peek().len(), Link::RECEIVE_BUFFER);
}

#[test]
fn more_segments_than_one_write_takes_all_go_out() {
    let (mut near, mut far) = tcp_pair(false);
    let pool = Pool::default();
    let mut expected = Vec::new();
    for n in 0..500 {
        near.push_bytes(&pattern(64, n));
        near.push_payload(payload(&pool, 100, n));
        expected.extend(pattern(64, n));
        expected.extend(pattern(100, n));
        near.push_mark(n as u64);
    }
    assert!(near.flush().unwrap());
    assert_eq!(marks(&mut near).len(), 500);
    let mut received = vec![0; expected.len()];
    let mut done = 0;
    while done < received.len() {
        done += or_nothing(far.read_into(&mut received[done..]));
    }
    assert!(received == expected);
}

#[test]
fn a_link_works_over_a_command() {
    let transport = "dst+exec:///?command=cat"
        .parse::<Endpoint>()
        .unwrap()
        .transport();
    let mut link = Link::new(transport.connect(TIMEOUT).unwrap());
    let pool = Pool::default();
    link.push_payload(payload(&pool, 3 << 20, 9));
    let mut place = vec![0; 3 << 20];
    let mut done = 0;
    while done < place.len() {
        link.flush().unwrap();
        done += or_nothing(link.read_into(&mut place[done..]));
    }
    assert!(place == pattern(3 << 20, 9));
    link.shutdown();
    let error = loop {
        wait_readable(&link);
        match link.fill() {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            other => break other.unwrap_err(),
        }
    };
    assert!(error.to_string().contains("cat"), "{error}");
}

/// A stream that takes and gives as many bytes at a time as it is told, over a socket pair.
struct Dribble {
    socket: UnixStream,
    sizes: Vec<usize>,
    turn: usize,
}

impl Dribble {
    fn next(&mut self) -> usize {
        self.turn += 1;
        self.sizes[self.turn % self.sizes.len()]
    }
}

impl Stream for Dribble {
    fn fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn write_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn read_vectored(&mut self, bufs: &mut [io::IoSliceMut<'_>]) -> io::Result<usize> {
        let mut left = self.next();
        if left == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let mut cut: Vec<io::IoSliceMut<'_>> = Vec::new();
        for buf in bufs {
            let n = left.min(buf.len());
            cut.push(io::IoSliceMut::new(&mut buf[..n]));
            left -= n;
        }
        Ok(rustix::io::readv(&self.socket, &mut cut)?)
    }

    fn write_vectored(&mut self, bufs: &[io::IoSlice<'_>]) -> io::Result<usize> {
        let mut left = self.next();
        if left == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let mut cut: Vec<io::IoSlice<'_>> = Vec::new();
        for buf in bufs {
            let n = left.min(buf.len());
            cut.push(io::IoSlice::new(&buf[..n]));
            left -= n;
        }
        Ok(rustix::io::writev(&self.socket, &cut)?)
    }

    fn shutdown(&mut self) {}

    fn peer(&self) -> String {
        "dribble".to_owned()
    }

    fn is_local(&self) -> bool {
        true
    }

    fn is_trusted(&self) -> bool {
        true
    }
}

#[derive(Debug, Clone)]
enum Push {
    Bytes(usize),
    Payload(usize),
    Mark,
    Flush,
}

fn pushes() -> impl Strategy<Value = Vec<Push>> {
    let push = prop_oneof![
        3 => (0..300_usize).prop_map(Push::Bytes),
        2 => (0..5000_usize).prop_map(Push::Payload),
        1 => (32_000..80_000_usize).prop_map(Push::Payload),
        2 => Just(Push::Mark),
        2 => Just(Push::Flush),
    ];
    proptest::collection::vec(push, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    /// Whatever is pushed in whatever portions the sockets take: the same bytes come out in order, by either way of
    /// reading, and each mark comes exactly when everything before it has gone.
    #[test]
    fn every_byte_arrives_once_and_every_mark_is_true(
        pushes in pushes(),
        writes in proptest::collection::vec(0..9000_usize, 1..20),
        reads in proptest::collection::vec(0..70_000_usize, 1..20),
        takes in proptest::collection::vec((any::<bool>(), 1..40_000_usize), 1..20),
    ) {
        let (near, far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        far.set_nonblocking(true).unwrap();
        // At least one portion that moves something.
        let sizes = |mut sizes: Vec<usize>| { sizes.push(777); sizes };
        let mut near = Link::new(Box::new(Dribble { socket: near, sizes: sizes(writes), turn: 0 }));
        let mut far = Link::new(Box::new(Dribble { socket: far, sizes: sizes(reads), turn: 0 }));
        let pool = Pool::default();
        let mut expected = Vec::new();
        let mut positions = Vec::new();
        for (n, push) in pushes.iter().enumerate() {
            match *push {
                Push::Bytes(len) => {
                    near.push_bytes(&pattern(len, n));
                    expected.extend(pattern(len, n));
                }
                Push::Payload(len) => {
                    near.push_payload(payload(&pool, len, n));
                    expected.extend(pattern(len, n));
                }
                Push::Mark => {
                    near.push_mark(positions.len() as u64);
                    positions.push(expected.len());
                }
                Push::Flush => { near.flush().unwrap(); }
            }
        }
        let mut received = Vec::new();
        let mut reported = 0;
        let mut turn = 0;
        while received.len() < expected.len() || reported < positions.len() {
            near.flush().unwrap();
            let gone = expected.len() - near.queued_bytes();
            for mark in marks(&mut near) {
                prop_assert_eq!(mark, reported as u64);
                reported += 1;
            }
            let reached = positions.iter().filter(|position| **position <= gone).count();
            prop_assert_eq!(reported, reached);
            let (directly, len) = takes[turn % takes.len()];
            turn += 1;
            if directly {
                let mut place = vec![0; len.min(expected.len() - received.len())];
                let n = or_nothing(far.read_into(&mut place));
                received.extend_from_slice(&place[..n]);
            } else {
                or_nothing(far.fill());
                let n = len.min(far.peek().len());
                received.extend_from_slice(&far.peek()[..n]);
                far.consume(n);
            }
        }
        prop_assert!(received == expected);
        prop_assert_eq!(near.queued_bytes(), 0);
        prop_assert_eq!(pool.outstanding_bytes(), 0);
    }
}
