//! The other end of the wire, as the input decides: mostly what a client might send, and the backend's answers.

use dst_proto::{Credit, Header, Kind, OpFlags, Status, NO_SLOT};

use super::world::{World, BLOCK, BLOCKS, LANES, SLOTS};
use crate::input::Input;
use crate::trace;

/// The backend's statuses.
const STATUSES: [Status; 8] = [
    Status::OK,
    Status::OK,
    Status::OK,
    Status::OK,
    Status::IO,
    Status::NO_SPACE,
    Status::SYNC_FAILED,
    Status::SESSION_LOST,
];

impl World {
    /// One step of the input.
    pub fn step(&mut self, input: &mut Input<'_>) {
        let op = input.u8();
        let at = usize::from(op >> 5) % self.conns.len().max(1);
        match op & 31 {
            0..=7 => self.request(at, input),
            8 => self.any_frame(at, input),
            9 => {
                let len = input.below(100);
                let bytes = input.bytes(len);
                if let Some(id) = self.conns.get(at).map(|conn| conn.id) {
                    self.feed(id, bytes);
                }
            }
            10..=12 => {
                let good = !input.one_in(5);
                self.end_payload(at, good);
            }
            13..=15 => {
                for _ in 0..=input.below(4) {
                    self.execute();
                }
            }
            16..=18 => {
                let form = input.u8();
                let status = if form >= 192 {
                    input.pick(&STATUSES)
                } else {
                    Status::OK
                };
                self.executed(usize::from(form), status);
            }
            19..=21 => {
                for _ in 0..=input.below(4) {
                    self.reply(at);
                }
            }
            22 if at < self.conns.len() => self.lose(at),
            23 => self.joining(input),
            24 => {
                let by = u64::from(input.u8()) * [1, 10, 100, 1000][usize::from(op >> 6)] / 2;
                self.pass_time(by);
            }
            25 => self.control(at, input),
            26 => self.abort(at, input),
            27 => {
                let on = input.one_in(3);
                trace!("gate {on}");
                self.session.set_gate(&mut self.slots, on);
            }
            28 => self.set_credit(Credit {
                requests: u16::from(input.u8()),
                bytes: u32::from(input.u16()),
            }),
            29 => match input.u8() {
                0..=2 => self.settle(Status::LEASE_LOST),
                3..=20 => self.session.probe(),
                21..=40 => self.session.drain(),
                41..=60 => {
                    self.geometry.size += BLOCK;
                    self.session.set_geometry(self.geometry);
                }
                61..=120 => self.session.closed(Status::OK),
                _ => {}
            },
            // A burst in which all that can happen does.
            _ => {
                for _ in 0..20 {
                    while self.execute() {}
                    if self.running.is_empty() {
                        break;
                    }
                    self.executed(0, Status::OK);
                }
                for at in 0..self.conns.len() {
                    for _ in 0..50 {
                        if !self.reply(at) {
                            break;
                        }
                    }
                }
            }
        }
    }

    /// Slot and id: mostly the next id in some slot, else one that was used before.
    fn place(&mut self, input: &mut Input<'_>) -> (u16, u64) {
        let form = input.u8();
        let slot = u16::from(form) % SLOTS;
        match form >> 5 {
            0..=4 => {
                self.rules.next_id += 1;
                (slot, self.rules.next_id)
            }
            5 => (slot, u64::from(input.u8())),
            6 => match self.rules.last_in(slot) {
                Some(id) => (slot, id),
                None => (slot, 1),
            },
            // Out of order: an id ahead, for others to fill the gap.
            _ => (slot, self.rules.next_id + 1 + u64::from(input.u8() % 4)),
        }
    }

    fn request(&mut self, at: usize, input: &mut Input<'_>) {
        let (slot, id) = self.place(input);
        let before = self
            .rules
            .request(id)
            .filter(|request| request.slot == slot);
        let header = match before.copied() {
            // Mostly the same request again.
            Some(before) if !input.one_in(8) => Header {
                attempt: before.attempt.wrapping_add(1 + input.u8() / 128),
                ..before
            },
            _ => self.fresh(slot, id, input),
        };
        self.rules.sent(&header);
        self.frame(at, &header, &[]);
    }

    fn fresh(&mut self, slot: u16, id: u64, input: &mut Input<'_>) -> Header {
        let kinds = [
            Kind::WRITE,
            Kind::READ,
            Kind::WRITE,
            Kind::FLUSH,
            Kind::DISCARD,
            Kind::WRITE_ZEROES,
            Kind::BLOCK_STATUS,
            Kind::WRITE,
        ];
        let form = input.u8();
        let kind = if slot == SLOTS - 1 && form < 250 {
            Kind::FLUSH
        } else {
            kinds[usize::from(form % 8)]
        };
        let place = input.u8();
        let blocks = u64::from(place / 32) % 4 + 1;
        let first = u64::from(place) % BLOCKS;
        let (mut offset, mut length) = (first * BLOCK, blocks * BLOCK);
        if kind == Kind::FLUSH {
            (offset, length) = (0, 0);
        }
        let odd = input.u8();
        if odd >= 250 {
            offset = offset.wrapping_sub(u64::from(odd));
        }
        let flags = OpFlags::NONE
            .with(OpFlags::BARRIER, odd % 8 == 1)
            .with(
                OpFlags::FUA,
                odd % 8 == 2 && Kind::op_flags(kind).contains(OpFlags::FUA),
            )
            .with(OpFlags::REPLAY, odd % 16 == 3 && kind.is_write());
        Header {
            slot,
            id,
            op_flags: if odd == 255 { OpFlags(place) } else { flags },
            attempt: 0,
            acked: u64::from(odd == 249) * u64::from(place),
            offset,
            length,
            payload_len: if kind == Kind::WRITE {
                length as u32
            } else {
                0
            },
            after: if odd % 8 == 4 { u32::from(odd / 16) } else { 0 },
            ..Header::new(kind)
        }
    }

    fn any_frame(&mut self, at: usize, input: &mut Input<'_>) {
        let form = input.u8();
        let kind = if form & 1 == 0 {
            input.pick(&Kind::ALL)
        } else {
            Kind(input.u8())
        };
        let header = Header {
            reply: form & 14 == 2,
            more: form & 14 == 6,
            slot: match u16::from(input.u8()) {
                slot @ 0..=240 => slot % (SLOTS + 1),
                _ => NO_SLOT,
            },
            op_flags: OpFlags(if form & 16 != 0 { input.u8() } else { 0 }),
            attempt: form >> 6,
            payload_len: if form & 32 != 0 {
                u32::from(input.u16()) % 9000
            } else {
                0
            },
            id: if form & 64 != 0 {
                u64::from(input.u8())
            } else {
                self.rules.next_id + 1
            },
            acked: u64::from(input.u8() / 16),
            offset: u64::from(input.u8()) * 256,
            length: u64::from(input.u8()) * 256,
            after: u32::from(input.u8() / 8),
            ..Header::new(kind)
        };
        let len = input.below(5) * 8;
        let mut options = input.bytes(len).to_vec();
        options.resize(len, 0);
        if header.kind.has_slot() || !header.kind.is_known() {
            self.rules.sent(&header);
        }
        self.frame(at, &header, &options);
    }

    fn abort(&mut self, at: usize, input: &mut Input<'_>) {
        let (slot, id) = self.place(input);
        let (slot, id) = match self.rules.any_sent(usize::from(input.u8())) {
            Some(header) if input.one_in(2) => (header.slot, header.id),
            _ => (slot, id),
        };
        let header = Header {
            slot,
            id,
            ..Header::new(Kind::ABORT)
        };
        self.frame(at, &header, &[]);
    }

    fn control(&mut self, at: usize, input: &mut Input<'_>) {
        let form = input.u8();
        let header = match form % 16 {
            0..=3 => Header {
                id: u64::from(form),
                ..Header::new(Kind::PING)
            },
            4..=7 => Header {
                id: u64::from(form / 16),
                reply: true,
                ..Header::new(Kind::PING)
            },
            8..=11 => Header::new(Kind::REPLAYED),
            12 | 13 => Header::new(Kind::CLOSE),
            14 => Header::error(Status::PROTOCOL),
            _ => Header::new(Kind::LIST),
        };
        self.frame(at, &header, &[]);
    }

    fn joining(&mut self, input: &mut Input<'_>) {
        let form = input.u8();
        let index = u16::from(form) % (LANES + 1);
        let highest = self
            .generations
            .get(usize::from(index))
            .copied()
            .unwrap_or(0);
        let generation = match form >> 6 {
            0..=2 => highest + 1 + u32::from(form & 32),
            _ => u32::from(input.u8() % 8),
        };
        let acked = if form & 16 != 0 {
            u64::from(input.u8())
        } else {
            0
        };
        self.join(index, generation, acked);
    }
}
