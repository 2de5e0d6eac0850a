//! Each kind of request on its own.

use super::*;
use crate::fuse::proto::{init_flag, set_attr};

#[test]
fn aligned_requests_map_one_to_one() {
    let mut bench = Bench::new(geometry());
    bench.ask(write(512, 1024, 0), Some(&[1; 1024])).unwrap();
    assert_eq!(bench.read(512, 512), [1; 512]);
    bench.ask(Message::Fsync, None).unwrap();
    bench.ask(fallocate(1024, 512, PUNCH), None).unwrap();
    bench.ask(fallocate(512, 512, ZERO), None).unwrap();
    assert_eq!(
        bench.log,
        [
            "write 512+1024",
            "read 512+512",
            "flush",
            "zero 1024+512 unmap fast",
            "zero 512+512"
        ]
    );
}

#[test]
fn a_synchronous_write_is_fua_or_flushed_before_its_answer() {
    const O_DSYNC: u32 = 0o10000;
    let mut bench = Bench::new(geometry());
    bench.ask(write(0, 512, O_DSYNC), Some(&[1; 512])).unwrap();
    bench.ask(write(10, 1, O_DSYNC), Some(&[2; 1])).unwrap();
    assert_eq!(
        bench.log,
        ["write 0+512 fua", "read 0+512", "write 0+512 fua"]
    );

    let mut bench = Bench::new(Geometry {
        fua: false,
        ..geometry()
    });
    bench.send(write(0, 512, O_DSYNC), Some(&[1; 512]), false);
    bench.complete(0, false);
    assert!(bench.answers.is_empty(), "answered before the flush");
    bench.complete(0, false);
    assert_eq!(bench.answers.len(), 1);
    assert_eq!(bench.log, ["write 0+512", "flush"]);

    let mut bench = Bench::new(Geometry {
        write_cache: false,
        ..geometry()
    });
    bench.ask(write(0, 512, O_DSYNC), Some(&[1; 512])).unwrap();
    bench.ask(Message::Fsync, None).unwrap();
    assert_eq!(bench.log, ["write 0+512"]);
}

#[test]
fn close_flushes_nothing() {
    let mut bench = Bench::new(geometry());
    bench.ask(Message::Flush, None).unwrap();
    bench.ask(Message::Release, None).unwrap();
    assert!(bench.log.is_empty());
}

#[test]
fn the_end_is_where_the_device_ends() {
    let mut bench = Bench::new(geometry());
    assert_eq!(bench.read(SIZE, 512), []);
    assert_eq!(bench.read(u64::MAX, 512), []);
    assert_eq!(bench.read(SIZE - 10, 512).len(), 10);
    let past = bench.ask(write(SIZE, 512, 0), Some(&[1; 512]));
    assert_eq!(past, Err(Errno::NOSPC));
    let across = bench
        .ask(write(SIZE - 512, 1024, 0), Some(&[1; 1024]))
        .unwrap();
    assert_eq!(across[..4], 512_u32.to_ne_bytes());
    let grow = bench.ask(fallocate(SIZE - 512, 1024, 16), None);
    assert_eq!(grow, Err(Errno::FBIG));
    bench.ask(fallocate(SIZE, 1024, PUNCH), None).unwrap();
    let overflow = bench.ask(fallocate(u64::MAX, 2, PUNCH), None);
    assert_eq!(overflow, Err(Errno::INVAL));
}

#[test]
fn truncation_changes_nothing() {
    let mut bench = Bench::new(geometry());
    let set = |valid, size| Message::SetAttr { valid, size };
    let attributes = bench.ask(Message::GetAttr, None).unwrap();
    assert_eq!(bench.ask(set(set_attr::SIZE, 0), None).unwrap(), attributes);
    assert_eq!(
        bench.ask(set(set_attr::SIZE, SIZE), None).unwrap(),
        attributes
    );
    assert_eq!(bench.ask(set(set_attr::SIZE, 512), None), Err(Errno::INVAL));
    assert_eq!(
        bench.ask(set(set_attr::SIZE, SIZE + 1), None),
        Err(Errno::FBIG)
    );
    assert_eq!(bench.ask(set(set_attr::MODE, 0), None), Err(Errno::PERM));
    assert_eq!(bench.ask(set(0, 0), None).unwrap(), attributes);
}

#[test]
fn a_read_only_device_refuses_every_change() {
    let mut bench = Bench::new(Geometry {
        read_only: true,
        ..geometry()
    });
    let refused = Err(Errno::ROFS);
    assert_eq!(bench.ask(write(0, 512, 0), Some(&[1; 512])), refused);
    assert_eq!(bench.ask(fallocate(0, 512, PUNCH), None), refused);
    assert_eq!(bench.ask(Message::Open { flags: 2 }, None), refused);
    bench.ask(Message::Open { flags: 0 }, None).unwrap();
    assert!(bench.log.is_empty());
}

#[test]
fn holes_are_refused_when_they_could_not_read_as_zeroes_and_may_be_asked_for_again() {
    for (discard, write_zeroes, punch, zero) in [
        (true, false, false, false),
        (false, true, false, true),
        (false, false, false, false),
    ] {
        let mut bench = Bench::new(Geometry {
            discard,
            write_zeroes,
            ..geometry()
        });
        // Never ENOSYS, which the kernel would remember for both.
        let expected = |able: bool| {
            if able {
                Ok(vec![])
            } else {
                Err(Errno::OPNOTSUPP)
            }
        };
        assert_eq!(bench.ask(fallocate(0, 512, PUNCH), None), expected(punch));
        assert_eq!(bench.ask(fallocate(0, 512, ZERO), None), expected(zero));
    }
    let mut bench = Bench::new(geometry());
    for mode in [0, 1, 8, 32] {
        assert_eq!(
            bench.ask(fallocate(0, 512, mode), None),
            Err(Errno::OPNOTSUPP)
        );
    }
    bench.failure = Some(IoError::Unsupported);
    assert_eq!(
        bench.ask(fallocate(0, 512, PUNCH), None),
        Err(Errno::OPNOTSUPP)
    );
}

#[test]
fn a_hole_with_edges_inside_blocks_zeroes_exactly_its_bytes() {
    let mut bench = Bench::new(geometry());
    bench.ask(fallocate(100, 3 * BLOCK, PUNCH), None).unwrap();
    assert_eq!(
        bench.log,
        [
            "read 0+512",
            "read 1536+512",
            "write 0+512",
            "zero 512+1024 unmap",
            "write 1536+512"
        ]
    );
    let mut expected = vec![0xAA; SIZE as usize];
    expected[100..100 + 3 * BLOCK as usize].fill(0);
    assert_eq!(bench.memory, expected);
}

#[test]
fn a_write_behind_an_unaligned_one_to_the_same_block_waits_and_others_do_not() {
    let mut bench = Bench::new(geometry());
    bench.send(write(10, 10, 0), Some(&[1; 10]), false);
    bench.send(write(0, 512, 0), Some(&[2; 512]), false);
    bench.send(write(512, 512, 0), Some(&[3; 512]), false);
    // Overtaking a held one that it overlaps is no way out either.
    bench.send(write(300, 500, 0), Some(&[4; 500]), false);
    bench.send(write(600, 1, 0), Some(&[5; 1]), false);
    assert_eq!(bench.log, ["read 0+512", "write 512+512"]);
    bench.drain();
    assert_eq!(bench.memory[..300], [2; 300]);
    assert_eq!(bench.memory[300..600], [4; 300]);
    assert_eq!(bench.memory[600], 5);
    assert_eq!(bench.memory[601..800], [4; 199]);
    assert_eq!(bench.memory[800..1024], [3; 224]);
}

#[test]
fn an_unaligned_write_waits_for_a_whole_block_that_is_being_written() {
    let mut bench = Bench::new(geometry());
    bench.send(write(0, 512, 0), Some(&[1; 512]), false);
    bench.send(write(10, 10, 0), Some(&[2; 10]), false);
    assert_eq!(bench.log, ["write 0+512"]);
    bench.drain();
    let expected = [&[1; 10][..], &[2; 10], &[1; 492]].concat();
    assert_eq!(bench.memory[..512], expected);
}

#[test]
fn nothing_overtakes_a_held_write_that_it_overlaps() {
    let mut bench = Bench::new(geometry());
    bench.send(write(10, 10, 0), Some(&[1; 10]), false);
    bench.send(write(0, 1024, 0), Some(&[2; 1024]), false);
    // Only the held one is in the way of this.
    bench.send(write(600, 10, 0), Some(&[3; 10]), false);
    assert_eq!(bench.log, ["read 0+512"]);
    bench.drain();
    let order = [
        "write 0+512",
        "write 0+1024",
        "read 512+512",
        "write 512+512",
    ];
    assert_eq!(bench.log[1..], order);
    assert_eq!(bench.memory[..600], [2; 600]);
    assert_eq!(bench.memory[600..610], [3; 10]);
}

#[test]
fn an_error_at_an_edge_fails_the_write_and_lets_the_next_one_in() {
    let mut bench = Bench::new(geometry());
    let first = bench.send(write(10, 10, 0), Some(&[1; 10]), false);
    let second = bench.send(write(20, 10, 0), Some(&[2; 10]), false);
    bench.failure = Some(IoError::Backend);
    bench.complete(0, false);
    bench.failure = None;
    bench.drain();
    let result = |unique| {
        let answer = bench.answers.iter().find(|a| a.unique == unique).unwrap();
        answer.result.as_ref().map(drop).map_err(|e| *e)
    };
    assert_eq!(result(first), Err(Errno::IO));
    assert_eq!(result(second), Ok(()));
    assert_eq!(bench.memory[10..30], [[0xAA; 10], [2; 10]].concat());
}

#[test]
fn a_widened_request_is_never_longer_than_a_transfer() {
    let small = Geometry {
        max_transfer: 1024,
        ..geometry()
    };
    let mut bench = Bench::new(small);
    assert_eq!(bench.read(1, 1024).len(), 1023);
    let written = bench.ask(write(1, 1024, 0), Some(&[7; 1024])).unwrap();
    assert_eq!(written[..4], 1023_u32.to_ne_bytes());
    assert_eq!(
        bench.memory[..1025],
        [&[0xAA][..], &[7; 1023], &[0xAA]].concat()
    );
}

#[test]
fn seeking_finds_data_and_holes() {
    let mut bench = Bench::new(geometry());
    bench.ask(fallocate(BLOCK, 2 * BLOCK, PUNCH), None).unwrap();
    let mut seek = |offset, whence| {
        let found = bench.ask(Message::Lseek { offset, whence }, None);
        found.map(|bytes| u64::from_ne_bytes(bytes.try_into().unwrap()))
    };
    let (data, hole) = (3, 4);
    assert_eq!(seek(7, data), Ok(7));
    assert_eq!(seek(7, hole), Ok(BLOCK));
    assert_eq!(seek(BLOCK + 5, hole), Ok(BLOCK + 5));
    assert_eq!(seek(BLOCK + 5, data), Ok(3 * BLOCK));
    assert_eq!(seek(3 * BLOCK, hole), Ok(SIZE));
    assert_eq!(seek(SIZE, data), Err(Errno::NXIO));
    bench.ask(fallocate(0, SIZE, PUNCH), None).unwrap();
    let found = bench.ask(
        Message::Lseek {
            offset: 0,
            whence: data,
        },
        None,
    );
    assert_eq!(found, Err(Errno::NXIO));
    bench.failure = Some(IoError::Unsupported);
    let found = bench.ask(
        Message::Lseek {
            offset: 0,
            whence: data,
        },
        None,
    );
    assert_eq!(found, Err(Errno::NOSYS));
}

#[test]
fn a_short_or_wrong_answer_is_an_error() {
    let mut bench = Bench::new(geometry());
    for reply in [
        Reply::Done,
        Reply::Read(bench.pool.copy_of(&[0; 100]).share()),
        Reply::Extents(vec![]),
    ] {
        let message = Message::Read {
            offset: 0,
            size: 512,
        };
        bench.send(message, None, false);
        bench.under_way[0].1 = Some(Ok(reply));
        bench.drain();
        assert_eq!(
            bench.answers.pop_front().unwrap().result.unwrap_err(),
            Errno::IO
        );
    }
    // Extents that cover nothing are not asked for again and again.
    let message = Message::Lseek {
        offset: 0,
        whence: 3,
    };
    bench.send(message, None, false);
    bench.under_way[0].1 = Some(Ok(Reply::Extents(vec![])));
    bench.drain();
    assert_eq!(
        bench.answers.pop_front().unwrap().result.unwrap_err(),
        Errno::IO
    );
}

#[test]
fn init_asks_for_what_is_needed_and_refuses_a_kernel_without() {
    let mut bench = Bench::new(geometry());
    let init = |minor, flags| Message::Init {
        major: 7,
        minor,
        max_readahead: 1,
        flags,
    };
    let answer = bench.ask(init(45, u32::MAX), None).unwrap();
    assert_eq!(answer.len(), 64);
    assert_eq!(answer[4..8], 38_u32.to_ne_bytes());
    let flags = u32::from_ne_bytes(answer[12..16].try_into().unwrap());
    assert_ne!(flags & init_flag::ASYNC_DIO, 0);
    let writeback_cache = 1 << 16;
    assert_eq!(flags & writeback_cache, 0);
    assert_eq!(bench.ask(init(12, u32::MAX), None), Err(Errno::PROTO));
    assert_eq!(bench.ask(init(38, 0), None), Err(Errno::PROTO));
}

#[test]
fn what_is_not_known_is_refused_once_and_for_all() {
    let mut bench = Bench::new(geometry());
    assert_eq!(bench.ask(Message::Other(22), None), Err(Errno::NOSYS));
    assert_eq!(bench.ask(Message::Interrupt, None), Err(Errno::NOSYS));
    bench.send(Message::Forget, None, false);
    assert!(bench.answers.is_empty(), "FORGET takes no answer");
}

#[test]
fn it_is_full_while_reads_and_writes_of_many_bytes_are_under_way() {
    let mut bench = Bench::new(Geometry {
        size: 64 << 20,
        max_transfer: 1 << 20,
        ..geometry()
    });
    let payload = vec![1; 1 << 20];
    for number in 0..16 {
        bench.send(write(number << 20, 1 << 20, 0), Some(&payload), true);
        let offset = (32 + number) << 20;
        let size = 1 << 20;
        assert!(!bench.ops.is_full());
        bench.send(Message::Read { offset, size }, None, true);
    }
    // Held behind the first.
    bench.send(write(1, 100, 0), Some(&payload[..100]), true);
    assert!(bench.ops.is_full());
    bench.complete(1, true);
    bench.complete(1, true);
    assert!(!bench.ops.is_full());
    bench.drain();
}
