//! What comes over a connection: frames to the engine, payload to where the engine says.

use std::io;
use std::time::Duration;

use dst_engine::client::{Greeting, Names, Take};
use dst_engine::rx::Head;
use dst_proto::{
    BlockStatus, ClientName, ExportName, ExtentKind as WireKind, Header, Kind, Refusal, Status,
};

use crate::conn::{Body, Conn};
use crate::driver::{Data, Driver};
use crate::identity::random;
use crate::{Extent, ExtentKind, OpenError};

/// Bytes taken from one connection before others get their turn.
const BUDGET: usize = 8 << 20;

/// Why reading stops.
enum Stop {
    /// Nothing more is there.
    Empty,
    /// The connection is of no more use.
    Broken(String),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::WouldBlock => Self::Empty,
            _ => Self::Broken(error.to_string()),
        }
    }
}

impl Driver {
    /// Connection `index` is ready: read what is there, write what can go.
    pub(crate) fn handle_ready(&mut self, index: u16) {
        let Some(mut conn) = self.conns[usize::from(index)].take() else {
            return;
        };
        let now = self.now();
        self.engine.session.handle_alive(index, now);
        let mut budget = BUDGET;
        let mut asked = false;
        let stop = loop {
            // What the last read of an earlier turn left is old news: the first one of a turn always asks.
            let drained = asked && conn.link.peek().is_empty() && conn.link.drained();
            if budget == 0 {
                // What is buffered makes no descriptor ready.
                self.unfinished.push(index);
                break Stop::Empty;
            }
            if drained {
                break Stop::Empty;
            }
            asked = true;
            if let Err(stop) = self.receive_some(index, &mut conn, &mut budget) {
                break stop;
            }
        };
        self.conns[usize::from(index)] = Some(conn);
        if let Stop::Broken(why) = stop {
            self.drop_connection(index, Some(why));
        }
    }

    fn receive_some(
        &mut self,
        index: u16,
        conn: &mut Conn,
        budget: &mut usize,
    ) -> Result<(), Stop> {
        if let Some(body) = &mut conn.body {
            let got = match body {
                Body::Into { slot, at, end, .. } => {
                    let pending = self.pending[usize::from(*slot)].as_mut();
                    let Some(Data::Read(Some(buffer))) = pending.map(|pending| &mut pending.data)
                    else {
                        return Err(Stop::Broken("payload for a request that is gone".into()));
                    };
                    let got = conn.link.read_into(&mut buffer[*at..*end])?;
                    *at += got;
                    got
                }
                Body::Discard(left) => {
                    let waste = (*left).min(self.scratch.len());
                    let got = conn.link.read_into(&mut self.scratch[..waste])?;
                    *left -= got;
                    got
                }
            };
            conn.receiver.payload_received(got as u32);
            *budget = budget.saturating_sub(got);
            if conn.receiver.payload_left() == 0 {
                self.finish_payload(index, conn);
            }
            return Ok(());
        }
        if conn.link.peek().is_empty() {
            *budget = budget.saturating_sub(conn.link.fill()?);
        }
        let fed = conn.receiver.feed(conn.link.peek());
        let (used, head) = fed.map_err(|fault| {
            // Before its HELLO has come, this is about what is at the other end at all.
            if conn.receiver.hello_bytes().is_empty() {
                self.note_incompatible(fault.text);
            }
            Stop::Broken(fault.text.into())
        })?;
        conn.link.consume(used);
        match head {
            Some(Head::Hello(_)) => self.greet(index, conn),
            Some(Head::Frame(header)) => self.take_frame(index, conn, &header),
            None if conn.link.peek().is_empty() => Ok(()),
            None => {
                *budget = budget.saturating_sub(conn.link.fill()?);
                Ok(())
            }
        }
    }

    fn greet(&mut self, index: u16, conn: &mut Conn) -> Result<(), Stop> {
        let export = self.options.endpoint.export().and_then(ExportName::new);
        let (Some(export), Some(client)) = (export, ClientName::new(&self.options.name)) else {
            return Err(Stop::Broken("a name that can't be sent".into()));
        };
        let names = Names {
            export,
            client,
            implementation: concat!("dst ", env!("CARGO_PKG_VERSION")),
        };
        let greeting = Greeting {
            hello: conn.receiver.hello_bytes(),
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
                Stop::Broken(fault.text.into())
            })?;
        conn.link.push_bytes(&self.scratch[..length]);
        Ok(())
    }

    fn take_frame(&mut self, index: u16, conn: &mut Conn, header: &Header) -> Result<(), Stop> {
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
                conn.receiver.options(),
            )
            .map_err(|fault| Stop::Broken(fault.text.into()))?;
        if header.kind.has_slot() {
            self.attempts[usize::from(index)].backoff.reset();
        }
        if matches!(header.kind, Kind::OPEN | Kind::JOIN) {
            conn.receiver.forget_hello();
            let (algorithm, granule) = engine.session.digest();
            let most = engine.session.limits().max_payload;
            conn.receiver.accept_payload(most, algorithm, granule);
        }
        match take {
            Take::Nothing => {}
            Take::Discard => conn.body = Some(Body::Discard(header.payload_len as usize)),
            Take::Payload { slot, at } => {
                let Some(pending) = &mut self.pending[usize::from(slot)] else {
                    return Err(Stop::Broken("payload for a request that is gone".into()));
                };
                let length = pending.length as usize;
                if let Data::Read(buffer @ None) = &mut pending.data {
                    *buffer = Some(self.pool.get(length));
                }
                let at = at as usize;
                conn.body = Some(Body::Into {
                    slot,
                    start: at,
                    at,
                    end: at + header.payload_len as usize,
                    offset: header.offset,
                });
            }
            Take::Extents { slot } => {
                let extents = extents(conn.receiver.options())
                    .ok_or_else(|| Stop::Broken("malformed answer to BLOCK STATUS".into()))?;
                if let Some(pending) = &mut self.pending[usize::from(slot)] {
                    pending.data = Data::Extents(extents);
                }
            }
        }
        Ok(())
    }

    fn finish_payload(&mut self, index: u16, conn: &mut Conn) {
        let Some(body) = conn.body.take() else {
            return;
        };
        let Body::Into {
            slot,
            start,
            end,
            offset,
            ..
        } = body
        else {
            return;
        };
        let (algorithm, granule) = self.engine.session.digest();
        let good = match self.pending[usize::from(slot)].as_ref() {
            Some(crate::driver::Pending {
                data: Data::Read(Some(buffer)),
                ..
            }) => {
                let piece = &buffer[start..end];
                let digests = conn.receiver.digests();
                dst_digest::verify(algorithm, granule, offset, piece, digests).is_ok()
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
        let refusal = Refusal::decode(conn.receiver.options());
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
