//! Connections come and go: when to connect, what becomes of a stream that breaks.
//!
//! Attempts are spaced by jittered exponential backoff, for each connection by itself, which starts anew only when a request has
//! been answered over it: a server that accepts and then breaks is not hammered. A server that said it drains is tried
//! again at once. While no connection lives only the first is tried; the others follow it.

use std::time::Duration;

use dst_engine::client::MAX_CONNECTIONS;
use dst_ids::random;
use dst_net::{Backoff, Framed};
use dst_proto::Role;

use crate::conn::{Conn, Piece};
use crate::driver::Driver;

/// The waits between attempts.
const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(5);
const LONGEST_LOCAL: Duration = Duration::from_millis(500);

/// Attempts to connect one index.
pub(crate) struct Attempts {
    pub backoff: Backoff,
    /// No attempt before this time, nanoseconds.
    pub not_before: u64,
    /// The connector has one.
    under_way: bool,
}

impl Attempts {
    /// A server on this machine can be tried often: it costs nobody anything.
    pub fn new(local: bool) -> Self {
        let longest = if local { LONGEST_LOCAL } else { LONGEST };
        Self {
            backoff: Backoff::new(SHORTEST, longest),
            not_before: 0,
            under_way: false,
        }
    }
}

impl Driver {
    /// Starts the connection attempts that are due.
    pub(crate) fn start_connecting(&mut self) {
        let now = self.now();
        for index in 0..MAX_CONNECTIONS {
            if self.attempts[index].not_before <= now && self.wants_attempt(index) {
                self.attempts[index].under_way = true;
                self.connector.request(index as u64);
            }
        }
    }

    /// When the next attempt is due; `None` if none is wanted.
    pub(crate) fn next_connect(&self) -> Option<u64> {
        let wanted = (0..MAX_CONNECTIONS).filter(|index| self.wants_attempt(*index));
        wanted.map(|index| self.attempts[index].not_before).min()
    }

    fn wants_attempt(&self, index: usize) -> bool {
        self.conns[index].is_none()
            && !self.attempts[index].under_way
            && (index == 0 || self.engine.session.live_connections() > 0)
            && self.engine.session.wants_connection(index as u16)
    }

    /// Takes what the connector has achieved.
    pub(crate) fn take_connected(&mut self) {
        self.waker.clear();
        while let Some((token, outcome)) = self.connector.poll() {
            let index = token as u16;
            self.attempts[usize::from(index)].under_way = false;
            match outcome {
                Ok(stream) => {
                    if !stream.is_trusted() && !self.options.insecure {
                        let peer = stream.peer();
                        let why =
                            format!("{peer} is another machine, and --insecure was not given");
                        self.retry_later(index, Some(why));
                    } else if self.engine.session.wants_connection(index) {
                        self.adopt(index, Framed::new(stream, Role::Server));
                    }
                }
                Err(error) => self.retry_later(index, Some(error.to_string())),
            }
        }
    }

    fn adopt(&mut self, index: u16, framed: Framed<Piece>) {
        let now = self.now();
        let stream = self.engine.session.handle_connected(index, now);
        match Conn::new(framed, stream, &self.poller, u64::from(index)) {
            Ok(conn) => self.conns[usize::from(index)] = Some(conn),
            Err(error) => {
                self.lost(index);
                self.retry_later(index, Some(error.to_string()));
            }
        }
    }

    /// The connection is broken, or must be closed: nothing of it is left afterwards.
    pub(crate) fn drop_connection(&mut self, index: u16, why: Option<String>) {
        if let Some(conn) = self.conns[usize::from(index)].take() {
            conn.forget(&self.poller);
        }
        self.lost(index);
        self.retry_later(index, why);
    }

    fn lost(&mut self, index: u16) {
        let engine = &mut self.engine;
        engine
            .session
            .handle_lost(&mut engine.slots, &mut engine.retained, index);
    }

    /// The next attempt at connection `index` waits.
    fn retry_later(&mut self, index: u16, why: Option<String>) {
        let now = self.now();
        let attempts = &mut self.attempts[usize::from(index)];
        let wait = attempts.backoff.next(u64::from_le_bytes(random()));
        let wait = u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX);
        attempts.not_before = now.saturating_add(wait);
        if why.is_some() {
            self.message = why;
        }
    }
}
