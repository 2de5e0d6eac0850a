//! A `dst serve` process that is killed, frozen and started again.

use std::fs::{File, OpenOptions};
use std::io::Read as _;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{bail, Context as _, Result};
use rustix::process::{kill_process, Pid, Signal};

use super::Lab;
use crate::{command, wait};

/// How long a start may take. (A server waits up to 10 s for the lock of one that dies.)
const START: Duration = Duration::from_secs(20);
/// How long an orderly end may take.
const STOP: Duration = Duration::from_secs(30);

/// Where a server listens, as far as looking whether it does is concerned.
#[derive(Clone, Debug)]
enum Listens {
    Tcp(std::net::SocketAddr),
    Unix(PathBuf),
    /// Not reachable from here; a command that succeeds when it is ready.
    Ask(Vec<String>),
}

/// See the [module](self). Killed when it is dropped.
pub struct Server<'l> {
    lab: &'l Lab,
    args: Vec<String>,
    prefix: Vec<String>,
    listens: Listens,
    url: String,
    log: PathBuf,
    child: Option<Child>,
    starts: u64,
}

impl<'l> Server<'l> {
    /// On a TCP port of this machine; not started.
    ///
    /// # Errors
    /// No port is free.
    pub fn tcp(lab: &'l Lab) -> Result<Server<'l>> {
        let port = lab.port()?;
        Ok(Server::at(
            lab,
            format!("dst://127.0.0.1:{port}"),
            Listens::Tcp(([127, 0, 0, 1], port).into()),
        ))
    }

    /// On a TCP port of `::1`; not started.
    ///
    /// # Errors
    /// No port is free.
    pub fn tcp6(lab: &'l Lab) -> Result<Server<'l>> {
        let port = lab.port()?;
        let addr = (std::net::Ipv6Addr::LOCALHOST, port).into();
        Ok(Server::at(
            lab,
            format!("dst://[::1]:{port}"),
            Listens::Tcp(addr),
        ))
    }

    /// On a Unix socket in the laboratory; not started.
    pub fn unix(lab: &'l Lab, name: &str) -> Server<'l> {
        let path = lab.path(name);
        Server::at(
            lab,
            format!("dst+unix://{}", path.display()),
            Listens::Unix(path),
        )
    }

    /// Anywhere, for example in a network namespace: `prefix` starts a command there, and `ask` succeeds when the server is
    /// ready.
    pub fn elsewhere(lab: &'l Lab, url: &str, prefix: &[String], ask: Vec<String>) -> Server<'l> {
        let mut server = Server::at(lab, url.to_owned(), Listens::Ask(ask));
        server.prefix = prefix.to_vec();
        server
    }

    fn at(lab: &'l Lab, url: String, listens: Listens) -> Server<'l> {
        let log = lab.path(&format!("{}.log", lab.unique("server")));
        Server {
            lab,
            args: vec!["--listen".into(), url.clone()],
            prefix: Vec::new(),
            listens,
            url,
            log,
            child: None,
            starts: 0,
        }
    }

    /// With these arguments to `dst serve` besides `--listen`.
    pub fn with<S: Into<String>>(mut self, args: impl IntoIterator<Item = S>) -> Server<'l> {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Started by another command, say in a control group.
    pub fn under(mut self, prefix: &[String]) -> Server<'l> {
        self.prefix = prefix.to_vec();
        self
    }

    /// Puts other arguments in place of an export, from the next start on.
    pub fn replace_arg(&mut self, old: &str, new: &str) {
        for arg in &mut self.args {
            if arg == old {
                new.clone_into(arg);
            }
        }
    }

    /// URL of one of its exports.
    pub fn url(&self, export: &str) -> String {
        match self.listens {
            Listens::Unix(_) => format!("{}?export={export}", self.url),
            _ => format!("{}/{export}", self.url),
        }
    }

    /// Its URL without an export.
    pub fn base_url(&self) -> &str {
        &self.url
    }

    /// Its TCP address.
    ///
    /// # Panics
    /// It has none.
    pub fn addr(&self) -> std::net::SocketAddr {
        match self.listens {
            Listens::Tcp(addr) => addr,
            _ => panic!("{} is no TCP address", self.url),
        }
    }

    /// How often it was started.
    pub fn starts(&self) -> u64 {
        self.starts
    }

    fn command(&self) -> Command {
        let lab = self.lab;
        let mut command = match self.prefix.split_first() {
            Some((program, rest)) => {
                let mut command = lab.program(program, rest);
                command.arg(&lab.plan.dst);
                command
            }
            None => lab.dst::<[&str; 0], &str>([]),
        };
        command.arg("serve").args(&self.args);
        command.env("DST_STATE_DIR", lab.path("server-state"));
        command
    }

    /// Starts it and waits until it answers.
    ///
    /// # Errors
    /// It ends, or does not answer.
    pub fn start(&mut self) -> Result<()> {
        self.start_without_waiting()?;
        let (listens, lab, log) = (self.listens.clone(), self.lab, self.log.clone());
        let child = self.child.as_mut().context("just started")?;
        wait::until("the server to answer", START, || {
            if let Some(status) = child.try_wait()? {
                let text = std::fs::read_to_string(&log).unwrap_or_default();
                bail!("the server ended with {status}: {}", text.trim());
            }
            Ok(answers(lab, &listens))
        })
        .with_context(|| format!("`{}`", command::line(&self.command())))
        .inspect_err(|_| {
            drop(
                self.child
                    .take()
                    .map(|mut child| (child.kill(), child.wait())),
            )
        })
    }

    /// Starts it where it can't be asked whether it is ready.
    ///
    /// # Errors
    /// It can't be started.
    pub fn start_without_waiting(&mut self) -> Result<()> {
        if self.child.is_some() {
            bail!("the server runs already");
        }
        let open = || OpenOptions::new().create(true).append(true).open(&self.log);
        let (out, err): (File, File) = (open()?, open()?);
        let mut command = self.command();
        let child = command
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .with_context(|| format!("can't start `{}`", command::line(&command)))?;
        self.child = Some(child);
        self.starts += 1;
        Ok(())
    }

    /// Starts it where it is expected to refuse: its exit code and what it said.
    ///
    /// # Errors
    /// It does not end.
    pub fn refuses(&self) -> Result<command::Output> {
        command::run(&mut self.command(), START)
    }

    /// Process id of the server itself.
    ///
    /// # Errors
    /// It does not run.
    pub fn pid(&self) -> Result<Pid> {
        let child = self.child.as_ref().context("the server does not run")?;
        Pid::from_raw(child.id() as i32).context("no process id")
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(self.pid()?, signal).context("can't signal the server")
    }

    /// SIGKILL.
    ///
    /// # Errors
    /// It does not run, or had ended by itself, which it never may.
    pub fn kill(&mut self) -> Result<()> {
        self.check_alive()?;
        self.signal(Signal::KILL)?;
        if let Some(mut child) = self.child.take() {
            command::wait_for(&mut child, "the killed server", STOP)?;
        }
        Ok(())
    }

    /// # Errors
    /// It has ended by itself; says how, with the end of its log.
    pub fn check_alive(&mut self) -> Result<()> {
        let child = self.child.as_mut().context("the server does not run")?;
        if let Some(status) = child.try_wait()? {
            self.child = None;
            bail!(
                "the server ended by itself with {status}: {}",
                self.last_words()
            );
        }
        Ok(())
    }

    /// SIGSTOP.
    ///
    /// # Errors
    /// It does not run.
    pub fn freeze(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// It does not run.
    pub fn thaw(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    /// SIGTERM, and it must end well.
    ///
    /// # Errors
    /// It does not end, or with another exit code than 0.
    pub fn stop(&mut self) -> Result<()> {
        self.check_alive()?;
        self.signal(Signal::TERM)?;
        let mut child = self.child.take().context("checked above")?;
        let status = command::wait_for(&mut child, "the server after SIGTERM", STOP);
        if status.is_err() {
            let _ = child.kill();
            let _ = child.wait();
        }
        match status?.code() {
            Some(0) => Ok(()),
            code => bail!(
                "after SIGTERM the server ended with {code:?}: {}",
                self.last_words()
            ),
        }
    }

    /// Resident memory, bytes.
    ///
    /// # Errors
    /// It does not run.
    pub fn resident(&self) -> Result<u64> {
        resident(self.pid()?)
    }

    /// The last lines of its log.
    pub fn last_words(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(8)..].join(" | ")
    }
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Works on a frozen process, too.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Resident memory of a process, bytes.
///
/// # Errors
/// There is no such process.
pub fn resident(pid: Pid) -> Result<u64> {
    let path = format!("/proc/{}/status", pid.as_raw_nonzero());
    let status = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    Ok(kib.with_context(|| format!("no VmRSS in {path}"))? * 1024)
}

/// Whether something speaks there. (The server speaks first.)
fn answers(lab: &Lab, listens: &Listens) -> bool {
    let second = Some(Duration::from_secs(1));
    let mut first = [0; 8];
    match listens {
        Listens::Tcp(addr) => {
            let stream = TcpStream::connect_timeout(addr, Duration::from_secs(1));
            stream.is_ok_and(|mut stream| {
                stream.set_read_timeout(second).is_ok() && stream.read_exact(&mut first).is_ok()
            })
        }
        Listens::Unix(path) => UnixStream::connect(path).is_ok_and(|mut stream| {
            stream.set_read_timeout(second).is_ok() && stream.read_exact(&mut first).is_ok()
        }),
        Listens::Ask(ask) => {
            let Some((program, args)) = ask.split_first() else {
                return true;
            };
            let output = command::run(&mut lab.program(program, args), Duration::from_secs(15));
            output.is_ok_and(|output| output.code == Some(0))
        }
    }
}
