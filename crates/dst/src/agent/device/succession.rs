//! Ending without the device: as if the process had been killed, at a moment when the record is up to date. Its successor goes
//! on where it was (`recover.rs`).
//!
//! Nothing is closed, stopped or removed on the way out: neither the session nor the device, which waits.

use super::{DeviceLoop, Stage};
use crate::agent::control::ClientId;
use crate::agent::ready::Event;
use crate::control::Reply;
use crate::exit::{Code, Failure};

impl DeviceLoop<'_> {
    /// The device waits when this process dies, and everything that a successor needs is kept.
    pub(super) fn is_recoverable(&self) -> bool {
        let kept = self.driver.is_recorded() || self.driver.geometry().read_only;
        kept && self.front.survives() && !self.front.stopped() && !self.driver_failed
    }

    /// It is being taken over, and not up yet.
    pub(super) fn is_taking_over(&self) -> bool {
        self.recovers && self.stage == Stage::Starting
    }

    /// Ends the process for a successor.
    pub(super) fn hand_over(&mut self, client: ClientId) {
        let refusal = if self.stage != Stage::Up || self.resizes > 0 {
            Failure::new(
                Code::InUse,
                "the device is being attached, changed or detached",
            )
            .hint("try again in a moment")
        } else if !self.is_recoverable() {
            Failure::new(
                Code::Other,
                format!(
                    "a device of the front end {} can't do without its agent here",
                    self.facts.front_end
                ),
            )
            .hint("unmount it, detach it and attach it again")
        } else {
            self.log.line("handed over to a successor");
            self.driver.hand_over();
            let poller = self.driver.poller();
            self.control.reply(poller, client, &Reply::HandedOver);
            self.log.finish();
            std::process::exit(0);
        };
        let poller = self.driver.poller();
        self.control.reply(poller, client, &Reply::Refused(refusal));
    }

    /// Ends the process since it can't go on; the device waits.
    pub(super) fn leave(&mut self, failure: Failure) -> ! {
        self.log
            .line(&format!("the device waits for recovery: {failure}"));
        self.driver.hand_over();
        let code = failure.code.number();
        self.announcer.tell(&Event::Failed(failure));
        self.log.finish();
        std::process::exit(code.into());
    }
}
