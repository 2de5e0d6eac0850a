//! A client that says exactly what a test wants, frame by frame.

#![allow(dead_code, reason = "each test program uses a part")]

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use dst_engine::server::seal;
use dst_net::Stream;
use dst_proto::{
    proof, ClientName, Digests, ExportName, Header, Hello, Holder, Join, JoinRequest, Kind, Limits,
    Mode, OpenRequest, Opened, Role, SessionGrant, Status, HEADER_LEN, HELLO_LEN, MAX_OPTIONS,
    NO_SLOT,
};
use dst_server::{Config, ExportConfig, Server, StartError};
use rustix::event::{poll, PollFd, PollFlags, Timespec};

/// So long a test waits for something that should happen at once, before it fails.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub fn config(dir: &Path, specs: &[&str]) -> Config {
    let export = |spec: &&str| ExportConfig {
        spec: spec.parse().unwrap(),
        read_only: false,
        block_size: None,
        create_size: None,
    };
    let listen = format!("dst+unix://{}", socket(dir).display());
    let exports = specs.iter().map(export).collect();
    let mut config = Config::new(exports, vec![listen.parse().unwrap()], dir.join("state"));
    // Nothing happens by time alone.
    config.lease_time = Duration::from_secs(3600);
    config.keepalive = Duration::from_secs(3600);
    config
}

pub fn start(dir: &Path, specs: &[&str]) -> Result<Server, StartError> {
    Server::start(config(dir, specs))
}

/// A figure of `/proc/self/status`, bytes.
pub fn figure(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let number = line.unwrap().trim_start_matches(':').trim();
    let number = number.strip_suffix(" kB").unwrap();
    number.parse::<u64>().unwrap() << 10
}

fn socket(dir: &Path) -> std::path::PathBuf {
    dir.join("dst.sock")
}

/// A stream with the server's HELLO read.
pub struct Raw {
    input: File,
    /// Where it is not the same.
    output: Option<File>,
    nonce: [u8; 16],
    /// The server's HELLO.
    hello: [u8; HELLO_LEN],
    /// What it asks for.
    pub limits: Limits,
}

impl Raw {
    pub fn connect(dir: &Path) -> Self {
        let stream = UnixStream::connect(socket(dir)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self::new(stream.into(), None)
    }

    pub fn over(input: impl Into<OwnedFd>, output: impl Into<OwnedFd>) -> Self {
        Self::new(input.into(), Some(File::from(output.into())))
    }

    fn new(input: OwnedFd, output: Option<File>) -> Self {
        let mut input = File::from(input);
        let mut hello = [0; HELLO_LEN];
        input.read_exact(&mut hello).unwrap();
        Self {
            input,
            output,
            nonce: Hello::decode(&hello).unwrap().nonce,
            hello,
            limits: Limits {
                slots: 4,
                connections: 1,
                max_payload: 65536,
                window: 64,
                credit_bytes: 1 << 20,
            },
        }
    }

    /// Asks for a session: to write as this instance of one and the same client, or to read.
    pub fn ask(&mut self, export: &str, instance: Option<u8>) {
        let options = self.open_options(export, instance);
        self.begin(Kind::OPEN, &options);
    }

    /// The options of that OPEN.
    pub fn open_options(&self, export: &str, instance: Option<u8>) -> Vec<u8> {
        let holder = instance.map(|instance| Holder {
            identity: [1; 16],
            boot: [2; 16],
            instance: [instance; 16],
        });
        let open = OpenRequest {
            name: ExportName::new(export).unwrap(),
            nonce: self.nonce,
            mode: holder.map_or(Mode::ReadOnly, |_| Mode::SoleWriter),
            limits: self.limits,
            digests: Digests {
                mask: 1,
                granule: 4096,
            },
            holder,
            client: ClientName::new("raw").unwrap(),
            expect: None,
            retained: None,
        };
        let mut options = vec![0; usize::from(MAX_OPTIONS)];
        let length = open.encode(&mut options).unwrap();
        options.truncate(length);
        options
    }

    /// Takes the answer to OPEN, and tells what session there is, if one.
    pub fn opened(&mut self) -> Result<SessionGrant, Status> {
        let (header, rest) = self.take();
        match header.status() {
            Status::OK => {
                let options = &rest[..usize::from(header.options_len)];
                Ok(Opened::decode(options).unwrap().session)
            }
            status => Err(status),
        }
    }

    /// Asks to be the first connection of a session instead of the one before.
    pub fn join(&mut self, session: &SessionGrant, generation: u32) {
        let join = Join {
            session: session.number,
            generation,
            index: 0,
        };
        let transcript = proof::Transcript {
            server_hello: &self.hello,
            client_hello: &client_hello(),
            binding: &proof::NO_BINDING,
        };
        let request = JoinRequest {
            nonce: self.nonce,
            join,
            proof: proof::join_proof(&session.secret, &transcript, &join).unwrap(),
        };
        let mut options = vec![0; usize::from(MAX_OPTIONS)];
        let length = request.encode(&mut options).unwrap();
        self.begin(Kind::JOIN, &options[..length]);
    }

    /// Asks to end the session.
    pub fn close(&mut self) {
        let header = Header {
            slot: NO_SLOT,
            ..Header::new(Kind::CLOSE)
        };
        let mut frame = vec![0; HEADER_LEN];
        seal(&header, &mut frame);
        self.send(&frame);
    }

    /// Sends what is no frame.
    pub fn babble(&mut self) {
        self.send(&[0; HEADER_LEN]);
    }

    /// Sends the HELLO and a first frame.
    pub fn begin(&mut self, kind: Kind, options: &[u8]) {
        let hello = client_hello();
        let mut frame = vec![0; HEADER_LEN];
        frame.extend(options);
        let header = Header {
            slot: NO_SLOT,
            options_len: options.len() as u16,
            ..Header::new(kind)
        };
        let length = seal(&header, &mut frame);
        self.send(&hello);
        self.send(&frame[..length]);
    }

    /// Asks to read or to write a block of this length, in slot `id - 1`.
    pub fn request(&mut self, kind: Kind, id: u64, offset: u64, length: u32) {
        let header = Header {
            slot: (id - 1) as u16,
            id,
            offset,
            length: length.into(),
            payload_len: if kind == Kind::WRITE { length } else { 0 },
            ..Header::new(kind)
        };
        let mut frame = vec![0; HEADER_LEN];
        seal(&header, &mut frame);
        self.send(&frame);
        self.send(&vec![id as u8; header.payload_len as usize]);
    }

    fn send(&mut self, bytes: &[u8]) {
        let output = self.output.as_mut().unwrap_or(&mut self.input);
        output.write_all(bytes).unwrap();
    }

    /// Waits until there is something to take.
    pub fn wait(&self) {
        wait_for(&mut [PollFd::new(&self.input, PollFlags::IN)]);
    }

    /// The header of the next frame; what else it has is skipped.
    pub fn next(&mut self) -> Header {
        self.take().0
    }

    /// The next frame: its header, and all the rest.
    fn take(&mut self) -> (Header, Vec<u8>) {
        let mut header = [0; HEADER_LEN];
        self.input.read_exact(&mut header).unwrap();
        let header = Header::decode(&header).unwrap();
        let mut rest = vec![0; (header.frame_len() - HEADER_LEN as u64) as usize];
        self.input.read_exact(&mut rest).unwrap();
        (header, rest)
    }
}

/// The HELLO of every such client.
fn client_hello() -> [u8; HELLO_LEN] {
    let mut hello = [0; HELLO_LEN];
    Hello::new(Role::Client, [9; 16], "raw").encode(&mut hello);
    hello
}

/// Waits until the server has said something to one of the two, or hung up. Answers whether to the first.
pub fn hears_first(one: &Raw, other: &Raw) -> bool {
    let mut both = [one, other].map(|raw| PollFd::new(&raw.input, PollFlags::IN));
    wait_for(&mut both);
    !both[0].revents().is_empty()
}

/// Waits until something has happened to one of these.
pub fn wait_for(watched: &mut [PollFd<'_>]) {
    let timeout = Timespec {
        tv_sec: PATIENCE.as_secs() as i64,
        tv_nsec: 0,
    };
    assert_ne!(poll(watched, Some(&timeout)).unwrap(), 0, "nothing happens");
}

/// For servers that are given their streams.
pub fn streams(stream: impl Stream + 'static) -> Vec<Box<dyn Stream>> {
    vec![Box::new(stream)]
}
