//! Front ends: how a DST device reaches the local system.
//!
//! A [`FrontEnd`] turns what the kernel asks of a device into [`dst_client::Request`]s and carries the answers back. It
//! never blocks and spawns nothing: one thread per device drives it together with the sockets, and whatever can block
//! (mounting, partition scans, detaching) is handed out as [`Work`] for another thread, because that work does I/O on the
//! very device that the first thread serves.
//!
//! ```no_run
//! # fn answer(_: dst_client::Request) -> dst_client::Completion { unreachable!() }
//! # fn wait_until_readable(_: std::os::fd::BorrowedFd<'_>) {}
//! # fn serve(config: dst_blockdev::Config) -> Result<(), Box<dyn std::error::Error>> {
//! let pool = dst_buf::Pool::new(64 << 20);
//! let mut device = dst_blockdev::open(dst_blockdev::Choice::Auto, &config)?;
//! let start = device.start();
//! std::thread::spawn(move || println!("{}", start().expect("a device").path.display()));
//! let mut requests = Vec::new();
//! while !device.stopped() {
//!     wait_until_readable(device.fd());
//!     device.take(&mut requests, &pool)?;
//!     while let Some(request) = requests.pop() {
//!         device.complete(answer(request), &mut requests);
//!     }
//!     device.flush()?;
//! }
//! # Ok(())
//! # }
//! ```
//!
//! | file | subject |
//! | --- | --- |
//! | `frontend.rs` | the trait and what it speaks in |
//! | `auto.rs` | which front ends this machine has, and why not |
//! | `ublk/` | a block device by the kernel's ublk driver |
//! | `fuse/` | one file through `/dev/fuse`, a loop device on top of it for root |
//! | `nbd/` | a block device by the kernel's nbd driver |
//! | `runtime.rs` | names, directories under `/run/dst`, the lock that tells a live front end from a dead one |
//! | `geometry.rs` | what every front end asks of a device's size |
//! | `slots.rs` | requests by tag |
//! | `node.rs` | the link `/dev/dst/NAME` |
//! | `usage.rs`, `mountinfo.rs` | who uses a block device |
//! | `module.rs` | kernel modules |
//! | `namespace.rs` | the agent's mount namespace |
//! | `process.rs` | what an agent does to itself so that the machine can't deadlock on it |

mod auto;
mod error;
mod frontend;
pub mod fuse;
mod geometry;
mod module;
mod mountinfo;
mod namespace;
pub mod nbd;
mod node;
mod process;
mod runtime;
mod slots;
pub mod ublk;
mod usage;

pub use auto::{
    abort, check, cleanup_stale, open, recover, recoverable, user_of_recoverable, Choice,
};
pub use error::{Error, ErrorKind};
pub use frontend::{Config, FrontEnd, Node, NodeKind, Work, IN_FLIGHT};
pub use namespace::leave_mounts;
pub use node::NODE_DIR;
pub use process::{prepare_agent, reserve_heap, Preparation};
pub use runtime::{is_root, runtime_dir, runtime_root, valid_name};
