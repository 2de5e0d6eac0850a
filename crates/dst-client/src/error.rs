//! Why a device could not be opened, and how requests fail.

use std::io;
use std::time::Duration;

use dst_engine::client::{FailReason, Failure};
use dst_proto::Status;

use crate::IoError;

/// Why a device could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The URL names no export.
    #[error("the URL names no export; `dst list` shows what the server has")]
    NoExportNamed,
    /// The server has no export of that name.
    #[error("the server has no export of that name: {0}")]
    NoExport(String),
    /// Another client writes.
    #[error("another client writes: {message}")]
    Busy {
        /// The server's words.
        message: String,
        /// When trying again may help.
        wait: Option<Duration>,
    },
    /// The server does not let this client in.
    #[error("not admitted: {0}")]
    NotAdmitted(String),
    /// Plaintext to another machine was not asked for.
    #[error("{0} is another machine, and the connection would not be encrypted; `--insecure` on both ends allows it")]
    Insecure(String),
    /// No connection in time.
    #[error("no connection to {peer}{}: {cause}", within(*seconds))]
    Unreachable {
        /// The server.
        peer: String,
        /// How long it was tried; 0: once.
        seconds: u64,
        /// The last error.
        cause: String,
    },
    /// The export or the server cannot be used by this client.
    #[error("the server refused: {status} ({message})")]
    Refused {
        /// The server's status.
        status: Status,
        /// The server's words.
        message: String,
    },
    /// The other end speaks no version of the protocol that this one does, or is no server.
    #[error("the other end is no server that this client understands: {0}")]
    Incompatible(String),
    /// The server's terms make no device.
    #[error("the export can't be used: {0}")]
    Unusable(String),
    /// The memory that [`crate::Options::reserve`] asks for is not there.
    #[error("can't set {mib} MiB of memory aside for the device: {source}")]
    NoMemory {
        /// How much it takes, in MiB.
        mib: u64,
        /// What the system said.
        source: io::Error,
    },
    /// Something on this machine failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl OpenError {
    /// A refusal by the server as an error.
    pub(crate) fn refused(status: Status, message: String, wait: Option<Duration>) -> Self {
        match status {
            Status::NO_EXPORT => Self::NoExport(message),
            Status::LEASE_BUSY => Self::Busy { message, wait },
            Status::NOT_ADMITTED => Self::NotAdmitted(message),
            _ => Self::Refused { status, message },
        }
    }
}

/// What a front end is told of a failed request.
pub(crate) fn io_error(failure: Failure, reason: Option<FailReason>) -> IoError {
    match failure {
        Failure::Deadline => IoError::Deadline,
        Failure::Status(status) => match status {
            Status::RETRY => IoError::Digest,
            Status::NO_SPACE => IoError::NoSpace,
            Status::RANGE | Status::INVALID => IoError::OutOfRange,
            Status::READ_ONLY => IoError::ReadOnly,
            Status::UNSUPPORTED => IoError::Unsupported,
            Status::LEASE_LOST => IoError::LeaseLost,
            _ => IoError::Backend,
        },
        Failure::DeviceFailed => match reason {
            Some(FailReason::LeaseLost | FailReason::NotAdmitted) => IoError::LeaseLost,
            Some(FailReason::ExportChanged | FailReason::GeometryChanged) => IoError::IdentityLost,
            Some(FailReason::WritesLost | FailReason::ReplayFailed(_) | FailReason::SyncFailed) => {
                IoError::WritesLost
            }
            Some(FailReason::Refused(Status::READ_ONLY)) => IoError::ReadOnly,
            Some(FailReason::Refused(_)) => IoError::IdentityLost,
            Some(FailReason::Forced) | None => IoError::Stopped,
        },
    }
}

/// Why the device failed for good, for people.
pub(crate) fn fail_text(reason: FailReason) -> String {
    match reason {
        FailReason::ExportChanged => {
            "the server now has another disk under this name; this device is not connected to it"
                .into()
        }
        FailReason::LeaseLost => "another client has been let in to write".into(),
        FailReason::NotAdmitted => "the server does not admit this client any more".into(),
        FailReason::WritesLost => {
            "the server lost writes that had been acknowledged but not flushed, and without \
             retention (--retain off) they can't be replayed"
                .into()
        }
        FailReason::ReplayFailed(status) => {
            format!("the server lost writes that had been acknowledged, and replaying them failed: {status}")
        }
        FailReason::SyncFailed => "the server could not make writes durable".into(),
        FailReason::GeometryChanged => {
            "the export came back smaller, with other block sizes or with lower limits".into()
        }
        FailReason::Refused(Status::READ_ONLY) => {
            "the server offers the export read-only now".into()
        }
        FailReason::Refused(status) => {
            format!("the server does not take the device any more: {status}")
        }
        FailReason::Forced => "detached by force".into(),
    }
}
/// Of how long a connection was tried.
fn within(seconds: u64) -> String {
    match seconds {
        0 => String::new(),
        seconds => format!(" within {seconds} s"),
    }
}
