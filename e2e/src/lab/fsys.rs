//! File systems on devices: make, mount, check.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{bail, Context as _, Result};
use rustix::mount::UnmountFlags;

use super::Lab;
use crate::command::{self, cmd};

/// Bound on mkfs, mount and check, which may have to wait for an outage.
const BOUND: Duration = Duration::from_secs(300);

/// Bytes of a device that has room for a file system of either kind and for a few files.
pub const SMALL: u64 = 64 << 20;

/// A kind of file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// ext4
    Ext4,
    /// XFS
    Xfs,
}

impl Kind {
    /// As mount calls it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Ext4 => "ext4",
            Kind::Xfs => "xfs",
        }
    }

    /// Options to mount a copy of one that is mounted, too.
    pub fn copy_options(self) -> &'static str {
        match self {
            Kind::Ext4 => "loop",
            Kind::Xfs => "loop,nouuid",
        }
    }

    /// Makes one.
    ///
    /// # Errors
    /// mkfs fails.
    pub fn make(self, device: &Path) -> Result<()> {
        let mut command = match self {
            // Not lazily: the background initialisation would write at times of its own.
            Kind::Ext4 => cmd(
                "mkfs.ext4",
                ["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"],
            ),
            Kind::Xfs => {
                let mut command = cmd("mkfs.xfs", ["-q", "-f"]);
                // It makes none below 300 MiB but for its own tests, which it knows by these.
                command.env("QA_CHECK_FS", "1").env("TEST_DIR", "1");
                command.env("TEST_DEV", "1");
                command
            }
        };
        command::ok(command.arg(device), BOUND)?;
        Ok(())
    }

    /// Checks one that is not mounted, changing nothing.
    ///
    /// # Errors
    /// It is not clean.
    pub fn check(self, device: &Path) -> Result<()> {
        let mut command = match self {
            Kind::Ext4 => cmd("e2fsck", ["-f", "-n"]),
            Kind::Xfs => cmd("xfs_repair", ["-n"]),
        };
        command::ok(command.arg(device), BOUND).context("the file system is not clean")?;
        Ok(())
    }
}

/// A mounted file system. Unmounted, lazily, when it is dropped.
pub struct Mount {
    point: PathBuf,
    mounted: bool,
}

impl Mount {
    /// Mounts a device on a directory of the laboratory.
    ///
    /// # Errors
    /// The mount fails.
    pub fn new(lab: &Lab, kind: Kind, device: &Path, options: &str) -> Result<Mount> {
        let point = lab.path(&lab.unique("mnt"));
        std::fs::create_dir(&point)?;
        let mut command = cmd("mount", ["-t", kind.name()]);
        if !options.is_empty() {
            command.args(["-o", options]);
        }
        command::ok(command.arg(device).arg(&point), BOUND)?;
        Ok(Mount {
            point,
            mounted: true,
        })
    }

    /// Where.
    pub fn point(&self) -> &Path {
        &self.point
    }

    /// Unmounts it, with everything written.
    ///
    /// # Errors
    /// It is in use, or I/O fails.
    pub fn unmount(mut self) -> Result<()> {
        command::ok(cmd("umount", [&self.point]).env("LC_ALL", "C"), BOUND)?;
        self.mounted = false;
        std::fs::remove_dir(&self.point)?;
        Ok(())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.mounted {
            let _ = rustix::mount::unmount(&self.point, UnmountFlags::DETACH);
            let _ = std::fs::remove_dir(&self.point);
        }
    }
}

/// Drops clean pages, dentries and inodes of the whole machine, so that what is read next comes from the device.
///
/// # Errors
/// Not allowed.
pub fn drop_caches() -> Result<()> {
    std::fs::write("/proc/sys/vm/drop_caches", "3").context("can't drop caches")
}

/// Whether an XFS can be made and mounted here.
///
/// # Errors
/// `/proc/filesystems` can't be read.
pub fn supports(kind: Kind) -> Result<bool> {
    let known = std::fs::read_to_string("/proc/filesystems")?;
    Ok(known
        .lines()
        .any(|line| line.trim_start_matches("nodev").trim() == kind.name()))
}

/// How much of an image is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Every byte.
    Whole,
    /// What is not a hole of the file.
    Data,
}

/// Compares a block device with the image that it should show, byte by byte; returns the BLAKE3 hash of both.
///
/// # Errors
/// They differ (says where), or can't be read.
pub fn compare(device: &Path, image: &Path, extent: Extent) -> Result<String> {
    use std::io::{Read as _, Seek as _, SeekFrom};
    let open = |path: &Path| {
        std::fs::File::open(path).with_context(|| format!("can't open {}", path.display()))
    };
    let (mut a, mut b) = (open(device)?, open(image)?);
    const PIECE: usize = 1 << 20;
    let (mut left, mut right) = (vec![0; PIECE], vec![0; PIECE]);
    let mut hasher = blake3::Hasher::new();
    let mut at = 0_u64;
    let size = b.metadata()?.len();
    while at < size {
        crate::interrupt::check()?;
        if extent == Extent::Data {
            at = match rustix::fs::seek(&b, rustix::fs::SeekFrom::Data(at)) {
                Ok(data) => data,
                Err(rustix::io::Errno::NXIO) => break,
                Err(error) => return Err(error).context("looking for data in the image"),
            };
            a.seek(SeekFrom::Start(at))?;
        }
        let len = (size - at).min(PIECE as u64) as usize;
        let (l, r) = (&mut left[..len], &mut right[..len]);
        a.read_exact(l)
            .with_context(|| format!("reading {} at {at}", device.display()))?;
        b.read_exact(r)
            .with_context(|| format!("reading {} at {at}", image.display()))?;
        if l != r {
            let first = l
                .iter()
                .zip(r.iter())
                .position(|(x, y)| x != y)
                .unwrap_or(0);
            let differing = l
                .chunks(512)
                .zip(r.chunks(512))
                .filter(|(x, y)| x != y)
                .count();
            bail!(
                "{} and {} differ from byte {} on ({differing} sectors in that MiB)",
                device.display(),
                image.display(),
                at + first as u64
            );
        }
        hasher.update(l);
        at += len as u64;
    }
    a.seek(SeekFrom::Start(size))?;
    if a.read(&mut left[..1])? != 0 {
        bail!("{} is longer than {}", device.display(), image.display());
    }
    Ok(hasher.finalize().to_hex().to_string())
}
