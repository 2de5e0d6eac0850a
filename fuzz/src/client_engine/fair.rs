//! A good server: everything comes to its end.

use dst_engine::client::Phase;
use dst_proto::{Credit, ExportState, Header, Kind, Outcome, Role, Status, NO_SLOT};

use super::server::Server;
use super::world::{World, CONNECTIONS, USER};
use crate::{frames, trace};

impl World {
    /// Everything that is out is answered, everything that can go out goes. Tells whether anything happened.
    pub fn round(&mut self) -> bool {
        let mut busy = false;
        for index in 0..CONNECTIONS {
            while self.transmit(index) {
                busy = true;
            }
            for slot in 0..USER {
                self.sent(index, slot);
            }
            self.drain(index);
            let Some(stream) = self.conn(index).map(|conn| conn.stream) else {
                continue;
            };
            for id in self.wire.open_aborts() {
                busy = true;
                let seen = self.wire.sent.contains_key(&id);
                let outcome = if seen {
                    Outcome::Kept
                } else {
                    Outcome::NeverExecuted
                };
                self.abort_reply(index, id, outcome);
            }
            for id in self.wire.out(index, stream) {
                busy = true;
                self.reply(index, id, Status::OK, None);
                self.drain(index);
            }
            if self.session.phase() == Phase::Closing && self.wire.out(index, stream).is_empty() {
                let header = Header::reply(Kind::CLOSE, NO_SLOT, 0, Status::OK, Credit::default());
                if self.is_idle()
                    && !self.transmit(index)
                    && self.conn(index).is_some_and(|conn| conn.live)
                {
                    self.feed(index, &frames::frame(&header, &[], &[]));
                }
            }
        }
        busy
    }

    /// From now on the server is a good one: everything comes to its end.
    pub fn serve_all(&mut self) {
        trace!("--- all is good from here on");
        for index in 0..CONNECTIONS {
            self.lose(index);
        }
        self.server.credit = Server::new().credit;
        let now = self.server.state();
        let known =
            |state: &ExportState| (state.id, state.incarnation) == (now.id, now.incarnation);
        self.server.knows &= self.session.export().is_some_and(known);
        for _ in 0..200 {
            self.close_wanted();
            for index in 0..CONNECTIONS {
                self.connect(index);
                let waits = self
                    .conn(index)
                    .is_some_and(|conn| !conn.live && conn.asked.is_none());
                if waits {
                    self.feed(index, &frames::hello(Role::Server, 5));
                }
                self.answer_handshake(index);
            }
            let busy = self.round();
            if self.is_idle() && !busy {
                return;
            }
        }
        panic!(
            "requests that never come to an end: {:?}",
            self.session.phase()
        );
    }
}
