//! A scenario from its beginning to its end: who is there, what happens next, and whether it still moves.
//!
//! The client at place 0 writes; when it dies or its device fails, another takes its place. Place 1 is for a second
//! writer, the others for readers. When everything has been asked for and every fault has happened, the writer flushes,
//! reads the whole disk, flushes and detaches; then the server loses power once more, and the medium must be what the last
//! flush promised.

mod clients;
mod events;

use crate::check::Book;
use crate::client::Agent;
use crate::content::{self, SECTOR};
use crate::ctx::{Ctx, PowerAfterAbort};
use crate::disk::Disk;
use crate::faults::Faults;
use crate::model::Model;
use crate::network::Network;
use crate::plant::Plant;
use crate::queue::{Event, Queue, MILLI, SECOND};
use crate::rng::Rng;
use crate::scenario::Scenario;
use crate::server::{Server, Stable};
use crate::stats::Stats;
use crate::trace;
use crate::trace::Trace;
use crate::wirebook::WireBook;
use crate::Violation;

/// A disk with so many syncs to fail fails all of them.
pub const DEAD_DISK: u32 = 1_000_000;
/// Places for clients: the writer, a second writer, readers.
pub const PLACES: usize = 4;
/// Nothing completes for so long: it hangs. Longer than all times of a scenario and its faults together.
const STILL: u64 = 300 * SECOND;
/// How often it is looked.
const WATCH: u64 = 20 * SECOND;
/// More events than any scenario needs: something turns in a circle.
const MAX_EVENTS: u64 = 1_000_000;

/// How a scenario ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What the contract does not permit, if anything.
    pub violation: Option<Violation>,
    /// Numbers.
    pub stats: Stats,
    /// Of everything that happened.
    pub hash: u64,
    /// The lines, where kept.
    pub trace: String,
}

/// See the [module](self).
#[derive(Debug)]
pub struct World {
    /// What every part shares.
    pub ctx: Ctx,
    /// The server's disk.
    pub disk: Disk,
    /// The server's other stable storage.
    pub stable: Stable,
    /// The server process, while there is one.
    pub server: Option<Server>,
    /// Client processes by place.
    pub clients: [Option<Agent>; PLACES],
    /// Streams that the system has accepted for a frozen server.
    backlog: Vec<u32>,
    faults: Faults,
    lives: u8,
    /// Requests that the writer's next life is to ask for.
    pub carried: u32,
    /// The writer is to detach when it is satisfied.
    pub detaching: bool,
    closing: [bool; PLACES],
    /// The last sweep is on.
    last_sweep: bool,
    sweeps: u32,
    done: bool,
    progress: (u64, u64),
}

/// Runs the scenario of a seed. A panic of anything in it is a violation, too.
pub fn run(seed: u64, plant: Option<Plant>, trace: Trace) -> Outcome {
    let scenario = || {
        let mut world = World::new(seed, plant, trace);
        world.run();
        world.end()
    };
    // Nothing of the scenario is looked at after a panic.
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(scenario)).unwrap_or_else(|panic| {
        let text = match (panic.downcast_ref::<String>(), panic.downcast_ref::<&str>()) {
            (Some(text), _) => text.clone(),
            (None, Some(text)) => (*text).to_owned(),
            (None, None) => "of an unknown kind".to_owned(),
        };
        Outcome {
            violation: Some(Violation::new(format!("panic: {text}"))),
            stats: Stats::default(),
            hash: 0,
            trace: String::new(),
        }
    })
}

impl World {
    fn new(seed: u64, plant: Option<Plant>, trace: Trace) -> World {
        let scenario = Scenario::new(seed);
        let rng = Rng::new(seed);
        let sectors = scenario.size as usize / SECTOR;
        let faults = Faults::new(&scenario, rng.fork(5));
        let disk = Disk::new(scenario.size, scenario.disk, rng.fork(4));
        let carried = scenario.requests;
        World {
            disk,
            ctx: Ctx {
                net: Network::new(rng.fork(3), scenario.weather),
                scenario,
                plant,
                queue: Queue::new(),
                model: Model::new(sectors),
                book: Book::default(),
                wire: WireBook::default(),
                trace,
                stats: Stats::default(),
                rng: rng.fork(2),
                incarnation: None,
                slow_connect_until: 0,
                flaps: 0,
                abort_cuts: 0,
                ack_cuts: 0,
                power_after_abort: PowerAfterAbort::No,
                quiet_replay: false,
                submitted: 0,
                violation: None,
                scratch: Vec::new(),
            },
            stable: Stable::new(),
            server: None,
            clients: [const { None }; PLACES],
            backlog: Vec::new(),
            faults,
            lives: 0,
            carried,
            detaching: false,
            closing: [false; PLACES],
            last_sweep: false,
            sweeps: 0,
            done: false,
            progress: (0, 0),
        }
    }

    fn run(&mut self) {
        trace!(self.ctx, "{:?}", self.ctx.scenario);
        self.ctx.queue.at(0, Event::ServerStart);
        self.ctx.queue.at(MILLI, Event::ClientStart { client: 0 });
        self.ctx.queue.at(WATCH, Event::Watch);
        while !self.done && self.ctx.violation.is_none() {
            let Some(event) = self.ctx.queue.pop() else {
                return self.ctx.fail("nothing will ever happen again".into());
            };
            self.ctx.stats.events += 1;
            if self.ctx.stats.events > MAX_EVENTS {
                return self.hang("turns in a circle");
            }
            self.mix(event);
            self.dispatch(event);
            self.look_around();
        }
    }

    fn mix(&mut self, event: Event) {
        use std::hash::{Hash, Hasher};
        struct Mixer<'t>(&'t mut Trace);
        impl Hasher for Mixer<'_> {
            fn finish(&self) -> u64 {
                0
            }
            fn write(&mut self, bytes: &[u8]) {
                bytes.iter().for_each(|byte| self.0.mix(u64::from(*byte)));
            }
            fn write_u64(&mut self, value: u64) {
                self.0.mix(value);
            }
            fn write_u32(&mut self, value: u32) {
                self.0.mix(u64::from(value));
            }
            fn write_isize(&mut self, value: isize) {
                self.0.mix(value as u64);
            }
        }
        let now = self.ctx.queue.now();
        self.ctx.trace.mix(now);
        event.hash(&mut Mixer(&mut self.ctx.trace));
    }

    fn start_server(&mut self) {
        if self.server.is_none() {
            let mut server = Server::start(&mut self.ctx, &mut self.disk, &mut self.stable);
            server.step(&mut self.ctx, &mut self.disk, &mut self.stable);
            self.server = Some(server);
        }
    }

    /// The server process ends. The machine goes on.
    pub fn stop_server(&mut self, restart_after: u64) {
        if let Some(server) = self.server.take() {
            trace!(self.ctx, "server is gone");
            server.stop(&mut self.ctx, &mut self.stable);
            self.backlog.clear();
            self.disk.kill();
        }
        self.ctx.queue.after(restart_after, Event::ServerStart);
    }

    /// The server's machine loses power.
    pub fn power_cut(&mut self, restart_after: u64) {
        trace!(self.ctx, "power cut");
        let streams: Vec<u32> = self.ctx.net.whole_streams().collect();
        for stream in streams {
            let notice = self.ctx.rng.spread(MILLI, 4 * SECOND);
            self.ctx
                .net
                .cut(&mut self.ctx.queue, stream, [Some(notice), None], 0);
        }
        self.stop_server(restart_after);
        self.disk.power_cut();
        if !self.ctx.planted(Plant::IncarnationKept) {
            self.stable.power_cut();
        }
        self.ctx.incarnation = None;
        self.ctx.book.excuses.losses += 1;
        self.ctx.stats.power_cuts += 1;
        self.check_medium();
        self.ctx.model.lose();
    }

    fn check_medium(&mut self) {
        let sectors = self.disk.medium().chunks_exact(SECTOR);
        let values = (0..)
            .zip(sectors)
            .map(|(at, bytes)| content::parse(bytes, at));
        let good = self.ctx.model.check_medium(values);
        self.ctx.check(good);
    }

    /// What follows from where everybody stands.
    fn look_around(&mut self) {
        if let Some(drained) = self.server.as_ref().and_then(|server| server.drained) {
            trace!(self.ctx, "server has drained, flushed {drained}");
            let pause = self.ctx.rng.spread(MILLI, SECOND);
            self.stop_server(pause);
        }
        for client in 0..PLACES as u8 {
            self.look_after(client);
        }
        self.mend_disk();
        if self.ctx.power_after_abort == PowerAfterAbort::Due {
            self.ctx.power_after_abort = PowerAfterAbort::No;
            self.faults.power_soon(&mut self.ctx);
        }
        let submitted = self.ctx.submitted;
        self.faults.schedule(&mut self.ctx, submitted);
    }

    /// A disk whose syncs always fail is mended when the writer's device has failed, or where there is none to fail.
    fn mend_disk(&mut self) {
        if self.disk.failing_syncs < DEAD_DISK / 2 {
            return;
        }
        let hopes = |agent: &Agent| agent.opened && agent.failed.is_none();
        if !self.clients[0].as_ref().is_some_and(hopes) {
            self.disk.failing_syncs = 0;
        }
    }

    fn inject(&mut self, at: u16) {
        let mut faults = std::mem::take(&mut self.faults);
        faults.inject(self, at);
        self.faults = faults;
    }

    fn watch(&mut self) {
        let stats = &self.ctx.stats;
        let count = stats.succeeded + stats.expired + stats.failed;
        if count > self.progress.0 {
            self.progress = (count, self.ctx.queue.now());
        } else if self.ctx.queue.now() - self.progress.1 > STILL {
            return self.hang("stands still");
        }
        self.ctx.queue.after(WATCH, Event::Watch);
    }

    fn hang(&mut self, how: &str) {
        let mut text = format!(
            "the scenario {how}; all faults happened: {}",
            self.faults.all_happened()
        );
        for agent in self.clients.iter().flatten() {
            text.push_str("\n  ");
            text.push_str(&agent.describe());
        }
        if let Some(server) = &self.server {
            text.push_str("\n  ");
            text.push_str(&server.describe());
        }
        self.ctx.fail(text);
    }

    fn end(mut self) -> Outcome {
        if self.ctx.violation.is_none() {
            self.disk.power_cut();
            self.check_medium();
        }
        for client in 0..PLACES as u8 {
            self.remove_client(client);
        }
        let mut stats = self.ctx.stats;
        stats.scenarios = 1;
        stats.simulated_seconds = self.ctx.queue.now() as f64 / SECOND as f64;
        Outcome {
            violation: self.ctx.violation,
            stats,
            hash: self.ctx.trace.hash(),
            trace: self.ctx.trace.text().to_owned(),
        }
    }
}
