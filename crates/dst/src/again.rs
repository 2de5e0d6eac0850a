//! Running this program again, as a process that goes on in the background.

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

/// The command that runs this program, even where its file has been replaced, with the environment for a process that will be
/// somewhere else.
#[must_use]
pub fn command() -> Command {
    let program = std::env::current_exe()
        .ok()
        .filter(|path| path.exists())
        .unwrap_or_else(|| PathBuf::from("/proc/self/exe"));
    let mut command = Command::new(program);
    for variable in ["DST_RUNTIME_DIR", "DST_STATE_DIR"] {
        let value = std::env::var_os(variable).filter(|value| !value.is_empty());
        if let Some(path) = value.and_then(|value| std::path::absolute(value).ok()) {
            command.env(variable, path);
        }
    }
    command.arg0("dst");
    command
}
