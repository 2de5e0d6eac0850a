//! A small server made by hand, over content that each offset determines, which can be told to do evil to every READ.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use dst_proto::digest;
use dst_proto::option::Value;
use dst_proto::{
    Algorithm, Credit, DigestChoice, ExportName, ExportState, Geometry, GeometryFlags, Header,
    Hello, Kind, Limits, Listed, OptionWriter, Role, SessionGrant, Status, Times, HEADER_LEN,
    HELLO_LEN, NO_SLOT,
};

use crate::wire::frame;

/// Bytes of its export.
const SIZE: u64 = 16 << 20;
const LIMITS: Limits = Limits {
    slots: 64,
    connections: 1,
    max_payload: 1 << 20,
    window: 4096,
    credit_bytes: 8 << 20,
};
const CREDIT: Credit = Credit {
    requests: 63,
    bytes: 8 << 20,
};

/// What it does to a READ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Evil {
    /// Nothing: it answers.
    None,
    /// No answer.
    Silence,
    /// Data that the digests don't fit.
    Digest,
    /// Data and digests of another place.
    OtherPlace,
    /// Fewer bytes than asked for.
    Short,
    /// More bytes than asked for.
    Long,
    /// An answer for a slot that asked nothing.
    OtherSlot,
    /// An answer with another id.
    OtherId,
    /// A header whose CRC is wrong.
    HeaderCrc,
    /// No frame at all.
    Garbage,
    /// An export without size or blocks.
    Changed,
    /// A status that nobody knows.
    Status,
    /// Half an answer and the end.
    Cut,
}

impl Evil {
    /// Every evil.
    pub const ALL: [Evil; 12] = [
        Evil::Silence,
        Evil::Digest,
        Evil::OtherPlace,
        Evil::Short,
        Evil::Long,
        Evil::OtherSlot,
        Evil::OtherId,
        Evil::HeaderCrc,
        Evil::Garbage,
        Evil::Changed,
        Evil::Status,
        Evil::Cut,
    ];
}

fn put<'a>(options: &mut Vec<u8>, value: &impl Value<'a>) {
    let mut room = [0; 512];
    let mut writer = OptionWriter::new(&mut room);
    // Every value here is small.
    let _ = value.write(&mut writer);
    let len = writer.len();
    options.extend_from_slice(&room[..len]);
}

fn geometry(size: u64, block: u32) -> Geometry {
    Geometry {
        size,
        logical_block: block,
        physical_block: block,
        flags: GeometryFlags::FUA,
        discard_granularity: 0,
        atomic_limit: block,
        rollback_limit: 0,
    }
}

/// A whole OPENED for an export of this shape.
pub fn opened(size: u64, block: u32) -> Vec<u8> {
    let mut options = Vec::new();
    put(
        &mut options,
        &SessionGrant {
            number: 7,
            secret: [7; 16],
        },
    );
    put(
        &mut options,
        &ExportState {
            id: [1; 16],
            incarnation: [2; 16],
            epoch: 1,
        },
    );
    put(&mut options, &geometry(size, block));
    put(&mut options, &LIMITS);
    put(
        &mut options,
        &DigestChoice {
            algorithm: Algorithm::Crc32c,
            granule: digest::DEFAULT_GRANULE,
        },
    );
    put(
        &mut options,
        &Times {
            keepalive_ms: 5000,
            session_ms: 60_000,
            lease_ms: 60_000,
        },
    );
    frame(
        &Header::reply(Kind::OPEN, NO_SLOT, 0, Status::OK, CREDIT),
        &options,
        &[],
        &[],
    )
}

/// The options of a LIST with one export.
pub fn listed() -> Vec<u8> {
    let mut options = Vec::new();
    let name = ExportName::new("disk").expect("it is a good name");
    put(
        &mut options,
        &Listed {
            size: SIZE,
            logical_block: 512,
            flags: GeometryFlags::NONE,
            name,
            writer: Default::default(),
        },
    );
    options
}

/// What is at an offset: no two sectors are the same.
fn content(offset: u64, len: usize) -> Vec<u8> {
    let words = (offset / 8..).map(|word| word.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes());
    words.flatten().take(len).collect()
}

/// Whether these bytes are the content there.
pub fn is_content(offset: u64, data: &[u8]) -> bool {
    data == content(offset, data.len())
}

/// See the [module](self). It ends when it is dropped.
pub struct Server {
    addr: SocketAddr,
    stop: Arc<AtomicBool>,
}

impl Server {
    /// Starts it; `evil` may be changed at any time.
    ///
    /// # Errors
    /// No port.
    pub fn start(evil: Arc<AtomicU8>) -> Result<Server> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let addr = listener.local_addr()?;
        let stop = Arc::new(AtomicBool::new(false));
        let ended = stop.clone();
        std::thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => {
                        let evil = evil.clone();
                        std::thread::spawn(move || serve(stream, &evil));
                    }
                    Err(_) => std::thread::sleep(Duration::from_millis(5)),
                }
            }
        });
        Ok(Server { addr, stop })
    }

    /// The URL of its export.
    pub fn url(&self) -> String {
        format!("dst://{}/disk", self.addr)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// One connection, until it ends.
fn serve(mut stream: TcpStream, evil: &AtomicU8) -> Option<()> {
    stream.set_nonblocking(false).ok()?;
    stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .ok()?;
    let mut hello = [0; HELLO_LEN];
    Hello::new(Role::Server, [9; 16], "hostile").encode(&mut hello);
    stream.write_all(&hello).ok()?;
    stream.read_exact(&mut hello).ok()?;
    loop {
        let mut head = [0; HEADER_LEN];
        stream.read_exact(&mut head).ok()?;
        let request = Header::decode(&head).ok()?;
        let mut rest = vec![0; (request.area_len() + request.payload_len) as usize];
        stream.read_exact(&mut rest).ok()?;
        let reply = Header::reply(request.kind, request.slot, request.id, Status::OK, CREDIT);
        let evil = evil.load(Ordering::Relaxed);
        let bytes = match request.kind {
            Kind::OPEN => opened(SIZE, 512),
            // A session that this connection does not know: the client opens a new one.
            Kind::JOIN => {
                let lost = Header::reply(Kind::JOIN, NO_SLOT, 0, Status::SESSION_LOST, CREDIT);
                stream.write_all(&frame(&lost, &[], &[], &[])).ok()?;
                return None;
            }
            Kind::REPLAYED => continue,
            Kind::PING if request.reply => continue,
            Kind::READ => {
                let bytes = answer_read(&request, reply, evil);
                stream.write_all(&bytes).ok()?;
                if evil == Evil::Cut as u8 {
                    return None;
                }
                continue;
            }
            _ => frame(&reply, &[], &[], &[]),
        };
        stream.write_all(&bytes).ok()?;
    }
}

fn with_data(reply: &Header, offset: u64, data: &[u8], spoil: bool) -> Vec<u8> {
    let (algorithm, granule) = (Algorithm::Crc32c, digest::DEFAULT_GRANULE);
    let len = digest::area_len(algorithm, granule, offset, data.len() as u32);
    let mut area = vec![0; len.unwrap_or_default() as usize];
    digest::write(algorithm, granule, offset, data, &mut area);
    if spoil {
        area[0] ^= 1;
    }
    frame(&Header { offset, ..*reply }, &[], &area, data)
}

fn answer_read(request: &Header, reply: Header, evil: u8) -> Vec<u8> {
    let (offset, len) = (request.offset, request.length as usize);
    let data = content(offset, len);
    let is = |which: Evil| evil == which as u8;
    let good = with_data(&reply, offset, &data, false);
    if is(Evil::Silence) {
        Vec::new()
    } else if is(Evil::Digest) {
        with_data(&reply, offset, &data, true)
    } else if is(Evil::OtherPlace) {
        let elsewhere = (offset + (1 << 20)) % SIZE;
        with_data(&reply, elsewhere, &content(elsewhere, len), false)
    } else if is(Evil::Short) {
        with_data(&reply, offset, &data[..len / 2], false)
    } else if is(Evil::Long) {
        with_data(&reply, offset, &content(offset, len + 512), false)
    } else if is(Evil::OtherSlot) {
        let slot = (request.slot + 1) % 60;
        with_data(&Header { slot, ..reply }, offset, &data, false)
    } else if is(Evil::OtherId) {
        let id = request.id + 1000;
        with_data(&Header { id, ..reply }, offset, &data, false)
    } else if is(Evil::HeaderCrc) {
        let mut bytes = good;
        bytes[30] ^= 4;
        bytes
    } else if is(Evil::Garbage) {
        data
    } else if is(Evil::Changed) {
        let mut options = Vec::new();
        put(&mut options, &geometry(0, 4));
        frame(&Header::new(Kind::CHANGED), &options, &[], &[])
    } else if is(Evil::Status) {
        frame(
            &Header::reply(Kind::READ, request.slot, request.id, Status(4242), CREDIT),
            &[],
            &[],
            &[],
        )
    } else if is(Evil::Cut) {
        good[..good.len() / 2].to_vec()
    } else {
        good
    }
}
