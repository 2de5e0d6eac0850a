//! What a run of many scenarios has met, in numbers.

use serde::{Deserialize, Serialize};

use crate::scenario::FaultKind;

/// Sums over scenarios.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Stats {
    /// Scenarios run.
    pub scenarios: u64,
    /// Events.
    pub events: u64,
    /// Requests handed in by users of devices.
    pub requests: u64,
    /// Requests that succeeded.
    pub succeeded: u64,
    /// Requests that failed at their deadline.
    pub expired: u64,
    /// Requests that failed otherwise.
    pub failed: u64,
    /// Faults injected, by kind.
    pub faults: std::collections::BTreeMap<String, u64>,
    /// Connections lost after they had been live.
    pub reconnects: u64,
    /// Sessions opened anew after one was lost.
    pub sessions_lost: u64,
    /// Retained writes replayed.
    pub replays: u64,
    /// Requests sent again.
    pub resends: u64,
    /// ABORTs answered.
    pub aborts: u64,
    /// Sessions adopted by a successor of a killed process.
    pub adoptions: u64,
    /// Ids that it found open.
    pub orphans: u64,
    /// Payloads with bad digests.
    pub bad_digests: u64,
    /// Frames of superseded connections that were not read, in bytes.
    pub late_bytes: u64,
    /// Devices that failed for good, for a reason that the contract names.
    pub devices_failed: u64,
    /// Changes of the lease holder.
    pub takeovers: u64,
    /// Power cuts after which the medium was checked.
    pub power_cuts: u64,
    /// Sync calls that returned an error.
    pub sync_errors: u64,
    /// Sectors whose content was checked in reads.
    pub sectors_checked: u64,
    /// Simulated time, in seconds.
    pub simulated_seconds: f64,
}

impl Stats {
    /// Counts a fault.
    pub fn fault(&mut self, kind: FaultKind) {
        *self.faults.entry(kind.name().to_owned()).or_default() += 1;
    }

    /// Counts what a client's engine has counted.
    pub fn count_engine(&mut self, engine: &dst_engine::client::Stats) {
        self.reconnects += engine.reconnects;
        self.sessions_lost += engine.fresh_sessions;
        self.replays += engine.replayed;
        self.resends += engine.resent;
        self.orphans += engine.orphans;
        self.bad_digests += engine.bad_digests;
    }

    /// Adds the numbers of other scenarios.
    pub fn add(&mut self, other: &Stats) {
        self.scenarios += other.scenarios;
        self.events += other.events;
        self.requests += other.requests;
        self.succeeded += other.succeeded;
        self.expired += other.expired;
        self.failed += other.failed;
        for (kind, count) in &other.faults {
            *self.faults.entry(kind.clone()).or_default() += count;
        }
        self.reconnects += other.reconnects;
        self.sessions_lost += other.sessions_lost;
        self.replays += other.replays;
        self.resends += other.resends;
        self.aborts += other.aborts;
        self.adoptions += other.adoptions;
        self.orphans += other.orphans;
        self.bad_digests += other.bad_digests;
        self.late_bytes += other.late_bytes;
        self.devices_failed += other.devices_failed;
        self.takeovers += other.takeovers;
        self.power_cuts += other.power_cuts;
        self.sync_errors += other.sync_errors;
        self.sectors_checked += other.sectors_checked;
        self.simulated_seconds += other.simulated_seconds;
    }
}
