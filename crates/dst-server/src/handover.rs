//! Hand-over: a command that was started with a stream gives it to the server that runs already.
//!
//! A command transport (`ssh HOST dst serve --stdio PATH`) starts a process for each connection. Were each a server of its
//! own, a file that only one server may have would allow one connection, and the sessions would be gone with the process.
//! So each server that serves a file has a *desk*: a socket in a directory of its user, by the name of the file's
//! [`FileKey`](dst_store::FileKey). The command, here the *carrier*, sends its two standard streams through it and stays only
//! so that whoever started it sees when the stream has ended.
//!
//! ```text
//! carrier                                        desk (thread `handover` of the server)
//!    │── connects, SOCK_SEQPACKET ────────────────> same user? no: closed
//!    │── Request, two descriptors ────────────────> all that is asked for is served here, as asked? no: Refused
//!    │<─ Answer::Taken(process) ───────────────────  the streams go to the front door like an accepted one
//!    ⋮                                               ⋮ the stream is served
//!    │<─ ENDED, closed ────────────────────────────  the server has closed the stream
//! ```
//!
//! # Invariants
//! - A stream lives as long as its carrier: where that is killed the server sees the socket's end and closes the stream
//!   ([`stream`]). So killing the command ends the connection, as it does where the command is the server; but not the
//!   server, nor the session.
//! - A stream sees the exports that its carrier named, under the names that it gave them, and no others: the key of an ssh
//!   client may be bound to one command, that is to one file (`Scope` in [`crate::front`]).
//! - Only processes of the same user meet: the directory is that user's alone ([`place`]), and both ends ask the kernel who the
//!   other is.
//! - Who has the lock of the file has the desk of its key: what is found in its place is a dead server's, and is replaced.
//! - Nothing that comes through a desk stops the server: a packet that is no request, or descriptors that are no stream, are
//!   answered with `Refused` or by closing.
//!
//! **Blocking.** The server makes the streams non-blocking, which is a property of the open file, and so of every process that
//! has it. The carrier and whoever started it with these very descriptors are the only ones: the other ends of a pipe or
//! socket pair are open files of their own, and terminals are refused. The mode is put back when the stream ends; a server
//! that is killed can't do that.
//!
//! A server that was started for a hand-over only (`Config::hand_over` with `ends_unused`) ends in order as soon as it has no
//! stream and no session: sessions that were left without a word stay for the session time.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub(crate) mod desk;
mod offer;
mod place;
pub(crate) mod stream;

pub use offer::{offer, Carrier, Offered};
pub use place::{check_directory, log_path};

/// What a request begins with; changes with its form.
const MAGIC: [u8; 8] = *b"dsthand1";
/// Longest packet in bytes.
const PACKET: usize = 16 << 10;
/// The last packet of a stream that the server has closed.
const ENDED: &[u8] = b"ended";

/// How a server takes streams over.
#[derive(Debug, Clone)]
pub struct HandOver {
    /// The directory of the sockets: the same for all servers and commands of a user. Made if it is not there.
    pub directory: PathBuf,
    /// End in order once there is neither a stream nor a session.
    pub ends_unused: bool,
}

/// What a carrier wants for its stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// What the stream may use. The server has to serve all of them.
    pub exports: Vec<Asked>,
    /// Where the state has to be, if that was said.
    pub state_dir: Option<PathBuf>,
}

/// An export as a carrier names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// The name for the stream's client.
    pub name: String,
    /// Text of the file's key.
    pub key: String,
    /// The path, for messages.
    pub path: String,
    /// Whether writes are to be refused.
    pub read_only: bool,
    /// The logical block, if one was asked for.
    pub block_size: Option<u32>,
}

/// What a desk answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Answer {
    /// The streams are the server's, this process.
    Taken(u32),
    /// They are not, and why.
    Refused(String),
}
