//! Writes, zeroes and punched holes, also where they begin or end inside a block.
//!
//! A *mutation* on block boundaries is one block request, at once. Any other is a *job*: read the blocks at its edges, put
//! the new bytes between the old ones, write whole blocks. Two rules make that right when many run at once:
//!
//! - A job runs alone on its blocks: it starts when no mutation that overlaps it is under way, and none that overlaps it
//!   starts before it is done. (Otherwise it would write old bytes over a neighbour's new ones.)
//! - What has to wait is held in order: nothing overtakes an older held mutation that it overlaps.
//!
//! Mutations on block boundaries that overlap each other are no concern of this file, the client keeps them apart.
//!
//! | state of a job | ends when |
//! | --- | --- |
//! | held | nothing that overlaps is under way or held before it |
//! | reading | all its edges have been read; on an error it ends here |
//! | writing | all its writes are answered: the FUSE request is answered, or flushed first if it must be durable |

use dst_buf::{Buf, Pool, Shared};
use dst_client::{Op, Request};
use rustix::io::Errno;

use super::ops::{Ops, Pending, Sink};
use super::reply::Body;

const FALLOC_FL_KEEP_SIZE: u32 = 1;
const FALLOC_FL_PUNCH_HOLE: u32 = 2;
const FALLOC_FL_ZERO_RANGE: u32 = 16;
/// `O_DSYNC`, which is also part of `O_SYNC`.
const O_DSYNC: u32 = 0o10000;

/// Who waits for a mutation, and which blocks it touches.
#[derive(Debug)]
pub(super) struct Mutation {
    unique: u64,
    /// First byte of the first block.
    from: u64,
    /// End of the last block.
    to: u64,
    /// The answer to a success.
    body: Body,
    /// A flush has to follow before the answer.
    flush_after: bool,
    /// Bytes of data that it holds, which are part of `Ops::bytes`.
    bytes: u64,
}

impl Mutation {
    fn overlaps(&self, from: u64, to: u64) -> bool {
        self.from < to && from < self.to
    }
}

/// A mutation with edges.
#[derive(Debug)]
pub(super) struct Job {
    mutation: Mutation,
    /// The bytes that change, inside the blocks of the mutation.
    change: (u64, u64),
    plan: Plan,
    /// Requests of the current state that are not answered.
    waiting: usize,
    error: Option<Errno>,
}

#[derive(Debug)]
enum Plan {
    /// All blocks, with the new bytes in place; `None` once they are on their way.
    Write { blocks: Option<Buf>, fua: bool },
    /// Blocks at the edges, by offset, and what lies between them.
    Zero {
        edges: [Option<(u64, Buf)>; 2],
        middle: Option<(u64, u64)>,
        may_unmap: bool,
    },
}

/// A mutation that has not started.
#[derive(Debug)]
pub(super) enum Held {
    Direct(Mutation, Op),
    Job(Job),
}

impl Held {
    fn mutation(&self) -> &Mutation {
        match self {
            Held::Direct(mutation, _) => mutation,
            Held::Job(job) => &job.mutation,
        }
    }
}

impl Ops {
    pub(super) fn write(
        &mut self,
        unique: u64,
        offset: u64,
        data: Shared,
        flags: u32,
        pool: &Pool,
        sink: &mut Sink<'_>,
    ) {
        if self.geometry.read_only {
            return sink.fail(unique, Errno::ROFS);
        }
        if data.is_empty() {
            return sink.done(unique, Body::write(0));
        }
        let left = self.geometry.size.saturating_sub(offset);
        if left == 0 {
            return sink.fail(unique, Errno::NOSPC);
        }
        let len = (data.len() as u64).min(left) as u32;
        let len = self.fit(offset, len);
        let end = offset + u64::from(len);
        let (from, to) = self.widen(offset, end);

        let durable = flags & O_DSYNC != 0 && self.geometry.write_cache;
        let fua = durable && self.geometry.fua;
        let mutation = Mutation {
            unique,
            from,
            to,
            body: Body::write(len),
            flush_after: durable && !fua,
            bytes: to - from,
        };
        self.bytes += mutation.bytes;
        if (from, to) == (offset, end) {
            let data = if data.len() == len as usize {
                data
            } else {
                data.slice(..len as usize)
            };
            let op = Op::Write {
                offset,
                data,
                fua,
                barrier: false,
            };
            return self.start_or_hold(Held::Direct(mutation, op), sink);
        }
        let mut blocks = pool.get((to - from) as usize);
        let skip = (offset - from) as usize;
        blocks[skip..skip + len as usize].copy_from_slice(&data[..len as usize]);
        let job = Job {
            mutation,
            change: (offset, end),
            plan: Plan::Write {
                blocks: Some(blocks),
                fua,
            },
            waiting: 0,
            error: None,
        };
        self.start_or_hold(Held::Job(job), sink);
    }

    pub(super) fn fallocate(
        &mut self,
        unique: u64,
        offset: u64,
        length: u64,
        mode: u32,
        pool: &Pool,
        sink: &mut Sink<'_>,
    ) {
        let keep_size = mode & FALLOC_FL_KEEP_SIZE != 0;
        let (may_unmap, able) = match mode & !FALLOC_FL_KEEP_SIZE {
            FALLOC_FL_PUNCH_HOLE => (true, self.geometry.discard && self.geometry.write_zeroes),
            FALLOC_FL_ZERO_RANGE => (false, self.geometry.write_zeroes),
            // Allocation can't be promised. Not ENOSYS: the kernel would never ask for a hole again either.
            _ => return sink.fail(unique, Errno::OPNOTSUPP),
        };
        let Some(end) = offset.checked_add(length).filter(|_| length != 0) else {
            return sink.fail(unique, Errno::INVAL);
        };
        if self.geometry.read_only {
            return sink.fail(unique, Errno::ROFS);
        }
        if !able {
            return sink.fail(unique, Errno::OPNOTSUPP);
        }
        if end > self.geometry.size && !keep_size {
            return sink.fail(unique, Errno::FBIG);
        }
        let end = end.min(self.geometry.size);
        if offset >= end {
            return sink.done(unique, Body::EMPTY);
        }
        let (from, to) = self.widen(offset, end);
        let mutation = Mutation {
            unique,
            from,
            to,
            body: Body::EMPTY,
            flush_after: false,
            bytes: 0,
        };
        if (from, to) == (offset, end) {
            // A hole may be a discard: only if it costs no writing.
            let op = zeroes(from, to, may_unmap, may_unmap);
            return self.start_or_hold(Held::Direct(mutation, op), sink);
        }
        let block = u64::from(self.geometry.logical_block);
        let [first, last] = edges((offset, end), (from, to), block);
        let middle_from = first.map_or(from, |at| at + block);
        let middle_to = last.unwrap_or(to);
        let edge = |at: Option<u64>| at.map(|at| (at, pool.get(block as usize)));
        let job = Job {
            mutation,
            change: (offset, end),
            plan: Plan::Zero {
                edges: [edge(first), edge(last)],
                middle: (middle_from < middle_to).then_some((middle_from, middle_to)),
                may_unmap,
            },
            waiting: 0,
            error: None,
        };
        self.start_or_hold(Held::Job(job), sink);
    }

    fn start_or_hold(&mut self, new: Held, sink: &mut Sink<'_>) {
        let must_wait = {
            let mutation = new.mutation();
            let (from, to) = (mutation.from, mutation.to);
            self.held.iter().any(|h| h.mutation().overlaps(from, to)) || self.blocked(&new)
        };
        if must_wait {
            self.held.push_back(new);
        } else {
            self.start(new, sink);
        }
    }

    /// Whether something under way keeps it from starting.
    fn blocked(&self, new: &Held) -> bool {
        let Mutation { from, to, .. } = *new.mutation();
        if !self.jobs.is_empty() && self.jobs.iter().any(|j| j.mutation.overlaps(from, to)) {
            return true;
        }
        matches!(new, Held::Job(_))
            && self.pending.iter().any(|pending| match pending {
                Pending::Direct(mutation) => mutation.overlaps(from, to),
                _ => false,
            })
    }

    fn start(&mut self, what: Held, sink: &mut Sink<'_>) {
        let mut job = match what {
            Held::Direct(mutation, op) => {
                let tag = self.pending.insert(Pending::Direct(mutation));
                return sink.requests.push(Request { tag, op });
            }
            Held::Job(job) => job,
        };
        let block = u64::from(self.geometry.logical_block);
        let edges = edges(job.change, (job.mutation.from, job.mutation.to), block);
        job.waiting = edges.iter().flatten().count();
        let tag = self.jobs.insert(job);
        for at in edges.into_iter().flatten() {
            self.push(
                Pending::Edge { job: tag, at },
                Op::Read {
                    offset: at,
                    len: self.geometry.logical_block,
                },
                sink,
            );
        }
    }

    fn push(&mut self, pending: Pending, op: Op, sink: &mut Sink<'_>) {
        let tag = self.pending.insert(pending);
        sink.requests.push(Request { tag, op });
    }

    /// An edge of a job was read.
    pub(super) fn edge_done(
        &mut self,
        tag: u64,
        at: u64,
        edge: Result<Shared, Errno>,
        sink: &mut Sink<'_>,
    ) {
        let Some(job) = self.jobs.get_mut(tag) else {
            return;
        };
        match edge {
            Ok(old) => job.patch(at, &old),
            Err(errno) => job.error = Some(errno),
        }
        job.waiting -= 1;
        if job.waiting > 0 {
            return;
        }
        if job.error.is_some() {
            return self.job_done(tag, sink);
        }
        let ops = job.writes();
        job.waiting = ops.iter().flatten().count();
        for op in ops.into_iter().flatten() {
            self.push(Pending::Part { job: tag }, op, sink);
        }
    }

    /// One of the writes of a job was answered.
    pub(super) fn part_done(&mut self, tag: u64, outcome: Result<(), Errno>, sink: &mut Sink<'_>) {
        let Some(job) = self.jobs.get_mut(tag) else {
            return;
        };
        if let Err(errno) = outcome {
            job.error = Some(errno);
        }
        job.waiting -= 1;
        if job.waiting == 0 {
            self.job_done(tag, sink);
        }
    }

    fn job_done(&mut self, tag: u64, sink: &mut Sink<'_>) {
        if let Some(job) = self.jobs.remove(tag) {
            let outcome = job.error.map_or(Ok(()), Err);
            self.mutation_done(job.mutation, outcome, sink);
        }
    }

    /// A mutation is over: answers it and starts what waited for it.
    pub(super) fn mutation_done(
        &mut self,
        mutation: Mutation,
        outcome: Result<(), Errno>,
        sink: &mut Sink<'_>,
    ) {
        self.bytes -= mutation.bytes;
        match outcome {
            Err(errno) => sink.fail(mutation.unique, errno),
            Ok(()) if mutation.flush_after => self.flush(mutation.unique, mutation.body, sink),
            Ok(()) => sink.done(mutation.unique, mutation.body),
        }
        let mut place = 0;
        while let Some(held) = self.held.get(place) {
            let Mutation { from, to, .. } = *held.mutation();
            let mut older = self.held.iter().take(place);
            if older.any(|h| h.mutation().overlaps(from, to)) || self.blocked(held) {
                place += 1;
            } else if let Some(held) = self.held.remove(place) {
                self.start(held, sink);
            }
        }
    }
}

impl Job {
    /// Puts the old bytes of the block at `at` round the new ones.
    fn patch(&mut self, at: u64, old: &[u8]) {
        // The part of the block that changes.
        let in_block = |offset: u64| (offset.saturating_sub(at) as usize).min(old.len());
        let (lo, hi) = (in_block(self.change.0), in_block(self.change.1));
        match &mut self.plan {
            Plan::Write {
                blocks: Some(blocks),
                ..
            } => {
                let start = (at - self.mutation.from) as usize;
                let block = &mut blocks[start..start + old.len()];
                block[..lo].copy_from_slice(&old[..lo]);
                block[hi..].copy_from_slice(&old[hi..]);
            }
            Plan::Zero { edges, .. } => {
                for (_, block) in edges.iter_mut().flatten().filter(|edge| edge.0 == at) {
                    block.copy_from_slice(old);
                    block[lo..hi].fill(0);
                }
            }
            Plan::Write { blocks: None, .. } => {}
        }
    }

    /// The writes that end it.
    fn writes(&mut self) -> [Option<Op>; 3] {
        let write = |offset, blocks: Buf, fua| Op::Write {
            offset,
            data: blocks.share(),
            fua,
            barrier: false,
        };
        match &mut self.plan {
            Plan::Write { blocks, fua } => {
                let from = self.mutation.from;
                let all = blocks.take().map(|blocks| write(from, blocks, *fua));
                [all, None, None]
            }
            Plan::Zero {
                edges,
                middle,
                may_unmap,
            } => {
                let [first, last] = edges;
                let [first, last] = [first, last].map(|edge| {
                    let (at, block) = edge.take()?;
                    Some(write(at, block, false))
                });
                let middle = middle
                    .take()
                    .map(|(from, to)| zeroes(from, to, *may_unmap, false));
                [first, middle, last]
            }
        }
    }
}

/// The blocks (by offset) of `blocks` that `change`, which is not on block boundaries, covers in part; each once.
fn edges(change: (u64, u64), blocks: (u64, u64), block: u64) -> [Option<u64>; 2] {
    let (first, last) = (blocks.0, blocks.1 - block);
    let head = (change.0 != first || first == last).then_some(first);
    let tail = (change.1 != blocks.1 && last != first).then_some(last);
    [head, tail]
}

fn zeroes(from: u64, to: u64, may_unmap: bool, fast_only: bool) -> Op {
    Op::WriteZeroes {
        offset: from,
        len: to - from,
        may_unmap,
        fast_only,
        fua: false,
    }
}
