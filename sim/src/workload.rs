//! What the user of a device asks for.

use dst_engine::client::Request;
use dst_proto::{Kind, OpFlags};

use crate::content::SECTOR;
use crate::rng::Rng;
use crate::scenario::Scenario;

/// A request, not yet handed in.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    /// What.
    pub request: Request,
    /// It lies beyond the end on purpose.
    pub beyond: bool,
}

/// The next request of a user. `size`: of the device, bytes.
pub fn wish(scenario: &Scenario, rng: &mut Rng, size: u64, writable: bool) -> Wish {
    let mut flags = OpFlags::NONE;
    let kind = if rng.chance(scenario.flush_percent) {
        Kind::FLUSH
    } else if writable && rng.chance(u64::from(scenario.write_percent)) {
        match rng.below(20) {
            0 => Kind::DISCARD,
            1 | 2 => Kind::WRITE_ZEROES,
            _ => Kind::WRITE,
        }
    } else if rng.one_in(20) {
        Kind::BLOCK_STATUS
    } else {
        Kind::READ
    };
    let may_fua = matches!(kind, Kind::WRITE | Kind::WRITE_ZEROES);
    if may_fua && rng.chance(scenario.fua_percent) {
        flags = flags.union(OpFlags::FUA);
    }
    if kind == Kind::WRITE_ZEROES && rng.chance(50) {
        flags = flags.union(OpFlags::MAY_UNMAP);
    }
    if rng.chance(scenario.barrier_percent) {
        flags = flags.union(OpFlags::BARRIER);
    }
    let block = u64::from(scenario.block);
    let blocks = size / block;
    let longest = u64::from(scenario.max_len) / block;
    let (mut offset, mut length) = (0, 0);
    if kind != Kind::FLUSH {
        let hot = rng.chance(scenario.hot_percent);
        let area = if hot { blocks.min(4) } else { blocks };
        let count = rng.between(1, longest.min(area));
        offset = rng.below(area - count + 1) * block;
        length = count * block;
    }
    let beyond = kind != Kind::FLUSH && rng.one_in(300);
    if beyond {
        // Farther than it ever grows.
        offset = 1 << 40;
    }
    Wish {
        request: Request {
            kind,
            flags,
            offset,
            length,
        },
        beyond,
    }
}

/// The reads that cover a whole device, as offset and length.
pub fn sweep(scenario: &Scenario, size: u64) -> impl Iterator<Item = (u64, u64)> {
    let step = u64::from(scenario.max_len).max(SECTOR as u64);
    (0..size)
        .step_by(step as usize)
        .map(move |offset| (offset, step.min(size - offset)))
}
