//! How the front door and the exports' threads reach each other.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dst_ids::random;
use dst_net::{Framed, Waker};
use dst_proto::{GeometryFlags, Header, HELLO_LEN};
use dst_store::FileKey;

use crate::conn::Incoming;

/// A stream whose first frame, OPEN or JOIN, has come.
pub(crate) struct Arrival {
    /// Still has the client's HELLO and the options of the frame.
    pub framed: Framed<Incoming>,
    pub header: Header,
    /// The HELLO that this end sent, and its nonce.
    pub hello: [u8; HELLO_LEN],
    pub nonce: [u8; 16],
    /// Its place among those under way to the export.
    pub _place: Place,
}

/// Streams on their way to one export at most. Each has buffers and a descriptor, and the export may be waiting for a disk.
const UNDER_WAY: usize = 64;

/// How many streams are on their way to one export.
#[derive(Default)]
pub(crate) struct Places {
    taken: Arc<AtomicUsize>,
}

/// One of them; free again when it is dropped.
pub(crate) struct Place {
    taken: Arc<AtomicUsize>,
}

impl Places {
    /// Takes a place. `None`: there is none. For one thread, the front door's.
    pub fn take(&self) -> Option<Place> {
        // Only the front door adds, so that what is read here can only get less.
        if self.taken.load(Ordering::Relaxed) >= UNDER_WAY {
            return None;
        }
        self.taken.fetch_add(1, Ordering::Relaxed);
        let taken = Arc::clone(&self.taken);
        Some(Place { taken })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What an export's thread is told.
pub(crate) enum Message {
    Arrival(Box<Arrival>),
    /// Finish, flush, stop.
    Drain,
}

/// What LIST and `status` tell of an export.
#[derive(Debug, Clone, Default)]
pub(crate) struct Listing {
    pub name: String,
    pub size: u64,
    pub logical_block: u32,
    pub flags: GeometryFlags,
    /// The client that writes; empty for none.
    pub writer: String,
    /// Sessions open.
    pub sessions: usize,
}

/// The way to one export.
pub(crate) struct Port {
    pub name: String,
    /// What it is on, if that is a file or device.
    pub file: Option<FileKey>,
    pub inbox: Sender<Message>,
    pub waker: Waker,
    pub places: Places,
    pub listing: Arc<Mutex<Listing>>,
}

impl Port {
    pub fn send(&self, message: Message) {
        // An export whose thread has ended takes nothing any more; the stream is closed with the message.
        let _ = self.inbox.send(message);
        self.waker.wake();
    }

    pub fn listing(&self) -> Listing {
        lock(&self.listing).clone()
    }
}

/// Which export each session belongs to, by session number.
#[derive(Default)]
pub(crate) struct Directory {
    sessions: Mutex<HashMap<u64, usize>>,
}

impl Directory {
    pub fn find(&self, session: u64) -> Option<usize> {
        lock(&self.sessions).get(&session).copied()
    }

    /// A session number that no export uses, now used by `export`. Short, since people read it; which session it was
    /// before a restart is told by its secret.
    pub fn assign(&self, export: usize) -> u64 {
        let mut sessions = lock(&self.sessions);
        loop {
            let number = u64::from(u32::from_le_bytes(random()));
            if number != 0 && !sessions.contains_key(&number) {
                sessions.insert(number, export);
                return number;
            }
        }
    }

    pub fn remove(&self, session: u64) {
        lock(&self.sessions).remove(&session);
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What these guard is replaced as a whole: a thread that panicked left nothing half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_under_way_are_bounded_and_a_place_is_free_again() {
        let places = Places::default();
        let mut taken: Vec<_> = (0..UNDER_WAY).map(|_| places.take().unwrap()).collect();
        assert!(places.take().is_none());
        taken.pop();
        taken.push(places.take().unwrap());
        assert!(places.take().is_none());
    }
}
