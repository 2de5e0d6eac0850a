//! Keeping the record of a device: see [`crate::record`] for where it is, and `dst_engine::client::Record` for what must be in
//! it when.
//!
//! The driver brings it up to date before every flush of a connection's queue and before it hands out completions, and lets
//! go of the bytes of durable writes only then. Where nothing keeps a record all of this does nothing.
//!
//! Invariant: the bytes of every retained write are in the record's memory, so that a killed process loses none of them. The
//! table of retained writes can hold more than that memory has places for (a write takes whole pages, and requests in flight
//! take theirs). So a write goes to the engine only with a place, or as FUA: then it is durable when it is acknowledged, and
//! nobody has to keep it. As a rule that is so only while a slow flush of the engine's own is under way: the engine begins one
//! when the table is half full, and half of it has places.

use dst_buf::{Pool, Shared, ALIGNMENT};
use dst_engine::client::Record;
use dst_proto::{Holder, OpFlags};

use crate::driver::Driver;
use crate::record::{self, About, Mapped, RecordFile, Shape};
use crate::{OpenError, Options};

/// Free buffers that a pool keeps, bytes.
const CACHED: usize = 64 << 20;

/// Free buffers that a pool keeps besides a reserve, bytes.
const CACHED_BESIDES: usize = 8 << 20;

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
            false => bytes.max(entries as u64 * ALIGNMENT as u64),
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
                    .next_multiple_of(ALIGNMENT),
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
    /// The bytes and flags with which a write goes to the engine, so that it can be kept once it is acknowledged.
    pub(crate) fn keepable(&mut self, mut bytes: Shared, flags: OpFlags) -> (Shared, OpFlags) {
        // A small write in a large buffer would hold all of it for as long as it is retained.
        if bytes.held_bytes() > bytes.len().saturating_mul(2).max(ALIGNMENT) {
            bytes = self.pool.copy_of(&bytes).share();
        }
        let Some(keeping) = &self.keeping else {
            return (bytes, flags);
        };
        let passing = flags.contains(OpFlags::FUA) || !self.engine.retained.is_enabled();
        if passing || self.pool.place(&bytes).is_some() {
            return (bytes, flags);
        }
        if !keeping.released.is_empty() {
            self.keep_record();
        }
        match self.pool.get_reserved(bytes.len()) {
            Some(mut placed) => {
                placed.copy_from_slice(&bytes);
                (placed.share(), flags)
            }
            None => (bytes, flags.with(OpFlags::FUA, true)),
        }
    }

    /// A write is acknowledged and not durable: its bytes stay.
    pub(crate) fn keep(&mut self, index: usize, bytes: Shared) {
        if let Some(keeping) = &mut self.keeping {
            let place = self.pool.place(&bytes);
            keeping.places[index] = place.expect("a write without a place is FUA") as u64;
        }
        self.kept[index] = Some(bytes);
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Pages of the record for payload: as many as entries, and none for requests in flight.
    const PAGES: usize = 1024;

    /// A driver that keeps a record, and never meets a server.
    fn driver(dir: &std::path::Path, retain: Option<u64>) -> Driver {
        let endpoint = "dst+unix:///nowhere?export=disk".parse().unwrap();
        let mut options = Options::new(endpoint);
        options.retain = retain;
        options.reserve = Some(if retain.is_some() { 0 } else { 4096 });
        options.record = Some(dir.to_owned());
        let transport = options.endpoint.transport();
        let driver = Driver::new(options, transport).unwrap();
        assert!(driver.is_recorded(), "{:?}", driver.unrecorded());
        driver
    }

    fn dir() -> std::path::PathBuf {
        let name = format!("dst-keeping-{}", dst_ids::hex(&dst_ids::random::<8>()));
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir(&dir).unwrap();
        dir
    }

    fn remove(dir: &std::path::Path) {
        record::remove(dir).unwrap();
        std::fs::remove_dir(dir).unwrap();
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_write_has_a_place_in_the_record_or_need_not_be_kept(
            writes in proptest::collection::vec((1..40 * ALIGNMENT, any::<bool>(), 0_usize..4), 1..200),
        ) {
            let dir = dir();
            let mut driver = driver(&dir, Some((PAGES * ALIGNMENT) as u64));
            let elsewhere = Pool::new(0);
            let mut held = std::collections::VecDeque::<Shared>::new();
            for (at, (len, ours, gone)) in writes.into_iter().enumerate() {
                let pool = if ours { driver.pool() } else { &elsewhere };
                let mut bytes = pool.get(len);
                bytes.fill(at as u8);
                let room = driver.pool().get_reserved(len).is_some();
                let (kept, flags) = driver.keepable(bytes.share(), OpFlags::NONE);
                prop_assert!(kept.iter().all(|byte| *byte == at as u8) && kept.len() == len);
                let fua = flags.contains(OpFlags::FUA);
                prop_assert_eq!(driver.pool().place(&kept).is_none(), fua);
                // A write that has found room goes as it came.
                prop_assert!(!(room && fua));
                held.push_back(kept);
                held.drain(..gone.min(held.len()));
            }
            remove(&dir);
        }
    }

    #[test]
    fn only_what_would_be_kept_needs_a_place() {
        let dir = dir();
        let mut driver = driver(&dir, None);
        let elsewhere = Pool::new(0);
        let _all = driver.pool().get(ALIGNMENT);
        // Without retention nothing is kept.
        let (_, flags) = driver.keepable(elsewhere.get(512).share(), OpFlags::NONE);
        assert_eq!(flags, OpFlags::NONE);
        remove(&dir);
    }

    #[test]
    fn what_is_durable_makes_room_at_once() {
        let dir = dir();
        let mut driver = driver(&dir, Some((PAGES * ALIGNMENT) as u64));
        let all = driver.pool().get(PAGES * ALIGNMENT).share();
        // As the flush has been answered, and nothing has been told to anyone since.
        let keeping = driver.keeping.as_mut().unwrap();
        keeping.released.push(all);
        let late = Pool::new(0).copy_of(&[7; 512]).share();
        let (kept, flags) = driver.keepable(late, OpFlags::NONE);
        assert_eq!(
            (driver.pool().place(&kept), flags),
            (Some(0), OpFlags::NONE)
        );
        remove(&dir);
    }
}
