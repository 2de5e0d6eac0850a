//! `dst serve`: runs a server until a signal, or until the standard streams end.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv6Addr, TcpListener};
use std::os::fd::BorrowedFd;
use std::sync::mpsc::{self, Receiver, Sender};

use dst_net::url::DEFAULT_PORT;
use dst_net::{Address, Endpoint, StdioStream, Stream};
use dst_server::{Config, ExportConfig, Handle, Server, StartError};
use dst_store::{format_size, Source};
use rustix::process::{getrlimit, setrlimit, Resource, Rlimit};
use serde::Serialize;

use crate::cli::Serve;
use crate::exit::{Code, Failure, Outcome};
use crate::render;
use crate::signals::Signals;

/// Runs it.
///
/// # Errors
/// The server can't start, or could not make everything durable at the end.
pub fn run(options: &Serve, json: bool) -> Outcome {
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
    let signals = Signals::install().map_err(Failure::io("can't take signals"))?;
    let listen = addresses(options);
    let config = config(options, listen.clone());
    // Taken before anything can be printed.
    let (server, stdio) = match options.stdio {
        true => {
            let stream = StdioStream::take().map_err(|error| {
                Failure::new(
                    Code::Usage,
                    format!("can't serve on the standard streams: {error}"),
                )
            })?;
            let (stream, ended) = Noticed::new(stream);
            let server = Server::start_with(config, vec![Box::new(stream)]);
            (server.map_err(start_failure)?, Some(ended))
        }
        false => (Server::start(config).map_err(start_failure)?, None),
    };
    for note in server.notes() {
        render::note(&format!("note: {note}"));
    }
    let announced = announcement(options, &listen, &server);
    match (&stdio, json) {
        (Some(_), _) => render::note(&announced.text(options)),
        // One line, so that a script can read it and know that all of it is there.
        (None, true) => {
            let text = serde_json::to_string(&announced)
                .map_err(|error| Failure::io("can't make JSON")(io::Error::from(error)))?;
            render::line(&text)?;
        }
        (None, false) => render::print(&announced.text(options))?,
    }
    watch_signals(signals, server.handle())?;
    if let Some(ended) = stdio {
        // Nothing is ever sent: it ends with the stream.
        let _ = ended.recv();
        server.handle().drain();
    }
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

/// A stream whose end can be waited for.
struct Noticed {
    stream: StdioStream,
    _ended: Sender<()>,
}

impl Noticed {
    fn new(stream: StdioStream) -> (Self, Receiver<()>) {
        let (sender, receiver) = mpsc::channel();
        let noticed = Self {
            stream,
            _ended: sender,
        };
        (noticed, receiver)
    }
}

impl Stream for Noticed {
    fn fd(&self) -> BorrowedFd<'_> {
        self.stream.fd()
    }

    fn write_fd(&self) -> BorrowedFd<'_> {
        self.stream.write_fd()
    }

    fn read_vectored(&mut self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        self.stream.read_vectored(bufs)
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.stream.write_vectored(bufs)
    }

    fn shutdown(&mut self) {
        self.stream.shutdown();
    }

    fn peer(&self) -> String {
        self.stream.peer()
    }

    fn is_local(&self) -> bool {
        self.stream.is_local()
    }

    fn is_trusted(&self) -> bool {
        self.stream.is_trusted()
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
        // Devices have no names with a dot in front.
        config.runtime_dir = Some(dst_blockdev::runtime_root().join(".server"));
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
        StartError::Io(_) => with(Code::Other),
    }
}

/// Where to listen: as given; nowhere with `--stdio`; else this machine only, or everywhere with `--insecure`.
fn addresses(options: &Serve) -> Vec<Endpoint> {
    if options.stdio || !options.listen.is_empty() {
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

/// What is said once the server runs.
#[derive(Debug, Serialize)]
struct Announcement {
    /// Process id.
    pid: u32,
    /// URLs without an export, for clients on this machine.
    listening: Vec<String>,
    exports: Vec<Announced>,
    /// Whether `attach` needs `--insecure`.
    #[serde(skip)]
    from_afar: bool,
}

#[derive(Debug, Serialize)]
struct Announced {
    name: String,
    size: u64,
    block_size: u32,
    read_only: bool,
    /// Where its bytes are.
    source: String,
    /// The URLs to carry to the other side.
    urls: Vec<String>,
}

fn announcement(options: &Serve, listen: &[Endpoint], server: &Server) -> Announcement {
    let local = server.local_urls().to_vec();
    let carried: Vec<Endpoint> = listen
        .iter()
        .zip(&local)
        .filter_map(|(asked, local)| carried(asked, local, &crate::host_name()))
        .collect();
    let served = server.handle().exports().into_iter().zip(&options.exports);
    let exports = served.map(|(export, spec)| Announced {
        urls: carried
            .iter()
            .filter_map(|endpoint| endpoint.with_export(Some(&export.name)).ok())
            .map(|endpoint| short_url(&endpoint))
            .collect(),
        name: export.name,
        size: export.size,
        block_size: export.logical_block,
        read_only: export.read_only,
        source: source_text(&spec.source),
    });
    Announcement {
        pid: std::process::id(),
        listening: local,
        exports: exports.collect(),
        from_afar: options.insecure && listen.iter().any(|endpoint| !is_local(endpoint)),
    }
}

impl Announcement {
    fn text(&self, options: &Serve) -> String {
        let mut text = String::new();
        for export in &self.exports {
            let mode = if export.read_only {
                "read-only"
            } else {
                "read-write"
            };
            text.push_str(&format!(
                "serving {}: {}, {mode}, {} byte blocks, {}\n",
                export.name,
                format_size(export.size),
                export.block_size,
                export.source
            ));
        }
        if options.stdio {
            return text.trim_end().to_owned();
        }
        let here_only = match self.from_afar {
            true => "",
            false => " (on this machine only)",
        };
        text.push_str(&format!("\nto attach{here_only}:\n"));
        let flag = if self.from_afar { "--insecure " } else { "" };
        for export in &self.exports {
            if let Some(url) = export.urls.first() {
                text.push_str(&format!("  dst attach {flag}{}\n", quoted(url)));
            }
        }
        if !self.from_afar && options.listen.is_empty() {
            text.push_str(
                "from other machines: --insecure lets them in without encryption, or let them come through ssh:\n  \
                 dst attach 'dst+exec:///NAME?command=ssh%20HOST%20dst%20serve%20--stdio%20PATH'\n",
            );
        }
        text
    }
}

fn source_text(source: &Source) -> String {
    match source {
        Source::Path(path) => path.display().to_string(),
        Source::Memory(_) => "memory, gone when the server ends".to_owned(),
        Source::Null(_) => "null: what is written is lost".to_owned(),
        Source::Lossy(path, _) => format!("{} (loses what is not flushed)", path.display()),
    }
}

/// Whether only this machine can come in there.
fn is_local(endpoint: &Endpoint) -> bool {
    match endpoint.address() {
        Address::Tcp { host, .. } => {
            host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
        }
        Address::Unix { .. } | Address::Exec { .. } => true,
    }
}

/// The address to carry to the other side: with this machine's name in place of "any address", and the port that the system
/// chose.
fn carried(asked: &Endpoint, local: &str, host_name: &str) -> Option<Endpoint> {
    let local: Endpoint = local.parse().ok()?;
    match (asked.address(), local.address()) {
        (Address::Tcp { host, .. }, Address::Tcp { port, .. }) => {
            let any = host.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified());
            let host = if any { host_name } else { host };
            let address = Address::Tcp {
                host: host.to_owned(),
                port: *port,
            };
            Endpoint::new(address, None).ok().or(Some(local))
        }
        _ => Some(local),
    }
}

/// Without the port where it is the usual one.
fn short_url(endpoint: &Endpoint) -> String {
    let text = endpoint.to_string();
    match endpoint.address() {
        Address::Tcp { port, .. } if *port == DEFAULT_PORT => {
            text.replacen(&format!(":{DEFAULT_PORT}/"), "/", 1)
        }
        _ => text,
    }
}

/// In quotes if a shell would see more in it than text.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._~/:%+@,".contains(c);
    match text.chars().all(plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(text: &str) -> Endpoint {
        text.parse().unwrap()
    }

    #[test]
    fn the_url_to_carry_has_the_hosts_name_and_the_real_port() {
        for (asked, local, url) in [
            (
                "dst://[::]:0",
                "dst://[::1]:4711",
                "dst://storage:4711/disk",
            ),
            (
                "dst://0.0.0.0",
                "dst://127.0.0.1:7789",
                "dst://storage/disk",
            ),
            (
                "dst://10.0.0.1",
                "dst://10.0.0.1:7789",
                "dst://10.0.0.1/disk",
            ),
            ("dst://[::1]:0", "dst://[::1]:99", "dst://[::1]:99/disk"),
            (
                "dst+unix:///run/x.sock",
                "dst+unix:///run/x.sock",
                "dst+unix:///run/x.sock?export=disk",
            ),
        ] {
            let carried = carried(&endpoint(asked), local, "storage").unwrap();
            let carried = carried.with_export(Some("disk")).unwrap();
            assert_eq!(short_url(&carried), url, "{asked}");
        }
    }

    #[test]
    fn urls_are_quoted_where_a_shell_would_read_more_into_them() {
        assert_eq!(quoted("dst://storage/disk"), "dst://storage/disk");
        assert_eq!(quoted("dst+unix:///a?export=b"), "'dst+unix:///a?export=b'");
        assert_eq!(quoted("dst://[::1]/a"), "'dst://[::1]/a'");
        assert_eq!(quoted("a'b"), r"'a'\''b'");
    }

    #[test]
    fn loopback_and_unix_sockets_are_this_machines_only() {
        for (url, local) in [
            ("dst://127.0.0.1", true),
            ("dst://localhost", true),
            ("dst://[::1]", true),
            ("dst+unix:///x", true),
            ("dst://[::]", false),
            ("dst://storage", false),
        ] {
            assert_eq!(is_local(&endpoint(url)), local, "{url}");
        }
    }
}
