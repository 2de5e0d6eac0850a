//! Reassembly of a connection: any bytes in any cuts give the same heads, and never more than the lent memory.

use dst_engine::rx::{Fault, Head, Receiver};
use dst_proto::{digest, Algorithm, Header, Kind, OpFlags, Role, HEADER_LEN};

use crate::frames;
use crate::input::Input;

/// What one way of cutting has given.
#[derive(Debug, PartialEq)]
struct Seen {
    heads: Vec<(Head, Vec<u8>, Vec<u8>)>,
    hello: Vec<u8>,
    payload: Vec<u8>,
    fault: Option<Fault>,
    /// Bytes taken when the last head was whole, or the fault found.
    whole: usize,
}

#[derive(Clone, Copy)]
struct Setup {
    peer: Role,
    area: usize,
    algorithm: Algorithm,
    granule: u32,
    max_payload: u32,
    forget: bool,
}

/// How to receive, how to cut, and then pieces of a stream: frames with good CRCs, with one bit wrong, or raw bytes.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let form = input.u8();
    let setup = Setup {
        peer: if form & 1 == 0 {
            Role::Client
        } else {
            Role::Server
        },
        area: [1024 + 16384, 96, 200, 600, 1400][input.below(5)],
        algorithm: input.pick(&Algorithm::ALL),
        granule: 512 << (input.u8() % 8),
        max_payload: [1 << 16, 0, 512, 4 << 20][input.below(4)],
        forget: form & 2 != 0,
    };
    let cuts: Vec<usize> = input.bytes(4).iter().map(|cut| usize::from(*cut)).collect();
    let stream = stream(&mut input, &setup);

    let whole = receive(&setup, &stream, &[usize::MAX]);
    assert_eq!(receive(&setup, &stream, &[1]), whole, "byte by byte");
    if cuts.iter().any(|cut| *cut > 0) {
        assert_eq!(receive(&setup, &stream, &cuts), whole, "cut at {cuts:?}");
    }
}

fn stream(input: &mut Input<'_>, setup: &Setup) -> Vec<u8> {
    let mut stream = Vec::new();
    while !input.is_empty() && stream.len() < 20_000 {
        let form = input.u8();
        let mut part = match form % 8 {
            0 => {
                let len = input.below(200);
                input.bytes(len).to_vec()
            }
            1 | 2 => frames::hello(
                if form & 8 == 0 {
                    setup.peer
                } else {
                    Role::Client
                },
                form,
            )
            .to_vec(),
            _ => frame(input, setup),
        };
        if form >= 240 && !part.is_empty() {
            let at = usize::from(input.u16()) % part.len();
            part[at] ^= 1 << (form % 8);
        }
        stream.extend(part);
    }
    stream
}

fn frame(input: &mut Input<'_>, setup: &Setup) -> Vec<u8> {
    let kind = match input.u8() {
        index @ 0..=127 => Kind::ALL[usize::from(index) % Kind::ALL.len()],
        other => Kind(other),
    };
    let shape = input.u8();
    let len = input.below(24) * 8;
    let options = input.bytes(len).to_vec();
    let padded = vec![0; options.len().next_multiple_of(8)];
    let options = [&options[..], &padded[options.len()..]].concat();
    let payload_len = match shape & 3 {
        0 => 0,
        1 => u32::from(input.u8()),
        2 => u32::from(input.u16()),
        _ => input.u32(),
    };
    let header = Header {
        reply: shape & 4 != 0,
        more: shape & 8 != 0,
        slot: u16::from(shape),
        op_flags: OpFlags(shape >> 4),
        payload_len,
        id: u64::from(shape),
        offset: u64::from(input.u16()),
        ..Header::new(kind)
    };
    let area = digest::area_len(setup.algorithm, setup.granule, header.offset, payload_len);
    let area = area.filter(|len| *len < 4096).unwrap_or(0);
    let digests = vec![0x11; area as usize];
    let mut bytes = frames::frame(&header, &options, &digests);
    let there = payload_len.min(3_000) as usize;
    bytes.extend((0..there).map(|at| at as u8));
    bytes
}

fn receive(setup: &Setup, stream: &[u8], cuts: &[usize]) -> Seen {
    let mut receiver = Receiver::new(vec![0; setup.area], setup.peer);
    let mut seen = Seen {
        heads: Vec::new(),
        hello: Vec::new(),
        payload: Vec::new(),
        fault: None,
        whole: 0,
    };
    let mut cuts = cuts.iter().cycle();
    let mut taken = 0;
    while taken < stream.len() {
        let cut = (*cuts.next().expect("endless")).max(1);
        let end = taken.saturating_add(cut).min(stream.len());
        while taken < end {
            let part = &stream[taken..end];
            let left = receiver.payload_left() as usize;
            if left > 0 {
                let used = left.min(part.len());
                seen.payload.extend_from_slice(&part[..used]);
                assert_eq!(receiver.payload_received(used as u32), used == left);
                taken += used;
                continue;
            }
            match receiver.feed(part) {
                Ok((used, head)) => {
                    assert!(used <= part.len());
                    assert!(used > 0 || head.is_some(), "no way on");
                    taken += used;
                    let Some(head) = head else { continue };
                    seen.whole = taken;
                    note(setup, &mut receiver, &mut seen, head);
                }
                Err(fault) => {
                    assert_eq!(receiver.feed(part), Err(fault), "a fault is for ever");
                    assert_eq!(receiver.feed(&[]), Err(fault));
                    seen.fault = Some(fault);
                    return seen;
                }
            }
        }
    }
    seen
}

fn note(setup: &Setup, receiver: &mut Receiver<Vec<u8>>, seen: &mut Seen, head: Head) {
    match head {
        Head::Hello(hello) => {
            assert_eq!(hello.role, setup.peer);
            assert!(seen.heads.is_empty());
            seen.hello = receiver.hello_bytes().to_vec();
            assert!(seen.hello.len() >= 96 && seen.hello.len() <= setup.area);
            receiver.accept_payload(setup.max_payload, setup.algorithm, setup.granule);
            seen.heads.push((head, Vec::new(), Vec::new()));
        }
        Head::Frame(header) => {
            let (options, digests) = (receiver.options().to_vec(), receiver.digests().to_vec());
            assert_eq!(options.len(), usize::from(header.options_len));
            assert_eq!(digests.len(), header.digest_len as usize);
            let kept = receiver.hello_bytes().len();
            assert!(
                kept + options.len() + digests.len() <= setup.area,
                "beyond the lent memory"
            );
            assert!(header.payload_len <= setup.max_payload);
            assert_eq!(receiver.payload_left(), header.payload_len);
            let mut bytes = [0; HEADER_LEN];
            header.encode(&mut bytes);
            assert_eq!(Header::decode(&bytes), Ok(header));
            seen.heads.push((head, options, digests));
            if setup.forget {
                receiver.forget_hello();
                assert!(receiver.hello_bytes().is_empty());
            }
        }
    }
}
