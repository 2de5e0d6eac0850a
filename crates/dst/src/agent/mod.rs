//! The agent: the process that serves one device.
//!
//! `dst attach` runs this program again as `dst agent`, which sets itself up here, serves in [`device`] and ends when the
//! device is gone. With `--foreground` the same runs in `dst attach` itself.
//!
//! | file | subject |
//! | --- | --- |
//! | `plan.rs` | what is to be served, and how |
//! | `device.rs` | the loop: front end, connections, control socket, signals |
//! | `device/stages.rs` | from attaching to detached |
//! | `control.rs` | the control socket |
//! | `ready.rs` | what `dst attach` is told |
//! | `report.rs` | what `dst status` is told |
//! | `rates.rs` | operations and bytes per second |
//! | `log.rs` | the log |

mod control;
mod device;
mod log;
pub mod plan;
mod rates;
pub mod ready;
mod report;

use std::fs::Permissions;
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;

use dst_blockdev::{Choice, Preparation};
use dst_client::recover::Leftovers;
use dst_client::{Driver, OpenError, Options};
use dst_net::Address;
use dst_proto::Status;

use self::device::DeviceLoop;
use self::log::Log;
use self::plan::Plan;
use self::ready::{Announcer, Event};
use crate::cli::Attach;
use crate::exit::{Code, Failure, Outcome};
use crate::leftovers::{self, Fate};
use crate::runtime_dir::{start_time, AgentInfo, AgentLock, DeviceDir, Settings};
use crate::signals::Signals;

/// Bytes of acknowledged writes that are kept unless another amount is asked for.
const USUAL_RETAIN: u64 = 256 << 20;

/// `dst agent`: serves a device in the background until it is detached. Its verdict goes to the process that started it;
/// what is returned is for the log.
///
/// # Errors
/// The device could not be made.
pub fn run_in_background(options: &Attach) -> Outcome {
    let preparation = dst_blockdev::prepare_agent(true);
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let plan = Plan::of(options);
    let is_command = |plan: &Plan| matches!(plan.url.address(), Address::Exec { .. });
    if !plan.as_ref().is_ok_and(is_command) {
        // No file system is held by being where we are. A command may have relative paths.
        let _ = std::env::set_current_dir("/");
    }
    let mut announcer =
        Announcer::take_stdout().map_err(Failure::io("can't talk to who started this"))?;
    let served = plan.and_then(|plan| serve(&plan, true, &mut announcer, &preparation));
    if let Err(failure) = &served {
        announcer.tell(&Event::Failed(failure.clone()));
    }
    served
}

/// Serves a device in the foreground until it is detached or a signal comes. `show` gets what happens until the device is
/// there.
///
/// # Errors
/// The device could not be made, or something was lost when it ended.
pub fn run_in_foreground(options: &Attach, show: impl FnMut(&Event) + Send + 'static) -> Outcome {
    let preparation = dst_blockdev::prepare_agent(false);
    let mut announcer = Announcer::Foreground(Box::new(show));
    serve(&Plan::of(options)?, false, &mut announcer, &preparation)
}

fn serve(
    plan: &Plan,
    background: bool,
    announcer: &mut Announcer,
    preparation: &Preparation,
) -> Outcome {
    let signals = Signals::install().map_err(Failure::io("can't take signals"))?;
    let mut plan = plan.clone();
    if !plan.recovers {
        plan.front_end = on_a_thread(|| dst_blockdev::check(plan.front_end, None))?;
    }
    let plan = &plan;
    let name = plan.name.as_str();

    let dir = DeviceDir::create(name)?;
    let lock = dir
        .lock()
        .map_err(Failure::io(format!("can't lock the directory of {name}")))?
        .ok_or_else(|| {
            Failure::new(
                Code::NameTaken,
                format!("a device {name} is attached already"),
            )
            .hint("choose another name with --name, or detach it first")
        })?;
    let mut setup = Setup {
        plan,
        inherited: None,
        removed: Vec::new(),
        dir: &dir,
        announcer,
        signals: &signals,
        log: Log::foreground(),
    };
    match (
        plan.recovers,
        on_a_thread(|| dst_blockdev::recoverable(name)),
    ) {
        (true, true) => {}
        // First, since whoever waits for the device of a dead agent should not have to wait for the server; and while what it
        // has mounted can be seen.
        (false, false) => setup.removed = on_a_thread(|| dir.clean_up_front_end(&lock))?,
        // It came to be so since somebody looked.
        (recovers, _) => {
            let (what, hint) = match recovers {
                true => ("has no device that could be taken over", "attach it anew"),
                false => ("waits since its agent died", "recover it with --recover"),
            };
            return Err(Failure::new(Code::Other, format!("{name} {what}")).hint(hint));
        }
    }
    let mut preparation = preparation.clone();
    preparation.missing.extend(own_mounts(plan).err());
    if !plan.recovers {
        setup.settle(&lock)?;
    }
    let served = setup.serve(background, &lock, &preparation);
    // What is there for another try stays with all that belongs to it: the record of a device that waited, whatever has become
    // of that, and a device that waits now.
    if served.is_ok() || !(plan.recovers || dst_blockdev::recoverable(name)) {
        dir.remove(lock);
    }
    // Only now is it true.
    served.and_then(device::Ended::tell)
}

/// Runs something on a thread of its own, to its end. The kernel starts threads for who uses io_uring, which end with it: before
/// [`own_mounts`] there must be none, for they would stay with everybody's mounts.
pub fn on_a_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let done = std::thread::scope(|scope| scope.spawn(work).join());
    done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Keeps file systems out of the agent's sight, the one on its own device above all ([`dst_blockdev::leave_mounts`]). FUSE has to
/// mount where others see it, and a command may need any file.
///
/// # Errors
/// It could not be done, in words.
fn own_mounts(plan: &Plan) -> Result<(), String> {
    let socket = match plan.url.address() {
        Address::Exec { .. } => return Ok(()),
        Address::Unix { path } => Some(path.clone()),
        Address::Tcp { .. } => None,
    };
    if plan.front_end == Choice::Fuse {
        return Ok(());
    }
    let mut needed = vec![
        dst_blockdev::runtime_root(),
        dst_client::identity::state_dir(),
    ];
    needed.extend(socket);
    needed.extend(std::env::current_exe().ok());
    dst_blockdev::leave_mounts(&needed)
}

/// What making a device takes.
struct Setup<'a> {
    plan: &'a Plan,
    dir: &'a DeviceDir,
    announcer: &'a mut Announcer,
    signals: &'a Signals,
    log: Log,
    /// What became of what a dead agent had acknowledged.
    inherited: Option<String>,
    /// What a dead front end had left.
    removed: Vec<String>,
}

impl Setup<'_> {
    /// Makes safe what a dead agent had acknowledged.
    fn settle(&mut self, lock: &AgentLock) -> Outcome {
        // Where that fails everything stays as it is, for another try.
        self.inherited = match leftovers::settle(self.dir, lock, self.signals)? {
            Fate::Nothing => None,
            Fate::Safe(what) | Fate::Lost(what) => {
                Some(format!("an agent of {} had died: {what}", self.plan.name))
            }
        };
        Ok(())
    }

    fn serve(
        &mut self,
        background: bool,
        lock: &AgentLock,
        preparation: &Preparation,
    ) -> Outcome<device::Ended> {
        self.prepare(background, lock, &preparation.missing)?;
        let device = self.make_device(preparation.locked)?;
        if preparation.locked {
            dst_blockdev::reserve_heap();
        }
        device.run()
    }

    /// Opens the log, takes away what a dead agent has left, and writes down what is served now.
    fn prepare(&mut self, background: bool, lock: &AgentLock, unprepared: &[String]) -> Outcome {
        if dst_blockdev::is_root() {
            // Everybody may ask how a device is; the mount point inside is guarded by the kernel.
            let _ = std::fs::set_permissions(self.dir.path(), Permissions::from_mode(0o711));
        }
        if background {
            self.log = Log::open(&self.dir.log()).map_err(Failure::io("can't open the log"))?;
            if let Some(file) = self.log.file() {
                rustix::stdio::dup2_stderr(file).map_err(Failure::io("can't open the log"))?;
                rustix::stdio::dup2_stdout(file).map_err(Failure::io("can't open the log"))?;
            }
        }
        self.log.line(&format!(
            "dst {} {} {} as {}",
            env!("CARGO_PKG_VERSION"),
            match self.plan.recovers {
                true => "goes on with",
                false => "attaches",
            },
            self.plan.url,
            self.plan.name
        ));
        for missing in unprepared {
            self.log.line(missing);
        }
        if let Some(text) = self.inherited.take() {
            self.log.line(&text);
            self.announcer.tell(&Event::Note { text });
        }
        let mut removed = std::mem::take(&mut self.removed);
        let before = self.dir.info().filter(|_| self.plan.recovers);
        if before.is_none() {
            removed.extend(self.dir.clean_up_after_death(lock)?);
        }
        for removed in removed {
            let text = format!("removed what a dead agent had left: {removed}");
            self.log.line(&text);
            self.announcer.tell(&Event::Note { text });
        }
        self.dir
            .set_info(&AgentInfo {
                name: self.plan.name.clone(),
                pid: std::process::id(),
                started: start_time(rustix::process::getpid().as_raw_nonzero().get()),
                url: self.plan.url.to_string(),
                read_only: self.plan.read_only,
                node: before.as_ref().and_then(|info| info.node.clone()),
                device: before.as_ref().and_then(|info| info.device.clone()),
                export_id: before.and_then(|info| info.export_id),
                settings: Some(Settings {
                    front_end: self.plan.front_end.to_string(),
                    deadline_ms: self
                        .plan
                        .deadline
                        .0
                        .map(|limit| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX)),
                    connections: self.plan.connections,
                    retain: retain(self.plan),
                    insecure: self.plan.insecure,
                }),
            })
            .map_err(Failure::io("can't write into the runtime directory"))
    }

    /// Connects and opens the front end, or takes over what a dead agent had. With `locked`, memory for everything that a
    /// request needs is set aside first.
    fn make_device(&mut self, locked: bool) -> Outcome<DeviceLoop<'_>> {
        // Who only reads has left nothing.
        let driver = match self.plan.recovers && !self.plan.read_only {
            true => self.take_over()?,
            false => self.open_driver(locked)?,
        };
        if self.plan.recovers {
            self.check_same(&driver)?;
        }
        if let Some(why) = driver.unrecorded() {
            self.log.line(why);
            let text = why.to_owned();
            self.announcer.tell(&Event::Note { text });
        }
        let geometry = driver.geometry();
        let config = dst_blockdev::Config {
            name: self.plan.name.clone(),
            geometry,
            node: None,
            partitions: true,
            survives: geometry.read_only || driver.is_recorded(),
        };
        let front = match self.plan.recovers {
            true => dst_blockdev::recover(&config)?.ok_or_else(|| {
                Failure::new(
                    Code::NoDevice,
                    "the device that was to be taken over is gone",
                )
            })?,
            false => dst_blockdev::open(self.plan.front_end, &config)?,
        };
        DeviceLoop::new(device::Parts {
            driver,
            front,
            dir: self.dir,
            url: self.plan.url.to_string(),
            recovers: self.plan.recovers,
            announcer: self.announcer,
            signals: self.signals,
            log: &mut self.log,
        })
    }

    /// Refuses another export than the one that the device that waits was made of. Where a session is gone on with the server
    /// has looked; who only reads has opened a new one.
    fn check_same(&self, driver: &Driver) -> Outcome {
        let id = driver.status().export_id;
        match self.dir.info().and_then(|info| info.export_id) {
            Some(known) if known != id => Err(Failure::new(
                Code::Other,
                format!(
                    "the server has another disk as {} now (export {id} instead of {known})",
                    self.plan.url
                ),
            )
            .hint(format!(
                "the device goes on waiting for its own; `dst detach --force {}` gives it up",
                self.plan.name
            ))),
            _ => Ok(()),
        }
    }

    /// Goes on with the session of a dead agent. The server need not be there.
    fn take_over(&mut self) -> Outcome<Driver> {
        let name = &self.plan.name;
        let failed = |why: String| {
            Failure::new(
                Code::Other,
                format!("the session of {name} can't be taken over: {why}"),
            )
            .hint(format!(
                "`dst detach {name}` makes safe what can be, and removes the device"
            ))
        };
        let left = Leftovers::find(self.dir.path())
            .map_err(|error| failed(error.to_string()))?
            .ok_or_else(|| failed("its agent had kept no record".to_owned()))?;
        let driver = left
            .take_over(client_options(self.plan)?)
            .map_err(|error| failed(error.to_string()))?;
        let status = driver.status();
        let text = format!(
            "taken over: session {}, {} bytes in {} retained writes",
            status.session, status.retained_bytes, status.retained_entries
        );
        self.log.line(&text);
        Ok(driver)
    }

    /// Opens the first session; a read-only export is opened read-only without being asked to.
    fn open_driver(&self, locked: bool) -> Outcome<Driver> {
        let mut options = client_options(self.plan)?;
        options.record = Some(self.dir.path().to_owned());
        // Where memory can't be locked nothing is gained by having it early.
        options.reserve = locked.then_some(dst_blockdev::IN_FLIGHT);
        let opened = match self.open_beside(options.clone())? {
            Err(OpenError::Refused {
                status: Status::READ_ONLY,
                ..
            }) if !options.read_only => {
                options.read_only = true;
                self.open_beside(options)?
            }
            opened => opened,
        };
        opened.map_err(|error| Failure::from_open(&self.plan.url, error))
    }

    /// Opens a session on another thread, so that a signal ends the wait.
    fn open_beside(&self, options: Options) -> Outcome<Result<Driver, OpenError>> {
        let (sender, receiver) = mpsc::channel();
        let (done, done_here) = UnixStream::pair().map_err(Failure::io("can't connect"))?;
        std::thread::Builder::new()
            .name("open".to_owned())
            .spawn(move || {
                // Nobody listens after a signal.
                let _ = sender.send(Driver::open(options));
                drop(done);
            })
            .map_err(Failure::io("can't start a thread"))?;
        let opened = self
            .signals
            .wait_readable(done_here.as_fd(), None, 0)
            .map_err(Failure::io("can't wait"))?;
        if !opened {
            return Err(Failure::interrupted());
        }
        receiver
            .recv()
            .map_err(|_| Failure::new(Code::Other, "opening the session failed badly"))
    }
}

/// What the client library is to do.
fn client_options(plan: &Plan) -> Outcome<Options> {
    let mut options = Options::new(plan.url.clone());
    options.read_only = plan.read_only;
    options.deadline = plan.deadline.0;
    options.connections = plan.connections;
    options.retain = retain(plan);
    options.insecure = plan.insecure;
    options.connect_timeout = plan.connect_timeout.0;
    let state = dst_client::identity::state_dir();
    options.identity = dst_client::identity::identity(&state).map_err(Failure::io(format!(
        "can't keep the identity of this client in {}",
        state.display()
    )))?;
    Ok(options)
}

/// Most bytes of acknowledged writes that are kept; `None`: none are.
fn retain(plan: &Plan) -> Option<u64> {
    match plan.retain {
        Some(retain) => retain.0,
        // Since all of it is locked, not more than a small machine has to spare.
        None => Some(USUAL_RETAIN.min(memory() / 8)),
    }
}

/// Bytes of memory that this machine has.
fn memory() -> u64 {
    let system = rustix::system::sysinfo();
    #[allow(
        clippy::useless_conversion,
        reason = "a C long, which is shorter on some machines"
    )]
    let total = u64::from(system.totalram);
    total.saturating_mul(system.mem_unit.into())
}
