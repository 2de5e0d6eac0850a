//! The sending half of a link: a queue of bytes and payloads, written with as few system calls as possible.
//!
//! Bytes pushed (headers, options, digests) are copied into one arena, where neighbours become one segment; payloads
//! are kept by reference until they are written. A mark is a position in the stream of all bytes ever pushed: it is
//! reached when that many have been taken by the kernel, and so needs no place among the segments.
//!
//! Invariants: `arena` holds exactly the unwritten bytes of the `Bytes` segments, in order; `sent + queued()` is the
//! number of bytes ever pushed; no segment is empty, and no two neighbours are both `Bytes`.

use std::collections::VecDeque;
use std::io::{self, IoSlice};

use dst_buf::Shared;

use crate::Stream;

/// Segments passed to one write.
const SEGMENTS: usize = 64;

/// Bytes passed to one write.
const BYTES: usize = 1024 * 1024;

/// An arena larger than this is given back once it is empty: it grew in a rush that is over.
const ARENA_KEPT: usize = 256 * 1024;

enum Segment {
    /// The next so many bytes of the arena.
    Bytes(usize),
    /// A payload, of which `sent` bytes are written.
    Payload { data: Shared, sent: usize },
}

#[derive(Default)]
pub(crate) struct Tx {
    segments: VecDeque<Segment>,
    arena: VecDeque<u8>,
    /// Bytes pushed and not written.
    queued: usize,
    /// Bytes ever written.
    sent: u64,
    /// Marks not taken yet, each with the position at which it is reached; positions never fall.
    marks: VecDeque<(u64, u64)>,
}

impl Tx {
    pub(crate) fn push_bytes(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.arena.extend(bytes);
        self.queued += bytes.len();
        match self.segments.back_mut() {
            Some(Segment::Bytes(len)) => *len += bytes.len(),
            _ => self.segments.push_back(Segment::Bytes(bytes.len())),
        }
    }

    pub(crate) fn push_payload(&mut self, data: Shared) {
        if data.is_empty() {
            return;
        }
        self.queued += data.len();
        self.segments.push_back(Segment::Payload { data, sent: 0 });
    }

    pub(crate) fn push_mark(&mut self, mark: u64) {
        self.marks.push_back((self.sent + self.queued as u64, mark));
    }

    pub(crate) fn take_marks(&mut self, out: &mut Vec<u64>) {
        while let Some(&(position, mark)) = self.marks.front() {
            if position > self.sent {
                break;
            }
            self.marks.pop_front();
            out.push(mark);
        }
    }

    pub(crate) fn queued(&self) -> usize {
        self.queued
    }

    pub(crate) fn flush(&mut self, stream: &mut dyn Stream) -> io::Result<bool> {
        while self.queued > 0 {
            let (n, offered) = match self.write_once(stream) {
                Ok((0, _)) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(done) => done,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(e) => return Err(e),
            };
            self.written(n);
            if n < offered {
                // Full: asking again would only hear so.
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// One write of what is at the front: bytes written, bytes offered.
    fn write_once(&self, stream: &mut dyn Stream) -> io::Result<(usize, usize)> {
        let mut slices = [IoSlice::new(&[]); SEGMENTS];
        let mut count = 0;
        let mut offered = 0;
        let mut from_arena = 0;
        'segments: for segment in &self.segments {
            let parts = match segment {
                Segment::Bytes(len) => {
                    let parts = arena_range(&self.arena, from_arena, *len);
                    from_arena += len;
                    parts
                }
                Segment::Payload { data, sent } => (&data[*sent..], &[][..]),
            };
            for part in [parts.0, parts.1] {
                let part = &part[..part.len().min(BYTES - offered)];
                if part.is_empty() {
                    continue;
                }
                slices[count] = IoSlice::new(part);
                offered += part.len();
                count += 1;
                if count == SEGMENTS || offered == BYTES {
                    break 'segments;
                }
            }
        }
        stream
            .write_vectored(&slices[..count])
            .map(|n| (n, offered))
    }

    /// Takes `n` written bytes off the front.
    fn written(&mut self, n: usize) {
        self.queued -= n;
        self.sent += n as u64;
        let mut left = n;
        let mut from_arena = 0;
        while left > 0 {
            let Some(segment) = self.segments.front_mut() else {
                break;
            };
            let (step, finished) = match segment {
                Segment::Bytes(len) => {
                    let step = left.min(*len);
                    *len -= step;
                    from_arena += step;
                    (step, *len == 0)
                }
                Segment::Payload { data, sent } => {
                    let step = left.min(data.len() - *sent);
                    *sent += step;
                    (step, *sent == data.len())
                }
            };
            left -= step;
            if finished {
                self.segments.pop_front();
            }
        }
        self.arena.drain(..from_arena);
        if self.arena.is_empty() && self.arena.capacity() > ARENA_KEPT {
            self.arena.shrink_to(ARENA_KEPT);
        }
    }
}

/// `len` bytes of the ring from `start` on, in two parts where it wraps.
fn arena_range(arena: &VecDeque<u8>, start: usize, len: usize) -> (&[u8], &[u8]) {
    let (front, back) = arena.as_slices();
    let end = start + len;
    if start >= front.len() {
        (&back[start - front.len()..end - front.len()], &[])
    } else if end <= front.len() {
        (&front[start..end], &[])
    } else {
        (&front[start..], &back[..end - front.len()])
    }
}
