//! OPENs that are being decided: who wants to write may have to wait for the holder, the backend and the disk.
//!
//! Their streams are watched meanwhile: a client that has gone is not given a lease, and a stop turns all of them away.

use std::io;

use dst_engine::server::Refused;
use dst_net::{Framed, Interest, Link};
use dst_proto::{Digests, Kind, Limits, Status};

use crate::admit::{say_farewell, turn_away, STOPPING};
use crate::budget::Reservation;
use crate::conn::Incoming;
use crate::frames::refusal;
use crate::worker::{Worker, ASKING};

/// An OPEN whose answer is being decided.
pub(crate) struct Asking {
    pub framed: Framed<Incoming>,
    pub limits: Limits,
    pub memory: Reservation,
    pub digests: Digests,
    pub writable: bool,
    pub client: String,
}

impl Worker {
    /// Keeps an OPEN until [`dst_engine::server::Export::poll_action`] tells what becomes of it.
    pub(crate) fn keep_asking(&mut self, number: u64, asking: Asking) {
        self.admitted_client.clone_from(&asking.client);
        // Where this fails the client's end is not noticed before it is let in, no more.
        let token = ASKING | number;
        let _ = self
            .poller
            .add(asking.framed.link.fd(), token, Interest::READ);
        self.asking.insert(number, asking);
    }

    /// Something happened on the stream of an OPEN that is being decided.
    pub(crate) fn handle_asking(&mut self, number: u64) {
        let Some(asking) = self.asking.get_mut(&number) else {
            return;
        };
        let gone = loop {
            match asking.framed.link.fill() {
                // Whatever it is, it is taken when the session is there. Until then only the end of the stream counts.
                Ok(_) => {
                    let (poller, fd) = (&self.poller, asking.framed.link.fd());
                    if poller.modify(fd, ASKING | number, Interest::NONE).is_err() {
                        break true;
                    }
                }
                Err(error) => break error.kind() != io::ErrorKind::WouldBlock,
            }
        };
        if gone {
            self.cancel_asking(number, None);
        }
    }

    /// Looks whether those whose OPEN is being decided are still there. Nobody is to be sent away because of one that has
    /// gone, only because the poller has not told of it yet.
    pub(crate) fn forget_those_gone(&mut self) {
        for number in self.asking.keys().copied().collect::<Vec<_>>() {
            self.handle_asking(number);
        }
    }

    /// Gives up the admission of an OPEN, which is told `status` if there is anybody to tell.
    pub(crate) fn cancel_asking(&mut self, number: u64, status: Option<Status>) {
        self.rules.cancel(number);
        self.directory.remove(number);
        if let (Some(asking), Some(status)) = (self.take_asking(number), status) {
            turn_away(asking.framed.link, Kind::OPEN, status, STOPPING);
        }
    }

    fn take_asking(&mut self, number: u64) -> Option<Asking> {
        let asking = self.asking.remove(&number)?;
        // An error means that it is not there any more.
        let _ = self.poller.remove(asking.framed.link.fd());
        Some(asking)
    }

    /// The rules refused an OPEN.
    pub(crate) fn refuse_asking(&mut self, number: u64, refused: Refused) {
        self.directory.remove(number);
        if let Some(asking) = self.take_asking(number) {
            self.refuse_open(asking.framed.link, refused);
        }
    }

    pub(crate) fn refuse_open(&self, mut link: Link, refused: Refused) {
        let writer = self
            .rules
            .writer()
            .and_then(|number| self.members.get(&number));
        let text = match refused.status {
            Status::LEASE_BUSY => match writer.map(|member| member.client.as_str()) {
                Some(client) => format!("{client} has it attached for writing"),
                None => match &self.saved.lease {
                    Some(lease) => format!(
                        "{} had it attached for writing and may come back",
                        lease.client
                    ),
                    None => "it is attached for writing".to_owned(),
                },
            },
            Status::LEASE_LOST => "another client has been let in to write since".to_owned(),
            Status::EXPORT_CHANGED => "another disk has this name now".to_owned(),
            Status::READ_ONLY => "the export is read-only; attach it with --read-only".to_owned(),
            Status::LIMIT => "too many clients use this export; try again".to_owned(),
            status => status.name().to_owned(),
        };
        link.push_bytes(&refusal(Kind::OPEN, refused.status, &text, refused.wait));
        say_farewell(link);
    }

    /// The rules let an OPEN in that had to wait.
    pub(crate) fn grant(&mut self, number: u64) {
        if let Some(asking) = self.take_asking(number) {
            self.begin_session(number, asking);
        }
    }
}
