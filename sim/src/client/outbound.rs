//! What a client sends.

use dst_engine::client::{seal, Payload, Source, Transmit};
use dst_proto::{digest, Header, Kind, OpFlags, HEADER_LEN};

use super::link::{Kept, Memory};
use super::recovery::Recovery;
use super::{Agent, Place, Sent};
use crate::ctx::Ctx;
use crate::network::{Side, StreamId};
use crate::outbox::Next;
use crate::plant::Plant;
use crate::queue::{MICRO, MILLI, SECOND};
use crate::trace;
use crate::wirebook::Owner;

/// Bytes that a head may take: header and digest area.
const HEAD_ROOM: usize = 4096;

impl Agent {
    /// There is room on a stream again.
    pub fn writable(&mut self, ctx: &mut Ctx, stream: StreamId) {
        if !self.frozen && self.index_of(stream).is_some() {
            self.step(ctx);
        }
    }

    /// Takes from the engine and gives to the stream as much as both want. Tells whether the engine gave anything.
    pub(super) fn send(&mut self, ctx: &mut Ctx, index: u16) -> bool {
        let mut busy = false;
        loop {
            let Some(stream) = self.links[usize::from(index)].stream else {
                return busy;
            };
            let more = self.fill(ctx, index);
            busy |= more;
            let gone = self.push(ctx, index, stream);
            if !more || !gone || ctx.violation.is_some() {
                return busy;
            }
        }
    }

    /// Queues what the engine has for a connection, up to the driver's limit.
    fn fill(&mut self, ctx: &mut Ctx, index: u16) -> bool {
        let mut busy = false;
        let mut out = std::mem::take(&mut ctx.scratch);
        out.resize(HEAD_ROOM, 0);
        while self.links[usize::from(index)].out.queued() < ctx.scenario.queue_limit {
            let transmit =
                self.session
                    .poll_transmit(&mut self.slots, &mut self.retained, index, &mut out);
            // An id must be known before it goes out.
            if transmit.is_none() || !self.record(ctx) {
                break;
            }
            match transmit {
                None => {}
                Some(Transmit::Bytes(len)) => self.queue_frame(ctx, index, &mut out[..len]),
                Some(Transmit::Write { header, payload }) => {
                    self.queue_write(ctx, index, header, payload, &mut out);
                }
            }
            busy = true;
        }
        ctx.scratch = out;
        busy
    }

    fn queue_frame(&mut self, ctx: &mut Ctx, index: u16, frame: &mut [u8]) {
        let head = frame.first_chunk::<HEADER_LEN>().map(Header::decode);
        let Some(Ok(mut header)) = head else {
            return ctx.fail("the client engine sends a frame that can't be decoded".into());
        };
        if header.kind.has_slot() {
            self.links[usize::from(index)].sent_kind = Sent::Request;
            self.note_request(ctx, index, &header);
            if ctx.planted(Plant::BarrierIgnored) {
                strip_barrier(&mut header);
                seal(&header, frame);
            }
        } else if header.kind == Kind::ABORT {
            self.links[usize::from(index)].sent_kind = Sent::Abort;
            self.note_abort(ctx, &header);
        }
        trace!(
            ctx,
            "client {} -> {index}: {} slot {} id {} offset {} length {}",
            self.birth.number,
            header.kind.name(),
            header.slot as i16,
            header.id,
            header.offset,
            header.length
        );
        self.links[usize::from(index)].out.push(frame);
    }

    fn queue_write(
        &mut self,
        ctx: &mut Ctx,
        index: u16,
        mut header: Header,
        payload: Payload,
        out: &mut [u8],
    ) {
        let (place, from) = match payload.source {
            Source::Slot => (Place::Slot(payload.slot), 0),
            Source::Retained { seq, from } => {
                let kept = &self.kept[self.retained.index(seq)];
                (Place::Kept(kept.place), from as usize)
            }
        };
        let shift = match payload.source {
            Source::Slot => self.memory[usize::from(payload.slot)].shift,
            Source::Retained { seq, .. } => self.kept[self.retained.index(seq)].shift,
        };
        header.offset -= shift;
        let offset = payload.offset - shift;
        self.note_request(ctx, index, &header);
        if ctx.planted(Plant::BarrierIgnored) {
            strip_barrier(&mut header);
        }
        let len = payload.length as usize;
        let (algorithm, granule) = self.session.digest();
        let memory = bytes_at(&self.memory, &self.kept, &self.recovery, place);
        let Some(bytes) = memory.get(from..from + len) else {
            return ctx.fail(format!(
                "the client engine sends {len} bytes of {place:?} that are not there"
            ));
        };
        let area = &mut out[HEADER_LEN..HEADER_LEN + header.digest_len as usize];
        if !digest::write(algorithm, granule, offset, bytes, area) {
            return ctx.fail("the client engine gave a digest area of the wrong length".into());
        }
        let head = seal(&header, out);
        trace!(
            ctx,
            "client {} -> {index}: WRITE slot {} id {} offset {offset} length {len} flags {:?}{}",
            self.birth.number,
            header.slot,
            header.id,
            header.op_flags.0,
            if matches!(place, Place::Kept(_)) {
                " (replay)"
            } else {
                ""
            },
        );
        let link = &mut self.links[usize::from(index)];
        link.sent_kind = Sent::Request;
        link.out.push(&out[..head]);
        link.out.push_payload(place, from, len);
        if ctx.planted(Plant::MemoryFreedEarly) {
            let number = link.number.unwrap_or(0);
            let slots = &mut self.slots;
            self.session
                .handle_sent(slots, &mut self.retained, index, number, header.slot);
        }
    }

    /// Writes down which request an id stands for.
    fn note_request(&mut self, ctx: &mut Ctx, index: u16, header: &Header) {
        let slot = usize::from(header.slot);
        let request = self.memory[slot].request;
        let owner = match request {
            _ if header.op_flags.contains(OpFlags::REPLAY) => Owner::Replay,
            Some(request) => Owner::User(request),
            None => Owner::Engine,
        };
        if let Owner::User(request) = owner {
            let (kind, _, range) = self.range_of(ctx, request);
            if kind != header.kind {
                ctx.fail(format!("#{request} goes out as {}", header.kind.name()));
            }
            let memory = &mut self.memory[slot];
            if memory.sent.is_none() {
                memory.sent = Some(self.session.number());
                if kind.is_write() {
                    ctx.model.sent(request, range);
                }
            }
            // What was sent in an earlier session may have been executed there: an outcome in this one says nothing about that.
            let first = self.memory[slot].sent == Some(self.session.number());
            self.last_out[slot] = (header.id, first.then_some(request));
        } else {
            self.last_out[slot] = (header.id, None);
        }
        let number = self.session.number();
        let known = ctx.wire.sent(
            number,
            header.id,
            owner,
            header.kind,
            header.op_flags,
            &ctx.book,
        );
        ctx.check(known);
        ctx.trace.mix(header.id << 16 | u64::from(index));
    }

    fn note_abort(&mut self, ctx: &mut Ctx, header: &Header) {
        let (id, request) = self.last_out[usize::from(header.slot)];
        let known = self
            .aborted
            .iter()
            .any(|(slot, aborted, _)| (*slot, *aborted) == (header.slot, header.id));
        if let (true, false, Some(request)) = (id == header.id, known, request) {
            trace!(ctx, "client {} aborts #{request}", self.birth.number);
            self.aborted.push((header.slot, header.id, request));
        }
    }

    /// Everything queued is on its way: now the stream may break under it.
    fn cut_after(&mut self, ctx: &mut Ctx, index: u16, stream: StreamId) {
        let link = &mut self.links[usize::from(index)];
        let sent = std::mem::take(&mut link.sent_kind);
        let count = match sent {
            Sent::Request if index == 0 => &mut ctx.flaps,
            Sent::Abort => &mut ctx.abort_cuts,
            _ => return,
        };
        if *count == 0 || !ctx.rng.chance(60) {
            return;
        }
        *count -= 1;
        let late = match ctx.rng.chance(50) {
            true => 0,
            false => ctx.rng.spread(MICRO, 100 * MILLI),
        };
        let mut notice = [0; 2].map(|_| Some(ctx.rng.spread(MICRO, 20 * MILLI)));
        if sent == Sent::Abort {
            // The server acts on it, and the answer is what gets lost.
            let arrival = ctx.net.last_arrival(stream, Side::Client) + late;
            let way = arrival.saturating_sub(ctx.queue.now());
            notice[0] = notice[0].map(|after| after + way);
        }
        ctx.net.cut(&mut ctx.queue, stream, notice, late);
    }

    /// A write has been acknowledged while an ABORT is out: now the connections may break, and with them the ABORT's answer.
    pub(super) fn cut_after_ack(&mut self, ctx: &mut Ctx) {
        if ctx.ack_cuts == 0 || !ctx.rng.chance(60) {
            return;
        }
        ctx.ack_cuts -= 1;
        for stream in self.links.iter().filter_map(|link| link.stream) {
            let notice = [0; 2].map(|_| Some(ctx.rng.spread(MICRO, 20 * MILLI)));
            ctx.net.cut(&mut ctx.queue, stream, notice, 0);
        }
    }

    /// Gives queued bytes to the stream. Tells whether all are gone.
    fn push(&mut self, ctx: &mut Ctx, index: u16, stream: StreamId) -> bool {
        loop {
            if !self.alive(ctx) {
                return false;
            }
            let link = &mut self.links[usize::from(index)];
            let (wanted, taken) = match link.out.first() {
                None if link.doomed && link.greeted => {
                    // OPEN or JOIN arrives late, perhaps after a newer one.
                    link.doomed = false;
                    let late = ctx.rng.spread(10 * MICRO, SECOND);
                    let notice = [Some(MICRO), Some(MICRO)];
                    ctx.net.cut(&mut ctx.queue, stream, notice, late);
                    return true;
                }
                None => {
                    self.cut_after(ctx, index, stream);
                    return true;
                }
                Some(Next::Bytes(bytes)) => (
                    bytes.len(),
                    ctx.net.write(&mut ctx.queue, stream, Side::Client, bytes),
                ),
                Some(Next::Payload(place, from, len)) => {
                    let memory = bytes_at(&self.memory, &self.kept, &self.recovery, place);
                    let Some(bytes) = memory.get(from..from + len) else {
                        ctx.fail(format!("{place:?} is gone while it is being sent"));
                        return false;
                    };
                    (
                        len,
                        ctx.net.write(&mut ctx.queue, stream, Side::Client, bytes),
                    )
                }
            };
            let done = if taken > 0 {
                link.out.sent(taken)
            } else {
                None
            };
            if let Some(Place::Slot(at)) = done {
                let number = link.number.unwrap_or(0);
                self.session
                    .handle_sent(&mut self.slots, &mut self.retained, index, number, at);
            }
            if taken < wanted {
                return false;
            }
        }
    }
}

/// The bytes of a payload; none where they are gone.
fn bytes_at<'m>(
    memory: &'m [Memory],
    kept: &'m [Kept],
    recovery: &'m Recovery,
    place: Place,
) -> &'m [u8] {
    match place {
        Place::Slot(at) => &memory[usize::from(at)].bytes,
        Place::Kept(place) => {
            let mut all = kept.iter().chain(recovery.released());
            all.find(|kept| kept.place == place)
                .map_or(&[], |kept| &kept.bytes)
        }
    }
}

fn strip_barrier(header: &mut Header) {
    header.op_flags = header.op_flags.without(OpFlags::BARRIER);
    header.after = 0;
}
