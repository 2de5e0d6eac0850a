//! What a seed makes of a scenario: the export, the devices, the weather and the faults.

use dst_proto::Algorithm;

use crate::disk::DiskShape;
use crate::network::Weather;
use crate::queue::{MICRO, MILLI, SECOND};
use crate::rng::Rng;

/// Requests that a scenario has at least.
pub const MIN_REQUESTS: u32 = 200;
/// Faults that a scenario has at least.
pub const MIN_FAULTS: usize = 3;

/// What can go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// A stream is cut; both ends notice, sooner or later.
    Cut,
    /// All streams are cut.
    CutAll,
    /// A stream carries nothing any more and nobody is told.
    HalfOpen,
    /// A stream carries nothing for a while.
    Stall,
    /// Bits of what is under way flip.
    Corrupt,
    /// Connection attempts take very long for a while.
    SlowConnect,
    /// The server process is killed and started again, in the same incarnation where that can be known.
    ServerKill,
    /// The same, but nothing proves that the incarnation goes on.
    ServerKillNoProof,
    /// The server is told to stop, and is started again.
    Drain,
    /// The server's machine loses power.
    PowerCut,
    /// Sync calls of the server's disk fail.
    FailSync,
    /// A write or a read of the server's disk fails.
    FailIo,
    /// The server process does nothing for a while.
    FreezeServer,
    /// A client process does nothing for a while.
    FreezeClient,
    /// The writing client process is killed; a new one attaches.
    ClientKill,
    /// The writing client process is killed at any store to its record, or any step that others can see; a successor adopts
    /// its session and is handed its requests again.
    AgentCrash,
    /// The writing client detaches in order; a new one attaches.
    Detach,
    /// Another client wants to write.
    SecondWriter,
    /// Another client wants to write while the first does nothing for longer than its lease.
    Takeover,
    /// A client attaches that only reads.
    Reader,
    /// The export grows.
    Grow,
    /// The server gives less credit, or more.
    Credit,
    /// The first connection of a client breaks again and again, each time under a request.
    Flap,
    /// Connections break under an ABORT; soon after that the server's machine loses power.
    AbortCut,
    /// Sync calls fail until the device has failed.
    DeadDisk,
}

impl FaultKind {
    /// All kinds, with how often each is drawn.
    const WEIGHTS: [(FaultKind, u32); 25] = [
        (FaultKind::Cut, 16),
        (FaultKind::CutAll, 8),
        (FaultKind::HalfOpen, 6),
        (FaultKind::Stall, 6),
        (FaultKind::Corrupt, 8),
        (FaultKind::SlowConnect, 4),
        (FaultKind::ServerKill, 8),
        (FaultKind::ServerKillNoProof, 5),
        (FaultKind::Drain, 4),
        (FaultKind::PowerCut, 14),
        (FaultKind::FailSync, 6),
        (FaultKind::FailIo, 1),
        (FaultKind::FreezeServer, 4),
        (FaultKind::FreezeClient, 4),
        (FaultKind::ClientKill, 4),
        (FaultKind::AgentCrash, 10),
        (FaultKind::Detach, 2),
        (FaultKind::SecondWriter, 3),
        (FaultKind::Takeover, 3),
        (FaultKind::Reader, 6),
        (FaultKind::Grow, 2),
        (FaultKind::Credit, 3),
        (FaultKind::Flap, 5),
        (FaultKind::AbortCut, 5),
        (FaultKind::DeadDisk, 1),
    ];

    /// Its name in traces and summaries.
    pub fn name(self) -> &'static str {
        match self {
            FaultKind::Cut => "cut",
            FaultKind::CutAll => "cut-all",
            FaultKind::HalfOpen => "half-open",
            FaultKind::Stall => "stall",
            FaultKind::Corrupt => "corrupt",
            FaultKind::SlowConnect => "slow-connect",
            FaultKind::ServerKill => "server-kill",
            FaultKind::ServerKillNoProof => "server-kill-no-proof",
            FaultKind::Drain => "drain",
            FaultKind::PowerCut => "power-cut",
            FaultKind::FailSync => "fail-sync",
            FaultKind::FailIo => "fail-io",
            FaultKind::FreezeServer => "freeze-server",
            FaultKind::FreezeClient => "freeze-client",
            FaultKind::ClientKill => "client-kill",
            FaultKind::AgentCrash => "agent-crash",
            FaultKind::Detach => "detach",
            FaultKind::SecondWriter => "second-writer",
            FaultKind::Takeover => "takeover",
            FaultKind::Reader => "reader",
            FaultKind::Grow => "grow",
            FaultKind::Credit => "credit",
            FaultKind::Flap => "flap",
            FaultKind::AbortCut => "abort-cut",
            FaultKind::DeadDisk => "dead-disk",
        }
    }
}

/// A fault and when it comes.
#[derive(Clone, Copy, Debug)]
pub struct PlannedFault {
    /// What.
    pub kind: FaultKind,
    /// When so many requests have been handed in.
    pub after_requests: u32,
    /// And so many nanoseconds later.
    pub delay: u64,
}

/// Everything that a seed decides at the start.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The seed.
    pub seed: u64,
    /// Size of the export, bytes.
    pub size: u64,
    /// Its logical block, bytes.
    pub block: u32,
    /// Requests that the users of writing devices hand in.
    pub requests: u32,
    /// Requests that a user has out at most.
    pub depth: u16,
    /// Longest request, bytes.
    pub max_len: u32,
    /// Longest pause of a user, nanoseconds.
    pub pause: u64,
    /// Of 100 requests that move data so many write.
    pub write_percent: u32,
    /// Of 100 ranges so many are in a part of the disk that is small.
    pub hot_percent: u64,
    /// Of 100 requests so many are a FLUSH, carry FUA, carry BARRIER.
    pub flush_percent: u64,
    /// See [`Scenario::flush_percent`].
    pub fua_percent: u64,
    /// See [`Scenario::flush_percent`].
    pub barrier_percent: u64,
    /// Connections that a client asks for.
    pub connections: u16,
    /// Slots that a client asks for.
    pub slots: u16,
    /// Id window that a client asks for; a multiple of 64.
    pub window: u32,
    /// Digest algorithm and granule.
    pub algorithm: Algorithm,
    /// Bytes.
    pub granule: u32,
    /// Bytes and entries that a client retains; 0 entries: retention is off.
    pub retain: (u64, usize),
    /// Deadline of requests, nanoseconds.
    pub deadline: Option<u64>,
    /// Bytes of WRITE payload that the server lets a session have unanswered.
    pub credit_bytes: u32,
    /// READ data in one frame, bytes.
    pub piece: u32,
    /// Silence, nanoseconds, after which an end asks for a sign of life.
    pub keepalive: u64,
    /// Nanoseconds that the server keeps a session without connections.
    pub session_time: u64,
    /// Nanoseconds after which a lease can be taken.
    pub lease_time: u64,
    /// Bytes that a driver queues before it stops asking the engine for more.
    pub queue_limit: usize,
    /// The network.
    pub weather: Weather,
    /// The disk.
    pub disk: DiskShape,
    /// What goes wrong.
    pub faults: Vec<PlannedFault>,
}

impl Scenario {
    /// The scenario of `seed`.
    pub fn new(seed: u64) -> Scenario {
        let rng = &mut Rng::new(seed).fork(1);
        let block = rng.pick(&[512, 512, 512, 512, 1024, 4096]);
        let blocks = rng.between(24, 96) * 512 / u64::from(block);
        let max_blocks = rng.pick(&[1u64, 1, 2, 2, 3, 4, 8]);
        let max_len = (max_blocks * u64::from(block)).min(8192);
        let retention_off = rng.one_in(5);
        let small = rng.one_in(3);
        let retain = match (retention_off, small) {
            (true, _) => (0, 0),
            (_, true) => (
                rng.between(max_len, 4 * max_len),
                rng.between(1, 12) as usize,
            ),
            _ => (1 << 20, 256),
        };
        let algorithm = match rng.below(40) {
            0 => Algorithm::Blake3,
            1 => Algorithm::Crc64Nvme,
            2..28 => Algorithm::Crc32c,
            _ => Algorithm::None,
        };
        let slots = rng.pick(&[10u16, 11, 13, 17, 25, 41]);
        let keepalive = rng.spread(200 * MILLI, 3 * SECOND);
        let low = rng.spread(5 * MICRO, 2 * MILLI);
        let requests = MIN_REQUESTS + rng.below(40) as u32;
        Scenario {
            seed,
            size: blocks * u64::from(block),
            block,
            requests,
            depth: rng.between(1, u64::from(slots)) as u16,
            max_len: max_len as u32,
            pause: rng.spread(20 * MICRO, 50 * MILLI),
            write_percent: rng.pick(&[30, 50, 70, 90]),
            hot_percent: rng.pick(&[0, 30, 60, 90]),
            flush_percent: rng.pick(&[0, 2, 5, 15]),
            fua_percent: rng.pick(&[0, 5, 20]),
            barrier_percent: rng.pick(&[0, 0, 2, 10]),
            connections: rng.pick(&[1, 1, 2, 2, 3, 4]),
            slots,
            window: 64 * rng.pick(&[1, 1, 2, 4]),
            algorithm,
            granule: rng.pick(&[512, 512, 1024, 4096]),
            retain,
            deadline: rng.one_in(3).then(|| rng.spread(20 * MILLI, 8 * SECOND)),
            credit_bytes: if rng.one_in(4) {
                rng.between(max_len, 3 * max_len) as u32
            } else {
                1 << 20
            },
            piece: rng.pick(&[512, 1024, 4096, 128 << 10]),
            keepalive,
            session_time: rng.spread(2 * SECOND, 40 * SECOND),
            lease_time: rng.spread(SECOND, 20 * SECOND),
            queue_limit: rng.pick(&[1, 2048, 65536]),
            weather: Weather {
                latency: (low, low * rng.between(1, 20)),
                capacity: rng.pick(&[1500, 4096, 65536, 65536]),
                pieces: match rng.below(100) {
                    0 => rng.between(1, 16),
                    1..20 => rng.spread(64, 4096),
                    _ => 0,
                },
            },
            disk: DiskShape {
                latency: (2 * MICRO, rng.spread(10 * MICRO, 10 * MILLI)),
                early: rng.pick(&[0, 0, 20, 60]),
            },
            faults: faults(rng, requests),
        }
    }

    /// Whether clients keep what is not durable.
    pub fn retains(&self) -> bool {
        self.retain.1 > 0
    }
}

fn faults(rng: &mut Rng, requests: u32) -> Vec<PlannedFault> {
    let weights: Vec<u32> = FaultKind::WEIGHTS
        .iter()
        .map(|(_, weight)| *weight)
        .collect();
    let count = MIN_FAULTS + rng.index(6);
    let mut faults: Vec<PlannedFault> = (0..count)
        .map(|_| PlannedFault {
            kind: FaultKind::WEIGHTS[rng.weighted(&weights)].0,
            after_requests: rng.between(5, u64::from(requests) - 5) as u32,
            delay: if rng.chance(50) {
                0
            } else {
                rng.spread(10 * MICRO, 100 * MILLI)
            },
        })
        .collect();
    // Faults that meet: the interesting cases are often two at once.
    for at in 1..faults.len() {
        if rng.one_in(3) {
            faults[at].after_requests = faults[at - 1].after_requests;
        }
    }
    faults.sort_by_key(|fault| fault.after_requests);
    faults
}
