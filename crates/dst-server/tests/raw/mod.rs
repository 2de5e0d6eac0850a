//! A client that says exactly what a test wants, frame by frame.

#![allow(dead_code, reason = "each test program uses a part")]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use dst_engine::server::seal;
use dst_net::Stream;
use dst_proto::{
    ClientName, Digests, ExportName, Header, Hello, Holder, Kind, Limits, Mode, OpenRequest, Role,
    HEADER_LEN, HELLO_LEN, MAX_OPTIONS, NO_SLOT,
};
use dst_server::{Config, ExportConfig, Server, StartError};

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

fn socket(dir: &Path) -> std::path::PathBuf {
    dir.join("dst.sock")
}

/// A stream with the server's HELLO read.
pub struct Raw {
    input: Box<dyn Read>,
    output: Box<dyn Write>,
    nonce: [u8; 16],
}

impl Raw {
    pub fn connect(dir: &Path) -> Self {
        let stream = UnixStream::connect(socket(dir)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let output = stream.try_clone().unwrap();
        Self::over(stream, output)
    }

    pub fn over(mut input: impl Read + 'static, output: impl Write + 'static) -> Self {
        let mut hello = [0; HELLO_LEN];
        input.read_exact(&mut hello).unwrap();
        Self {
            input: Box::new(input),
            output: Box::new(output),
            nonce: Hello::decode(&hello).unwrap().nonce,
        }
    }

    /// Asks for a session: to write as this instance of one and the same client, or to read.
    pub fn ask(&mut self, export: &str, instance: Option<u8>) {
        let holder = instance.map(|instance| Holder {
            identity: [1; 16],
            boot: [2; 16],
            instance: [instance; 16],
        });
        let open = OpenRequest {
            name: ExportName::new(export).unwrap(),
            nonce: self.nonce,
            mode: holder.map_or(Mode::ReadOnly, |_| Mode::SoleWriter),
            limits: Limits {
                slots: 4,
                connections: 1,
                max_payload: 65536,
                window: 64,
                credit_bytes: 1 << 20,
            },
            digests: Digests {
                mask: 1,
                granule: 4096,
            },
            holder,
            client: ClientName::new("raw").unwrap(),
            expect: None,
            retained: None,
        };
        let mut hello = [0; HELLO_LEN];
        Hello::new(Role::Client, [9; 16], "raw").encode(&mut hello);
        let mut frame = vec![0; HEADER_LEN + usize::from(MAX_OPTIONS)];
        let length = open.encode(&mut frame[HEADER_LEN..]).unwrap();
        let header = Header {
            slot: NO_SLOT,
            options_len: length as u16,
            ..Header::new(Kind::OPEN)
        };
        let length = seal(&header, &mut frame);
        self.output.write_all(&hello).unwrap();
        self.output.write_all(&frame[..length]).unwrap();
    }

    /// The header of the next frame; what else it has is skipped.
    pub fn next(&mut self) -> Header {
        let mut header = [0; HEADER_LEN];
        self.input.read_exact(&mut header).unwrap();
        let header = Header::decode(&header).unwrap();
        let rest = header.frame_len() - HEADER_LEN as u64;
        let skipped = std::io::copy(&mut (&mut self.input).take(rest), &mut std::io::sink());
        assert_eq!(skipped.unwrap(), rest);
        header
    }
}

/// For servers that are given their streams.
pub fn streams(stream: impl Stream + 'static) -> Vec<Box<dyn Stream>> {
    vec![Box::new(stream)]
}
