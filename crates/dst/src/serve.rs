//! `dst serve`: runs a server until a signal.
//!
//! | file | subject |
//! | --- | --- |
//! | `serve.rs` | a server that listens; what all servers have in common |
//! | `serve/announce.rs` | what it says once it runs |
//! | `serve/carry.rs` | `--stdio`: giving the standard streams to a server that runs |
//! | `serve/background.rs` | the server that `--stdio` starts where none runs |
//! | `serve/alone.rs` | `--stdio` where neither can be |

use std::io;
use std::net::{Ipv6Addr, TcpListener};
use std::path::PathBuf;

use dst_net::url::DEFAULT_PORT;
use dst_net::{Address, Endpoint};
use dst_server::handover::HandOver;
use dst_server::{Config, ExportConfig, Handle, Server, StartError};
use rustix::process::{getrlimit, setrlimit, Resource, Rlimit};

use crate::cli::Serve;
use crate::exit::{Code, Failure, Outcome};
use crate::render;
use crate::signals::Signals;

mod alone;
mod announce;
mod background;
mod carry;

pub use background::run as run_in_background;

/// Runs it.
///
/// # Errors
/// The server can't start, or could not make everything durable at the end.
pub fn run(options: &Serve, json: bool) -> Outcome {
    if options.stdio {
        return carry::run(options);
    }
    let signals = prepare()?;
    let listen = addresses(options);
    let mut config = config(options, listen.clone());
    config.hand_over = Some(HandOver {
        directory: hand_over_directory(),
        ends_unused: false,
    });
    let server = Server::start(config).map_err(start_failure)?;
    tell_notes(&server);
    let announced = announce::announcement(options, &listen, &server);
    match json {
        // One line, so that a script can read it and know that all of it is there.
        true => {
            let text = serde_json::to_string(&announced)
                .map_err(|error| Failure::io("can't make JSON")(io::Error::from(error)))?;
            render::line(&text)?;
        }
        false => render::print(&announced.text(options))?,
    }
    watch_signals(signals, server.handle())?;
    finish(server)
}

/// What every server does before it starts.
fn prepare() -> Outcome<Signals> {
    // Before any thread starts, since threads inherit it: where a client is on this machine too, memory that it needs
    // written out must not be waited for here. Which clients come is not known, so it is set always; without the right to
    // set it the machine is no worse off than with any program.
    let _ = rustix::process::configure_io_flusher_behavior(true);
    // Each connection is a descriptor, and the usual limit is for programs that still use select(2). Where it stays, fewer
    // clients find room.
    let files = getrlimit(Resource::Nofile);
    let most = Rlimit {
        current: files.maximum,
        ..files
    };
    let _ = setrlimit(Resource::Nofile, most);
    Signals::install().map_err(Failure::io("can't take signals"))
}

fn tell_notes(server: &Server) {
    for note in server.notes() {
        render::note(&format!("note: {note}"));
    }
}

/// Waits for the end of the server.
fn finish(server: Server) -> Outcome {
    let summary = server.wait();
    let unclean: Vec<String> = summary
        .unclean
        .iter()
        .map(|(name, why)| format!("{name}: {why}"))
        .collect();
    match unclean.is_empty() {
        true => Ok(()),
        false => Err(Failure::new(
            Code::Io,
            format!("not everything is durable: {}", unclean.join("; ")),
        )),
    }
}

/// The first signal drains, the second one ends the process.
fn watch_signals(signals: Signals, handle: Handle) -> Outcome {
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            signals.wait(0);
            render::note("dst: draining; a second signal ends the server at once");
            handle.drain();
            signals.wait(1);
            std::process::exit(i32::from(Code::Interrupted.number()));
        })
        .map(drop)
        .map_err(Failure::io("can't start a thread"))
}

fn config(options: &Serve, listen: Vec<Endpoint>) -> Config {
    let exports = options.exports.iter().map(|spec| ExportConfig {
        spec: spec.clone(),
        read_only: options.read_only,
        block_size: options.block_size,
        create_size: options.size,
    });
    let state_dir = options
        .state_dir
        .clone()
        .unwrap_or_else(dst_client::identity::state_dir);
    let mut config = Config::new(exports.collect(), listen, state_dir);
    if options.state_dir.is_none() {
        config.runtime_dir = Some(hand_over_directory());
    }
    config.insecure = options.insecure;
    if let Some(memory) = options.memory {
        config.memory = memory;
    }
    if let Some(time) = options.lease_time {
        config.lease_time = time;
    }
    if let Some(time) = options.session_time {
        config.session_time = time;
    }
    config
}

/// What servers of this user keep as long as the machine runs, and where they and `--stdio` find each other. Devices have no
/// names with a dot in front.
fn hand_over_directory() -> PathBuf {
    dst_blockdev::runtime_root().join(".server")
}

fn start_failure(error: StartError) -> Failure {
    let text = error.to_string();
    let with = |code| Failure::new(code, text.clone());
    match error {
        StartError::Export { source, .. } => match source {
            dst_store::OpenError::Io { source, .. }
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                with(Code::Permission)
            }
            dst_store::OpenError::UnderLoop { device, .. } => with(Code::Export).hint(format!(
                "unmount what is on it and `losetup -d {device}`, or --read-only"
            )),
            _ => with(Code::Export),
        },
        StartError::Name(_) | StartError::Memory(_) => with(Code::Usage),
        StartError::SameId { .. } => with(Code::Export),
        StartError::Listen { source, .. } => match source.kind() {
            io::ErrorKind::PermissionDenied => with(Code::Permission),
            io::ErrorKind::InvalidInput => with(Code::Usage),
            io::ErrorKind::AddrInUse => with(Code::Address)
                .hint("another server is running there; --listen takes another address"),
            _ => with(Code::Address),
        },
        StartError::Insecure(_) => with(Code::Insecure).hint(
            "without: clients come through ssh, with \
             'dst+exec:///EXPORT?command=ssh%20HOST%20dst%20serve%20--stdio%20PATH'",
        ),
        StartError::State { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
            with(Code::Permission).hint("--state-dir takes another directory")
        }
        StartError::State { .. } => with(Code::Other),
        StartError::HandOver { .. } | StartError::Io(_) => with(Code::Other),
    }
}

/// Where to listen: as given, else this machine only, or everywhere with `--insecure`.
fn addresses(options: &Serve) -> Vec<Endpoint> {
    if !options.listen.is_empty() {
        return options.listen.clone();
    }
    let has_ipv6 = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok();
    let hosts: &[&str] = match (options.insecure, has_ipv6) {
        // This takes IPv4 too.
        (true, true) => &["::"],
        (true, false) => &["0.0.0.0"],
        (false, true) => &["127.0.0.1", "::1"],
        (false, false) => &["127.0.0.1"],
    };
    let endpoint = |host: &&str| {
        let address = Address::Tcp {
            host: (*host).to_owned(),
            port: DEFAULT_PORT,
        };
        Endpoint::new(address, None).ok()
    };
    hosts.iter().filter_map(endpoint).collect()
}
