//! What to say of a device whose agent does not answer, or is dead: the way out that loses nothing, where there is one.

use std::io;

use dst_blockdev::Choice;

use crate::leftovers;
use crate::runtime_dir::{AgentInfo, DeviceDir};

/// Where the acknowledged writes are that the server may not have made durable.
#[derive(Clone, Copy)]
enum Kept {
    /// Nothing has been written.
    NothingToLose,
    /// In the agent's record, which outlives it.
    Recorded,
    /// In its own memory alone: they die with it, whatever the front end.
    InTheAgent,
    /// That can't be told: the files are another user's, or of another version of this program.
    Unknown,
}

impl Kept {
    fn of(dir: &DeviceDir, info: Option<&AgentInfo>) -> Self {
        match info {
            None => Kept::Unknown,
            Some(info) if info.read_only || info.node.is_none() => Kept::NothingToLose,
            Some(_) => match leftovers::has_record(dir) {
                Some(true) => Kept::Recorded,
                Some(false) => Kept::InTheAgent,
                None => Kept::Unknown,
            },
        }
    }
}

/// That the agent lives and does not answer, and what to do.
pub fn of_silent(dir: &DeviceDir, info: Option<&AgentInfo>, error: &io::Error) -> String {
    let process = info.map_or_else(String::new, |info| format!(" (process {})", info.pid));
    let why = match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => String::new(),
        _ => format!(": {error}"),
    };
    format!(
        "its agent{process} does not answer{why}; {}",
        if_it_stays_so(dir, info)
    )
}

/// What to do about an agent that goes on not answering.
pub fn if_it_stays_so(dir: &DeviceDir, info: Option<&AgentInfo>) -> String {
    let front_end = info.and_then(|info| info.settings.as_ref()?.front_end.parse().ok());
    silent(dir.name(), front_end, Kept::of(dir, info))
}

fn silent(name: &str, front_end: Option<Choice>, kept: Kept) -> String {
    let what = match (kept, front_end) {
        (Kept::Unknown, _) => {
            return "whether it can be killed without loss only its owner and root can tell, with its version of dst"
                .to_owned();
        }
        (Kept::InTheAgent, _) => format!(
            "kill it; writes that were not flushed are lost then, since no record of them is kept. `dst detach {name}` \
             cleans up"
        ),
        (_, Some(Choice::Ublk | Choice::Nbd)) => {
            format!("kill it, and go on without loss by `dst attach --recover {name}`")
        }
        (Kept::Recorded, _) => format!(
            "kill it, and `dst detach {name}` makes safe what it had acknowledged; `--force` gives that up"
        ),
        (Kept::NothingToLose, _) => format!("kill it, and `dst detach {name}` cleans up"),
    };
    format!("if it stays so, {what}")
}

/// That the agent is dead, and its device with it, and what to do.
pub fn of_dead(dir: &DeviceDir, info: Option<&AgentInfo>) -> String {
    dead(dir.name(), Kept::of(dir, info))
}

fn dead(name: &str, kept: Kept) -> String {
    let detach = format!("`dst detach {name}`");
    match kept {
        Kept::NothingToLose => format!("its agent was killed; {detach} cleans up"),
        Kept::InTheAgent => format!(
            "its agent was killed and had kept no record, so writes that were not flushed may be lost; {detach} cleans up"
        ),
        Kept::Recorded | Kept::Unknown => format!(
            "its agent was killed; {detach} makes what it had acknowledged safe on the server, and cleans up"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_loss_is_promised_only_where_none_is() {
        let recovers = |front_end, kept| {
            let text = silent("disk", front_end, kept);
            text.contains("--recover disk")
        };
        for front_end in [Choice::Ublk, Choice::Nbd] {
            assert!(recovers(Some(front_end), Kept::Recorded));
            assert!(recovers(Some(front_end), Kept::NothingToLose));
            assert!(!recovers(Some(front_end), Kept::InTheAgent));
            assert!(!recovers(Some(front_end), Kept::Unknown));
        }
        for front_end in [None, Some(Choice::Fuse)] {
            assert!(!recovers(front_end, Kept::Recorded));
            assert!(silent("disk", front_end, Kept::Recorded).contains("safe"));
            assert!(silent("disk", front_end, Kept::InTheAgent).contains("are lost"));
            assert!(!silent("disk", front_end, Kept::NothingToLose).contains("lost"));
            assert!(!silent("disk", front_end, Kept::Unknown).contains("if it stays so, kill"));
        }
    }

    #[test]
    fn of_a_dead_agent_nothing_is_called_safe_without_a_record() {
        assert!(dead("disk", Kept::Recorded).contains("safe"));
        for kept in [Kept::InTheAgent, Kept::NothingToLose] {
            assert!(!dead("disk", kept).contains("safe"));
        }
        assert!(dead("disk", Kept::InTheAgent).contains("may be lost"));
    }
}
