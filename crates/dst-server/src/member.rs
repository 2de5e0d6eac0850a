//! One session with the memory that its rules work on and the bytes that its slots hold.
//!
//! What is read for a client is *held* from the moment that the backend gets the buffer until nothing refers to it any more:
//! in the backend, in its slot, and in the queues of connections; so are the extents of a BLOCK STATUS. Invariant: `held` is at most one of the session's largest
//! READs more than what its [`Reservation`] covers, so that a session which can't have more goes on one READ at a time.

use std::collections::VecDeque;

use dst_buf::Shared;
use dst_engine::server::{Config, ConnId, Execute, Lane, Session, Slot};
use dst_proto::{Extent, Kind, Limits, OpFlags, MAX_EXTENTS};
use dst_store::Op;

use crate::budget::Reservation;

/// Most bytes that the extents of one answer take.
const EXTENTS: u64 = (MAX_EXTENTS * size_of::<Extent>()) as u64;

/// Bytes of the request in a slot.
#[derive(Default)]
pub(crate) enum Data {
    #[default]
    None,
    /// Received, for a WRITE.
    Payload(Shared),
    /// Read, for a READ.
    Read(Shared),
    /// For a BLOCK STATUS.
    Extents(Vec<Extent>),
}

/// A request that the backend has.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Started {
    pub id: u64,
    /// It is a FLUSH, or has FUA.
    pub syncs: bool,
    /// Bytes that what is read for the client takes.
    reads: u64,
}

/// One session.
pub(crate) struct Member {
    /// Names it in the backend's tokens; never used twice.
    pub key: u32,
    pub session: Session<Box<[u64]>, Box<[Lane]>>,
    pub slots: Vec<Slot>,
    pub secret: [u8; 16],
    /// Name of the client, for people.
    pub client: String,
    pub limits: Limits,
    data: Vec<Data>,
    /// What the backend has, by slot.
    started: Vec<Started>,
    memory: Reservation,
    /// Bytes of the blocks with what is read for the client.
    held: u64,
    /// What of that is no slot's any more.
    sent: VecDeque<Shared>,
    /// Something may have been left unexecuted because the client does not take what it reads.
    throttled: bool,
}

impl Member {
    pub fn new(
        key: u32,
        config: Config,
        memory: Reservation,
        secret: [u8; 16],
        client: &str,
        conn: ConnId,
        now: u64,
    ) -> Self {
        let limits = config.limits;
        let slots = usize::from(limits.slots);
        let window = vec![0; (limits.window as usize).div_ceil(64)].into_boxed_slice();
        let lanes = vec![Lane::default(); usize::from(limits.connections)].into_boxed_slice();
        let mut table = vec![Slot::default(); slots];
        Self {
            key,
            session: Session::new(config, window, lanes, &mut table, conn, now),
            slots: table,
            secret,
            client: client.to_owned(),
            limits,
            data: (0..slots).map(|_| Data::None).collect(),
            started: vec![Started::default(); slots],
            memory,
            held: 0,
            sent: VecDeque::with_capacity(slots),
            throttled: false,
        }
    }

    /// Whether the client takes what it reads, so that more may be read for it.
    pub fn may_execute(&mut self) -> bool {
        self.throttled = !self.may_read();
        !self.throttled
    }

    fn may_read(&mut self) -> bool {
        self.held == 0 || self.memory.cover(self.held)
    }

    /// Whether it has taken enough since to go on.
    pub fn may_resume(&mut self) -> bool {
        if self.throttled {
            self.let_go_of_sent();
        }
        self.throttled && self.may_read()
    }

    /// Notes that the backend gets a request as `op`.
    pub fn start(&mut self, execute: &Execute, op: &Op) {
        if let Some(place) = self.started.get_mut(usize::from(execute.slot)) {
            *place = Started {
                id: execute.id,
                syncs: execute.kind == Kind::FLUSH || execute.flags.contains(OpFlags::FUA),
                reads: match op {
                    Op::Read { buf, .. } => buf.capacity() as u64,
                    Op::BlockStatus { .. } => EXTENTS,
                    _ => 0,
                },
            };
            self.held += place.reads;
        }
    }

    /// Takes what the backend has given back of `slot`: what it had, and what is kept from now on.
    pub fn finish(&mut self, slot: u16, data: Data) -> Started {
        // The session's own flush has no slot.
        let own = Started {
            id: 0,
            syncs: true,
            reads: 0,
        };
        let started = self.started.get(usize::from(slot)).copied().unwrap_or(own);
        if !matches!(data, Data::Read(_) | Data::Extents(_)) {
            self.hold_less(started.reads);
        }
        self.keep(slot, data);
        started
    }

    /// Replaces what is kept for `slot`.
    pub fn keep(&mut self, slot: u16, data: Data) {
        let Some(place) = self.data.get_mut(usize::from(slot)) else {
            return;
        };
        match std::mem::replace(place, data) {
            Data::Read(bytes) => self.let_go(bytes),
            Data::Extents(_) => self.hold_less(EXTENTS),
            Data::None | Data::Payload(_) => {}
        }
    }

    /// Takes out what is kept for `slot`; what was read is let go of.
    pub fn take(&mut self, slot: u16) -> Data {
        match self.data.get_mut(usize::from(slot)).map(std::mem::take) {
            Some(Data::Read(bytes)) => {
                self.let_go(bytes);
                Data::None
            }
            Some(Data::Extents(extents)) => {
                self.hold_less(EXTENTS);
                Data::Extents(extents)
            }
            data => data.unwrap_or_default(),
        }
    }

    /// The slot has no more use for these bytes; a queue may refer to them still.
    fn let_go(&mut self, bytes: Shared) {
        match bytes.try_unique() {
            Ok(buffer) => self.hold_less(buffer.capacity() as u64),
            Err(bytes) => self.sent.push_back(bytes),
        }
    }

    /// Looks which of the bytes that slots have let go of have left all queues.
    pub fn let_go_of_sent(&mut self) {
        // What is still in use goes to the end.
        for _ in 0..self.sent.len() {
            if let Some(bytes) = self.sent.pop_front() {
                self.let_go(bytes);
            }
        }
    }

    fn hold_less(&mut self, bytes: u64) {
        self.held -= bytes;
        self.memory.uncover(self.held);
    }

    /// What is kept for `slot`.
    pub fn data(&self, slot: u16) -> &Data {
        self.data.get(usize::from(slot)).unwrap_or(&Data::None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::SLOT;

    #[test]
    fn a_slot_takes_no_more_than_is_counted_for_it() {
        let all = size_of::<Slot>() + size_of::<Data>() + size_of::<Started>();
        assert!((all + size_of::<Shared>()) as u64 <= SLOT);
    }
}
