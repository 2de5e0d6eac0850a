//! An attached device, by way of `dst attach`, `dst status` and `dst detach`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{bail, Context as _, Result};
use serde_json::Value;

use super::{sweep, Lab};
use crate::command::{self, Output};
use crate::wait;

/// How long an attach may take, beyond which it hangs.
pub const ATTACH: Duration = Duration::from_secs(40);
/// The same for an orderly detach.
pub const DETACH: Duration = Duration::from_secs(40);

/// Exit code for data that could not be saved.
const DATA_LOST: i32 = 14;

/// A device. Detached by force when it is dropped.
pub struct Device<'l> {
    lab: &'l Lab,
    name: String,
    block: PathBuf,
    pid: i32,
    attached: bool,
}

impl<'l> Device<'l> {
    /// Attaches `url` under a name of its own.
    ///
    /// # Errors
    /// `dst attach` fails, or what it has made is no block device.
    pub fn attach(lab: &'l Lab, url: &str, options: &[&str]) -> Result<Device<'l>> {
        Device::attach_under(lab, &[], url, options)
    }

    /// The same, started by another command, say in a network namespace.
    ///
    /// # Errors
    /// As [`Device::attach`].
    pub fn attach_under(
        lab: &'l Lab,
        prefix: &[String],
        url: &str,
        options: &[&str],
    ) -> Result<Device<'l>> {
        let name = lab.unique("d");
        let mut args = vec!["attach", url, "--name", &name];
        args.extend(options);
        let mut command = match prefix.split_first() {
            Some((program, rest)) => {
                let mut command = lab.program(program, rest);
                command.arg(&lab.plan.dst).args(&args);
                command.args(lab.attach_options());
                command
            }
            None => lab.dst(&args),
        };
        let output = command::run(&mut command, ATTACH)?;
        Device::adopt(lab, &name, output)
    }

    /// The device that an `attach` with this name and output has made.
    ///
    /// # Errors
    /// As [`Device::attach`].
    pub fn adopt(lab: &'l Lab, name: &str, output: Output) -> Result<Device<'l>> {
        output.expect_code(0)?;
        let mut device = Device {
            lab,
            name: name.to_owned(),
            block: PathBuf::new(),
            pid: 0,
            attached: true,
        };
        let node = device.node();
        device.block = std::fs::canonicalize(&node)
            .with_context(|| format!("after attach, {} is not there", node.display()))?;
        let kind = std::fs::metadata(&device.block)?;
        if !std::os::unix::fs::FileTypeExt::is_block_device(&kind.file_type()) {
            bail!("{} is no block device", device.block.display());
        }
        let status = device.status()?;
        device.pid = status["pid"].as_i64().context("no pid in dst status")? as i32;
        let front_end = status["front_end"].as_str().unwrap_or_default();
        if lab
            .plan
            .front_end
            .name()
            .is_some_and(|asked| asked != front_end)
        {
            bail!("{name} is a device of {front_end}, which was not asked for");
        }
        Ok(device)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `/dev/dst/NAME`.
    pub fn node(&self) -> PathBuf {
        Path::new("/dev/dst").join(&self.name)
    }

    /// The block device that the node leads to.
    pub fn block(&self) -> &Path {
        &self.block
    }

    /// The block device's name, `loop3`.
    pub fn block_name(&self) -> String {
        self.block
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    }

    /// The agent's process.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Whether the agent runs.
    pub fn agent_alive(&self) -> bool {
        sweep::processes(self.lab.root())
            .iter()
            .any(|(pid, _)| *pid == self.pid)
    }

    /// What `dst status --json` says of it.
    ///
    /// # Errors
    /// The command fails or does not know the device.
    pub fn status(&self) -> Result<Value> {
        let output = self
            .lab
            .run_dst(&["status", "--json"], Duration::from_secs(20))?
            .expect_code(0)?;
        let json = output.json()?;
        let devices = json["devices"]
            .as_array()
            .context("no devices in dst status")?;
        let device = devices
            .iter()
            .find(|device| device["name"] == self.name.as_str());
        device
            .cloned()
            .with_context(|| format!("{} is not in dst status: {json}", self.name))
    }

    /// A number of the status.
    ///
    /// # Errors
    /// As [`Device::status`].
    pub fn number(&self, field: &str) -> Result<u64> {
        let status = self.status()?;
        status[field]
            .as_u64()
            .with_context(|| format!("no {field} in {status}"))
    }

    /// Connections that work now.
    ///
    /// # Errors
    /// As [`Device::status`].
    pub fn connections(&self) -> Result<u64> {
        let status = self.status()?;
        let now = &status["connections"][0];
        now.as_u64()
            .with_context(|| format!("no connections in {status}"))
    }

    /// Its state and message.
    ///
    /// # Errors
    /// As [`Device::status`].
    pub fn state(&self) -> Result<(String, String)> {
        let status = self.status()?;
        let text = |field: &str| status[field].as_str().unwrap_or_default().to_owned();
        Ok((text("state"), text("message")))
    }

    /// # Errors
    /// The device has failed, or its agent is gone.
    pub fn check_not_failed(&self) -> Result<()> {
        let (state, message) = self.state()?;
        if ["failed", "dead", "closed"].contains(&state.as_str()) {
            bail!("{} is {state}: {message}", self.name);
        }
        Ok(())
    }

    /// Waits for a state.
    ///
    /// # Errors
    /// It does not come.
    pub fn wait_state(&self, wanted: &str, bound: Duration) -> Result<()> {
        let mut last = String::new();
        wait::until(&format!("state {wanted} of {}", self.name), bound, || {
            let (state, message) = self.state()?;
            last = format!("{state} ({message})");
            Ok(state == wanted)
        })
        .with_context(|| format!("last state: {last}"))
    }

    /// Detaches in good order.
    ///
    /// # Errors
    /// `dst detach` fails, or the device is still there.
    pub fn detach(mut self) -> Result<()> {
        self.run_detach(&[])?.expect_code(0)?;
        self.attached = false;
        self.check_gone()
    }

    /// Detaches by force; how long it took. That data was lost is no failure of the command, which says so by its exit code.
    ///
    /// # Errors
    /// `dst detach --force` fails.
    pub fn detach_by_force(&mut self) -> Result<Duration> {
        let output = self.run_detach(&["--force"])?;
        let output = match output.code {
            Some(DATA_LOST) => output,
            _ => output.expect_code(0)?,
        };
        self.attached = false;
        Ok(output.took)
    }

    /// Runs `dst detach` with these options, whatever comes of it.
    ///
    /// # Errors
    /// It does not end.
    pub fn run_detach(&self, options: &[&str]) -> Result<Output> {
        let mut args = vec!["detach", self.name.as_str()];
        args.extend(options);
        self.lab.run_dst(&args, DETACH)
    }

    /// # Errors
    /// Something of the device is still there: node, agent, run-time directory.
    pub fn check_gone(&self) -> Result<()> {
        if std::fs::symlink_metadata(self.node()).is_ok() {
            bail!("{} is still there", self.node().display());
        }
        let agent = || Ok(!self.agent_alive());
        wait::until("the end of the agent", Duration::from_secs(5), agent)?;
        let dir = self.lab.runtime_dir().join(&self.name);
        if dir.exists() {
            let files = std::fs::read_dir(&dir)?
                .flatten()
                .map(|entry| entry.file_name());
            bail!(
                "{} is still there, with {:?}",
                dir.display(),
                files.collect::<Vec<_>>()
            );
        }
        Ok(())
    }

    /// A file of `/sys/block/NAME`, trimmed.
    ///
    /// # Errors
    /// There is none.
    pub fn sysfs(&self, file: &str) -> Result<String> {
        let path = format!("/sys/block/{}/{file}", self.block_name());
        let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
        Ok(text.trim().to_owned())
    }

    /// Size of the block device in bytes.
    ///
    /// # Errors
    /// The system does not say.
    pub fn size(&self) -> Result<u64> {
        Ok(self.sysfs("size")?.parse::<u64>()? * 512)
    }
}

impl Drop for Device<'_> {
    fn drop(&mut self) {
        if self.attached {
            let _ = self.run_detach(&["--force"]);
        }
    }
}
