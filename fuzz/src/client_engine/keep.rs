//! Retention: what the driver keeps, when it may let go, and whether a replay is whole.

use dst_engine::client::Request;
use dst_proto::{Header, Kind, OpFlags};

use super::world::BLOCK;

#[derive(Debug, Clone, Copy)]
struct Kept {
    request: Request,
    /// When it was acknowledged.
    step: u64,
}

#[derive(Debug)]
pub struct Keep {
    table: Vec<Option<Kept>>,
    /// Acknowledged before this: durable.
    durable: u64,
    /// Writes with FUA that were acknowledged, which need not be under what is replayed.
    masks: Vec<Kept>,
}

impl Keep {
    pub fn new(capacity: usize) -> Keep {
        Keep {
            table: vec![None; capacity],
            durable: 0,
            masks: Vec::new(),
        }
    }

    pub fn capacity(&self) -> usize {
        self.table.len()
    }

    pub fn completed(&mut self, request: &Request, ok: bool, index: Option<usize>, step: u64) {
        let kept = Kept {
            request: *request,
            step,
        };
        if let Some(index) = index {
            assert!(ok && request.kind.is_write());
            let place = &mut self.table[index];
            assert!(place.is_none(), "entry {index} used twice");
            *place = Some(kept);
        } else if ok && request.kind.is_write() && !self.table.is_empty() {
            let fua = request.flags.contains(OpFlags::FUA);
            assert!(
                fua || step <= self.durable,
                "an acknowledged write is not kept"
            );
            self.masks.push(kept);
        }
    }

    /// The driver may let go of entry `index`.
    pub fn released(&mut self, index: usize) {
        // An entry that only masks others has no bytes.
        if let Some(kept) = self.table[index].take() {
            assert!(
                kept.step < self.durable,
                "released and not durable: {kept:?}"
            );
        }
    }

    /// What was acknowledged before `step` is durable.
    pub fn durable(&mut self, step: u64) {
        self.durable = self.durable.max(step);
    }

    /// A WRITE goes out whose bytes are those of entry `index` from `from` on.
    pub fn check_replay(&self, index: usize, from: u64, header: &Header) {
        let kept = self.table[index].expect("a replay of what was let go");
        assert_eq!(kept.request.kind, Kind::WRITE);
        assert_eq!(kept.request.offset + from, header.offset);
        assert!(
            from + header.length <= kept.request.length,
            "beyond the kept bytes"
        );
    }

    /// REPLAYED goes out: every kept byte was replayed and answered, but where a later FUA covers it.
    pub fn check_replayed<'h>(&self, replays: impl Iterator<Item = &'h Header>) {
        let replays: Vec<&Header> = replays.collect();
        for kept in self.table.iter().flatten() {
            let Request {
                kind,
                offset,
                length,
                ..
            } = kept.request;
            for at in (offset..offset + length).step_by(BLOCK as usize) {
                let masked = self.masks.iter().any(|mask| {
                    let Request { offset, length, .. } = mask.request;
                    mask.step > kept.step && (offset..offset + length).contains(&at)
                });
                let done = replays.iter().any(|header| {
                    header.kind == kind
                        && (header.offset..header.offset + header.length).contains(&at)
                });
                assert!(masked || done, "REPLAYED before {kept:?}");
            }
        }
    }
}
