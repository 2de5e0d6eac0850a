//! Signs of life: PING and dead connections (PROTOCOL.md 5.7).

use super::session::Session;

impl<W: AsRef<[u64]> + AsMut<[u64]>> Session<W> {
    /// Bytes came over connection `index`.
    pub fn handle_alive(&mut self, index: u16, now: u64) {
        if let Some(conn) = self.conn_mut(index) {
            conn.heard(now);
        }
    }

    pub(super) fn check_liveness(&mut self, now: u64) {
        let keepalive = self.keepalive;
        for conn in &mut self.conns {
            conn.check(now, keepalive);
        }
    }

    pub(super) fn next_liveness(&self) -> u64 {
        let due = self.conns.iter().map(|conn| conn.due(self.keepalive));
        due.min().unwrap_or(u64::MAX)
    }
}
