//! `/proc/self/mountinfo` (proc_pid_mountinfo(5)).

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    /// `st_dev` of files in it.
    pub(crate) device: (u32, u32),
    pub(crate) point: PathBuf,
    pub(crate) fs_type: String,
    pub(crate) source: PathBuf,
}

/// The mounts that this process sees, in the order in which they were made.
pub(crate) fn mounts() -> io::Result<Vec<Mount>> {
    Ok(parse(&fs::read("/proc/self/mountinfo")?))
}

/// As [`mounts`], of the calling thread, which may have a namespace of its own.
pub(crate) fn of_thread() -> io::Result<Vec<Mount>> {
    Ok(parse(&fs::read("/proc/thread-self/mountinfo")?))
}

/// The mounts that this process sees, and those of the machine where it may ask for them: an agent has hardly any of its own
/// (`namespace.rs`).
pub(crate) fn of_machine() -> io::Result<Vec<Mount>> {
    let mut mounts = mounts()?;
    mounts.extend(parse(&fs::read("/proc/1/mountinfo").unwrap_or_default()));
    Ok(mounts)
}

/// Lines that can't be understood are left out.
fn parse(text: &[u8]) -> Vec<Mount> {
    text.split(|b| *b == b'\n').filter_map(line).collect()
}

fn line(line: &[u8]) -> Option<Mount> {
    // ID PARENT MAJOR:MINOR ROOT POINT OPTIONS [TAG...] - TYPE SOURCE OPTIONS
    let mut fields = line.split(|b| *b == b' ');
    let (major, minor) = std::str::from_utf8(fields.nth(2)?).ok()?.split_once(':')?;
    let point = unescape(fields.nth(1)?);
    fields.find(|field| *field == b"-")?;
    Some(Mount {
        device: (major.parse().ok()?, minor.parse().ok()?),
        point,
        fs_type: String::from_utf8_lossy(fields.next()?).into_owned(),
        source: unescape(fields.next()?),
    })
}

/// Resolves `\ooo`, three octal digits of a byte.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        let escaped = match rest {
            [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..] => {
                Some((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'))
            }
            _ => None,
        };
        bytes.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() { &tail[3..] } else { tail };
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_mount_is_read_with_escapes_and_any_number_of_tags() {
        let text =
            b"36 35 98:0 /mnt1 /a\\040b\\134 rw,noatime shared:1 master:2 - ext4 /dev/root rw\n\
            37 35 0:50 / /run/dst/x/disk rw - fuse.dst dst:x rw\nrubbish\n";
        let mounts = parse(text);
        assert_eq!(mounts.len(), 2);
        assert_eq!(mounts[0].device, (98, 0));
        assert_eq!(mounts[0].point, PathBuf::from("/a b\\"));
        assert_eq!(mounts[0].source, PathBuf::from("/dev/root"));
        assert_eq!(mounts[1].fs_type, "fuse.dst");
    }

    #[test]
    fn this_machine_has_a_root() {
        assert!(mounts().unwrap().iter().any(|m| m.point.as_os_str() == "/"));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            parse(&bytes);
        }
    }
}
