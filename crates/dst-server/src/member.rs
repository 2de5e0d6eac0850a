//! One session with the memory that its rules work on and the bytes that its slots hold.

use dst_buf::Shared;
use dst_engine::server::{Config, ConnId, Execute, Lane, Session, Slot};
use dst_proto::{Extent, Kind, Limits, OpFlags};

/// What a session may have read, or be about to read, that its client has not taken, bytes. The rest waits.
const READ_AHEAD: u64 = 32 << 20;

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
    /// Bytes that a READ will bring.
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
    held_reads: u64,
    /// Something may have been left unexecuted because the client does not take what it reads.
    throttled: bool,
}

impl Member {
    pub fn new(
        key: u32,
        config: Config,
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
            held_reads: 0,
            throttled: false,
        }
    }

    /// Whether the client takes what it reads, so that more may be read for it.
    pub fn may_execute(&mut self) -> bool {
        self.throttled = self.held_reads >= READ_AHEAD;
        !self.throttled
    }

    /// Whether it has taken enough since to go on.
    pub fn may_resume(&self) -> bool {
        self.throttled && self.held_reads < READ_AHEAD
    }

    /// Notes that the backend gets a request.
    pub fn start(&mut self, execute: &Execute) {
        if let Some(place) = self.started.get_mut(usize::from(execute.slot)) {
            *place = Started {
                id: execute.id,
                syncs: execute.kind == Kind::FLUSH || execute.flags.contains(OpFlags::FUA),
                reads: if execute.kind == Kind::READ {
                    execute.length
                } else {
                    0
                },
            };
            self.held_reads += place.reads;
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
        if !matches!(data, Data::Read(_)) {
            self.held_reads -= started.reads;
        }
        self.keep(slot, data);
        started
    }

    /// Replaces what is kept for `slot`.
    pub fn keep(&mut self, slot: u16, data: Data) {
        let Some(place) = self.data.get_mut(usize::from(slot)) else {
            return;
        };
        if let Data::Read(bytes) = std::mem::replace(place, data) {
            self.held_reads -= bytes.len() as u64;
        }
    }

    /// Takes out what is kept for `slot`.
    pub fn take(&mut self, slot: u16) -> Data {
        let data = match self.data.get_mut(usize::from(slot)) {
            Some(place) => std::mem::take(place),
            None => Data::None,
        };
        if let Data::Read(bytes) = &data {
            self.held_reads -= bytes.len() as u64;
        }
        data
    }

    /// What is kept for `slot`.
    pub fn data(&self, slot: u16) -> &Data {
        self.data.get(usize::from(slot)).unwrap_or(&Data::None)
    }
}
