//! Frames and payloads over a stream that comes in any pieces, and the poller's part in it.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dst_buf::{Buf, Pool};
use dst_net::{
    Came, End, Framed, Interest, Link, Memory, NoMemory, Poller, Share, StdioStream, Stream, Watch,
};
use dst_proto::{
    digest, Algorithm, DigestChoice, Header, Hello, Kind, Role, HEADER_LEN, HELLO_LEN,
    MAX_DIGEST_AREA,
};
use proptest::prelude::*;

const DIGESTS: DigestChoice = DigestChoice {
    algorithm: Algorithm::Crc32c,
    granule: 4096,
};
const LONGEST: u32 = 1 << 20;

/// Brings these pieces, one with each read, and keeps what is written.
struct Script {
    pieces: VecDeque<Vec<u8>>,
    written: Arc<Mutex<Vec<u8>>>,
    fd: OwnedFd,
}

impl Script {
    fn new(pieces: Vec<Vec<u8>>) -> Self {
        Self {
            pieces: pieces.into(),
            written: Arc::default(),
            fd: UnixStream::pair().unwrap().0.into(),
        }
    }
}

impl Stream for Script {
    fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn write_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn read_vectored(&mut self, parts: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let Some(mut piece) = self.pieces.pop_front() else {
            return Err(io::ErrorKind::WouldBlock.into());
        };
        let mut done = 0;
        for part in parts {
            let step = part.len().min(piece.len() - done);
            part[..step].copy_from_slice(&piece[done..done + step]);
            done += step;
        }
        let rest = piece.split_off(done);
        if !rest.is_empty() {
            self.pieces.push_front(rest);
        }
        Ok(done)
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut written = self.written.lock().unwrap();
        parts.iter().for_each(|part| written.extend(&**part));
        Ok(parts.iter().map(|part| part.len()).sum())
    }

    fn shutdown(&mut self) {}

    fn peer(&self) -> String {
        "a script".into()
    }

    fn is_local(&self) -> bool {
        true
    }

    fn is_trusted(&self) -> bool {
        true
    }
}

fn pattern(length: usize, seed: usize) -> Vec<u8> {
    (0..length).map(|at| (at / 251 + at + seed) as u8).collect()
}

/// A HELLO and one WRITE of each length, as they are sent.
fn wire(lengths: &[usize]) -> Vec<u8> {
    let script = Script::new(Vec::new());
    let written = Arc::clone(&script.written);
    let mut framed = Framed::<()>::new(Box::new(script), Role::Server);
    let mut hello = [0; HELLO_LEN];
    Hello::new(Role::Client, [1; 16], "test").encode(&mut hello);
    framed.link.push_bytes(&hello);
    let pool = Pool::new(1 << 20);
    let mut scratch = vec![0; HEADER_LEN + MAX_DIGEST_AREA as usize];
    for (seed, &length) in lengths.iter().enumerate() {
        let offset = 512 * seed as u64;
        let header = Header {
            slot: seed as u16,
            id: seed as u64 + 1,
            offset,
            length: length as u64,
            payload_len: length as u32,
            digest_len: digest::area_len(DIGESTS.algorithm, DIGESTS.granule, offset, length as u32)
                .unwrap(),
            ..Header::new(Kind::WRITE)
        };
        let payload = pool.copy_of(&pattern(length, seed)).share();
        framed.push_frame(&header, DIGESTS, offset, payload, &mut scratch);
        assert!(framed.link.flush().unwrap());
    }
    let bytes = written.lock().unwrap().clone();
    bytes
}

/// Cuts `bytes` into pieces of these lengths, again and again.
fn cut(bytes: &[u8], lengths: &[usize]) -> Vec<Vec<u8>> {
    let mut pieces = Vec::new();
    let mut rest = bytes;
    for &length in lengths.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (piece, left) = rest.split_at(length.min(rest.len()));
        pieces.push(piece.to_vec());
        rest = left;
    }
    pieces
}

/// A place that holds its memory.
struct Place {
    slot: usize,
    offset: u64,
    buffer: Buf,
}

struct Own;

impl Memory<Place> for Own {
    fn room<'a>(&'a mut self, place: &'a mut Place) -> Option<&'a mut [u8]> {
        Some(&mut place.buffer)
    }
}

/// Receives everything; what `wanted` does not want goes nowhere. Answers slot and bytes of each payload, in order.
fn receive(pieces: Vec<Vec<u8>>, wanted: impl Fn(usize) -> bool) -> Vec<(usize, Vec<u8>)> {
    let turns = pieces.len() + 8;
    let mut framed = Framed::new(Box::new(Script::new(pieces)), Role::Client);
    let pool = Pool::new(1 << 20);
    let (mut frames, mut payloads) = (0, Vec::new());
    for _ in 0..turns {
        let mut share = Share::new();
        while let Some(came) = framed.next(&mut Own, &mut share).unwrap() {
            match came {
                Came::Hello(hello) => {
                    assert_eq!(hello.nonce, [1; 16]);
                    framed.begin(LONGEST, DIGESTS);
                }
                Came::Frame(header) => {
                    let slot = usize::from(header.slot);
                    assert_eq!(slot, frames);
                    frames += 1;
                    match wanted(slot) {
                        true => framed.deliver(Place {
                            slot,
                            offset: header.offset,
                            buffer: pool.get(header.payload_len as usize),
                        }),
                        false => framed.discard(),
                    }
                }
                Came::Payload(place) => {
                    assert!(framed.is_good(DIGESTS, place.offset, &place.buffer));
                    payloads.push((place.slot, place.buffer.to_vec()));
                }
            }
        }
    }
    payloads
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn payloads_come_to_their_places_however_the_stream_is_cut(
        lengths in proptest::collection::vec(1..50_000_usize, 1..8),
        cuts in proptest::collection::vec(1..9000_usize, 1..6),
        unwanted in any::<u8>(),
    ) {
        let wanted = |slot: usize| unwanted & (1 << slot) == 0;
        let came = receive(cut(&wire(&lengths), &cuts), wanted);
        let sent: Vec<_> = lengths
            .iter()
            .enumerate()
            .filter(|(slot, _)| wanted(*slot))
            .map(|(slot, &length)| (slot, pattern(length, slot)))
            .collect();
        prop_assert!(came == sent);
    }
}

#[test]
fn a_byte_at_a_time_is_enough() {
    let came = receive(cut(&wire(&[512, 700]), &[1]), |_| true);
    assert_eq!(came, [(0, pattern(512, 0)), (1, pattern(700, 1))]);
}

#[test]
fn one_connection_does_not_take_more_than_its_share_of_a_turn() {
    let wire = wire(&[1 << 20; 20]);
    let total = wire.len();
    let mut framed = Framed::<Place>::new(Box::new(Script::new(vec![wire])), Role::Client);
    let (mut turns, mut frames) = (0, 0);
    while frames < 20 {
        turns += 1;
        let mut share = Share::new();
        while let Some(came) = framed.next(&mut Own, &mut share).unwrap() {
            match came {
                Came::Hello(_) => framed.begin(LONGEST, DIGESTS),
                Came::Frame(_) => {
                    frames += 1;
                    framed.discard();
                }
                Came::Payload(_) => unreachable!("all are discarded"),
            }
        }
        assert!(share.is_touched());
        assert!(share.is_used_up() || frames == 20);
    }
    assert!((2..=total >> 20).contains(&turns), "{turns} turns");
}

#[test]
fn a_turn_without_bytes_is_no_sign_of_life() {
    let mut framed = Framed::<()>::new(Box::new(Script::new(Vec::new())), Role::Client);
    let mut share = Share::new();
    assert!(framed.next(&mut NoMemory, &mut share).unwrap().is_none());
    assert!(!share.is_touched() && !share.is_used_up());
}

#[test]
fn a_place_whose_memory_is_gone_and_a_payload_that_nobody_expects_end_the_connection() {
    for expected in [true, false] {
        let script = Script::new(vec![wire(&[4096])]);
        let mut framed = Framed::<()>::new(Box::new(script), Role::Client);
        let mut share = Share::new();
        let end = loop {
            match framed.next(&mut NoMemory, &mut share) {
                Ok(Some(Came::Hello(_))) => framed.begin(LONGEST, DIGESTS),
                Ok(Some(Came::Frame(_))) if expected => framed.deliver(()),
                Ok(Some(Came::Frame(_))) => {}
                Ok(other) => panic!("{other:?}"),
                Err(end) => break end,
            }
        };
        assert!(matches!(end, End::Fault(_)), "{end:?}");
        assert!(!end.text().is_empty());
    }
}

#[test]
fn before_a_session_no_payload_is_accepted() {
    let mut framed = Framed::<()>::new(Box::new(Script::new(vec![wire(&[512])])), Role::Client);
    let mut share = Share::new();
    assert!(matches!(
        framed.next(&mut NoMemory, &mut share),
        Ok(Some(Came::Hello(_)))
    ));
    assert_eq!(framed.hello_bytes().len(), HELLO_LEN);
    assert!(matches!(
        framed.next(&mut NoMemory, &mut share),
        Err(End::Fault(_))
    ));
}

/// Tokens of what happens to `poller` within no time.
fn happens(poller: &Poller) -> Vec<u64> {
    let mut events = Vec::new();
    poller.wait(Some(Duration::ZERO), &mut events).unwrap();
    events.iter().map(|event| event.token).collect()
}

#[test]
fn two_descriptors_have_a_token_each_and_one_has_one() {
    let poller = Poller::new().unwrap();
    let (near, far) = UnixStream::pair().unwrap();
    let stream = StdioStream::new(near.try_clone().unwrap().into(), near.into()).unwrap();
    let link = Link::new(Box::new(stream));
    let mut watch = Watch::add(&poller, &link, 1, 2).unwrap();
    assert_eq!(happens(&poller), []);
    watch.update(&poller, &link, Interest::BOTH).unwrap();
    assert_eq!(happens(&poller), [2]);
    drop(far);
    let mut both = happens(&poller);
    both.sort_unstable();
    assert_eq!(both, [1, 2]);
    // Nothing is read any more: the hang-up of that side is not heard again.
    watch.update(&poller, &link, Interest::WRITE).unwrap();
    assert_eq!(happens(&poller), [2]);
    watch.remove(&poller, &link);
    assert_eq!(happens(&poller), []);

    let (near, _far) = UnixStream::pair().unwrap();
    let mut script = Script::new(Vec::new());
    script.fd = near.into();
    let link = Link::new(Box::new(script));
    let mut watch = Watch::add(&poller, &link, 3, 4).unwrap();
    watch.update(&poller, &link, Interest::BOTH).unwrap();
    assert_eq!(happens(&poller), [3]);
    watch.update(&poller, &link, Interest::READ).unwrap();
    assert_eq!(happens(&poller), []);
    watch.remove(&poller, &link);
}
