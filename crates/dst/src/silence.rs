//! What to say of an agent that lives and does not answer: the way out that loses nothing, where there is one.

use std::io;

use dst_blockdev::Choice;

use crate::leftovers;
use crate::runtime_dir::{AgentInfo, DeviceDir};

/// That it does not answer, and what to do.
pub fn in_words(dir: &DeviceDir, info: Option<&AgentInfo>, error: &io::Error) -> String {
    let process = info.map_or_else(String::new, |info| format!(" (process {})", info.pid));
    let why = match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => String::new(),
        _ => format!(": {error}"),
    };
    format!(
        "its agent{process} does not answer{why}; {}",
        remedy(dir, info)
    )
}

/// What to do.
pub fn remedy(dir: &DeviceDir, info: Option<&AgentInfo>) -> String {
    let front_end = info.and_then(|info| info.settings.as_ref()?.front_end.parse().ok());
    let kept = match info {
        Some(info) if info.read_only => Kept::NothingToLose,
        _ if leftovers::has_record(dir) => Kept::Recorded,
        _ => Kept::InTheAgent,
    };
    advice(dir.name(), front_end, kept)
}

/// Where the acknowledged writes are that the server may not have made durable.
#[derive(Clone, Copy)]
enum Kept {
    NothingToLose,
    /// In the agent's record, which outlives it.
    Recorded,
    /// In its own memory alone: the device dies with it, on every front end.
    InTheAgent,
}

fn advice(name: &str, front_end: Option<Choice>, kept: Kept) -> String {
    let what = match (kept, front_end) {
        (Kept::InTheAgent, _) => format!(
            "writes that were not flushed are lost, since no record of them is kept; `dst detach {name}` cleans up"
        ),
        (_, Some(Choice::Ublk | Choice::Nbd)) => {
            format!("go on without loss by `dst attach --recover {name}`")
        }
        (Kept::Recorded, _) => format!(
            "`dst detach {name}` makes safe what it had acknowledged; `--force` gives that up"
        ),
        (Kept::NothingToLose, _) => format!("`dst detach {name}` cleans up"),
    };
    format!("if it stays so, kill it, and {what}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_loss_is_promised_only_where_none_is() {
        let without = |front_end, kept| {
            let text = advice("disk", front_end, kept);
            assert!(text.contains("disk"), "{text}");
            text.contains("--recover")
        };
        for front_end in [Choice::Ublk, Choice::Nbd] {
            assert!(without(Some(front_end), Kept::Recorded));
            assert!(without(Some(front_end), Kept::NothingToLose));
            assert!(!without(Some(front_end), Kept::InTheAgent));
        }
        for front_end in [None, Some(Choice::Fuse)] {
            assert!(!without(front_end, Kept::Recorded));
        }
        let lost = advice("disk", Some(Choice::Ublk), Kept::InTheAgent);
        assert!(lost.contains("are lost") && !lost.contains("--recover"));
    }
}
