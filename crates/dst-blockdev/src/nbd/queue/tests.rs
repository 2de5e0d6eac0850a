//! The data path, with a test in the place of the kernel.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use super::super::wire::tests::read_reply;
use super::super::wire::REPLY_LEN;
use super::*;
use crate::geometry::tests::geometry;

struct Bench {
    queue: Queue,
    kernel: UnixStream,
    pool: Pool,
}

impl Bench {
    fn new() -> Bench {
        Bench::taking(65536)
    }

    fn taking(longest: u32) -> Bench {
        let (ours, kernel) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let ours = OwnedFd::from(ours);
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        epoll::add(&epoll, &ours, EventData::new_u64(0), EventFlags::IN).unwrap();
        Bench {
            queue: Queue::new(ours, Arc::new(epoll), longest),
            kernel,
            pool: Pool::new(1 << 20),
        }
    }

    fn send(&mut self, kind: Kind, flags: u16, cookie: u64, offset: u64, len: u32) {
        let header = Header {
            kind,
            flags,
            cookie,
            offset,
            len,
        };
        self.kernel.write_all(&header.encode()).unwrap();
        if kind == Kind::Write {
            self.kernel
                .write_all(&vec![cookie as u8; len as usize])
                .unwrap();
        }
    }

    fn take(&mut self) -> Vec<Request> {
        let mut requests = Vec::new();
        self.queue.take(&mut requests, &self.pool).unwrap();
        requests
    }

    fn reply(&mut self, data: usize) -> (u64, u32) {
        let mut bytes = vec![0; REPLY_LEN + data];
        self.kernel.read_exact(&mut bytes).unwrap();
        read_reply(&bytes)
    }

    fn is_ready(&self) -> bool {
        let mut fds = [PollFd::new(&*self.queue.epoll, PollFlags::IN)];
        let now = rustix::event::Timespec::default();
        rustix::event::poll(&mut fds, Some(&now)).unwrap() == 1
    }
}

#[test]
fn every_kind_of_request_becomes_its_block_request() {
    let mut bench = Bench::new();
    bench.send(Kind::Read, 0, 1, 512, 4096);
    bench.send(Kind::Write, request_flag::FUA, 2, 1024, 512);
    bench.send(Kind::Flush, 0, 3, 0, 0);
    bench.send(Kind::Trim, 0, 4, 4096, 1 << 31);
    bench.send(Kind::WriteZeroes, request_flag::NO_HOLE, 5, 0, 512);
    bench.send(Kind::WriteZeroes, request_flag::FUA, 6, 0, 512);
    let ops: Vec<Op> = bench.take().into_iter().map(|request| request.op).collect();
    assert!(matches!(
        ops[0],
        Op::Read {
            offset: 512,
            len: 4096
        }
    ));
    let Op::Write {
        offset: 1024,
        data,
        fua: true,
        barrier: false,
    } = &ops[1]
    else {
        panic!("{:?}", ops[1]);
    };
    assert_eq!(data[..], [2; 512]);
    assert!(matches!(ops[2], Op::Flush));
    assert!(matches!(
        ops[3],
        Op::Discard {
            offset: 4096,
            len: 0x8000_0000
        }
    ));
    assert!(matches!(
        ops[4],
        Op::WriteZeroes {
            may_unmap: false,
            fua: false,
            ..
        }
    ));
    assert!(matches!(
        ops[5],
        Op::WriteZeroes {
            may_unmap: true,
            fua: true,
            ..
        }
    ));
}

#[test]
fn outcomes_in_any_order_find_their_cookies() {
    let mut bench = Bench::new();
    for cookie in [70, 80, 90] {
        bench.send(Kind::Read, 0, cookie, 0, 512);
    }
    let tags: Vec<u64> = bench.take().iter().map(|request| request.tag).collect();
    let data = bench.pool.get(512).share();
    let complete = |bench: &mut Bench, tag, result| {
        bench.queue.complete(Completion { tag, result });
    };
    complete(&mut bench, tags[2], Err(IoError::NoSpace));
    complete(&mut bench, tags[0], Ok(Reply::Read(data.clone())));
    // Fewer bytes than asked for would shift the stream.
    complete(&mut bench, tags[1], Ok(Reply::Read(data.slice(..256))));
    complete(&mut bench, tags[1], Ok(Reply::Read(data)));
    complete(&mut bench, u64::MAX, Ok(Reply::Done));
    bench.queue.flush().unwrap();
    assert_eq!(bench.reply(0), (90, 28));
    assert_eq!(bench.reply(512), (70, 0));
    assert_eq!(bench.reply(0), (80, 5));
}

#[test]
fn what_can_not_be_served_is_refused_at_once() {
    let mut bench = Bench::new();
    bench.send(Kind::Write, 0, 3, 0, 0);
    bench.send(Kind::Unknown(9), 0, 4, 0, 512);
    assert!(bench.take().is_empty());
    assert_eq!(bench.reply(0), (3, 22));
    assert_eq!(bench.reply(0), (4, 22));
}

#[test]
fn a_read_that_is_too_long_is_read_in_pieces_and_answered_in_order() {
    let mut bench = Bench::taking(4096);
    bench.send(Kind::Read, 0, 7, 8192, 4096 * 2 + 512);
    bench.send(Kind::Flush, 0, 8, 0, 0);
    let mut requests = bench.take();
    let ranges: Vec<_> = requests.drain(..3).map(|r| (r.tag, r.op)).collect();
    let mut data = Vec::new();
    for (at, (tag, op)) in ranges.iter().enumerate() {
        let Op::Read { offset, len } = *op else {
            panic!("{op:?}");
        };
        assert_eq!(offset, 8192 + at as u64 * 4096);
        assert_eq!(len, [4096, 4096, 512][at]);
        let mut buf = bench.pool.get(len as usize);
        buf.fill(at as u8 + 1);
        data.push((*tag, buf.share()));
    }
    // The last first, and something else between them.
    for (tag, data) in data.into_iter().rev() {
        bench.queue.complete(Completion {
            tag,
            result: Ok(Reply::Read(data)),
        });
    }
    bench.queue.complete(Completion {
        tag: requests[0].tag,
        result: Ok(Reply::Done),
    });
    bench.queue.flush().unwrap();
    let mut bytes = vec![0; REPLY_LEN + 4096 * 2 + 512];
    bench.kernel.read_exact(&mut bytes).unwrap();
    assert_eq!(read_reply(&bytes), (7, 0));
    for (at, piece) in bytes[REPLY_LEN..].chunks(4096).enumerate() {
        assert!(piece.iter().all(|byte| *byte == at as u8 + 1));
    }
    assert_eq!(bench.reply(0), (8, 0));
    assert_eq!(bench.pool.outstanding_bytes(), 0);
}

#[test]
fn a_write_that_is_too_long_is_written_in_pieces_and_fails_if_one_of_them_does() {
    for fails in [false, true] {
        let mut bench = Bench::taking(4096);
        bench.send(Kind::Write, request_flag::FUA, 7, 8192, 4096 * 2 + 512);
        bench.send(Kind::Write, 0, 8, 0, 512);
        let requests = bench.take();
        assert_eq!(requests.len(), 4);
        for (at, request) in requests.iter().take(3).enumerate() {
            let Op::Write {
                offset, data, fua, ..
            } = &request.op
            else {
                panic!("{request:?}");
            };
            assert_eq!(*offset, 8192 + at as u64 * 4096);
            assert_eq!(data[..], vec![7; [4096, 4096, 512][at]]);
            assert!(*fua);
        }
        for request in requests.iter().rev() {
            let result = match fails && request.tag == requests[1].tag {
                true => Err(IoError::NoSpace),
                false => Ok(Reply::Done),
            };
            bench.queue.complete(Completion {
                tag: request.tag,
                result,
            });
        }
        bench.queue.flush().unwrap();
        assert_eq!(bench.reply(0), (8, 0));
        assert_eq!(bench.reply(0), (7, if fails { 28 } else { 0 }));
    }
}

#[test]
fn who_waits_for_what_is_under_way_does_not_wait_for_what_comes_later() {
    let mut bench = Bench::new();
    assert_eq!(bench.queue.when_done().try_recv(), Ok(()));
    bench.send(Kind::Read, 0, 1, 0, 512);
    bench.send(Kind::Flush, 0, 2, 0, 0);
    let before = bench.take();
    let told = bench.queue.when_done();
    bench.send(Kind::Flush, 0, 3, 0, 0);
    let after = bench.take();
    for request in before {
        assert_eq!(told.try_recv(), Err(mpsc::TryRecvError::Empty));
        bench.queue.complete(refused(request.tag));
    }
    assert_eq!(told.try_recv(), Ok(()));
    // The end of the queue is the end of waiting.
    let told = bench.queue.when_done();
    bench.queue.close();
    assert_eq!(told.recv(), Err(mpsc::RecvError));
    bench.queue.complete(refused(after[0].tag));
}

#[test]
fn no_more_is_taken_than_memory_is_meant_for_it() {
    let mut bench = Bench::taking(1 << 20);
    let most = FULL >> 20;
    for cookie in 0..most + 5 {
        bench.send(Kind::Read, 0, cookie, 0, 1 << 20);
    }
    let mut requests = bench.take();
    assert_eq!(requests.len() as u64, most);
    assert!(bench.queue.is_full());
    // A call all the same takes one.
    requests.extend(bench.take());
    assert_eq!(requests.len() as u64, most + 1);
    for request in requests.drain(..) {
        bench.queue.complete(refused(request.tag));
    }
    assert!(!bench.queue.is_full());
    assert_eq!(bench.take().len(), 4);
}

#[test]
fn the_descriptor_is_ready_for_requests_and_for_room_to_reply_and_not_otherwise() {
    let mut bench = Bench::new();
    assert!(!bench.is_ready());
    for cookie in 0..100 {
        bench.send(Kind::Read, 0, cookie, 0, 65536);
    }
    assert!(bench.is_ready());
    for request in bench.take() {
        let data = bench.pool.get(65536).share();
        bench.queue.complete(Completion {
            tag: request.tag,
            result: Ok(Reply::Read(data)),
        });
    }
    assert!(!bench.is_ready());
    bench.queue.flush().unwrap();
    assert!(bench.queue.blocked && !bench.is_ready());
    bench.kernel.set_nonblocking(true).unwrap();
    let mut left = 100 * (REPLY_LEN + 65536);
    let mut bytes = [0; 65536];
    while left > 0 {
        match bench.kernel.read(&mut bytes) {
            Ok(read) => left -= read,
            // The kernel waits, so there is room.
            Err(_) => {
                assert!(bench.is_ready());
                bench.take();
            }
        }
    }
    bench.take();
    assert!(!bench.queue.blocked && !bench.is_ready());
}

#[test]
fn a_disconnect_closes_and_forgets_what_is_under_way() {
    let mut bench = Bench::new();
    bench.send(Kind::Read, 0, 1, 0, 512);
    bench.send(Kind::Disconnect, 0, 0, 0, 0);
    let requests = bench.take();
    assert!(bench.queue.closed());
    bench.queue.complete(refused(requests[0].tag));
    bench.queue.flush().unwrap();
    assert!(bench.take().is_empty());
}

#[test]
fn a_refused_queue_answers_what_is_under_way_and_what_comes_until_the_end() {
    let mut bench = Bench::new();
    bench.send(Kind::Read, 0, 1, 0, 512);
    // The payload of this one comes in two parts.
    let header = Header {
        kind: Kind::Write,
        flags: 0,
        cookie: 2,
        offset: 0,
        len: 1024,
    };
    bench.kernel.write_all(&header.encode()).unwrap();
    bench.kernel.write_all(&[0; 512]).unwrap();
    assert_eq!(bench.take().len(), 1);
    let Bench {
        queue, mut kernel, ..
    } = bench;
    let refuser = std::thread::spawn(move || queue.refuse());
    let mut read = || {
        let mut bytes = [0; REPLY_LEN];
        kernel.read_exact(&mut bytes).unwrap();
        read_reply(&bytes)
    };
    assert_eq!(read(), (1, 108));
    kernel.write_all(&[0; 512]).unwrap();
    let mut read = || {
        let mut bytes = [0; REPLY_LEN];
        kernel.read_exact(&mut bytes).unwrap();
        read_reply(&bytes)
    };
    assert_eq!(read(), (2, 108));
    kernel.shutdown(std::net::Shutdown::Both).unwrap();
    refuser.join().unwrap();
}

#[test]
fn a_device_announces_what_it_can_do_and_nothing_to_write_if_it_is_read_only() {
    let all = geometry();
    assert_eq!(server_flags(&all), 0b110_1101);
    let without_cache = Geometry {
        write_cache: false,
        ..all
    };
    assert_eq!(server_flags(&without_cache), 0b110_0001);
    let read_only = Geometry {
        read_only: true,
        rotational: true,
        ..all
    };
    assert_eq!(server_flags(&read_only), 0b1_0011);
}
