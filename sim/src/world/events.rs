//! What an event does, and to whom.

use super::World;
use crate::client::Agent;
use crate::ctx::Ctx;
use crate::disk::Disk;
use crate::network::Side;
use crate::queue::Event;
use crate::server::{Server, Stable};

impl World {
    pub(super) fn dispatch(&mut self, event: Event) {
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

    pub(super) fn with_owner(&mut self, stream: u32, f: impl FnOnce(&mut Agent, &mut Ctx)) {
        let client = self.ctx.net.stream(stream).client;
        self.with_client(client, f);
    }

    pub(super) fn accept(&mut self, stream: u32) {
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
}
