//! Having a kernel module loaded that a front end needs.

use std::path::Path;
use std::process::{Command, Stdio};

/// Where the modules of all kernels are.
const MODULES: &str = "/lib/modules";

/// Has `module` loaded, unless the administrator has put it on a blacklist (modprobe.d(5)). False: it can't be. No module is
/// needed where the kernel has it built in, so what counts is whether the driver is there then.
///
/// For root. Where this kernel has no modules nothing is tried.
pub(crate) fn load(module: &str) -> bool {
    let release = rustix::system::uname();
    let release = release.release().to_string_lossy().into_owned();
    if !Path::new(MODULES).join(release).exists() {
        return false;
    }
    // `/sbin` is not in the path of everybody who is root.
    ["modprobe", "/sbin/modprobe", "/usr/sbin/modprobe"]
        .into_iter()
        .find_map(|program| {
            Command::new(program)
                .args(["--quiet", "--use-blacklist", "--", module])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .ok()
        })
        .is_some_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_that_no_kernel_has_is_not_loaded() {
        assert!(!load("dst-no-such-module"));
    }
}
