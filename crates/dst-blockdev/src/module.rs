//! Having a kernel module loaded that a front end needs.

use std::path::Path;
use std::process::{Command, Stdio};

/// Where the modules of all kernels are.
const MODULES: &str = "/lib/modules";
/// `/sbin` is not in the path of everybody who is root.
const PROGRAMS: [&str; 3] = ["modprobe", "/sbin/modprobe", "/usr/sbin/modprobe"];

/// Has `module` loaded, unless the administrator has put it on a blacklist (modprobe.d(5)). False: it can't be. No module is
/// needed where the kernel has it built in, so what counts is whether the driver is there then.
///
/// For root. Where this kernel has no modules nothing is tried.
pub(crate) fn load(module: &str) -> bool {
    let release = rustix::system::uname();
    let release = release.release().to_string_lossy().into_owned();
    Path::new(MODULES).join(release).exists() && load_by(&PROGRAMS, module)
}

/// By the first of these programs that can.
fn load_by(programs: &[&str], module: &str) -> bool {
    programs.iter().any(|program| {
        // Quietly, and with regard to the blacklist: the short forms, which busybox has too.
        let done = Command::new(program)
            .args(["-q", "-b", module])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        done.is_ok_and(|status| status.success())
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_first_program_that_can_is_asked_for_the_module() {
        let dir = tempfile::tempdir().unwrap();
        let program = |name: &str, end: &str| {
            let path = dir.path().join(name);
            let script = format!(
                "#!/bin/sh\necho {name} \"$@\" >>{}/log\n{end}\n",
                dir.path().display()
            );
            std::fs::write(&path, script).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            path.display().to_string()
        };
        let (cannot, can, never) = (
            program("one", "exit 1"),
            program("two", ""),
            program("three", ""),
        );
        let missing = dir.path().join("none").display().to_string();
        assert!(load_by(&[&missing, &cannot, &can, &never], "ublk_drv"));
        let log = std::fs::read_to_string(dir.path().join("log")).unwrap();
        assert_eq!(log, "one -q -b ublk_drv\ntwo -q -b ublk_drv\n");
        assert!(!load_by(&[&missing, &cannot], "ublk_drv"));
    }
}
