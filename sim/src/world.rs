//! A scenario from its beginning to its end: who is there, what happens next, and whether it still moves.
//!
//! The client at place 0 writes; when it dies or its device fails, another takes its place. Place 1 is for a second
//! writer, the others for readers. When everything has been asked for and every fault has happened, the writer flushes,
//! reads the whole disk, flushes and detaches; then the server loses power once more, and the medium must be what the last
//! flush promised.

use dst_engine::client::Request;
use dst_proto::{Holder, Kind, OpFlags, Status};

use crate::check::Book;
use crate::client::{Agent, Birth};
use crate::content::{self, SECTOR};
use crate::ctx::Ctx;
use crate::disk::Disk;
use crate::faults::Faults;
use crate::model::Model;
use crate::network::{Network, Side};
use crate::plant::Plant;
use crate::queue::{Event, Queue, MILLI, SECOND};
use crate::rng::Rng;
use crate::scenario::Scenario;
use crate::server::{Server, Stable};
use crate::stats::Stats;
use crate::trace;
use crate::trace::Trace;
use crate::wirebook::WireBook;
use crate::workload::{self, Wish};
use crate::Violation;

/// A disk with so many syncs to fail fails all of them.
pub const DEAD_DISK: u32 = 1_000_000;
/// Places for clients: the writer, a second writer, readers.
pub const PLACES: usize = 4;
/// Nothing completes for so long: it hangs. Longer than all times of a scenario and its faults together.
const STILL: u64 = 300 * SECOND;
/// How often it is looked.
const WATCH: u64 = 20 * SECOND;
/// How often the last sweep is tried where deadlines pass.
const MAX_SWEEPS: u32 = 30;
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

    fn dispatch(&mut self, event: Event) {
        match event {
            Event::Arrive { stream, from } => {
                let now = self.ctx.now();
                if self.ctx.net.arrive(now, stream, from)
                    && self.ctx.net.is_open(stream, from.peer())
                {
                    match from {
                        Side::Client => self.with_server(|s, ctx, disk, stable| {
                            s.arrived(ctx, disk, stable, stream)
                        }),
                        Side::Server => {
                            self.with_owner(stream, |agent, ctx| agent.arrived(ctx, stream))
                        }
                    }
                }
            }
            Event::Writable {
                stream,
                side: Side::Client,
            } => {
                self.with_owner(stream, |agent, ctx| agent.writable(ctx, stream));
            }
            Event::Writable { .. } => {
                self.with_server(|s, ctx, disk, stable| s.writable(ctx, disk, stable))
            }
            Event::Ended { stream, side } => {
                if !self.ctx.net.ended(stream, side) {
                    return;
                }
                match side {
                    Side::Server => {
                        self.with_server(|s, ctx, disk, stable| s.ended(ctx, disk, stable, stream))
                    }
                    Side::Client => self.with_owner(stream, |agent, ctx| agent.ended(ctx, stream)),
                }
            }
            Event::Accept { stream } => self.accept(stream),
            Event::Connected { stream } => {
                self.with_owner(stream, |agent, ctx| agent.connected(ctx, stream));
            }
            Event::ClientTimer { client } => self.with_client(client, Agent::timer),
            Event::ServerTimer => {
                self.with_server(|s, ctx, disk, stable| s.timer(ctx, disk, stable))
            }
            Event::Reconnect { client, .. } => self.with_client(client, Agent::step),
            Event::Disk { op } => {
                if let Some(done) = self.disk.finish(op) {
                    self.with_server(|s, ctx, disk, stable| s.disk_done(ctx, disk, stable, done));
                }
            }
            Event::Submit { client } => self.with_client(client, Agent::submit_some),
            Event::Fault { at } => self.inject(at),
            Event::ServerStart => self.start_server(),
            Event::Thaw {
                client: Some(client),
            } => self.with_client(client, Agent::thaw),
            Event::Thaw { client: None } => {
                self.with_server(|s, ctx, disk, stable| s.thaw(ctx, disk, stable));
                for stream in std::mem::take(&mut self.backlog) {
                    self.accept(stream);
                }
            }
            Event::ClientStart { client } => self.start_client(client),
            Event::GiveUp { client, life } => {
                let waits = |agent: &Agent| agent.birth.life == life && !agent.opened;
                if self.clients[usize::from(client)]
                    .as_ref()
                    .is_some_and(waits)
                {
                    self.remove_client(client);
                }
            }
            Event::Watch => self.watch(),
        }
    }

    /// Does something with the server process, if there is one.
    pub fn with_server(&mut self, f: impl FnOnce(&mut Server, &mut Ctx, &mut Disk, &mut Stable)) {
        if let Some(server) = &mut self.server {
            f(server, &mut self.ctx, &mut self.disk, &mut self.stable);
        }
    }

    /// Does something with the client at a place, if there is one.
    pub fn with_client(&mut self, client: u8, f: impl FnOnce(&mut Agent, &mut Ctx)) {
        if let Some(agent) = &mut self.clients[usize::from(client)] {
            f(agent, &mut self.ctx);
        }
    }

    fn with_owner(&mut self, stream: u32, f: impl FnOnce(&mut Agent, &mut Ctx)) {
        let client = self.ctx.net.stream(stream).client;
        self.with_client(client, f);
    }

    fn accept(&mut self, stream: u32) {
        let queue = &mut self.ctx.queue;
        let back = self.ctx.net.weather.latency.0;
        let Some(server) = &mut self.server else {
            queue.after(
                back,
                Event::Ended {
                    stream,
                    side: Side::Client,
                },
            );
            return;
        };
        queue.after(back, Event::Connected { stream });
        if server.frozen {
            self.backlog.push(stream);
            return;
        }
        server.accept(&mut self.ctx, stream);
        server.step(&mut self.ctx, &mut self.disk, &mut self.stable);
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

    /// A client process starts at a place, unless one is there.
    fn start_client(&mut self, client: u8) {
        let place = usize::from(client);
        if self.clients[place].is_some() {
            return;
        }
        let requests = match client {
            0 => std::mem::take(&mut self.carried),
            1 => self.ctx.rng.between(5, 40) as u32,
            _ => self.ctx.rng.between(10, 60) as u32,
        };
        // The second writer may be a second process of the same machine.
        let identity = if client == 1 && self.ctx.rng.chance(40) {
            0
        } else {
            client
        };
        let birth = Birth {
            number: client,
            life: self.lives,
            writable: client < 2,
            holder: Holder {
                identity: [identity + 1; 16],
                boot: [identity + 1; 16],
                instance: self.ctx.rng.bytes16(),
            },
            requests,
        };
        self.lives += 1;
        self.closing[place] = false;
        let mut agent = Agent::new(&mut self.ctx, birth);
        agent.step(&mut self.ctx);
        if client != 0 {
            let patience = self.ctx.rng.spread(SECOND, 30 * SECOND);
            let life = birth.life;
            self.ctx
                .queue
                .after(patience, Event::GiveUp { client, life });
        }
        self.clients[place] = Some(agent);
    }

    /// The client process at a place is killed.
    pub fn remove_client(&mut self, client: u8) {
        let place = usize::from(client);
        if let Some(mut agent) = self.clients[place].take() {
            if client == 0 {
                self.carried += agent.left;
                self.detaching = false;
            }
            agent.kill(&mut self.ctx);
        }
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

    fn look_after(&mut self, client: u8) {
        let place = usize::from(client);
        let Some(agent) = &mut self.clients[place] else {
            return;
        };
        if agent.frozen {
            return;
        }
        if let Some(status) = agent.closed {
            if self.done_with(client, status) {
                return;
            }
            self.remove_client(client);
            return self.restart(client);
        }
        if agent.failed.is_some() {
            if agent.outstanding() == 0 {
                self.remove_client(client);
                self.restart(client);
            }
            return;
        }
        if !agent.opened || !agent.is_satisfied() || agent.is_closing() {
            return;
        }
        if client == 0 && !self.detaching && !self.last_sweep {
            if !self.faults.all_happened() {
                // Something is still to come: go on asking, now and then.
                return agent.ask_more(&mut self.ctx, 5);
            }
            self.last_sweep = true;
            return self.sweep();
        }
        if client == 0 && self.last_sweep && agent.disappointed > 0 && self.sweeps < MAX_SWEEPS {
            // Deadlines have passed: that is no look at the disk.
            return self.sweep();
        }
        if !self.closing[place] {
            // A driver flushes before it closes.
            self.closing[place] = true;
            return agent.follow(&mut self.ctx, vec![FLUSH]);
        }
        agent.close(&mut self.ctx);
    }

    fn sweep(&mut self) {
        let Some(agent) = &mut self.clients[0] else {
            return;
        };
        self.sweeps += 1;
        trace!(self.ctx, "the last sweep");
        let script = last_script(&self.ctx.scenario, agent.size().unwrap_or(0));
        agent.follow(&mut self.ctx, script);
    }

    /// The client's session has ended in order. Whether that was the end of the scenario.
    fn done_with(&mut self, client: u8, status: Status) -> bool {
        // A session lost before CLOSE was answered: nobody knows any more what became of writes that no FLUSH had covered.
        let unknown = status == Status::SESSION_LOST;
        let errors = self.ctx.book.excuses.sync_errors + self.ctx.book.excuses.io_errors;
        if !status.is_ok() && !unknown && errors == 0 {
            self.ctx.fail(format!("CLOSE was answered {status:?}"));
        }
        if client != 0 || !self.last_sweep || self.detaching {
            return false;
        }
        self.done = true;
        true
    }

    /// The writer's place is taken again.
    fn restart(&mut self, client: u8) {
        if client == 0 {
            self.last_sweep = false;
            let pause = self.ctx.rng.spread(MILLI, 2 * SECOND);
            self.ctx.queue.after(pause, Event::ClientStart { client });
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

/// A FLUSH behind everything before it.
const FLUSH: Wish = Wish {
    request: Request {
        kind: Kind::FLUSH,
        flags: OpFlags::BARRIER,
        offset: 0,
        length: 0,
    },
    beyond: false,
};

/// FLUSH and every sector.
fn last_script(scenario: &Scenario, size: u64) -> Vec<Wish> {
    let read = |(offset, length)| Wish {
        request: Request {
            kind: Kind::READ,
            flags: OpFlags::NONE,
            offset,
            length,
        },
        beyond: false,
    };
    let reads = workload::sweep(scenario, size).map(read);
    [FLUSH].into_iter().chain(reads).collect()
}
