//! A TCP proxy that cuts: resets, cuts in the middle of a frame, stalls, and connections of which only one side knows that
//! they are gone.
//!
//! # States of a link (one client's connection and the one to the server that goes with it)
//! *forwarding*; *stalled*: nothing is read, both sides wait; *client gone*: the client got a reset, the server's side stays
//! open and what comes from there is swallowed; *server gone*: the other way round; *closed*. A link goes from forwarding to
//! stalled and back, and from both to the others, never back.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};

/// How often a thread looks whether its link's state has changed.
const LOOK: Duration = Duration::from_millis(20);

const FORWARDING: u8 = 0;
const STALLED: u8 = 1;
const CLIENT_GONE: u8 = 2;
const SERVER_GONE: u8 = 3;
const CLOSED: u8 = 4;

/// No cut, or flip, is planned.
const NO_CUT: i64 = i64::MAX;

struct Link {
    client: TcpStream,
    server: TcpStream,
    state: AtomicU8,
    /// Bytes until the link is cut.
    cut_in: AtomicI64,
    /// Bytes until a bit is flipped.
    flip_in: AtomicI64,
}

struct Shared {
    upstream: SocketAddr,
    links: Mutex<Vec<Arc<Link>>>,
    stopping: AtomicBool,
    bytes: AtomicU64,
    accepted: AtomicU64,
}

/// See the [module](self). Everything is closed when it is dropped.
pub struct Proxy {
    addr: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// In front of `upstream`.
    ///
    /// # Errors
    /// No port, no thread.
    pub fn start(upstream: SocketAddr) -> Result<Proxy> {
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no port for the proxy")?;
        listener.set_nonblocking(true)?;
        let addr = listener.local_addr()?;
        let shared = Arc::new(Shared {
            upstream,
            links: Mutex::default(),
            stopping: AtomicBool::new(false),
            bytes: AtomicU64::new(0),
            accepted: AtomicU64::new(0),
        });
        let thread = std::thread::Builder::new()
            .name("proxy".to_owned())
            .spawn({
                let shared = shared.clone();
                move || accept(&listener, &shared)
            })?;
        Ok(Proxy {
            addr,
            shared,
            thread: Some(thread),
        })
    }

    /// URL of an export by way of the proxy.
    pub fn url(&self, export: &str) -> String {
        format!("dst://{}/{export}", self.addr)
    }

    /// Bytes forwarded so far, both ways together.
    pub fn bytes(&self) -> u64 {
        self.shared.bytes.load(Ordering::Relaxed)
    }

    /// Connections taken so far.
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::Relaxed)
    }

    fn links(&self) -> Vec<Arc<Link>> {
        let mut links = self
            .shared
            .links
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        links.retain(|link| link.state.load(Ordering::Relaxed) != CLOSED);
        links.clone()
    }

    /// Resets every link on both sides.
    pub fn reset(&self) {
        self.links().iter().for_each(|link| link.close());
    }

    /// Resets each link when it has forwarded so many more bytes, which is in the middle of a frame as a rule.
    pub fn cut_after(&self, bytes: u64) {
        for link in self.links() {
            link.cut_in.store(bytes as i64, Ordering::Relaxed);
        }
    }

    /// Flips one bit in each link when it has forwarded so many more bytes.
    pub fn flip_after(&self, bytes: u64) {
        for link in self.links() {
            link.flip_in.store(bytes as i64, Ordering::Relaxed);
        }
    }

    /// Resets one of the links, whichever `which` comes to, when it has forwarded so many more bytes.
    pub fn cut_one(&self, which: usize, bytes: u64) {
        let links = self.links();
        if !links.is_empty() {
            links[which % links.len()]
                .cut_in
                .store(bytes as i64, Ordering::Relaxed);
        }
    }

    /// Nothing is forwarded, or again.
    pub fn stall(&self, stalled: bool) {
        let (from, to) = if stalled {
            (FORWARDING, STALLED)
        } else {
            (STALLED, FORWARDING)
        };
        for link in self.links() {
            let _ = link
                .state
                .compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// The clients get a reset; the server hears nothing of it.
    pub fn lose_clients(&self) {
        for link in self.links() {
            link.state.store(CLIENT_GONE, Ordering::Relaxed);
            disconnect(&link.client);
        }
    }

    /// The server gets a reset; the clients hear nothing of it.
    pub fn lose_servers(&self) {
        for link in self.links() {
            link.state.store(SERVER_GONE, Ordering::Relaxed);
            disconnect(&link.server);
        }
    }

    /// Ends the direction from the clients to the server only, in good order.
    pub fn end_upstream(&self) {
        for link in self.links() {
            let _ = link.server.shutdown(Shutdown::Write);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        self.reset();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        self.reset();
    }
}

impl Link {
    fn close(&self) {
        self.state.store(CLOSED, Ordering::Relaxed);
        disconnect(&self.client);
        disconnect(&self.server);
    }
}

/// Sends a reset, also where other threads have the socket open (tcp(7), "dissolve the association").
fn disconnect(stream: &TcpStream) {
    let _ = rustix::net::connect_unspec(stream);
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    while !shared.stopping.load(Ordering::Relaxed) {
        let client = match listener.accept() {
            Ok((client, _)) => client,
            Err(_) => {
                std::thread::sleep(Duration::from_millis(2));
                continue;
            }
        };
        shared.accepted.fetch_add(1, Ordering::Relaxed);
        match TcpStream::connect_timeout(&shared.upstream, Duration::from_secs(1)) {
            Ok(server) => forward(client, server, shared),
            Err(_) => disconnect(&client),
        }
    }
}

fn forward(client: TcpStream, server: TcpStream, shared: &Arc<Shared>) {
    for stream in [&client, &server] {
        let ready = stream.set_nonblocking(false).is_ok()
            && stream.set_nodelay(true).is_ok()
            && stream.set_read_timeout(Some(LOOK)).is_ok()
            && stream.set_write_timeout(Some(LOOK)).is_ok();
        if !ready {
            return;
        }
    }
    let link = Arc::new(Link {
        client,
        server,
        state: AtomicU8::new(FORWARDING),
        cut_in: AtomicI64::new(NO_CUT),
        flip_in: AtomicI64::new(NO_CUT),
    });
    shared
        .links
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(link.clone());
    for up in [true, false] {
        let (link, shared) = (link.clone(), shared.clone());
        std::thread::spawn(move || pump(&link, up, &shared));
    }
}

/// Moves bytes one way until the link is closed, or this direction has ended in good order.
fn pump(link: &Link, up: bool, shared: &Shared) {
    let (mut from, to) = match up {
        true => (&link.client, &link.server),
        false => (&link.server, &link.client),
    };
    let mut buffer = vec![0; 128 << 10];
    loop {
        let swallow = match (link.state.load(Ordering::Relaxed), up) {
            (CLOSED, _) | (CLIENT_GONE, true) | (SERVER_GONE, false) => return,
            (STALLED, _) => {
                std::thread::sleep(Duration::from_millis(2));
                continue;
            }
            (FORWARDING, _) => false,
            _ => true,
        };
        let len = match from.read(&mut buffer) {
            Ok(0) if swallow => return link.close(),
            Ok(0) => {
                let _ = to.shutdown(Shutdown::Write);
                return;
            }
            Ok(len) => len,
            Err(error) if is_timeout(&error) => continue,
            // One side was just taken away on purpose: the state says so now.
            Err(_) if !swallow && link.state.load(Ordering::Relaxed) != FORWARDING => continue,
            Err(_) => return link.close(),
        };
        if swallow {
            continue;
        }
        if link.flip_in.load(Ordering::Relaxed) != NO_CUT {
            let left = link.flip_in.fetch_sub(len as i64, Ordering::Relaxed);
            if (0..len as i64).contains(&left) {
                buffer[left as usize] ^= 1 << (left % 8);
                link.flip_in.store(NO_CUT, Ordering::Relaxed);
            }
        }
        let left = match link.cut_in.load(Ordering::Relaxed) {
            NO_CUT => NO_CUT,
            _ => link.cut_in.fetch_sub(len as i64, Ordering::Relaxed),
        };
        let len = len.min(left.max(0) as usize);
        if !write_all(link, to, &buffer[..len]) {
            return;
        }
        shared.bytes.fetch_add(len as u64, Ordering::Relaxed);
        if left <= len as i64 {
            return link.close();
        }
    }
}

/// False if the link can't forward any more.
fn write_all(link: &Link, mut to: &TcpStream, mut data: &[u8]) -> bool {
    while !data.is_empty() {
        match link.state.load(Ordering::Relaxed) {
            FORWARDING | STALLED => {}
            // The receiver of this data is gone, or the link: the data goes with it.
            CLOSED => return false,
            _ => return true,
        }
        match to.write(data) {
            Ok(len) => data = &data[len..],
            Err(error) if is_timeout(&error) => {}
            Err(_) => {
                link.close();
                return false;
            }
        }
    }
    true
}

fn is_timeout(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Pair {
        proxy: Proxy,
        client: TcpStream,
        server: TcpStream,
    }

    fn pair() -> Pair {
        let upstream = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let proxy = Proxy::start(upstream.local_addr().unwrap()).unwrap();
        let client = TcpStream::connect(proxy.addr).unwrap();
        let (server, _) = upstream.accept().unwrap();
        for stream in [&client, &server] {
            stream
                .set_read_timeout(Some(Duration::from_secs(20)))
                .unwrap();
        }
        let mut pair = Pair {
            proxy,
            client,
            server,
        };
        pair.client.write_all(b"hello").unwrap();
        let mut got = [0; 5];
        pair.server.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"hello");
        pair
    }

    fn is_reset(stream: &mut TcpStream) -> bool {
        matches!(stream.read(&mut [0; 64]), Err(e) if e.kind() == ErrorKind::ConnectionReset)
    }

    #[test]
    fn a_reset_reaches_both_sides() {
        let mut pair = pair();
        pair.proxy.reset();
        assert!(is_reset(&mut pair.client));
        assert!(is_reset(&mut pair.server));
        assert!(pair.proxy.links().is_empty());
    }

    #[test]
    fn a_cut_lets_exactly_so_many_bytes_through() {
        let mut pair = pair();
        pair.proxy.cut_after(3);
        pair.client.write_all(b"abcdef").unwrap();
        let mut got = [0; 3];
        pair.server.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"abc");
        assert!(is_reset(&mut pair.server));
        assert_eq!(pair.proxy.bytes(), 8);
    }

    #[test]
    fn exactly_one_bit_is_flipped() {
        let mut pair = pair();
        pair.proxy.flip_after(2);
        pair.client.write_all(&[0; 8]).unwrap();
        let mut got = [0; 8];
        pair.server.read_exact(&mut got).unwrap();
        assert_eq!(got, [0, 0, 4, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn one_side_can_be_lost_without_the_other_noticing() {
        let mut pair = pair();
        pair.proxy.lose_clients();
        assert!(is_reset(&mut pair.client));
        pair.server.write_all(b"to nobody").unwrap();
        pair.server
            .set_read_timeout(Some(Duration::from_millis(200)))
            .unwrap();
        let error = pair.server.read(&mut [0]).unwrap_err();
        assert!(is_timeout(&error), "{error}");
    }

    #[test]
    fn a_stalled_link_goes_on_where_it_was() {
        let mut pair = pair();
        pair.proxy.stall(true);
        pair.server.write_all(b"late").unwrap();
        pair.proxy.stall(false);
        let mut got = [0; 4];
        pair.client.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"late");
    }
}
