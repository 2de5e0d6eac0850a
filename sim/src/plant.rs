//! Planted faults: ways to break a guarantee on purpose, so that it is seen that the checks notice. Each is sabotage in the
//! simulated drivers or the disk; the engines are the ones that ship.

use clap::ValueEnum;

/// One way to break things.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum)]
pub enum Plant {
    /// The server answers FLUSH without flushing.
    FlushDoesNothing,
    /// The server writes FUA writes like others.
    FuaIgnored,
    /// A fresh session replays nothing of what the client retained.
    NoReplay,
    /// A fresh session replays writes of the same range in the wrong order.
    ReplayOutOfOrder,
    /// A JOIN makes the server forget the outcomes of its slots.
    NoDedup,
    /// The server goes on reading connections of a session that a fresh one has replaced, as if they were the new one's.
    OldConnectionStillRead,
    /// The server lets a connection with an old generation take the place of a newer one.
    GenerationIgnored,
    /// The client has overlapping writes out at once.
    OverlappingWritesNotHeldBack,
    /// The client sends barriers as ordinary requests.
    BarrierIgnored,
    /// The server answers ABORT and grants sessions without flushing.
    SettledWithoutFlush,
    /// The server forgets holder and epoch when it restarts.
    LeaseNotPersisted,
    /// A sync error is taken for success.
    SyncErrorIgnored,
    /// The server executes payloads with bad digests.
    BadDigestAccepted,
    /// The server keeps its incarnation through a power cut.
    IncarnationKept,
    /// A server in a new incarnation serves readers before the holder has replayed.
    GateIgnored,
    /// A successor does not know which ids of its predecessor may be open.
    OrphansForgotten,
    /// A successor does not know what its predecessor had retained.
    RetainedNotRecorded,
    /// The client tells its user that a request is complete before its record says so.
    ToldBeforeRecorded,
    /// The client frees a request's memory while a connection still sends it.
    MemoryFreedEarly,
}

impl Plant {
    /// How many seeds may pass before it must have been noticed.
    pub const BOUND: u64 = 2000;

    /// The name on the command line.
    pub fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }
}
