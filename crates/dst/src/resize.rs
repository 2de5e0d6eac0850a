//! `dst resize`: another size for the file of an export, where the file is; and for a device, where the device is, the size
//! that its export has.

use std::path::Path;
use std::time::Duration;

use dst_store::resize::{ResizeError, Resized};
use dst_store::{format_size, NewSize, OpenError};
use serde_json::json;

use crate::cli::Resize;
use crate::control::{Agent, Reply, Request};
use crate::exit::{Code, Failure, Outcome};
use crate::render;
use crate::runtime_dir::{DeviceDir, Life};
use crate::signals::Signals;

/// How long a device may take. The nbd driver waits until nothing is under way.
const PATIENCE: Duration = Duration::from_secs(60);

/// An agent that has something to say is heard within this time.
const PROMPT: Duration = Duration::from_secs(1);

/// Runs it.
///
/// # Errors
/// The size is what it was, and why.
pub fn run(options: &Resize, json: bool) -> Outcome {
    match options.size {
        Some(size) => file(&options.target, size, options.shrink, json),
        None => device(&options.target, json),
    }
}

fn file(path: &Path, size: NewSize, shrink: bool, json: bool) -> Outcome {
    let resized =
        dst_store::resize::resize(path, size, shrink).map_err(|error| failure(path, error))?;
    let sparse = resized.after.saturating_sub(resized.before) > resized.free;
    if sparse {
        render::note(&format!(
            "note: the file system of {} has room for {} only: writes that find none fail",
            path.display(),
            format_size(resized.free)
        ));
    }
    if json {
        return render::json(&json!({
            "path": path,
            "before": resized.before,
            "size": resized.after,
            "server": resized.server,
        }));
    }
    render::line(&text(path, &resized))
}

fn text(path: &Path, resized: &Resized) -> String {
    let (before, after) = (format_size(resized.before), format_size(resized.after));
    let size = match resized.before == resized.after {
        true => format!("{} has {after} already", path.display()),
        false => format!("{} has {after} now, {before} before", path.display()),
    };
    match resized.server {
        Some(pid) => format!("{size}; its server (process {pid}) tells the devices now"),
        None => format!("{size}; no server on this machine has it"),
    }
}

fn failure(path: &Path, error: ResizeError) -> Failure {
    let text = error.to_string();
    let with = |code| Failure::new(code, text.clone());
    match error {
        ResizeError::Kind {
            block_device: true, ..
        } => match DeviceDir::find(&path.to_string_lossy()) {
            Ok((dir, _)) => with(Code::Usage).hint(format!(
                "{} is attached from {}: give its export another size there",
                dir.name(),
                dir.info().map_or_else(String::new, |info| info.url)
            )),
            Err(_) => with(Code::Export).hint(
                "grow it with its own tools (lvextend, ...); a server that has it notices within 2 s",
            ),
        },
        ResizeError::Kind { .. } => with(Code::Export),
        ResizeError::Size { .. } => with(Code::Usage),
        ResizeError::Shrinks { .. } => with(Code::Usage)
            .hint("--shrink does it, while no server has the file; shrink the file system first"),
        ResizeError::Open(OpenError::InUse { .. }) => {
            with(Code::InUse).hint("stop the server first: devices can't shrink")
        }
        ResizeError::Open(OpenError::Io { source, .. }) => match source.kind() {
            std::io::ErrorKind::PermissionDenied => with(Code::Permission),
            std::io::ErrorKind::NotFound => {
                with(Code::Export).hint("give the path of the file that is served")
            }
            _ => with(Code::Other),
        },
        ResizeError::Open(_) => with(Code::Export),
    }
}

fn device(target: &Path, json: bool) -> Outcome {
    let (dir, life) =
        DeviceDir::find(&target.to_string_lossy()).map_err(|failure| match target.is_file() {
            true => Failure::new(
                Code::Usage,
                format!("which size is {} to have?", target.display()),
            )
            .hint("dst resize PATH 20G, or +5G"),
            false => failure,
        })?;
    let name = dir.name();
    let silent = |error: std::io::Error| {
        Failure::new(
            Code::NotResponding,
            format!("the agent of {name} does not answer: {error}"),
        )
    };
    if life != Life::Alive {
        return Err(silent(std::io::ErrorKind::NotConnected.into()));
    }
    let before = Agent::status(&dir.control(), PROMPT).map_err(silent)?;
    let size = match before.device_size == before.size {
        true => before.size,
        false => shown(&dir, silent)?,
    };
    if json {
        return render::json(&json!({ "device": name, "size": size }));
    }
    render::line(&format!(
        "{name} has {} ({} bytes), as its export has",
        format_size(size),
        render::count(size)
    ))
}

/// Lets the agent try, and waits for it.
fn shown(dir: &DeviceDir, silent: impl Fn(std::io::Error) -> Failure) -> Outcome<u64> {
    let signals = Signals::install().map_err(Failure::io("can't take signals"))?;
    let mut agent = Agent::connect(&dir.control()).map_err(&silent)?;
    agent.send(Request::Resize).map_err(&silent)?;
    let until = std::time::Instant::now() + PATIENCE;
    let answered = signals
        .wait_readable(std::os::fd::AsFd::as_fd(agent.stream()), Some(until), 0)
        .map_err(Failure::io("can't wait"))?;
    if signals.count() > 0 {
        return Err(Failure::interrupted());
    }
    if !answered {
        return Err(Failure::new(
            Code::InUse,
            format!("{} has not got the new size yet", dir.name()),
        )
        .hint("its driver waits until nothing is under way on it; that goes on"));
    }
    match agent.receive(Some(PROMPT)).map_err(&silent)? {
        Reply::Resized { size } => Ok(size),
        Reply::Refused(failure) => Err(failure),
        _ => Err(silent(std::io::ErrorKind::InvalidData.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_who_takes_the_size_over() {
        let mut resized = Resized {
            before: 1 << 30,
            after: 2 << 30,
            server: Some(7),
            free: 0,
        };
        let path = Path::new("disk.img");
        assert_eq!(
            text(path, &resized),
            "disk.img has 2 GiB now, 1 GiB before; its server (process 7) tells the devices now"
        );
        resized.server = None;
        resized.before = resized.after;
        assert!(text(path, &resized).contains("already; no server"));
    }

    #[test]
    fn each_way_to_fail_has_its_exit_code() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("disk.img");
        std::fs::write(&image, [0; 8192]).unwrap();
        let try_it = |path: &Path, size| file(path, size, false, false).unwrap_err().code;
        assert_eq!(try_it(&image, NewSize::To(4096)), Code::Usage);
        assert_eq!(try_it(&image, NewSize::To(100)), Code::Usage);
        assert_eq!(try_it(dir.path(), NewSize::To(4096)), Code::Export);
        let none = dir.path().join("none");
        assert_eq!(try_it(&none, NewSize::To(4096)), Code::Export);
        assert_eq!(device(&image, false).unwrap_err().code, Code::Usage);
        assert_eq!(device(&none, false).unwrap_err().code, Code::NoDevice);
    }
}
