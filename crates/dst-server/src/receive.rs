//! What clients send: frames to the session, payload to memory of its own until it has arrived whole.

use std::io;

use dst_engine::rx::Fault;
use dst_engine::server::{ConnId, Take};
use dst_net::{Came, End, Share};
use dst_proto::Header;

use crate::conn::{Conn, Incoming, Own};
use crate::frames;
use crate::member::Data;
use crate::worker::{Worker, LEAVING};

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
        let mut share = Share::new();
        let ended = self.receive(id, &mut conn, &mut share);
        if share.is_touched() {
            let now = self.now();
            if let Some(member) = self.members.get_mut(&conn.session) {
                member.session.handle_received(ConnId(id), now);
            }
        }
        self.conns.insert(id, conn);
        match ended {
            Ok(()) if share.is_used_up() && !self.unfinished.contains(&id) => {
                self.unfinished.push(id);
            }
            Ok(()) => {}
            Err(End::Stream(_)) => self.drop_connection(id),
            Err(End::Fault(fault)) => self.refuse_connection(id, fault),
        }
    }

    fn receive(&mut self, id: u32, conn: &mut Conn, share: &mut Share) -> Result<(), End> {
        while let Some(came) = conn.framed.next(&mut Own, share)? {
            match came {
                Came::Frame(header) => self.take_frame(id, conn, &header)?,
                Came::Payload(incoming) => self.take_payload(id, conn, incoming),
                Came::Hello(_) => return Err(Fault::protocol("a second HELLO").into()),
            }
        }
        Ok(())
    }

    fn take_frame(&mut self, id: u32, conn: &mut Conn, header: &Header) -> Result<(), End> {
        let now = self.now();
        let Some(member) = self.members.get_mut(&conn.session) else {
            return Err(io::Error::from(io::ErrorKind::NotConnected).into());
        };
        let options = conn.framed.options();
        let take =
            member
                .session
                .handle_request(&mut member.slots, ConnId(id), header, options, now)?;
        match take {
            Take::Nothing => {}
            Take::Discard => conn.framed.discard(),
            Take::Payload { slot } => conn.framed.deliver(Incoming {
                slot,
                buffer: self.pool.get(header.payload_len as usize),
                offset: header.offset,
            }),
        }
        Ok(())
    }

    fn take_payload(&mut self, id: u32, conn: &Conn, incoming: Incoming) {
        let Some(member) = self.members.get_mut(&conn.session) else {
            return;
        };
        // Another connection's copy of the request may have taken its place meanwhile.
        if !member.session.payload_wanted(ConnId(id)) {
            return;
        }
        let Incoming {
            slot,
            buffer,
            offset,
        } = incoming;
        let digests = member.session.digests();
        let good = conn.framed.is_good(digests, offset, &buffer);
        member.keep(slot, Data::Payload(buffer.share()));
        member
            .session
            .payload_done(&mut member.slots, ConnId(id), good);
    }

    /// Says what was wrong, and takes nothing more from the connection.
    fn refuse_connection(&mut self, id: u32, fault: Fault) {
        let until = self.now().saturating_add(LEAVING);
        if let Some(conn) = self.conns.get_mut(&id) {
            let words = frames::error(fault.status, fault.text);
            conn.framed.link.push_bytes(&words);
            conn.leaving = Some(until);
        }
        self.detach(id);
    }
}
