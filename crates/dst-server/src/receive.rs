//! What clients send: frames to the session, payload to memory of its own until it has arrived whole.

use std::io;

use dst_engine::rx::{Fault, Head};
use dst_engine::server::{ConnId, Take};
use dst_proto::Header;

use crate::conn::{Body, Conn};
use crate::frames;
use crate::member::Data;
use crate::worker::{Worker, LEAVING};

/// Bytes taken from one connection before others get their turn.
const BUDGET: usize = 8 << 20;

/// Why reading stops.
enum Stop {
    /// Nothing more is there.
    Empty,
    /// The stream is gone.
    Gone,
    /// The peer broke the protocol.
    Fault(Fault),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::WouldBlock => Self::Empty,
            _ => Self::Gone,
        }
    }
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl Worker {
    /// Connection `id` is ready: read what is there.
    pub(crate) fn handle_ready(&mut self, id: u32) {
        let Some(mut conn) = self.conns.remove(&id) else {
            return;
        };
        if conn.leaving.is_some() {
            self.conns.insert(id, conn);
            return;
        }
        let mut budget = BUDGET;
        let mut asked = false;
        let stop = loop {
            // What the last read of an earlier turn left is old news: the first one of a turn always asks.
            let drained = asked && conn.link.peek().is_empty() && conn.link.drained();
            if budget == 0 {
                // What is buffered makes no descriptor ready.
                self.unfinished.push(id);
                break Stop::Empty;
            }
            if drained {
                break Stop::Empty;
            }
            asked = true;
            if let Err(stop) = self.receive_some(id, &mut conn, &mut budget) {
                break stop;
            }
        };
        // Being ready is no sign of life, bytes are.
        if budget < BUDGET {
            let now = self.now();
            if let Some(member) = self.members.get_mut(&conn.session) {
                member.session.handle_received(ConnId(id), now);
            }
        }
        self.conns.insert(id, conn);
        match stop {
            Stop::Empty => {}
            Stop::Gone => self.drop_connection(id),
            Stop::Fault(fault) => self.refuse_connection(id, fault),
        }
    }

    fn receive_some(&mut self, id: u32, conn: &mut Conn, budget: &mut usize) -> Result<(), Stop> {
        if let Some(body) = &mut conn.body {
            let got = match body {
                Body::Into { buffer, at, .. } => {
                    let got = conn.link.read_into(&mut buffer[*at..])?;
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
            *budget = budget.saturating_sub(got);
            if conn.receiver.payload_received(got as u32) {
                self.finish_payload(id, conn);
            }
            return Ok(());
        }
        if conn.link.peek().is_empty() {
            *budget = budget.saturating_sub(conn.link.fill()?);
        }
        let (used, head) = conn.receiver.feed(conn.link.peek())?;
        conn.link.consume(used);
        match head {
            Some(Head::Frame(header)) => self.take_frame(id, conn, &header),
            Some(Head::Hello(_)) => Err(Fault::protocol("a second HELLO").into()),
            None if conn.link.peek().is_empty() => Ok(()),
            None => {
                *budget = budget.saturating_sub(conn.link.fill()?);
                Ok(())
            }
        }
    }

    fn take_frame(&mut self, id: u32, conn: &mut Conn, header: &Header) -> Result<(), Stop> {
        let now = self.now();
        let Some(member) = self.members.get_mut(&conn.session) else {
            return Err(Stop::Gone);
        };
        let options = conn.receiver.options();
        let take =
            member
                .session
                .handle_request(&mut member.slots, ConnId(id), header, options, now)?;
        conn.body = match take {
            Take::Nothing => None,
            Take::Discard => Some(Body::Discard(header.payload_len as usize)),
            Take::Payload { slot } => Some(Body::Into {
                slot,
                buffer: self.pool.get(header.payload_len as usize),
                at: 0,
                offset: header.offset,
            }),
        };
        Ok(())
    }

    fn finish_payload(&mut self, id: u32, conn: &mut Conn) {
        let Some(Body::Into {
            slot,
            buffer,
            offset,
            ..
        }) = conn.body.take()
        else {
            return;
        };
        let Some(member) = self.members.get_mut(&conn.session) else {
            return;
        };
        // Another connection's copy of the request may have taken its place meanwhile.
        if !member.session.payload_wanted(ConnId(id)) {
            return;
        }
        let digests = member.session.digests();
        let area = conn.receiver.digests();
        let good =
            dst_digest::verify(digests.algorithm, digests.granule, offset, &buffer, area).is_ok();
        member.keep(slot, Data::Payload(buffer.share()));
        member
            .session
            .payload_done(&mut member.slots, ConnId(id), good);
    }

    /// Says what was wrong, and takes nothing more from the connection.
    fn refuse_connection(&mut self, id: u32, fault: Fault) {
        let until = self.now().saturating_add(LEAVING);
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.link
                .push_bytes(&frames::error(fault.status, fault.text));
            conn.leaving = Some(until);
        }
        self.detach(id);
    }
}
