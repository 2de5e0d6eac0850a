//! A tree of files whose every byte follows from a seed: it can be written, and later verified with nothing to compare to.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dst_store::dice::Dice;

/// Bytes made, written or compared at a time.
const CHUNK: usize = 128 * 1024;

/// After so many bytes what was written is made durable, so that the disk is at work all the time and not only at the end.
const SYNC_EVERY: u64 = 4 << 20;

/// Directories; files go round them.
const DIRECTORIES: u64 = 24;

/// What `mkfs` makes by itself.
const NOT_OURS: &str = "lost+found";

/// One file.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Planned {
    path: PathBuf,
    size: u64,
    seed: u64,
}

/// The tree as it is to be.
#[derive(Clone, Debug)]
pub struct Tree {
    files: Vec<Planned>,
    bytes: u64,
}

/// How far writing or verifying is, and whether it should stop.
#[derive(Debug, Default)]
pub struct Progress {
    /// Bytes done.
    pub bytes: AtomicU64,
    /// Set to make it end with an error soon.
    pub stop: AtomicBool,
}

impl Progress {
    fn add(&self, bytes: usize) -> io::Result<()> {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        match self.stop.load(Ordering::Relaxed) {
            false => Ok(()),
            true => Err(io::Error::other("stopped")),
        }
    }
}

impl Tree {
    /// A tree of about `bytes` bytes: many small files, some large, one empty.
    #[must_use]
    pub fn plan(seed: u64, bytes: u64) -> Self {
        let mut dice = Dice::new(seed);
        let mut tree = Self {
            files: Vec::new(),
            bytes: 0,
        };
        while tree.bytes < bytes {
            let number = tree.files.len() as u64;
            let size = match number % 16 {
                0 => number / 16,
                1..=12 => dice.below(64 << 10),
                13 | 14 => dice.below(512 << 10),
                _ => dice.below(4 << 20),
            };
            let size = size.min(bytes - tree.bytes);
            let (directory, sub) = (number % DIRECTORIES, number / DIRECTORIES % 3);
            tree.files.push(Planned {
                path: PathBuf::from(format!("d{directory:02}/{sub}/file-{number:04}")),
                size,
                seed: dice.next_u64(),
            });
            tree.bytes += size;
        }
        tree
    }

    /// How many files.
    #[must_use]
    pub fn files(&self) -> usize {
        self.files.len()
    }

    /// How many bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Writes it under `root`, with `fsync` now and then.
    ///
    /// # Errors
    /// What failed, with the path.
    pub fn write(&self, root: &Path, progress: &Progress) -> io::Result<()> {
        let mut buffer = vec![0; CHUNK];
        let mut unsynced = 0;
        for planned in &self.files {
            let path = root.join(&planned.path);
            let with_path = |error| named(&path, error);
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent).map_err(with_path)?;
            }
            let mut file = File::create(&path).map_err(with_path)?;
            let mut content = Content::new(planned);
            while let Some(chunk) = content.next(&mut buffer) {
                file.write_all(chunk).map_err(with_path)?;
                progress.add(chunk.len())?;
                unsynced += chunk.len() as u64;
                if unsynced >= SYNC_EVERY {
                    file.sync_all().map_err(with_path)?;
                    unsynced = 0;
                }
            }
        }
        Ok(())
    }

    /// Reads all of it under `root`: every byte is as written, nothing is missing, and there is nothing else.
    ///
    /// # Errors
    /// `InvalidData` for the first difference; or what failed.
    pub fn verify(&self, root: &Path, progress: &Progress) -> io::Result<()> {
        let (mut expected, mut found) = (vec![0; CHUNK], vec![0; CHUNK]);
        for planned in &self.files {
            let path = root.join(&planned.path);
            let with_path = |error| named(&path, error);
            let mut file = File::open(&path).map_err(with_path)?;
            let size = file.metadata().map_err(with_path)?.len();
            if size != planned.size {
                let what = format!("it has {size} bytes, {} were written", planned.size);
                return Err(named(&path, invalid(what)));
            }
            let mut content = Content::new(planned);
            let mut offset = 0;
            while let Some(chunk) = content.next(&mut expected) {
                let read = &mut found[..chunk.len()];
                file.read_exact(read).map_err(with_path)?;
                if read != chunk {
                    let at = read.iter().zip(chunk).take_while(|(a, b)| a == b).count();
                    let what = format!("wrong content at byte {}", offset + at);
                    return Err(named(&path, invalid(what)));
                }
                offset += chunk.len();
                progress.add(chunk.len())?;
            }
        }
        self.verify_names(root)
    }

    fn verify_names(&self, root: &Path) -> io::Result<()> {
        let wanted: BTreeSet<PathBuf> = self.files.iter().map(|file| file.path.clone()).collect();
        let mut directories = vec![PathBuf::new()];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(root.join(&directory))? {
                let entry = entry?;
                let path = directory.join(entry.file_name());
                if path == Path::new(NOT_OURS) {
                    continue;
                }
                if entry.file_type()?.is_dir() {
                    directories.push(path);
                } else if !wanted.contains(&path) {
                    return Err(named(&path, invalid("nobody wrote this file".to_owned())));
                }
            }
        }
        Ok(())
    }
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn named(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// The bytes of one file, in order.
struct Content {
    dice: Dice,
    left: u64,
}

impl Content {
    fn new(planned: &Planned) -> Self {
        Self {
            dice: Dice::new(planned.seed),
            left: planned.size,
        }
    }

    /// The next bytes, in `buffer`, whose length is a multiple of 8; `None` at the end.
    fn next<'a>(&mut self, buffer: &'a mut [u8]) -> Option<&'a [u8]> {
        let length = buffer
            .len()
            .min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if length == 0 {
            return None;
        }
        for word in buffer[..length].chunks_mut(8) {
            let bytes = self.dice.next_u64().to_le_bytes();
            word.copy_from_slice(&bytes[..word.len()]);
        }
        self.left -= length as u64;
        Some(&buffer[..length])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 3 << 20;

    fn written() -> (tempfile::TempDir, Tree) {
        let dir = tempfile::tempdir().unwrap();
        let tree = Tree::plan(7, SIZE);
        let progress = Progress::default();
        tree.write(dir.path(), &progress).unwrap();
        assert_eq!(progress.bytes.into_inner(), SIZE);
        (dir, tree)
    }

    fn difference(dir: &Path, tree: &Tree) -> String {
        let error = tree.verify(dir, &Progress::default()).unwrap_err();
        error.to_string()
    }

    #[test]
    fn a_tree_has_the_size_asked_for_and_follows_from_its_seed() {
        let tree = Tree::plan(7, SIZE);
        assert_eq!(tree.bytes(), SIZE);
        assert!(tree.files() > 10);
        assert!(tree.files.iter().any(|file| file.size == 0));
        assert_eq!(tree.files, Tree::plan(7, SIZE).files);
        assert_ne!(tree.files, Tree::plan(8, SIZE).files);
    }

    #[test]
    fn what_was_written_verifies() {
        let (dir, tree) = written();
        fs::create_dir(dir.path().join(NOT_OURS)).unwrap();
        tree.verify(dir.path(), &Progress::default()).unwrap();
    }

    #[test]
    fn a_flipped_bit_a_missing_byte_a_lost_and_a_strange_file_are_found() {
        let (dir, tree) = written();
        let planned = tree.files.iter().find(|file| file.size > 300_000).unwrap();
        let path = dir.path().join(&planned.path);
        let good = fs::read(&path).unwrap();

        let mut bad = good.clone();
        bad[200_000] ^= 1;
        fs::write(&path, bad).unwrap();
        assert!(difference(dir.path(), &tree).contains("byte 200000"));

        fs::write(&path, &good[1..]).unwrap();
        assert!(difference(dir.path(), &tree).contains("bytes"));

        fs::remove_file(&path).unwrap();
        assert!(tree.verify(dir.path(), &Progress::default()).is_err());

        fs::write(&path, &good).unwrap();
        fs::write(dir.path().join("stranger"), "x").unwrap();
        assert!(difference(dir.path(), &tree).contains("nobody wrote"));
    }

    #[test]
    fn writing_and_verifying_can_be_stopped() {
        let (dir, tree) = written();
        let progress = Progress::default();
        progress.stop.store(true, Ordering::Relaxed);
        assert!(tree.verify(dir.path(), &progress).is_err());
        assert!(tree.write(dir.path(), &progress).is_err());
    }
}
