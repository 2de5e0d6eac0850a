//! What is sent to clients.

use dst_engine::server::{seal, ConnId, Transmit};
use dst_proto::{BlockStatus, Header, Kind, Status, HEADER_LEN};

use crate::conn::Conn;
use crate::member::{Data, Member};
use crate::worker::Worker;

impl Worker {
    /// Sends what there is to send over every connection.
    pub(crate) fn transmit_all(&mut self) {
        let mut lost = std::mem::take(&mut self.lost);
        for (&id, conn) in &mut self.conns {
            let Some(member) = self.members.get_mut(&conn.session) else {
                // Only last words are left.
                if conn.flush(&self.poller).is_err() || !conn.framed.link.wants_write() {
                    lost.push(id);
                }
                continue;
            };
            loop {
                while conn.leaving.is_none()
                    && conn.framed.has_room()
                    && queue_one(member, ConnId(id), conn, &mut self.scratch)
                {}
                let queued = conn.framed.link.queued_bytes();
                if conn.flush(&self.poller).is_err() {
                    lost.push(id);
                    break;
                }
                // Only what has left this queue can have become free.
                if conn.framed.link.queued_bytes() < queued {
                    member.let_go_of_sent();
                }
                let more = conn.leaving.is_none() && member.session.has_reply(ConnId(id));
                if conn.framed.link.wants_write() || !more {
                    break;
                }
            }
            if conn.leaving.is_some() && !conn.framed.link.wants_write() {
                lost.push(id);
            }
        }
        for id in lost.drain(..) {
            self.drop_connection(id);
        }
        self.lost = lost;
    }
}

/// Queues the next frame for `conn`, if there is one.
pub(crate) fn queue_one(member: &mut Member, id: ConnId, conn: &mut Conn, out: &mut [u8]) -> bool {
    let session = &mut member.session;
    let Some(transmit) = session.poll_reply(&mut member.slots, id, out) else {
        return false;
    };
    match transmit {
        Transmit::Bytes(length) => conn.framed.link.push_bytes(&out[..length]),
        Transmit::Data { header, piece } => {
            let digests = session.digests();
            let range = piece.from as usize..(piece.from + piece.len) as usize;
            let bytes = match member.data(piece.slot) {
                Data::Read(bytes) => bytes.slice(range),
                _ => unreachable!("a READ that succeeded has its bytes until its last piece"),
            };
            if piece.last {
                member.take(piece.slot);
            }
            conn.framed
                .push_frame(&header, digests, header.offset, bytes, out);
        }
        Transmit::Extents { header, slot } => {
            let extents = match member.take(slot) {
                Data::Extents(extents) => extents,
                _ => Vec::new(),
            };
            let written = BlockStatus::encode_from(extents.into_iter(), &mut out[HEADER_LEN..]);
            let header = match written {
                Ok(length) => Header {
                    options_len: length as u16,
                    ..header
                },
                Err(_) => Header {
                    slot,
                    id: header.id,
                    ..Header::reply(
                        Kind::BLOCK_STATUS,
                        slot,
                        header.id,
                        Status::IO,
                        header.credit(),
                    )
                },
            };
            let length = seal(&header, out);
            conn.framed.link.push_bytes(&out[..length]);
        }
    }
    true
}
