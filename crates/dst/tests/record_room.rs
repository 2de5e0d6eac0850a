//! Very many small writes that nobody flushes: whatever room the record of a device has for them, a process that is killed, with
//! the server losing power, loses none that it had acknowledged.

mod common;

use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::direct::{open_direct, Aligned};
use common::{can_attach, wait_until, Lab, Server, LONG};
use dst_client::recover::Leftovers;
use dst_client::{Completion, Driver, Op, Options, Reply, Request};
use rustix::process::Signal;

const SECTOR: usize = 512;
const SIZE: usize = 128 << 20;

/// A server whose disk forgets at a kill what was not flushed.
fn serve(lab: &Lab) -> Server {
    let image = lab.path("disk.img");
    if !image.exists() {
        let file = std::fs::File::create(&image).unwrap();
        file.set_len(SIZE as u64).unwrap();
    }
    lab.serve(&[&format!("disk=lossy:{}?early=10", image.display())])
}

/// What sector `at` is written with.
fn fill(at: usize) -> u8 {
    (at % 251 + 1) as u8
}

/// A device that keeps a record in `dir`, with places for `retain` bytes in pages, and none for requests in flight.
fn open(lab: &Lab, dir: &Path, retain: u64) -> Driver {
    let mut options = Options::new(lab.url("disk").parse().unwrap());
    options.retain = Some(retain);
    options.reserve = Some(0);
    options.record = Some(dir.to_owned());
    let driver = Driver::open(options).unwrap();
    assert!(driver.is_recorded(), "{:?}", driver.unrecorded());
    driver
}

/// A successor of a driver that is gone without a word, as one that was killed.
fn take_over(lab: &Lab, dir: &Path) -> Driver {
    let left = Leftovers::find(dir).unwrap().expect("a record");
    let options = Options::new(lab.url("disk").parse().unwrap());
    left.take_over(options).unwrap()
}

/// A write of `sectors` from sector `at` on, each with its own byte.
fn write(driver: &Driver, at: usize, sectors: usize) -> Request {
    let mut data = driver.pool().get(sectors * SECTOR);
    for (sector, bytes) in data.chunks_mut(SECTOR).enumerate() {
        bytes.fill(fill(at + sector));
    }
    Request {
        tag: at as u64,
        op: Op::Write {
            offset: (at * SECTOR) as u64,
            data: data.share(),
            fua: false,
            barrier: false,
        },
    }
}

/// One turn.
fn turn(driver: &mut Driver, done: &mut Vec<Completion>) {
    let turn = driver.turn(Some(LONG), done, &mut Vec::new()).unwrap();
    assert_eq!(turn.failed, None);
}

/// Reads `sectors` from sector `at` on, and tells whether they are as written.
fn is_there(driver: &mut Driver, at: usize, sectors: usize) -> bool {
    driver.submit(Request {
        tag: 0,
        op: Op::Read {
            offset: (at * SECTOR) as u64,
            len: (sectors * SECTOR) as u32,
        },
    });
    let mut done = Vec::new();
    while done.is_empty() {
        turn(driver, &mut done);
    }
    let Ok(Reply::Read(bytes)) = &done[0].result else {
        panic!("{done:?}");
    };
    let mut all = bytes.chunks(SECTOR).enumerate();
    all.all(|(sector, bytes)| bytes.iter().all(|byte| *byte == fill(at + sector)))
}

#[test]
fn writes_that_find_no_place_in_the_record_survive_both_ends() {
    let lab = Lab::new();
    let server = serve(&lab);
    let dir = lab.path("run");
    let mut driver = open(&lab, &dir, 4 << 20);
    // As requests in flight would.
    let held = driver.pool().get((4 << 20) - 8 * 4096);
    let mut done = Vec::new();
    for at in 0..64 {
        let write = write(&driver, at, 1);
        driver.submit(write);
    }
    while done.len() < 64 {
        turn(&mut driver, &mut done);
    }
    assert!(driver.status().retained_entries > 0);
    // Nor does a successor that is asked for have to wait: what is not in the record is durable.
    driver.hand_over();
    drop((held, driver));
    server.kill();
    let _server = serve(&lab);
    let mut successor = take_over(&lab, &dir);
    for at in 0..64 {
        assert!(is_there(&mut successor, at, 1), "{at}");
    }
    dst_client::record::remove(&dir).unwrap();
}

#[test]
fn tens_of_thousands_of_small_writes_survive_both_ends_however_little_room_there_is() {
    const WRITES: usize = 24_000;
    const STEP: usize = 10;
    let lab = Lab::new();
    let server = serve(&lab);
    let dir = lab.path("run");
    // What is longer than a page takes two: the table holds a third more than there are places for.
    let sectors = |at: usize| [1, 8, 9][at / STEP % 3];
    let mut driver = open(&lab, &dir, 4 << 20);
    let (mut next, mut under_way) = (0, 0);
    let mut done = Vec::new();
    let mut acknowledged = Vec::new();
    while acknowledged.len() < WRITES {
        while under_way < 128 {
            let write = write(&driver, next, sectors(next));
            driver.submit(write);
            next += STEP;
            under_way += 1;
        }
        turn(&mut driver, &mut done);
        under_way -= done.len();
        for completion in done.drain(..) {
            assert!(completion.result.is_ok(), "{completion:?}");
            acknowledged.push(completion.tag as usize);
        }
    }
    // With a hundred under way.
    drop(driver);
    server.kill();
    let _server = serve(&lab);
    let mut successor = take_over(&lab, &dir);
    for at in acknowledged {
        assert!(is_there(&mut successor, at, sectors(at)), "{at}");
    }
    dst_client::record::remove(&dir).unwrap();
}

#[test]
fn an_agent_that_is_killed_under_very_many_small_writes_loses_none() {
    const WRITERS: usize = 8;
    const ENOUGH: usize = 20_000;
    if !can_attach() {
        return;
    }
    let lab = Lab::new();
    let server = serve(&lab);
    let device = lab.attach("disk", "a", &[]);
    let written: [AtomicUsize; WRITERS] = Default::default();
    let total = || -> usize { written.iter().map(|n| n.load(Ordering::SeqCst)).sum() };
    // Each has every eighth sector, in ascending order.
    let sector = |writer: usize, number: usize| number * WRITERS + writer;
    std::thread::scope(|scope| {
        for (writer, written) in written.iter().enumerate() {
            let node = &device.node;
            scope.spawn(move || {
                let file = open_direct(node);
                for number in 0..SIZE / SECTOR / WRITERS {
                    let at = sector(writer, number);
                    let mut block = Aligned::new(fill(at));
                    let bytes = &block.bytes()[..SECTOR];
                    if file.write_all_at(bytes, (at * SECTOR) as u64).is_err() {
                        return;
                    }
                    written.store(number + 1, Ordering::SeqCst);
                }
            });
        }
        wait_until("very many writes", || total() >= ENOUGH);
        device.signal_agent(Signal::KILL);
    });
    wait_until("the death of the agent", || !device.agent_runs());
    server.kill();
    let server = serve(&lab);
    lab.dst(&["detach", &device.name]).ok();
    server.kill();
    let image = std::fs::read(lab.path("disk.img")).unwrap();
    for (writer, written) in written.iter().enumerate() {
        for number in 0..written.load(Ordering::SeqCst) {
            let at = sector(writer, number);
            let bytes = &image[at * SECTOR..][..SECTOR];
            assert!(bytes.iter().all(|byte| *byte == fill(at)), "sector {at}");
        }
    }
}
