//! Who may write, and what becomes of what nobody will replay.

use super::sector::State;
use super::Model;

impl Model {
    /// A client has been let in to write, in the present incarnation where `current`. It is about to replay where `replays`.
    pub fn grant(&mut self, client: u8, current: bool, replays: bool) {
        let now = self.tick();
        if self.holder != Some(client) {
            for sector in &mut self.sectors {
                for version in &mut sector.versions {
                    if version.client != client && version.state == State::Pending {
                        version.state = State::Failed(now);
                    }
                }
                sector
                    .versions
                    .retain(|v| v.sent || v.state == State::Pending);
            }
            self.holder = Some(client);
            if self.lost || self.replaying {
                self.merge();
            }
        }
        self.replaying = replays;
        // A fresh session is granted only after a flush of the backend. (What is replayed goes over that again.)
        if current && !self.lost && !replays {
            for sector in &mut self.sectors {
                sector.durable_before(now);
            }
        }
    }

    /// The server has written down another holder: the one before can't replay any more, though nobody has been told.
    pub fn lease_moved(&mut self, epoch: u64) {
        self.epoch = epoch;
        self.holder = None;
        if self.lost || std::mem::take(&mut self.replaying) {
            self.merge();
        }
    }

    /// A client is dead, or its device has failed: nothing of it comes any more, and nothing is replayed.
    pub fn client_gone(&mut self, client: u8) {
        if self.holder == Some(client) {
            self.holder = None;
            // Half a replay has put older writes over newer ones.
            if self.lost || std::mem::take(&mut self.replaying) {
                self.merge();
            }
        }
    }

    /// The holder has replayed everything.
    pub fn replayed(&mut self) {
        self.lost = false;
        self.replaying = false;
    }

    /// What was not flushed may be gone.
    pub fn lose(&mut self) {
        self.tick();
        self.lost = true;
        self.shown = false;
        if self.holder.is_none() {
            self.merge();
        }
    }

    /// Nobody will replay: any version may be what is there.
    pub(super) fn merge(&mut self) {
        self.lost = false;
        for sector in &mut self.sectors {
            let gone = sector.versions.iter().filter(|v| v.sent);
            sector.base.extend(gone.map(|v| v.value));
            sector.base.sort_unstable();
            sector.base.dedup();
            sector
                .versions
                .retain(|v| v.state == State::Pending && !v.sent);
        }
        for at in 0..self.reads.len() {
            self.allow_all(at);
        }
    }
}
