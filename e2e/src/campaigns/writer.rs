//! Files that are written and fsynced, with a record of what must be there after a power cut.
//!
//! Per sector two versions are known: the *latest* written and the *durable* one, which was latest when an fsync of the file
//! last returned. The client, whose page cache lives, must always see the latest. The disk alone, right after a power cut,
//! must show for each sector the durable version or a later one, and every file whose creation or replacement was made
//! durable. (The guarantee is about the latter only; that nothing at all is lost is retention at work.)

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::{bail, Context as _, Result};

use super::content::{look, run, Found, SECTOR};
use crate::direct::Aligned;
use crate::rng::Rng;

/// Sectors that a file may grow to.
const MAX_SECTORS: u64 = 4096;
/// Sectors that one write has at most.
const MAX_RUN: u64 = 96;

/// What is known of one file.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// The number that its sectors carry; a new one when the file is replaced.
    id: u64,
    /// Latest version of each sector, 0: never written.
    latest: Vec<u64>,
    /// What an fsync has made durable.
    durable: Option<Durable>,
}

#[derive(Clone, Debug)]
struct Durable {
    id: u64,
    versions: Vec<u64>,
}

impl Model {
    /// For a file that is being worked on: it may have been replaced since, by files not known yet.
    pub fn with_any_successor(mut self) -> Model {
        self.id = u64::MAX;
        self
    }
}

/// One thread's files.
pub struct Writer {
    dir: PathBuf,
    /// One per file `fN`.
    models: Vec<Mutex<Model>>,
    /// Completed fsyncs.
    pub fsyncs: AtomicU64,
    /// Completed writes.
    pub writes: AtomicU64,
}

fn lock(model: &Mutex<Model>) -> std::sync::MutexGuard<'_, Model> {
    model.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Writer {
    /// For `files` files in a directory that is made.
    ///
    /// # Errors
    /// It can't be made.
    pub fn new(dir: &Path, files: usize) -> Result<Writer> {
        std::fs::create_dir(dir).with_context(|| format!("can't make {}", dir.display()))?;
        File::open(dir)?.sync_all()?;
        Ok(Writer {
            dir: dir.to_owned(),
            models: (0..files).map(|_| Mutex::default()).collect(),
            fsyncs: AtomicU64::new(0),
            writes: AtomicU64::new(0),
        })
    }

    fn path(&self, at: usize) -> PathBuf {
        self.dir.join(format!("f{at}"))
    }

    /// Writes until told to stop, then makes everything durable.
    ///
    /// # Errors
    /// Any I/O error: there must be none.
    pub fn work(&self, rng: &mut Rng, stop: &AtomicBool) -> Result<()> {
        let mut version = 1;
        for at in 0..self.models.len() {
            self.replace(at, rng, &mut version)?;
        }
        while !stop.load(Ordering::Relaxed) {
            let at = rng.below(0..self.models.len() as u64) as usize;
            match rng.below(0..100) {
                0..=2 => self.replace(at, rng, &mut version)?,
                3..=10 => self.fsync(at, rng.one_in(2))?,
                11..=40 => self.write(at, rng, &mut version, true)?,
                _ => self.write(at, rng, &mut version, false)?,
            }
        }
        for at in 0..self.models.len() {
            self.fsync(at, true)?;
        }
        Ok(())
    }

    /// Overwrites or appends, through the page cache or directly.
    fn write(&self, at: usize, rng: &mut Rng, version: &mut u64, direct: bool) -> Result<()> {
        let mut model = lock(&self.models[at]);
        let len = model.latest.len() as u64;
        // Direct I/O in units of a page: so it is on every file system.
        let unit = if direct { 8 } else { 1 };
        let count = rng.below(1..MAX_RUN / unit) * unit;
        let first = rng.below(0..len.min(MAX_SECTORS - MAX_RUN) + 1) / unit * unit;
        let bytes = run(model.id, first, count, *version);
        // Noted first: from here on the disk may show it.
        let end = (first + count) as usize;
        if model.latest.len() < end {
            model.latest.resize(end, 0);
        }
        model.latest[first as usize..end].fill(*version);
        *version += 1;
        let mut options = OpenOptions::new();
        options.write(true);
        let offset = first * SECTOR as u64;
        if direct {
            options.custom_flags(rustix::fs::OFlags::DIRECT.bits() as i32);
            options
                .open(self.path(at))?
                .write_all_at(&Aligned::of(&bytes), offset)
        } else {
            options.open(self.path(at))?.write_all_at(&bytes, offset)
        }
        .with_context(|| format!("writing {}", self.path(at).display()))?;
        self.writes.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn fsync(&self, at: usize, with_metadata: bool) -> Result<()> {
        let mut model = lock(&self.models[at]);
        let file = File::open(self.path(at))?;
        // fdatasync has to bring a new size with it, too.
        if with_metadata {
            file.sync_all()
        } else {
            file.sync_data()
        }
        .with_context(|| format!("fsync of {}", self.path(at).display()))?;
        self.note_durable(&mut model);
        Ok(())
    }

    fn note_durable(&self, model: &mut Model) {
        model.durable = Some(Durable {
            id: model.id,
            versions: model.latest.clone(),
        });
        self.fsyncs.fetch_add(1, Ordering::Relaxed);
    }

    /// A new file in place of the old one, as editors and databases do it: written aside, fsynced, renamed, and the directory
    /// fsynced.
    fn replace(&self, at: usize, rng: &mut Rng, version: &mut u64) -> Result<()> {
        let mut model = lock(&self.models[at]);
        let id = model.id + 1;
        let count = rng.below(1..MAX_RUN);
        let aside = self.dir.join(format!("f{at}.new"));
        let file = File::create(&aside)?;
        file.write_all_at(&run(id, 0, count, *version), 0)?;
        file.sync_all()
            .with_context(|| format!("fsync of {}", aside.display()))?;
        model.id = id;
        model.latest = vec![*version; count as usize];
        *version += 1;
        std::fs::rename(&aside, self.path(at))?;
        File::open(&self.dir)?
            .sync_all()
            .context("fsync of the directory")?;
        self.note_durable(&mut model);
        Ok(())
    }

    /// What is known now. A file that is being fsynced (during an outage that may take long) is waited for only if `wait`;
    /// otherwise it is not in the list.
    pub fn models(&self, wait: bool) -> Vec<Option<Model>> {
        self.models
            .iter()
            .map(|model| match wait {
                true => Some(lock(model).clone()),
                false => model.try_lock().ok().map(|model| model.clone()),
            })
            .collect()
    }

    /// The client's view: every file of `dir` shows exactly the latest versions. How many sectors were looked at.
    ///
    /// # Errors
    /// Says which sector is wrong.
    pub fn check_latest(&self, dir: &Path) -> Result<u64> {
        let mut checked = 0;
        for (at, model) in self.models.iter().enumerate() {
            let model = lock(model);
            let path = dir.join(format!("f{at}"));
            let bytes = std::fs::read(&path).with_context(|| path.display().to_string())?;
            if bytes.len() != model.latest.len() * SECTOR {
                bail!(
                    "{} has {} bytes instead of {}",
                    path.display(),
                    bytes.len(),
                    model.latest.len() * SECTOR
                );
            }
            for (index, sector) in bytes.chunks_exact(SECTOR).enumerate() {
                let wanted = model.latest[index];
                let right = match look(sector) {
                    Found::Zeroes => wanted == 0,
                    Found::Sector(label) => {
                        (label.file, label.index, label.version) == (model.id, index as u64, wanted)
                    }
                    Found::Garbage => false,
                };
                if !right {
                    bail!(
                        "{} sector {index}: {:?} instead of version {wanted} of {}",
                        path.display(),
                        look(sector),
                        model.id
                    );
                }
                checked += 1;
            }
        }
        Ok(checked)
    }
}

/// The disk's view after a power cut: `before` was known before the cut, `after` a moment later. Every file that had been made
/// durable is in `dir`, with its durable sectors or later ones. How many durable sectors were looked at.
///
/// # Errors
/// Says what is lost.
pub fn check_durable(dir: &Path, before: &[Option<Model>], after: &[Option<Model>]) -> Result<u64> {
    let mut checked = 0;
    for (at, (before, after)) in before.iter().zip(after).enumerate() {
        let (Some(before), Some(after)) = (before, after) else {
            continue;
        };
        let Some(durable) = &before.durable else {
            continue;
        };
        let path = dir.join(format!("f{at}"));
        let bytes = std::fs::read(&path)
            .with_context(|| format!("{} had been made durable", path.display()))?;
        for (index, wanted) in durable.versions.iter().enumerate() {
            let sector = bytes.get(index * SECTOR..(index + 1) * SECTOR);
            let found = sector.map_or(Found::Zeroes, look);
            let fine = match found {
                Found::Sector(label) if label.file == durable.id => {
                    label.index == index as u64 && label.version >= *wanted
                }
                // Replaced since, perhaps by a shorter file.
                Found::Sector(label) => {
                    label.file > durable.id && label.file <= after.id && label.index == index as u64
                }
                Found::Zeroes => *wanted == 0 || after.id > durable.id,
                Found::Garbage => false,
            };
            if !fine {
                bail!(
                    "{} sector {index}: {found:?} instead of version {wanted} of {} (or later)",
                    path.display(),
                    durable.id
                );
            }
            checked += 1;
        }
    }
    Ok(checked)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writer(dir: &Path) -> Writer {
        let writer = Writer::new(&dir.join("w"), 3).unwrap();
        let mut rng = Rng::new(5);
        let mut version = 1;
        for at in 0..3 {
            writer.replace(at, &mut rng, &mut version).unwrap();
            writer.write(at, &mut rng, &mut version, false).unwrap();
            writer.fsync(at, false).unwrap();
            writer.write(at, &mut rng, &mut version, false).unwrap();
        }
        writer
    }

    #[test]
    fn what_was_written_is_found_and_a_lost_sector_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let writer = writer(dir.path());
        let files = dir.path().join("w");
        assert!(writer.check_latest(&files).unwrap() > 3);
        let before = writer.models(true);
        assert!(check_durable(&files, &before, &writer.models(true)).unwrap() > 0);
        let file = OpenOptions::new()
            .write(true)
            .open(files.join("f1"))
            .unwrap();
        file.write_all_at(&[0; SECTOR], 0).unwrap();
        assert!(writer.check_latest(&files).is_err());
        assert!(check_durable(&files, &before, &writer.models(true)).is_err());
    }

    #[test]
    fn a_file_that_is_gone_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let writer = writer(dir.path());
        let before = writer.models(true);
        std::fs::remove_file(dir.path().join("w/f2")).unwrap();
        assert!(check_durable(&dir.path().join("w"), &before, &before).is_err());
    }
}
