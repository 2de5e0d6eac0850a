//! Who this client is: the three parts of a lease holder, and the directory where the lasting one is kept.
//!
//! * *identity*: random, made once, kept in the state directory (later: the key);
//! * *boot id*: the kernel's, so that a rebooted machine is another holder;
//! * *instance*: random per attach.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use dst_ids::{from_hex, hex, random};
use dst_proto::Holder;

/// Where state that outlives a boot is kept: `DST_STATE_DIR`, or `/var/lib/dst` for root, or
/// `$XDG_STATE_HOME/dst` (`~/.local/state/dst`).
pub fn state_dir() -> PathBuf {
    if let Some(dir) = std::env::var_os("DST_STATE_DIR") {
        return dir.into();
    }
    if rustix::process::geteuid().is_root() {
        return "/var/lib/dst".into();
    }
    let base = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".local/state"));
    base.or_else(home)
        .unwrap_or_else(std::env::temp_dir)
        .join("dst")
}

/// The identity kept in `dir`, made if it is not there.
pub fn identity(dir: &Path) -> io::Result<[u8; 16]> {
    let path = dir.join("identity");
    match fs::read_to_string(&path) {
        Ok(text) => {
            return from_hex(text.trim()).ok_or_else(|| {
                let what = format!(
                    "{} does not hold 32 hexadecimal digits; remove it to get a new identity",
                    path.display()
                );
                io::Error::new(io::ErrorKind::InvalidData, what)
            });
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    fs::create_dir_all(dir)?;
    let id = random();
    // A link makes it appear whole, and whoever comes second takes what the first made.
    let temporary = dir.join(format!("identity.{}", std::process::id()));
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    writeln!(file, "{}", hex(&id))?;
    file.sync_all()?;
    let linked = fs::hard_link(&temporary, &path);
    fs::remove_file(&temporary)?;
    match linked {
        Ok(()) => Ok(id),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => identity(dir),
        Err(error) => Err(error),
    }
}

/// The holder that an attach is.
pub fn holder(identity: [u8; 16]) -> Holder {
    Holder {
        identity,
        boot: boot_id(),
        instance: random(),
    }
}

/// The id of this boot of this machine.
pub(crate) fn boot_id() -> [u8; 16] {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    from_hex(&boot.trim().replace('-', "")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_made_once_and_kept() {
        let dir = std::env::temp_dir().join(format!("dst-identity-{}", std::process::id()));
        let first = identity(&dir).unwrap();
        assert_eq!(identity(&dir).unwrap(), first);
        fs::write(dir.join("identity"), "nonsense").unwrap();
        assert!(identity(&dir).is_err());
        fs::remove_dir_all(&dir).unwrap();
    }
}
