//! Which export a file or device is, and whether it is still in the state that a former server process left it in.
//!
//! A regular file carries its id in itself, as a random tag in the extended attribute `user.dst.id`: it moves with the file,
//! and a file made anew under the same name, which may get the same inode in the same second, has none. Where the file
//! system takes no such attribute the id is kept in the state directory by path and inode, and nothing is continuous.
//! A block device's id comes from its serial number or the like, else from the state directory by its place.

use std::fs;
use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{fgetxattr, fsetxattr, fsync, statx, AtFlags, StatxFlags, XattrFlags};
use rustix::io::Errno;

use crate::backend::Identity;
use crate::create::sync_directory;
use crate::open::{OpenError, OpenOptions};
use crate::sync_mark::{stale, SyncMark};

const TAG: &str = "user.dst.id";

/// Domains of the hashes below; a change of what goes in needs another.
const CONTINUITY: &str = "dst-store 2025 continuity of an incarnation";
const PERMANENT: &str = "dst-store 2025 export id from a permanent device name";
const KEY: &str = "dst-store 2025 key of an id in the state directory";

/// The id of an export and where it is from.
#[derive(Debug)]
pub(crate) struct ExportId {
    pub(crate) id: [u8; 16],
    /// The id is bound to the content so closely that other facts can prove continuity.
    pub(crate) bound: bool,
    pub(crate) note: Option<String>,
}

/// The id of the regular file that is open as `file`. The caller holds the file's lock.
pub(crate) fn of_file(
    file: BorrowedFd<'_>,
    path: &Path,
    inode: u64,
    options: &OpenOptions,
) -> Result<ExportId, OpenError> {
    match file_tag(file) {
        Ok(id) => Ok(ExportId {
            id,
            bound: true,
            note: None,
        }),
        Err(error) => {
            let full = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
            let key = [
                b"file",
                full.as_os_str().as_encoded_bytes(),
                &inode.to_le_bytes(),
            ];
            let why = format!(
                "the export's id can't be kept in the file itself (extended attribute {TAG}: {})",
                io::Error::from(error)
            );
            from_state(&key, &why, options)
        }
    }
}

/// The id of a block device. `permanent` names the medium wherever it is, `position` says where it is.
pub(crate) fn of_device(
    permanent: Option<&str>,
    position: &str,
    options: &OpenOptions,
) -> Result<ExportId, OpenError> {
    if let Some(name) = permanent {
        let hash = hash(PERMANENT, &[name.as_bytes()]);
        let mut id = [0; 16];
        id.copy_from_slice(&hash[..16]);
        return Ok(ExportId {
            id,
            bound: true,
            note: None,
        });
    }
    let key = [b"device", position.as_bytes()];
    let mut found = from_state(&key, "the device has no serial number", options)?;
    // Within a boot `diskseq` tells whether it is still the same disk.
    found.bound = true;
    Ok(found)
}

/// Reads the tag, and makes one, durably, if there is none.
fn file_tag(file: BorrowedFd<'_>) -> Result<[u8; 16], Errno> {
    // One byte more, so that a longer value shows.
    let mut buf = [0u8; 17];
    match fgetxattr(file, TAG, &mut buf) {
        Ok(16) => {
            let mut tag = [0; 16];
            tag.copy_from_slice(&buf[..16]);
            return Ok(tag);
        }
        // Of another length: not ours, so it names nothing.
        Ok(_) | Err(Errno::RANGE | Errno::NODATA) => {}
        Err(error) => return Err(error),
    }
    let mut tag = [0; 16];
    dst_ids::fill(&mut tag)?;
    fsetxattr(file, TAG, &tag, XattrFlags::empty())?;
    fsync(file)?;
    Ok(tag)
}

/// An id kept in the state directory under a key, made if there is none. Without a state directory: a random one.
fn from_state<K: AsRef<[u8]>>(
    key: &[K],
    why: &str,
    options: &OpenOptions,
) -> Result<ExportId, OpenError> {
    let (id, where_kept) = match &options.state_dir {
        Some(directory) => {
            let directory = directory.join("ids");
            let name = dst_ids::hex(&hash(KEY, key)[..16]);
            let id = stored_id(&directory, &name).map_err(OpenError::io(format!(
                "keep the export's id in {}",
                directory.display()
            )))?;
            (id, "it is kept in the state directory instead")
        }
        None => {
            let mut id = [0; 16];
            dst_ids::fill(&mut id).map_err(OpenError::io("get random bytes"))?;
            (
                id,
                "it is a new one at each start, which clients take for another disk",
            )
        }
    };
    Ok(ExportId {
        id,
        bound: false,
        note: Some(format!("{why}; {where_kept}")),
    })
}

fn stored_id(directory: &Path, name: &str) -> io::Result<[u8; 16]> {
    let path = directory.join(name);
    match fs::read(&path) {
        Ok(bytes) if bytes.len() == 16 => {
            let mut id = [0; 16];
            id.copy_from_slice(&bytes);
            return Ok(id);
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut id = [0; 16];
    dst_ids::fill(&mut id)?;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)?;
    let temporary = directory.join(format!("{name}.new"));
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(&id)?;
    file.sync_all()?;
    fs::rename(&temporary, &path)?;
    sync_directory(directory)?;
    Ok(id)
}

/// The identity of an opened export, with what its continuity depends on.
pub(crate) struct Continuity {
    export: ExportId,
    /// Everything but the mark's nonce that must stay equal; `None` where something of it could not be had.
    facts: Option<Vec<Vec<u8>>>,
    mark: Option<SyncMark>,
}

impl Continuity {
    /// `facts` are those of the file or device; the boot id and the sync mark are added here.
    pub(crate) fn new(
        mut export: ExportId,
        facts: Option<Vec<Vec<u8>>>,
        path: &Path,
        inode: u64,
        options: &OpenOptions,
    ) -> Continuity {
        let facts = facts.filter(|_| export.bound).and_then(|mut facts| {
            facts.push(fs::read("/proc/sys/kernel/random/boot_id").ok()?);
            facts.push(export.id.to_vec());
            Some(facts)
        });
        let directory = options.runtime_dir.as_ref().or(options.state_dir.as_ref());
        // A copied file can have the tag of its original, so the inode goes into the name.
        let name = format!("{}{}-{inode}", stale::PREFIX, dst_ids::hex(&export.id));
        let mark = match directory.filter(|_| facts.is_some()) {
            Some(directory) => match SyncMark::open(directory, &name, path) {
                Ok(mark) => {
                    stale::remove_stale(directory);
                    Some(mark)
                }
                Err(error) => {
                    let note = export.note.get_or_insert_default();
                    note.push_str(&format!(
                        "{}can't use {}/{name}: {error}: every start is a new incarnation",
                        if note.is_empty() { "" } else { "; " },
                        directory.display()
                    ));
                    None
                }
            },
            None => None,
        };
        Continuity {
            export,
            facts,
            mark,
        }
    }

    pub(crate) fn identity(&self) -> Identity {
        let continuity = self
            .facts
            .as_ref()
            .zip(self.mark.as_ref())
            .map(|(facts, mark)| {
                let nonce = mark.nonce();
                let all: Vec<&[u8]> = facts
                    .iter()
                    .map(Vec::as_slice)
                    .chain([&nonce[..]])
                    .collect();
                hash(CONTINUITY, &all)
            });
        Identity {
            export_id: self.export.id,
            continuity,
            note: self.export.note.clone(),
        }
    }

    /// Whether a sync of an earlier process may have been cut short or failed. If so, one sync is counted as under way until
    /// [`sync_succeeded`](Continuity::sync_succeeded).
    pub(crate) fn was_cut_short(&self) -> bool {
        self.mark.as_ref().is_none_or(SyncMark::was_cut_short)
    }

    pub(crate) fn sync_begins(&self) {
        if let Some(mark) = &self.mark {
            mark.begin();
        }
    }

    pub(crate) fn sync_succeeded(&self) {
        if let Some(mark) = &self.mark {
            mark.end();
        }
    }

    pub(crate) fn new_incarnation(&mut self, running: usize) {
        let renewed = self.mark.as_mut().map(|mark| mark.renew(running));
        if let Some(Err(_)) = renewed {
            // Without a new nonce nothing may be continuous.
            self.mark = None;
        }
    }
}

/// What says that a regular file is the one that was open before: mount, device, inode. `None` if the mount is not known.
pub(crate) fn file_facts(file: BorrowedFd<'_>) -> Option<Vec<Vec<u8>>> {
    /// `STATX_MNT_ID_UNIQUE` of linux/stat.h: a mount id that is never used again (since Linux 6.8).
    const MOUNT_ID_UNIQUE: u32 = 0x4000;
    let wanted =
        StatxFlags::INO | StatxFlags::MNT_ID | StatxFlags::from_bits_retain(MOUNT_ID_UNIQUE);
    let stat = statx(file, "", AtFlags::EMPTY_PATH, wanted).ok()?;
    let mount = stat.stx_mask & (StatxFlags::MNT_ID.bits() | MOUNT_ID_UNIQUE);
    if mount == 0 {
        return None;
    }
    Some(vec![
        b"file".to_vec(),
        mount.to_le_bytes().to_vec(),
        stat.stx_mnt_id.to_le_bytes().to_vec(),
        [stat.stx_dev_major, stat.stx_dev_minor]
            .map(u32::to_le_bytes)
            .concat(),
        stat.stx_ino.to_le_bytes().to_vec(),
    ])
}

/// BLAKE3 over the parts, each with its length, so that no two lists look the same.
fn hash<P: AsRef<[u8]>>(domain: &str, parts: &[P]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key(domain);
    for part in parts {
        let part = part.as_ref();
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    fn options(directory: &Path) -> OpenOptions {
        OpenOptions {
            state_dir: Some(directory.to_owned()),
            ..OpenOptions::default()
        }
    }

    #[test]
    fn the_tag_is_made_once_and_then_stays() {
        let file = tempfile::tempfile().unwrap();
        let tag = file_tag(file.as_fd()).unwrap();
        assert_eq!(file_tag(file.as_fd()).unwrap(), tag);
        let other = tempfile::tempfile().unwrap();
        assert_ne!(file_tag(other.as_fd()).unwrap(), tag);
    }

    #[test]
    fn a_tag_of_another_length_is_replaced() {
        let file = tempfile::tempfile().unwrap();
        for wrong in [&b"short"[..], &[7; 40]] {
            fsetxattr(&file, TAG, wrong, XattrFlags::empty()).unwrap();
            let tag = file_tag(file.as_fd()).unwrap();
            assert_eq!(file_tag(file.as_fd()).unwrap(), tag);
        }
    }

    #[test]
    fn an_id_in_the_state_directory_stays_by_its_key() {
        let directory = tempfile::tempdir().unwrap();
        let id = |key: &str| from_state(&[key], "why", &options(directory.path())).unwrap();
        let first = id("a");
        assert_eq!(id("a").id, first.id);
        assert_ne!(id("b").id, first.id);
        assert!(!first.bound);
        assert!(first
            .note
            .unwrap()
            .contains("why; it is kept in the state directory"));
    }

    #[test]
    fn where_the_file_takes_no_attribute_the_state_directory_has_the_id_and_nothing_is_continuous()
    {
        // No file in /proc takes user attributes.
        let file = fs::File::open("/proc/self/status").unwrap();
        let directory = tempfile::tempdir().unwrap();
        let options = options(directory.path());
        let path = Path::new("/proc/self/status");
        let export = of_file(file.as_fd(), path, 1, &options).unwrap();
        let again = of_file(file.as_fd(), path, 1, &options).unwrap();
        let replaced = of_file(file.as_fd(), path, 2, &options).unwrap();
        assert_eq!(export.id, again.id);
        assert_ne!(export.id, replaced.id);
        let identity =
            Continuity::new(export, file_facts(file.as_fd()), path, 1, &options).identity();
        assert_eq!(identity.continuity, None);
        assert!(identity.note.unwrap().contains(TAG));
    }

    #[test]
    fn a_device_with_a_permanent_name_needs_no_state() {
        let none = OpenOptions::default();
        let id = |name, position| of_device(Some(name), position, &none).unwrap().id;
        assert_eq!(id("wwid naa.5000", "here"), id("wwid naa.5000", "there"));
        assert_ne!(id("wwid naa.5000", "here"), id("wwid naa.5001", "here"));
        let nameless = of_device(None, "here", &none).unwrap();
        assert!(nameless.note.unwrap().contains("a new one at each start"));
    }

    #[test]
    fn continuity_needs_a_place_for_the_sync_mark_and_breaks_with_a_failed_sync() {
        let directory = tempfile::tempdir().unwrap();
        let file = tempfile::tempfile().unwrap();
        let open = |options: &OpenOptions| {
            let export = of_file(file.as_fd(), Path::new("x"), 1, options).unwrap();
            Continuity::new(export, file_facts(file.as_fd()), Path::new("x"), 1, options)
        };
        assert_eq!(open(&OpenOptions::default()).identity().continuity, None);
        let options = options(directory.path());
        let mut first = open(&options);
        let before = first.identity().continuity;
        assert!(before.is_some());
        first.sync_begins();
        first.sync_succeeded();
        drop(first);
        first = open(&options);
        assert_eq!(first.identity().continuity, before);
        first.sync_begins();
        first.new_incarnation(0);
        let after = first.identity().continuity;
        assert!(after.is_some() && after != before);
        drop(first);
        assert_eq!(open(&options).identity().continuity, after);
    }
}
