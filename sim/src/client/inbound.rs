//! What a client receives.

use dst_engine::client::{Greeting, Names, Take};
use dst_engine::rx::{Fault, Head};
use dst_proto::{digest, ClientName, ExportName, ExtentKind, Header, Kind, Outcome};

use super::{Agent, Taking};
use crate::ctx::{Ctx, PowerAfterAbort};
use crate::network::{Side, StreamId};
use crate::plant::Plant;
use crate::queue::MILLI;
use crate::server::EXPORT_NAME;
use crate::trace;

impl Agent {
    /// Bytes have arrived on a stream.
    pub fn arrived(&mut self, ctx: &mut Ctx, stream: StreamId) {
        if self.frozen {
            return;
        }
        if let Some(index) = self.index_of(stream) {
            self.set_up(ctx, index);
            self.receive(ctx, index, stream);
            self.step(ctx);
        }
    }

    /// Takes everything that has arrived on the stream of a connection.
    pub(super) fn receive(&mut self, ctx: &mut Ctx, index: u16, stream: StreamId) {
        loop {
            let link = &mut self.links[usize::from(index)];
            if link.stream != Some(stream) || link.number.is_none() || ctx.violation.is_some() {
                return;
            }
            let bytes = ctx.net.readable(stream, Side::Server);
            if bytes.is_empty() {
                return;
            }
            let now = ctx.queue.now();
            self.session.handle_alive(index, now);
            let result = match link.taking {
                Some(taking) => {
                    let used = self.take_payload(ctx, index, taking);
                    ctx.net.take(&mut ctx.queue, stream, Side::Server, used);
                    Ok(())
                }
                None => match link.rx.feed(bytes) {
                    Ok((used, head)) => {
                        ctx.net.take(&mut ctx.queue, stream, Side::Server, used);
                        match head {
                            Some(Head::Hello(_)) => self.hello(ctx, index),
                            Some(Head::Frame(header)) => self.frame(ctx, index, &header),
                            None => Ok(()),
                        }
                    }
                    Err(fault) => Err(fault),
                },
            };
            if let Err(fault) = result {
                trace!(
                    ctx,
                    "client {} drops connection {index}: {fault}",
                    self.birth.number
                );
                self.drop_link(ctx, index);
                return;
            }
            // What the engine wants closed is closed before more is read.
            self.events(ctx);
        }
    }

    fn hello(&mut self, ctx: &mut Ctx, index: u16) -> Result<(), Fault> {
        let nonce = ctx.rng.bytes16();
        let link = &mut self.links[usize::from(index)];
        let names = Names {
            export: ExportName::new(EXPORT_NAME).ok_or(Fault::protocol("name"))?,
            client: ClientName::new("sim").unwrap_or_default(),
            implementation: "sim",
        };
        let greeting = Greeting {
            hello: link.rx.hello_bytes(),
            nonce,
            binding: dst_proto::proof::NO_BINDING,
        };
        let number = link.number.unwrap_or(0);
        let mut out = [0; 2048];
        let len = self.session.handle_hello(
            &self.retained,
            index,
            number,
            &greeting,
            &names,
            &mut out,
        )?;
        // The generation must never be used again.
        if !self.record(ctx) {
            return Ok(());
        }
        let link = &mut self.links[usize::from(index)];
        link.out.push(&out[..len]);
        link.greeted = true;
        Ok(())
    }

    fn frame(&mut self, ctx: &mut Ctx, index: u16, header: &Header) -> Result<(), Fault> {
        let opens = matches!(header.kind, Kind::OPEN | Kind::JOIN);
        if opens && header.kind == Kind::OPEN && ctx.planted(Plant::NoReplay) {
            self.forget_retained();
        }
        self.note_outcome(ctx, index, header);
        if header.kind == Kind::CLOSE
            && header.reply
            && header.status().is_ok()
            && self.birth.writable
        {
            // The server has flushed, and this client has handed in nothing since.
            ctx.model.ack_flush(self.close_asked);
        }
        let link = &mut self.links[usize::from(index)];
        let number = link.number.unwrap_or(0);
        let take = self.session.handle_frame(
            &mut self.slots,
            &mut self.retained,
            index,
            number,
            header,
            link.rx.options(),
        )?;
        if opens {
            let (algorithm, granule) = self.session.digest();
            let max_payload = self.session.limits().max_payload;
            link.rx.accept_payload(max_payload, algorithm, granule);
            link.rx.forget_hello();
            if header.status().is_ok() {
                link.backoff = MILLI;
            }
        }
        match take {
            Take::Nothing => {}
            Take::Discard => link.taking = Some(Taking::Nowhere),
            Take::Payload { slot, at } => {
                link.taking = Some(Taking::Into {
                    slot,
                    at,
                    len: header.payload_len,
                    got: 0,
                });
            }
            Take::Extents { slot } => self.take_extents(ctx, index, slot),
        }
        Ok(())
    }

    /// An ABORT has been answered: what the server says must be what the model permits from now on.
    fn note_outcome(&mut self, ctx: &mut Ctx, index: u16, header: &Header) {
        if header.kind != Kind::ABORT || !header.reply {
            return;
        }
        let options = self.links[usize::from(index)].rx.options();
        let Ok(aborted) = dst_proto::Aborted::decode(options) else {
            return;
        };
        let place = (header.slot, header.id);
        let Some(at) = self
            .aborted
            .iter()
            .position(|(slot, id, _)| (*slot, *id) == place)
        else {
            return;
        };
        let (_, _, request) = self.aborted.swap_remove(at);
        ctx.stats.aborts += 1;
        let (kind, _, range) = self.range_of(ctx, request);
        trace!(
            ctx,
            "client {}: #{request} is settled: {}",
            self.birth.number,
            aborted.outcome.name()
        );
        if kind.is_write() && aborted.outcome == Outcome::NeverExecuted {
            ctx.model.never_executed(request, range);
        } else if kind.is_write() && ctx.power_after_abort == PowerAfterAbort::Armed {
            ctx.power_after_abort = PowerAfterAbort::Due;
        }
    }

    /// Moves what is readable of a payload to its place. Tells how many bytes.
    fn take_payload(&mut self, ctx: &mut Ctx, index: u16, taking: Taking) -> usize {
        let link = &mut self.links[usize::from(index)];
        let Some(stream) = link.stream else {
            return 0;
        };
        let bytes = ctx.net.readable(stream, Side::Server);
        let used = bytes.len().min(link.rx.payload_left() as usize);
        let last = link.rx.payload_received(used as u32);
        let Taking::Into { slot, at, len, got } = taking else {
            if last {
                link.taking = None;
            }
            return used;
        };
        let memory = &mut self.memory[usize::from(slot)];
        let start = (at + got) as usize;
        memory.bytes[start..start + used].copy_from_slice(&bytes[..used]);
        if !last {
            link.taking = Some(Taking::Into {
                slot,
                at,
                len,
                got: got + used as u32,
            });
            return used;
        }
        link.taking = None;
        let (algorithm, granule) = self.session.digest();
        let base = memory.request.map_or(0, |id| {
            let range = ctx.book.get(id).range;
            (range.first * crate::content::SECTOR) as u64
        });
        let payload = &memory.bytes[at as usize..(at + len) as usize];
        let digests = link.rx.digests();
        let good = digest::verify(algorithm, granule, base + u64::from(at), payload, digests);
        if !good {
            trace!(
                ctx,
                "client {}: bad digest in slot {slot}",
                self.birth.number
            );
        }
        let number = link.number.unwrap_or(0);
        self.session
            .payload_done(&mut self.slots, &mut self.retained, index, number, good);
        used
    }

    fn take_extents(&mut self, ctx: &mut Ctx, index: u16, slot: u16) {
        let options = self.links[usize::from(index)].rx.options();
        match dst_proto::BlockStatus::decode(options) {
            Ok(status) => {
                let extents = status
                    .extents
                    .map(|e| (e.length, e.kind != ExtentKind::Data));
                self.memory[usize::from(slot)].extents = extents.collect();
            }
            Err(error) => ctx.fail(format!("extents that can't be read: {error}")),
        }
    }

    /// For [`Plant::NoReplay`].
    fn forget_retained(&mut self) {
        for kept in &mut self.kept {
            kept.live = false;
        }
        let entries = self.kept.len();
        let capacity = dst_engine::client::Entry::default();
        self.retained = dst_engine::client::Retained::new(vec![capacity; entries], 1 << 20);
    }
}
