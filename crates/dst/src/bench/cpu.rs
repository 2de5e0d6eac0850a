//! CPU time of both ends. The server's can be seen only if it is a process of this machine that listens on a Unix socket
//! or on loopback; where it can't, that is said and nothing is guessed.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use dst_net::{Address, Endpoint};
use rustix::time::{clock_gettime, ClockId};

use crate::control::Agent;

/// CPU time of this process so far, all threads.
#[must_use]
pub fn own_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::from_secs(seconds) + Duration::from_nanos(u64::try_from(time.tv_nsec).unwrap_or(0))
}

/// The server's process, if it can be seen.
#[derive(Debug)]
pub enum ServerCpu {
    /// Its process id.
    Process(i32),
    /// Why not.
    NotSeen(&'static str),
}

impl ServerCpu {
    /// Looks for the process that serves `url`.
    #[must_use]
    pub fn find(url: &Endpoint) -> Self {
        let pid = match url.address() {
            Address::Unix { path } => {
                let agent = Agent::connect(path);
                agent
                    .and_then(|agent| agent.pid())
                    .ok()
                    .map(|pid| pid.as_raw_nonzero().get())
            }
            Address::Tcp { host, port } => {
                let ip = match host.as_str() {
                    "localhost" => None,
                    host => match host.parse::<IpAddr>() {
                        Ok(ip) if ip.is_loopback() => Some(ip),
                        _ => return Self::NotSeen("it is on another machine"),
                    },
                };
                listener(ip, *port)
            }
            Address::Exec { .. } => return Self::NotSeen("it is behind a command"),
        };
        pid.map_or(
            Self::NotSeen("its process is not to be seen from here"),
            Self::Process,
        )
    }

    /// Its CPU time so far, all threads.
    #[must_use]
    pub fn time(&self) -> Option<Duration> {
        let Self::Process(pid) = self else {
            return None;
        };
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let ticks = ticks(&stat)?;
        let per_second = rustix::param::clock_ticks_per_second().max(1);
        Some(Duration::from_millis(ticks * 1000 / per_second))
    }
}

/// User and system time in clock ticks, from the text of `/proc/PID/stat`: fields 14 and 15 of proc(5). The name, field 2,
/// may hold anything, so fields are counted from its closing parenthesis.
fn ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// The process that listens on the port, at an address that a connection to `ip` (`None`: any loopback address) reaches.
fn listener(ip: Option<IpAddr>, port: u16) -> Option<i32> {
    let table = |path| fs::read_to_string(path).unwrap_or_default();
    let (v4, v6) = (table("/proc/net/tcp"), table("/proc/net/tcp6"));
    let sockets = v4.lines().chain(v6.lines()).filter_map(listening);
    let mut candidates: Vec<(IpAddr, u64)> = sockets
        .filter(|(at, listening_port, _)| *listening_port == port && reaches(ip, *at))
        .map(|(at, _, inode)| (at, inode))
        .collect();
    // The exact address is served before "any address".
    candidates.sort_by_key(|(at, _)| at.is_unspecified());
    owner(candidates.first()?.1)
}

fn reaches(ip: Option<IpAddr>, at: IpAddr) -> bool {
    match (ip, at) {
        (None, at) => at.is_loopback() || at.is_unspecified(),
        (Some(ip), at) if ip == at => true,
        // A socket at `::` takes IPv4 too.
        (Some(_), IpAddr::V6(at)) => at.is_unspecified(),
        (Some(IpAddr::V4(_)), IpAddr::V4(at)) => at.is_unspecified(),
        _ => false,
    }
}

/// Address, port and inode of a listening socket, from a line of `/proc/net/tcp` or `tcp6`: local address and port in
/// hexadecimal, the address in words of 32 bits in native order; the state of listening is `0A`.
fn listening(line: &str) -> Option<(IpAddr, u16, u64)> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [_, local, _, "0A", _, _, _, _, _, inode, ..] = fields.as_slice() else {
        return None;
    };
    let (address, port) = local.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut bytes = Vec::new();
    for at in (0..address.len()).step_by(8) {
        let word = u32::from_str_radix(address.get(at..at + 8)?, 16).ok()?;
        bytes.extend_from_slice(&word.to_ne_bytes());
    }
    let address = match <[u8; 4]>::try_from(bytes.as_slice()) {
        Ok(bytes) => IpAddr::V4(Ipv4Addr::from(bytes)),
        Err(_) => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)),
    };
    Some((address, port, inode.parse().ok()?))
}

/// A process that has the socket with this inode open. Sees only what this user may see.
fn owner(inode: u64) -> Option<i32> {
    let wanted = format!("socket:[{inode}]");
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = process
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let descriptors = fs::read_dir(process.path().join("fd"));
        for descriptor in descriptors.into_iter().flatten().flatten() {
            if fs::read_link(descriptor.path())
                .is_ok_and(|target| target.as_os_str() == wanted.as_str())
            {
                return Some(pid);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_read_past_any_process_name() {
        let stat = "77 (a) b (c) S 1 77 77 0 -1 4194560 1 2 3 4 150 50 7 8 20 0 1 0 5 6 7";
        assert_eq!(ticks(stat), Some(200));
        assert_eq!(ticks("77 (a"), None);
    }

    #[test]
    fn a_listener_on_loopback_is_found_and_has_used_cpu() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let own = i32::try_from(std::process::id()).unwrap();
        for host in ["127.0.0.1", "localhost"] {
            let url: Endpoint = format!("dst://{host}:{port}/x").parse().unwrap();
            let found = ServerCpu::find(&url);
            assert!(
                matches!(found, ServerCpu::Process(pid) if pid == own),
                "{found:?}"
            );
            assert!(found.time().is_some());
        }
        assert_eq!(listener(Some(IpAddr::V6(Ipv6Addr::LOCALHOST)), port), None);
        drop(socket);
        assert_eq!(listener(None, port), None);
    }

    #[test]
    fn a_unix_listener_is_found_and_what_is_elsewhere_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let _socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let url: Endpoint = format!("dst+unix://{}?export=x", path.display())
            .parse()
            .unwrap();
        assert!(matches!(ServerCpu::find(&url), ServerCpu::Process(_)));
        for url in [
            "dst://storage/x",
            "dst://10.1.1.1/x",
            "dst+exec:///x?command=cat",
        ] {
            let found = ServerCpu::find(&url.parse().unwrap());
            assert!(matches!(found, ServerCpu::NotSeen(_)), "{url}");
            assert_eq!(found.time(), None);
        }
    }

    #[test]
    fn own_time_only_grows() {
        let before = own_time();
        assert!(own_time() >= before);
        assert!(before > Duration::ZERO);
    }
}
