//! The client's half of a session: one device, one export, one or more connections.
//!
//! Four parts that a driver can borrow apart: [`Slot`]s (one transaction each), [`super::rx::Receiver`] (the framing of
//! one connection), [`Session`] (ids, credit, barriers, phases: every method is short) and [`Retained`] (acknowledged
//! writes that are not durable yet).
//!
//! # Driving it
//!
//! * **Getters**: [`Session::geometry`], [`Session::stats`], [`Session::phase`], [`Session::in_flight`], ...
//! * **Mutators**, for the device: [`Session::submit`], [`Session::close`], [`Session::fail`].
//! * **`handle_*`**, for what happened: [`Session::handle_connected`], [`Session::handle_hello`],
//!   [`Session::handle_frame`] (and [`Session::payload_done`]), [`Session::handle_sent`], [`Session::handle_lost`],
//!   [`Session::handle_timeout`].
//! * **`poll_*`**, for what to do next: [`Session::poll_event`] until it has nothing, [`Session::poll_transmit`] for each
//!   connection that has room to send, [`Session::wants_connection`] for each index,
//!   [`Session::next_timeout`].
//!
//! After any mutator or `handle_*`, call the `poll_*` methods before sleeping.
//!
//! # Phases
//!
//! ```text
//! Opening ---OPENED---> Replaying ---all acknowledged, REPLAYED sent---> Live
//!    ^                      |                                            |
//!    |______SESSION_LOST____|____________________SESSION_LOST____________|
//!
//! any --EXPORT_CHANGED, LEASE_LOST, writes lost, ...--> Failed; Closed if it was to be closed and nothing is at stake
//! Live --close()--> Closing --answer--> Closed
//!                         |--SESSION_LOST--> Opening, and from Replaying to Closing
//! ```
//!
//! A session that a dead process has left begins in Live or in Opening: see `adopt.rs`, and `record.rs` for what it leaves.
//!
//! While a session is known and no connection lives, the phase stays: requests wait and go on after a JOIN.
//!
//! # Invariants
//!
//! * A request (other than a replay) takes its id only in phases Live and Closing, with no ABORT open, with credit and room in the retention, and with no
//!   open write that it overlaps; ids have no gap within a session.
//! * While a barrier waits for its id nothing behind it takes one.
//! * A request completes only when no socket refers to its memory, in the order that barriers ask for.
//! * A FLUSH succeeds only for writes that are durable: those acknowledged before it took its id.
//! * In phase Replaying nothing but replays is sent.

mod admit;
mod adopt;
mod config;
mod conn;
mod deadline;
mod event;
mod list;
mod liveness;
mod open;
mod receive;
mod record;
mod replay;
mod retained;
mod send;
mod session;
mod slot;
#[cfg(test)]
mod tests;

pub use super::frame::seal;
pub use config::Config;
pub use event::{CloseReason, Event, FailReason, Phase, Stats};
pub use open::{Greeting, Names};
pub use receive::Take;
pub use record::{Cells, Record, Unfit, Words};
pub use retained::{Entries, Entry, Retained};
pub use send::{Payload, Transmit};
pub use session::Session;
pub use slot::{Failure, Request, Slot, Source};

/// No slot, no connection.
pub const NONE: u16 = u16::MAX;

/// The most connections of one session.
pub const MAX_CONNECTIONS: usize = 8;

/// Slots, right below the highest one, that only replays use.
pub const REPLAY_SLOTS: u16 = 8;

/// How many of `slots` wire slots the driver may submit requests in: the first ones. The rest are for replays and for the
/// session's own FLUSH.
pub const fn user_slots(slots: u16) -> u16 {
    slots.saturating_sub(REPLAY_SLOTS).saturating_sub(1)
}
