//! Blocking connects for an event loop: one thread that connects when asked and wakes the loop with the outcome.
//!
//! One token is asked for, connected or waiting to be polled at a time: asking for it again meanwhile changes nothing,
//! so what the connector holds is bounded by the number of tokens. Connects follow one another, in the order of the
//! requests. Dropping the connector does not wait: a connect under way ends within its timeout, its stream is closed
//! at once, and the thread ends.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::poller::Waker;
use crate::{Stream, Transport};

/// Time for one connect.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

type Outcome = (u64, io::Result<Box<dyn Stream>>);

/// The event loop's handle of the thread.
pub struct Connector {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    asked: VecDeque<u64>,
    connecting: Option<u64>,
    outcomes: VecDeque<Outcome>,
    stopped: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connector {
    /// Starts the thread. `waker` is woken for each outcome.
    pub fn spawn(transport: Arc<dyn Transport>, waker: Waker) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let theirs = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("dst-connect".to_owned())
            .spawn(move || connect_until_stopped(&theirs, &*transport, &waker))?;
        Ok(Self { shared })
    }

    /// Asks for a connection, to be polled under `token`.
    pub fn request(&self, token: u64) {
        let mut state = self.shared.lock();
        let known = state.connecting == Some(token)
            || state.asked.contains(&token)
            || state.outcomes.iter().any(|(done, _)| *done == token);
        if !known {
            state.asked.push_back(token);
            self.shared.changed.notify_one();
        }
    }

    /// Takes the next outcome, if one is there; never blocks for long.
    pub fn poll(&self) -> Option<Outcome> {
        self.shared.lock().outcomes.pop_front()
    }
}

impl Drop for Connector {
    fn drop(&mut self) {
        let unclaimed = {
            let mut state = self.shared.lock();
            state.stopped = true;
            self.shared.changed.notify_one();
            std::mem::take(&mut state.outcomes)
        };
        // Outside the lock: closing a command's stream takes a moment.
        drop(unclaimed);
    }
}

fn connect_until_stopped(shared: &Shared, transport: &dyn Transport, waker: &Waker) {
    let mut state = shared.lock();
    loop {
        if state.stopped {
            return;
        }
        let Some(token) = state.asked.pop_front() else {
            state = shared
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
            continue;
        };
        state.connecting = Some(token);
        drop(state);
        let outcome = transport.connect(CONNECT_TIMEOUT);
        state = shared.lock();
        state.connecting = None;
        if state.stopped {
            // Released before `outcome` goes: closing a command's stream takes a moment.
            drop(state);
            return;
        }
        state.outcomes.push_back((token, outcome));
        waker.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::poller::{Interest, Poller};
    use crate::socket::SocketStream;
    use std::io::Read as _;
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc::{self, Receiver, Sender};

    /// Each connect announces itself, waits for its turn and yields the other end of a socket pair.
    struct Staged {
        started: Mutex<Sender<UnixStream>>,
        go: Mutex<Receiver<io::Result<()>>>,
    }

    impl Transport for Staged {
        fn connect(&self, _: Duration) -> io::Result<Box<dyn Stream>> {
            let (near, far) = UnixStream::pair()?;
            let _ = self.started.lock().unwrap().send(far);
            self.go.lock().unwrap().recv().unwrap_or(Ok(()))?;
            Ok(Box::new(SocketStream::new(
                near.into(),
                "staged".to_owned(),
                true,
                true,
            )?))
        }

        fn describe(&self) -> String {
            "staged".to_owned()
        }

        fn is_local(&self) -> bool {
            true
        }

        fn is_trusted(&self) -> bool {
            true
        }
    }

    fn staged() -> (
        Connector,
        Waker,
        Receiver<UnixStream>,
        Sender<io::Result<()>>,
    ) {
        let (started, far_ends) = mpsc::channel();
        let (go, turns) = mpsc::channel();
        let waker = Waker::new().unwrap();
        let transport = Staged {
            started: Mutex::new(started),
            go: Mutex::new(turns),
        };
        (
            Connector::spawn(Arc::new(transport), waker.clone()).unwrap(),
            waker,
            far_ends,
            go,
        )
    }

    fn wait(waker: &Waker) {
        let poller = Poller::new().unwrap();
        poller.add(waker.fd(), 0, Interest::READ).unwrap();
        poller.wait(None, &mut Vec::new()).unwrap();
        waker.clear();
    }

    #[test]
    fn outcomes_come_in_order_with_a_wake_up_each() {
        let (connector, waker, _far, go) = staged();
        connector.request(1);
        connector.request(2);
        assert!(connector.poll().is_none());
        go.send(Err(io::ErrorKind::ConnectionRefused.into()))
            .unwrap();
        wait(&waker);
        let (token, outcome) = connector.poll().unwrap();
        assert_eq!(
            (token, outcome.err().unwrap().kind()),
            (1, io::ErrorKind::ConnectionRefused)
        );
        assert!(connector.poll().is_none());
        go.send(Ok(())).unwrap();
        wait(&waker);
        let (token, outcome) = connector.poll().unwrap();
        assert!(token == 2 && outcome.is_ok());
    }

    #[test]
    fn a_token_is_connected_once_however_often_it_is_asked_for() {
        let (connector, waker, far, go) = staged();
        for _ in 0..3 {
            connector.request(7);
        }
        far.recv().unwrap();
        connector.request(7);
        go.send(Ok(())).unwrap();
        wait(&waker);
        connector.request(7);
        connector.request(8);
        assert_eq!(connector.poll().unwrap().0, 7);
        far.recv().unwrap();
        go.send(Ok(())).unwrap();
        wait(&waker);
        assert_eq!(
            connector.poll().unwrap().0,
            8,
            "the next connect is for the next token"
        );
    }

    #[test]
    fn a_drop_does_not_wait_for_a_connect_and_its_stream_is_closed() {
        let (connector, _waker, far, go) = staged();
        connector.request(1);
        connector.request(2);
        let mut far_end = far.recv().unwrap();
        drop(connector);
        go.send(Ok(())).unwrap();
        assert_eq!(
            far_end.read(&mut [0]).unwrap(),
            0,
            "the connected stream is closed"
        );
        assert!(
            far.recv().is_err(),
            "the thread has ended without the second connect"
        );
    }

    #[test]
    fn a_drop_closes_streams_that_nobody_polled() {
        let (connector, waker, far, go) = staged();
        connector.request(1);
        let mut far_end = far.recv().unwrap();
        go.send(Ok(())).unwrap();
        wait(&waker);
        drop(connector);
        assert_eq!(far_end.read(&mut [0]).unwrap(), 0);
    }
}
