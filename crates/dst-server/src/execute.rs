//! Between the sessions and the backend.
//!
//! A backend's token is the session's key and the slot; key 0 is the export's own flush. A key is never used twice, so a
//! late completion can't be taken for another session's.

use dst_ids::random;
use dst_proto::{Extent, ExtentKind, Kind, OpFlags, Status, MAX_EXTENTS, NO_SLOT};
use dst_store::{Completion, Op, Outcome, Request, StoreError};

use crate::member::{Data, Member};
use crate::worker::Worker;

/// Key of the export's own flush.
const OWN: u32 = 0;

impl Worker {
    /// Hands the backend everything that may start, and takes what it has finished, until there is neither.
    pub(crate) fn execute_all(&mut self) {
        loop {
            let mut started = false;
            for member in self.members.values_mut() {
                while member.may_execute() {
                    let Some(execute) = member.session.poll_execute(&mut member.slots) else {
                        break;
                    };
                    let op = operation(&self.pool, member, &execute);
                    member.start(&execute, &op);
                    self.backend.submit(Request {
                        token: token(member.key, execute.slot),
                        op,
                    });
                    started = true;
                }
            }
            if std::mem::take(&mut self.flush_wanted) {
                self.backend.submit(Request {
                    token: token(OWN, NO_SLOT),
                    op: Op::Flush,
                });
                started = true;
            }
            if started {
                self.backend.kick();
            }
            if !self.take_completions() && !started {
                return;
            }
        }
    }

    fn take_completions(&mut self) -> bool {
        let mut done = std::mem::take(&mut self.done);
        self.backend.poll(&mut done);
        let any = !done.is_empty();
        for completion in done.drain(..) {
            self.completed(completion);
        }
        self.done = done;
        any
    }

    fn completed(&mut self, completion: Completion) {
        let key = (completion.token >> 16) as u32;
        let slot = completion.token as u16;
        let sync_failed = matches!(completion.result, Err(StoreError::SyncFailed));
        if key == OWN {
            return self.own_flush_done(completion.result.is_ok());
        }
        let Some(number) = self.keys.get(&key).copied() else {
            return;
        };
        let status = if sync_failed {
            let now = self.now();
            self.rules.sync_failed(Some(number), random(), now)
        } else {
            status_of(&completion.result)
        };
        let Some(member) = self.members.get_mut(&number) else {
            return;
        };
        let started = member.finish(
            slot,
            match completion.result {
                Ok(Outcome::Read(buffer)) => Data::Read(buffer.share()),
                Ok(Outcome::Extents(extents)) => {
                    let extents = extents.into_iter().take(MAX_EXTENTS).map(wire_extent);
                    Data::Extents(extents.collect())
                }
                Ok(Outcome::Done) | Err(_) => Data::None,
            },
        );
        if started.syncs && status == Status::OK {
            // REPLAYED may have come in the same turn, and what it led to not have been looked at.
            if member.session.has_replayed() {
                self.rules.replayed(number);
            }
            self.rules.sync_succeeded(number);
        }
        let id = started.id;
        member.session.executed(&mut member.slots, slot, id, status);
    }
}

fn token(key: u32, slot: u16) -> u64 {
    u64::from(key) << 16 | u64::from(slot)
}

fn operation(
    pool: &dst_buf::Pool,
    member: &mut Member,
    execute: &dst_engine::server::Execute,
) -> Op {
    let (offset, len, slot) = (execute.offset, execute.length, execute.slot);
    let has = |flag| execute.flags.contains(flag);
    match execute.kind {
        Kind::READ => Op::Read {
            offset,
            buf: pool.get(len as usize),
        },
        Kind::WRITE => Op::Write {
            offset,
            data: match member.take(slot) {
                Data::Payload(data) => data,
                _ => unreachable!("a WRITE starts only when its payload is there"),
            },
            fua: has(OpFlags::FUA),
        },
        Kind::DISCARD => Op::Discard { offset, len },
        Kind::WRITE_ZEROES => Op::WriteZeroes {
            offset,
            len,
            may_unmap: has(OpFlags::MAY_UNMAP),
            fast_only: has(OpFlags::FAST_ONLY),
            fua: has(OpFlags::FUA),
        },
        Kind::BLOCK_STATUS => Op::BlockStatus { offset, len },
        _ => Op::Flush,
    }
}

fn status_of(result: &Result<Outcome, StoreError>) -> Status {
    match result {
        Ok(_) => Status::OK,
        Err(StoreError::NoSpace) => Status::NO_SPACE,
        Err(StoreError::OutOfRange) => Status::RANGE,
        Err(StoreError::ReadOnly) => Status::READ_ONLY,
        Err(StoreError::Unsupported) => Status::UNSUPPORTED,
        Err(StoreError::Io(_) | StoreError::Truncated | StoreError::SyncFailed) => Status::IO,
    }
}

fn wire_extent(extent: dst_store::Extent) -> Extent {
    Extent {
        length: extent.len,
        kind: match extent.kind {
            dst_store::ExtentKind::Data => ExtentKind::Data,
            dst_store::ExtentKind::Zero => ExtentKind::Zeroes,
            dst_store::ExtentKind::Hole => ExtentKind::Hole,
        },
    }
}
