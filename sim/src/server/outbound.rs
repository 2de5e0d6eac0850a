//! What the server sends.

use dst_engine::server::{seal, Transmit};
use dst_proto::{digest, BlockStatus, Header, HEADER_LEN};

use super::{Data, Member, Server, Stage};
use crate::ctx::Ctx;
use crate::network::{Side, StreamId};
use crate::outbox::Next;
use crate::trace;

/// Bytes that a head may take.
const HEAD_ROOM: usize = 4096;

impl Server {
    /// Sends what there is to send on every stream.
    pub(super) fn send_all(&mut self, ctx: &mut Ctx) -> bool {
        let mut busy = false;
        let mut gone: Vec<StreamId> = Vec::new();
        let mut out = std::mem::take(&mut ctx.scratch);
        out.resize(HEAD_ROOM, 0);
        for conn in &mut self.conns {
            let member = match conn.stage {
                Stage::Joined(number) => self.members.iter_mut().find(|m| m.number == number),
                _ => None,
            };
            let limit = ctx.scenario.queue_limit;
            if let Some(member) = member {
                while conn.out.queued() < limit {
                    let Some(frame) = next_frame(ctx, member, conn.stream, &mut out) else {
                        break;
                    };
                    busy = true;
                    conn.out.push(frame);
                }
            }
            while let Some(Next::Bytes(bytes)) = conn.out.first() {
                let wanted = bytes.len();
                let sent = ctx
                    .net
                    .write(&mut ctx.queue, conn.stream, Side::Server, bytes);
                if sent > 0 {
                    conn.out.sent(sent);
                }
                if sent < wanted {
                    break;
                }
            }
            if conn.stage == Stage::Leaving && !conn.zombie && conn.out.queued() == 0 {
                gone.push(conn.stream);
            }
        }
        ctx.scratch = out;
        for stream in gone {
            self.drop_conn(ctx, stream);
        }
        busy
    }
}

/// The next frame for a stream of a session, whole, with its payload behind it.
fn next_frame<'o>(
    ctx: &mut Ctx,
    member: &mut Member,
    stream: StreamId,
    out: &'o mut Vec<u8>,
) -> Option<&'o [u8]> {
    let conn = dst_engine::server::ConnId(stream);
    match member.session.poll_reply(&mut member.slots, conn, out)? {
        Transmit::Bytes(length) => {
            note(ctx, stream, &out[..length]);
            Some(&out[..length])
        }
        Transmit::Data { header, piece } => {
            let from = piece.from as usize;
            let bytes = match &member.data[usize::from(piece.slot)] {
                Data::Read(bytes) => bytes.get(from..from + piece.len as usize),
                _ => None,
            };
            let Some(bytes) = bytes else {
                ctx.fail(format!(
                    "the server engine sends a piece of slot {} that is not there",
                    piece.slot
                ));
                return None;
            };
            let digests = member.session.digests();
            let area = &mut out[HEADER_LEN..HEADER_LEN + header.digest_len as usize];
            if !digest::write(
                digests.algorithm,
                digests.granule,
                header.offset,
                bytes,
                area,
            ) {
                ctx.fail("the server engine gave a digest area of the wrong length".into());
            }
            let length = seal(&header, out);
            note(ctx, stream, &out[..length]);
            out.truncate(length);
            out.extend_from_slice(bytes);
            let whole = out.len();
            if out.len() < HEAD_ROOM {
                out.resize(HEAD_ROOM, 0);
            }
            if piece.last {
                member.data[usize::from(piece.slot)] = Data::None;
            }
            Some(&out[..whole])
        }
        Transmit::Extents { header, slot } => {
            let extents = match std::mem::take(&mut member.data[usize::from(slot)]) {
                Data::Extents(extents) => extents,
                _ => {
                    ctx.fail(format!(
                        "the server engine wants extents of slot {slot} that are not there"
                    ));
                    return None;
                }
            };
            let written = BlockStatus::encode_from(extents.into_iter(), &mut out[HEADER_LEN..]);
            let header = Header {
                options_len: written.map_or(0, |length| length as u16),
                ..header
            };
            let length = seal(&header, out);
            note(ctx, stream, &out[..length]);
            Some(&out[..length])
        }
    }
}

fn note(ctx: &mut Ctx, stream: StreamId, frame: &[u8]) {
    if !ctx.trace.on {
        return;
    }
    if let Some(Ok(header)) = frame.first_chunk::<HEADER_LEN>().map(Header::decode) {
        trace!(
            ctx,
            "server -> stream {stream}: {} slot {} id {} {:?} payload {}{}",
            header.kind.name(),
            header.slot as i16,
            header.id,
            header.status(),
            header.payload_len,
            if header.more { " more" } else { "" },
        );
    }
}
