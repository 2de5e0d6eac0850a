//! What a request begins with: its checks, its task and the first call.

use crate::disk::task::{Task, Work};
use crate::disk::DiskBackend;
use crate::engine::Call;
use crate::request::{Extent, ExtentKind, Op, Outcome, Request, StoreError};

impl DiskBackend {
    pub(super) fn start_request(&mut self, request: Request) {
        match self.check(&request.op) {
            Ok(()) => self.plan(request.token, request.op),
            Err(error) => self.answer(request.token, Err(error)),
        }
    }

    /// Checks a request against the size announced and the size that is there.
    fn check(&mut self, op: &Op) -> Result<(), StoreError> {
        self.info.check(op)?;
        let end = match op {
            Op::Flush => return Ok(()),
            Op::Read { offset, buf } => offset + buf.len() as u64,
            Op::Write { offset, data, .. } => offset + data.len() as u64,
            Op::Discard { offset, len }
            | Op::WriteZeroes { offset, len, .. }
            | Op::BlockStatus { offset, len } => offset + len,
        };
        // A read finds out by itself. A write would make a truncated file long again and so hide the loss.
        if !self.size_checked && !matches!(op, Op::Read { .. }) {
            self.size_checked = true;
            if let Some(size) = self.target.cheap_size() {
                self.end = self.end.min(size);
            }
        }
        match end <= self.end {
            true => Ok(()),
            false => Err(StoreError::Truncated),
        }
    }

    /// Makes a task for a request and says which call it starts with, or answers at once.
    fn plan(&mut self, token: u64, op: Op) {
        let task = |offset, len, fua, work| Task {
            token,
            offset,
            len,
            fua,
            work,
        };
        match op {
            Op::Read { buf, .. } if buf.is_empty() => self.answer(token, Ok(Outcome::Read(buf))),
            Op::Read { offset, buf } => {
                let len = buf.len() as u64;
                let call = Call::Read {
                    offset,
                    buf,
                    filled: 0,
                };
                self.begin(task(offset, len, false, Work::Read), call);
            }
            Op::Write { fua: true, .. } | Op::WriteZeroes { fua: true, .. }
                if self.sync.is_latched() =>
            {
                // It can't succeed in this incarnation, so it does nothing.
                let slot = self.slot(task(0, 0, true, Work::Refused));
                self.sync_begin(slot);
            }
            Op::Write { offset, data, fua } if !data.is_empty() => {
                let len = data.len() as u64;
                let call = Call::Write {
                    offset,
                    data,
                    written: 0,
                };
                self.begin(task(offset, len, fua, Work::Write), call);
            }
            Op::Flush => {
                let slot = self.slot(task(0, 0, true, Work::Refused));
                self.sync_begin(slot);
            }
            Op::Discard { .. } if !self.info.discard => {
                self.answer(token, Err(StoreError::Unsupported))
            }
            Op::Discard { offset, len } if len > 0 => {
                let call = self.target.discard(offset, len);
                self.begin(task(offset, len, false, Work::Discard), call);
            }
            Op::WriteZeroes {
                offset,
                len,
                may_unmap,
                fast_only,
                fua,
            } if len > 0 => {
                let work = if may_unmap && self.abilities.punch {
                    Work::Punch { fast_only }
                } else {
                    Work::ZeroRange { fast_only }
                };
                let slot = self.slot(task(offset, len, fua, work));
                self.make_zeroes(slot);
            }
            Op::Write { .. } | Op::Discard { .. } | Op::WriteZeroes { .. } => {
                self.answer(token, Ok(Outcome::Done));
            }
            Op::BlockStatus { len, .. } if !self.target.has_holes() => {
                let kind = ExtentKind::Data;
                self.answer(token, Ok(Outcome::Extents(vec![Extent { len, kind }])));
            }
            Op::BlockStatus { offset, len } => {
                let call = Call::Seek {
                    offset,
                    len,
                    block: self.info.logical_block,
                    extents: Vec::new(),
                };
                self.begin(task(offset, len, false, Work::Seek), call);
            }
        }
    }
}
