//! The numbers of the options, without the critical bit.

/// Name of an export.
pub const EXPORT_NAME: u16 = 1;
/// The nonce of the server's HELLO.
pub const NONCE: u16 = 2;
/// Who holds the lease.
pub const HOLDER: u16 = 3;
/// Read-only, sole writer, shared writers.
pub const MODE: u16 = 4;
/// Slots, connections, payload, window, credit.
pub const LIMITS: u16 = 5;
/// Digest algorithms and granule.
pub const DIGESTS: u16 = 6;
/// Export id and epoch that must be unchanged.
pub const EXPECT: u16 = 7;
/// Number and secret of a session.
pub const SESSION: u16 = 8;
/// Session, generation and index of a connection.
pub const JOIN: u16 = 9;
/// Proof of knowing the session's secret.
pub const PROOF: u16 = 10;
/// Id, incarnation and epoch of the export.
pub const EXPORT: u16 = 11;
/// Size, block sizes, flags and limits of the export.
pub const GEOMETRY: u16 = 12;
/// What the server knows of each slot.
pub const SLOTS: u16 = 13;
/// Text for a person.
pub const MESSAGE: u16 = 14;
/// Keepalive, session time, lease time.
pub const TIMES: u16 = 15;
/// What the client will replay.
pub const RETAINED: u16 = 16;
/// Parts of a range.
pub const EXTENTS: u16 = 17;
/// One export of a list.
pub const LISTED: u16 = 18;
/// What became of an aborted request.
pub const OUTCOME: u16 = 19;
/// Name of the client.
pub const CLIENT: u16 = 20;
/// When trying again may help.
pub const WAIT: u16 = 21;
/// Reserved for atomic groups of writes; always critical.
pub const GROUP: u16 = 32;

/// The name of a number that none of these is.
pub const UNKNOWN: &str = "unknown option";

/// The name in PROTOCOL.md, or `UNKNOWN`.
pub fn name(number: u16) -> &'static str {
    match number {
        EXPORT_NAME => "EXPORT_NAME",
        NONCE => "NONCE",
        HOLDER => "HOLDER",
        MODE => "MODE",
        LIMITS => "LIMITS",
        DIGESTS => "DIGESTS",
        EXPECT => "EXPECT",
        SESSION => "SESSION",
        JOIN => "JOIN",
        PROOF => "PROOF",
        EXPORT => "EXPORT",
        GEOMETRY => "GEOMETRY",
        SLOTS => "SLOTS",
        MESSAGE => "MESSAGE",
        TIMES => "TIMES",
        RETAINED => "RETAINED",
        EXTENTS => "EXTENTS",
        LISTED => "LISTED",
        OUTCOME => "OUTCOME",
        CLIENT => "CLIENT",
        WAIT => "WAIT",
        GROUP => "GROUP",
        _ => UNKNOWN,
    }
}
