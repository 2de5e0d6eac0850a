//! The agent's log: lines with a time, in a file that stays small.
//!
//! Standard error goes to the same file, so that panics and what commands of `dst+exec` print are there too. Everybody
//! appends, so the file can be cut in place.
//!
//! A thread of its own writes the file, and nobody waits for it: the file's pages are of a tmpfs, which may be swapped out to
//! the very device that this process serves. What comes when many lines wait is counted and lost.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::mpsc::{sync_channel, Receiver, SyncSender};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Bytes at which the log is cut.
const LARGEST: u64 = 256 * 1024;

/// Bytes that are left after a cut.
const KEPT: u64 = 64 * 1024;

/// Lines that may wait to be written.
const WAITING: usize = 256;

/// How long the end waits for what is not written yet.
const LAST: Duration = Duration::from_secs(1);

/// Where an agent says what happens to it.
#[derive(Debug)]
pub struct Log {
    /// Absent in the foreground: standard error is not ours to cut.
    background: Option<Background>,
}

#[derive(Debug)]
struct Background {
    file: File,
    entries: SyncSender<Entry>,
    /// Lines that found no room.
    missed: u64,
}

/// What the thread is told.
enum Entry {
    Line(String),
    /// To be told when all before it is written.
    Mark(SyncSender<()>),
}

impl Log {
    /// A log to standard error.
    #[must_use]
    pub fn foreground() -> Self {
        Self { background: None }
    }

    /// Opens the file for appending, with access for its owner only.
    ///
    /// # Errors
    /// It can't be opened.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .open(path)?;
        let written = file.try_clone()?;
        let (entries, incoming) = sync_channel(WAITING);
        std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || write(written, &incoming))?;
        Ok(Self {
            background: Some(Background {
                file,
                entries,
                missed: 0,
            }),
        })
    }

    /// The file, for standard error.
    #[must_use]
    pub fn file(&self) -> Option<&File> {
        self.background.as_ref().map(|background| &background.file)
    }

    /// Adds a line, without waiting. What can't be written is lost: there is nobody to tell.
    pub fn line(&mut self, text: &str) {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let now = utc(since.as_secs());
        let line = format!("{now} {text}\n");
        let Some(background) = &mut self.background else {
            let _ = io::stderr().write_all(line.as_bytes());
            return;
        };
        if background.missed > 0 {
            let note = format!("{now} {} line(s) are missing here\n", background.missed);
            if background.entries.try_send(Entry::Line(note)).is_ok() {
                background.missed = 0;
            }
        }
        if background.entries.try_send(Entry::Line(line)).is_err() {
            background.missed += 1;
        }
    }

    /// Waits a moment for what is not written yet: before the process ends.
    pub fn finish(&mut self) {
        if let Some(background) = &self.background {
            let (mark, written) = sync_channel(1);
            if background.entries.try_send(Entry::Mark(mark)).is_ok() {
                let _ = written.recv_timeout(LAST);
            }
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.finish();
    }
}

/// Writes what comes until nobody can send any more.
fn write(mut file: File, entries: &Receiver<Entry>) {
    for entry in entries {
        match entry {
            Entry::Line(line) => {
                let _ = file.write_all(line.as_bytes());
                if file.metadata().is_ok_and(|meta| meta.len() > LARGEST) {
                    let _ = cut(&mut file);
                }
            }
            Entry::Mark(mark) => {
                let _ = mark.try_send(());
            }
        }
    }
}

/// Leaves only the last lines. Lines that others append meanwhile may be lost.
fn cut(file: &mut File) -> io::Result<()> {
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(KEPT)))?;
    let mut tail = Vec::new();
    file.take(KEPT).read_to_end(&mut tail)?;
    let start = tail.iter().position(|&b| b == b'\n').map_or(0, |at| at + 1);
    file.set_len(0)?;
    file.write_all(&tail[start..])
}

/// `2026-03-21T12:00:00Z` from seconds since 1970. The calendar repeats every 400 years of 146,097 days; counting years
/// from March puts the leap day at the end.
fn utc(seconds: u64) -> String {
    let (days, second) = (seconds / 86400, seconds % 86400);
    // Days since the first of March of the year 0.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_in_utc() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_164_799, "2024-02-28T23:59:59Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (1_709_251_200, "2024-03-01T00:00:00Z"),
            (1_767_225_599, "2025-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(utc(seconds), text);
        }
    }

    #[test]
    fn a_log_is_cut_and_keeps_its_last_lines_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = Log::open(&path).unwrap();
        let text = "x".repeat(1000);
        for number in 0..1000 {
            log.line(&format!("{number} {text}"));
            if number % 100 == 0 {
                log.finish();
            }
        }
        log.finish();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.len() as u64 <= LARGEST + 1100);
        let numbers: Vec<u32> = text
            .lines()
            .map(|line| line.split(' ').nth(1).unwrap().parse().unwrap())
            .collect();
        assert_eq!(numbers.last(), Some(&999));
        assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1));
    }
}
