//! The client's engine against a server that is honest now and then: whatever comes, no panic, no slot lost or completed
//! twice or while a socket refers to its memory, and what goes out keeps the rules of PROTOCOL.md.
//!
//! * [`World`]: the session with its memory and connections, and a driver for it;
//! * [`receive`]: what arrives;
//! * [`wire`]: what the server of the session has seen and said, and the rules for what may be sent;
//! * [`keep`]: retention and replay;
//! * [`server`]: what the other end says, as the input decides;
//! * [`fair`]: a good server, with which everything comes to its end.

mod fair;
mod keep;
mod receive;
mod server;
mod wire;
mod world;

use dst_engine::client::FailReason;

use crate::input::Input;
use world::World;

/// Most steps of one input.
const STEPS: u32 = 800;

/// The first bytes configure the session; then each step is a few bytes.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut world = World::new(&mut input);
    let fair = input.one_in(2);
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        world.step(&mut input);
    }
    if fair {
        world.serve_all();
    }
    world.fail(FailReason::Forced);
    for index in 0..world::CONNECTIONS {
        world.lose(index);
    }
    world.assert_empty();
}
