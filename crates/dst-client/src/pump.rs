//! Acting on what the engine decided: completions, retained bytes, things to send.

use dst_engine::client::{CloseReason, Event, Failure, Source, Transmit, MAX_CONNECTIONS};
use dst_proto::{Kind, Status};

use crate::conn::Conn;
use crate::driver::{transaction, Data, Driver, Pending};
use crate::error::{fail_text, io_error};
use crate::{Completion, Reply, Request};

impl Driver {
    /// Does everything that can be done without waiting.
    pub(crate) fn pump(&mut self) {
        loop {
            let acted = self.take_events();
            let submitted = self.submit_queued();
            if !acted && !submitted {
                break;
            }
        }
        self.start_connecting();
        for index in 0..MAX_CONNECTIONS as u16 {
            self.transmit(index);
        }
        // Sending may have lost connections, and so have completed or freed something.
        while self.take_events() || self.submit_queued() {}
    }

    /// Moves waiting requests into free slots.
    fn submit_queued(&mut self) -> bool {
        let mut any = false;
        while !self.queue.is_empty() {
            let Some(slot) = self.free.pop() else {
                break;
            };
            let Some((Request { tag, op }, came)) = self.queue.pop_front() else {
                self.free.push(slot);
                break;
            };
            let (mut request, mut data) = transaction(op);
            if let Data::Write(bytes) = data {
                let (bytes, flags) = self.keepable(bytes, request.flags);
                request.flags = flags;
                data = Data::Write(bytes);
            }
            self.pending[usize::from(slot)] = Some(Pending {
                tag,
                kind: request.kind,
                length: request.length,
                data,
            });
            let engine = &mut self.engine;
            engine
                .session
                .submit(&mut engine.slots, &mut engine.retained, slot, request, came);
            any = true;
        }
        any
    }

    fn take_events(&mut self) -> bool {
        let mut any = false;
        loop {
            let engine = &mut self.engine;
            let Some(event) = engine
                .session
                .poll_event(&mut engine.slots, &mut engine.retained)
            else {
                return any;
            };
            any = true;
            match event {
                Event::Completed {
                    slot,
                    result,
                    retained,
                } => self.completed(slot, result, retained),
                Event::Released { index } => self.release(index),
                Event::Close { index, reason } => {
                    self.drop_connection(index, close_text(reason));
                }
                Event::Opened { .. } => {
                    self.opened = true;
                    self.message = None;
                    for attempts in &mut self.attempts {
                        attempts.not_before = 0;
                    }
                }
                Event::Changed => {
                    let geometry = self.engine.session.geometry();
                    self.turn.resized = geometry.map(|geometry| geometry.size);
                }
                Event::Draining { index } => {
                    self.attempts[usize::from(index)].backoff.immediately();
                }
                Event::Refused { .. } => {}
                Event::Failed(reason) => {
                    self.failed = Some(reason);
                    self.turn.failed = Some(fail_text(reason));
                }
                Event::Closed(status) => {
                    self.turn.closed = Some(match status {
                        Status::OK => Ok(()),
                        status => Err(format!(
                            "the server could not end the session in order: {status}"
                        )),
                    });
                }
            }
        }
    }

    fn completed(&mut self, slot: u16, result: Result<(), Failure>, retained: Option<usize>) {
        let Some(pending) = self.pending[usize::from(slot)].take() else {
            return;
        };
        self.free.push(slot);
        let counters = &mut self.counters;
        if result.is_ok() {
            match pending.kind {
                Kind::READ => {
                    counters.reads += 1;
                    counters.read_bytes += pending.length;
                }
                Kind::WRITE => {
                    counters.writes += 1;
                    counters.written_bytes += pending.length;
                }
                Kind::FLUSH => counters.flushes += 1,
                _ => counters.others += 1,
            }
        }
        let reply = match pending.data {
            Data::Write(bytes) => {
                if let Some(index) = retained {
                    self.keep(index, bytes);
                }
                Reply::Done
            }
            Data::Read(Some(buffer)) => Reply::Read(buffer.share()),
            Data::Extents(extents) => Reply::Extents(extents),
            Data::None | Data::Read(None) => Reply::Done,
        };
        let failed = self.failed;
        self.complete(Completion {
            tag: pending.tag,
            result: match result {
                Ok(()) => Ok(reply),
                Err(failure) => Err(io_error(failure, failed)),
            },
        });
    }

    /// Queues what connection `index` may send, and sends it.
    fn transmit(&mut self, index: u16) {
        let Some(mut conn) = self.conns[usize::from(index)].take() else {
            return;
        };
        let outcome = loop {
            while conn.framed.has_room() && self.queue_one(index, &mut conn) {}
            self.keep_record();
            let sent = conn.flush(&self.poller);
            self.report_sent(index, &mut conn);
            if sent.is_err() || conn.framed.link.wants_write() || !self.queue_one(index, &mut conn)
            {
                break sent;
            }
        };
        self.conns[usize::from(index)] = Some(conn);
        if let Err(error) = outcome {
            self.drop_connection(index, Some(error.to_string()));
        }
    }

    /// Queues the next thing to send, if there is one.
    fn queue_one(&mut self, index: u16, conn: &mut Conn) -> bool {
        let engine = &mut self.engine;
        let Some(transmit) = engine.session.poll_transmit(
            &mut engine.slots,
            &mut engine.retained,
            index,
            &mut self.scratch,
        ) else {
            return false;
        };
        let (header, payload) = match transmit {
            Transmit::Bytes(length) => {
                conn.framed.link.push_bytes(&self.scratch[..length]);
                return true;
            }
            Transmit::Write { header, payload } => (header, payload),
        };
        let length = payload.length as usize;
        let bytes = match payload.source {
            Source::Slot => match &self.pending[usize::from(payload.slot)] {
                Some(Pending {
                    data: Data::Write(bytes),
                    ..
                }) => bytes.clone(),
                _ => unreachable!("the engine sends only writes that were submitted"),
            },
            Source::Retained { seq, from } => {
                let kept = &self.kept[engine.retained.index(seq)];
                let kept = kept.as_ref().expect("what is retained is kept");
                kept.slice(from as usize..from as usize + length)
            }
        };
        let digests = self.digests();
        conn.framed
            .push_frame(&header, digests, payload.offset, bytes, &mut self.scratch);
        if payload.source == Source::Slot {
            conn.framed.link.push_mark(payload.slot.into());
        }
        true
    }

    fn report_sent(&mut self, index: u16, conn: &mut Conn) {
        conn.framed.link.take_marks(&mut self.marks);
        let engine = &mut self.engine;
        for mark in self.marks.drain(..) {
            engine.session.handle_sent(
                &mut engine.slots,
                &mut engine.retained,
                index,
                conn.stream,
                mark as u16,
            );
        }
    }
}

/// Why the session wants a connection closed, for people; nothing where the server has said it better.
fn close_text(reason: CloseReason) -> Option<String> {
    let text = match reason {
        CloseReason::Silent => "the server has been silent for too long",
        CloseReason::BadDigest => "data arrived damaged",
        CloseReason::Deadline => "reset to free the memory of a request whose deadline has passed",
        CloseReason::Superseded => "its session is over",
        CloseReason::Refused => return None,
    };
    Some(text.to_owned())
}
