//! Threads without which the server is half dead: where one ends out of turn the process ends.
//!
//! Clients of an export without a thread would come back in a loop and be told nothing. A process that has ended is seen, and
//! started again, by whatever watches over it; to its clients that is a restart like any other.

use std::io;
use std::thread::{Builder, JoinHandle};

use crate::log;

/// Ends the process when it is dropped by a panic.
struct Guard {
    what: String,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            die(&self.what, "it panicked");
        }
    }
}

/// Starts a thread called `name` that runs `body`; a panic or an error of it ends the process.
pub(crate) fn spawn<T: Send + 'static>(
    name: &str,
    body: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    let what = name.to_owned();
    // The system shows no more of a thread's name.
    let short = format!("dst-{name}").chars().take(15).collect();
    Builder::new().name(short).spawn(move || {
        let guard = Guard { what };
        body().unwrap_or_else(|error| die(&guard.what, &error.to_string()))
    })
}

fn die(what: &str, why: &str) -> ! {
    log::line(format_args!(
        "the thread of {what} has failed: {why}; the server ends at once"
    ));
    std::process::abort()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    const CHILD: &str = "DST_SERVER_TEST_PANIC";

    #[test]
    fn a_thread_that_panics_ends_the_process_with_a_message() {
        if std::env::var_os(CHILD).is_some() {
            let thread = spawn("export disk", || -> io::Result<()> { panic!("on purpose") });
            let _ = thread.unwrap().join();
            // Not reached: what the parent would take for a pass.
            return;
        }
        let name = "guard::tests::a_thread_that_panics_ends_the_process_with_a_message";
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture", name])
            .env(CHILD, "1")
            .output()
            .unwrap();
        assert!(!child.status.success());
        let said = String::from_utf8_lossy(&child.stderr);
        assert!(
            said.contains("the thread of export disk has failed"),
            "{said}"
        );
    }

    #[test]
    fn a_thread_that_ends_in_order_gives_its_result() {
        assert_eq!(spawn("front", || Ok(7)).unwrap().join().unwrap(), 7);
    }
}
