//! What is told of an export: to its clients in GEOMETRY, to everybody in LIST.

use dst_proto::{Geometry, GeometryFlags};
use dst_store::Info;

use crate::port::lock;
use crate::worker::Worker;

impl Worker {
    /// The export as clients are told.
    pub(crate) fn geometry(&self) -> Geometry {
        let info: &Info = self.backend.info();
        let flags = [
            (info.read_only, GeometryFlags::READ_ONLY),
            (info.rotational, GeometryFlags::ROTATIONAL),
            (info.discard, GeometryFlags::DISCARD),
            (info.write_zeroes, GeometryFlags::WRITE_ZEROES),
            (info.fast_zeroes, GeometryFlags::FAST_ZEROES),
            (true, GeometryFlags::FUA),
            (true, GeometryFlags::BLOCK_STATUS),
        ];
        let flags = flags
            .into_iter()
            .filter_map(|(on, flag)| on.then_some(flag.0))
            .fold(0, |all, flag| all | flag);
        Geometry {
            size: info.size,
            logical_block: info.logical_block,
            physical_block: info.physical_block,
            flags: GeometryFlags(flags),
            discard_granularity: info.discard_granularity,
            atomic_limit: info.max_atomic_write,
            rollback_limit: 0,
        }
    }

    /// Puts what LIST tells up to date.
    pub(crate) fn publish(&self) {
        let geometry = self.geometry();
        let writer = self
            .rules
            .writer()
            .and_then(|number| self.members.get(&number));
        let mut listing = lock(&self.listing);
        listing.size = geometry.size;
        listing.logical_block = geometry.logical_block;
        listing.flags = geometry.flags;
        listing.writer = writer.map_or_else(String::new, |member| member.client.clone());
        listing.sessions = self.members.len();
    }
}
