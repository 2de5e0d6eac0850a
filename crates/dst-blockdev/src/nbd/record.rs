//! What is written down about a device in its run-time directory (file `nbd`), for whoever comes when its agent does not
//! answer any more: lines of text, the first of which is the identifier. Lines that are not known are skipped, and missing
//! ones say less.

use std::fs;
use std::io;
use std::path::Path;

use rustix::process::Pid;

use crate::Error;

/// Its name in the run-time directory.
const NAME: &str = "nbd";
/// Under which it is written, before it gets that name.
const NEW: &str = "nbd.new";
const SURVIVES: &str = "survives";
const SOCKET: &str = "socket ";
const PROCESS: &str = "process ";

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    /// What the device is known by to the kernel.
    pub(super) identifier: String,
    /// The agent keeps what a successor needs to take the device over.
    pub(super) survives: bool,
    /// The inode of the agent's end of the connection, once there is one.
    pub(super) socket: Option<u64>,
    /// The agent, which has that socket.
    pub(super) process: Option<Pid>,
}

impl Record {
    /// The record of a new device: with an identifier as no other has it.
    ///
    /// # Errors
    /// `Io` if there are no random numbers.
    pub(super) fn new(name: &str, survives: bool) -> Result<Record, Error> {
        let mut random = [0; 8];
        let filled = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
            .map_err(|e| Error::io("there are no random numbers", e))?;
        debug_assert_eq!(filled, random.len());
        Ok(Record {
            identifier: format!("dst:{name}:{:016x}", u64::from_ne_bytes(random)),
            survives,
            socket: None,
            process: None,
        })
    }

    /// The record in `dir`; `None` if there is none.
    ///
    /// # Errors
    /// `Io`
    pub(super) fn read(dir: &Path) -> Result<Option<Record>, Error> {
        let path = dir.join(NAME);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(Record::parse(&text))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io(format!("can't read {}", path.display()), error)),
        }
    }

    fn parse(text: &str) -> Record {
        let mut lines = text.lines();
        let mut record = Record {
            identifier: lines.next().unwrap_or_default().to_owned(),
            survives: false,
            socket: None,
            process: None,
        };
        for line in lines {
            if line == SURVIVES {
                record.survives = true;
            } else if let Some(inode) = line.strip_prefix(SOCKET) {
                record.socket = inode.parse().ok();
            } else if let Some(process) = line.strip_prefix(PROCESS) {
                record.process = process.parse().ok().and_then(Pid::from_raw);
            }
        }
        record
    }

    fn text(&self) -> String {
        let mut text = format!("{}\n", self.identifier);
        if self.survives {
            text.push_str(&format!("{SURVIVES}\n"));
        }
        if let Some(inode) = self.socket {
            text.push_str(&format!("{SOCKET}{inode}\n"));
        }
        if let Some(process) = self.process {
            text.push_str(&format!("{PROCESS}{}\n", process.as_raw_nonzero()));
        }
        text
    }

    /// Writes it down in `dir`, in one step.
    ///
    /// # Errors
    /// `Io`
    pub(super) fn write(&self, dir: &Path) -> Result<(), Error> {
        let (new, path) = (dir.join(NEW), dir.join(NAME));
        fs::write(&new, self.text())
            .and_then(|()| fs::rename(&new, &path))
            .map_err(|e| Error::io(format!("can't write {}", path.display()), e))
    }

    /// Removes what is written down in `dir`.
    ///
    /// # Errors
    /// `Io`
    pub(super) fn remove(dir: &Path) -> Result<(), Error> {
        let path = dir.join(NAME);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::io(format!("can't remove {}", path.display()), error))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again_and_nothing_is_left() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Record::read(dir.path()).unwrap(), None);
        let process = Some(rustix::process::getpid());
        for (survives, socket, process) in [(false, None, None), (true, Some(u64::MAX), process)] {
            let record = Record {
                socket,
                process,
                ..Record::new("x", survives).unwrap()
            };
            assert!(record.identifier.starts_with("dst:x:"));
            record.write(dir.path()).unwrap();
            assert_eq!(Record::read(dir.path()).unwrap(), Some(record));
        }
        Record::remove(dir.path()).unwrap();
        Record::remove(dir.path()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn the_record_of_an_older_or_a_newer_agent_is_understood_as_far_as_it_goes() {
        let old = Record::parse("dst:x:0123456789abcdef");
        assert_eq!(old.identifier, "dst:x:0123456789abcdef");
        assert_eq!((old.survives, old.socket), (false, None));
        let new = Record::parse("dst:x:0\nsurvives\nhue blue\nsocket 17\nsocket many\nprocess 0\n");
        assert_eq!(new.identifier, "dst:x:0");
        assert_eq!((new.survives, new.socket, new.process), (true, None, None));
    }
}
