//! The file against a device in memory: what it asks of the device, and that no byte is lost however the answers are
//! ordered.

mod model;
mod requests;

use std::collections::VecDeque;

use dst_buf::{Pool, Shared};
use dst_client::{Completion, Extent, ExtentKind, Geometry, IoError, Op, Reply, Request};
use rustix::io::Errno;

use super::device::Answer;
use super::ops::{FileInfo, Ops, Sink};
use super::proto::{Header, Message, ROOT_ID};

const BLOCK: u64 = 512;
const SIZE: u64 = 8 * BLOCK;

fn geometry() -> Geometry {
    Geometry {
        size: SIZE,
        logical_block: BLOCK as u32,
        physical_block: BLOCK as u32,
        max_transfer: 8192,
        read_only: false,
        rotational: false,
        discard: true,
        discard_granularity: BLOCK as u32,
        write_zeroes: true,
        write_cache: true,
        fua: true,
    }
}

/// A device in memory that executes requests either when they are submitted or when they are completed.
struct Bench {
    ops: Ops,
    pool: Pool,
    memory: Vec<u8>,
    /// Requests under way, with their outcome if they have been executed.
    under_way: Vec<(Request, Option<Result<Reply, IoError>>)>,
    answers: VecDeque<Answer>,
    unique: u64,
    /// What the next requests fail with.
    failure: Option<IoError>,
    /// Every request so far, in words.
    log: Vec<String>,
}

impl Bench {
    fn new(geometry: Geometry) -> Bench {
        let info = FileInfo {
            uid: 0,
            gid: 0,
            time_seconds: 0,
            transfer: geometry.max_transfer,
            page: 4096,
        };
        Bench {
            memory: vec![0xAA; geometry.size as usize],
            ops: Ops::new(geometry, info),
            pool: Pool::new(1 << 20),
            under_way: Vec::new(),
            answers: VecDeque::new(),
            unique: 0,
            failure: None,
            log: Vec::new(),
        }
    }

    /// Hands a message in; returns its number.
    fn send(&mut self, message: Message, payload: Option<&[u8]>, early: bool) -> u64 {
        self.unique += 2;
        let header = Header {
            len: 0,
            unique: self.unique,
            node: ROOT_ID,
        };
        let payload: Option<Shared> = payload.map(|bytes| self.pool.copy_of(bytes).share());
        let mut requests = Vec::new();
        let mut sink = Sink {
            requests: &mut requests,
            answers: &mut self.answers,
        };
        self.ops
            .request(header, message, payload, &self.pool, &mut sink);
        self.submit(requests, early);
        self.unique
    }

    fn submit(&mut self, requests: Vec<Request>, early: bool) {
        for request in requests {
            if let Some((from, to)) = changed(&request.op) {
                for (other, _) in &self.under_way {
                    if let Some((a, b)) = changed(&other.op) {
                        assert!(b <= from || to <= a, "{other:?} and {request:?} overlap");
                    }
                }
            }
            self.log.push(describe(&request.op));
            let outcome = early.then(|| self.execute(&request.op));
            self.under_way.push((request, outcome));
        }
    }

    fn execute(&mut self, op: &Op) -> Result<Reply, IoError> {
        if let Some(error) = self.failure {
            return Err(error);
        }
        let range = |offset: u64, len: u64| {
            assert!(offset.is_multiple_of(BLOCK) && len.is_multiple_of(BLOCK) && len > 0);
            offset as usize..(offset + len) as usize
        };
        match op {
            Op::Read { offset, len } => {
                let bytes = &self.memory[range(*offset, u64::from(*len))];
                Ok(Reply::Read(self.pool.copy_of(bytes).share()))
            }
            Op::Write { offset, data, .. } => {
                self.memory[range(*offset, data.len() as u64)].copy_from_slice(data);
                Ok(Reply::Done)
            }
            Op::WriteZeroes { offset, len, .. } => {
                self.memory[range(*offset, *len)].fill(0);
                Ok(Reply::Done)
            }
            Op::Flush => Ok(Reply::Done),
            Op::Discard { .. } => panic!("a discard's content is undefined"),
            Op::BlockStatus { offset, len } => {
                // One extent at a time: a block of zeroes is a hole.
                let range = range(*offset, *len);
                let zero = self.memory[range][..BLOCK as usize].iter().all(|b| *b == 0);
                Ok(Reply::Extents(vec![Extent {
                    len: BLOCK,
                    kind: if zero {
                        ExtentKind::Hole
                    } else {
                        ExtentKind::Data
                    },
                }]))
            }
        }
    }

    /// Completes one of those under way.
    fn complete(&mut self, choice: usize, early: bool) {
        let (request, outcome) = self.under_way.remove(choice % self.under_way.len());
        let result = outcome.unwrap_or_else(|| self.execute(&request.op));
        let mut requests = Vec::new();
        let mut sink = Sink {
            requests: &mut requests,
            answers: &mut self.answers,
        };
        let completion = Completion {
            tag: request.tag,
            result,
        };
        self.ops.complete(completion, &mut sink);
        self.submit(requests, early);
    }

    fn drain(&mut self) {
        while !self.under_way.is_empty() {
            self.complete(0, false);
        }
        assert!(
            self.ops.held.is_empty() && self.ops.jobs.is_empty() && self.ops.pending.is_empty()
        );
        assert_eq!(self.ops.bytes, 0, "nothing is under way");
    }

    /// Sends a message, lets everything finish, gives the answer.
    fn ask(&mut self, message: Message, payload: Option<&[u8]>) -> Result<Vec<u8>, Errno> {
        let unique = self.send(message, payload, false);
        self.drain();
        let place = self.answers.iter().position(|a| a.unique == unique);
        let answer = self.answers.remove(place.expect("an answer")).unwrap();
        assert!(self.answers.is_empty());
        answer.result.map(|(body, data)| {
            let mut bytes = body.bytes().to_vec();
            bytes.extend_from_slice(data.as_deref().unwrap_or_default());
            bytes
        })
    }

    fn read(&mut self, offset: u64, size: u32) -> Vec<u8> {
        self.ask(Message::Read { offset, size }, None).unwrap()
    }
}

/// The range that an operation changes.
fn changed(op: &Op) -> Option<(u64, u64)> {
    match op {
        Op::Write { offset, data, .. } => Some((*offset, offset + data.len() as u64)),
        Op::WriteZeroes { offset, len, .. } => Some((*offset, offset + len)),
        _ => None,
    }
}

fn describe(op: &Op) -> String {
    match op {
        Op::Read { offset, len } => format!("read {offset}+{len}"),
        Op::Write {
            offset, data, fua, ..
        } => {
            format!(
                "write {offset}+{}{}",
                data.len(),
                if *fua { " fua" } else { "" }
            )
        }
        Op::Flush => "flush".to_owned(),
        Op::Discard { offset, len } => format!("discard {offset}+{len}"),
        Op::WriteZeroes {
            offset,
            len,
            may_unmap,
            fast_only,
            ..
        } => {
            let unmap = if *may_unmap { " unmap" } else { "" };
            let fast = if *fast_only { " fast" } else { "" };
            format!("zero {offset}+{len}{unmap}{fast}")
        }
        Op::BlockStatus { offset, len } => format!("status {offset}+{len}"),
    }
}

fn write(offset: u64, size: usize, flags: u32) -> Message {
    Message::Write {
        offset,
        size: size as u32,
        flags,
    }
}

const PUNCH: u32 = 1 | 2;
const ZERO: u32 = 1 | 16;

fn fallocate(offset: u64, length: u64, mode: u32) -> Message {
    Message::Fallocate {
        offset,
        length,
        mode,
    }
}
