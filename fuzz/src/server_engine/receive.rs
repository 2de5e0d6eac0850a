//! What arrives at the server: bytes, frames, payload.

use dst_engine::rx::Head;
use dst_engine::server::{ConnId, Execute, Take};
use dst_proto::{digest, Header, Kind};

use super::world::{Body, Data, World};
use crate::{frames, trace};

impl World {
    /// A frame arrives over the connection at `at`, its digests made up if it has a payload.
    pub fn frame(&mut self, at: usize, header: &Header, options: &[u8]) {
        self.end_payload(at, true);
        let Some(conn) = self.conns.get(at) else {
            return;
        };
        let id = conn.id;
        let area = digest::area_len(
            self.digests.algorithm,
            self.digests.granule,
            header.offset,
            header.payload_len,
        );
        let digests = vec![0; area.unwrap_or(0) as usize];
        let bytes = frames::frame(header, options, &digests);
        self.feed(id, &bytes);
    }

    pub fn feed(&mut self, id: ConnId, bytes: &[u8]) {
        let mut bytes = bytes;
        while !bytes.is_empty() {
            let Some(at) = self.conns.iter().position(|conn| conn.id == id) else {
                return;
            };
            let conn = &mut self.conns[at];
            let left = conn.rx.payload_left();
            if left > 0 {
                let used = bytes.len().min(left as usize);
                bytes = &bytes[used..];
                self.payload(at, used as u32, true);
                continue;
            }
            match conn.rx.feed(bytes) {
                Ok((used, head)) => {
                    bytes = &bytes[used..];
                    match head {
                        Some(Head::Frame(header)) => self.handle(at, &header),
                        Some(Head::Hello(_)) => panic!("a second HELLO"),
                        None => {}
                    }
                }
                Err(fault) => {
                    trace!("fault {id:?}: {fault}");
                    return self.lose(at);
                }
            }
        }
    }

    fn handle(&mut self, at: usize, header: &Header) {
        let conn = &self.conns[at];
        let (id, options) = (conn.id, conn.rx.options().to_vec());
        trace!("in {id:?}: {header:?}");
        self.session.handle_received(id, self.now);
        let taken = self
            .session
            .handle_request(&mut self.slots, id, header, &options, self.now);
        let taken = match taken {
            Ok(taken) => taken,
            Err(fault) => {
                trace!("  fault {fault}");
                assert!(
                    !fault.text.is_empty() && !fault.status.is_ok() || header.kind == Kind::ERROR
                );
                self.turn();
                // The stream may be closed already.
                if let Some(at) = self.conns.iter().position(|conn| conn.id == id) {
                    self.lose(at);
                }
                return;
            }
        };
        let body = match taken {
            Take::Nothing => {
                assert_eq!(header.payload_len, 0, "payload forgotten");
                None
            }
            Take::Discard => {
                assert!(header.payload_len > 0);
                Some(Body::Nowhere)
            }
            Take::Payload { slot } => {
                assert_eq!((slot, header.kind), (header.slot, Kind::WRITE));
                assert!(self.session.payload_wanted(id));
                let busy = |execute: &Execute| execute.slot == slot;
                assert!(
                    !self.running.iter().any(busy),
                    "the backend still has slot {slot}"
                );
                self.data[usize::from(slot)] = Data::Payload {
                    id: header.id,
                    whole: false,
                };
                Some(Body::Slot {
                    slot,
                    id: header.id,
                })
            }
        };
        if header.kind.has_slot() || header.kind == Kind::ABORT || !header.kind.is_known() {
            self.rules.arrived(header);
        }
        self.conns[at].body = body;
        self.turn();
    }

    /// The rest of the payload that is arriving at `at` comes.
    pub fn end_payload(&mut self, at: usize, good: bool) {
        let left = self.conns.get(at).map_or(0, |conn| conn.rx.payload_left());
        if left > 0 {
            self.payload(at, left, good);
        }
    }

    fn payload(&mut self, at: usize, len: u32, good: bool) {
        let conn = &mut self.conns[at];
        let id = conn.id;
        if !conn.rx.payload_received(len) {
            return;
        }
        let body = conn.body.take().expect("a place for the payload");
        let wanted = self.session.payload_wanted(id);
        trace!("payload {id:?} {body:?} good {good} wanted {wanted}");
        if let (Body::Slot { slot, id: request }, true) = (body, wanted) {
            let data = &mut self.data[usize::from(slot)];
            assert_eq!(
                *data,
                Data::Payload {
                    id: request,
                    whole: false
                }
            );
            *data = Data::Payload {
                id: request,
                whole: good,
            };
            self.rules.payload((slot, request), good);
        }
        self.session.payload_done(&mut self.slots, id, good);
        self.turn();
    }
}
