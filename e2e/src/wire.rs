//! A client made by hand, frame by frame, for saying what no real client says.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context as _, Result};
use dst_proto::digest;
use dst_proto::frame::area_crc;
use dst_proto::proof::{join_proof, Transcript, NO_BINDING};
use dst_proto::{
    Algorithm, ClientName, Digests, ExportName, Header, Hello, Holder, Join, JoinRequest, Kind,
    Limits, Mode, OpenRequest, Opened, Role, Status, HEADER_LEN, HELLO_LEN, MAX_OPTIONS,
    MAX_PAYLOAD,
};

/// How long the server may take for anything.
pub const ANSWER: Duration = Duration::from_secs(20);
/// Who these clients say they are.
pub const HOLDER: Holder = Holder {
    identity: [0xBA; 16],
    boot: [0xDB; 16],
    instance: [0x01; 16],
};

/// A frame that came.
#[derive(Debug)]
pub struct Frame {
    /// Its header.
    pub header: Header,
    /// Options and digest area.
    pub area: Vec<u8>,
    /// Its payload.
    pub payload: Vec<u8>,
}

impl Frame {
    /// Its options.
    pub fn options(&self) -> &[u8] {
        &self.area[..usize::from(self.header.options_len)]
    }
}

/// A connection on which both HELLOs have been said.
pub struct Wire {
    stream: TcpStream,
    server_hello: Vec<u8>,
    client_hello: [u8; HELLO_LEN],
    /// The nonce of the server's HELLO.
    pub nonce: [u8; 16],
}

/// A bare connection.
///
/// # Errors
/// There is none to be had.
pub fn connect(addr: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&addr, ANSWER).context("can't connect")?;
    stream.set_read_timeout(Some(ANSWER))?;
    stream.set_write_timeout(Some(ANSWER))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Reads until the peer closes or resets; what it said.
///
/// # Errors
/// It does neither within the bound.
pub fn read_to_end(stream: &mut TcpStream, bound: Duration) -> Result<Vec<u8>> {
    let until = Instant::now() + bound;
    let mut said = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        ensure!(
            !left.is_zero(),
            "not closed within {:.0} s",
            bound.as_secs_f64()
        );
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(said),
            Ok(len) => said.extend_from_slice(&buffer[..len]),
            Err(error) if is_timeout(&error) => {}
            Err(_) => return Ok(said),
        }
    }
}

fn is_timeout(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
    )
}

/// A whole frame: header with lengths and CRC filled in, options, digest area, payload.
pub fn frame(header: &Header, options: &[u8], digests: &[u8], payload: &[u8]) -> Vec<u8> {
    let header = Header {
        options_len: options.len() as u16,
        digest_len: digests.len() as u32,
        payload_len: payload.len() as u32,
        area_crc: area_crc(options, digests),
        ..*header
    };
    let mut head = [0; HEADER_LEN];
    header.encode(&mut head);
    [&head[..], options, digests, payload].concat()
}

/// One option: number (with the critical bit, if any), value, padding.
pub fn option(number: u16, value: &[u8]) -> Vec<u8> {
    let mut option = [
        &number.to_le_bytes()[..],
        &(value.len() as u16).to_le_bytes(),
        value,
    ]
    .concat();
    option.resize(option.len().next_multiple_of(8), 0);
    option
}

/// A client's HELLO.
pub fn hello() -> Hello {
    Hello::new(Role::Client, [7; 16], "e2e")
}

/// The options of an ordinary OPEN.
pub fn open_options(name: &str, nonce: [u8; 16], mode: Mode) -> Vec<u8> {
    let request = OpenRequest {
        name: ExportName::new(name).expect("the campaign uses good names"),
        nonce,
        mode,
        limits: Limits {
            slots: 64,
            connections: 4,
            max_payload: MAX_PAYLOAD,
            window: 4096,
            credit_bytes: 16 << 20,
        },
        digests: Digests {
            mask: Algorithm::Crc32c.mask_bit(),
            granule: digest::DEFAULT_GRANULE,
        },
        holder: (mode != Mode::ReadOnly).then_some(HOLDER),
        client: ClientName::new("e2e").unwrap_or_default(),
        expect: None,
        retained: None,
    };
    let mut options = vec![0; usize::from(MAX_OPTIONS)];
    let len = request.encode(&mut options).unwrap_or_default();
    options.truncate(len);
    options
}

impl Wire {
    /// Connects and says HELLO.
    ///
    /// # Errors
    /// The server does not say its own.
    pub fn connect(addr: SocketAddr) -> Result<Wire> {
        let stream = connect(addr)?;
        Wire::greet(stream)
    }

    fn greet(mut stream: TcpStream) -> Result<Wire> {
        let mut server_hello = vec![0; HELLO_LEN];
        stream
            .read_exact(&mut server_hello)
            .context("the server's HELLO")?;
        let needed = Hello::needed(&server_hello).map_err(|error| anyhow::anyhow!("{error}"))?;
        let rest = needed - HELLO_LEN;
        server_hello.resize(needed, 0);
        stream.read_exact(&mut server_hello[needed - rest..])?;
        let said = Hello::decode(&server_hello).map_err(|error| anyhow::anyhow!("{error}"))?;
        let mut client_hello = [0; HELLO_LEN];
        hello().encode(&mut client_hello);
        stream.write_all(&client_hello)?;
        Ok(Wire {
            stream,
            server_hello,
            client_hello,
            nonce: said.nonce,
        })
    }

    /// The stream itself.
    pub fn stream(&mut self) -> &mut TcpStream {
        &mut self.stream
    }

    /// Sends bytes as they are. The peer may have closed: that is for the next read to find out.
    pub fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    /// The next frame; `None` if the connection has ended.
    ///
    /// # Errors
    /// What comes is no frame, or nothing comes.
    pub fn next(&mut self) -> Result<Option<Frame>> {
        let mut head = [0; HEADER_LEN];
        self.stream.set_read_timeout(Some(ANSWER))?;
        match self.stream.read_exact(&mut head) {
            Ok(()) => {}
            Err(error) if is_timeout(&error) => bail!("no answer"),
            Err(_) => return Ok(None),
        }
        let header = Header::decode(&head).map_err(|error| anyhow::anyhow!("{error}"))?;
        let mut area = vec![0; header.area_len() as usize];
        let mut payload = vec![0; header.payload_len as usize];
        self.stream
            .read_exact(&mut area)
            .context("options and digests")?;
        self.stream.read_exact(&mut payload).context("payload")?;
        Ok(Some(Frame {
            header,
            area,
            payload,
        }))
    }

    /// The next frame that is no PING; PINGs are answered.
    ///
    /// # Errors
    /// As [`Wire::next`].
    pub fn reply(&mut self) -> Result<Option<Frame>> {
        loop {
            match self.next()? {
                Some(frame) if frame.header.kind == Kind::PING && !frame.header.reply => {
                    let header = Header {
                        reply: true,
                        ..frame.header
                    };
                    self.send(&self::frame(&header, &[], &[], &[]));
                }
                other => return Ok(other),
            }
        }
    }

    /// # Errors
    /// The server answers anything but an ERROR, or does not close.
    pub fn expect_closed(&mut self) -> Result<()> {
        while let Some(frame) = self.reply()? {
            ensure!(
                frame.header.kind == Kind::ERROR,
                "answered with {:?}",
                frame.header
            );
        }
        Ok(())
    }

    /// Sends OPEN with these options; the reply.
    ///
    /// # Errors
    /// The connection ends.
    pub fn open_with(&mut self, options: &[u8]) -> Result<Frame> {
        self.send(&frame(&Header::new(Kind::OPEN), options, &[], &[]));
        self.reply()?
            .context("the connection ended without an answer to OPEN")
    }

    /// An ordinary session.
    ///
    /// # Errors
    /// It is refused.
    pub fn open(mut self, name: &str, mode: Mode) -> Result<Session> {
        let options = open_options(name, self.nonce, mode);
        let reply = self.open_with(&options)?;
        ensure!(
            reply.header.status().is_ok(),
            "OPEN of {name}: {}",
            reply.header.status()
        );
        let opened =
            Opened::decode(reply.options()).map_err(|error| anyhow::anyhow!("OPENED: {error}"))?;
        self.send(&frame(&Header::new(Kind::REPLAYED), &[], &[], &[]));
        Ok(Session {
            wire: self,
            opened,
            next_id: 1,
            acked: 0,
        })
    }

    /// The options of a JOIN with this secret.
    ///
    /// # Errors
    /// None in practice.
    pub fn join_options(&self, secret: &[u8; 16], join: Join) -> Result<Vec<u8>> {
        let transcript = Transcript {
            server_hello: &self.server_hello,
            client_hello: &self.client_hello,
            binding: &NO_BINDING,
        };
        let proof = join_proof(secret, &transcript, &join).context("no proof")?;
        let request = JoinRequest {
            nonce: self.nonce,
            join,
            proof,
        };
        let mut options = vec![0; usize::from(MAX_OPTIONS)];
        let len = request
            .encode(&mut options)
            .map_err(|error| anyhow::anyhow!("{error}"))?;
        options.truncate(len);
        Ok(options)
    }

    /// Sends JOIN with these options; the reply.
    ///
    /// # Errors
    /// The connection ends.
    pub fn join_with(&mut self, options: &[u8]) -> Result<Frame> {
        self.send(&frame(&Header::new(Kind::JOIN), options, &[], &[]));
        self.reply()?
            .context("the connection ended without an answer to JOIN")
    }

    /// Ends the outgoing direction.
    pub fn finish(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }
}

/// A session on its first connection.
pub struct Session {
    /// The connection.
    pub wire: Wire,
    /// What the server granted.
    pub opened: Opened,
    /// The id that the next request takes.
    pub next_id: u64,
    /// Every id up to this one has been answered.
    pub acked: u64,
}

impl Session {
    /// Opens one.
    ///
    /// # Errors
    /// It is refused.
    pub fn open(addr: SocketAddr, name: &str, mode: Mode) -> Result<Session> {
        Wire::connect(addr)?.open(name, mode)
    }

    /// A request in a slot, with the next id.
    pub fn request(&mut self, kind: Kind, slot: u16, offset: u64, length: u64) -> Header {
        let id = self.next_id;
        self.next_id += 1;
        Header {
            slot,
            id,
            acked: self.acked,
            offset,
            length,
            ..Header::new(kind)
        }
    }

    /// The digest area of a payload.
    pub fn digests(&self, offset: u64, payload: &[u8]) -> Vec<u8> {
        let choice = self.opened.digests;
        let len = payload.len() as u32;
        let area = digest::area_len(choice.algorithm, choice.granule, offset, len);
        let mut area = vec![0; area.unwrap_or_default() as usize];
        digest::write(choice.algorithm, choice.granule, offset, payload, &mut area);
        area
    }

    /// A whole WRITE with the next id.
    pub fn write_frame(&mut self, slot: u16, offset: u64, payload: &[u8]) -> Vec<u8> {
        let header = self.request(Kind::WRITE, slot, offset, payload.len() as u64);
        frame(&header, &[], &self.digests(offset, payload), payload)
    }

    /// Sends a request without payload; its status.
    ///
    /// # Errors
    /// No answer.
    pub fn run(&mut self, kind: Kind, offset: u64, length: u64) -> Result<Status> {
        let header = self.request(kind, 0, offset, length);
        self.wire.send(&frame(&header, &[], &[], &[]));
        Ok(self.answer(header.id)?.0)
    }

    /// Writes; the status.
    ///
    /// # Errors
    /// No answer.
    pub fn write(&mut self, offset: u64, payload: &[u8]) -> Result<Status> {
        let bytes = self.write_frame(0, offset, payload);
        let id = self.next_id - 1;
        self.wire.send(&bytes);
        Ok(self.answer(id)?.0)
    }

    /// Reads.
    ///
    /// # Errors
    /// No answer, or a bad one.
    pub fn read(&mut self, offset: u64, length: u64) -> Result<Vec<u8>> {
        let header = self.request(Kind::READ, 0, offset, length);
        self.wire.send(&frame(&header, &[], &[], &[]));
        let (status, data) = self.answer(header.id)?;
        ensure!(status.is_ok(), "READ at {offset}: {status}");
        ensure!(
            data.len() as u64 == length,
            "READ of {length} brought {} bytes",
            data.len()
        );
        Ok(data)
    }

    /// The answer to a request, its pieces put together.
    ///
    /// # Errors
    /// None comes, or another.
    pub fn answer(&mut self, id: u64) -> Result<(Status, Vec<u8>)> {
        let mut data = Vec::new();
        loop {
            let frame = self
                .wire
                .reply()?
                .with_context(|| format!("the connection ended without an answer to id {id}"))?;
            ensure!(
                frame.header.id == id,
                "an answer to id {} instead of {id}: {:?}",
                frame.header.id,
                frame.header
            );
            data.extend_from_slice(&frame.payload);
            if !frame.header.more {
                // Requests are answered one after another here; RETRY is no answer.
                if frame.header.status() != Status::RETRY {
                    self.acked = self.acked.max(id);
                }
                return Ok((frame.header.status(), data));
            }
        }
    }

    /// # Errors
    /// The connection does not work any more.
    pub fn ping(&mut self) -> Result<()> {
        let header = Header {
            id: 0xFACE,
            ..Header::new(Kind::PING)
        };
        self.wire.send(&frame(&header, &[], &[], &[]));
        let frame = self
            .wire
            .reply()?
            .context("the connection ended instead of answering PING")?;
        ensure!(
            frame.header.kind == Kind::PING && frame.header.id == 0xFACE,
            "PING was answered with {:?}",
            frame.header
        );
        Ok(())
    }

    /// Ends the session, so that the next one need not wait for the lease.
    ///
    /// # Errors
    /// It can't.
    pub fn close(mut self) -> Result<()> {
        self.wire
            .send(&frame(&Header::new(Kind::CLOSE), &[], &[], &[]));
        let reply = self
            .wire
            .reply()?
            .context("the connection ended without an answer to CLOSE")?;
        ensure!(
            reply.header.kind == Kind::CLOSE && reply.header.status().is_ok(),
            "CLOSE: {:?}",
            reply.header
        );
        Ok(())
    }
}
