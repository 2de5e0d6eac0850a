//! What the server receives.

use dst_engine::rx::{Fault, Head};
use dst_engine::server::{ConnId, Take};
use dst_proto::{digest, Header, Kind, Status};

use super::{Body, Data, Server, Stable, Stage};
use crate::ctx::Ctx;
use crate::disk::Disk;
use crate::network::{Side, StreamId};
use crate::plant::Plant;
use crate::trace;

impl Server {
    /// Bytes have arrived on a stream.
    pub fn arrived(
        &mut self,
        ctx: &mut Ctx,
        disk: &mut Disk,
        stable: &mut Stable,
        stream: StreamId,
    ) {
        if !self.frozen {
            self.receive(ctx, disk, stable, stream);
            self.step(ctx, disk, stable);
        }
    }

    /// There is room on a stream again.
    pub fn writable(&mut self, ctx: &mut Ctx, disk: &mut Disk, stable: &mut Stable) {
        self.step(ctx, disk, stable);
    }

    /// A stream has ended.
    pub fn ended(&mut self, ctx: &mut Ctx, disk: &mut Disk, stable: &mut Stable, stream: StreamId) {
        let Some(at) = self.conn(stream) else {
            return;
        };
        if self.frozen {
            self.conns[at].ended = true;
            return;
        }
        // What has arrived is read before the end is.
        self.receive(ctx, disk, stable, stream);
        if self.conn(stream).is_some() {
            trace!(ctx, "server loses stream {stream}");
            self.drop_conn(ctx, stream);
        }
        self.step(ctx, disk, stable);
    }

    /// Takes everything that has arrived on a stream.
    pub(super) fn receive(
        &mut self,
        ctx: &mut Ctx,
        disk: &mut Disk,
        stable: &mut Stable,
        stream: StreamId,
    ) {
        loop {
            let Some(at) = self.conn(stream) else {
                return;
            };
            let conn = &mut self.conns[at];
            if conn.stage == Stage::Leaving && !conn.zombie || ctx.violation.is_some() {
                return;
            }
            let bytes = ctx.net.readable(stream, Side::Client);
            if bytes.is_empty() {
                return;
            }
            let (stage, id, now) = (conn.stage, conn.id(), ctx.queue.now());
            if let Stage::Joined(number) = stage {
                let member = self.members.iter_mut().find(|m| m.number == number);
                if let Some(member) = member {
                    member.session.handle_received(id, now);
                }
            }
            let result = if conn.body.is_some() {
                let used = self.take_payload(ctx, at);
                ctx.net.take(&mut ctx.queue, stream, Side::Client, used);
                Ok(())
            } else {
                match conn.rx.feed(bytes) {
                    Ok((used, head)) => {
                        ctx.net.take(&mut ctx.queue, stream, Side::Client, used);
                        match head {
                            Some(Head::Frame(header)) => self.frame(ctx, disk, at, &header),
                            Some(Head::Hello(_)) | None => Ok(()),
                        }
                    }
                    Err(fault) => Err(fault),
                }
            };
            if let Err(fault) = result {
                trace!(ctx, "server drops stream {stream}: {fault}");
                self.drop_conn(ctx, stream);
                return;
            }
            // What the rules have superseded meanwhile is not read any further.
            self.events(ctx);
            self.actions(ctx, disk, stable);
        }
    }

    fn frame(
        &mut self,
        ctx: &mut Ctx,
        disk: &Disk,
        at: usize,
        header: &Header,
    ) -> Result<(), Fault> {
        match self.conns[at].stage {
            Stage::Greeting => self.first_frame(ctx, disk, at, header),
            Stage::Asking(_) => Err(Fault::protocol("a frame before OPEN is answered")),
            Stage::Joined(number) => {
                let id = self.conns[at].id();
                self.request(ctx, at, number, id, header)
            }
            Stage::Leaving => self.zombie_frame(ctx, at, header),
        }
    }

    fn request(
        &mut self,
        ctx: &mut Ctx,
        at: usize,
        number: u64,
        id: ConnId,
        header: &Header,
    ) -> Result<(), Fault> {
        let now = ctx.now();
        let conn = &mut self.conns[at];
        let Some(member) = self.members.iter_mut().find(|m| m.number == number) else {
            return Err(Fault {
                status: Status::SESSION_LOST,
                text: "the session is gone",
            });
        };
        let mut header = *header;
        if ctx.planted(Plant::NoDedup) {
            header.acked = 0;
        }
        trace!(
            ctx,
            "server <- stream {}: {} slot {} id {} payload {}{}",
            conn.stream,
            header.kind.name(),
            header.slot as i16,
            header.id,
            header.payload_len,
            if header.reply { " (reply)" } else { "" },
        );
        let options = conn.rx.options();
        let take = member
            .session
            .handle_request(&mut member.slots, id, &header, options, now)?;
        if header.kind == Kind::ABORT {
            ctx.wire.aborted(number, header.id);
        }
        conn.body = match take {
            Take::Nothing => None,
            Take::Discard => Some(Body::Nowhere),
            Take::Payload { slot } => Some(Body::Into {
                slot,
                bytes: Vec::with_capacity(header.payload_len as usize),
                offset: header.offset,
            }),
        };
        Ok(())
    }

    /// For [`Plant::OldConnectionStillRead`]: a frame of a connection whose session is over, taken for one of the session that
    /// writes now.
    fn zombie_frame(&mut self, ctx: &mut Ctx, at: usize, header: &Header) -> Result<(), Fault> {
        let heir = self.heir();
        trace!(
            ctx,
            "server: old stream {} is still read, heir {heir:?}",
            self.conns[at].stream
        );
        match heir {
            Some((number, id)) => {
                let header = Header {
                    acked: 0,
                    ..*header
                };
                self.request(ctx, at, number, id, &header)
            }
            None if header.payload_len > 0 => {
                self.conns[at].body = Some(Body::Nowhere);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// The session that writes now and one of its connections.
    fn heir(&self) -> Option<(u64, ConnId)> {
        let number = self.export.writer()?;
        let conn = self
            .conns
            .iter()
            .find(|conn| conn.stage == Stage::Joined(number))?;
        Some((number, conn.id()))
    }

    /// Moves what is readable of a payload to its place. Tells how many bytes.
    fn take_payload(&mut self, ctx: &mut Ctx, at: usize) -> usize {
        let conn = &mut self.conns[at];
        let arrived = ctx.net.readable(conn.stream, Side::Client);
        let used = arrived.len().min(conn.rx.payload_left() as usize);
        if let Some(Body::Into { bytes, .. }) = &mut conn.body {
            bytes.extend_from_slice(&arrived[..used]);
        }
        if conn.rx.payload_received(used as u32) {
            self.finish_payload(ctx, at);
        }
        used
    }

    fn finish_payload(&mut self, ctx: &mut Ctx, at: usize) {
        let Some(Body::Into {
            slot,
            bytes,
            offset,
        }) = self.conns[at].body.take()
        else {
            return;
        };
        let place = match self.conns[at].stage {
            Stage::Joined(number) => Some((number, self.conns[at].id())),
            Stage::Leaving if self.conns[at].zombie => self.heir(),
            _ => None,
        };
        let Some((number, id)) = place else {
            return;
        };
        let area = self.conns[at].rx.digests();
        let member = self.members.iter_mut().find(|m| m.number == number);
        // Another connection's copy of the request may have taken its place meanwhile.
        let Some(member) = member.filter(|m| m.session.payload_wanted(id)) else {
            return;
        };
        let digests = member.session.digests();
        let good = digest::verify(digests.algorithm, digests.granule, offset, &bytes, area);
        if !good {
            trace!(ctx, "server: bad digest in slot {slot}");
        }
        let good = good || ctx.planted(Plant::BadDigestAccepted);
        member.data[usize::from(slot)] = Data::Payload(bytes);
        member.session.payload_done(&mut member.slots, id, good);
    }
}
