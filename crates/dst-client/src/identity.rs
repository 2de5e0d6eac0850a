//! Who this client is: the three parts of a lease holder, and the directory where the lasting one is kept.
//!
//! * *identity*: random, made once, kept in the state directory (later: the key);
//! * *boot id*: the kernel's, so that a rebooted machine is another holder;
//! * *instance*: random per attach.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

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
            return parse_id(text.trim()).ok_or_else(|| {
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
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    Holder {
        identity,
        boot: parse_id(&boot.trim().replace('-', "")).unwrap_or_default(),
        instance: random(),
    }
}

/// Random bytes from the system.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the system has random numbers once it is up");
    bytes
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn parse_id(text: &str) -> Option<[u8; 16]> {
    let digits = text.as_bytes();
    if digits.len() != 32 {
        return None;
    }
    let mut id = [0; 16];
    for (byte, pair) in id.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(id)
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

    #[test]
    fn ids_are_32_hexadecimal_digits() {
        let id = random::<16>();
        assert_eq!(parse_id(&hex(&id)), Some(id));
        assert_eq!(parse_id("12"), None);
        assert_eq!(parse_id("zz000000000000000000000000000000"), None);
        assert_eq!(parse_id("é0000000000000000000000000000000"), None);
    }
}
