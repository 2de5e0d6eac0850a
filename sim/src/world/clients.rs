//! The clients: who starts when, who has got what it wanted, and the last sweep of the writer.

use super::World;
use crate::client::{Agent, Birth};
use crate::queue::{Event, MILLI, SECOND};
use crate::scenario::Scenario;
use crate::trace;
use crate::workload::{self, Wish};
use dst_engine::client::Request;
use dst_proto::{Holder, Kind, OpFlags, Status};

/// How often the last sweep is tried where deadlines pass.
const MAX_SWEEPS: u32 = 30;

impl World {
    /// A client process starts at a place, unless one is there.
    pub(super) fn start_client(&mut self, client: u8) {
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

    pub(super) fn look_after(&mut self, client: u8) {
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

    pub(super) fn sweep(&mut self) {
        let Some(agent) = &mut self.clients[0] else {
            return;
        };
        self.sweeps += 1;
        trace!(self.ctx, "the last sweep");
        let script = last_script(&self.ctx.scenario, agent.size().unwrap_or(0));
        agent.follow(&mut self.ctx, script);
    }

    /// The client's session has ended in order. Whether that was the end of the scenario.
    pub(super) fn done_with(&mut self, client: u8, status: Status) -> bool {
        let errors = self.ctx.book.excuses.sync_errors + self.ctx.book.excuses.io_errors;
        if !status.is_ok() && errors == 0 {
            self.ctx.fail(format!("CLOSE was answered {status:?}"));
        }
        if client != 0 || !self.last_sweep || self.detaching {
            return false;
        }
        self.done = true;
        true
    }

    /// The writer's place is taken again.
    pub(super) fn restart(&mut self, client: u8) {
        if client == 0 {
            self.last_sweep = false;
            let pause = self.ctx.rng.spread(MILLI, 2 * SECOND);
            self.ctx.queue.after(pause, Event::ClientStart { client });
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
