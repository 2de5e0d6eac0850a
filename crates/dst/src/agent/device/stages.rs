//! How a device goes from one stage to the next: see the table in the module above. Everything here happens between two
//! turns of the loop and waits for nothing.

use std::time::Instant;

use dst_blockdev::{Error as FrontError, Node, NodeKind};
use dst_client::{Op, Request};

use super::{DeviceLoop, Finished, Stage, CLOSING, FLUSH_TAG, FORCED};
use crate::agent::ready::{Event, Ready};
use crate::agent::report;
use crate::control::{Reply, Request as ControlRequest};
use crate::exit::{Code, Failure};
use crate::udev;

impl DeviceLoop<'_> {
    pub(super) fn submit_flush(&mut self) {
        if !self.driver.geometry().read_only && !self.flush_pending {
            self.flush_pending = true;
            self.driver.submit(Request {
                tag: FLUSH_TAG,
                op: Op::Flush,
            });
        }
    }

    /// Goes to the next stage where the one before is done, or out of time.
    pub(super) fn go_on(&mut self) {
        if self.stage == Stage::Flushing && !self.flush_pending {
            if self.driver_failed {
                self.stage = Stage::Ended;
            } else {
                self.driver.close();
                self.stage = Stage::Closing;
                self.give_up.get_or_insert(Instant::now() + CLOSING);
            }
        }
        if self.forced && self.stage == Stage::Flushing && self.driver.status().state != "live" {
            self.give_up = Some(Instant::now());
        }
        if self.give_up.is_some_and(|at| at <= Instant::now()) && self.stage != Stage::Ended {
            let retained = self.driver.status().retained_bytes;
            if self.stage != Stage::Closing && retained > 0 {
                let text = format!(
                    "{retained} bytes may not be durable: the server did not confirm a flush"
                );
                self.log.line(&text);
                self.lost.get_or_insert(text);
            }
            self.driver.fail();
            self.stage = Stage::Ended;
        }
    }

    pub(super) fn take_finished(&mut self) {
        self.waker.clear();
        while let Ok(finished) = self.finished.1.try_recv() {
            match finished {
                Finished::Started(started) => {
                    self.works -= 1;
                    self.started(started);
                }
                Finished::Stopped(stopped) => {
                    self.works -= 1;
                    self.front_stop_done(stopped);
                }
                Finished::Resized(size, done) => self.resized(size, done),
            }
        }
    }

    fn started(&mut self, started: Result<Node, FrontError>) {
        match started {
            Ok(node) if self.stage == Stage::Starting => {
                self.log
                    .line(&format!("the device is {}", node.path.display()));
                for note in &node.notes {
                    self.log.line(note);
                }
                if let Some(mut info) = self.dir.info() {
                    info.node = Some(node.path.clone());
                    info.device = Some(node.device.clone());
                    info.export_id = Some(self.driver.status().export_id);
                    // The server may have said so.
                    info.read_only = self.driver.geometry().read_only;
                    if let Err(error) = self.dir.set_info(&info) {
                        self.log
                            .line(&format!("can't write down where it is: {error}"));
                    }
                    if node.kind == NodeKind::BlockDevice {
                        udev::announce(&node.device);
                    }
                }
                let geometry = self.driver.geometry();
                self.announcer.tell(&Event::Ready(Ready {
                    name: self.facts.name.clone(),
                    node: node.path.clone(),
                    device: node.device.clone(),
                    kind: report::kind_name(node.kind).to_owned(),
                    front_end: self.facts.front_end.to_owned(),
                    size: geometry.size,
                    logical_block: geometry.logical_block,
                    read_only: geometry.read_only,
                    notes: node.notes.clone(),
                    pid: std::process::id(),
                }));
                let device = (node.kind == NodeKind::BlockDevice).then(|| node.device.clone());
                self.facts.node = Some(node);
                self.stage = Stage::Up;
                if let Some(device) = device {
                    self.look_at_size(&device);
                }
            }
            Ok(_) if self.works == 0 => self.begin_end(),
            // A stop is on its way.
            Ok(_) => {}
            Err(error) if self.is_taking_over() => self.leave(error.into()),
            Err(error) => {
                self.log.line(&error.to_string());
                self.failure.get_or_insert(error.into());
                self.begin_end();
            }
        }
    }

    fn front_stop_done(&mut self, stopped: Result<(), FrontError>) {
        match stopped {
            Err(error) if !self.forced => {
                self.log.line(&format!("can't be removed now: {error}"));
                let refusal = Failure::from(error);
                for client in std::mem::take(&mut self.detachers) {
                    self.control.reply(
                        self.driver.poller(),
                        client,
                        &Reply::Refused(refusal.clone()),
                    );
                }
                self.stage = match self.front.stopped() {
                    true => Stage::Orphaned,
                    false => Stage::Up,
                };
            }
            stopped => {
                if let Err(error) = stopped {
                    self.log.line(&format!("can't be removed: {error}"));
                }
                if self.works == 0 && self.stage == Stage::Stopping {
                    self.begin_end();
                }
            }
        }
    }

    /// The front end is gone, or will be with its drop: the rest is between this process and the server.
    fn begin_end(&mut self) {
        self.stage = Stage::Flushing;
        self.submit_flush();
    }

    /// Starts to remove the device.
    fn stop(&mut self, force: bool) {
        if force && !self.forced {
            self.log.line("detached by force");
            self.forced = true;
            self.give_up = Some(Instant::now() + FORCED);
        }
        if self.stage == Stage::Starting {
            self.failure.get_or_insert_with(Failure::interrupted);
        }
        match self.stage {
            Stage::Orphaned => self.begin_end(),
            Stage::Starting | Stage::Up => self.stop_front(force),
            Stage::Stopping if force => self.stop_front(true),
            Stage::Stopping | Stage::Flushing | Stage::Closing | Stage::Ended => {}
        }
    }

    fn stop_front(&mut self, force: bool) {
        let work = self.front.stop(force);
        match self.run_beside(work, Finished::Stopped) {
            Ok(()) => {
                self.works += 1;
                self.stage = Stage::Stopping;
            }
            // Its drop does what the work would have done.
            Err(_) if force => self.begin_end(),
            Err(failure) => {
                self.log.line(&failure.message);
                for client in std::mem::take(&mut self.detachers) {
                    let refusal = Reply::Refused(failure.clone());
                    self.control.reply(self.driver.poller(), client, &refusal);
                }
            }
        }
    }

    pub(super) fn take_signals(&mut self) {
        let count = self.signals.count();
        if count == self.signals_seen {
            return;
        }
        self.signals_seen = count;
        self.log.line("a signal asks to end");
        match self.stage {
            Stage::Starting if self.recovers => self.leave(Failure::interrupted()),
            Stage::Starting => self.stop(true),
            // Where it is in use this changes nothing: data is worth more than obedience.
            _ => self.stop(false),
        }
    }

    pub(super) fn take_control(&mut self, token: u64) {
        let now = Instant::now();
        let poller = self.driver.poller();
        let Some((client, request)) = self.control.handle_ready(poller, token, now) else {
            return;
        };
        match request {
            ControlRequest::Status => {
                let overriding = match self.stage {
                    Stage::Starting => Some(("attaching", None)),
                    Stage::Up => None,
                    Stage::Orphaned => Some(("failed", self.broken.clone())),
                    _ => Some(("detaching", None)),
                };
                let report = report::report(
                    &self.facts,
                    self.driver.status(),
                    &self.driver.geometry(),
                    overriding,
                    &self.sampler,
                    now,
                );
                let reply = Reply::Status(Box::new(report));
                self.control.reply(poller, client, &reply);
            }
            ControlRequest::Resize => self.resize_for(client),
            ControlRequest::HandOver => self.hand_over(client),
            ControlRequest::Detach { force: false } if self.stage == Stage::Starting => {
                let refusal = Failure::new(Code::InUse, "the device is still being attached")
                    .hint("try again when it is there, or give --force");
                self.control.reply(poller, client, &Reply::Refused(refusal));
            }
            ControlRequest::Detach { force } => {
                self.detachers
                    .retain(|&waiting| self.control.is_there(waiting));
                self.detachers.push(client);
                self.stop(force);
            }
        }
    }
}
