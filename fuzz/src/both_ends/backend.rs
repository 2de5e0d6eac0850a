//! The server's backend: what runs, what becomes of it, and what the engines learn.

use dst_engine::server::Execute;
use dst_proto::{Kind, OpFlags, Status, NO_SLOT};

use super::disk::{blocks, Disk, Snapshot, BLOCK};
use super::server::{Data, Server};
use crate::trace;

/// At the backend: for a session, or (0) for the export.
pub(super) struct Running {
    pub(super) member: u64,
    pub(super) execute: Option<Execute>,
    pub(super) payload: Vec<u8>,
    pub(super) snapshot: Snapshot,
}

impl Server {
    pub(super) fn start_all(&mut self, disk: &Disk) -> bool {
        let mut busy = false;
        for member in &mut self.members {
            while let Some(execute) = member.session.poll_execute(&mut member.slots) {
                trace!("  starts {execute:?}");
                let mut payload = Vec::new();
                if execute.slot != NO_SLOT {
                    let data = std::mem::take(&mut member.data[usize::from(execute.slot)]);
                    if execute.kind == Kind::WRITE {
                        let Data::Payload(bytes) = data else {
                            panic!("a WRITE of {data:?}");
                        };
                        assert_eq!(bytes.len() as u64, execute.length);
                        payload = bytes;
                    }
                }
                self.running.push(Running {
                    member: member.number,
                    execute: Some(execute),
                    payload,
                    snapshot: disk.snapshot(),
                });
                busy = true;
            }
        }
        busy
    }

    /// The backend finishes one thing. A failing sync loses half of what was not flushed when the backend is renewed.
    pub fn complete(&mut self, disk: &mut Disk, nth: usize, status: Status, now: u64) -> bool {
        let Some(nth) = nth.checked_rem(self.running.len()) else {
            return false;
        };
        let running = self.running.remove(nth);
        let sync = running.execute.is_none_or(|execute| {
            execute.kind == Kind::FLUSH || execute.flags.contains(OpFlags::FUA)
        });
        let failed = sync && status == Status::SYNC_FAILED;
        let status = match status {
            Status::SYNC_FAILED if !sync => Status::OK,
            // Only a sync of the whole has no other error.
            other if sync && !other.is_ok() && !failed => Status::OK,
            other => other,
        };
        trace!(
            "backend: {:?} of {}: {status:?}",
            running.execute,
            running.member
        );
        if status.is_ok() {
            apply(disk, &running);
        } else if failed
            && running
                .execute
                .is_some_and(|execute| execute.kind != Kind::FLUSH)
        {
            // A write with FUA whose sync failed is in the cache.
            let execute = running.execute.map(|execute| Execute {
                flags: OpFlags::NONE,
                ..execute
            });
            apply(disk, &Running { execute, ..running });
            return self.report(running.member, execute, failed, status, &[], now);
        }
        let read = match running.execute {
            Some(execute) if execute.kind == Kind::READ => {
                let mut bytes = Vec::new();
                for at in blocks(execute.offset, execute.length) {
                    bytes.extend(disk.read(at).to_le_bytes().repeat(BLOCK as usize / 8));
                }
                bytes
            }
            _ => Vec::new(),
        };
        self.report(running.member, running.execute, failed, status, &read, now)
    }

    fn report(
        &mut self,
        number: u64,
        execute: Option<Execute>,
        failed: bool,
        status: Status,
        read: &[u8],
        now: u64,
    ) -> bool {
        let mut status = status;
        if failed {
            self.incarnation = self.incarnation.wrapping_add(1);
            let session = execute.map(|_| number);
            status = self
                .export
                .sync_failed(session, [self.incarnation; 16], now);
        }
        let Some(execute) = execute else {
            if !failed {
                self.export.flushed();
            }
            return true;
        };
        let Some(member) = self
            .members
            .iter_mut()
            .find(|member| member.number == number)
        else {
            panic!("session {number} is forgotten while the backend has something of it");
        };
        if execute.kind == Kind::READ && status.is_ok() {
            member.data[usize::from(execute.slot)] = Data::Read(read.to_vec());
        }
        member
            .session
            .executed(&mut member.slots, execute.slot, execute.id, status);
        let sync = execute.kind == Kind::FLUSH || execute.flags.contains(OpFlags::FUA);
        if sync && status.is_ok() {
            if member.session.has_replayed() {
                self.export.replayed(number);
            }
            self.export.sync_succeeded(number);
        }
        true
    }
}

/// What the backend did with a request.
pub(super) fn apply(disk: &mut Disk, running: &Running) {
    let Some(execute) = running.execute else {
        return disk.flushed(&running.snapshot);
    };
    let fua = execute.flags.contains(OpFlags::FUA);
    match execute.kind {
        Kind::FLUSH => disk.flushed(&running.snapshot),
        Kind::WRITE | Kind::WRITE_ZEROES | Kind::DISCARD => {
            for (nth, at) in blocks(execute.offset, execute.length).enumerate() {
                let bytes = running.payload.get(nth * BLOCK as usize..);
                let first = bytes.and_then(|bytes| bytes.first_chunk::<8>());
                disk.write(at, first.map_or(0, |first| u64::from_le_bytes(*first)), fua);
            }
        }
        _ => {}
    }
}
