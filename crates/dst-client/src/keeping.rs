//! Keeping the record of a device: see [`crate::record`] for where it is, and `dst_engine::client::Record` for what must be in
//! it when.
//!
//! The driver brings it up to date before every flush of a connection's queue and before it hands out completions, and lets
//! go of the bytes of durable writes only then. Where nothing keeps a record all of this does nothing.

use dst_buf::{Pool, Shared};
use dst_engine::client::Record;
use dst_proto::Holder;

use crate::driver::Driver;
use crate::record::{self, About, Mapped, RecordFile, Shape};
use crate::{OpenError, Options};

/// Free buffers that a pool keeps, bytes.
const CACHED: usize = 64 << 20;

/// Free buffers that a pool keeps besides a reserve, bytes.
const CACHED_BESIDES: usize = 8 << 20;

/// The place of a retained write whose bytes are not in the record: the memory for them was used up.
pub(crate) const NO_PLACE: u64 = u64::MAX;

/// A record that is kept.
pub(crate) struct Keeping {
    record: Record<Mapped>,
    /// Where the bytes of retained writes are, by the engine's index.
    places: Vec<u64>,
    /// Bytes of writes that are durable, which the record may still name.
    released: Vec<Shared>,
}

impl Keeping {
    pub fn new(record: Record<Mapped>, places: Vec<u64>) -> Self {
        let released = Vec::with_capacity(places.len());
        Self {
            record,
            places,
            released,
        }
    }
}

/// The memory of a driver.
pub(crate) struct Memory {
    pub pool: Pool,
    pub keeping: Option<Keeping>,
    /// Why there is no record although one was wanted.
    pub unrecorded: Option<String>,
}

impl Memory {
    /// As `options` say, for so many slots, retained entries and retained bytes.
    pub fn of(
        options: &Options,
        slots: u16,
        entries: usize,
        bytes: u64,
        holder: &Holder,
    ) -> Result<Memory, OpenError> {
        // A retained write takes at least a page.
        let retained = match options.read_only {
            true => 0,
            false => bytes.max(entries as u64 * dst_buf::ALIGNMENT as u64),
        };
        let with = |in_flight: u64| {
            let all = retained.saturating_add(in_flight);
            usize::try_from(all).unwrap_or(usize::MAX)
        };
        let mut unrecorded = None;
        if let Some(dir) = options.record.as_ref().filter(|_| options.read_only) {
            // Who only reads has nothing to lose; an attempt to write, refused, may have made one.
            let _ = record::remove(dir);
        } else if let Some(dir) = &options.record {
            let shape = Shape {
                slots,
                entries: entries as u32,
                payload: with(options.reserve.unwrap_or(Options::IN_FLIGHT))
                    .next_multiple_of(dst_buf::ALIGNMENT),
            };
            let about = About {
                url: options.endpoint.to_string(),
                insecure: options.insecure,
                read_only: options.read_only,
            };
            let made = RecordFile::create(dir, &about, holder, shape).and_then(|file| {
                let pool = Pool::over(CACHED_BESIDES, file.region())?;
                let record = file.record().map_err(|_| std::io::ErrorKind::InvalidData)?;
                Ok((pool, record))
            });
            match made {
                Ok((pool, record)) => {
                    return Ok(Memory {
                        pool,
                        keeping: Some(Keeping::new(record, vec![0; entries])),
                        unrecorded: None,
                    });
                }
                Err(error) => {
                    unrecorded = Some(format!(
                        "no record is kept in {} ({} MiB): {error}; what is not flushed is lost if this \
                         process is killed",
                        dir.display(),
                        shape.payload >> 20
                    ));
                }
            }
        }
        let pool = match options.reserve {
            Some(in_flight) => {
                let all = with(in_flight);
                Pool::with_reserve(CACHED_BESIDES, all).map_err(|source| OpenError::NoMemory {
                    mib: (all >> 20) as u64,
                    source,
                })?
            }
            None => Pool::new(CACHED),
        };
        Ok(Memory {
            pool,
            keeping: None,
            unrecorded,
        })
    }
}

impl Driver {
    /// A write is acknowledged and not durable: its bytes stay.
    pub(crate) fn keep(&mut self, index: usize, bytes: Shared) {
        if let Some(keeping) = &mut self.keeping {
            let place = self.pool.place(&bytes).map_or(NO_PLACE, |at| at as u64);
            keeping.places[index] = place;
        }
        self.kept[index] = Some(bytes);
    }

    /// Whether the record has the bytes of every write that is retained: those for which its memory had no room are in this
    /// process only.
    pub fn is_record_whole(&self) -> bool {
        self.keeping.as_ref().is_some_and(|keeping| {
            let mut kept = self.kept.iter().zip(&keeping.places);
            kept.all(|(bytes, place)| bytes.is_none() || *place != NO_PLACE)
        })
    }

    /// The write at `index` is durable.
    pub(crate) fn release(&mut self, index: usize) {
        let bytes = self.kept[index].take();
        if let Some(keeping) = &mut self.keeping {
            keeping.released.extend(bytes);
        }
    }

    /// Brings the record up to date. To be called before anything leaves the process: a byte for the server, a completion.
    pub(crate) fn keep_record(&mut self) {
        if let Some(keeping) = &mut self.keeping {
            let engine = &self.engine;
            engine.session.record(
                &engine.slots,
                &engine.retained,
                &mut keeping.record,
                &keeping.places,
            );
            keeping.released.clear();
        }
    }
}
