//! One connection as the session sees it.
//!
//! ```text
//! Down --connected--> Hello --server's HELLO--> Opening --OPENED / JOINED--> Live
//!   ^___________________|__________________________|_________lost____________|
//! ```
//!
//! Any received byte is a sign of life. After the keepalive time without one a PING goes out; after four times that long
//! the connection is closed. Opening may take longer: the server settles and flushes before it grants.

use super::event::CloseReason;
use super::NONE;

/// Longest time from the start of a stream to OPENED or JOINED, nanoseconds.
const OPEN_TIMEOUT: u64 = 20_000_000_000;
/// Silence of so many keepalive times ends a connection.
const SILENT_KEEPALIVES: u64 = 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Link {
    #[default]
    Down,
    Hello,
    Opening,
    Live,
}

#[derive(Debug)]
pub(super) struct Conn {
    pub link: Link,
    /// Counts streams, to tell events of an older one.
    pub stream: u32,
    /// Generation of the newest JOIN (or OPEN) of this index in this session.
    pub generation: u32,
    /// JOIN went out, not OPEN.
    pub joining: bool,
    pub replayed_owed: bool,
    /// Id of a PING to answer.
    pub pong_owed: Option<u64>,
    pub ping_owed: bool,
    ping_out: bool,
    last_heard: u64,
    /// The slot whose payload is arriving, and whether more pieces follow this one.
    pub receiving: u16,
    pub receiving_len: u32,
    pub receiving_more: bool,
    pub draining: bool,
    draining_notice: bool,
    close: Option<CloseReason>,
    closing: bool,
}

impl Default for Conn {
    fn default() -> Self {
        Self {
            link: Link::Down,
            stream: 0,
            generation: 0,
            joining: false,
            replayed_owed: false,
            pong_owed: None,
            ping_owed: false,
            ping_out: false,
            last_heard: 0,
            receiving: NONE,
            receiving_len: 0,
            receiving_more: false,
            draining: false,
            draining_notice: false,
            close: None,
            closing: false,
        }
    }
}

impl Conn {
    pub fn is_down(&self) -> bool {
        self.link == Link::Down
    }

    /// Requests may go out and replies be acted upon.
    pub fn is_live(&self) -> bool {
        self.link == Link::Live && !self.closing
    }

    /// Whether `stream` is the one in use.
    pub fn is_current(&self, stream: u32) -> bool {
        !self.is_down() && !self.closing && self.stream == stream
    }

    /// A new stream.
    pub fn start(&mut self, now: u64) -> u32 {
        *self = Self {
            link: Link::Hello,
            stream: self.stream.wrapping_add(1),
            generation: self.generation,
            last_heard: now,
            ..Self::default()
        };
        self.stream
    }

    pub fn reset(&mut self) {
        *self = Self {
            stream: self.stream,
            generation: self.generation,
            ..Self::default()
        };
    }

    /// Asks the driver, once, to close the stream.
    pub fn close(&mut self, reason: CloseReason) {
        if !self.is_down() && !self.closing {
            self.closing = true;
            self.close = Some(reason);
        }
    }

    pub fn take_close(&mut self) -> Option<CloseReason> {
        self.close.take()
    }

    pub fn drain(&mut self) {
        self.draining_notice = !self.draining;
        self.draining = true;
    }

    pub fn take_draining_notice(&mut self) -> bool {
        core::mem::take(&mut self.draining_notice)
    }

    pub fn heard(&mut self, now: u64) {
        self.last_heard = now;
        self.ping_out = false;
    }

    /// When [`Self::check`] has something to do; `u64::MAX` for never.
    pub fn due(&self, keepalive: u64) -> u64 {
        let wait = match self.link {
            Link::Down => return u64::MAX,
            _ if self.closing => return u64::MAX,
            Link::Hello | Link::Opening => OPEN_TIMEOUT,
            Link::Live if self.ping_out => keepalive.saturating_mul(SILENT_KEEPALIVES),
            Link::Live => keepalive,
        };
        self.last_heard.saturating_add(wait)
    }

    /// Asks for a sign of life, or gives up, where it is time to.
    pub fn check(&mut self, now: u64, keepalive: u64) {
        if now < self.due(keepalive) {
            return;
        }
        if self.link == Link::Live && !self.ping_out {
            self.ping_out = true;
            self.ping_owed = true;
            // The clock may have jumped over both limits at once.
            if now < self.due(keepalive) {
                return;
            }
        }
        self.close(CloseReason::Silent);
    }
}
