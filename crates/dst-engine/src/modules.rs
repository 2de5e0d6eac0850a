//! The modules of the engine, in a file of their own so that the kernel module can take them in as one module of its
//! crate (there is no other difference between the two).

use super::proto;

pub mod client;
pub mod frame;
pub mod rx;
pub mod selfcheck;
pub mod server;
pub mod window;
