//! What must hold at the devices: every request completes once, in the order that barriers ask for, with success or an error
//! that the contract names, and not long after its deadline. The book of all requests of a scenario.

use dst_engine::client::{FailReason, Failure};
use dst_proto::{Kind, OpFlags, Status};

use crate::model::{Range, RequestId};
use crate::queue::MILLI;
use crate::Violation;

/// How long after its deadline a request may complete where its process runs.
const DEADLINE_SLACK: u64 = 5 * MILLI;

/// How a request of a device ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It has not.
    Pending,
    /// With success.
    Good,
    /// With an error, at this time of the model.
    Bad(u64),
}

/// A request that a user has handed in.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The life of a client that it belongs to.
    pub client: u8,
    /// What it is.
    pub kind: Kind,
    /// With which flags.
    pub flags: OpFlags,
    /// Where, in sectors; empty for FLUSH and for requests beyond the end.
    pub range: Range,
    /// The value that it writes, 0 for zeroes.
    pub value: u64,
    /// Beyond the end on purpose.
    pub beyond: bool,
    /// When it was handed in, in the time of the model.
    pub submitted: u64,
    /// When it must fail, nanoseconds.
    pub deadline: u64,
    /// How it ended.
    pub ending: Ending,
}

impl Asked {
    /// Whether it is a barrier.
    pub fn is_barrier(&self) -> bool {
        self.flags.contains(OpFlags::BARRIER)
    }
}

/// What has been done to the world that lets devices see errors.
#[derive(Clone, Copy, Debug, Default)]
pub struct Excuses {
    /// Errors of reads and writes at the disk.
    pub io_errors: u32,
    /// Sync calls that returned an error.
    pub sync_errors: u32,
    /// Bits flipped.
    pub corruptions: u32,
    /// What was not flushed may have been lost.
    pub losses: u32,
    /// Clients that asked for the right to write, by life.
    pub writers: u32,
}

/// All requests. See the [module](self).
#[derive(Debug, Default)]
pub struct Book {
    asked: Vec<Asked>,
    /// Requests that have not completed, in order of submission.
    pending: Vec<RequestId>,
    /// The latest submission, in the time of the model, of a request of a writer that was served.
    served: u64,
    /// What may excuse errors.
    pub excuses: Excuses,
}

impl Book {
    /// Enters a request.
    pub fn submit(&mut self, asked: Asked) -> RequestId {
        let id = self.asked.len() as RequestId;
        self.asked.push(asked);
        self.pending.push(id);
        id
    }

    /// The number of the next request.
    pub fn next_id(&self) -> RequestId {
        self.asked.len() as RequestId
    }

    /// The request.
    pub fn get(&self, id: RequestId) -> &Asked {
        &self.asked[id as usize]
    }

    /// Requests of a client that have not completed.
    pub fn pending_of(&self, client: u8) -> impl Iterator<Item = RequestId> + '_ {
        let mine = move |id: &RequestId| self.asked[*id as usize].client == client;
        self.pending.iter().copied().filter(mine)
    }

    /// When the newest pending barrier of a client was submitted, in the time of the model; 0 where there is none.
    pub fn newest_barrier(&self, client: u8) -> u64 {
        let barriers = self.pending_of(client).map(|id| self.get(id));
        let barriers = barriers.filter(|asked| asked.is_barrier());
        barriers.map(|asked| asked.submitted).last().unwrap_or(0)
    }

    /// A pending request is handed to the successor of its process.
    pub fn reissued(&mut self, id: RequestId, deadline: u64) {
        self.asked[id as usize].deadline = deadline;
    }

    /// The latest submission of a request of a writer that was served, in the time of the model.
    pub fn latest_served(&self) -> u64 {
        self.served
    }

    /// A request has completed. `failed`: its device has failed for good. `now`: nanoseconds, and the time of the model;
    /// `awake`: since when its process runs.
    pub fn complete(
        &mut self,
        id: RequestId,
        result: Result<(), Failure>,
        writer: bool,
        failed: Option<FailReason>,
        now: (u64, u64),
        awake: u64,
    ) -> Result<(), Violation> {
        let Some(place) = self.pending.iter().position(|pending| *pending == id) else {
            return Err(Violation::new(format!("request #{id} completed twice")));
        };
        self.pending.remove(place);
        let asked = self.asked[id as usize].clone();
        let (now, model_now) = now;
        self.asked[id as usize].ending = match result {
            Ok(()) => Ending::Good,
            Err(_) => Ending::Bad(model_now),
        };
        match result {
            Ok(()) => {
                if asked.beyond {
                    return Err(Violation::new(format!("#{id} beyond the end succeeded")));
                }
                if writer {
                    self.served = self.served.max(asked.submitted);
                }
                self.check_order(id, &asked)?;
            }
            Err(failure) => self.check_error(id, &asked, failure, failed, now)?,
        }
        let late = asked.deadline.max(awake).saturating_add(DEADLINE_SLACK);
        if asked.deadline != u64::MAX && now > late {
            return Err(Violation::new(format!(
                "#{id} completed {} ms after its deadline",
                (now - asked.deadline) / MILLI
            )));
        }
        Ok(())
    }

    fn check_order(&self, id: RequestId, asked: &Asked) -> Result<(), Violation> {
        for earlier in self
            .pending_of(asked.client)
            .take_while(|pending| *pending < id)
        {
            if asked.is_barrier() || self.get(earlier).is_barrier() {
                return Err(Violation::new(format!(
                    "#{id} completed before #{earlier}, which was handed in earlier, and one of them is a barrier"
                )));
            }
        }
        Ok(())
    }

    fn check_error(
        &self,
        id: RequestId,
        asked: &Asked,
        failure: Failure,
        failed: Option<FailReason>,
        now: u64,
    ) -> Result<(), Violation> {
        let excuses = &self.excuses;
        let good = match failure {
            Failure::Deadline => now >= asked.deadline,
            Failure::DeviceFailed => failed.is_some(),
            Failure::Status(Status::RANGE) => asked.beyond,
            Failure::Status(Status::IO) => excuses.io_errors > 0,
            Failure::Status(Status::SYNC_FAILED) => excuses.sync_errors >= 2,
            Failure::Status(Status::RETRY) => excuses.corruptions > 3,
            Failure::Status(_) => false,
        };
        if good {
            return Ok(());
        }
        Err(Violation::new(format!(
            "#{id} ({}) failed with {failure:?} for no reason",
            asked.kind.name()
        )))
    }

    /// A device has failed for good.
    pub fn device_failed(
        &self,
        client: u8,
        reason: FailReason,
        retains: bool,
    ) -> Result<(), Violation> {
        let excuses = &self.excuses;
        let good = match reason {
            FailReason::LeaseLost => excuses.writers > 1,
            FailReason::WritesLost => !retains && excuses.losses > 0,
            FailReason::SyncFailed => excuses.sync_errors >= 2,
            FailReason::ReplayFailed(Status::IO) => excuses.io_errors > 0,
            FailReason::ReplayFailed(Status::RETRY) => excuses.corruptions > 3,
            FailReason::Forced => true,
            FailReason::ExportChanged
            | FailReason::NotAdmitted
            | FailReason::ReplayFailed(_)
            | FailReason::GeometryChanged
            | FailReason::Refused(_) => false,
        };
        if good {
            return Ok(());
        }
        Err(Violation::new(format!(
            "the device of client {client} failed for no reason: {reason:?}"
        )))
    }

    /// A client's process is gone, and with it the requests that it had not completed. Tells which.
    pub fn client_gone(&mut self, client: u8, model_now: u64) -> Vec<RequestId> {
        let gone: Vec<RequestId> = self.pending_of(client).collect();
        self.pending.retain(|id| !gone.contains(id));
        for id in &gone {
            self.asked[*id as usize].ending = Ending::Bad(model_now);
        }
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(book: &mut Book, flags: OpFlags) -> RequestId {
        let submitted = u64::from(book.next_id()) + 1;
        book.submit(Asked {
            client: 0,
            kind: Kind::WRITE,
            flags,
            range: Range { first: 0, count: 0 },
            value: 0,
            beyond: false,
            submitted,
            deadline: 1000,
            ending: Ending::Pending,
        })
    }

    fn done(book: &mut Book, id: RequestId, result: Result<(), Failure>, now: u64) -> bool {
        book.complete(id, result, true, None, (now, 50), 0).is_ok()
    }

    #[test]
    fn nothing_completes_twice_or_across_a_barrier() {
        let mut book = Book::default();
        let before = ask(&mut book, OpFlags::NONE);
        let barrier = ask(&mut book, OpFlags::BARRIER);
        let after = ask(&mut book, OpFlags::NONE);
        assert_eq!(book.newest_barrier(0), 2);
        assert!(done(&mut book, before, Ok(()), 1));
        assert!(!done(&mut book, before, Ok(()), 1));
        assert!(!done(&mut book, after, Ok(()), 1));
        assert!(done(&mut book, barrier, Ok(()), 1));
        let first = ask(&mut book, OpFlags::NONE);
        let second = ask(&mut book, OpFlags::BARRIER);
        assert!(!done(&mut book, second, Ok(()), 1));
        assert!(done(&mut book, first, Ok(()), 1));
    }

    #[test]
    fn errors_need_a_reason() {
        let mut book = Book::default();
        let ids: Vec<u32> = (0..6).map(|_| ask(&mut book, OpFlags::NONE)).collect();
        let io = Err(Failure::Status(Status::IO));
        assert!(!done(&mut book, ids[0], Err(Failure::Deadline), 999));
        assert!(done(&mut book, ids[1], Err(Failure::Deadline), 1000));
        assert!(!done(
            &mut book,
            ids[2],
            Err(Failure::Deadline),
            1000 + 2 * DEADLINE_SLACK
        ));
        assert!(!done(&mut book, ids[3], io, 1));
        book.excuses.io_errors = 1;
        assert!(done(&mut book, ids[4], io, 1));
        assert!(!done(&mut book, ids[5], Err(Failure::DeviceFailed), 1));
        assert!(book
            .device_failed(0, FailReason::WritesLost, false)
            .is_err());
        book.excuses.losses = 1;
        assert!(book.device_failed(0, FailReason::WritesLost, false).is_ok());
    }
}
