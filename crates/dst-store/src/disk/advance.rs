//! What the return of a call means for its task: the next call, or the answer.

use rustix::io::Errno;

use crate::disk::renew::RENEWAL;
use crate::disk::task::Work;
use crate::disk::DiskBackend;
use crate::engine::{Call, Finished};
use crate::request::{Outcome, StoreError};

impl DiskBackend {
    /// A call has returned.
    pub(super) fn advance(&mut self, finished: Finished) {
        let Finished { key, call, result } = finished;
        if key == RENEWAL {
            return self.renewed();
        }
        let slot = key as usize;
        match (self.task(slot).work, call, result) {
            (Work::Sync(id), _, result) => {
                if result.is_ok() {
                    self.target.sync_succeeded();
                }
                self.sync.end(id, result.is_ok(), &mut self.answers);
                self.pass_sync_answers();
            }
            // Nothing has been done: again.
            (_, call, Err(Errno::INTR | Errno::AGAIN)) => self.push(key, call),
            (Work::Read, call, Ok(n)) => self.read_returned(slot, call, n),
            (_, call @ Call::Write { .. }, Ok(n)) => self.write_returned(slot, call, n),
            (Work::Seek, Call::Seek { extents, .. }, Ok(_)) => {
                self.end_task(slot, Ok(Outcome::Extents(extents)));
            }
            (Work::Seek, _, Err(Errno::NXIO)) => self.end_task(slot, Err(StoreError::Truncated)),
            (Work::Discard, _, Ok(_)) => self.end_task(slot, Ok(Outcome::Done)),
            (Work::Punch { fast_only }, _, Err(Errno::OPNOTSUPP | Errno::NOSYS)) => {
                self.abilities.punch = false;
                self.task(slot).work = Work::ZeroRange { fast_only };
                self.make_zeroes(slot);
            }
            (Work::ZeroRange { .. }, _, Err(Errno::OPNOTSUPP | Errno::NOSYS)) => {
                self.abilities.zero_range = false;
                self.make_zeroes(slot);
            }
            (Work::Punch { .. } | Work::ZeroRange { .. }, _, Ok(_)) => self.written(slot),
            (_, _, Err(errno)) => self.end_task(slot, Err(StoreError::from_errno(errno))),
            (_, _, Ok(_)) => unreachable!("a task gets back the call that it made"),
        }
    }

    fn read_returned(&mut self, slot: usize, call: Call, n: usize) {
        let Call::Read {
            offset,
            buf,
            filled,
        } = call
        else {
            unreachable!("a reading task gets back its read")
        };
        let filled = filled + n;
        if filled == buf.len() {
            self.end_task(slot, Ok(Outcome::Read(buf)));
        } else if n == 0 {
            self.end = self.end.min(offset + filled as u64);
            self.end_task(slot, Err(StoreError::Truncated));
        } else {
            self.push(
                slot as u64,
                Call::Read {
                    offset,
                    buf,
                    filled,
                },
            );
        }
    }

    fn write_returned(&mut self, slot: usize, call: Call, n: usize) {
        let Call::Write {
            offset,
            data,
            written,
        } = call
        else {
            unreachable!("a writing task gets back its write")
        };
        let written = written + n;
        if n == 0 {
            self.end_task(slot, Err(StoreError::Io(Errno::IO)));
        } else if written < data.len() {
            let rest = Call::Write {
                offset,
                data,
                written,
            };
            self.push(slot as u64, rest);
        } else {
            let task = self.task(slot);
            match &mut task.work {
                Work::WriteZeroes { done } => {
                    *done += written as u64;
                    match *done < task.len {
                        true => self.write_zero_piece(slot),
                        false => self.written(slot),
                    }
                }
                _ => self.written(slot),
            }
        }
    }
}
