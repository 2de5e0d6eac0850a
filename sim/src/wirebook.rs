//! What must hold at the server's backend: a request that a session has sent is executed at most once, barriers are kept,
//! overlapping writes never run together and run in order of id, nothing takes effect late or for a writer who has lost
//! the right. Watches both ends of the wire: which ids clients give out, and what the server hands to its disk.

use dst_proto::{Holder, Kind, OpFlags};

use crate::check::{Book, Ending};
use crate::model::{Range, RequestId};
use crate::Violation;

/// Which request an id stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// One of a device's user.
    User(RequestId),
    /// A retained write that is replayed.
    Replay,
    /// A FLUSH of the engine's own.
    Engine,
}

#[derive(Clone, Copy, Debug)]
struct Id {
    owner: Owner,
    kind: Kind,
    barrier: bool,
    beyond: bool,
    executions: u8,
    /// The disk has it.
    executing: bool,
    /// Nothing more can come of it: done, aborted, refused.
    finished: bool,
}

#[derive(Debug)]
struct Session {
    number: u64,
    /// By id - 1.
    ids: Vec<Option<Id>>,
    /// Every id up to this one has finished.
    floor: usize,
}

/// A write that the disk has.
#[derive(Clone, Copy, Debug)]
struct Running {
    session: u64,
    id: u64,
    range: Range,
}

/// See the [module](self).
#[derive(Debug, Default)]
pub struct WireBook {
    sessions: Vec<Session>,
    running: Vec<Running>,
    /// For each sector the last session and id that wrote there.
    last: Vec<(u64, u64)>,
    /// The session that was let in to write last.
    writer: Option<u64>,
    /// Holder and epoch of the last grant.
    holder: Option<(Holder, u64)>,
    /// The highest generation accepted of each index of each session.
    generations: Vec<(u64, u16, u32)>,
}

impl WireBook {
    /// A client sends a request with an id.
    pub fn sent(
        &mut self,
        session: u64,
        id: u64,
        owner: Owner,
        kind: Kind,
        flags: OpFlags,
        book: &Book,
    ) -> Result<(), Violation> {
        let ids = &mut self.open(session).ids;
        let index = (id - 1) as usize;
        if ids.len() <= index {
            ids.resize(index + 1, None);
        }
        match &ids[index] {
            Some(known) if known.owner != owner => Err(Violation::new(format!(
                "id {id} of session {session} stands for {:?} and for {owner:?}",
                known.owner
            ))),
            Some(_) => Ok(()),
            None => {
                let user = match owner {
                    Owner::User(request) => Some(book.get(request)),
                    Owner::Replay | Owner::Engine => None,
                };
                ids[index] = Some(Id {
                    owner,
                    kind,
                    barrier: user
                        .map_or(flags.contains(OpFlags::BARRIER), |asked| asked.is_barrier()),
                    beyond: user.is_some_and(|asked| asked.beyond),
                    executions: 0,
                    executing: false,
                    finished: false,
                });
                Ok(())
            }
        }
    }

    /// The book of a session, begun where there is none.
    fn open(&mut self, number: u64) -> &mut Session {
        let known = self.sessions.iter().rposition(|s| s.number == number);
        let at = known.unwrap_or_else(|| {
            self.sessions.push(Session {
                number,
                ids: Vec::new(),
                floor: 0,
            });
            self.sessions.len() - 1
        });
        &mut self.sessions[at]
    }

    fn session(&mut self, number: u64) -> Option<&mut Session> {
        self.sessions.iter_mut().rfind(|s| s.number == number)
    }

    /// Which request an id stands for.
    pub fn owner(&self, session: u64, id: u64) -> Option<Owner> {
        let session = self.sessions.iter().rfind(|s| s.number == session)?;
        let id = session.ids.get(id.checked_sub(1)? as usize)?;
        id.map(|id| id.owner)
    }

    /// A session has been let in to write.
    pub fn granted(&mut self, session: u64, holder: Holder, epoch: u64) -> Result<(), Violation> {
        self.writer = Some(session);
        let before = self.holder.replace((holder, epoch));
        match before {
            Some((old, last)) if old == holder && epoch != last => Err(Violation::new(format!(
                "epoch {last} became {epoch} with the same holder"
            ))),
            Some((old, last)) if old != holder && epoch <= last => Err(Violation::new(format!(
                "the holder has changed, and epoch {last} became {epoch}"
            ))),
            _ => Ok(()),
        }
    }

    /// A connection has joined a session.
    pub fn joined(&mut self, session: u64, index: u16, generation: u32) -> Result<(), Violation> {
        let same = |known: &&mut (u64, u16, u32)| (known.0, known.1) == (session, index);
        match self.generations.iter_mut().find(same) {
            Some(known) if known.2 >= generation => Err(Violation::new(format!(
                "connection {index} of session {session} joined with generation {generation} after {}",
                known.2
            ))),
            Some(known) => {
                known.2 = generation;
                Ok(())
            }
            None => {
                self.generations.push((session, index, generation));
                Ok(())
            }
        }
    }

    /// The server hands a request to its disk.
    pub fn started(
        &mut self,
        number: u64,
        id: u64,
        kind: Kind,
        range: Range,
        book: &Book,
    ) -> Result<(), Violation> {
        let write = kind.is_write();
        if write {
            self.check_write(number, id, range)?;
        }
        let Some(session) = self.session(number) else {
            return Err(Violation::new(format!(
                "the server executes id {id} of session {number}, which has sent nothing"
            )));
        };
        let index = (id - 1) as usize;
        let Some(Some(entry)) = session.ids.get_mut(index) else {
            return Err(Violation::new(format!(
                "the server executes id {id} of session {number}, which was never sent"
            )));
        };
        let again = entry.executions > 0;
        entry.executions = entry.executions.saturating_add(1);
        entry.executing = true;
        let entry = *entry;
        if entry.kind != kind {
            return Err(Violation::new(format!(
                "id {id} of session {number} executes as {kind:?}"
            )));
        }
        if write && again {
            return Err(Violation::new(format!(
                "id {id} of session {number} is executed twice ({:?})",
                entry.owner
            )));
        }
        if !again {
            Self::check_barriers(session, index, &entry)?;
        }
        match entry.owner {
            Owner::User(request) if write => Self::check_effect(request, book),
            _ => Ok(()),
        }
    }

    fn check_write(&mut self, number: u64, id: u64, range: Range) -> Result<(), Violation> {
        if self.writer != Some(number) {
            return Err(Violation::new(format!(
                "a write of session {number} is executed, and the right to write is with {:?}",
                self.writer
            )));
        }
        let end = range.first + range.count;
        let overlaps = |other: &&Running| {
            range.first < other.range.first + other.range.count && other.range.first < end
        };
        if let Some(other) = self.running.iter().find(overlaps) {
            return Err(Violation::new(format!(
                "the disk has id {id} of session {number} and the overlapping id {} of session {} at once",
                other.id, other.session
            )));
        }
        if self.last.len() < end {
            self.last.resize(end, (0, 0));
        }
        for (session, last) in &mut self.last[range.first..end] {
            if *session == number && *last > id {
                return Err(Violation::new(format!(
                    "id {id} of session {number} is executed after the overlapping id {last}"
                )));
            }
            (*session, *last) = (number, id);
        }
        self.running.push(Running {
            session: number,
            id,
            range,
        });
        Ok(())
    }

    fn check_barriers(session: &mut Session, index: usize, entry: &Id) -> Result<(), Violation> {
        let done = |id: &Option<Id>| id.is_some_and(|id| id.finished || id.beyond);
        while session.ids.get(session.floor).is_some_and(done) {
            session.floor += 1;
        }
        for at in session.floor..index {
            let other = &session.ids[at];
            if done(other) {
                continue;
            }
            let barrier = other.is_some_and(|other| other.barrier);
            if entry.barrier || barrier {
                return Err(Violation::new(format!(
                    "id {} of session {} starts before id {} has finished, and one of them is a barrier",
                    index + 1,
                    session.number,
                    at + 1
                )));
            }
        }
        Ok(())
    }

    fn check_effect(request: RequestId, book: &Book) -> Result<(), Violation> {
        match book.get(request).ending {
            Ending::Pending => Ok(()),
            Ending::Good => Err(Violation::new(format!(
                "#{request} is executed again after it has succeeded"
            ))),
            Ending::Bad(when) if book.latest_served() > when => Err(Violation::new(format!(
                "#{request} takes effect after it has failed and a later request was served"
            ))),
            Ending::Bad(_) => Ok(()),
        }
    }

    /// The disk has finished a request.
    pub fn done(&mut self, number: u64, id: u64) {
        self.running
            .retain(|other| other.session != number || other.id != id);
        self.finished(number, id);
    }

    /// The server has taken an ABORT: what the disk doesn't have will never have an effect.
    pub fn aborted(&mut self, number: u64, id: u64) {
        let index = id.wrapping_sub(1) as usize;
        let entry = self.session(number).and_then(|s| s.ids.get(index).copied());
        if !entry.flatten().is_some_and(|entry| entry.executing) {
            self.finished(number, id);
        }
    }

    fn finished(&mut self, number: u64, id: u64) {
        let session = self.open(number);
        let Some(index) = id.checked_sub(1) else {
            return;
        };
        let index = index as usize;
        if session.ids.len() <= index {
            session.ids.resize(index + 1, None);
        }
        match &mut session.ids[index] {
            Some(entry) => {
                entry.finished = true;
                entry.executing = false;
            }
            // Aborted before it was ever sent.
            none => {
                *none = Some(Id {
                    owner: Owner::Engine,
                    kind: Kind::ABORT,
                    barrier: false,
                    beyond: false,
                    executions: 0,
                    executing: false,
                    finished: true,
                });
            }
        }
    }

    /// The server process is gone, and with it what its disk was doing.
    pub fn server_gone(&mut self) {
        self.running.clear();
        self.writer = None;
    }
}
