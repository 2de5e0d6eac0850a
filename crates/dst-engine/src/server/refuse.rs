//! Which requests are refused on arrival, and with which status (PROTOCOL.md 3.2, 3.3, 4).
//!
//! A refused request counts as arrived and finished, so that the ids keep no gap; its payload is thrown away.

use super::super::proto::{options, GeometryFlags, Header, Kind, OpFlags, Status};
use super::session::{Bits, Lanes, Session};

impl<W: Bits, L: Lanes> Session<W, L> {
    /// Why the request can't be executed; none if it can.
    pub(super) fn refusal(&self, header: &Header, area: &[u8]) -> Option<Status> {
        let checks = [
            self.check_supported(header),
            options::check_none(area).map_err(|error| error.status()),
            self.check_writable(header),
            self.check_range(header),
        ];
        checks.into_iter().find_map(Result::err)
    }

    fn check_supported(&self, header: &Header) -> Result<(), Status> {
        let (kind, flags) = (header.kind, header.op_flags);
        let export = self.config.geometry.flags;
        let there = match kind {
            Kind::READ | Kind::WRITE | Kind::FLUSH => true,
            Kind::DISCARD => export.contains(GeometryFlags::DISCARD),
            Kind::WRITE_ZEROES => {
                let slow = !export.contains(GeometryFlags::FAST_ZEROES);
                let refused = slow && flags.contains(OpFlags::FAST_ONLY);
                export.contains(GeometryFlags::WRITE_ZEROES) && !refused
            }
            Kind::BLOCK_STATUS => export.contains(GeometryFlags::BLOCK_STATUS),
            _ => false,
        };
        ok_or(there && flags.allowed_for(kind), Status::UNSUPPORTED)
    }

    fn check_writable(&self, header: &Header) -> Result<(), Status> {
        let read_only = self
            .config
            .geometry
            .flags
            .contains(GeometryFlags::READ_ONLY);
        let writable = self.config.writable && !read_only;
        ok_or(writable || !header.kind.is_write(), Status::READ_ONLY)
    }

    fn check_range(&self, header: &Header) -> Result<(), Status> {
        let (kind, offset, length) = (header.kind, header.offset, header.length);
        if kind == Kind::FLUSH {
            return ok_or(offset == 0 && length == 0, Status::INVALID);
        }
        let geometry = &self.config.geometry;
        let limited = matches!(kind, Kind::READ | Kind::WRITE);
        let fits = !limited || length <= u64::from(self.config.limits.max_payload);
        let whole = kind != Kind::WRITE || length == u64::from(header.payload_len);
        let aligned = geometry.is_aligned(offset) && geometry.is_aligned(length);
        ok_or(length > 0 && fits && whole && aligned, Status::INVALID)?;
        let end = offset.checked_add(length);
        ok_or(end.is_some_and(|end| end <= geometry.size), Status::RANGE)
    }
}

fn ok_or(good: bool, status: Status) -> Result<(), Status> {
    if good {
        Ok(())
    } else {
        Err(status)
    }
}
