//! The server that `dst serve --stdio` starts where none runs: this program again, as `dst stdio-server`, in a session of its
//! own. It serves what is handed over to it and ends by itself once nobody uses it.
//!
//! Its standard output is a pipe to who started it, for one line with the verdict; standard error is a file beside the socket,
//! which goes when it ends well.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use dst_server::handover::{log_path, HandOver};
use dst_server::{Server, StartError};
use dst_store::{FileKey, OpenError, Source};
use rustix::event::{PollFd, PollFlags, Timespec};
use serde::{Deserialize, Serialize};

use super::{config, finish, hand_over_directory, prepare, start_failure, watch_signals};
use crate::cli::Serve;
use crate::exit::{Code, Failure, Outcome};
use crate::render;

/// Bytes of a log at which it is begun anew.
const LOG: u64 = 256 << 10;

/// The verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Verdict {
    /// It serves, and this is what people should know.
    Ready(Vec<String>),
    /// Another server has a file.
    InUse(Failure),
    /// It can't start.
    Failed(Failure),
}

/// `dst stdio-server`: serves until nobody uses it any more, or a signal comes.
///
/// # Errors
/// The server can't start, or could not make everything durable at the end.
pub fn run(options: &Serve) -> Outcome {
    let mut pipe = take_stdout().map_err(Failure::io("can't talk to who started this"))?;
    // Nobody's terminal ends it. It fails only for the leader of a group, which nothing that starts this makes it.
    let _ = rustix::process::setsid();
    // No file system is held by being where we are.
    let _ = std::env::set_current_dir("/");
    let (server, log) = match start(options) {
        Ok(started) => started,
        Err((verdict, failure)) => {
            let _ = tell(&mut pipe, &verdict);
            return Err(failure);
        }
    };
    if !tell(&mut pipe, &Verdict::Ready(server.notes().to_vec())) {
        // Its stream went to another server, which has ended since, or it was killed.
        server.handle().expect_nobody();
    }
    drop(pipe);
    finish(server)?;
    // What it says is of no more use to anybody.
    let _ = fs::remove_file(log);
    Ok(())
}

fn start(options: &Serve) -> Result<(Server, PathBuf), (Verdict, Failure)> {
    let failed = |failure: Failure| (Verdict::Failed(failure.clone()), failure);
    let signals = prepare().map_err(failed)?;
    let mut config = config(options, Vec::new());
    let directory = hand_over_directory();
    config.hand_over = Some(HandOver {
        directory: directory.clone(),
        ends_unused: true,
    });
    let server = Server::start(config).map_err(|error| {
        let in_use = matches!(
            &error,
            StartError::Export {
                source: OpenError::InUse { .. },
                ..
            }
        );
        let failure = start_failure(error);
        match in_use {
            true => (Verdict::InUse(failure.clone()), failure),
            false => failed(failure),
        }
    })?;
    let log = open_log(options, &directory).map_err(Failure::io("can't open a log"));
    let log = log.map_err(failed)?;
    watch_signals(signals, server.handle()).map_err(failed)?;
    Ok((server, log))
}

/// Makes the log standard error; standard output, which is not in use any more, goes there too.
fn open_log(options: &Serve, directory: &Path) -> io::Result<PathBuf> {
    let key = match options.exports.first().map(|export| &export.source) {
        Some(Source::Path(path)) => FileKey::of_path(path)?,
        _ => None,
    };
    let path = log_path(directory, &key.ok_or(io::ErrorKind::NotFound)?.to_string());
    let log = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(&path)?;
    if log.metadata()?.len() > LOG {
        log.set_len(0)?;
    }
    rustix::stdio::dup2_stderr(&log)?;
    rustix::stdio::dup2_stdout(&log)?;
    Ok(path)
}

/// The pipe that is standard output now; from here on that is standard error.
fn take_stdout() -> io::Result<File> {
    let pipe = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3)?;
    rustix::stdio::dup2_stdout(rustix::stdio::stderr())?;
    Ok(File::from(pipe))
}

/// Whether somebody has heard it.
fn tell(pipe: &mut File, verdict: &Verdict) -> bool {
    serde_json::to_vec(verdict).is_ok_and(|line| pipe.write_all(&line).is_ok())
}

/// A server that was started and has not said yet what became of it. Dropping this tells it that nobody waits for it any more:
/// it ends as soon as it finds that nobody else does either.
pub(super) struct Starting {
    child: Child,
    pipe: File,
    said: Vec<u8>,
    ready: bool,
}

/// How far it has come.
pub(super) enum Started {
    /// It may be there soon, or is there now: offer again.
    NotYet,
    /// It was there and has ended.
    Gone,
    /// Another server has a file.
    InUse(Failure),
}

impl Starting {
    /// Starts a server with these options.
    ///
    /// # Errors
    /// The program can't be run.
    pub(super) fn spawn(options: &Serve) -> Outcome<Self> {
        let arguments =
            arguments(options).map_err(Failure::io("can't tell where the exports are"))?;
        let mut child = crate::again::command()
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(Failure::io("can't start a server"))?;
        let pipe = child
            .stdout
            .take()
            .expect("standard output was asked to be a pipe");
        Ok(Self {
            child,
            pipe: File::from(std::os::fd::OwnedFd::from(pipe)),
            said: Vec::new(),
            ready: false,
        })
    }

    /// Waits for the verdict, at most so long. Prints notes.
    ///
    /// # Errors
    /// There will be no server.
    pub(super) fn wait(&mut self, time: Duration) -> Outcome<Started> {
        if self.ready {
            // It may have served others in the meantime, and have ended because they did.
            if !matches!(self.child.try_wait(), Ok(None)) {
                return Ok(Started::Gone);
            }
            std::thread::sleep(time);
            return Ok(Started::NotYet);
        }
        let time = Timespec {
            tv_sec: 0,
            tv_nsec: time.subsec_nanos().into(),
        };
        let mut fds = [PollFd::from_borrowed_fd(self.pipe.as_fd(), PollFlags::IN)];
        // A signal ends the wait as time does.
        if !matches!(rustix::event::poll(&mut fds, Some(&time)), Ok(1..)) {
            return Ok(Started::NotYet);
        }
        let mut buffer = [0; 4096];
        let read = self
            .pipe
            .read(&mut buffer)
            .map_err(Failure::io("can't hear the server"))?;
        self.said.extend_from_slice(&buffer[..read]);
        match serde_json::from_slice(&self.said) {
            Ok(Verdict::Ready(notes)) => {
                self.ready = true;
                for note in notes {
                    render::note(&format!("note: {note}"));
                }
                Ok(Started::NotYet)
            }
            Ok(Verdict::InUse(failure)) => {
                let _ = self.child.wait();
                Ok(Started::InUse(failure))
            }
            Ok(Verdict::Failed(failure)) => {
                let _ = self.child.wait();
                Err(failure)
            }
            Err(_) if read > 0 => Ok(Started::NotYet),
            Err(_) => {
                let status = self.child.wait();
                let status = status.map_or_else(|error| error.to_string(), |s| s.to_string());
                let text = format!("the server died before it was there ({status})");
                Err(Failure::new(Code::Other, text))
            }
        }
    }
}

/// The command line: `stdio-server` and the same options, with paths that do not depend on where we are.
fn arguments(options: &Serve) -> io::Result<Vec<String>> {
    let text = |path: &Path| {
        let path = std::path::absolute(path)?;
        let text = path.into_os_string().into_string();
        text.map_err(|path| io::Error::other(format!("{} is no text", path.display())))
    };
    let mut arguments = vec!["stdio-server".to_owned()];
    if options.read_only {
        arguments.push("--read-only".to_owned());
    }
    let numbers = [
        ("size", options.size),
        ("block-size", options.block_size.map(u64::from)),
        ("memory", options.memory),
    ];
    for (name, number) in numbers {
        arguments.extend(number.map(|number| format!("--{name}={number}")));
    }
    let times = [
        ("lease-time", options.lease_time),
        ("session-time", options.session_time),
    ];
    for (name, time) in times {
        arguments.extend(time.map(|time| format!("--{name}={}ms", time.as_millis())));
    }
    if let Some(directory) = &options.state_dir {
        arguments.push(format!("--state-dir={}", text(directory)?));
    }
    for export in &options.exports {
        if let Source::Path(path) = &export.source {
            arguments.push(format!("{}={}", export.name, text(path)?));
        }
    }
    Ok(arguments)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    #[test]
    fn the_server_gets_every_option_that_serve_got() {
        for line in [
            "dst serve --stdio /a.img",
            "dst serve --stdio --read-only --size 1G --block-size 4096 --memory 128M --lease-time 5s \
             --session-time 250ms --state-dir /s x=/a.img /dev/y",
        ] {
            let parse = |words: Vec<String>| match Cli::try_parse_from(words).unwrap().command {
                Command::Serve(serve) | Command::StdioServer(serve) => serve,
                other => panic!("{other:?}"),
            };
            let mut serve = parse(line.split_whitespace().map(str::to_owned).collect());
            let mut words = vec!["dst".to_owned()];
            words.extend(arguments(&serve).unwrap());
            serve.stdio = false;
            let again = parse(words);
            assert_eq!(format!("{again:?}"), format!("{serve:?}"), "{line}");
        }
    }

    #[test]
    fn a_verdict_survives_the_pipe() {
        let failure = Failure::new(Code::Export, "in use");
        for verdict in [
            Verdict::Ready(vec!["a".into()]),
            Verdict::InUse(failure.clone()),
            Verdict::Failed(failure),
        ] {
            let text = serde_json::to_vec(&verdict).unwrap();
            assert_eq!(serde_json::from_slice::<Verdict>(&text).unwrap(), verdict);
        }
    }
}
