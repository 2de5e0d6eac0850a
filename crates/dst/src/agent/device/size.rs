//! Giving the device the size of its export. The work runs beside; where it fails, the device keeps its size, `dst status` says
//! why, and `dst resize NAME` tries again.

use std::path::Path;

use dst_blockdev::Error as FrontError;

use super::{DeviceLoop, Finished, Stage};
use crate::agent::control::ClientId;
use crate::control::Reply;
use crate::exit::{Code, Failure};
use crate::udev;

impl DeviceLoop<'_> {
    /// The device is there. One that was taken over from a dead agent may be smaller than its export is by now.
    pub(super) fn look_at_size(&mut self, device: &Path) {
        let Some(size) = udev::size(device) else {
            return;
        };
        self.facts.device_size = size;
        let wanted = self.driver.geometry().size;
        if size < wanted && self.resizes == 0 {
            self.resize(wanted);
        }
    }

    /// Starts to show `size` bytes, which is what the export has.
    pub(super) fn resize(&mut self, size: u64) {
        let begun = match self.front.resize(size) {
            Ok(work) => self.run_beside(work, move |done| Finished::Resized(size, done)),
            Err(error) => Err(error.into()),
        };
        match begun {
            Ok(()) => self.resizes += 1,
            Err(failure) => self.not_resized(failure),
        }
    }

    /// The work is done.
    pub(super) fn resized(&mut self, size: u64, done: Result<(), FrontError>) {
        self.resizes -= 1;
        match done {
            Ok(()) => {
                self.log.line(&format!("the device has {size} bytes now"));
                self.facts.device_size = self.facts.device_size.max(size);
                self.facts.not_resized = None;
            }
            Err(error) => self.not_resized(error.into()),
        }
        self.tell_resizers();
    }

    fn not_resized(&mut self, failure: Failure) {
        self.log.line(&format!("can't resize: {failure}"));
        self.facts.not_resized = Some(format!(
            "the device keeps its size of {} bytes: {}",
            self.facts.device_size, failure.message
        ));
        self.refuse_resizers(&failure);
    }

    /// Somebody asks for the size of the export.
    pub(super) fn resize_for(&mut self, client: ClientId) {
        self.resizers
            .retain(|&waiting| self.control.is_there(waiting));
        self.resizers.push(client);
        if self.stage != Stage::Up {
            let refusal = Failure::new(Code::InUse, "the device is being attached or detached");
            return self.refuse_resizers(&refusal.hint("try again later"));
        }
        let size = self.driver.geometry().size;
        if self.facts.device_size < size && self.resizes == 0 {
            self.resize(size);
        }
        self.tell_resizers();
    }

    /// Answers those who wait, if the device has the size now.
    fn tell_resizers(&mut self) {
        let size = self.facts.device_size;
        if size < self.driver.geometry().size {
            return;
        }
        for client in std::mem::take(&mut self.resizers) {
            let reply = Reply::Resized { size };
            self.control.reply(self.driver.poller(), client, &reply);
        }
    }

    fn refuse_resizers(&mut self, failure: &Failure) {
        for client in std::mem::take(&mut self.resizers) {
            let reply = Reply::Refused(failure.clone());
            self.control.reply(self.driver.poller(), client, &reply);
        }
    }
}
