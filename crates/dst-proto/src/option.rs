//! The values of the options of version 1 (PROTOCOL.md section 3.3), one file for each group that belongs together.

mod blocks;
mod export;
mod fixed;
mod holder;
mod session;
mod terms;
mod text;

pub mod number;

pub use blocks::{
    Extent, ExtentKind, Extents, SlotEntry, SlotState, Slots, MAX_EXTENTS, MAX_SLOTS,
};
pub use export::{ExportState, Geometry, Listed};
pub use fixed::{Nonce, Value, Wait};
pub use holder::{Expect, Holder, Mode, Retained};
pub use session::{Group, Join, Proof, SessionGrant};
pub use terms::{DigestChoice, Digests, Limits, Times};
pub use text::{ClientName, ExportName, Message};
