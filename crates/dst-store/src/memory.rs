//! The memory backend: an export that is gone when the process ends.
//!
//! Sparse: a chunk of 64 KiB is allocated when the first byte of it is written, and freed when all of it is discarded or
//! zeroed. Reads and writes are copies done in `submit`. Discard and write zeroes over many chunks are done in steps of
//! bounded length, in `kick` and `poll`, so that no call takes long.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;

use crate::backend::{Backend, Identity, Info};
use crate::chunks::Chunks;
use crate::done::DoneList;
use crate::open::OpenError;
use crate::request::{Completion, Op, Outcome, Request, StoreError};
use crate::size::format_size;

/// Chunks cleared at most in one call: a fraction of a millisecond.
const CLEAR_STEP: usize = 512;

/// See the [module](self).
pub struct MemoryBackend {
    info: Info,
    export_id: [u8; 16],
    chunks: Chunks,
    /// Ranges still to be cleared, with the token to answer then.
    clearing: VecDeque<Clearing>,
    done: DoneList,
}

struct Clearing {
    token: u64,
    offset: u64,
    len: u64,
}

impl MemoryBackend {
    /// An export of `size` bytes that reads as zeroes, with an id of its own.
    ///
    /// # Errors
    /// A size that is 0 or no multiple of the block size; no descriptors left.
    pub fn new(size: u64, logical_block: u32, read_only: bool) -> Result<MemoryBackend, OpenError> {
        crate::open::check_geometry("memory", size, logical_block)?;
        let mut export_id = [0; 16];
        dst_ids::fill(&mut export_id).map_err(OpenError::io("get random bytes"))?;
        let description = format!("memory, {}", format_size(size));
        Ok(MemoryBackend {
            info: in_memory_info(size, logical_block, read_only, description),
            export_id,
            chunks: Chunks::new(size),
            clearing: VecDeque::new(),
            done: DoneList::new().map_err(OpenError::io("make an eventfd"))?,
        })
    }

    fn execute(&mut self, op: Op) -> Result<Outcome, StoreError> {
        match op {
            Op::Read { offset, mut buf } => {
                self.chunks.read(offset, &mut buf);
                Ok(Outcome::Read(buf))
            }
            Op::Write { offset, data, .. } => {
                self.chunks.write(offset, &data)?;
                Ok(Outcome::Done)
            }
            Op::BlockStatus { offset, len } => {
                Ok(Outcome::Extents(self.chunks.extents(offset, len)))
            }
            Op::Flush | Op::Discard { .. } | Op::WriteZeroes { .. } => Ok(Outcome::Done),
        }
    }

    fn clear_some(&mut self) {
        if let Some(front) = self.clearing.front_mut() {
            let step = self.chunks.clear(front.offset, front.len, CLEAR_STEP);
            front.offset += step;
            front.len -= step;
            if front.len == 0 {
                self.done.push(front.token, Ok(Outcome::Done));
                self.clearing.pop_front();
            }
        }
    }
}

impl Backend for MemoryBackend {
    fn info(&self) -> &Info {
        &self.info
    }

    fn identity(&self) -> Identity {
        Identity {
            export_id: self.export_id,
            continuity: None,
            note: None,
        }
    }

    fn submit(&mut self, request: Request) {
        let Request { token, op } = request;
        if let Err(error) = self.info.check(&op) {
            self.done.push(token, Err(error));
            return;
        }
        if let Op::Discard { offset, len } | Op::WriteZeroes { offset, len, .. } = op {
            self.clearing.push_back(Clearing { token, offset, len });
            return;
        }
        let result = self.execute(op);
        self.done.push(token, result);
    }

    fn kick(&mut self) {
        self.clear_some();
        self.done.kick(!self.clearing.is_empty());
    }

    fn poll(&mut self, done: &mut Vec<Completion>) {
        self.clear_some();
        self.done.take(done, !self.clearing.is_empty());
    }

    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.done.fd()
    }

    fn refresh(&mut self) -> io::Result<Option<u64>> {
        Ok(None)
    }

    fn in_flight(&self) -> usize {
        self.done.len() + self.clearing.len()
    }

    fn new_incarnation(&mut self) {}
}

/// What a backend in memory announces. No block is too small and nothing survives a power loss, so nothing is atomic.
pub(crate) fn in_memory_info(
    size: u64,
    logical_block: u32,
    read_only: bool,
    description: String,
) -> Info {
    Info {
        size,
        logical_block,
        physical_block: logical_block.max(4096),
        read_only,
        rotational: false,
        discard: !read_only,
        discard_granularity: if read_only { 0 } else { 4096 },
        write_zeroes: !read_only,
        fast_zeroes: !read_only,
        max_atomic_write: 0,
        description,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dst_buf::Pool;

    /// Submits one request and takes its completion.
    fn call(backend: &mut dyn Backend, op: Op) -> Result<Outcome, StoreError> {
        backend.submit(Request { token: 1, op });
        backend.kick();
        let mut done = Vec::new();
        while done.is_empty() {
            backend.poll(&mut done);
        }
        assert_eq!((done.len(), backend.in_flight()), (1, 0));
        done.remove(0).result
    }

    fn read(backend: &mut dyn Backend, offset: u64, len: usize) -> Vec<u8> {
        let buf = Pool::new(0).get(len);
        match call(backend, Op::Read { offset, buf }) {
            Ok(Outcome::Read(buf)) => buf.to_vec(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_was_written_is_read_and_what_was_zeroed_is_zero() {
        let mut memory = MemoryBackend::new(1 << 30, 512, false).unwrap();
        let data = Pool::new(0).copy_of(&[7; 100 << 10]).share();
        let write = Op::Write {
            offset: 32 << 10,
            data,
            fua: true,
        };
        assert!(matches!(call(&mut memory, write), Ok(Outcome::Done)));
        let zero = Op::WriteZeroes {
            offset: 64 << 10,
            len: 512 << 20,
            may_unmap: false,
            fast_only: true,
            fua: false,
        };
        assert!(matches!(call(&mut memory, zero), Ok(Outcome::Done)));
        let seen = read(&mut memory, 32 << 10, 64 << 10);
        assert_eq!(seen, [[7; 32 << 10], [0; 32 << 10]].concat());
        assert!(matches!(call(&mut memory, Op::Flush), Ok(Outcome::Done)));
    }

    #[test]
    fn requests_beyond_the_end_and_writes_to_a_read_only_export_are_refused() {
        let mut memory = MemoryBackend::new(1 << 20, 4096, true).unwrap();
        let pool = Pool::new(0);
        let beyond = Op::Read {
            offset: (1 << 20) - 4096,
            buf: pool.get(8192),
        };
        assert_eq!(
            call(&mut memory, beyond).unwrap_err(),
            StoreError::OutOfRange
        );
        let wrapped = Op::Discard {
            offset: u64::MAX,
            len: 4096,
        };
        assert_eq!(
            call(&mut memory, wrapped).unwrap_err(),
            StoreError::ReadOnly
        );
        let status = Op::BlockStatus {
            offset: u64::MAX - 5,
            len: 4096,
        };
        assert_eq!(
            call(&mut memory, status).unwrap_err(),
            StoreError::OutOfRange
        );
        let nothing = Op::BlockStatus { offset: 0, len: 0 };
        assert_eq!(
            call(&mut memory, nothing).unwrap_err(),
            StoreError::OutOfRange
        );
    }

    #[test]
    fn each_export_has_its_own_id_and_sizes_no_disk_can_have_are_refused() {
        let id = || {
            MemoryBackend::new(4096, 4096, false)
                .unwrap()
                .identity()
                .export_id
        };
        assert_ne!(id(), id());
        assert!(matches!(
            MemoryBackend::new(0, 512, false),
            Err(OpenError::Empty { .. })
        ));
        assert!(matches!(
            MemoryBackend::new(512, 4096, false),
            Err(OpenError::Misaligned { .. })
        ));
        assert!(matches!(
            MemoryBackend::new(4096, 1024, false),
            Err(OpenError::BlockSize { .. })
        ));
    }
}
