//! The DST client library: a remote disk as a Rust value.
//!
//! [`Device`] is the disk for programs: it reconnects, resends and replays by itself, in a thread of its own.
//!
//! ```no_run
//! use dst_client::Device;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let disk = Device::connect("dst://localhost/disk")?;
//! println!("{} bytes", disk.geometry().size);
//! disk.write_at(&[1; 4096], 0)?;
//! disk.flush()?; // what was written before survives a power loss of the server
//! let mut block = [0; 4096];
//! disk.read_at(&mut block, 0)?;
//! disk.close()?;
//! # Ok(()) }
//! ```
//!
//! [`Driver`] is what runs inside: one device on one thread, for front ends that bring their own event sources.
//! Everything that decides anything is `dst-engine`; the driver moves bytes, keeps time and connects.

mod conn;
mod connect;
mod device;
mod driver;
mod error;
pub mod identity;
mod keeping;
mod list;
mod options;
mod pump;
mod receive;
pub mod record;
pub mod recover;
pub mod request;
mod status;

pub use device::Device;
pub use driver::{Driver, Turn, USER_TOKEN};
pub use error::OpenError;
pub use list::{list, Listed};
pub use options::Options;
pub use request::*;
pub use status::{Counters, DeviceStatus};
