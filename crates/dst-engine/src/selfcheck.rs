//! Checks of this build of the engine, for the kernel module to run at load and for tests.
//!
//! Most of it is one exchange: a client's session and a server's export and session talk to each other over memory, byte for
//! byte as on a stream. The connection breaks with half an answer under way, and a resumed one goes on; see `exchange.rs`
//! for what has to come of it.
//!
//! All memory is the caller's: a kernel's stack is small. A value of more than 512 bytes is made where it stays, in the
//! [`Workspace`], and nowhere else.

mod client;
mod exchange;
mod pipe;
mod server;

use super::proto::{Holder, Limits};
use super::server::Record;
use super::window::IdWindow;
use pipe::Pipe;

type Checked = Result<(), &'static str>;

/// Bytes of a block, and of every READ and WRITE of the exchange.
const BLOCK: usize = 512;
/// Where all of them go.
const PLACE: u64 = 1024;
/// Bytes that one digest covers.
const GRANULE: u32 = 4096;
/// Slots that the driver may use.
const USER_SLOTS: usize = 2;
/// All slots.
const SLOTS: usize = USER_SLOTS + super::client::REPLAY_SLOTS as usize + 1;
/// Memory of a receiver: HELLO and the options of one frame.
const AREA: usize = 320;
/// Writes that the client can retain: at half of that it flushes by itself.
const RETAINED: usize = 4;
/// The export.
const NAME: &str = "disk";
const HOLDER: Holder = Holder {
    identity: [1; 16],
    boot: [2; 16],
    instance: [3; 16],
};
/// What the client asks for and the server grants.
const LIMITS: Limits = Limits {
    slots: SLOTS as u16,
    connections: 1,
    max_payload: BLOCK as u32,
    window: 64,
    credit_bytes: 4096,
};

/// The memory of the checks, a few KiB: in a static or on a heap. It can be used again.
#[derive(Debug)]
pub struct Workspace {
    client: client::Memory,
    server: server::Memory,
    /// From the client to the server.
    up: Pipe,
    down: Pipe,
}

impl Workspace {
    /// Fresh memory.
    pub const fn new() -> Self {
        Workspace {
            client: client::Memory::new(),
            server: server::Memory::new(),
            up: Pipe::new(),
            down: Pipe::new(),
        }
    }
}

impl Default for Workspace {
    fn default() -> Self {
        Workspace::new()
    }
}

/// Runs them; the text says which failed.
pub fn run(workspace: &mut Workspace) -> Checked {
    window()?;
    lease()?;
    exchange::run(workspace)
}

fn window() -> Checked {
    let mut window = IdWindow::new([0u64; 1]);
    let finished = window.finish(2) && window.floor() == 0 && window.finish(1);
    ensure(
        finished && window.floor() == 2 && !window.finish(67),
        "the floor does not follow the ids that have finished",
    )
}

fn lease() -> Checked {
    let other = Holder {
        instance: [4; 16],
        ..HOLDER
    };
    let first = Record::NONE.granted_to(&HOLDER);
    let again = first.released().granted_to(&HOLDER);
    let other = first.granted_to(&other);
    ensure(
        again == first && other.epoch > first.epoch,
        "the epoch does not tell one holder from the next",
    )
}

fn ensure(good: bool, otherwise: &'static str) -> Checked {
    if good {
        Ok(())
    } else {
        Err(otherwise)
    }
}

/// Copies as much of `from` as there is room for; tells how many bytes.
fn copy(to: &mut [u8], from: &[u8]) -> usize {
    let len = to.len().min(from.len());
    to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
    len
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;

    #[test]
    fn this_build_passes_and_passes_again_in_the_same_memory() {
        let mut workspace = std::boxed::Box::new(Workspace::new());
        assert_eq!(run(&mut workspace), Ok(()));
        assert_eq!(run(&mut workspace), Ok(()));
    }

    #[test]
    fn nothing_that_may_lie_on_the_stack_is_larger_than_512_bytes() {
        assert!(client::ON_STACK.iter().all(|size| *size <= 512));
        assert!(server::ON_STACK.iter().all(|size| *size <= 512));
    }
}
