//! One measurement: keeps a number of requests in flight for a time, and times each from submission to completion.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dst_buf::Shared;
use dst_client::{Completion, Driver, Op, Request};
use dst_store::dice::Dice;
use dst_store::format_size;
use hdrhistogram::Histogram;

use super::cpu::{self, ServerCpu};
use crate::cli::Workload;
use crate::exit::{Code, Failure, Outcome};

/// Longest latency that is told from longer ones, in nanoseconds: one minute.
const LONGEST: u64 = 60_000_000_000;

/// How long the server may take to confirm the end of the session.
const CLOSING: Duration = Duration::from_secs(2);

/// Tag of the flush at the end; requests have the number of their place.
const FLUSH_TAG: u64 = u64::MAX;

/// How often a wait is interrupted to look whether a signal came.
const LOOK: Duration = Duration::from_millis(200);

/// What to do.
#[derive(Clone, Debug)]
pub struct Load {
    /// The kind.
    pub workload: Workload,
    /// Bytes of one request.
    pub block: u32,
    /// Requests in flight.
    pub depth: u16,
    /// How long.
    pub time: Duration,
    /// Share of reads.
    pub read_percent: u8,
    /// Bytes of the export.
    pub size: u64,
}

impl Load {
    /// In a few words.
    pub fn describe(&self) -> String {
        format!(
            "{}, {} blocks, {} in flight",
            self.workload.name(),
            format_size(u64::from(self.block)),
            self.depth
        )
    }
}

/// Reads or writes of one measurement.
#[derive(Debug)]
pub struct Side {
    /// Nanoseconds of each request.
    pub latency: Histogram<u64>,
}

/// The outcome of one measurement.
#[derive(Debug)]
pub struct Measured {
    /// What was done.
    pub load: Load,
    /// From the first submission to the last completion.
    pub elapsed: Duration,
    /// The reads.
    pub reads: Side,
    /// The writes.
    pub writes: Side,
    /// How long it took to make the writes durable after that.
    pub flush: Option<Duration>,
    /// CPU time of this process.
    pub client_cpu: Duration,
    /// CPU time of the server's process, where it can be seen.
    pub server_cpu: Option<Duration>,
}

/// Where the next request goes, and of which kind it is.
struct Pattern {
    dice: Dice,
    random: bool,
    read_percent: u32,
    blocks: u64,
    next: u64,
}

impl Pattern {
    fn new(load: &Load) -> Self {
        Self {
            dice: Dice::new(1),
            random: load.workload.is_random(),
            read_percent: u32::from(load.read_percent),
            blocks: load.size / u64::from(load.block),
            next: 0,
        }
    }

    /// The block, and whether it is to be read.
    fn draw(&mut self) -> (u64, bool) {
        let block = match self.random {
            true => self.dice.below(self.blocks),
            false => {
                let block = self.next;
                self.next = (block + 1) % self.blocks;
                block
            }
        };
        (block, self.dice.chance(self.read_percent))
    }
}

/// A request in flight.
#[derive(Clone, Copy)]
struct Place {
    since: Instant,
    read: bool,
}

/// Does the load.
///
/// # Errors
/// A request failed, or a signal came.
pub fn run(
    driver: &mut Driver,
    load: Load,
    server: &ServerCpu,
    stop: &AtomicBool,
) -> Outcome<Measured> {
    let histogram = || Histogram::new_with_bounds(1, LONGEST, 3);
    let side = || {
        histogram()
            .map(|latency| Side { latency })
            .map_err(|error| Failure::new(Code::Other, error.to_string()))
    };
    let (mut reads, mut writes) = (side()?, side()?);
    let payload = payload(driver, load.block);
    let mut pattern = Pattern::new(&load);
    let (mut done, mut ready) = (Vec::new(), Vec::new());

    let (client_before, server_before) = (cpu::own_time(), server.time());
    let start = Instant::now();
    let end = start + load.time;
    let mut places = vec![
        Place {
            since: start,
            read: false,
        };
        usize::from(load.depth)
    ];
    for (tag, place) in places.iter_mut().enumerate() {
        submit(driver, &load, &mut pattern, &payload, tag, place, start);
    }
    let mut in_flight = places.len();
    let mut now = start;
    while in_flight > 0 {
        turn(driver, &mut done, &mut ready)?;
        now = Instant::now();
        for completion in done.drain(..) {
            check(&completion)?;
            // Tags are numbers of places.
            let Some(place) = places.get_mut(completion.tag as usize) else {
                continue;
            };
            let nanos = now.duration_since(place.since).as_nanos() as u64;
            let side = if place.read { &mut reads } else { &mut writes };
            side.latency.saturating_record(nanos.max(1));
            if now < end {
                let tag = completion.tag as usize;
                submit(driver, &load, &mut pattern, &payload, tag, place, now);
            } else {
                in_flight -= 1;
            }
        }
        if stop.load(Ordering::Relaxed) {
            return Err(Failure::interrupted());
        }
    }
    let elapsed = now.duration_since(start);
    let client_cpu = cpu::own_time().saturating_sub(client_before);
    let server_cpu = match (server_before, server.time()) {
        (Some(before), Some(after)) => Some(after.saturating_sub(before)),
        _ => None,
    };
    let flush = match load.workload.writes() {
        true => Some(flush(driver, stop)?),
        false => None,
    };
    Ok(Measured {
        load,
        elapsed,
        reads,
        writes,
        flush,
        client_cpu,
        server_cpu,
    })
}

/// Bytes to write: all requests share them, as nothing ever changes them.
fn payload(driver: &Driver, block: u32) -> Shared {
    let mut buf = driver.pool().get(block as usize);
    let mut dice = Dice::new(2);
    for chunk in buf.chunks_mut(8) {
        let bytes = dice.next_u64().to_le_bytes();
        chunk.copy_from_slice(&bytes[..chunk.len()]);
    }
    buf.share()
}

fn submit(
    driver: &mut Driver,
    load: &Load,
    pattern: &mut Pattern,
    payload: &Shared,
    tag: usize,
    place: &mut Place,
    now: Instant,
) {
    let (block, read) = pattern.draw();
    *place = Place { since: now, read };
    let offset = block * u64::from(load.block);
    let op = match read {
        true => Op::Read {
            offset,
            len: load.block,
        },
        false => Op::Write {
            offset,
            data: payload.clone(),
            fua: false,
            barrier: false,
        },
    };
    driver.submit(Request {
        tag: tag as u64,
        op,
    });
}

fn turn(driver: &mut Driver, done: &mut Vec<Completion>, ready: &mut Vec<u64>) -> Outcome {
    let turn = driver
        .turn(Some(LOOK), done, ready)
        .map_err(Failure::io("the event loop failed"))?;
    match turn.failed {
        Some(reason) => Err(Failure::new(
            Code::Io,
            format!("the device has failed: {reason}"),
        )),
        None => Ok(()),
    }
}

fn check(completion: &Completion) -> Outcome {
    match &completion.result {
        Ok(_) => Ok(()),
        Err(error) => Err(Failure::new(Code::Io, format!("a request failed: {error}"))),
    }
}

/// Makes everything durable and says how long it took.
fn flush(driver: &mut Driver, stop: &AtomicBool) -> Outcome<Duration> {
    let start = Instant::now();
    let (mut done, mut ready) = (Vec::new(), Vec::new());
    driver.submit(Request {
        tag: FLUSH_TAG,
        op: Op::Flush,
    });
    loop {
        turn(driver, &mut done, &mut ready)?;
        for completion in done.drain(..) {
            check(&completion)?;
            if completion.tag == FLUSH_TAG {
                return Ok(start.elapsed());
            }
        }
        if stop.load(Ordering::Relaxed) {
            return Err(Failure::interrupted());
        }
    }
}

/// Ends the session, so that others need not wait for the lease to run out. What is lost is a benchmark's.
pub fn close(driver: &mut Driver) {
    driver.close();
    let (mut done, mut ready) = (Vec::new(), Vec::new());
    let end = Instant::now() + CLOSING;
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        match driver.turn(Some(left), &mut done, &mut ready) {
            Ok(turn) if turn.closed.is_none() && turn.failed.is_none() => {}
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(workload: Workload, read_percent: u8) -> Load {
        Load {
            workload,
            block: 4096,
            depth: 4,
            time: Duration::from_secs(1),
            read_percent,
            size: 4096 * 5 + 100,
        }
    }

    #[test]
    fn sequential_patterns_go_round_and_stay_inside() {
        let mut pattern = Pattern::new(&load(Workload::Write, 0));
        let drawn: Vec<_> = (0..7).map(|_| pattern.draw()).collect();
        let blocks: Vec<u64> = drawn.iter().map(|(block, _)| *block).collect();
        assert_eq!(blocks, [0, 1, 2, 3, 4, 0, 1]);
        assert!(drawn.iter().all(|(_, read)| !read));
    }

    #[test]
    fn random_patterns_reach_every_block_and_keep_the_share_of_reads() {
        let mut pattern = Pattern::new(&load(Workload::Mixed, 70));
        let drawn: Vec<_> = (0..10_000).map(|_| pattern.draw()).collect();
        let mut seen = [false; 5];
        for (block, _) in &drawn {
            seen[*block as usize] = true;
        }
        assert_eq!(seen, [true; 5]);
        let reads = drawn.iter().filter(|(_, read)| *read).count();
        assert!((6_500..7_500).contains(&reads), "{reads}");
    }
}
