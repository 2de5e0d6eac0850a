//! `dst attach`: starts the agent of a device and waits until the device is there, or says why not.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use dst_net::Endpoint;
use rustix::process::{Pid, Signal};

use crate::agent;
use crate::agent::plan::Plan;
use crate::agent::ready::{Event, Ready};
use crate::cli::Attach;
use crate::exit::{Code, Failure, Outcome};
use crate::leftovers;
use crate::progress::Progress;
use crate::recover;
use crate::render;
use crate::runtime_dir::{DeviceDir, Life};
use crate::signals::Signals;
use crate::values::{Bytes, Limit};

/// How long an agent that was asked to end may take to clean up.
const CLEANUP: Duration = Duration::from_secs(6);

/// Lines of the log that are shown when an agent died.
const LOG_LINES: usize = 10;

/// Longest line that an agent says.
const LONGEST_LINE: usize = 64 * 1024;

/// Runs it.
///
/// # Errors
/// There is no device, and why.
pub fn run(options: &Attach, json: bool) -> Outcome {
    // Looking at devices takes io_uring, and with --foreground this process becomes the agent.
    let options = &agent::on_a_thread(|| recover::choose(options))?;
    let plan = Plan::of(options)?;
    if !plan.recovers {
        agent::on_a_thread(|| check_taken(&plan))?;
    }
    if options.foreground {
        return agent::run_in_foreground(options, move |event| {
            // Nobody to tell if it can't be shown.
            let _ = match event {
                Event::Note { text } => {
                    render::note(text);
                    Ok(())
                }
                Event::Ready(ready) => show(ready, json),
                Event::Failed(_) => Ok(()),
            };
        });
    }
    let signals = Signals::install().map_err(Failure::io("can't take signals"))?;
    let progress = Progress::new(json);
    let name = plan.name;
    progress.doing(match plan.recovers {
        true => format!("taking over {name}"),
        false => format!("connecting to {}", plan.url),
    });
    let mut agent = Starting::spawn(options, &name)?;
    let verdict = agent.wait(&signals);
    drop(progress);
    match verdict {
        Verdict::Ready(ready) => show(&ready, json),
        Verdict::Failed(failure) => Err(failure),
        Verdict::Died(status) => Err(died(&name, &status)),
        Verdict::Interrupted => {
            agent.abandon(&name);
            Err(Failure::interrupted())
        }
    }
}

/// Refuses what is attached already. The agent's lock decides between two at the same time; this makes the better message.
fn check_taken(plan: &Plan) -> Outcome {
    let name = plan.name.as_str();
    let url = plan.url.to_string();
    for (dir, life) in DeviceDir::all() {
        let left = dir.info().filter(|info| {
            let other = life == Life::Dead && dir.name() != name;
            let both_write = !plan.read_only && !info.read_only;
            other && both_write && same_export(&info.url, plan)
        });
        // Another holder of the lease would put an end to what can still be gone on with or made safe.
        if let Some(info) = left {
            check_left(&dir, &info.url)?;
        }
        let Some(info) = dir.info().filter(|_| life == Life::Alive) else {
            continue;
        };
        let place = info.node.map_or_else(
            || format!("a device {} that is being attached", dir.name()),
            |node| node.display().to_string(),
        );
        let same_name = dir.name() == name;
        // A reader is in nobody's way; the server has the last word on writers.
        let both_write = !plan.read_only && !info.read_only;
        if info.url == url && (same_name || both_write) {
            return Err(Failure::new(
                Code::AlreadyAttached,
                format!("{url} is attached already as {place}"),
            )
            .hint(match both_write {
                true => format!("detach it first: dst detach {}", dir.name()),
                false => "--name gives this one another name".to_owned(),
            }));
        }
        if same_name && dir == DeviceDir::own(name) {
            return Err(Failure::new(
                Code::NameTaken,
                format!("the name {name} is taken by {place}, which is {}", info.url),
            )
            .hint("choose another with --name, or detach that one first"));
        }
    }
    Ok(())
}

/// Refuses to pass by what the dead agent of another device of the same export has left.
fn check_left(dir: &DeviceDir, url: &str) -> Outcome {
    let name = dir.name();
    if dst_blockdev::recoverable(name) {
        return Err(Failure::new(
            Code::AlreadyAttached,
            format!("{url} is attached already as {name}, which waits since its agent died"),
        )
        .hint(format!("go on with it: dst attach --recover {name}")));
    }
    if leftovers::unsettled(dir) {
        return Err(Failure::new(
            Code::AlreadyAttached,
            format!(
                "the agent of {name} had died, and writes to {url} that it had acknowledged are not safe yet"
            ),
        )
        .hint(format!(
            "detach it first: dst detach {name} (with --force if they are to be given up)"
        )));
    }
    Ok(())
}

/// Whether `url` may be of the export that is to be attached: one server goes by many names, so only the export's is compared.
fn same_export(url: &str, plan: &Plan) -> bool {
    url == plan.url.to_string()
        || url
            .parse::<Endpoint>()
            .is_ok_and(|other| other.export() == plan.url.export())
}

fn show(ready: &Ready, json: bool) -> Outcome {
    if json {
        return render::json(ready);
    }
    render::line(&ready.node.display().to_string())
}

/// How an attach went.
enum Verdict {
    Ready(Ready),
    Failed(Failure),
    /// The agent ended without a word.
    Died(String),
    Interrupted,
}

/// An agent that has been started and has not said yet how it went.
struct Starting {
    child: Child,
    pipe: File,
    /// What came of a line so far.
    partial: Vec<u8>,
}

impl Starting {
    fn spawn(options: &Attach, name: &str) -> Outcome<Self> {
        let mut child = crate::again::command()
            .args(agent_arguments(options, name))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(Failure::io("can't start the agent"))?;
        let pipe = child
            .stdout
            .take()
            .expect("standard output was asked to be a pipe");
        Ok(Self {
            child,
            pipe: File::from(std::os::fd::OwnedFd::from(pipe)),
            partial: Vec::new(),
        })
    }

    /// Waits for the verdict.
    fn wait(&mut self, signals: &Signals) -> Verdict {
        loop {
            match signals.wait_readable(self.pipe.as_fd(), None, 0) {
                Ok(true) => {}
                Ok(false) => return Verdict::Interrupted,
                Err(error) => return Verdict::Failed(Failure::io("can't wait")(error)),
            }
            match self.next_events() {
                Ok(events) => {
                    for event in events {
                        match event {
                            Event::Note { text } => render::note(&text),
                            Event::Ready(ready) => return Verdict::Ready(ready),
                            Event::Failed(failure) => return Verdict::Failed(failure),
                        }
                    }
                }
                Err(_) => {
                    let status = self.child.wait();
                    return Verdict::Died(status.map_or_else(|e| e.to_string(), |s| s.to_string()));
                }
            }
        }
    }

    /// The events that have come; an error at the end of the pipe.
    fn next_events(&mut self) -> std::io::Result<Vec<Event>> {
        let mut buffer = [0; 4096];
        let read = self.pipe.read(&mut buffer)?;
        if read == 0 || self.partial.len() > LONGEST_LINE {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        self.partial.extend_from_slice(&buffer[..read]);
        let mut events = Vec::new();
        while let Some(end) = self.partial.iter().position(|&b| b == b'\n') {
            let line: Vec<u8> = self.partial.drain(..=end).collect();
            events.extend(serde_json::from_slice::<Event>(&line).ok());
        }
        Ok(events)
    }

    /// Makes the agent end and clean up, and cleans up after it where it does not.
    fn abandon(&mut self, name: &str) {
        let pid = Pid::from_child(&self.child);
        // It is our child and has not been waited for: the number is its own.
        let _ = rustix::process::kill_process(pid, Signal::TERM);
        let until = Instant::now() + CLEANUP;
        while Instant::now() < until {
            match self.child.try_wait() {
                Ok(Some(_)) => break,
                _ => std::thread::sleep(Duration::from_millis(10)),
            }
        }
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        remove_leftovers(name);
    }
}

/// Takes away what an agent left that died before its device was there.
fn remove_leftovers(name: &str) {
    let dir = DeviceDir::own(name);
    // What had been acknowledged before stays for the next attach or detach, and so does a device that waits.
    let kept = leftovers::unsettled(&dir) || dst_blockdev::recoverable(name);
    if dir.life() == Life::Dead && !kept {
        if let Ok(Some(lock)) = dir.lock() {
            // What can't be removed now the next attach of the name tries again.
            if dir.clean_up_after_death(&lock).is_ok() {
                dir.remove(lock);
            }
        }
    }
}

/// The failure of an agent that said nothing, with the end of its log.
fn died(name: &str, status: &str) -> Failure {
    let lines = DeviceDir::own(name).last_log_lines(LOG_LINES);
    remove_leftovers(name);
    let failure = Failure::new(
        Code::Other,
        format!("the agent died before the device was there ({status})"),
    );
    match lines.is_empty() {
        true => failure,
        false => failure.hint(format!("the end of its log:\n  {}", lines.join("\n  "))),
    }
}

/// The command line of the agent: `agent` and the same options, with the name settled.
fn agent_arguments(options: &Attach, name: &str) -> Vec<String> {
    let limit = |limit: Limit| match limit.0 {
        Some(limit) => format!("{}ms", limit.as_millis()),
        None => "none".to_owned(),
    };
    let mut arguments = vec![
        "agent".to_owned(),
        format!("--connect-timeout={}", limit(options.connect_timeout)),
    ];
    match options.recover {
        Some(_) => arguments.push(format!("--recover={name}")),
        None => arguments.extend([
            format!("--name={name}"),
            format!("--front-end={}", options.front_end),
        ]),
    }
    if let Some(deadline) = options.deadline {
        arguments.push(format!("--deadline={}", limit(deadline)));
    }
    if let Some(connections) = options.connections {
        arguments.push(format!("--connections={connections}"));
    }
    if let Some(Bytes(retain)) = options.retain {
        let retain = retain.map_or_else(|| "off".to_owned(), |bytes| bytes.to_string());
        arguments.push(format!("--retain={retain}"));
    }
    for (given, flag) in [
        (options.read_only, "--read-only"),
        (options.insecure, "--insecure"),
    ] {
        if given {
            arguments.push(flag.to_owned());
        }
    }
    arguments.extend(options.url.as_ref().map(ToString::to_string));
    arguments
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    #[test]
    fn the_agent_gets_every_option_that_attach_got() {
        for line in [
            "dst attach dst://[::1]:7/x",
            "dst attach dst://s/x --name y --front-end fuse --deadline 5s --connect-timeout none \
             --connections 3 --retain 1M --read-only --insecure",
            "dst attach dst+exec:///x?command=ssh%20a --retain off --connect-timeout 1m",
            "dst attach --recover y --deadline none --connections 8 --connect-timeout 1m",
        ] {
            let parse = |words: Vec<String>| match Cli::try_parse_from(words).unwrap().command {
                Command::Attach(attach) | Command::Agent(attach) => attach,
                other => panic!("{other:?}"),
            };
            let mut attach = parse(line.split_whitespace().map(str::to_owned).collect());
            let mut words = vec!["dst".to_owned()];
            words.extend(agent_arguments(&attach, "y"));
            attach.name = attach.recover.is_none().then(|| "y".into());
            assert_eq!(
                format!("{:?}", parse(words)),
                format!("{attach:?}"),
                "{line}"
            );
        }
    }
}
