//! The record of a device in a file that outlives its process: what [`dst_engine::client::Record`] keeps, and the bytes of
//! retained writes.
//!
//! ```text
//! | header, one page | cells of the engine's record, to a whole page | payload: the pool of buffers for writes |
//! ```
//!
//! The file is on a tmpfs, so that it is memory and goes with a reboot; allocated in full when it is made, so that no store
//! finds the tmpfs full (SIGBUS); readable for its owner only, since it has the session's secret and the user's data. Where the
//! device's directory is not on a tmpfs, or that one has little room, the file is in `/dev/shm`, and a symbolic link leads there.
//!
//! # Rules
//!
//! * The header is written once, its magic last, under another name; the file appears whole.
//! * Who may open it holds the lock of the device's directory, and so knows that the process before is dead.
//! * It is refused after a reboot (boot id), in another layout, and where its sizes are not its length.
//! * Stores are atomic and in the engine's order; the bytes of a write are in the payload before the engine's record names
//!   their place. It is safe against SIGKILL between any two stores, not against power loss of the machine.

mod mapping;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{symlink, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::Arc;

use dst_engine::client::{Cells, Record, Unfit, Words};
use dst_proto::Holder;
use rustix::fs::{fallocate, fstatfs, FallocateFlags};

pub(crate) use mapping::Mapping;

use dst_ids::{hex, random};

/// Name of the file, or of the link to it, in a device's directory.
pub const FILE: &str = "record";

/// Where the file is if the device's directory is not on a tmpfs.
const SHARED_MEMORY: &str = "/dev/shm";

/// `f_type` of a tmpfs (linux/magic.h).
const TMPFS_MAGIC: u64 = 0x0102_1994;

const PAGE: usize = 4096;
const MAGIC: u64 = u64::from_le_bytes(*b"DSTAGENT");
/// Raised with every change of what the file holds where.
const VERSION: u64 = 1;

/// Longest URL, bytes.
const LONGEST_URL: usize = 2048;

/// Flags of the header.
const INSECURE: u64 = 1;
const READ_ONLY: u64 = 2;

// Cells of the header.
const AT_MAGIC: usize = 0;
const AT_VERSION: usize = 1;
const AT_BOOT: usize = 2;
const AT_SHAPE: usize = 4;
const AT_PAYLOAD: usize = 5;
const AT_URL_LEN: usize = 6;
const AT_FLAGS: usize = 7;
const AT_URL: usize = 8;

/// Sizes of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Slots of the session.
    pub slots: u16,
    /// Entries of the retention.
    pub entries: u32,
    /// Bytes for payload, a multiple of the page size.
    pub payload: usize,
}

impl Shape {
    fn cells(&self) -> usize {
        Record::<Mapped>::size(self.slots, self.entries)
    }

    /// Where the payload begins.
    fn payload_at(&self) -> usize {
        PAGE + (self.cells() * 8).next_multiple_of(PAGE)
    }

    fn file_len(&self) -> usize {
        self.payload_at() + self.payload
    }
}

/// What a successor has to know besides the session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    /// Where the server is, and which export is meant.
    pub url: String,
    /// Plaintext was allowed beyond this machine.
    pub insecure: bool,
    /// Attached to read only.
    pub read_only: bool,
}

/// Why a record can't be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file can't be read.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Another version of this program has made it.
    #[error("it has layout {found}, and this version of dst knows layout {VERSION}")]
    Layout {
        /// The layout.
        found: u64,
    },
    /// It was made before the machine was started anew.
    #[error("it is from before the last reboot of this machine")]
    Rebooted,
    /// It is another user's, or others may write to it: not to be trusted.
    #[error("it belongs to another user, or others may write to it")]
    Foreign,
    /// It contradicts itself.
    #[error("it is damaged")]
    Damaged,
}

/// A record in a file. The file stays until [`remove`].
#[derive(Debug, Clone)]
pub struct RecordFile {
    map: Arc<Mapping>,
    shape: Shape,
    about: About,
}

impl RecordFile {
    /// Makes a new, empty record for the device whose directory is `dir`, in place of any that is there.
    ///
    /// # Errors
    /// There is not so much memory, or the files can't be made.
    pub fn create(dir: &Path, about: &About, holder: &Holder, shape: Shape) -> io::Result<Self> {
        if about.url.len() > LONGEST_URL {
            return Err(io::Error::other("the URL is too long for a record"));
        }
        let len = shape.file_len() as u64;
        if !is_tmpfs(dir)? {
            return Self::create_at(true, dir, about, holder, shape);
        }
        // A small tmpfs has others to serve too.
        let stat = fstatfs(File::open(dir)?)?;
        let free = (stat.f_bavail as u64).saturating_mul(stat.f_bsize as u64);
        let beside = free / 2 < len;
        // Each is better than none.
        Self::create_at(beside, dir, about, holder, shape)
            .or_else(|_| Self::create_at(!beside, dir, about, holder, shape))
    }

    /// In `dir`, or `beside` it in shared memory.
    fn create_at(
        beside: bool,
        dir: &Path,
        about: &About,
        holder: &Holder,
        shape: Shape,
    ) -> io::Result<Self> {
        remove(dir)?;
        let path = if !beside {
            dir.join("record.new")
        } else {
            let random = hex(&random::<16>());
            let path = Path::new(SHARED_MEMORY).join(format!("dst-record-{random}"));
            symlink(&path, dir.join(FILE))?;
            path
        };
        let made = Self::make(&path, about, holder, shape);
        let linked = made.and_then(|made| {
            if path.starts_with(dir) {
                fs::rename(&path, dir.join(FILE))?;
            }
            Ok(made)
        });
        if linked.is_err() {
            // What is not there need not be removed.
            let _ = fs::remove_file(&path);
            let _ = remove(dir);
        }
        linked
    }

    fn make(path: &Path, about: &About, holder: &Holder, shape: Shape) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        if !is_tmpfs(path)? {
            return Err(io::Error::other("there is no tmpfs for it"));
        }
        fallocate(&file, FallocateFlags::empty(), 0, shape.file_len() as u64)?;
        let made = Self {
            map: Arc::new(Mapping::new(&file, shape.file_len())?),
            shape,
            about: about.clone(),
        };
        made.new_record(holder)
            .ok_or_else(|| io::Error::other("no room for the record"))?;
        let header = made.map.cells(0, PAGE / 8);
        let put = |at: usize, value: u64| header[at].store(value, Ordering::Relaxed);
        put(AT_VERSION, VERSION);
        for (at, part) in holder.boot.chunks_exact(8).enumerate() {
            put(AT_BOOT + at, word(part));
        }
        put(
            AT_SHAPE,
            u64::from(shape.slots) << 32 | u64::from(shape.entries),
        );
        put(AT_PAYLOAD, shape.payload as u64);
        let flag = |set: bool, flag: u64| if set { flag } else { 0 };
        put(
            AT_FLAGS,
            flag(about.insecure, INSECURE) | flag(about.read_only, READ_ONLY),
        );
        put(AT_URL_LEN, about.url.len() as u64);
        for (at, part) in about.url.as_bytes().chunks(8).enumerate() {
            put(AT_URL + at, word(part));
        }
        header[AT_MAGIC].store(MAGIC, Ordering::Release);
        Ok(made)
    }

    /// The record that a dead process has left in `dir`; `boot` is the id of this boot.
    ///
    /// # Errors
    /// It is not there (`NotFound`), can't be read, or is of no use any more.
    pub fn open(dir: &Path, boot: &[u8; 16]) -> Result<Self, RecordError> {
        let path = dir.join(FILE);
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
        let meta = file.metadata()?;
        // What others could have made or changed is none.
        let ours = meta.uid() == rustix::process::geteuid().as_raw() && meta.mode() & 0o077 == 0;
        let len = usize::try_from(meta.len()).map_err(|_| RecordError::Damaged)?;
        if !ours {
            return Err(RecordError::Foreign);
        }
        if len < PAGE || !is_tmpfs_file(&file)? {
            return Err(RecordError::Damaged);
        }
        let map = Arc::new(Mapping::new(&file, len)?);
        let header = map.cells(0, PAGE / 8);
        let get = |at: usize| header[at].load(Ordering::Acquire);
        if get(AT_MAGIC) != MAGIC {
            return Err(RecordError::Damaged);
        }
        if get(AT_VERSION) != VERSION {
            return Err(RecordError::Layout {
                found: get(AT_VERSION),
            });
        }
        let same_boot = boot
            .chunks_exact(8)
            .enumerate()
            .all(|(at, part)| get(AT_BOOT + at) == word(part));
        if !same_boot {
            return Err(RecordError::Rebooted);
        }
        let counts = get(AT_SHAPE);
        let shape = Shape {
            slots: u16::try_from(counts >> 32).map_err(|_| RecordError::Damaged)?,
            entries: (counts & 0xffff_ffff) as u32,
            payload: usize::try_from(get(AT_PAYLOAD)).map_err(|_| RecordError::Damaged)?,
        };
        let whole = shape.payload_at().checked_add(shape.payload) == Some(len);
        let url_len = usize::try_from(get(AT_URL_LEN)).unwrap_or(usize::MAX);
        if !whole || url_len > LONGEST_URL {
            return Err(RecordError::Damaged);
        }
        let url: Vec<u8> = (AT_URL..)
            .take(url_len.div_ceil(8))
            .flat_map(|at| get(at).to_le_bytes())
            .take(url_len)
            .collect();
        let url = String::from_utf8(url).map_err(|_| RecordError::Damaged)?;
        let about = About {
            url,
            insecure: get(AT_FLAGS) & INSECURE != 0,
            read_only: get(AT_FLAGS) & READ_ONLY != 0,
        };
        Ok(Self {
            map: map.clone(),
            shape,
            about,
        })
    }

    /// Sizes.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// What it is a record of.
    pub fn about(&self) -> &About {
        &self.about
    }

    /// The memory for payload, for a pool. Nobody else may use it: there is one pool, in the process that holds the lock.
    pub(crate) fn region(&self) -> Box<dyn dst_buf::Region> {
        Box::new(Payload(self.clone()))
    }

    fn cells(&self) -> Mapped {
        Mapped {
            map: self.map.clone(),
            count: self.shape.cells(),
        }
    }

    /// An empty record of the engine's.
    fn new_record(&self, holder: &Holder) -> Option<Record<Mapped>> {
        Record::make(self.cells(), self.shape.slots, self.shape.entries, holder)
    }

    /// The engine's record.
    ///
    /// # Errors
    /// Nobody has made one, or it does not fit the file.
    pub fn record(&self) -> Result<Record<Mapped>, Unfit> {
        Record::open(self.cells())
    }

    /// The cells of the engine's record as they are at this moment.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let cells = self.cells();
        Snapshot((0..cells.count()).map(|at| cells.load(at)).collect())
    }
}

/// Removes the record of the device whose directory is `dir`, if there is one.
///
/// # Errors
/// It can't be removed.
pub fn remove(dir: &Path) -> io::Result<()> {
    let path = dir.join(FILE);
    let mut paths = vec![path.clone(), dir.join("record.new")];
    if let Ok(target) = fs::read_link(&path) {
        if is_ours(&target) {
            paths.insert(0, target);
        }
    }
    for path in paths {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Whether a link leads to where records are made.
fn is_ours(target: &Path) -> bool {
    let name = target.file_name().and_then(|name| name.to_str());
    target.parent() == Some(Path::new(SHARED_MEMORY))
        && name.is_some_and(|name| name.starts_with("dst-record-"))
}

fn is_tmpfs(path: &Path) -> io::Result<bool> {
    is_tmpfs_file(&File::open(path)?)
}

fn is_tmpfs_file(file: &File) -> io::Result<bool> {
    Ok(fstatfs(file)?.f_type as u64 == TMPFS_MAGIC)
}

fn word(part: &[u8]) -> u64 {
    let mut bytes = [0; 8];
    bytes[..part.len()].copy_from_slice(part);
    u64::from_le_bytes(bytes)
}

/// The payload of a record as memory for a pool.
struct Payload(RecordFile);

// SAFETY: the range begins at a page of the mapping, lies within it (`Shape::file_len`), and the mapping lives as long as this
// refers to it. One pool is made of it by the process that holds the lock of the directory; others do so only when that one is
// dead.
unsafe impl dst_buf::Region for Payload {
    fn start(&self) -> std::ptr::NonNull<u8> {
        // SAFETY: within the mapping.
        unsafe { self.0.map.start().add(self.0.shape.payload_at()) }
    }

    fn len(&self) -> usize {
        self.0.shape.payload
    }
}

/// The cells of a record in a mapping.
#[derive(Debug)]
pub struct Mapped {
    map: Arc<Mapping>,
    count: usize,
}

impl Mapped {
    fn words(&self) -> Words<'_> {
        Words(self.map.cells(PAGE, self.count))
    }
}

impl Cells for Mapped {
    fn count(&self) -> usize {
        self.words().count()
    }

    fn load(&self, at: usize) -> u64 {
        self.words().load(at)
    }

    fn store(&mut self, at: usize, value: u64) {
        self.words().store(at, value);
    }
}

/// Cells as they were once.
#[derive(Debug)]
pub(crate) struct Snapshot(Vec<u64>);

impl Cells for Snapshot {
    fn count(&self) -> usize {
        self.0.len()
    }

    fn load(&self, at: usize) -> u64 {
        self.0.get(at).copied().unwrap_or(0)
    }

    fn store(&mut self, at: usize, value: u64) {
        if let Some(cell) = self.0.get_mut(at) {
            *cell = value;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    const BOOT: [u8; 16] = [7; 16];
    const SHAPE: Shape = Shape {
        slots: 17,
        entries: 64,
        payload: 1 << 20,
    };

    fn holder() -> Holder {
        Holder {
            identity: [1; 16],
            boot: BOOT,
            instance: [3; 16],
        }
    }

    fn about() -> About {
        About {
            url: "dst://storage:7789/a-disk".into(),
            insecure: true,
            read_only: false,
        }
    }

    fn dir() -> PathBuf {
        let dir = std::env::temp_dir().join(format!("dst-record-{}", hex(&random::<8>())));
        fs::create_dir(&dir).unwrap();
        dir
    }

    #[test]
    fn what_one_makes_another_finds_and_nothing_is_left() {
        for dir in [dir(), {
            let dir = Path::new(SHARED_MEMORY).join(hex(&random::<8>()));
            fs::create_dir(&dir).unwrap();
            dir
        }] {
            let about = about();
            let made = RecordFile::create(&dir, &about, &holder(), SHAPE).unwrap();
            let target = fs::canonicalize(dir.join(FILE)).unwrap();
            let meta = fs::metadata(&target).unwrap();
            assert_eq!(meta.mode() & 0o777, 0o600);
            // Allocated, every byte.
            assert!(meta.blocks() * 512 >= meta.len());
            drop(made);
            let found = RecordFile::open(&dir, &BOOT).unwrap();
            assert_eq!((found.about(), found.shape()), (&about, SHAPE));
            assert_eq!(found.record().unwrap().holder(), holder());
            // A new one takes its place.
            RecordFile::create(&dir, &about, &holder(), SHAPE).unwrap();
            remove(&dir).unwrap();
            assert!(!target.exists());
            fs::remove_dir(&dir).unwrap();
        }
    }

    #[test]
    fn what_is_of_no_use_is_refused_and_says_why() {
        let dir = dir();
        let missing = RecordFile::open(&dir, &BOOT).unwrap_err();
        assert!(
            matches!(missing, RecordError::Io(error) if error.kind() == io::ErrorKind::NotFound)
        );
        let made = RecordFile::create(&dir, &about(), &holder(), SHAPE).unwrap();
        let rebooted = RecordFile::open(&dir, &[8; 16]).unwrap_err();
        assert!(matches!(rebooted, RecordError::Rebooted));
        let header = made.map.cells(0, PAGE / 8);
        header[AT_PAYLOAD].store(4096, Ordering::Relaxed);
        let damaged = RecordFile::open(&dir, &BOOT).unwrap_err();
        assert!(matches!(damaged, RecordError::Damaged));
        header[AT_VERSION].store(2, Ordering::Relaxed);
        let other = RecordFile::open(&dir, &BOOT).unwrap_err();
        assert!(matches!(other, RecordError::Layout { found: 2 }));
        remove(&dir).unwrap();
        fs::remove_dir(&dir).unwrap();
    }

    #[test]
    fn a_file_that_others_may_write_is_not_trusted() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = dir();
        RecordFile::create(&dir, &about(), &holder(), SHAPE).unwrap();
        let file = fs::canonicalize(dir.join(FILE)).unwrap();
        fs::set_permissions(file, fs::Permissions::from_mode(0o666)).unwrap();
        let refused = RecordFile::open(&dir, &BOOT).unwrap_err();
        assert!(matches!(refused, RecordError::Foreign));
        remove(&dir).unwrap();
        fs::remove_dir(&dir).unwrap();
    }
}
