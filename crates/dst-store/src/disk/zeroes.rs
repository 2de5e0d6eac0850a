//! WRITE ZEROES: by the fastest way that is permitted and there, at worst by writing them.

use dst_buf::Pool;
use rustix::fs::FallocateFlags;

use crate::disk::task::Work;
use crate::disk::DiskBackend;
use crate::engine::Call;
use crate::request::StoreError;

/// Bytes of zeroes written by one call.
const ZERO_PIECE: usize = 256 << 10;

impl DiskBackend {
    /// The next way to make zeroes that this task may use.
    pub(super) fn make_zeroes(&mut self, slot: usize) {
        let abilities = self.abilities;
        let task = self.task(slot);
        let (offset, len) = (task.offset, task.len);
        let keep = FallocateFlags::KEEP_SIZE;
        let call = match task.work {
            Work::Punch { .. } => Call::Allocate {
                mode: FallocateFlags::PUNCH_HOLE | keep,
                offset,
                len,
            },
            Work::ZeroRange { .. } if abilities.zero_range => Call::Allocate {
                mode: FallocateFlags::ZERO_RANGE | keep,
                offset,
                len,
            },
            Work::ZeroRange { fast_only: true } => {
                return self.end_task(slot, Err(StoreError::Unsupported));
            }
            _ => {
                task.work = Work::WriteZeroes { done: 0 };
                return self.write_zero_piece(slot);
            }
        };
        self.push(slot as u64, call);
    }

    pub(super) fn write_zero_piece(&mut self, slot: usize) {
        let zeroes = self.zeroes.get_or_insert_with(|| {
            let mut zeroes = Pool::new(0).get(ZERO_PIECE);
            zeroes.fill(0);
            zeroes.share()
        });
        let zeroes = zeroes.clone();
        let task = self.task(slot);
        let Work::WriteZeroes { done } = task.work else {
            unreachable!("only a task that writes zeroes gets here")
        };
        let len = (task.len - done).min(ZERO_PIECE as u64) as usize;
        let call = Call::Write {
            offset: task.offset + done,
            data: zeroes.slice(..len),
            written: 0,
        };
        self.push(slot as u64, call);
    }
}
