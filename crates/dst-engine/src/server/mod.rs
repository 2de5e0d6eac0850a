//! The server's half: what becomes of requests that arrive, and who may send them.
//!
//! Parts that a driver can borrow apart: [`Slot`]s (one transaction each, lent to every call), [`super::rx::Receiver`] (the
//! framing of one connection), [`Session`] (one client's use of an export; outlives connections) and [`Export`] (lease,
//! incarnation, admission). Nothing of it holds payload, waits, or allocates: all memory is lent.
//!
//! # Driving a session
//!
//! * **Getters**: [`Session::credit`], [`Session::is_idle`], [`Session::settled`], [`Session::last_heard`], ...
//! * **What came in**: [`Session::handle_received`] for any bytes; [`Session::handle_request`] for each frame, which answers
//!   where the payload goes ([`Take`]); [`Session::payload_wanted`] before each part of it is put there and
//!   [`Session::payload_done`] at its end; [`Session::join`] with [`Session::slot_entries`]; [`Session::conn_lost`];
//!   [`Session::executed`] for each result of the backend; [`Session::handle_timeout`].
//! * **Mutators**: [`Session::settle`], [`Session::probe`], [`Session::drain`], [`Session::set_gate`],
//!   [`Session::set_geometry`], [`Session::set_credit`], [`Session::closed`].
//! * **What to do next**: [`Session::poll_execute`] until it has nothing; [`Session::poll_reply`] for each connection that
//!   has room to send; [`Session::poll_event`] until it has nothing; [`Session::next_timeout`].
//!
//! After any of the second or third kind call the `poll_*` methods, in this order, before sleeping. For each slot the driver
//! keeps at most one thing: what is received for a WRITE (until it is executed), what was read (until its last piece has
//! been sent), or the extents of a BLOCK STATUS (until they are sent). [`Take::Payload`] and [`Execute`] replace it, a last
//! [`Piece`] and [`Event::Drop`] end it.
//!
//! # Driving an export
//!
//! An OPEN goes to [`Export::open`], then [`Export::poll_action`] says what to do until there is nothing; each [`Action`]
//! names the call that reports its end. What sessions tell about themselves ([`Event`]) names the export's method to pass it
//! on to. Before [`Export::open`] and [`Export::handle_timeout`], and when a session has settled, [`Export::heard`] learns
//! the writer's last sign of life. A sync call that failed goes to [`Export::sync_failed`] first, a FLUSH or FUA that
//! succeeded to [`Export::sync_succeeded`].
//!
//! | event | then |
//! | --- | --- |
//! | a frame OPEN | [`Export::open`]; granted: [`Session::new`], gate by [`Export::is_gated`], answer OPENED |
//! | a frame JOIN | unknown number or bad proof: SESSION_LOST; else [`Session::join`], answer JOINED |
//! | a sync failed | status from [`Export::sync_failed`] to [`Session::executed`], then the actions |
//! | [`Event::Over`] | forget session and slots |

mod abort;
mod admission;
mod ending;
mod execute;
mod export;
mod join;
mod lane;
mod lease;
mod list;
mod liveness;
mod order;
mod receive;
mod refuse;
mod reply;
mod session;
mod slot;
#[cfg(test)]
mod tests;

pub use admission::Admission;
pub use ending::Event;
pub use execute::Execute;
pub use export::{Action, Entry, Export, ExportConfig, Refused, Table};
pub use join::Entries;
pub use lane::{CloseReason, ConnId, Lane};
pub use lease::Record;
pub use receive::Take;
pub use reply::{seal, Piece, Transmit};
pub use session::{Bits, Config, Lanes, Session};
pub use slot::Slot;

/// How many bytes of a READ go into one frame where nothing else is asked for.
pub const PIECE: u32 = 128 << 10;

/// No slot, no connection.
const NONE: u16 = u16::MAX;
