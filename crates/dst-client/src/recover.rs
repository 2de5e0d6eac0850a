//! What a killed process has left, and making it safe on the server.
//!
//! ```text
//! find --> adopt --JOIN, ABORT of every orphan, FLUSH--> settled --CLOSE--> done
//!             \--session lost: OPEN, replay, FLUSH--> settled
//! ```
//!
//! The device itself died with its process, so nothing new is written here: the session is adopted
//! ([`dst_engine::client::Session::adopt`]), what its ids may still do is settled, what was acknowledged and not durable is made
//! durable, and the session is closed. The record is kept meanwhile, and is there for another try when this one fails or is
//! killed; who has settled it removes it ([`crate::record::remove`]).

use std::path::Path;
use std::time::{Duration, Instant};

use dst_engine::client::{Entry, Session, Slot, Unfit, MAX_CONNECTIONS};
use dst_net::Endpoint;

use crate::driver::{Driver, Engine, ID_WINDOW};
use crate::identity::boot_id;
use crate::keeping::{Keeping, NO_PLACE};
use crate::record::{About, RecordError, RecordFile};
use crate::Options;

/// Buffers that the pool keeps while retained writes are replayed, bytes.
const CACHED: usize = 8 << 20;

/// Why leftovers could not be made safe. The record stays as it is.
#[derive(Debug, thiserror::Error)]
pub enum SettleError {
    /// There is nothing that could be made safe.
    #[error("{0}")]
    Nothing(&'static str),
    /// The record can't be used.
    #[error("its record can't be used: {0}")]
    Unusable(String),
    /// The server was not reached in time, or did not let it in.
    #[error("the server has not settled it within {seconds} s: {cause}")]
    TooLate {
        /// How long it was tried.
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
    /// Acknowledged writes that were not known to be durable.
    pub writes: u64,
    /// Their payload, bytes.
    pub bytes: u64,
    /// Requests that were under way.
    pub orphans: u64,
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

    /// Whether there are writes that may be on the server in a cache only.
    pub fn has_writes(&self) -> bool {
        self.file.record().is_ok_and(|record| record.retains())
    }

    /// Makes safe on the server what was acknowledged, and settles what was under way; gives up after `limit`.
    ///
    /// # Errors
    /// It could not be done, and why.
    pub fn settle(&self, limit: Duration) -> Result<Settled, SettleError> {
        let started = Instant::now();
        let mut driver = self.adopt()?;
        let found = Settled {
            writes: driver.engine.retained.entries(),
            bytes: driver.engine.retained.bytes(),
            orphans: driver.engine.session.stats().orphans,
        };
        let (mut done, mut ready) = (Vec::new(), Vec::new());
        let mut settled = false;
        loop {
            let left = limit.checked_sub(started.elapsed());
            let Some(left) = left else {
                if settled {
                    // All is durable. That the lease is not given back costs the next writer a wait.
                    return Ok(found);
                }
                return Err(SettleError::TooLate {
                    seconds: limit.as_secs(),
                    cause: driver.message.unwrap_or_else(|| "no answer".to_owned()),
                    found,
                });
            };
            let turn = driver
                .turn(Some(left), &mut done, &mut ready)
                .map_err(|error| SettleError::Unusable(error.to_string()))?;
            if let Some(reason) = turn.failed {
                return Err(SettleError::Lost(reason));
            }
            if !settled && driver.engine.session.is_settled() {
                settled = true;
                driver.close();
            }
            if turn.closed.is_some() {
                return Ok(found);
            }
        }
    }

    fn adopt(&self) -> Result<Driver, SettleError> {
        let unusable = |what: &str| SettleError::Unusable(what.to_owned());
        let about = self.file.about();
        let endpoint: Endpoint = about.url.parse().map_err(|_| unusable("its URL is none"))?;
        let mut options = Options::new(endpoint);
        options.insecure = about.insecure;
        options.read_only = about.read_only;
        options.connections = 1;
        let shape = self.file.shape();
        let mut record = self.file.record().map_err(unfit)?;
        let config = Driver::config(&options, shape.slots, record.holder());
        debug_assert!(usize::from(config.limits.connections) <= MAX_CONNECTIONS);
        let mut slots = vec![Slot::default(); usize::from(shape.slots)];
        let entries = vec![Entry::default(); shape.entries as usize].into_boxed_slice();
        let window = vec![0; ID_WINDOW as usize / 64].into_boxed_slice();
        let adopted = Session::adopt(config, window, &mut slots, entries, u64::MAX, &mut record);
        let (session, retained) = adopted.map_err(unfit)?;
        let pool = dst_buf::Pool::new(CACHED);
        let mut places = vec![0; shape.entries as usize];
        let mut kept: Vec<_> = places.iter().map(|_| None).collect();
        for (index, place) in places.iter_mut().enumerate() {
            let Some(len) = retained.payload(index) else {
                continue;
            };
            *place = record.place(index);
            if *place == NO_PLACE {
                return Err(SettleError::Lost(
                    "the memory for its unflushed writes was used up, and some of them are lost"
                        .to_owned(),
                ));
            }
            let bytes = self.file.payload(*place, len);
            let bytes = bytes.ok_or_else(|| unusable("it is damaged"))?;
            kept[index] = Some(pool.copy_of(bytes).share());
        }
        let engine = Engine {
            session,
            slots,
            retained,
        };
        let transport = options.endpoint.transport();
        let mut driver = Driver::made_of(options, transport, engine, pool)
            .map_err(|error| SettleError::Unusable(error.to_string()))?;
        driver.kept = kept;
        driver.keeping = Some(Keeping::new(record, places));
        // A refusal is nothing to end on: it is tried until the time is up.
        driver.opened = true;
        Ok(driver)
    }
}

fn unfit(unfit: Unfit) -> SettleError {
    match unfit {
        Unfit::NeverOpened => SettleError::Nothing("no session had been opened"),
        Unfit::Closed => SettleError::Nothing("its session had been closed in order"),
        Unfit::Failed => SettleError::Lost("the device had failed before".to_owned()),
        Unfit::Layout => SettleError::Unusable("it has another layout".to_owned()),
        Unfit::Digest => SettleError::Unusable("it was made with other digests".to_owned()),
        Unfit::Shape | Unfit::Damaged => SettleError::Unusable("it is damaged".to_owned()),
    }
}
