//! Backends: where an export keeps its bytes.
//!
//! A [`Backend`] takes requests and gives completions and never blocks its caller; how to drive one stands in [`backend`].
//! [`Spec`] reads what a user writes to name an export (`disk.img`, `data=/dev/sdb`, `memory:10G`) and opens it.
//!
//! [`sync`] and [`volatile`] do no I/O: the simulation runs the same code that ships.

pub mod backend;
pub mod blockdev;
mod chunks;
mod create;
pub mod dice;
pub mod disk;
mod done;
mod engine;
pub mod file;
mod identity;
mod key;
mod lock;
pub mod lossy;
mod medium;
pub mod memory;
pub mod null;
pub mod open;
pub mod request;
pub mod resize;
pub mod size;
pub mod spec;
pub mod sync;
mod sync_mark;
mod syscalls;
mod sysfs;
mod target;
mod threads;
mod uring;
pub mod volatile;
mod wake;

pub use backend::{Backend, Identity, Info};
pub use blockdev::open_block_device;
pub use create::create_sparse;
pub use disk::DiskBackend;
pub use file::open_file;
pub use key::FileKey;
pub use lossy::{LossyBackend, LossyOptions};
pub use memory::MemoryBackend;
pub use null::NullBackend;
pub use open::{EngineChoice, OpenError, OpenOptions};
pub use request::{Completion, Extent, ExtentKind, Op, Outcome, Request, StoreError};
pub use resize::{parse_new_size, NewSize};
pub use size::{format_size, parse_size, ParseSizeError};
pub use spec::{ParseSpecError, Source, Spec};
