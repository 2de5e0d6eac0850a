//! `dst serve --stdio`: the process that somebody started at the end of a pipe, the *carrier*. It gives its streams to the
//! server of the file, which it starts if there is none, and stays until that has closed them.
//!
//! ```text
//!          ┌──────────────────────────────────────────────┐
//!          v                                              │
//! take ─> offer ──nobody there──> start a server, unless ─┘
//!          │                      one was started that has neither ended nor found the file in use
//!          ├─taken──> wait ──> end
//!          └─refused──> failure
//! ```
//!
//! Of several that start at once, each may start a server; the lock of the file decides which one serves, the others end by
//! themselves, and their carriers find the one that has it. Nothing is lost when a carrier is killed in any state: a server that
//! nobody gives a stream to ends after a while.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use dst_server::handover::{self, Asked, Carrier, Offered, Request};
use dst_store::{FileKey, Source};

use super::background::{Started, Starting};
use super::{alone, hand_over_directory};
use crate::cli::Serve;
use crate::exit::{Code, Failure, Outcome};
use crate::render;

/// How long a file may have a server that takes no streams: one that is about to stop, or that another carrier has just
/// started.
const PATIENCE: Duration = Duration::from_secs(15);
/// How often the streams are offered meanwhile.
const STEP: Duration = Duration::from_millis(20);

/// Serves on standard input and output, through whichever server.
///
/// # Errors
/// They are no channel; no server can be started; the one that runs can't serve what is asked for; it has died.
pub fn run(options: &Serve) -> Outcome {
    let (input, output) = dst_net::stdio::take().map_err(|error| {
        let text = format!("can't serve on the standard streams: {error}");
        Failure::new(Code::Usage, text)
    })?;
    let on_disk = |export: &dst_store::Spec| matches!(export.source, Source::Path(_));
    if !options.exports.iter().all(on_disk) {
        return alone::run(options, input, output);
    }
    let directory = hand_over_directory();
    if let Err(error) = handover::check_directory(&directory) {
        render::note(&format!(
            "note: this server ends with its streams, since {} can't be used: {error}",
            directory.display()
        ));
        return alone::run(options, input, output);
    }
    let carrier = hand_over(options, &directory, input, output)?;
    render::note(&format!("dst: served by process {}", carrier.server()));
    match carrier.wait() {
        true => Ok(()),
        false => Err(Failure::new(
            Code::Other,
            format!("the server, process {}, has gone", carrier.server()),
        )),
    }
}

fn hand_over(
    options: &Serve,
    directory: &Path,
    input: OwnedFd,
    output: OwnedFd,
) -> Outcome<Carrier> {
    let until = Instant::now() + PATIENCE;
    let mut starting: Option<Starting> = None;
    loop {
        if let Some(request) = request(options) {
            let offered = handover::offer(directory, &request, input.as_fd(), output.as_fd())
                .map_err(Failure::io("can't hand the standard streams over"))?;
            match offered {
                Offered::Taken(carrier) => return Ok(carrier),
                Offered::Refused(why) => return Err(Failure::new(Code::Export, why)),
                Offered::Nobody => {}
            }
        }
        let late = Instant::now() >= until;
        let Some(started) = &mut starting else {
            starting = Some(Starting::spawn(options)?);
            continue;
        };
        match started.wait(STEP)? {
            Started::InUse(failure) if late => return Err(failure),
            _ if late => {
                let text = "no server can be reached";
                return Err(Failure::new(Code::Other, text));
            }
            Started::NotYet => {}
            Started::Gone | Started::InUse(_) => starting = None,
        }
    }
}

/// What to ask for; `None` while a file is not there.
fn request(options: &Serve) -> Option<Request> {
    let asked = options.exports.iter().map(|export| {
        let Source::Path(path) = &export.source else {
            return None;
        };
        Some(Asked {
            name: export.name.clone(),
            key: FileKey::of_path(path).ok()??.to_string(),
            path: path.display().to_string(),
            read_only: options.read_only,
            block_size: options.block_size,
        })
    });
    Some(Request {
        exports: asked.collect::<Option<_>>()?,
        state_dir: options.state_dir.clone(),
    })
}
