//! What goes wrong, and how.

use dst_proto::{Algorithm, Credit};

use crate::content::SECTOR;
use crate::ctx::{Ctx, PowerAfterAbort};
use crate::queue::{Event, MICRO, MILLI, SECOND};
use crate::rng::Rng;
use crate::scenario::{FaultKind, PlannedFault, Scenario};
use crate::trace;
use crate::world::{World, DEAD_DISK};

/// How long a fault that can't happen now waits for its chance.
const LATER: u64 = 20 * MILLI;

/// The faults of a scenario.
#[derive(Debug)]
pub struct Faults {
    planned: Vec<PlannedFault>,
    /// So many have been scheduled.
    scheduled: usize,
    happened: usize,
    rng: Rng,
}

impl Default for Faults {
    fn default() -> Self {
        Faults {
            planned: Vec::new(),
            scheduled: 0,
            happened: 0,
            rng: Rng::new(0),
        }
    }
}

impl Faults {
    /// Those that the scenario has planned.
    pub fn new(scenario: &Scenario, rng: Rng) -> Faults {
        Faults {
            planned: scenario.faults.clone(),
            scheduled: 0,
            happened: 0,
            rng,
        }
    }

    /// Whether there is none to come.
    pub fn all_happened(&self) -> bool {
        self.happened == self.planned.len()
    }

    /// Schedules those whose turn has come.
    pub fn schedule(&mut self, ctx: &mut Ctx, submitted: u32) {
        while let Some(fault) = self.planned.get(self.scheduled) {
            if fault.after_requests > submitted {
                return;
            }
            let at = self.scheduled as u16;
            ctx.queue.after(fault.delay, Event::Fault { at });
            self.scheduled += 1;
        }
    }

    /// Lets one happen, or puts it off.
    pub fn inject(&mut self, world: &mut World, at: u16) {
        let Some(fault) = self.planned.get(usize::from(at)) else {
            return;
        };
        let mut kind = fault.kind;
        if kind == FaultKind::Corrupt && world.ctx.scenario.algorithm == Algorithm::None {
            // Without digests nothing is promised about that.
            kind = FaultKind::Cut;
        }
        if !self.happen(world, kind) {
            world.ctx.queue.after(LATER, Event::Fault { at });
            return;
        }
        trace!(world.ctx, "FAULT {}", kind.name());
        world.ctx.stats.fault(kind);
        self.happened += 1;
    }

    /// One more, later.
    fn add(&mut self, ctx: &mut Ctx, kind: FaultKind, delay: u64) {
        let at = self.planned.len() as u16;
        self.planned.push(PlannedFault {
            kind,
            // Not by the number of requests.
            after_requests: u32::MAX,
            delay,
        });
        ctx.queue.after(delay, Event::Fault { at });
    }

    fn happen(&mut self, world: &mut World, kind: FaultKind) -> bool {
        match kind {
            FaultKind::Cut | FaultKind::CutAll | FaultKind::HalfOpen | FaultKind::Stall => {
                self.streams(world, kind)
            }
            FaultKind::Corrupt => {
                let count = self.rng.between(1, 6) as u32;
                world.ctx.net.corruptions += count;
                world.ctx.book.excuses.corruptions += count;
                true
            }
            FaultKind::SlowConnect => {
                world.ctx.slow_connect_until =
                    world.ctx.now() + self.rng.spread(100 * MILLI, 5 * SECOND);
                self.streams(world, FaultKind::Cut)
            }
            FaultKind::ServerKill | FaultKind::ServerKillNoProof | FaultKind::PowerCut => {
                self.server(world, kind)
            }
            FaultKind::Drain => {
                let free = world.server.as_ref().is_some_and(|s| !s.frozen);
                world.with_server(|s, ctx, disk, stable| s.start_drain(ctx, disk, stable));
                free
            }
            FaultKind::FailSync => {
                world.disk.failing_syncs += self.rng.pick(&[1, 1, 1, 2, 3]);
                self.delay_some(world);
                true
            }
            FaultKind::DeadDisk => {
                world.disk.failing_syncs = DEAD_DISK;
                true
            }
            FaultKind::Flap => {
                world.ctx.flaps += self.rng.between(3, 6) as u32;
                true
            }
            FaultKind::AbortCut => {
                if self.rng.chance(70) {
                    self.slow_aborts(world)
                } else {
                    self.abort_cut(world);
                    true
                }
            }
            FaultKind::FailIo => {
                if self.rng.chance(70) {
                    world.disk.failing_writes += 1;
                } else {
                    world.disk.failing_reads += 1;
                }
                true
            }
            FaultKind::FreezeServer => self.freeze_server(world),
            FaultKind::FreezeClient => {
                let time = self.rng.spread(100 * MICRO, 3 * SECOND);
                self.freeze_client(world, time)
            }
            FaultKind::Takeover => self.take_over(world),
            FaultKind::ClientKill => self.kill_client(world),
            FaultKind::AgentCrash => self.crash_agent(world),
            FaultKind::Detach => self.detach(world),
            FaultKind::SecondWriter => {
                self.delay_some(world);
                self.start(world, 1)
            }
            FaultKind::Reader => self.start(world, 2) || self.start(world, 3),
            FaultKind::Grow => self.grow(world),
            FaultKind::Credit => self.credit(world),
        }
    }

    fn streams(&mut self, world: &mut World, kind: FaultKind) -> bool {
        let whole: Vec<u32> = world.ctx.net.whole_streams().collect();
        if whole.is_empty() {
            return false;
        }
        let chosen = if kind == FaultKind::CutAll {
            whole
        } else {
            vec![self.rng.pick(&whole)]
        };
        let rng = &mut self.rng;
        let (net, queue) = (&mut world.ctx.net, &mut world.ctx.queue);
        for stream in chosen {
            let late = if rng.chance(50) {
                0
            } else {
                rng.spread(100 * MICRO, 5 * SECOND)
            };
            let mut notice = || Some(rng.spread(MICRO, 50 * MILLI));
            let notice = [notice(), notice()];
            match kind {
                FaultKind::HalfOpen => {
                    let notice = [
                        notice[0].filter(|_| rng.one_in(3)),
                        notice[1].filter(|_| rng.one_in(3)),
                    ];
                    net.cut(queue, stream, notice, late);
                }
                FaultKind::Stall => {
                    let time = rng.spread(MILLI, 6 * SECOND);
                    let which = rng.below(3);
                    if which != 1 {
                        net.delay(queue, stream, crate::network::Side::Client, time);
                    }
                    if which != 0 {
                        net.delay(queue, stream, crate::network::Side::Server, time);
                    }
                }
                _ => net.cut(queue, stream, notice, late),
            }
        }
        true
    }

    /// Deadlines pass while what was sent is on its way, so that requests and their ABORTs arrive together.
    fn abort_cut(&mut self, world: &mut World) {
        let deadline = world.ctx.scenario.deadline.unwrap_or(100 * MILLI);
        let stall = deadline / 2 + self.rng.below(deadline);
        let whole: Vec<u32> = world.ctx.net.whole_streams().collect();
        for stream in whole {
            let from = crate::network::Side::Client;
            world
                .ctx
                .net
                .delay(&mut world.ctx.queue, stream, from, stall);
        }
        world.ctx.abort_cuts += self.rng.between(1, 3) as u32;
        let delay = stall + self.rng.spread(MILLI, SECOND);
        self.add(&mut world.ctx, FaultKind::PowerCut, delay);
    }

    /// Deadlines pass while the disk works, so that writes finish while ABORTs of others wait for their flush. The client hears
    /// of such a write, and its connections break before it hears of the ABORT; when it has, the power goes. A write that
    /// is durable only if the ABORT's flush began after it must not have been let go.
    fn slow_aborts(&mut self, world: &mut World) -> bool {
        if world.server.as_ref().is_none_or(|server| server.frozen) {
            return false;
        }
        let deadline = world.ctx.scenario.deadline;
        world.disk.slow_down(deadline.unwrap_or(100 * MILLI));
        world.ctx.ack_cuts = self.rng.between(1, 3) as u32;
        world.ctx.power_after_abort = PowerAfterAbort::Armed;
        true
    }

    /// The power goes at once, or before much else can happen.
    pub fn power_soon(&mut self, ctx: &mut Ctx) {
        let delay = self.rng.spread(MICRO, 20 * MILLI);
        self.add(ctx, FaultKind::PowerCut, delay);
    }

    /// What some clients have sent comes late: perhaps after the end of the session that it was for.
    fn delay_some(&mut self, world: &mut World) {
        let whole: Vec<u32> = world.ctx.net.whole_streams().collect();
        for stream in whole {
            if self.rng.one_in(3) {
                let time = self.rng.spread(MILLI, SECOND);
                let from = crate::network::Side::Client;
                world
                    .ctx
                    .net
                    .delay(&mut world.ctx.queue, stream, from, time);
            }
        }
    }

    fn server(&mut self, world: &mut World, kind: FaultKind) -> bool {
        if world.server.is_none() {
            return false;
        }
        let down = self.rng.spread(MILLI, 4 * SECOND);
        match kind {
            FaultKind::PowerCut => world.power_cut(down),
            FaultKind::ServerKillNoProof => {
                world.stop_server(down);
                world.stable.forget_proof();
                world.ctx.incarnation = None;
            }
            _ => world.stop_server(down),
        }
        true
    }

    fn freeze_server(&mut self, world: &mut World) -> bool {
        let Some(server) = world.server.as_mut().filter(|s| !s.frozen) else {
            return false;
        };
        server.frozen = true;
        let longest = 4 * world.ctx.scenario.keepalive + 2 * SECOND;
        let time = self.rng.spread(100 * MICRO, longest);
        world.ctx.queue.after(time, Event::Thaw { client: None });
        true
    }

    fn freeze_client(&mut self, world: &mut World, time: u64) -> bool {
        let Some(agent) = world.clients[0].as_mut().filter(|a| !a.frozen && a.opened) else {
            return false;
        };
        agent.frozen = true;
        world.ctx.queue.after(time, Event::Thaw { client: Some(0) });
        true
    }

    fn take_over(&mut self, world: &mut World) -> bool {
        let scenario = &world.ctx.scenario;
        let lease = scenario.lease_time.max(4 * scenario.keepalive);
        let time = lease + self.rng.spread(10 * MILLI, 20 * SECOND);
        if world.clients[1].is_some() || !self.freeze_client(world, time) {
            return false;
        }
        let wait = if self.rng.chance(50) {
            0
        } else {
            self.rng.below(lease)
        };
        world
            .ctx
            .queue
            .after(wait, Event::ClientStart { client: 1 });
        true
    }

    fn kill_client(&mut self, world: &mut World) -> bool {
        let free = world.clients[0]
            .as_ref()
            .is_some_and(|a| !a.frozen && a.opened);
        if !free {
            return false;
        }
        world.remove_client(0);
        let pause = self.rng.spread(MILLI, 3 * SECOND);
        world
            .ctx
            .queue
            .after(pause, Event::ClientStart { client: 0 });
        true
    }

    fn crash_agent(&mut self, world: &mut World) -> bool {
        let steps = self.rng.spread(1, 2000);
        let Some(agent) = world.clients[0].as_mut() else {
            return false;
        };
        if agent.frozen || !agent.opened || agent.failed.is_some() || agent.is_doomed() {
            return false;
        }
        agent.doom(steps);
        true
    }

    fn detach(&mut self, world: &mut World) -> bool {
        let Some(agent) = world.clients[0].as_mut() else {
            return false;
        };
        if agent.frozen || !agent.opened || agent.failed.is_some() || world.detaching {
            return false;
        }
        world.detaching = true;
        world.carried += agent.left;
        agent.left = 0;
        true
    }

    fn start(&mut self, world: &mut World, client: u8) -> bool {
        if world.clients[usize::from(client)].is_some() {
            return false;
        }
        world.ctx.queue.after(MICRO, Event::ClientStart { client });
        true
    }

    fn grow(&mut self, world: &mut World) -> bool {
        if world.server.as_ref().is_none_or(|server| server.frozen) {
            return false;
        }
        let block = u64::from(world.ctx.scenario.block);
        let size = world.disk.size() + block * self.rng.between(1, 16);
        world.disk.grow(size);
        world.ctx.model.grow(size as usize / SECTOR);
        world.with_server(|s, ctx, disk, stable| s.grown(ctx, disk, stable));
        true
    }

    fn credit(&mut self, world: &mut World) -> bool {
        let slots = u64::from(world.ctx.scenario.slots);
        let less = Credit {
            requests: self.rng.between(1, slots) as u16,
            bytes: self.rng.spread(1, 1 << 20) as u32,
        };
        let credit = self.rng.chance(70).then_some(less);
        world.with_server(|s, ctx, _, _| s.set_credit(ctx, credit));
        world.server.is_some()
    }
}
