//! Connections come and go: when to connect, what becomes of a stream that breaks.
//!
//! Attempts are spaced by jittered exponential backoff, which starts anew only when a request has completed: a server that
//! accepts and then breaks is not hammered. A server that said it drains is tried again at once.

use dst_engine::client::MAX_CONNECTIONS;
use dst_engine::rx::Receiver;
use dst_net::Link;
use dst_proto::Role;

use crate::conn::Conn;
use crate::driver::Driver;
use crate::identity::random;

/// Longest head of a frame behind its header: options and digests.
const AREA: usize = dst_proto::MAX_OPTIONS as usize + dst_proto::MAX_DIGEST_AREA as usize;

impl Driver {
    /// Starts the connection attempts that are due.
    pub(crate) fn start_connecting(&mut self) {
        if self.now() < self.not_before {
            return;
        }
        for index in 0..MAX_CONNECTIONS {
            if self.wants_attempt(index) {
                self.connecting[index] = true;
                self.connector.request(index as u64);
            }
        }
    }

    /// When the next attempt is due; `None` if none is wanted.
    pub(crate) fn next_connect(&self) -> Option<u64> {
        (0..MAX_CONNECTIONS)
            .any(|index| self.wants_attempt(index))
            .then_some(self.not_before)
    }

    fn wants_attempt(&self, index: usize) -> bool {
        self.conns[index].is_none()
            && !self.connecting[index]
            && self.engine.session.wants_connection(index as u16)
    }

    /// Takes what the connector has achieved.
    pub(crate) fn take_connected(&mut self) {
        self.waker.clear();
        while let Some((token, outcome)) = self.connector.poll() {
            let index = token as u16;
            self.connecting[usize::from(index)] = false;
            match outcome {
                Ok(stream) => {
                    if !stream.is_trusted() && !self.options.insecure {
                        let peer = stream.peer();
                        let why =
                            format!("{peer} is another machine, and --insecure was not given");
                        self.retry_later(Some(why));
                    } else if self.engine.session.wants_connection(index) {
                        self.adopt(index, Link::new(stream));
                    }
                }
                Err(error) => self.retry_later(Some(error.to_string())),
            }
        }
    }

    fn adopt(&mut self, index: u16, link: Link) {
        let now = self.now();
        let stream = self.engine.session.handle_connected(index, now);
        let receiver = Receiver::new(vec![0; AREA].into_boxed_slice(), Role::Server);
        match Conn::new(link, receiver, stream, &self.poller, u64::from(index)) {
            Ok(conn) => self.conns[usize::from(index)] = Some(conn),
            Err(error) => {
                self.lost(index);
                self.retry_later(Some(error.to_string()));
            }
        }
    }

    /// The connection is broken, or must be closed: nothing of it is left afterwards.
    pub(crate) fn drop_connection(&mut self, index: u16, why: Option<String>) {
        if let Some(conn) = self.conns[usize::from(index)].take() {
            conn.forget(&self.poller);
        }
        self.lost(index);
        self.retry_later(why);
    }

    fn lost(&mut self, index: u16) {
        let engine = &mut self.engine;
        engine
            .session
            .handle_lost(&mut engine.slots, &mut engine.retained, index);
    }

    /// The next attempt waits.
    pub(crate) fn retry_later(&mut self, why: Option<String>) {
        let wait = self.backoff.next(u64::from_le_bytes(random()));
        let wait = u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX);
        self.not_before = self.now().saturating_add(wait);
        if why.is_some() {
            self.message = why;
        }
    }
}
