//! The loop of an agent: one thread that carries requests between a front end and the connections, and answers the control
//! socket and signals in between.
//!
//! | stage | entered by | what goes on | next |
//! | --- | --- | --- | --- |
//! | starting | creation | the front end's `start` runs beside | up; ended if it fails (the process itself if it takes over) |
//! | up | `start` is done | the device is usable | stopping; orphaned |
//! | orphaned | the front end went away by itself | a flush | flushing, on detach |
//! | stopping | detach, a signal | the front end's `stop` runs beside | flushing; up if the device is in use |
//! | flushing | `stop` is done | the last flush | closing |
//! | closing | the flush is done | CLOSE | ended |
//!
//! A device that was taken over, or that can be, is never removed because something fails here: the process ends, and the
//! device waits for the next one (`device/succession.rs`).
//!
//! Requests are served in every stage, since all work beside needs them served. A forced detach puts an end to requests at
//! once and a time limit on everything from stopping on; with it the same stages are passed.

mod size;
mod stages;
mod succession;

use std::os::fd::AsFd as _;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use dst_blockdev::{Error as FrontError, FrontEnd, Node, Work};
use dst_client::{Completion, Driver, Request, Turn, USER_TOKEN};
use dst_net::{Interest, Waker};

use super::control::{ClientId, ControlServer};
use super::log::Log;
use super::rates::{Sampler, INTERVAL};
use super::ready::Announcer;
use super::report::{self, Facts};
use crate::control::Reply;
use crate::exit::{Code, Failure, Outcome};
use crate::runtime_dir::DeviceDir;
use crate::signals::Signals;

const FRONT: u64 = USER_TOKEN;
const WAKER: u64 = USER_TOKEN + 1;
const SIGNALS: u64 = USER_TOKEN + 2;
const CONTROL: u64 = USER_TOKEN + 16;

/// Tag of the loop's own flush. No front end uses it: theirs are made of small numbers.
const FLUSH_TAG: u64 = u64::MAX;

/// Requests, completions and events of one turn that find room without an allocation.
const BATCH: usize = 1024;

/// A forced detach takes no longer: `dst detach --force` promises 5 s, and the process has to end in that time too.
const FORCED: Duration = Duration::from_millis(3500);

/// How long to wait for the server to confirm CLOSE. Nothing depends on it but how soon another client may write.
const CLOSING: Duration = Duration::from_secs(5);

/// What a loop is made of.
pub struct Parts<'a> {
    /// The connections.
    pub driver: Driver,
    /// The way to the kernel.
    pub front: Box<dyn FrontEnd>,
    /// Where the socket goes.
    pub dir: &'a DeviceDir,
    /// The URL, for people.
    pub url: String,
    /// The device is there and waits; until it is up nothing of it, nor of its session, may end.
    pub recovers: bool,
    /// Where to say that the device is there.
    pub announcer: &'a mut Announcer,
    /// What asks the agent to end.
    pub signals: &'a Signals,
    /// The log.
    pub log: &'a mut Log,
}

/// What ran beside and is done.
enum Finished {
    Started(Result<Node, FrontError>),
    Stopped(Result<(), FrontError>),
    Resized(u64, Result<(), FrontError>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Starting,
    Up,
    Orphaned,
    Stopping,
    Flushing,
    Closing,
    Ended,
}

/// See the module.
pub struct DeviceLoop<'a> {
    driver: Driver,
    front: Box<dyn FrontEnd>,
    front_watched: bool,
    /// The front end has enough for now, and is not asked for more.
    front_full: bool,
    control: ControlServer,
    dir: &'a DeviceDir,
    announcer: &'a mut Announcer,
    recovers: bool,
    signals: &'a Signals,
    signals_seen: usize,
    log: &'a mut Log,
    waker: Waker,
    finished: (Sender<Finished>, Receiver<Finished>),
    /// Pieces of work that run beside, `start` and `stop` only.
    works: usize,
    stage: Stage,
    /// The end comes at this time, whatever is missing.
    give_up: Option<Instant>,
    forced: bool,
    flush_pending: bool,
    /// Who waits for the end.
    detachers: Vec<ClientId>,
    /// Who waits for the device to have the size of the export.
    resizers: Vec<ClientId>,
    /// Resizes that run beside.
    resizes: usize,
    /// Why the device is no longer what it should be.
    broken: Option<String>,
    /// The driver has given up for good.
    driver_failed: bool,
    /// What went wrong on the way to the end.
    lost: Option<String>,
    /// Why there is no device after all.
    failure: Option<Failure>,
    facts: Facts,
    sampler: Sampler,
    last_state: &'static str,
    requests: Vec<Request>,
    done: Vec<Completion>,
    ready: Vec<u64>,
}

/// A loop that has ended: what is left to do is to tell those who wait, once everything is cleaned up.
pub struct Ended {
    driver: Driver,
    control: ControlServer,
    detachers: Vec<ClientId>,
    lost: Option<String>,
}

impl Ended {
    /// Tells those who asked for the end.
    ///
    /// # Errors
    /// Something was lost.
    pub fn tell(mut self) -> Outcome {
        let reply = Reply::Detached {
            lost: self.lost.clone(),
        };
        for client in self.detachers {
            self.control.reply(self.driver.poller(), client, &reply);
        }
        match self.lost {
            Some(lost) => Err(Failure::new(Code::Io, lost)),
            None => Ok(()),
        }
    }
}

impl<'a> DeviceLoop<'a> {
    /// Puts the descriptors together and starts the front end.
    ///
    /// # Errors
    /// A socket or thread can't be made.
    pub fn new(mut parts: Parts<'a>) -> Outcome<Self> {
        let what = "can't set up the event loop";
        let poller = parts.driver.poller();
        let waker = Waker::new().map_err(Failure::io(what))?;
        poller
            .add(parts.front.fd(), FRONT, Interest::READ)
            .and_then(|()| poller.add(waker.fd(), WAKER, Interest::READ))
            .and_then(|()| poller.add(parts.signals.as_fd(), SIGNALS, Interest::READ))
            .map_err(Failure::io(what))?;
        let control = ControlServer::listen(&parts.dir.control(), poller, CONTROL)
            .map_err(Failure::io("can't make the control socket"))?;
        let now = Instant::now();
        let start = parts.front.start();
        let mut device = Self {
            facts: Facts {
                name: parts.dir.name().to_owned(),
                url: parts.url,
                front_end: parts.front.name(),
                node: None,
                device_size: parts.driver.geometry().size,
                not_resized: None,
                since: now,
            },
            driver: parts.driver,
            front: parts.front,
            front_watched: true,
            front_full: false,
            control,
            dir: parts.dir,
            announcer: parts.announcer,
            recovers: parts.recovers,
            signals: parts.signals,
            signals_seen: 0,
            log: parts.log,
            waker,
            finished: mpsc::channel(),
            works: 0,
            stage: Stage::Starting,
            give_up: None,
            forced: false,
            flush_pending: false,
            detachers: Vec::new(),
            resizers: Vec::new(),
            resizes: 0,
            broken: None,
            driver_failed: false,
            lost: None,
            failure: None,
            sampler: Sampler::new(now),
            last_state: "",
            requests: Vec::with_capacity(BATCH),
            done: Vec::with_capacity(BATCH),
            ready: Vec::with_capacity(BATCH),
        };
        device.run_beside(start, Finished::Started)?;
        device.works += 1;
        Ok(device)
    }

    /// Serves until the device is gone.
    ///
    /// # Errors
    /// The device never was there.
    pub fn run(mut self) -> Outcome<Ended> {
        while self.stage != Stage::Ended {
            if let Err(failure) = self.turn() {
                if self.is_recoverable() {
                    self.leave(failure);
                }
                // Without the event loop there is nothing that could be done in good order.
                self.log.line(&failure.message);
                self.failure.get_or_insert(failure);
                self.stage = Stage::Ended;
            }
        }
        let Self {
            driver,
            front,
            control,
            detachers,
            failure,
            lost,
            ..
        } = self;
        // Takes away what of it is still there.
        drop(front);
        match failure {
            Some(failure) => Err(failure),
            None => Ok(Ended {
                driver,
                control,
                detachers,
                lost,
            }),
        }
    }

    /// One round: sleep until something happens, then see to it.
    fn turn(&mut self) -> Outcome {
        let now = Instant::now();
        let wake_at = self.housekeeping(now);
        let timeout = wake_at.map(|at| at.saturating_duration_since(now));
        let turn = self
            .driver
            .turn(timeout, &mut self.done, &mut self.ready)
            .map_err(Failure::io("the event loop failed"))?;

        for at in 0..self.ready.len() {
            match self.ready[at] {
                FRONT => self.take_requests(),
                WAKER => self.take_finished(),
                SIGNALS => self.take_signals(),
                token if self.control.owns(token) => self.take_control(token),
                _ => {}
            }
        }
        self.ready.clear();
        for completion in self.done.drain(..) {
            if completion.tag == FLUSH_TAG {
                self.flush_pending = false;
                if let Err(error) = completion.result {
                    let text = format!("the last flush failed: {error}");
                    self.log.line(&text);
                    self.lost.get_or_insert(text);
                }
            } else {
                self.front.complete(completion, &mut self.requests);
            }
        }
        if let Err(error) = self.front.flush() {
            self.log
                .line(&format!("answering the kernel failed: {error}"));
        }
        for request in self.requests.drain(..) {
            self.driver.submit(request);
        }
        self.note_turn(turn);
        self.pace_front();
        self.check_front();
        self.go_on();
        Ok(())
    }

    /// What is due by time. Returns when something will be next.
    fn housekeeping(&mut self, now: Instant) -> Option<Instant> {
        let mut wake_at = self.control.expire(self.driver.poller(), now);
        if self.sampler.is_due(now) {
            let status = self.driver.status();
            self.sampler.sample(now, report::totals(&status.counters));
            if status.state != self.last_state {
                self.last_state = status.state;
                let why = status
                    .message
                    .map_or_else(String::new, |m| format!(": {m}"));
                self.log.line(&format!("{}{why}", status.state));
            }
        }
        if self.last_state != "live" {
            // Nothing else may happen when it comes back.
            let due = now + INTERVAL;
            wake_at = Some(wake_at.map_or(due, |at| at.min(due)));
        }
        if let Some(due) = self.give_up {
            wake_at = Some(wake_at.map_or(due, |at| at.min(due)));
        }
        wake_at
    }

    fn take_requests(&mut self) {
        if let Err(error) = self.front.take(&mut self.requests, self.driver.pool()) {
            self.log
                .line(&format!("reading requests from the kernel failed: {error}"));
        }
    }

    fn note_turn(&mut self, turn: Turn) {
        if let Some(reason) = turn.failed {
            self.log.line(&format!("the device has failed: {reason}"));
            self.driver_failed = true;
        }
        let shown = matches!(self.stage, Stage::Starting | Stage::Up);
        if let Some(size) = turn.resized.filter(|_| shown) {
            self.log.line(&format!("the export has {size} bytes now"));
            self.resize(size);
        }
        if let Some(closed) = turn.closed.filter(|_| self.stage == Stage::Closing) {
            if let Err(text) = closed {
                self.log.line(&text);
                self.lost.get_or_insert(text);
            }
            self.stage = Stage::Ended;
        }
    }

    /// Leaves requests in the kernel while there are enough here.
    fn pace_front(&mut self) {
        let full = self.front.is_full();
        if full == self.front_full || !self.front_watched {
            return;
        }
        let interest = match full {
            true => Interest::NONE,
            false => Interest::READ,
        };
        match self
            .driver
            .poller()
            .modify(self.front.fd(), FRONT, interest)
        {
            Ok(()) => self.front_full = full,
            Err(error) => self
                .log
                .line(&format!("can't pause reading requests: {error}")),
        }
    }

    /// A front end that is gone is watched no more, since its descriptor would be ready for ever.
    fn check_front(&mut self) {
        if !self.front_watched || !self.front.stopped() {
            return;
        }
        self.front_watched = false;
        let _ = self.driver.poller().remove(self.front.fd());
        if self.stage == Stage::Up {
            let text = "its front end was removed from outside; detach it";
            self.log.line(text);
            self.broken = Some(text.to_owned());
            self.stage = Stage::Orphaned;
            self.submit_flush();
        }
    }

    /// Runs blocking work on a thread of its own.
    fn run_beside<T: 'static>(
        &mut self,
        work: Work<T>,
        wrap: impl FnOnce(Result<T, FrontError>) -> Finished + Send + 'static,
    ) -> Outcome {
        let sender = self.finished.0.clone();
        let waker = self.waker.clone();
        std::thread::Builder::new()
            .name("work".to_owned())
            .spawn(move || {
                // Nobody listens after the end.
                let _ = sender.send(wrap(work()));
                waker.wake();
            })
            .map(drop)
            .map_err(Failure::io("can't start a thread"))
    }
}
