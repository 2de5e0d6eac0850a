//! What arrives at the client: bytes, frames, payload; and what it means to the rules, whether or not the engine believes it.

use dst_engine::client::Take;
use dst_engine::rx::Head;
use dst_proto::{Aborted, Header, Joined, Kind, SlotState};

use super::wire::Wire;
use super::world::{Arriving, Pin, World};
use crate::trace;

impl World {
    /// Bytes arrive over `index`.
    pub fn feed(&mut self, index: u16, bytes: &[u8]) {
        let mut bytes = bytes;
        while !bytes.is_empty() {
            let Some(conn) = self.conns[usize::from(index)].as_mut() else {
                return;
            };
            let left = conn.rx.payload_left() as usize;
            if left > 0 {
                let used = left.min(bytes.len());
                bytes = &bytes[used..];
                self.payload(index, used as u32, true);
                continue;
            }
            let (used, head) = match conn.rx.feed(bytes) {
                Ok(fed) => fed,
                Err(fault) => {
                    trace!("fault {index}: {fault}");
                    return self.lose(index);
                }
            };
            bytes = &bytes[used..];
            match head {
                None => {}
                Some(Head::Hello(_)) => self.greet(index),
                Some(Head::Frame(header)) => self.frame(index, &header),
            }
        }
    }

    fn frame(&mut self, index: u16, header: &Header) {
        let step = self.tick();
        let conn = self.conns[usize::from(index)].as_mut().expect("there");
        let options = conn.rx.options().to_vec();
        let (stream, live) = (conn.stream, conn.live && !conn.close);
        trace!("in {index}: {header:?} status {:?}", header.status());
        if live {
            self.note(index, header, &options, step);
        }
        if header.kind == Kind::JOIN && header.reply && header.status().is_ok() {
            self.note_joined(&options);
        }
        let number = self.session.number();
        let taken = self.session.handle_frame(
            &mut self.slots,
            &mut self.retained,
            index,
            stream,
            header,
            &options,
        );
        if self.session.number() != number {
            let limits = *self.session.limits();
            self.max_payload = limits.max_payload;
            self.wire = Wire::fresh(&limits, header.credit());
        }
        let taken = match taken {
            Ok(taken) => taken,
            Err(fault) => {
                trace!("  fault {fault}");
                self.events();
                return self.lose(index);
            }
        };
        if matches!(header.kind, Kind::OPEN | Kind::JOIN) && header.status().is_ok() {
            let max_payload = self.max_payload;
            let (algorithm, granule) = self.session.digest();
            if let Some(conn) = self.conn(index) {
                conn.live = true;
                conn.rx.accept_payload(max_payload, algorithm, granule);
                conn.rx.forget_hello();
            }
        }
        match taken {
            Take::Nothing => assert_eq!(header.payload_len, 0, "payload forgotten"),
            Take::Discard => assert!(header.payload_len > 0),
            Take::Extents { slot } => {
                assert_eq!((slot, header.kind), (header.slot, Kind::BLOCK_STATUS));
            }
            Take::Payload { slot, at } => {
                assert_eq!(slot, header.slot);
                let asked = self.asked[usize::from(slot)].as_mut();
                let asked = asked.expect("payload for nobody");
                let end = u64::from(at) + u64::from(header.payload_len);
                assert!(end <= asked.request.length, "beyond the request's memory");
                assert_eq!(asked.request.kind, Kind::READ);
                assert_eq!(u64::from(at), self.wire.received(header.id));
                asked.pins.push(Pin::Receive(index));
                if let Some(conn) = self.conn(index) {
                    conn.arriving = Some(Arriving {
                        slot,
                        id: header.id,
                        len: header.payload_len,
                    });
                }
            }
        }
        self.events();
    }

    /// What an answer over a live connection means, whether or not the engine believes it.
    fn note(&mut self, index: u16, header: &Header, options: &[u8], step: u64) {
        if !header.reply {
            return;
        }
        if header.kind == Kind::ABORT {
            if let Ok(Aborted { outcome }) = Aborted::decode(options) {
                if let Some(durable) = self.wire.settled(header.id, outcome) {
                    self.keep.durable(durable);
                }
            }
        } else if header.kind.has_slot() {
            if let Some(durable) = self.wire.answered(index, header, step) {
                self.keep.durable(durable);
            }
        }
    }

    fn note_joined(&mut self, options: &[u8]) {
        if let Ok(joined) = Joined::decode(options) {
            for entry in joined.slots {
                if entry.state == SlotState::Done {
                    if let Some(durable) = self.wire.outcome(entry.id, entry.status) {
                        self.keep.durable(durable);
                    }
                    if self.wire.liar {
                        self.keep.durable(self.clock + 1);
                    }
                }
            }
        }
    }

    /// `len` bytes of payload have come over `index`; their digests are `good` if they were the last.
    pub fn payload(&mut self, index: u16, len: u32, good: bool) {
        let Some(conn) = self.conn(index) else {
            return;
        };
        if conn.rx.payload_left() == 0 || !conn.rx.payload_received(len) {
            return;
        }
        let (stream, given_up) = (conn.stream, conn.close);
        let Some(arriving) = conn.arriving.take() else {
            return;
        };
        trace!("payload {index} {arriving:?} good {good}");
        if given_up {
            // Of a connection that is being given up nothing counts.
        } else if good {
            self.wire.piece(&arriving, stream);
        } else {
            self.wire.bad_piece(&arriving, stream);
        }
        let asked = self.asked[usize::from(arriving.slot)].as_mut();
        if let Some(asked) = asked {
            asked.pins.retain(|pin| *pin != Pin::Receive(index));
        }
        self.session
            .payload_done(&mut self.slots, &mut self.retained, index, stream, good);
        self.events();
    }
}
