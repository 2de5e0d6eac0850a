//! What a server must remember of an export when it is started again: who may write, and whether the incarnation goes on.
//!
//! One file for each export in the state directory, named by the export's id, replaced as a whole and durable before
//! anything rests on it. Holder and epoch are written before a lease is granted; *clean* is set at the end of an orderly
//! stop, when everything has been flushed, and taken back before the next session is granted.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use dst_engine::server::Record;
use dst_ids::{from_hex, hex};
use dst_proto::Holder;
use serde::{Deserialize, Serialize};

/// The file of one export.
pub(crate) struct RecordFile {
    path: PathBuf,
}

/// Its content.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Saved {
    /// The export's name when it was last served, for people.
    pub name: String,
    /// The lease.
    pub lease: Option<SavedLease>,
    /// The incarnation, hexadecimal.
    pub incarnation: String,
    /// What must be unchanged for the incarnation to go on without a clean stop, hexadecimal.
    pub continuity: Option<String>,
    /// The server stopped in order, with everything flushed.
    pub clean: bool,
    /// An earlier incarnation may have lost writes of the holder, which has not replayed them.
    #[serde(default)]
    pub replay_owed: bool,
}

/// A lease in hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedLease {
    identity: String,
    boot: String,
    instance: String,
    epoch: u64,
    held: bool,
    /// The holder's name, for people.
    pub client: String,
}

impl SavedLease {
    pub fn new(record: &Record, client: &str) -> Self {
        Self {
            identity: hex(&record.holder.identity),
            boot: hex(&record.holder.boot),
            instance: hex(&record.holder.instance),
            epoch: record.epoch,
            held: record.held,
            client: client.to_owned(),
        }
    }

    /// The engine's form; `None` where the digits are none.
    pub fn record(&self) -> Option<Record> {
        Some(Record {
            holder: Holder {
                identity: from_hex(&self.identity)?,
                boot: from_hex(&self.boot)?,
                instance: from_hex(&self.instance)?,
            },
            epoch: self.epoch,
            held: self.held,
        })
    }
}

impl RecordFile {
    /// The file of export `id` below `state_dir`, whose directory is made if it is not there.
    pub fn new(state_dir: &Path, id: &[u8; 16]) -> io::Result<Self> {
        let dir = state_dir.join("exports");
        fs::create_dir_all(&dir)?;
        Ok(Self {
            path: dir.join(format!("{}.json", hex(id))),
        })
    }

    /// What is remembered; `None` for an export never served from here.
    ///
    /// # Errors
    /// A file that can't be understood is an error, not a fresh start: forgetting a holder could let two write.
    pub fn load(&self) -> io::Result<Option<Saved>> {
        let text = match fs::read(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let damaged = |why: String| {
            let what = format!("{} is damaged: {why}", self.path.display());
            io::Error::new(io::ErrorKind::InvalidData, what)
        };
        let saved: Saved =
            serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
        let lease = saved.lease.as_ref();
        if lease.is_some_and(|lease| lease.record().is_none()) {
            return Err(damaged("the holder is no holder".into()));
        }
        Ok(Some(saved))
    }

    /// Puts `saved` on stable storage.
    pub fn store(&self, saved: &Saved) -> io::Result<()> {
        let text = serde_json::to_vec_pretty(saved).map_err(io::Error::other)?;
        let new = self.path.with_extension("new");
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&new, &self.path)?;
        let dir = self.path.parent().unwrap_or(Path::new("/"));
        fs::File::open(dir)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_and_a_damaged_one_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let file = RecordFile::new(dir.path(), &[7; 16]).unwrap();
        assert_eq!(file.load().unwrap(), None);
        let record = Record {
            holder: Holder {
                identity: [1; 16],
                boot: [2; 16],
                instance: [3; 16],
            },
            epoch: 3,
            held: true,
        };
        let saved = Saved {
            name: "disk".into(),
            lease: Some(SavedLease::new(&record, "desktop")),
            ..Saved::default()
        };
        file.store(&saved).unwrap();
        let loaded = file.load().unwrap().unwrap();
        assert_eq!(loaded, saved);
        assert_eq!(loaded.lease.unwrap().record(), Some(record));
        fs::write(&file.path, "{").unwrap();
        assert!(file.load().is_err());
    }
}
