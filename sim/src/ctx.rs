//! What every part of a scenario has to do with: the clock, the network, the books and the trace.

use crate::check::Book;
use crate::model::Model;
use crate::network::Network;
use crate::plant::Plant;
use crate::queue::Queue;
use crate::rng::Rng;
use crate::scenario::Scenario;
use crate::stats::Stats;
use crate::trace::Trace;
use crate::wirebook::WireBook;
use crate::Violation;

/// See [`Ctx::power_after_abort`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerAfterAbort {
    /// It doesn't.
    No,
    /// It will.
    Armed,
    /// The ABORT has been answered: now.
    Due,
}

/// Handed to whatever acts.
#[derive(Debug)]
pub struct Ctx {
    /// The parameters.
    pub scenario: Scenario,
    /// What is broken on purpose.
    pub plant: Option<Plant>,
    /// The clock.
    pub queue: Queue,
    /// The network.
    pub net: Network,
    /// What the disk may show.
    pub model: Model,
    /// What devices may answer.
    pub book: Book,
    /// What the server may execute.
    pub wire: WireBook,
    /// What happened.
    pub trace: Trace,
    /// Numbers.
    pub stats: Stats,
    /// For choices of drivers and users.
    pub rng: Rng,
    /// The incarnation that the export is in; none from a loss until the server has begun a new one.
    pub incarnation: Option<[u8; 16]>,
    /// Connection attempts take longer until this time.
    pub slow_connect_until: u64,
    /// So often the first connection of a client breaks under a request.
    pub flaps: u32,
    /// So often a connection breaks under an ABORT.
    pub abort_cuts: u32,
    /// So often a client's connections break when it hears of a write while an ABORT is out.
    pub ack_cuts: u32,
    /// The power goes when an ABORT of a write has been answered.
    pub power_after_abort: PowerAfterAbort,
    /// The holder replays in an incarnation in which nothing was lost: others may read meanwhile.
    pub quiet_replay: bool,
    /// Requests handed in by users of devices that write.
    pub submitted: u32,
    /// The first thing that the contract does not permit.
    pub violation: Option<Violation>,
    /// For sending, between calls only.
    pub scratch: Vec<u8>,
}

impl Ctx {
    /// Nanoseconds.
    pub fn now(&self) -> u64 {
        self.queue.now()
    }

    /// Whether this is broken on purpose.
    pub fn planted(&self, plant: Plant) -> bool {
        self.plant == Some(plant)
    }

    /// Notes the outcome of a check.
    pub fn check(&mut self, result: Result<(), Violation>) {
        if let (Err(violation), None) = (result, &self.violation) {
            crate::trace!(self, "VIOLATION {violation}");
            self.violation = Some(violation);
        }
    }

    /// Something that the contract does not permit.
    pub fn fail(&mut self, text: String) {
        self.check(Err(Violation { text }));
    }
}
