//! The server's side: a thread that receives streams and gives them to the front door.
//!
//! Everything here may block for a moment: it is one process of the same user after the other, each with a little time; the end
//! of the server waits for one of them at most. Now and then it looks whether its sockets are still there, since run-time
//! directories come and go with the logins of a user, and listens anew where they are not.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dst_net::{Event, Interest, Poller};
use dst_proto::GeometryFlags;
use rustix::net::{
    recvmsg, sockopt, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags,
    SocketFlags,
};
use rustix::process::{geteuid, getpid};

use super::place::Place;
use super::stream::{Count, HandedStream};
use super::{Answer, HandOver, Request, MAGIC, PACKET};
use crate::front::{Entrance, Scope};
use crate::log;
use crate::port::Port;
use crate::server::Handle;

/// Time for one carrier to say what it wants.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often it is looked whether the sockets are there, and whether the server is of use.
const TICK: Duration = Duration::from_secs(2);
/// The first stream has to have come within this time for a server that ends when it is unused.
const FIRST: Duration = Duration::from_secs(20);
/// Carriers heard in one turn.
const CALLS: usize = 16;

const WAKER: u64 = u64::MAX;

/// One file's socket.
struct Door {
    key: String,
    /// With what its file is known by; absent when it is gone.
    socket: Option<(OwnedFd, u64)>,
}

/// The thread's state.
pub(crate) struct Desk {
    hand_over: HandOver,
    /// The state directory, without links.
    state_dir: PathBuf,
    place: Place,
    poller: Poller,
    doors: Vec<Door>,
    ports: Arc<[Port]>,
    streams: Count,
    front: Entrance,
    handle: Handle,
    started: Instant,
    used: bool,
}

impl Desk {
    /// Listens for every export that is on a file or a device.
    pub fn open(
        hand_over: HandOver,
        state_dir: &Path,
        ports: Arc<[Port]>,
        front: Entrance,
        handle: Handle,
    ) -> io::Result<Self> {
        let place = Place::make(&hand_over.directory)?;
        place.sweep();
        let poller = Poller::new()?;
        poller.add(handle.desk.fd(), WAKER, Interest::READ)?;
        let doors = ports.iter().filter_map(|port| {
            let key = port.file?.to_string();
            Some(Door { key, socket: None })
        });
        let mut desk = Self {
            doors: doors.collect(),
            hand_over,
            state_dir: real(state_dir),
            place,
            poller,
            ports,
            streams: Count::new(handle.desk.clone()),
            front,
            handle,
            started: Instant::now(),
            used: false,
        };
        (0..desk.doors.len()).try_for_each(|door| desk.listen(door))?;
        Ok(desk)
    }

    fn listen(&mut self, door: usize) -> io::Result<()> {
        let (socket, file) = self.place.listen(&self.doors[door].key)?;
        self.poller
            .add(socket.as_fd(), door as u64, Interest::READ)?;
        // Closing the one before takes it out of the poller.
        self.doors[door].socket = Some((socket, file));
        Ok(())
    }

    /// Serves until the server stops.
    pub fn run(mut self) -> io::Result<()> {
        let mut events = Vec::new();
        let mut looked = Instant::now();
        loop {
            self.poller.wait(Some(TICK), &mut events)?;
            for event in &events {
                self.handle(event);
            }
            if self.handle.stop.load(Ordering::Acquire) {
                self.close();
                return Ok(());
            }
            if looked.elapsed() >= TICK {
                looked = Instant::now();
                self.look_for_sockets();
            }
            if self.hand_over.ends_unused && self.is_unused() {
                // Nobody comes in any more, and who comes now starts a server that waits for this one's lock.
                self.close();
                self.handle.drain();
                return Ok(());
            }
        }
    }

    fn handle(&mut self, event: &Event) {
        match usize::try_from(event.token) {
            Ok(door) if event.token != WAKER => self.call(door),
            _ => self.handle.desk.clear(),
        }
    }

    /// Whether no stream is there and no session that one could join. A session begins with a stream and is counted before
    /// that can end: so streams first.
    fn is_unused(&self) -> bool {
        let expects = !self.handle.expects_nobody.load(Ordering::Acquire);
        let began = self.used || !expects || self.started.elapsed() >= FIRST;
        began
            && self.streams.is_zero()
            && self.ports.iter().all(|port| port.listing().sessions == 0)
    }

    fn close(&mut self) {
        for door in &mut self.doors {
            if let Some((_, file)) = door.socket.take() {
                self.place.remove(&door.key, file);
            }
        }
    }

    /// Listens anew where a socket has gone, perhaps with its directory. What does not work now may the next time.
    fn look_for_sockets(&mut self) {
        let there = |door: &Door| {
            let known = door.socket.as_ref().map(|(_, file)| *file);
            known.is_some() && known == self.place.file(&door.key)
        };
        let missing: Vec<usize> = (0..self.doors.len())
            .filter(|&door| !there(&self.doors[door]))
            .collect();
        if missing.is_empty() {
            return;
        }
        if let Ok(place) = Place::make(&self.hand_over.directory) {
            self.place = place;
            for door in missing {
                self.doors[door].socket = None;
                let _ = self.listen(door);
            }
        }
    }

    /// Hears who has come to a door.
    fn call(&mut self, door: usize) {
        for _ in 0..CALLS {
            if self.handle.stop.load(Ordering::Acquire) {
                // Each that says nothing would hold up the end.
                return;
            }
            let Some((socket, _)) = self.doors.get(door).and_then(|door| door.socket.as_ref())
            else {
                return;
            };
            let Ok(carrier) = rustix::net::accept_with(socket, SocketFlags::CLOEXEC) else {
                return;
            };
            if let Err(error) = self.hear(carrier) {
                log::line(format_args!("a stream could not be taken over: {error}"));
            }
        }
    }

    fn hear(&mut self, carrier: OwnedFd) -> io::Result<()> {
        let peer = sockopt::socket_peercred(&carrier)?;
        if peer.uid != geteuid() {
            return Ok(());
        }
        for way in [sockopt::Timeout::Recv, sockopt::Timeout::Send] {
            sockopt::set_socket_timeout(&carrier, way, Some(PATIENCE))?;
        }
        let mut packet = vec![0; PACKET];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::io::retry_on_intr(|| {
            let mut bytes = [IoSliceMut::new(&mut packet)];
            recvmsg(&carrier, &mut bytes, &mut control, RecvFlags::CMSG_CLOEXEC)
        })?;
        if received.bytes == 0 {
            // Somebody who only looked whether there is a server.
            return Ok(());
        }
        let fds: Vec<OwnedFd> = control
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(fds) => Some(fds),
                _ => None,
            })
            .flatten()
            .collect();
        packet.truncate(received.bytes);
        let whole = !received
            .flags
            .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC);
        let request = parse(&packet).filter(|_| whole);
        let (Some(request), Ok([input, output])) = (request, <[OwnedFd; 2]>::try_from(fds)) else {
            let text = format!(
                "process {} did not understand the request: it is of another version of dst",
                getpid()
            );
            return answer(&carrier, &Answer::Refused(text));
        };
        let scope = match self.scope(&request) {
            Ok(scope) => scope,
            Err(why) => return answer(&carrier, &Answer::Refused(why)),
        };
        let pid = peer.pid.as_raw_nonzero().get();
        match HandedStream::new(input, output, carrier, pid, &self.streams) {
            Ok(stream) => {
                stream.tell(&Answer::Taken(std::process::id()))?;
                self.used = true;
                self.front.hand_in(Box::new(stream), scope);
                Ok(())
            }
            Err((error, carrier)) => answer(&carrier, &Answer::Refused(error.to_string())),
        }
    }

    /// The exports that a stream may use, or why it can't have them.
    fn scope(&self, request: &Request) -> Result<Scope, String> {
        let by = format!("by process {}", getpid());
        if let Some(wanted) = &request.state_dir {
            if real(wanted) != self.state_dir {
                let (theirs, ours) = (wanted.display(), self.state_dir.display());
                return Err(format!(
                    "--state-dir {theirs} was asked for, but the state is in {ours}"
                ));
            }
        }
        let mut scope = Vec::new();
        for asked in &request.exports {
            let path = &asked.path;
            if scope.iter().any(|(name, _)| *name == asked.name) {
                return Err(format!("two exports are named {}", asked.name));
            }
            let is_it = |port: &Port| port.file.is_some_and(|file| file.to_string() == asked.key);
            let Some(index) = self.ports.iter().position(is_it) else {
                return Err(format!(
                    "{path} is not among what is served {by}: one stream can only lead to one server"
                ));
            };
            let listing = self.ports[index].listing();
            let read_only = listing.flags.contains(GeometryFlags::READ_ONLY);
            let block = listing.logical_block;
            match (asked.read_only, read_only) {
                (true, false) => {
                    return Err(format!(
                        "{path} is served for writing {by}, not --read-only as was asked for"
                    ))
                }
                (false, true) => {
                    return Err(format!(
                        "{path} is served read-only {by}; ask for --read-only"
                    ))
                }
                _ => {}
            }
            if asked.block_size.is_some_and(|asked| asked != block) {
                return Err(format!("{path} is served with --block-size {block} {by}"));
            }
            scope.push((asked.name.clone(), index));
        }
        Ok(scope.into())
    }
}

fn parse(packet: &[u8]) -> Option<Request> {
    serde_json::from_slice(packet.strip_prefix(&MAGIC)?).ok()
}

pub(super) fn answer(carrier: &OwnedFd, answer: &Answer) -> io::Result<()> {
    let bytes = serde_json::to_vec(answer)?;
    rustix::net::send(carrier, &bytes, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// The path without links, as far as it exists.
fn real(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}
