//! What outlives the server process beside the disk: who may write, and whether the incarnation goes on.

use dst_engine::server::Record;

use crate::ctx::Ctx;

/// What is on the server's stable storage beside the disk.
#[derive(Clone, Debug)]
pub struct Stable {
    pub(super) record: Record,
    pub(super) incarnation: [u8; 16],
    /// The server stopped in order, with everything flushed.
    pub(super) clean: bool,
    /// A new process can tell that nothing was lost since the last one.
    pub(super) continuity: bool,
    /// In this incarnation the holder has not replayed what an earlier one may have lost.
    pub(super) replay_owed: bool,
}

impl Stable {
    /// Of an export never served.
    pub fn new() -> Stable {
        Stable {
            record: Record::NONE,
            incarnation: [0; 16],
            clean: false,
            continuity: false,
            replay_owed: false,
        }
    }

    /// The machine was off.
    pub fn power_cut(&mut self) {
        self.continuity = false;
    }

    pub(super) fn store(&mut self, ctx: &mut Ctx, record: Record) {
        if record.epoch != self.record.epoch {
            ctx.model.lease_moved(record.epoch);
        }
        self.record = record;
    }

    /// Nothing proves that the incarnation goes on.
    pub fn forget_proof(&mut self) {
        self.continuity = false;
    }

    /// Whether a server that started now would go on in the same incarnation.
    pub fn goes_on(&self) -> bool {
        self.clean || self.continuity
    }
}

impl Default for Stable {
    fn default() -> Self {
        Stable::new()
    }
}
