//! The modules of the wire format, the same list for cargo and for the kernel module.

pub mod blake3;
mod bytes;
pub mod crc32c;
pub mod crc64nvme;
pub mod digest;
pub mod flags;
pub mod frame;
pub mod header;
pub mod hello;
pub mod kind;
pub mod message;
pub mod option;
pub mod options;
pub mod proof;
pub mod selfcheck;
pub mod status;

pub use digest::Algorithm;
pub use flags::{GeometryFlags, OpFlags};
pub use header::{
    Credit, Header, HeaderError, HEADER_LEN, MAX_DIGEST_AREA, MAX_OPTIONS, MAX_PAYLOAD, NO_SLOT,
};
pub use hello::{Agreed, Hello, HelloError, Role, HELLO_LEN, HELLO_MAX};
pub use kind::Kind;
pub use message::{
    Aborted, BlockStatus, Changed, JoinRequest, Joined, ListReply, ListRequest, OpenRequest,
    Opened, Refusal,
};
pub use option::{
    ClientName, DigestChoice, Digests, Expect, ExportName, ExportState, Extent, ExtentKind,
    Extents, Geometry, Group, Holder, Join, Limits, Listed, Message, Mode, Proof, Retained,
    SessionGrant, SlotEntry, SlotState, Slots, Times, MAX_EXTENTS, MAX_SLOTS,
};
pub use options::{OptionError, OptionReader, OptionWriter, RawOption};
pub use status::{Outcome, Status};
