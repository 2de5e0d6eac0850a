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
use dst_engine::server::{ConnId, Entry, Export};
use dst_net::{Event, Poller, Waker};
use dst_store::{Backend, Completion};

use crate::asking::Asking;
use crate::budget::Budget;
use crate::changes::Changes;
use crate::config::Config;
use crate::conn::Conn;
use crate::drain::Drain;
use crate::log;
use crate::member::Member;
use crate::port::{Directory, Listing, Message};
use crate::record::{RecordFile, Saved};

/// How often the size of the backend is looked at while there are sessions, unless something says that it has changed.
pub(crate) const REFRESH: u64 = 2_000_000_000;
/// Last words must have left within this time.
pub(crate) const LEAVING: u64 = 5_000_000_000;
/// Most messages of the front door taken in one turn, so that who comes does not hold up who is there.
const MESSAGES: usize = 16;

// Tokens of what is waited for. Those of connections are their ids, with a bit for the write side where that is a descriptor
// of its own; those of streams that ask are session numbers with another.
pub(crate) const WAKER: u64 = u64::MAX;
pub(crate) const BACKEND: u64 = u64::MAX - 1;
pub(crate) const CHANGES: u64 = u64::MAX - 2;
pub(crate) const WRITE_SIDE: u64 = 1 << 32;
pub(crate) const ASKING: u64 = 1 << 33;

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
    /// Sessions that are over but for last words: their memory is theirs until the last of their connections has gone.
    pub remains: BTreeMap<u64, Member>,
    pub conns: BTreeMap<u32, Conn>,
    pub next_conn: u32,
    /// OPENs that are being decided.
    pub asking: BTreeMap<u64, Asking>,
    /// Name of the client that is being admitted to write, or was last.
    pub admitted_client: String,
    pub directory: Arc<Directory>,
    pub saved: Saved,
    pub record_file: Option<RecordFile>,
    pub poller: Poller,
    pub budget: Arc<Budget>,
    pub pool: Pool,
    pub scratch: Box<[u8]>,
    pub done: Vec<Completion>,
    pub lost: Vec<u32>,
    /// Connections with more to take than one turn does.
    pub unfinished: Vec<u32>,
    /// A flush of the export's own is to be handed to the backend.
    pub flush_wanted: bool,
    pub drain: Drain,
    pub local_clients: bool,
    pub listing: Arc<Mutex<Listing>>,
    pub inbox: Inbox<Message>,
    pub waker: Waker,
    pub started: Instant,
    pub next_refresh: u64,
    /// Says that it is time for a refresh.
    pub changes: Option<Changes>,
}

impl Worker {
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
                // An event may have given it its turn.
                if !self.unfinished.contains(&id) {
                    self.handle_ready(id);
                }
            }
            self.handle_timers();
            self.pump();
            if let Some(clean) = self.drain_step() {
                return Ok(clean);
            }
        }
    }

    fn handle(&mut self, event: &Event) {
        match event.token {
            WAKER => {
                self.waker.clear();
                self.take_messages();
            }
            // What has completed is taken in every turn.
            BACKEND => {}
            CHANGES => {
                if let Some(changes) = &self.changes {
                    changes.clear();
                }
                self.next_refresh = 0;
            }
            asking if asking & ASKING != 0 => self.handle_asking(asking & !ASKING),
            // Room to write is used in every turn. A peer that will never read an answer is gone.
            conn if conn & WRITE_SIDE != 0 && event.hangup => self.drop_connection(conn as u32),
            conn if conn & WRITE_SIDE != 0 => {}
            conn if event.readable => self.handle_ready(conn as u32),
            _ => {}
        }
    }

    /// Takes a turn's part of what the front door has sent.
    fn take_messages(&mut self) {
        for _ in 0..MESSAGES {
            match self.inbox.try_recv() {
                Ok(Message::Arrival(arrival)) => self.arrive(*arrival),
                Ok(Message::Drain) => self.start_drain(),
                Err(_) => return,
            }
        }
        // There may be more.
        self.waker.wake();
    }

    /// Does everything that can be done without waiting.
    fn pump(&mut self) {
        loop {
            self.execute_all();
            let decided = self.decide_all();
            // Last words go before the streams that they are for are closed.
            self.transmit_all();
            let closed = self.take_events();
            let resumes = self.members.values_mut().any(Member::may_resume);
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
            Err(error) => log::line(format_args!("export {}: {error}", self.saved.name)),
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
        let own = [self.rules.next_timeout(), self.drain.timeout(), refresh];
        let due = sessions
            .chain(leaving)
            .chain(own.into_iter().flatten())
            .min();
        due.map(|due| Duration::from_nanos(due.saturating_sub(now)))
    }

    /// Nanoseconds since the worker was made.
    pub(crate) fn now(&self) -> u64 {
        nanoseconds(self.started.elapsed())
    }

    /// The connection is gone, for the session too.
    pub(crate) fn drop_connection(&mut self, id: u32) {
        self.detach(id);
        let Some(conn) = self.conns.remove(&id) else {
            return;
        };
        conn.forget(&self.poller);
        let number = conn.session;
        drop(conn);
        if let Some(member) = self.members.get_mut(&number) {
            // What was in its queue is free.
            member.let_go_of_sent();
        }
        self.forget_remains(number);
    }

    /// Gives back what session `number` had, if it is over and none of its connections is left.
    pub(crate) fn forget_remains(&mut self, number: u64) {
        let has_it = |conn: &Conn| conn.session == number;
        if self.remains.contains_key(&number) && !self.conns.values().any(has_it) {
            self.remains.remove(&number);
            // Not before: a connection is known by the number.
            self.directory.remove(number);
        }
    }

    /// The session has the connection no more; the stream may still carry last words.
    pub(crate) fn detach(&mut self, id: u32) {
        let now = self.now();
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        conn.framed.drop_place();
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
                log::line(format_args!(
                    "export {}: its state can't be saved: {error}",
                    self.saved.name
                ));
                false
            }
        }
    }
}

pub(crate) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
