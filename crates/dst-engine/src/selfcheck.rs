//! Checks of this build of the engine, for the kernel module to run at load.

use super::proto::{Header, Hello, Kind, Role, HEADER_LEN, HELLO_LEN};
use super::rx::{Head, Receiver};
use super::window::IdWindow;

/// Runs them; the text says which failed.
pub fn run() -> Result<(), &'static str> {
    framing()?;
    window()
}

fn framing() -> Result<(), &'static str> {
    let mut receiver = Receiver::new([0; HELLO_LEN], Role::Client);
    let mut hello = [0; HELLO_LEN];
    Hello::new(Role::Client, [1; 16], "selfcheck").encode(&mut hello);
    let mut ping = [0; HEADER_LEN];
    Header::new(Kind::PING).encode(&mut ping);
    match receiver.feed(&hello) {
        Ok((HELLO_LEN, Some(Head::Hello(_)))) => {}
        _ => return Err("a HELLO does not come through"),
    }
    match receiver.feed(&ping) {
        Ok((HEADER_LEN, Some(Head::Frame(header)))) if header.kind == Kind::PING => Ok(()),
        _ => Err("a frame does not come through"),
    }
}

fn window() -> Result<(), &'static str> {
    let mut window = IdWindow::new([0u64; 1]);
    if window.finish(2) && window.floor() == 0 && window.finish(1) && window.floor() == 2 {
        Ok(())
    } else {
        Err("the floor does not follow the ids that have finished")
    }
}
