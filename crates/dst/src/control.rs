//! The language of an agent's control socket, and the side that asks.
//!
//! Each way one JSON object per line; a request gets exactly one reply. The side that answers is in `agent/control.rs`.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde::{Deserialize, Serialize};

use crate::exit::Failure;

/// Longest request in bytes, with its end of line.
pub const MAX_REQUEST: usize = 1024;

/// Longest reply in bytes that is taken.
const MAX_REPLY: u64 = 1 << 20;

/// What can be asked of an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "cmd", rename_all = "kebab-case")]
pub enum Request {
    /// How the device is.
    Status,
    /// Show the size of the export, if that could not be done before. Answered when it is done.
    Resize,
    /// End at once, and leave the device and all that a successor needs.
    HandOver,
    /// Remove the device and end.
    Detach {
        /// At once, whatever is lost.
        #[serde(default)]
        force: bool,
    },
}

/// What an agent answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub enum Reply {
    /// How the device is.
    Status(Box<DeviceReport>),
    /// The device shows the size of its export, in bytes.
    Resized {
        /// Bytes.
        size: u64,
    },
    /// The device waits for a successor. The agent ends as soon as this is sent.
    HandedOver,
    /// The device is gone. The agent ends as soon as this is sent.
    Detached {
        /// What of it went wrong, data that was lost above all.
        #[serde(default)]
        lost: Option<String>,
    },
    /// Nothing was changed.
    Refused(Failure),
}

/// One device, as `dst status` shows it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DeviceReport {
    /// Its name.
    pub name: String,
    /// `attaching`, `live`, `reconnecting`, ... or `failed`, `detaching`, `dead`.
    pub state: String,
    /// Why, where there is something to say.
    pub message: Option<String>,
    /// The URL of the export.
    pub url: String,
    /// The server's URL.
    pub server: String,
    /// `fuse`, ...
    pub front_end: String,
    /// The path to use.
    pub node: Option<PathBuf>,
    /// What it leads to.
    pub device: Option<PathBuf>,
    /// `block-device` or `file`.
    pub kind: String,
    /// Queues that the kernel has for it; 0: none, or not known.
    pub queues: u16,
    /// What is not quite as it should be.
    pub notes: Vec<String>,
    /// Of the export, in bytes.
    pub size: u64,
    /// What the device shows of it, in bytes; 0: not known.
    pub device_size: u64,
    /// Bytes.
    pub logical_block: u32,
    /// Bytes.
    pub physical_block: u32,
    /// Writes are refused.
    pub read_only: bool,
    /// What else was negotiated.
    pub limits: Limits,
    /// The agent's process.
    pub pid: u32,
    /// Seconds since it was attached.
    pub attached_s: u64,
    /// Public number of the session.
    pub session: u64,
    /// Epoch of the lease.
    pub epoch: u64,
    /// The export's id, hexadecimal.
    pub export_id: String,
    /// Incarnation of the export, hexadecimal.
    pub incarnation: String,
    /// Connections that work now, and how many there should be.
    pub connections: [u16; 2],
    /// Requests sent and not answered.
    pub in_flight: u64,
    /// Requests that wait to be sent.
    pub queued: u64,
    /// Bytes of writes kept until the server has made them durable.
    pub retained_bytes: u64,
    /// The same in writes.
    pub retained_writes: u64,
    /// The agent is dead and has left writes in its record that nobody has made safe; how many is not known then.
    pub unsettled: bool,
    /// Requests sent one at a time since connections broke under them.
    pub suspects: u64,
    /// Connections lost.
    pub reconnects: u64,
    /// Sessions opened anew since the server had lost the one before.
    pub fresh_sessions: u64,
    /// Requests sent again.
    pub resent: u64,
    /// Acknowledged writes sent again to a fresh session, since the server may not have made them durable.
    pub replayed: u64,
    /// Requests failed at their deadline.
    pub expired: u64,
    /// Payloads that arrived damaged.
    pub bad_digests: u64,
    /// Requests that failed.
    pub errors: u64,
    /// Since it was attached.
    pub totals: Totals,
    /// In the last second or two.
    pub rates: Rates,
}

/// What server and client have agreed on, apart from sizes of the device and its blocks; what the device shows should be equal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Bytes of the largest request.
    pub max_transfer: u32,
    /// Seeks cost time.
    pub rotational: bool,
    /// Discard is there.
    pub discard: bool,
    /// Unit in bytes in which a discard takes effect; 0 if unknown.
    pub discard_granularity: u32,
    /// Write zeroes is there.
    pub write_zeroes: bool,
    /// Completed writes may be lost by a power loss until a flush.
    pub write_cache: bool,
    /// Writes with FUA are there.
    pub fua: bool,
}

/// Counts since a device was attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Totals {
    /// Requests.
    pub reads: u64,
    /// Requests.
    pub writes: u64,
    /// Bytes.
    pub read_bytes: u64,
    /// Bytes.
    pub written_bytes: u64,
}

/// Per second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rates {
    /// Requests.
    pub reads: f64,
    /// Requests.
    pub writes: f64,
    /// Bytes.
    pub read_bytes: f64,
    /// Bytes.
    pub written_bytes: f64,
}

impl Totals {
    /// What was done from `earlier` to now, over `seconds`.
    #[must_use]
    pub fn rates_since(&self, earlier: &Totals, seconds: f64) -> Rates {
        let per_second = |now: u64, then: u64| now.saturating_sub(then) as f64 / seconds;
        Rates {
            reads: per_second(self.reads, earlier.reads),
            writes: per_second(self.writes, earlier.writes),
            read_bytes: per_second(self.read_bytes, earlier.read_bytes),
            written_bytes: per_second(self.written_bytes, earlier.written_bytes),
        }
    }
}

/// A connection to an agent.
#[derive(Debug)]
pub struct Agent {
    stream: BufReader<UnixStream>,
}

impl Agent {
    /// Connects to the socket at `path`. Never waits: `WouldBlock` if the agent has not even taken those before.
    ///
    /// # Errors
    /// There is no agent, or it does not answer.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
        let stream = UnixStream::from(socket);
        stream.set_nonblocking(false)?;
        Ok(Self {
            stream: BufReader::new(stream),
        })
    }

    /// Process id of the agent, as the kernel knows it.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn pid(&self) -> io::Result<rustix::process::Pid> {
        Ok(rustix::net::sockopt::socket_peercred(self.stream.get_ref())?.pid)
    }

    /// Sends a request.
    ///
    /// # Errors
    /// The agent is gone or takes nothing.
    pub fn send(&mut self, request: Request) -> io::Result<()> {
        let mut line = serde_json::to_vec(&request).map_err(io::Error::other)?;
        line.push(b'\n');
        let stream = self.stream.get_mut();
        stream.set_write_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(&line)
    }

    /// Takes the next reply, waiting for `timeout` at most (`None`: without limit).
    ///
    /// # Errors
    /// `WouldBlock` or `TimedOut` when time is up, `UnexpectedEof` when the agent is gone. After an error the connection is
    /// of no use.
    pub fn receive(&mut self, timeout: Option<Duration>) -> io::Result<Reply> {
        let end = timeout.map(|timeout| Instant::now() + timeout);
        let mut line = Vec::new();
        loop {
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.stream.get_ref().set_read_timeout(left)?;
            let room = MAX_REPLY - line.len() as u64;
            match self.stream.by_ref().take(room).read_until(b'\n', &mut line) {
                Ok(_) if line.last() == Some(&b'\n') => {
                    return serde_json::from_slice(&line).map_err(io::Error::from);
                }
                Ok(_) => return Err(io::ErrorKind::UnexpectedEof.into()),
                // What has come so far is in `line`.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The socket, to wait on.
    #[must_use]
    pub fn stream(&self) -> &UnixStream {
        self.stream.get_ref()
    }

    /// Asks how the device is.
    ///
    /// # Errors
    /// No agent, no answer in time, or one that makes no sense.
    pub fn status(path: &Path, timeout: Duration) -> io::Result<DeviceReport> {
        let mut agent = Self::connect(path)?;
        agent.send(Request::Status)?;
        match agent.receive(Some(timeout))? {
            Reply::Status(report) => Ok(*report),
            other => Err(io::Error::other(format!("unexpected reply {other:?}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Code;

    #[test]
    fn requests_and_replies_survive_the_way_through_json() {
        for (request, text) in [
            (Request::Status, r#"{"cmd":"status"}"#),
            (Request::HandOver, r#"{"cmd":"hand-over"}"#),
            (
                Request::Detach { force: true },
                r#"{"cmd":"detach","force":true}"#,
            ),
        ] {
            assert_eq!(serde_json::to_string(&request).unwrap(), text);
            assert_eq!(serde_json::from_str::<Request>(text).unwrap(), request);
        }
        assert_eq!(
            serde_json::from_str::<Request>(r#"{"cmd":"detach"}"#).unwrap(),
            Request::Detach { force: false }
        );
        let report = DeviceReport {
            name: "disk".into(),
            size: 7,
            ..DeviceReport::default()
        };
        for reply in [
            Reply::Status(Box::new(report)),
            Reply::Detached { lost: None },
            Reply::Refused(Failure::new(Code::InUse, "mounted")),
        ] {
            let text = serde_json::to_string(&reply).unwrap();
            assert_eq!(serde_json::from_str::<Reply>(&text).unwrap(), reply);
        }
    }

    #[test]
    fn an_older_agents_report_can_be_read() {
        let text = r#"{"reply":"status","name":"disk","future":1}"#;
        let Reply::Status(report) = serde_json::from_str(text).unwrap() else {
            panic!("not a status");
        };
        assert_eq!(report.name, "disk");
        assert_eq!(report.in_flight, 0);
    }

    #[test]
    fn a_silent_agent_is_given_up_and_a_missing_one_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control");
        assert!(Agent::connect(&path).is_err());
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let mut agent = Agent::connect(&path).unwrap();
        assert_eq!(agent.pid().unwrap(), rustix::process::getpid());
        agent.send(Request::Status).unwrap();
        let error = agent.receive(Some(Duration::from_millis(1))).unwrap_err();
        assert!(matches!(
            error.kind(),
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
        ));
    }

    #[test]
    fn rates_are_differences_over_time() {
        let earlier = Totals {
            reads: 10,
            ..Totals::default()
        };
        let now = Totals {
            reads: 30,
            written_bytes: 4096,
            ..Totals::default()
        };
        let rates = now.rates_since(&earlier, 2.0);
        assert_eq!(rates.reads, 10.0);
        assert_eq!(rates.written_bytes, 2048.0);
    }
}
