//! What an agent tells the `dst attach` that started it, over the pipe that is its standard output: one JSON object per
//! line, `note`s first, then `ready` or `failed`. Nothing at all: it died.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::exit::Failure;

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// Something the user should know.
    Note {
        /// In words.
        text: String,
    },
    /// The device is there and usable.
    Ready(Ready),
    /// There will be no device. The agent has cleaned up and ends.
    Failed(Failure),
}

/// A device that is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// Its name.
    pub name: String,
    /// The path to use.
    pub node: PathBuf,
    /// What it leads to.
    pub device: PathBuf,
    /// `block-device` or `file`.
    pub kind: String,
    /// The kind of front end.
    pub front_end: String,
    /// Bytes.
    pub size: u64,
    /// Bytes.
    pub logical_block: u32,
    /// Writes are refused.
    pub read_only: bool,
    /// What is not quite as it should be.
    pub notes: Vec<String>,
    /// The agent's process.
    pub pid: u32,
}

/// Where the events go.
pub enum Announcer {
    /// To the process that waits at the other end of a pipe.
    Pipe(File),
    /// To this process itself, which runs in the foreground.
    Foreground(Box<dyn FnMut(&Event) + Send>),
    /// Nobody waits any more.
    Told,
}

impl Announcer {
    /// The pipe that is standard output now. From here on, standard output is standard error, so that nothing gets into the
    /// pipe by mistake and no child process holds it open.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn take_stdout() -> io::Result<Self> {
        let pipe = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3)?;
        rustix::stdio::dup2_stdout(rustix::stdio::stderr())?;
        Ok(Self::Pipe(File::from(pipe)))
    }

    /// Tells an event. After `ready` or `failed` there is nobody to tell. That the other end may be gone is no concern of a
    /// device.
    pub fn tell(&mut self, event: &Event) {
        match self {
            Self::Pipe(pipe) => {
                if let Ok(mut line) = serde_json::to_vec(event) {
                    line.push(b'\n');
                    let _ = pipe.write_all(&line);
                }
            }
            Self::Foreground(show) => show(event),
            Self::Told => {}
        }
        if !matches!(event, Event::Note { .. }) {
            *self = Self::Told;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Code;

    #[test]
    fn events_survive_the_pipe_and_end_with_the_verdict() {
        let events = [
            Event::Note { text: "a".into() },
            Event::Failed(Failure::new(Code::NoExport, "no such export")),
            Event::Note { text: "b".into() },
        ];
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipe");
        let mut announcer = Announcer::Pipe(File::create(&path).unwrap());
        for event in &events {
            announcer.tell(event);
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let told: Vec<Event> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(told, events[..2]);
    }
}
