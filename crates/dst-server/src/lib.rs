//! The DST server: exports, sessions and connections over real transports.
//!
//! One thread accepts streams and learns what they want; one thread for each export runs everything of it: the backend, the
//! sessions, their connections. All decisions are `dst-engine`'s; this crate moves bytes, keeps time and remembers on
//! stable storage.

mod admit;
mod asking;
mod budget;
mod changes;
mod config;
mod conn;
mod decide;
mod drain;
mod execute;
mod frames;
mod front;
mod guard;
pub mod handover;
mod listing;
mod log;
mod member;
mod port;
mod receive;
mod record;
mod reply;
mod server;
mod start;
mod worker;

pub use config::{Config, ExportConfig, StartError};
pub use server::{ExportInfo, Handle, Server, Summary};
