//! The server's session against any client: whatever comes, no panic, and the rules of PROTOCOL.md section 5 hold at the
//! backend and on the wire.
//!
//! * [`world`]: the session with its memory and connections, its driver, and what each slot holds;
//! * [`receive`]: what arrives;
//! * [`rules`]: what was executed and what was said, and the rules for both;
//! * [`client`]: what comes in, as the input decides.

mod client;
mod receive;
mod rules;
mod world;

use dst_proto::Status;

use crate::input::Input;
use world::World;

/// Most steps of one input.
const STEPS: u32 = 800;

/// The first bytes configure the session; then each step is a few bytes.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut world = World::new(&mut input);
    let settle = input.one_in(2);
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        world.step(&mut input);
    }
    if settle {
        world.settle(Status::LEASE_LOST);
    }
    world.finish();
}
