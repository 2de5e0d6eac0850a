//! A control group with little memory, of either version.

use std::path::{Path, PathBuf};

use anyhow::{bail, Context as _, Result};

use super::Lab;

/// See the [module](self). Removed when it is dropped; everything in it must have ended.
pub struct Cgroup {
    dir: PathBuf,
    version: u8,
}

impl Cgroup {
    /// With at most `bytes` of memory.
    ///
    /// # Errors
    /// There is no memory controller, or it can't be used.
    pub fn with_memory(lab: &Lab, bytes: u64) -> Result<Cgroup> {
        let (top, version) = memory_controller().context("no memory controller")?;
        let dir = top.join(lab.unique("mem"));
        std::fs::create_dir(&dir).with_context(|| format!("can't make {}", dir.display()))?;
        let group = Cgroup { dir, version };
        let limit = match version {
            1 => "memory.limit_in_bytes",
            _ => "memory.max",
        };
        std::fs::write(group.dir.join(limit), bytes.to_string())
            .with_context(|| format!("can't set {limit}"))?;
        Ok(group)
    }

    /// The version of control groups here.
    ///
    /// # Errors
    /// There is no memory controller.
    pub fn version() -> Result<u8> {
        Ok(memory_controller().context("no memory controller")?.1)
    }

    /// A command that runs the one behind it in this group.
    pub fn prefix(&self) -> Vec<String> {
        let script = format!(
            "echo $$ > {}/cgroup.procs && exec \"$@\"",
            self.dir.display()
        );
        ["sh", "-c", &script, "sh"].map(str::to_owned).to_vec()
    }

    /// Most memory that was in use, bytes.
    pub fn peak(&self) -> u64 {
        self.number(match self.version {
            1 => "memory.max_usage_in_bytes",
            _ => "memory.peak",
        })
    }

    /// How often an allocation met the limit.
    pub fn hits(&self) -> u64 {
        match self.version {
            1 => self.number("memory.failcnt"),
            _ => {
                let text = std::fs::read_to_string(self.dir.join("memory.events"));
                let text = text.unwrap_or_default();
                let line = text.lines().find_map(|line| line.strip_prefix("max "));
                line.and_then(|n| n.trim().parse().ok()).unwrap_or(0)
            }
        }
    }

    fn number(&self, file: &str) -> u64 {
        let text = std::fs::read_to_string(self.dir.join(file)).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    }

    /// Removes it.
    ///
    /// # Errors
    /// Something runs in it.
    pub fn remove(self) -> Result<()> {
        let dir = self.dir.clone();
        let removed = || Ok(!dir.exists() || std::fs::remove_dir(&dir).is_ok());
        let bound = std::time::Duration::from_secs(10);
        crate::wait::until("the removal of the control group", bound, removed)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.dir);
    }
}

/// Where groups with a memory limit can be made, and the version of control groups.
fn memory_controller() -> Result<(PathBuf, u8)> {
    let v1 = Path::new("/sys/fs/cgroup/memory");
    if v1.join("memory.limit_in_bytes").exists() || v1.join("cgroup.procs").exists() {
        return Ok((v1.to_owned(), 1));
    }
    let v2 = Path::new("/sys/fs/cgroup");
    let controllers = std::fs::read_to_string(v2.join("cgroup.controllers")).unwrap_or_default();
    if controllers.split_whitespace().any(|name| name == "memory") {
        std::fs::write(v2.join("cgroup.subtree_control"), "+memory")
            .context("can't enable the memory controller")?;
        return Ok((v2.to_owned(), 2));
    }
    bail!("neither version 1 nor version 2 of control groups has a memory controller here");
}
