//! One export on one thread: its backend, its sessions, their connections.
//!
//! A turn is: sleep until something happens, take what came ([`crate::receive`]), start and finish what the backend does
//! ([`crate::execute`]), act on what the rules decided ([`crate::decide`]), send ([`crate::reply`]). Nothing on the way of
//! a request crosses threads, but for the backend's own.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::mpsc::Receiver as Inbox;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dst_buf::Pool;
use dst_engine::server::{ConnId, Entry, Export, ExportConfig as Rules, Record};
use dst_net::{Event, Interest, Poller, Waker};
use dst_proto::{Geometry, GeometryFlags, HEADER_LEN, MAX_DIGEST_AREA};
use dst_store::{Backend, Completion, Info, OpenOptions};

use crate::admit::Asking;
use crate::config::{Config, ExportConfig, StartError};
use crate::conn::Conn;
use crate::member::Member;
use crate::port::{lock, Directory, Listing, Message};
use crate::record::{bytes, hex, RecordFile, Saved, SavedLease};

/// Sessions of one export at once, those that end included.
const SESSIONS: usize = 64;
/// Free buffers that the pool keeps, bytes.
const CACHED: usize = 64 << 20;
/// How often the size of the backend is looked at.
const REFRESH: u64 = 2_000_000_000;
/// Last words must have left within this time.
pub(crate) const LEAVING: u64 = 5_000_000_000;

const WAKER: u64 = u64::MAX;
const BACKEND: u64 = u64::MAX - 1;

/// One export's thread.
pub(crate) struct Worker {
    pub index: usize,
    pub config: Arc<Config>,
    pub backend: Box<dyn Backend>,
    pub rules: Export<Box<[Entry]>>,
    pub members: BTreeMap<u64, Member>,
    /// Session numbers by the key in the backend's tokens.
    pub keys: HashMap<u32, u64>,
    pub next_key: u32,
    pub conns: BTreeMap<u32, Conn>,
    pub next_conn: u32,
    /// OPENs that are being decided.
    pub asking: BTreeMap<u64, Asking>,
    pub directory: Arc<Directory>,
    pub saved: Saved,
    pub record_file: Option<RecordFile>,
    pub poller: Poller,
    pub pool: Pool,
    pub scratch: Box<[u8]>,
    pub done: Vec<Completion>,
    pub lost: Vec<u32>,
    /// Connections with more to take than one turn does.
    pub unfinished: Vec<u32>,
    /// A flush of the export's own is to be handed to the backend.
    pub flush_wanted: bool,
    /// When a drain has to be over; `None`: not draining.
    pub drain: Option<u64>,
    /// The flush at the end of a drain: `None` before, then whether it succeeded.
    pub drained: Option<bool>,
    /// That flush is with the backend.
    pub drain_flushing: bool,
    pub local_clients: bool,
    listing: Arc<Mutex<Listing>>,
    inbox: Inbox<Message>,
    waker: Waker,
    started: Instant,
    next_refresh: u64,
}

impl Worker {
    /// Opens the backend and reads what is remembered of the export. Answers the worker and what to tell of it.
    pub fn open(
        index: usize,
        export: &ExportConfig,
        config: Arc<Config>,
        directory: Arc<Directory>,
        inbox: Inbox<Message>,
        waker: Waker,
    ) -> Result<(Self, Arc<Mutex<Listing>>), StartError> {
        let name = export.spec.name.clone();
        let backend = export
            .spec
            .open(&OpenOptions {
                read_only: export.read_only,
                create_size: export.create_size,
                block_size: export.block_size,
                state_dir: Some(config.state_dir.clone()),
                runtime_dir: config.runtime_dir.clone(),
                ..OpenOptions::default()
            })
            .map_err(|source| StartError::Export {
                name: name.clone(),
                source,
            })?;
        let state_error = |source| StartError::State {
            name: name.clone(),
            dir: config.state_dir.display().to_string(),
            source,
        };
        let identity = backend.identity();
        let continuity = identity.continuity.map(|hash| hex(&hash));
        let file = RecordFile::new(&config.state_dir, &identity.export_id).map_err(state_error)?;
        let before = file.load().map_err(state_error)?.unwrap_or_default();
        let goes_on = before.clean || continuity.is_some() && continuity == before.continuity;
        let kept = bytes(&before.incarnation).filter(|_| goes_on);
        let incarnation = kept.unwrap_or_else(random);
        let lease = before.lease.as_ref().and_then(SavedLease::record);
        // A gate that an earlier start closed is still closed.
        let fresh = kept.is_none() || before.replay_owed;
        let saved = Saved {
            name: name.clone(),
            incarnation: hex(&incarnation),
            continuity,
            clean: false,
            replay_owed: fresh && lease.is_some_and(|lease| lease.held),
            ..before
        };
        // Before anything is served: from here on a crash is no clean stop.
        file.store(&saved).map_err(state_error)?;

        let poller = Poller::new()?;
        poller.add(waker.fd(), WAKER, Interest::READ)?;
        poller.add(backend.wake_fd(), BACKEND, Interest::READ)?;
        let rules = Rules {
            id: identity.export_id,
            incarnation,
            fresh,
            record: lease.unwrap_or(Record::NONE),
            read_only: backend.info().read_only,
            lease_time: nanoseconds(config.lease_time),
        };
        let table = vec![Entry::default(); SESSIONS].into_boxed_slice();
        let listing = Arc::new(Mutex::new(Listing {
            name,
            ..Listing::default()
        }));
        let worker = Self {
            index,
            config,
            backend,
            rules: Export::new(&rules, table, 0),
            members: BTreeMap::new(),
            keys: HashMap::new(),
            next_key: 1,
            conns: BTreeMap::new(),
            next_conn: 0,
            asking: BTreeMap::new(),
            directory,
            saved,
            record_file: Some(file),
            poller,
            pool: Pool::new(CACHED),
            scratch: vec![0; HEADER_LEN + MAX_DIGEST_AREA as usize].into_boxed_slice(),
            done: Vec::new(),
            lost: Vec::new(),
            unfinished: Vec::new(),
            flush_wanted: false,
            drain: None,
            drained: None,
            drain_flushing: false,
            local_clients: false,
            listing: Arc::clone(&listing),
            inbox,
            waker,
            started: Instant::now(),
            next_refresh: REFRESH,
        };
        worker.publish();
        Ok((worker, listing))
    }

    /// The id that stays with the export's content.
    pub fn export_id(&self) -> [u8; 16] {
        self.rules.state().id
    }

    /// What people should know about the export, if anything.
    pub fn note(&self) -> Option<String> {
        self.backend.identity().note
    }

    /// Serves until drained. Answers whether everything is flushed and marked so.
    pub fn run(mut self) -> io::Result<bool> {
        let mut events = Vec::new();
        loop {
            let unfinished = std::mem::take(&mut self.unfinished);
            let patience = if unfinished.is_empty() {
                self.patience()
            } else {
                Some(Duration::ZERO)
            };
            self.poller.wait(patience, &mut events)?;
            for event in &events {
                self.handle(event);
            }
            for id in unfinished {
                self.handle_ready(id);
            }
            self.handle_timers();
            self.pump();
            if let Some(clean) = self.drain_step() {
                return clean;
            }
        }
    }

    fn handle(&mut self, event: &Event) {
        match event.token {
            WAKER => {
                self.waker.clear();
                while let Ok(message) = self.inbox.try_recv() {
                    match message {
                        Message::Arrival(arrival) => self.arrive(*arrival),
                        Message::Drain => self.start_drain(),
                    }
                }
            }
            // What has completed is taken in every turn.
            BACKEND => {}
            conn => self.handle_ready(conn as u32),
        }
    }

    /// Does everything that can be done without waiting.
    fn pump(&mut self) {
        loop {
            self.execute_all();
            let decided = self.decide_all();
            // Last words go before the streams that they are for are closed.
            self.transmit_all();
            let closed = self.close_all();
            let resumes = self.members.values().any(Member::may_resume);
            if !closed && !decided && !resumes {
                return;
            }
        }
    }

    fn handle_timers(&mut self) {
        let now = self.now();
        for member in self.members.values_mut() {
            if member.session.next_timeout().is_some_and(|due| due <= now) {
                member.session.handle_timeout(&mut member.slots, now);
            }
        }
        self.tell_signs_of_life();
        if self.rules.next_timeout().is_some_and(|due| due <= now) {
            self.rules.handle_timeout(now);
        }
        let late = |conn: &Conn| conn.leaving.is_some_and(|until| until <= now);
        let late: Vec<u32> = self
            .conns
            .iter()
            .filter_map(|(id, conn)| late(conn).then_some(*id))
            .collect();
        for id in late {
            self.drop_connection(id);
        }
        if now >= self.next_refresh {
            self.next_refresh = now + REFRESH;
            self.refresh();
        }
    }

    /// Looks whether the backend has grown, and tells the sessions.
    fn refresh(&mut self) {
        match self.backend.refresh() {
            Ok(Some(_)) => {
                let geometry = self.geometry();
                for member in self.members.values_mut() {
                    member.session.set_geometry(geometry);
                }
                self.publish();
            }
            Ok(None) => {}
            Err(error) => eprintln!("export {}: {error}", self.saved.name),
        }
    }

    fn patience(&self) -> Option<Duration> {
        let now = self.now();
        let sessions = self
            .members
            .values()
            .filter_map(|m| m.session.next_timeout());
        let leaving = self.conns.values().filter_map(|conn| conn.leaving);
        let refresh = (!self.members.is_empty()).then_some(self.next_refresh);
        let own = [self.rules.next_timeout(), self.drain, refresh];
        let due = sessions
            .chain(leaving)
            .chain(own.into_iter().flatten())
            .min();
        due.map(|due| Duration::from_nanos(due.saturating_sub(now)))
    }

    /// The export as clients are told.
    pub(crate) fn geometry(&self) -> Geometry {
        let info: &Info = self.backend.info();
        let flags = [
            (info.read_only, GeometryFlags::READ_ONLY),
            (info.rotational, GeometryFlags::ROTATIONAL),
            (info.discard, GeometryFlags::DISCARD),
            (info.write_zeroes, GeometryFlags::WRITE_ZEROES),
            (info.fast_zeroes, GeometryFlags::FAST_ZEROES),
            (true, GeometryFlags::FUA),
            (true, GeometryFlags::BLOCK_STATUS),
        ];
        let flags = flags
            .into_iter()
            .filter_map(|(on, flag)| on.then_some(flag.0))
            .fold(0, |all, flag| all | flag);
        Geometry {
            size: info.size,
            logical_block: info.logical_block,
            physical_block: info.physical_block,
            flags: GeometryFlags(flags),
            discard_granularity: info.discard_granularity,
            atomic_limit: info.max_atomic_write,
            rollback_limit: 0,
        }
    }

    /// Puts what LIST tells up to date.
    pub(crate) fn publish(&self) {
        let geometry = self.geometry();
        let writer = self
            .rules
            .writer()
            .and_then(|number| self.members.get(&number));
        let mut listing = lock(&self.listing);
        listing.size = geometry.size;
        listing.logical_block = geometry.logical_block;
        listing.flags = geometry.flags;
        listing.writer = writer.map_or_else(String::new, |member| member.client.clone());
        listing.sessions = self.members.len();
    }

    /// Nanoseconds since the worker was made.
    pub(crate) fn now(&self) -> u64 {
        nanoseconds(self.started.elapsed())
    }

    /// The connection is gone, for the session too.
    pub(crate) fn drop_connection(&mut self, id: u32) {
        self.detach(id);
        if let Some(conn) = self.conns.remove(&id) {
            conn.forget(&self.poller);
        }
    }

    /// The session has the connection no more; the stream may still carry last words.
    pub(crate) fn detach(&mut self, id: u32) {
        let now = self.now();
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        conn.body = None;
        if let Some(member) = self.members.get_mut(&conn.session) {
            member.session.conn_lost(&mut member.slots, ConnId(id), now);
        }
    }

    /// Puts a change of what must be remembered on stable storage.
    pub(crate) fn save(&mut self) -> bool {
        let Some(file) = &self.record_file else {
            return true;
        };
        match file.store(&self.saved) {
            Ok(()) => true,
            Err(error) => {
                eprintln!(
                    "export {}: its state can't be saved: {error}",
                    self.saved.name
                );
                false
            }
        }
    }
}

/// Random bytes.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the system has random numbers once it is up");
    bytes
}

pub(crate) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
