//! What a killed process has left: going on with it, or making it safe on the server.
//!
//! ```text
//! find --> adopt --JOIN, ABORT of every orphan--> settled --FLUSH answered OK--> proven --CLOSE--> done
//!             \--session lost: OPEN, replay--> settled --take over--> serving, as if nothing had happened
//! ```
//!
//! # Going on ([`Leftovers::take_over`])
//!
//! Where the device has survived its process, a successor goes on with the session and hands in again what had not been
//! answered. The record is adopted *in place*: it goes on being the record, and its payload the pool. Dying at any moment
//! leaves a record that the next one can adopt:
//!
//! * Until the first turn of the driver, nothing is written but cells of ids that never went out, which says the same.
//! * From then on the driver keeps it as its predecessor did: nothing leaves the process before the record says why.
//! * The pages of every entry that the record names are claimed from the pool before anything else is taken from it
//!   ([`dst_buf::Pool::claim`]), and let go only when the record does not name them any more.
//!
//! # Making it safe ([`Leftovers::settle`])
//!
//! Only that FLUSH proves anything where the record is *dirty*, that is, names writes that were acknowledged and not known to be
//! durable: without retention the engine has nothing that it could flush before it counts as settled. What CLOSE is answered
//! decides nothing.
//!
//! The device itself died with its process, or will be removed, so nothing new is written here: the session is adopted
//! ([`dst_engine::client::Session::adopt`]), what its ids may still do is settled, what was acknowledged and not durable is made
//! durable, and the session is closed. The record is kept meanwhile, and is there for another try when this one fails or is
//! killed; who has settled it removes it ([`crate::record::remove`]).

mod claim;

use std::path::Path;
use std::time::{Duration, Instant};

use dst_buf::Pool;
use dst_engine::client::{Cells, Entry, Record, Session, Slot, Unfit, MAX_CONNECTIONS};
use dst_net::Endpoint;

use crate::driver::{Driver, Engine, ID_WINDOW};
use crate::identity::boot_id;
use crate::keeping::Keeping;
use crate::record::{About, RecordError, RecordFile, Shape};
use crate::{Op, Options, Request};

/// Free buffers that a pool keeps besides the record's memory, bytes.
const CACHED: usize = 8 << 20;

/// Nobody can use it.
const DAMAGED: &str = "its record is damaged";

/// How often it is asked whether to stop.
const LOOK: Duration = Duration::from_millis(100);

/// Tag of the flush.
const FLUSH: u64 = 0;

/// Why leftovers could not be made safe, or taken over. The record stays.
#[derive(Debug, thiserror::Error)]
pub enum SettleError {
    /// There is nothing that could be made safe.
    #[error("{0}")]
    Nothing(&'static str),
    /// It can't be done here and now. Another try, or another version of this program, may.
    #[error("it is of no use now: {0}")]
    Unusable(String),
    /// The caller wanted it to stop.
    #[error("stopped")]
    Stopped,
    /// The server was not reached, did not let it in, or fell silent.
    #[error("the server has not answered for {seconds} s: {cause}")]
    TooLate {
        /// How long nothing was heard.
        seconds: u64,
        /// What was met last.
        cause: String,
        /// What is to be made safe.
        found: Settled,
    },
    /// Acknowledged writes are lost for good.
    #[error("{0}")]
    Lost(String),
}

/// What was made safe.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Settled {
    /// There are acknowledged writes that were not known to be durable. Without retention nobody has counted them.
    pub dirty: bool,
    /// How many were retained.
    pub writes: u64,
    /// Their payload, bytes.
    pub bytes: u64,
    /// Requests that were under way.
    pub orphans: u64,
}

/// How far settling has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Connecting; orphans are aborted, or what is retained is replayed.
    Settling,
    /// The flush that proves it is under way.
    Flushing,
    /// It is proven, or there was nothing to prove; the lease is given back.
    Closing,
}

/// What a killed process has left in the directory of its device. Who has it holds the lock of that directory.
#[derive(Debug)]
pub struct Leftovers {
    file: RecordFile,
}

impl Leftovers {
    /// The leftovers in `dir`; `None` if no record was kept there.
    ///
    /// # Errors
    /// The record is of no use.
    pub fn find(dir: &Path) -> Result<Option<Self>, RecordError> {
        match RecordFile::open(dir, &boot_id()) {
            Ok(file) => Ok(Some(Self { file })),
            Err(RecordError::Io(error)) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What they are of.
    pub fn about(&self) -> &About {
        self.file.about()
    }

    /// Whether there are writes that may be on the server in a cache only, as far as that can be told.
    pub fn has_writes(&self) -> bool {
        self.file.record().map_or(true, |record| record.retains())
    }

    /// Writes that it retains, and their bytes, as far as that can be told by looking. The process need not be dead.
    pub fn retained(&self) -> Option<(u64, u64)> {
        let mut record = Record::open(self.file.snapshot()).ok()?;
        let endpoint = self.file.about().url.parse().ok()?;
        let options = Options::new(endpoint);
        let engine = engine(&options, self.file.shape(), u64::MAX, &mut record).ok()?;
        Some((engine.retained.entries(), engine.retained.bytes()))
    }

    /// A driver that goes on where the dead process was: same session, what it retained, and the same record, in place.
    /// Requests may be submitted at once. What the dead one had under way is settled before they get ids, so it has no effect
    /// after that.
    ///
    /// Of `options`, the number of requests in flight, the record's place and its size are as they were; `retain` as
    /// bytes.
    ///
    /// # Errors
    /// There is no session to go on with, or a retained write is lost: `Nothing`, `Unusable`, `Lost`.
    pub fn take_over(&self, options: Options) -> Result<Driver, SettleError> {
        let all = self.file.shape().payload as u64;
        let retain = options
            .retain
            .unwrap_or_else(|| all.saturating_sub(Options::IN_FLIGHT));
        self.adopt(options, retain.min(all))
    }

    /// Makes safe on the server what was acknowledged, and settles what was under way. Gives up when there has been no live
    /// connection, nor any progress, for `silence`, or when `stop` says so.
    ///
    /// # Errors
    /// It could not be done, and why.
    pub fn settle(
        &self,
        silence: Duration,
        stop: &dyn Fn() -> bool,
    ) -> Result<Settled, SettleError> {
        // Read before the engine has it: adopting may settle it.
        let dirty = self.file.record().map_err(unfit)?.retains();
        let about = self.file.about();
        let endpoint: Endpoint = about
            .url
            .parse()
            .map_err(|_| SettleError::Unusable("its URL is none".to_owned()))?;
        let mut options = Options::new(endpoint);
        options.insecure = about.insecure;
        options.read_only = about.read_only;
        options.connections = 1;
        let mut driver = self.adopt(options, u64::MAX)?;
        let found = Settled {
            dirty,
            writes: driver.engine.retained.entries(),
            bytes: driver.engine.retained.bytes(),
            orphans: driver.engine.session.stats().orphans,
        };
        let (mut done, mut ready) = (Vec::new(), Vec::new());
        let mut stage = Stage::Settling;
        let mut heard = Instant::now();
        loop {
            let turn = driver
                .turn(Some(LOOK), &mut done, &mut ready)
                .map_err(|error| SettleError::Unusable(error.to_string()))?;
            let answer = done.drain(..).find(|completion| completion.tag == FLUSH);
            if matches!(&answer, Some(completion) if completion.result.is_ok()) {
                stage = Stage::Closing;
                heard = Instant::now();
                driver.close();
            }
            // What happens after the proof takes nothing of it away.
            let proven = stage == Stage::Closing;
            if let Some(reason) = turn.failed {
                return match proven {
                    true => Ok(found),
                    false => Err(SettleError::Lost(reason)),
                };
            }
            if let Some(Err(error)) = answer.map(|completion| completion.result) {
                // The device has not failed: another session may be able to replay.
                return Err(SettleError::Unusable(format!("the flush failed: {error}")));
            }
            if turn.closed.is_some() {
                return match proven {
                    true => Ok(found),
                    false => Err(SettleError::Lost(
                        "the session ended before a flush".to_owned(),
                    )),
                };
            }
            let live = driver.engine.session.live_connections() > 0;
            if stage == Stage::Settling && live && driver.engine.session.is_settled() {
                if dirty {
                    stage = Stage::Flushing;
                    driver.submit(Request {
                        tag: FLUSH,
                        op: Op::Flush,
                    });
                } else {
                    stage = Stage::Closing;
                    heard = Instant::now();
                    driver.close();
                }
            }
            // The engine gives up a connection that is silent, so one that is live has a server at work behind it.
            if live && stage != Stage::Closing {
                heard = Instant::now();
            }
            let late = heard.elapsed() >= silence;
            if stage == Stage::Closing && (late || stop()) {
                // All is durable. That the lease is not given back costs the next writer a wait.
                return Ok(found);
            }
            if stop() {
                return Err(SettleError::Stopped);
            }
            if late {
                return Err(SettleError::TooLate {
                    seconds: silence.as_secs(),
                    cause: driver.message.unwrap_or_else(|| "no answer".to_owned()),
                    found,
                });
            }
        }
    }

    /// A driver of the session, with the record and its payload in place. It keeps `capacity` bytes of writes at most.
    fn adopt(&self, options: Options, capacity: u64) -> Result<Driver, SettleError> {
        let unusable = |error: std::io::Error| SettleError::Unusable(error.to_string());
        let mut record = self.file.record().map_err(unfit)?;
        let engine = engine(&options, self.file.shape(), capacity, &mut record).map_err(unfit)?;
        let pool = Pool::over(CACHED, self.file.region()).map_err(unusable)?;
        let mut places = Vec::new();
        let mut lens = Vec::new();
        for index in 0..self.file.shape().entries as usize {
            let len = engine.retained.payload(index);
            places.push(len.map_or(0, |_| record.place(index)));
            lens.push(len);
        }
        let kept = claim::claim(&pool, &places, &lens);
        let kept = kept.ok_or_else(|| SettleError::Lost(DAMAGED.to_owned()))?;
        let transport = options.endpoint.transport();
        let mut driver = Driver::made_of(options, transport, engine, pool).map_err(unusable)?;
        driver.kept = kept;
        driver.keeping = Some(Keeping::new(record, places));
        // A refusal is nothing to end on: it is tried again and again.
        driver.opened = true;
        Ok(driver)
    }
}

/// The engine that goes on with what a record has.
fn engine<C: Cells>(
    options: &Options,
    shape: Shape,
    capacity: u64,
    record: &mut Record<C>,
) -> Result<Engine, Unfit> {
    let config = Driver::config(options, shape.slots, record.holder());
    debug_assert!(usize::from(config.limits.connections) <= MAX_CONNECTIONS);
    let mut slots = vec![Slot::default(); usize::from(shape.slots)];
    let entries = vec![Entry::default(); shape.entries as usize].into_boxed_slice();
    let window = vec![0; ID_WINDOW as usize / 64].into_boxed_slice();
    let (session, retained) =
        Session::adopt(config, window, &mut slots, entries, capacity, record)?;
    Ok(Engine {
        session,
        slots,
        retained,
    })
}

fn unfit(unfit: Unfit) -> SettleError {
    match unfit {
        Unfit::NeverOpened => SettleError::Nothing("no session had been opened"),
        Unfit::Closed => SettleError::Nothing("its session had been closed in order"),
        Unfit::Failed => SettleError::Lost("the device had failed before".to_owned()),
        Unfit::Layout => SettleError::Unusable("it has another layout".to_owned()),
        Unfit::Digest => SettleError::Unusable("it was made with other digests".to_owned()),
        Unfit::Shape | Unfit::Damaged => SettleError::Lost(DAMAGED.to_owned()),
    }
}
