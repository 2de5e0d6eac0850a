//! What exports a server has.

use std::time::{Duration, Instant};

use dst_ids::random;
use dst_net::{Came, End, Endpoint, Framed, Interest, NoMemory, Poller, Share};
use dst_proto::{
    ClientName, GeometryFlags, Header, Hello, Kind, ListReply, ListRequest, Refusal, Role, Status,
    HEADER_LEN, HELLO_LEN,
};
use serde::Serialize;

use crate::OpenError;

/// How long a server may take to answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Most exports that are taken from one server: far more than anybody serves, and few enough for any memory.
const MOST: usize = 65536;

/// One export as a server announces it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Logical block, bytes.
    pub logical_block: u32,
    /// Writes are refused.
    pub read_only: bool,
    /// The client that writes, if one does.
    pub writer: Option<String>,
}

/// Asks a server for its exports; blocks for some seconds at most. `name` is what the server calls this client.
pub fn list(endpoint: &Endpoint, insecure: bool, name: &str) -> Result<Vec<Listed>, OpenError> {
    let transport = endpoint.transport();
    let started = Instant::now();
    let unreachable = |cause: String| OpenError::Unreachable {
        peer: transport.describe(),
        seconds: started.elapsed().as_secs(),
        cause,
    };
    let stream = transport
        .connect(TIMEOUT)
        .map_err(|error| unreachable(error.to_string()))?;
    if !stream.is_trusted() && !insecure {
        return Err(OpenError::Insecure(stream.peer()));
    }
    let poller = Poller::new()?;
    let mut framed = Framed::<()>::new(stream, Role::Server);
    poller.add(framed.link.fd(), 0, Interest::READ)?;
    let mut exports = Vec::new();
    let mut events = Vec::new();
    loop {
        // Here, so that a server that never stops talking has no more time than a silent one.
        let left = TIMEOUT
            .checked_sub(started.elapsed())
            .ok_or_else(|| unreachable("no whole answer".into()))?;
        match framed.next(&mut NoMemory, &mut Share::new()) {
            Ok(Some(Came::Hello(_))) => {
                framed.link.push_bytes(&request(name));
                // A few hundred bytes always fit an empty socket buffer.
                framed.link.flush()?;
            }
            Ok(Some(Came::Frame(header))) => {
                if take_reply(&header, framed.options(), &mut exports)? {
                    return Ok(exports);
                }
            }
            // No payload is accepted here.
            Ok(Some(Came::Payload(()))) | Ok(None) => poller.wait(Some(left), &mut events)?,
            Err(End::Fault(fault)) => return Err(OpenError::Incompatible(fault.text.into())),
            Err(End::Stream(error)) => return Err(unreachable(error.to_string())),
        }
    }
}

fn request(name: &str) -> Vec<u8> {
    let mut out = vec![0; HELLO_LEN + HEADER_LEN + 128];
    let hello = Hello::new(
        Role::Client,
        random(),
        concat!("dst ", env!("CARGO_PKG_VERSION")),
    );
    let (head, rest) = out
        .split_first_chunk_mut()
        .expect("the buffer is longer than a HELLO");
    hello.encode(head);
    let client = ClientName::new(name).or_else(|| ClientName::new(""));
    let options = client.map(|client| ListRequest { client }.encode(&mut rest[HEADER_LEN..]));
    let options_len = match options {
        Some(Ok(length)) => length as u16,
        _ => 0,
    };
    let header = Header {
        options_len,
        ..Header::new(Kind::LIST)
    };
    let length = dst_engine::client::seal(&header, rest);
    out.truncate(HELLO_LEN + length);
    out
}

/// Takes one frame of the answer; true when it was the last.
fn take_reply(
    header: &Header,
    options: &[u8],
    exports: &mut Vec<Listed>,
) -> Result<bool, OpenError> {
    if header.kind != Kind::LIST || header.status() != Status::OK {
        let message = match Refusal::decode(options) {
            Ok(refusal) => refusal.message.to_string(),
            Err(_) => "no LIST came".to_owned(),
        };
        return Err(OpenError::refused(header.status(), message, None));
    }
    let reply = ListReply::decode(options)
        .map_err(|_| OpenError::Unusable("malformed answer to LIST".into()))?;
    for export in reply {
        if exports.len() == MOST {
            return Err(OpenError::Unusable("too many exports".into()));
        }
        let writer = export.writer.as_str();
        exports.push(Listed {
            name: export.name.as_str().to_owned(),
            size: export.size,
            logical_block: export.logical_block,
            read_only: export.flags.contains(GeometryFlags::READ_ONLY),
            writer: (!writer.is_empty()).then(|| writer.to_owned()),
        });
    }
    Ok(!header.more)
}
