//! Aligned, pooled, reference-counted I/O buffers.
//!
//! A [`Pool`] hands out [`Buf`]s: memory with one owner, who may write to it. [`Buf::share`] freezes it into a
//! [`Shared`], which is cheap to clone and to slice, so that the same bytes can sit in a socket's output queue, in the
//! client's retention and in a backend's request without a copy. When the last owner goes, the memory returns to the
//! pool it came from; nothing is allocated for a request as long as the pool has a free block of the right class. A pool
//! with a [reserve](Pool::with_reserve) has all the memory from its beginning.
//!
//! ```
//! let pool = dst_buf::Pool::new(8 << 20);
//! let mut buf = pool.get(4096);
//! buf.fill(7);
//! let whole = buf.share();
//! let tail = whole.slice(4000..4096);
//! drop(whole);
//! assert!(tail.iter().all(|byte| *byte == 7));
//! drop(tail);
//! assert_eq!(pool.outstanding_bytes(), 0);
//! ```
//!
//! # States of a block of memory
//!
//! | state | who refers to it | reference count |
//! | --- | --- | --- |
//! | free | the pool's list of its class, or the map of its reserve | 0 |
//! | unique | one [`Buf`] | 1 |
//! | shared | any number of [`Shared`] | their number |
//!
//! Only a unique block is ever written to. [`Shared::try_unique`] is the one way back from shared to unique.

mod block;
mod buf;
mod pool;
mod reserve;
mod shared;

pub use block::ALIGNMENT;
pub use buf::Buf;
pub use pool::{Pool, LARGEST_CLASS};
pub use reserve::Region;
pub use shared::Shared;
