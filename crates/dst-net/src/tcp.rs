//! TCP.
//!
//! Every stream has `TCP_NODELAY` (the link batches by itself), keepalive and `TCP_USER_TIMEOUT`, so that a peer that
//! has gone without a word is noticed within about ten seconds, whether anything is in flight or not. The latter also
//! ends a connection whose peer takes no byte for that long: peers read always and bound what they hold by credit.
//!
//! Connecting resolves the name anew each time, with a part of the time only: where that fails or takes too long, the
//! address that worked last is used. Every address is tried within its share of the time, the last good one first.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::net::{sockopt, AddressFamily, SocketAddrAny};

use crate::poller::{Interest, Poller};
use crate::socket::{self, SocketStream};
use crate::url::{Address, Endpoint};
use crate::{Listener, Stream, Transport};

/// Silence after which the kernel asks the peer for a sign of life.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(5);
/// Time between two such questions.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
/// Unanswered questions after which the connection is dead.
const KEEPALIVE_COUNT: u32 = 3;
/// Longest time that data may stay unacknowledged, in milliseconds.
const USER_TIMEOUT_MS: u32 = 10_000;
/// Attempts to find a port that is free on every address of a host name.
const PORT_ATTEMPTS: u32 = 16;

type Addresses = io::Result<Vec<SocketAddr>>;
type Resolver = Arc<dyn Fn(&str, u16) -> Addresses + Send + Sync>;

/// Connects to a host and port, and remembers the address that worked last.
pub struct TcpTransport {
    host: String,
    port: u16,
    resolver: Resolver,
    memory: Mutex<Memory>,
}

#[derive(Default)]
struct Memory {
    last_good: Option<SocketAddr>,
    /// A resolution that took longer than one connect had time for; the next connect gets its answer.
    resolving: Option<Receiver<Addresses>>,
}

impl TcpTransport {
    /// `host` is a name or an address, IPv6 without brackets. Nothing is resolved before the first connect.
    pub fn new(host: &str, port: u16) -> Self {
        Self::with_resolver(host, port, Arc::new(system_resolver))
    }

    fn with_resolver(host: &str, port: u16, resolver: Resolver) -> Self {
        Self {
            host: host.to_owned(),
            port,
            resolver,
            memory: Mutex::new(Memory::default()),
        }
    }

    /// The addresses to try, in order. Takes no longer than `timeout`, and half of that where an address is known.
    fn addresses(&self, timeout: Duration) -> Addresses {
        if let Ok(address) = self.host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(address, self.port)]);
        }
        let (last_good, resolving) = {
            let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
            (memory.last_good, memory.resolving.take())
        };
        let answer = match resolving {
            Some(answer) => answer,
            None => self.start_resolving()?,
        };
        let patience = if last_good.is_some() {
            timeout / 2
        } else {
            timeout
        };
        let resolved = match answer.recv_timeout(patience) {
            Ok(resolved) => resolved,
            Err(RecvTimeoutError::Timeout) => {
                self.memory
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .resolving = Some(answer);
                Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the name service does not answer",
                ))
            }
            Err(RecvTimeoutError::Disconnected) => {
                Err(io::Error::other("the name service could not be asked"))
            }
        };
        match (resolved, last_good) {
            (Ok(mut addresses), _) if !addresses.is_empty() => {
                // Stable: the resolver's order holds among the others.
                addresses.sort_by_key(|address| Some(*address) != last_good);
                addresses.dedup();
                Ok(addresses)
            }
            (_, Some(address)) => Ok(vec![address]),
            (Ok(_), None) => Err(io::Error::new(
                io::ErrorKind::NotFound,
                "the name has no address",
            )),
            (Err(error), None) => Err(error),
        }
    }

    /// Asks in a thread of its own, since a resolver may hang for minutes. There is one at a time.
    fn start_resolving(&self) -> io::Result<Receiver<Addresses>> {
        let (answer, receiver) = mpsc::sync_channel(1);
        let (resolver, host, port) = (Arc::clone(&self.resolver), self.host.clone(), self.port);
        std::thread::Builder::new()
            .name("dst-resolve".to_owned())
            .spawn(move || {
                // Nobody may be left to hear it.
                let _ = answer.send(resolver(&host, port));
            })?;
        Ok(receiver)
    }
}

impl Transport for TcpTransport {
    fn connect(&self, timeout: Duration) -> io::Result<Box<dyn Stream>> {
        let deadline = Instant::now() + timeout;
        let context = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", self.describe()));
        let addresses = self.addresses(timeout).map_err(context)?;
        let mut failed: Option<io::Error> = None;
        for (tried, address) in addresses.iter().enumerate() {
            let left = deadline.saturating_duration_since(Instant::now());
            let share = left / u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX);
            // Zero is no timeout that a socket takes.
            match connect_to(*address, share.max(Duration::from_millis(1))) {
                Ok(stream) => {
                    self.memory
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .last_good = Some(*address);
                    return Ok(stream);
                }
                Err(error) => {
                    let before = failed.map(|e| format!("{e}; ")).unwrap_or_default();
                    // A host given by its address has been named already.
                    let which = match addresses.len() {
                        1 if address.to_string() == self.describe() => String::new(),
                        _ => format!("{address}: "),
                    };
                    failed = Some(io::Error::new(
                        error.kind(),
                        format!("{before}{which}{error}"),
                    ));
                }
            }
        }
        Err(context(
            failed.unwrap_or_else(|| io::ErrorKind::NotFound.into()),
        ))
    }

    fn describe(&self) -> String {
        host_and_port(&self.host, self.port)
    }

    fn is_local(&self) -> bool {
        is_loopback_host(&self.host)
    }

    fn is_trusted(&self) -> bool {
        is_loopback_host(&self.host)
    }
}

fn connect_to(address: SocketAddr, timeout: Duration) -> io::Result<Box<dyn Stream>> {
    connected(TcpStream::connect_timeout(&address, timeout)?, address)
}

/// The stream of a socket that has connected to `address`, unless it has met itself: on one machine, a connect to a
/// port of the ephemeral range where nobody listens may be given that very port as its own. It would then also keep
/// the server from coming back.
fn connected(socket: TcpStream, address: SocketAddr) -> io::Result<Box<dyn Stream>> {
    let local = socket.local_addr()?;
    if local == address {
        return Err(io::Error::new(
            io::ErrorKind::ConnectionRefused,
            "nobody listens there",
        ));
    }
    stream(socket.into(), address, local)
}

/// A stream over a connected socket, with the options of this transport.
fn stream(socket: OwnedFd, peer: SocketAddr, local: SocketAddr) -> io::Result<Box<dyn Stream>> {
    sockopt::set_tcp_nodelay(&socket, true)?;
    sockopt::set_tcp_keepidle(&socket, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(&socket, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(&socket, KEEPALIVE_COUNT)?;
    sockopt::set_socket_keepalive(&socket, true)?;
    sockopt::set_tcp_user_timeout(&socket, USER_TIMEOUT_MS)?;
    let (peer_ip, local_ip) = (peer.ip().to_canonical(), local.ip().to_canonical());
    let loopback = peer_ip.is_loopback();
    // A machine that talks to its own address talks to itself.
    let same_machine = loopback || peer_ip == local_ip;
    let name = SocketAddr::new(peer_ip, peer.port()).to_string();
    Ok(Box::new(SocketStream::new(
        socket,
        name,
        same_machine,
        loopback,
    )?))
}

/// The system's resolver. `localhost` yields loopback addresses only (RFC 6761, section 6.3), so that it can be
/// trusted as such.
fn system_resolver(host: &str, port: u16) -> Addresses {
    let addresses = (host, port).to_socket_addrs()?;
    let only_loopback = is_loopback_host(host);
    Ok(addresses
        .filter(|address| !only_loopback || address.ip().to_canonical().is_loopback())
        .collect())
}

fn is_loopback_host(host: &str) -> bool {
    match host.parse::<IpAddr>() {
        Ok(address) => address.to_canonical().is_loopback(),
        Err(_) => host.trim_end_matches('.').eq_ignore_ascii_case("localhost"),
    }
}

fn host_and_port(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

/// Listens on every address of a host; `::` takes IPv4 too.
pub struct TcpListener {
    sockets: Vec<OwnedFd>,
    /// Holds all sockets where there are several: an epoll descriptor is readable when one of them is.
    set: Option<Poller>,
    /// Counts the sockets asked, so that each has its turn.
    turn: usize,
    url: String,
}

impl TcpListener {
    /// Binds and listens. A port of 0 takes a free one, the same on every address. An address that this machine does
    /// not have is left out as long as another is there.
    pub fn bind(host: &str, port: u16) -> io::Result<Self> {
        let context = |e: io::Error| {
            io::Error::new(
                e.kind(),
                format!("can't listen at {}: {e}", host_and_port(host, port)),
            )
        };
        let addresses = match host.parse::<IpAddr>() {
            Ok(address) => vec![SocketAddr::new(address, port)],
            Err(_) => system_resolver(host, port).map_err(context)?,
        };
        let mut attempt = 0;
        let (sockets, port) = loop {
            attempt += 1;
            match bind_all(&addresses, port) {
                // A port that was free on the first address need not be on the second.
                Err(e)
                    if port == 0
                        && e.kind() == io::ErrorKind::AddrInUse
                        && attempt < PORT_ATTEMPTS => {}
                other => break other.map_err(context)?,
            }
        };
        let set = match sockets.as_slice() {
            [_] => None,
            several => {
                let poller = Poller::new()?;
                for socket in several {
                    poller.add(socket.as_fd(), 0, Interest::READ)?;
                }
                Some(poller)
            }
        };
        let address = Address::Tcp {
            host: host.to_owned(),
            port,
        };
        let url = Endpoint::new(address, None)
            .map_err(io::Error::other)?
            .to_string();
        Ok(Self {
            sockets,
            set,
            turn: 0,
            url,
        })
    }
}

/// Binds every address to one port, and says which.
fn bind_all(addresses: &[SocketAddr], port: u16) -> io::Result<(Vec<OwnedFd>, u16)> {
    let mut sockets = Vec::with_capacity(addresses.len());
    let mut port = port;
    let mut absent = None;
    for address in addresses {
        match bind_one(SocketAddr::new(address.ip(), port), address) {
            Ok((socket, bound)) => {
                port = bound;
                sockets.push(socket);
            }
            Err(e) if is_absent(&e) => absent = Some(e),
            Err(e) => return Err(e),
        }
    }
    if sockets.is_empty() {
        return Err(absent.unwrap_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, "the name has no address")
        }));
    }
    Ok((sockets, port))
}

/// The machine has no such address, or not this version of IP.
fn is_absent(error: &io::Error) -> bool {
    let codes = [
        rustix::io::Errno::ADDRNOTAVAIL,
        rustix::io::Errno::AFNOSUPPORT,
    ];
    error
        .raw_os_error()
        .is_some_and(|code| codes.iter().any(|c| c.raw_os_error() == code))
}

fn bind_one(mut address: SocketAddr, template: &SocketAddr) -> io::Result<(OwnedFd, u16)> {
    // `SocketAddr::new` drops the zone of a link-local address.
    if let (SocketAddr::V6(v6), SocketAddr::V6(from)) = (&mut address, template) {
        v6.set_scope_id(from.scope_id());
    }
    let family = if address.is_ipv6() {
        AddressFamily::INET6
    } else {
        AddressFamily::INET
    };
    let socket = socket::new_socket(family)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if address.is_ipv6() {
        // Said, not left to `net.ipv6.bindv6only`.
        sockopt::set_ipv6_v6only(&socket, !address.ip().is_unspecified())?;
    }
    rustix::net::bind(&socket, &address)?;
    socket::listen(&socket)?;
    let bound = SocketAddr::try_from(rustix::net::getsockname(&socket)?)?;
    Ok((socket, bound.port()))
}

fn accepted(socket: OwnedFd, peer: Option<SocketAddrAny>) -> io::Result<Box<dyn Stream>> {
    let peer = SocketAddr::try_from(peer.ok_or(rustix::io::Errno::NOTCONN)?)?;
    let local = SocketAddr::try_from(rustix::net::getsockname(&socket)?)?;
    stream(socket, peer, local)
}

impl Listener for TcpListener {
    fn accept(&mut self) -> io::Result<Box<dyn Stream>> {
        let mut empty = 0;
        while empty < self.sockets.len() {
            let listener = &self.sockets[self.turn % self.sockets.len()];
            self.turn = self.turn.wrapping_add(1);
            match socket::accept(listener) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => empty += 1,
                Err(e) => return Err(e),
                // One that can't be set up is gone already; the others don't wait for it.
                Ok((socket, peer)) => {
                    if let Ok(stream) = accepted(socket, peer) {
                        return Ok(stream);
                    }
                }
            }
        }
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match &self.set {
            Some(poller) => poller.as_fd(),
            None => self.sockets[0].as_fd(),
        }
    }

    fn local_url(&self) -> String {
        self.url.clone()
    }
}

#[cfg(test)]
mod tests;
