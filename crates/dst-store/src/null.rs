//! The null backend, for benchmarks of everything above a backend: forgets what is written and reads as zeroes.

use std::io;
use std::os::fd::BorrowedFd;

use crate::backend::{Backend, Identity, Info};
use crate::done::DoneList;
use crate::memory::in_memory_info;
use crate::open::OpenError;
use crate::request::{Completion, Extent, ExtentKind, Op, Outcome, Request, StoreError};
use crate::size::format_size;

/// See the [module](self).
pub struct NullBackend {
    info: Info,
    export_id: [u8; 16],
    done: DoneList,
}

impl NullBackend {
    /// An export of `size` bytes with an id of its own.
    ///
    /// # Errors
    /// A size that is 0 or no multiple of the block size; no descriptors left.
    pub fn new(size: u64, logical_block: u32, read_only: bool) -> Result<NullBackend, OpenError> {
        crate::open::check_geometry("null", size, logical_block)?;
        let mut export_id = [0; 16];
        dst_ids::fill(&mut export_id).map_err(OpenError::io("get random bytes"))?;
        let description = format!("null, {}", format_size(size));
        Ok(NullBackend {
            info: in_memory_info(size, logical_block, read_only, description),
            export_id,
            done: DoneList::new().map_err(OpenError::io("make an eventfd"))?,
        })
    }

    fn execute(&self, op: Op) -> Result<Outcome, StoreError> {
        self.info.check(&op)?;
        Ok(match op {
            Op::Read { mut buf, .. } => {
                // The buffer may have held another client's data.
                buf.fill(0);
                Outcome::Read(buf)
            }
            Op::BlockStatus { len, .. } => Outcome::Extents(vec![Extent {
                len,
                kind: ExtentKind::Hole,
            }]),
            Op::Write { .. } | Op::Flush | Op::Discard { .. } | Op::WriteZeroes { .. } => {
                Outcome::Done
            }
        })
    }
}

impl Backend for NullBackend {
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
        let result = self.execute(request.op);
        self.done.push(request.token, result);
    }

    fn kick(&mut self) {
        self.done.kick(false);
    }

    fn poll(&mut self, done: &mut Vec<Completion>) {
        self.done.take(done, false);
    }

    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.done.fd()
    }

    fn refresh(&mut self) -> io::Result<Option<u64>> {
        Ok(None)
    }

    fn in_flight(&self) -> usize {
        self.done.len()
    }

    fn new_incarnation(&mut self) {}
}
