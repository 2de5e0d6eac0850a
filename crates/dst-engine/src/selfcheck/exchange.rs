//! A client and a server talk to each other:
//!
//! 1. HELLO, OPEN; the server flushes, writes the lease down and grants; REPLAYED.
//! 2. A WRITE and a READ go out. The connection breaks when the WRITE has been executed, with half its answer on the way to
//!    the client and half of the READ on the way to the server.
//! 3. HELLO, JOIN on a new connection. The client learns the outcome of the WRITE from the answer and keeps its bytes; it is
//!    not executed again. The READ is sent again and returns what was written.
//! 4. A FLUSH lets what was kept go.
//! 5. The deadline of a READ passes before the server has looked at it: ABORT follows it, and it is never executed.
//! 6. CLOSE: the server flushes, the lease is free.

use super::super::client::Failure;
use super::super::proto::{Kind, OpFlags, Status, HEADER_LEN};
use super::client::{Client, DEADLINE};
use super::pipe::Pipe;
use super::server::Server;
use super::{ensure, Checked, Workspace};

/// Both ends and what is between them.
struct Exchange<'m> {
    client: Client<'m>,
    server: Server<'m>,
    up: &'m mut Pipe,
    down: &'m mut Pipe,
    now: u64,
}

/// Slots of the client's requests.
const FIRST: u16 = 0;
const SECOND: u16 = 1;

pub(super) fn run(workspace: &mut Workspace) -> Checked {
    let Workspace {
        client,
        server,
        up,
        down,
    } = workspace;
    up.clear();
    down.clear();
    let mut exchange = Exchange {
        client: Client::new(client),
        server: Server::new(server),
        up,
        down,
        now: 1,
    };
    exchange.opens()?;
    exchange.breaks()?;
    exchange.resumes()?;
    exchange.flushes()?;
    exchange.aborts()?;
    exchange.closes()
}

impl Exchange<'_> {
    fn connect(&mut self) -> Checked {
        self.client.connect(self.now)?;
        self.server.accept(self.down)
    }

    /// Lets both ends work until nothing is on its way.
    fn settle(&mut self) -> Checked {
        for _ in 0..8 {
            self.server.receive(self.up, self.down, self.now)?;
            self.server.work(self.down, self.now)?;
            self.client.turn(self.down, self.up, self.now)?;
        }
        ensure(
            self.up.len() == 0 && self.down.len() == 0,
            "the two ends never come to rest",
        )
    }

    /// How the request of a slot ended.
    fn done(&self, slot: u16) -> Option<Result<(), Failure>> {
        self.client.seen.done.get(usize::from(slot)).copied()?
    }

    #[inline(never)]
    fn opens(&mut self) -> Checked {
        self.connect()?;
        self.settle()?;
        ensure(self.client.seen.opened == 1, "no session is opened")?;
        ensure(
            self.server.asked.flushes == 1 && !self.server.is_free(),
            "a writer is let in without a flush, or not written down",
        )
    }

    #[inline(never)]
    fn breaks(&mut self) -> Checked {
        let memory = self.client.requests.first_mut();
        let bytes = memory
            .ok_or("no memory")?
            .iter_mut()
            .zip((1..=251u8).cycle());
        bytes.for_each(|(byte, value)| *byte = value);
        self.client
            .submit(FIRST, Kind::WRITE, OpFlags::NONE, self.now)?;
        self.client
            .submit(SECOND, Kind::READ, OpFlags::NONE, self.now)?;
        self.client.send(self.up)?;
        let sent = self.up.len();
        self.up.cut(sent.saturating_sub(HEADER_LEN / 2));
        self.server.receive(self.up, self.down, self.now)?;
        self.server.work(self.down, self.now)?;
        ensure(
            self.server.asked.writes == 1 && self.server.asked.reads == 0,
            "a WRITE is not executed, or half a READ is",
        )?;
        self.down.cut(HEADER_LEN / 2);
        self.client.turn(self.down, self.up, self.now)?;
        ensure(
            self.done(FIRST).is_none() && self.done(SECOND).is_none(),
            "half an answer is taken for one",
        )?;
        self.up.clear();
        self.down.clear();
        self.server.lose(self.now);
        self.client.lose();
        Ok(())
    }

    #[inline(never)]
    fn resumes(&mut self) -> Checked {
        self.now = self.now.saturating_add(DEADLINE / 2);
        self.connect()?;
        self.settle()?;
        ensure(
            self.client.seen.opened == 1,
            "a session is opened where one was to be resumed",
        )?;
        ensure(
            self.done(FIRST) == Some(Ok(())) && self.server.asked.writes == 1,
            "the outcome of a WRITE is not learned, or it is executed twice",
        )?;
        ensure(
            self.client.seen.kept == 1 && self.client.seen.released == 0,
            "a write that is not durable is not kept",
        )?;
        let (written, read) = match self.client.requests {
            [written, read, ..] => (written, read),
            _ => return Err("no memory"),
        };
        ensure(
            read == written && self.server.disk == written,
            "what was written is not what is read",
        )?;
        ensure(
            self.done(SECOND) == Some(Ok(())) && self.server.asked.reads == 1,
            "a READ that was cut off is not sent again",
        )?;
        let again = self.server.lets_in_again(2, self.now);
        ensure(!again, "an old connection is let in again")
    }

    #[inline(never)]
    fn flushes(&mut self) -> Checked {
        let before = self.server.asked.flushes;
        self.client
            .submit(FIRST, Kind::FLUSH, OpFlags::BARRIER, self.now)?;
        self.settle()?;
        ensure(
            self.done(FIRST) == Some(Ok(())) && self.server.asked.flushes > before,
            "a FLUSH is not executed",
        )?;
        ensure(
            self.client.seen.released == 1,
            "what is durable is still kept",
        )
    }

    #[inline(never)]
    fn aborts(&mut self) -> Checked {
        let reads = self.server.asked.reads;
        self.client
            .submit(FIRST, Kind::READ, OpFlags::NONE, self.now)?;
        self.client.send(self.up)?;
        self.now = self.now.saturating_add(DEADLINE);
        self.client.timeout(self.now);
        self.client.send(self.up)?;
        self.client
            .submit(SECOND, Kind::READ, OpFlags::NONE, self.now)?;
        self.settle()?;
        ensure(
            self.done(FIRST) == Some(Err(Failure::Deadline)),
            "a deadline is not kept",
        )?;
        ensure(
            self.done(SECOND) == Some(Ok(())),
            "after an ABORT nothing goes on",
        )?;
        ensure(
            self.server.asked.reads == reads.saturating_add(1),
            "an aborted request is executed after all",
        )
    }

    #[inline(never)]
    fn closes(&mut self) -> Checked {
        let before = self.server.asked.flushes;
        self.client.close();
        self.settle()?;
        ensure(
            self.client.seen.closed == Some(Status::OK),
            "CLOSE is not answered",
        )?;
        ensure(
            self.server.asked.flushes > before && self.server.is_free(),
            "a session ends without a flush, or keeps the lease",
        )
    }
}
