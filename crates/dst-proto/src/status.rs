//! Status codes of replies (PROTOCOL.md section 8) and outcomes of ABORT (section 5.6).

/// The status of a reply; a value that names none is kept as it came and counts as a failure.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Status(pub u16);

impl Status {
    /// Done.
    pub const OK: Status = Status(0);
    /// Payload digest mismatch; no outcome, the id stays open.
    pub const RETRY: Status = Status(1);
    /// Backend error.
    pub const IO: Status = Status(2);
    /// Backend full.
    pub const NO_SPACE: Status = Status(3);
    /// Beyond the end of the export.
    pub const RANGE: Status = Status(4);
    /// Export or session is read-only.
    pub const READ_ONLY: Status = Status(5);
    /// Operation, flag or critical option unknown or not there.
    pub const UNSUPPORTED: Status = Status(6);
    /// Misaligned, empty or too long.
    pub const INVALID: Status = Status(7);
    /// The peer broke the protocol.
    pub const PROTOCOL: Status = Status(8);
    /// A sync failed again before one had succeeded: what was not flushed may be lost.
    pub const SYNC_FAILED: Status = Status(9);
    /// The server no longer knows the session.
    pub const SESSION_LOST: Status = Status(16);
    /// A newer connection of this index has joined.
    pub const STALE_GENERATION: Status = Status(17);
    /// Another export id under this name.
    pub const EXPORT_CHANGED: Status = Status(18);
    /// Another holder was let in.
    pub const LEASE_LOST: Status = Status(19);
    /// Another client writes.
    pub const LEASE_BUSY: Status = Status(20);
    /// No export of this name.
    pub const NO_EXPORT: Status = Status(21);
    /// Key or proof not accepted, or plaintext not allowed.
    pub const NOT_ADMITTED: Status = Status(22);
    /// The server is about to stop.
    pub const DRAINING: Status = Status(23);
    /// Too many sessions or connections.
    pub const LIMIT: Status = Status(24);
    /// Reserved for groups: the part is kept until its group is complete.
    pub const STAGED: Status = Status(25);

    /// Every status of version 1, in ascending order.
    pub const ALL: [Status; 20] = [
        Status::OK,
        Status::RETRY,
        Status::IO,
        Status::NO_SPACE,
        Status::RANGE,
        Status::READ_ONLY,
        Status::UNSUPPORTED,
        Status::INVALID,
        Status::PROTOCOL,
        Status::SYNC_FAILED,
        Status::SESSION_LOST,
        Status::STALE_GENERATION,
        Status::EXPORT_CHANGED,
        Status::LEASE_LOST,
        Status::LEASE_BUSY,
        Status::NO_EXPORT,
        Status::NOT_ADMITTED,
        Status::DRAINING,
        Status::LIMIT,
        Status::STAGED,
    ];

    /// Whether version 1 defines this status.
    #[inline]
    pub fn is_known(self) -> bool {
        matches!(self.0, 0..=9 | 16..=25)
    }

    /// Whether this is success.
    #[inline]
    pub fn is_ok(self) -> bool {
        self.0 == 0
    }

    /// The Linux error number (asm-generic, positive) that a request failed with this status gets; 0 for OK.
    ///
    /// Unknown ones give EPROTO, and so does STAGED, which no client of version 1 may meet.
    pub fn errno(self) -> i32 {
        match self {
            Status::OK => 0,
            Status::RETRY | Status::IO | Status::SYNC_FAILED => 5,
            Status::NO_SPACE => 28,
            Status::RANGE | Status::INVALID => 22,
            Status::READ_ONLY => 30,
            Status::UNSUPPORTED => 95,
            Status::SESSION_LOST
            | Status::STALE_GENERATION
            | Status::EXPORT_CHANGED
            | Status::LEASE_LOST => 116,
            Status::LEASE_BUSY => 16,
            Status::NO_EXPORT => 2,
            Status::NOT_ADMITTED => 13,
            Status::DRAINING => 11,
            Status::LIMIT => 87,
            _ => 71,
        }
    }

    /// The name in PROTOCOL.md, or "unknown status".
    pub fn name(self) -> &'static str {
        match self {
            Status::OK => "OK",
            Status::RETRY => "RETRY",
            Status::IO => "IO",
            Status::NO_SPACE => "NO_SPACE",
            Status::RANGE => "RANGE",
            Status::READ_ONLY => "READ_ONLY",
            Status::UNSUPPORTED => "UNSUPPORTED",
            Status::INVALID => "INVALID",
            Status::PROTOCOL => "PROTOCOL",
            Status::SYNC_FAILED => "SYNC_FAILED",
            Status::SESSION_LOST => "SESSION_LOST",
            Status::STALE_GENERATION => "STALE_GENERATION",
            Status::EXPORT_CHANGED => "EXPORT_CHANGED",
            Status::LEASE_LOST => "LEASE_LOST",
            Status::LEASE_BUSY => "LEASE_BUSY",
            Status::NO_EXPORT => "NO_EXPORT",
            Status::NOT_ADMITTED => "NOT_ADMITTED",
            Status::DRAINING => "DRAINING",
            Status::LIMIT => "LIMIT",
            Status::STAGED => "STAGED",
            _ => "unknown status",
        }
    }
}

impl core::fmt::Debug for Status {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        if self.is_known() {
            f.write_str(self.name())
        } else {
            f.debug_tuple("Status").field(&self.0).finish()
        }
    }
}

impl core::fmt::Display for Status {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.name())
    }
}

/// What became of a request that was aborted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Not executed, and never will be.
    NeverExecuted = 0,
    /// Its range is as it was before.
    Undone = 1,
    /// Its effect stays.
    Kept = 2,
    /// Its range can't be read until it is written again.
    UndoFailed = 3,
    /// Old, new or mixed, and never changing again: what a client says itself when the session was lost.
    UnknownSettled = 4,
}

impl Outcome {
    /// The outcome with this code.
    pub fn from_code(code: u8) -> Option<Outcome> {
        Some(match code {
            0 => Outcome::NeverExecuted,
            1 => Outcome::Undone,
            2 => Outcome::Kept,
            3 => Outcome::UndoFailed,
            4 => Outcome::UnknownSettled,
            _ => return None,
        })
    }

    /// The code on the wire.
    #[inline]
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The words of PROTOCOL.md.
    pub fn name(self) -> &'static str {
        match self {
            Outcome::NeverExecuted => "never executed",
            Outcome::Undone => "undone",
            Outcome::Kept => "kept",
            Outcome::UndoFailed => "undo failed",
            Outcome::UnknownSettled => "unknown, settled",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_lists_exactly_the_known_statuses() {
        let known = (0..=65535u16).map(Status).filter(|s| s.is_known());
        assert!(known.eq(Status::ALL));
        for status in Status::ALL {
            assert_ne!(status.name(), "unknown status");
            assert_eq!(status.errno() == 0, status.is_ok());
        }
        assert_eq!(Status(999).errno(), 71);
    }

    #[test]
    fn outcome_codes_round_trip() {
        for code in 0..=255 {
            match Outcome::from_code(code) {
                Some(outcome) => assert_eq!(outcome.code(), code),
                None => assert!(code > 4),
            }
        }
    }
}
