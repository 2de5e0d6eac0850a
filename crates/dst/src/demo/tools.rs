//! The programs that the demo needs and how to get them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::child::Runner;
use crate::exit::{Code, Failure, Outcome};
use crate::progress::Progress;

/// The package of all programs below; it has the same name everywhere.
const PACKAGE: &str = "e2fsprogs";

/// How long installing it may take.
const INSTALLING: Duration = Duration::from_secs(180);

/// Directories that hold system programs and are often not in an ordinary user's `PATH`.
const SYSTEM: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// Where the programs are.
#[derive(Debug)]
pub struct Tools {
    /// Makes a file system.
    pub mkfs: PathBuf,
    /// Checks one.
    pub fsck: PathBuf,
    /// Reads one without mounting it.
    pub debugfs: PathBuf,
}

impl Tools {
    /// Finds them, and installs them where that can be done.
    ///
    /// # Errors
    /// `MissingProgram`, with the package's name.
    pub fn get(runner: &Runner<'_>, progress: &Progress) -> Outcome<Self> {
        if let Some(tools) = Self::find() {
            return Ok(tools);
        }
        let missing = || {
            Failure::new(
                Code::MissingProgram,
                "the demo needs mkfs.ext4, fsck.ext4 and debugfs",
            )
            .hint(format!("install the package {PACKAGE}"))
        };
        let apt = find("apt-get").filter(|_| dst_blockdev::is_root());
        let Some(apt) = apt else {
            return Err(missing());
        };
        progress.line(&format!("installing {PACKAGE}: apt-get install {PACKAGE}"));
        progress.doing(format!("installing {PACKAGE}"));
        let command = |words: &[&str]| {
            let mut command = Command::new(&apt);
            command.args(words).env("DEBIAN_FRONTEND", "noninteractive");
            command
        };
        // The lists may be old or absent; where they can't be got, the install may still work.
        runner.run(&mut command(&["-q", "update"]), INSTALLING)?;
        runner.succeed(&mut command(&["-q", "-y", "install", PACKAGE]), INSTALLING)?;
        Self::find().ok_or_else(missing)
    }

    fn find() -> Option<Self> {
        Some(Self {
            mkfs: find("mkfs.ext4")?,
            fsck: find("fsck.ext4")?,
            debugfs: find("debugfs")?,
        })
    }
}

/// A program in `PATH` or among the system's.
fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path).chain(SYSTEM.iter().map(PathBuf::from));
    directories
        .map(|directory| directory.join(name))
        .find(|path| is_program(path))
}

fn is_program(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_by_name() {
        assert!(find("sh").is_some_and(|path| path.is_absolute()));
        assert_eq!(find("no-such-program-anywhere"), None);
    }
}
