//! What the agent knows of its device, in the form of `dst status`.

use std::time::Instant;

use dst_blockdev::{Node, NodeKind};
use dst_client::{Counters, DeviceStatus, Geometry};

use super::rates::Sampler;
use crate::control::{DeviceReport, Limits, Totals};

/// What of a device does not change, or only once.
#[derive(Debug)]
pub struct Facts {
    /// Its name.
    pub name: String,
    /// The URL of the export.
    pub url: String,
    /// The kind of front end.
    pub front_end: &'static str,
    /// Where it is, once it is there.
    pub node: Option<Node>,
    /// The size that it shows, in bytes.
    pub device_size: u64,
    /// Why that is not the export's.
    pub not_resized: Option<String>,
    /// When the agent started.
    pub since: Instant,
}

/// How a kind of node is called in JSON.
#[must_use]
pub fn kind_name(kind: NodeKind) -> &'static str {
    match kind {
        NodeKind::BlockDevice => "block-device",
        NodeKind::File => "file",
    }
}

/// The counters that rates are made of.
#[must_use]
pub fn totals(counters: &Counters) -> Totals {
    Totals {
        reads: counters.reads,
        writes: counters.writes,
        read_bytes: counters.read_bytes,
        written_bytes: counters.written_bytes,
    }
}

/// Puts it together. `overriding` is the agent's own view of the state, with its reason, where it goes before that of the
/// connection.
#[must_use]
pub fn report(
    facts: &Facts,
    status: DeviceStatus,
    geometry: &Geometry,
    overriding: Option<(&str, Option<String>)>,
    sampler: &Sampler,
    now: Instant,
) -> DeviceReport {
    let totals = totals(&status.counters);
    let (state, message) = match overriding {
        Some((state, message)) => (state, message.or(status.message)),
        None => (status.state, status.message),
    };
    let node = facts.node.as_ref();
    DeviceReport {
        name: facts.name.clone(),
        state: state.to_owned(),
        message,
        url: facts.url.clone(),
        server: status.server,
        front_end: facts.front_end.to_owned(),
        node: node.map(|node| node.path.clone()),
        device: node.map(|node| node.device.clone()),
        kind: node.map_or_else(String::new, |node| kind_name(node.kind).to_owned()),
        queues: node.map_or(0, |node| node.queues),
        notes: node
            .into_iter()
            .flat_map(|node| node.notes.iter())
            .chain(&facts.not_resized)
            .cloned()
            .collect(),
        size: geometry.size,
        device_size: facts.device_size,
        logical_block: geometry.logical_block,
        physical_block: geometry.physical_block,
        read_only: geometry.read_only,
        limits: Limits {
            max_transfer: geometry.max_transfer,
            rotational: geometry.rotational,
            discard: geometry.discard,
            discard_granularity: geometry.discard_granularity,
            write_zeroes: geometry.write_zeroes,
            write_cache: geometry.write_cache && !geometry.read_only,
            fua: geometry.fua,
        },
        pid: std::process::id(),
        attached_s: now.saturating_duration_since(facts.since).as_secs(),
        session: status.session,
        epoch: status.epoch,
        export_id: status.export_id,
        incarnation: status.incarnation,
        connections: status.connections,
        in_flight: u64::from(status.in_flight),
        queued: status.queued as u64,
        retained_bytes: status.retained_bytes,
        retained_writes: status.retained_entries,
        unsettled: false,
        suspects: u64::from(status.suspects),
        reconnects: status.reconnects,
        fresh_sessions: status.fresh_sessions,
        resent: status.resent,
        replayed: status.replayed,
        expired: status.expired,
        bad_digests: status.bad_digests,
        errors: status.counters.errors,
        totals,
        rates: sampler.rates(now, &totals),
    }
}
