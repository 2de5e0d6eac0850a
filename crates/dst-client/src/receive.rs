//! What comes over a connection: frames to the engine, payload to where the engine says.

use std::time::Duration;

use dst_engine::client::{Greeting, Names, Take};
use dst_ids::random;
use dst_net::{Came, End, Share};
use dst_proto::{
    BlockStatus, ClientName, DigestChoice, ExportName, ExtentKind as WireKind, Header, Kind,
    Refusal, Status,
};

use crate::conn::{Conn, Piece};
use crate::driver::{Data, Driver, Pending};
use crate::{Extent, ExtentKind, OpenError};

/// Why a connection is of no more use.
struct Broken(String);

impl Driver {
    /// Connection `index` is ready: read what is there.
    pub(crate) fn handle_ready(&mut self, index: u16) {
        let Some(mut conn) = self.conns[usize::from(index)].take() else {
            return;
        };
        let now = self.now();
        self.engine.session.handle_alive(index, now);
        let mut share = Share::new();
        let received = self.receive(index, &mut conn, &mut share);
        self.conns[usize::from(index)] = Some(conn);
        match received {
            Ok(()) if share.is_used_up() => self.unfinished.push(index),
            Ok(()) => {}
            Err(Broken(why)) => self.drop_connection(index, Some(why)),
        }
    }

    fn receive(&mut self, index: u16, conn: &mut Conn, share: &mut Share) -> Result<(), Broken> {
        loop {
            match conn.framed.next(&mut self.pending, share) {
                Ok(None) => return Ok(()),
                Ok(Some(Came::Hello(_))) => self.greet(index, conn)?,
                Ok(Some(Came::Frame(header))) => self.take_frame(index, conn, &header)?,
                Ok(Some(Came::Payload(piece))) => self.take_piece(index, conn, &piece),
                Err(end) => {
                    // Before its HELLO has come, a fault is about what is at the other end at all.
                    if let (End::Fault(fault), []) = (&end, conn.framed.hello_bytes()) {
                        self.note_incompatible(fault.text);
                    }
                    return Err(Broken(end.text()));
                }
            }
        }
    }

    fn greet(&mut self, index: u16, conn: &mut Conn) -> Result<(), Broken> {
        let export = self.options.endpoint.export().and_then(ExportName::new);
        let (Some(export), Some(client)) = (export, ClientName::new(&self.options.name)) else {
            return Err(Broken("a name that can't be sent".into()));
        };
        let names = Names {
            export,
            client,
            implementation: concat!("dst ", env!("CARGO_PKG_VERSION")),
        };
        let greeting = Greeting {
            hello: conn.framed.hello_bytes(),
            nonce: random(),
            binding: dst_proto::proof::NO_BINDING,
        };
        let length = self
            .engine
            .session
            .handle_hello(
                &self.engine.retained,
                index,
                conn.stream,
                &greeting,
                &names,
                &mut self.scratch,
            )
            .map_err(|fault| {
                self.note_incompatible(fault.text);
                Broken(fault.text.into())
            })?;
        conn.framed.link.push_bytes(&self.scratch[..length]);
        Ok(())
    }

    fn take_frame(&mut self, index: u16, conn: &mut Conn, header: &Header) -> Result<(), Broken> {
        self.note_refusal(conn, header);
        let engine = &mut self.engine;
        let take = engine
            .session
            .handle_frame(
                &mut engine.slots,
                &mut engine.retained,
                index,
                conn.stream,
                header,
                conn.framed.options(),
            )
            .map_err(|fault| Broken(fault.text.into()))?;
        if header.kind.has_slot() {
            self.attempts[usize::from(index)].backoff.reset();
        }
        if matches!(header.kind, Kind::OPEN | Kind::JOIN) {
            let most = engine.session.limits().max_payload;
            conn.framed.begin(most, self.digests());
        }
        match take {
            Take::Nothing => {}
            Take::Discard => conn.framed.discard(),
            Take::Payload { slot, at } => {
                let Some(pending) = &mut self.pending[usize::from(slot)] else {
                    return Err(Broken("payload for a request that is gone".into()));
                };
                let length = pending.length as usize;
                if let Data::Read(buffer @ None) = &mut pending.data {
                    *buffer = Some(self.pool.get(length));
                }
                let at = at as usize;
                conn.framed.deliver(Piece {
                    slot,
                    start: at,
                    end: at + header.payload_len as usize,
                    offset: header.offset,
                });
            }
            Take::Extents { slot } => {
                let extents = extents(conn.framed.options())
                    .ok_or_else(|| Broken("malformed answer to BLOCK STATUS".into()))?;
                if let Some(pending) = &mut self.pending[usize::from(slot)] {
                    pending.data = Data::Extents(extents);
                }
            }
        }
        Ok(())
    }

    fn take_piece(&mut self, index: u16, conn: &Conn, piece: &Piece) {
        let good = match self.pending[usize::from(piece.slot)].as_ref() {
            Some(Pending {
                data: Data::Read(Some(buffer)),
                ..
            }) => {
                let bytes = &buffer[piece.start..piece.end];
                conn.framed.is_good(self.digests(), piece.offset, bytes)
            }
            _ => false,
        };
        let engine = &mut self.engine;
        engine.session.payload_done(
            &mut engine.slots,
            &mut engine.retained,
            index,
            conn.stream,
            good,
        );
    }

    /// How the session's payloads are protected.
    pub(crate) fn digests(&self) -> DigestChoice {
        let (algorithm, granule) = self.engine.session.digest();
        DigestChoice { algorithm, granule }
    }

    /// Trying again will not help, where no session has been open yet.
    fn note_incompatible(&mut self, text: &str) {
        if !self.opened {
            self.refused = Some(OpenError::Incompatible(text.to_owned()));
        }
    }

    /// Keeps what the server says when it refuses, for people.
    fn note_refusal(&mut self, conn: &Conn, header: &Header) {
        let status = header.status();
        let opening = matches!(header.kind, Kind::OPEN | Kind::JOIN) && header.reply;
        if status == Status::OK || !opening && header.kind != Kind::ERROR {
            return;
        }
        let refusal = Refusal::decode(conn.framed.options());
        let (text, wait) = match &refusal {
            // Its Display leaves out what could harm a terminal.
            Ok(refusal) => (refusal.message.to_string(), refusal.wait_ms),
            Err(_) => (String::new(), None),
        };
        self.message = Some(format!("the server refused: {status}: {text}"));
        // A sync that failed while the session was being granted ends the incarnation: the next attempt meets a new one.
        let passing = [Status::DRAINING, Status::SESSION_LOST, Status::IO];
        let fatal = !passing.contains(&status);
        if !self.opened && fatal {
            let wait = wait.map(|ms| Duration::from_millis(ms.into()));
            self.refused = Some(OpenError::refused(status, text, wait));
        }
    }
}

fn extents(options: &[u8]) -> Option<Vec<Extent>> {
    let answer = BlockStatus::decode(options).ok()?;
    let extent = |extent: dst_proto::Extent| Extent {
        len: extent.length,
        kind: match extent.kind {
            WireKind::Data => ExtentKind::Data,
            WireKind::Zeroes => ExtentKind::Zero,
            WireKind::Hole => ExtentKind::Hole,
        },
    };
    Some(answer.extents.map(extent).collect())
}
