//! The kernel's log, from a moment on: what it says of one block device.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;

use anyhow::{bail, Result};

/// Parts of messages that mean that I/O or a file system went wrong.
const BAD: [&str; 11] = [
    "timed out",
    "dead connection",
    "stuck",
    "i/o error",
    "error",
    "corrupt",
    "aborting journal",
    "remounting",
    "shutdown",
    "shutting down",
    "hung",
];

/// What the nbd driver says of every device that is detached, and again and again of each request while a server is away.
const HARMLESS: [&str; 2] = ["shutting down sockets", "Possible stuck request"];

/// See the [module](self). Holds nothing where the log can't be read.
pub struct KernelLog(Option<File>);

impl KernelLog {
    /// From now on.
    pub fn from_now() -> KernelLog {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32)
            .open("/dev/kmsg")
            .and_then(|mut file| file.seek(SeekFrom::End(0)).map(|_| file));
        KernelLog(file.ok())
    }

    /// The messages since then or since the last call.
    pub fn messages(&mut self) -> Vec<String> {
        let mut messages = Vec::new();
        let Some(file) = &mut self.0 else {
            return messages;
        };
        let mut record = [0; 8192];
        loop {
            match file.read(&mut record) {
                Ok(0) => return messages,
                Ok(len) => {
                    let text = String::from_utf8_lossy(&record[..len]);
                    let message = text.split_once(';').map_or(&*text, |(_, message)| message);
                    messages.push(message.lines().next().unwrap_or_default().to_owned());
                }
                // Records were overwritten before they were read; the next read goes on with what is there.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
                Err(_) => return messages,
            }
        }
    }

    /// # Errors
    /// A message since the last call tells of an error on one of these block devices (`loop3`).
    pub fn check(&mut self, devices: &[String]) -> Result<()> {
        let bad: Vec<String> = self
            .messages()
            .into_iter()
            .filter(|message| {
                let lower = message.to_lowercase();
                !HARMLESS.iter().any(|text| message.contains(text))
                    && devices.iter().any(|device| names(message, device))
                    && BAD.iter().any(|word| lower.contains(word))
            })
            .collect();
        if !bad.is_empty() {
            bail!("the kernel says: {}", bad[..bad.len().min(5)].join(" | "));
        }
        Ok(())
    }
}

/// Whether a message is about `loop3`, and not about `loop31`.
fn names(message: &str, device: &str) -> bool {
    message.match_indices(device).any(|(at, _)| {
        let after = message[at + device.len()..].chars().next();
        !after.is_some_and(|c| c.is_ascii_digit())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_not_taken_for_another() {
        assert!(names("I/O error, dev loop3, sector 8", "loop3"));
        assert!(!names("I/O error, dev loop31, sector 8", "loop3"));
        assert!(names("EXT4-fs error (device loop3): x", "loop3"));
    }
}
