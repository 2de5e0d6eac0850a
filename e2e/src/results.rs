//! Results that are kept in a file which can be committed: for which commit, when, how.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::lab::Plan;
use crate::report::Outcome;

/// See the [module](self).
#[derive(Debug, Default, Serialize, Deserialize)]
struct Kept {
    /// The commit, with `-dirty` if the work tree differed.
    commit: String,
    /// The day and time of the last result, UTC.
    date: String,
    /// Kernel release.
    kernel: String,
    /// The last result of each campaign.
    campaigns: Vec<Outcome>,
}

/// Results of this run, and of earlier runs for the same commit.
pub struct Results {
    path: Option<PathBuf>,
    kept: Kept,
}

impl Results {
    /// Those in the file, if they are of the present commit; else none.
    ///
    /// # Errors
    /// The file can't be read, or is something else.
    pub fn load(path: Option<&Path>) -> Result<Results> {
        Results::of(path, &commit())
    }

    /// The same for a commit that is known.
    ///
    /// # Errors
    /// As [`Results::load`].
    fn of(path: Option<&Path>, commit: &str) -> Result<Results> {
        let mut kept = Kept::default();
        if let Some(path) = path.filter(|path| path.exists()) {
            let text = std::fs::read_to_string(path)?;
            kept = serde_json::from_str(&text)
                .with_context(|| format!("{} holds no results", path.display()))?;
            // Of a dirty tree nobody knows what was tested.
            if kept.commit != commit || commit.ends_with("-dirty") {
                kept = Kept::default();
            }
        }
        commit.clone_into(&mut kept.commit);
        kept.kernel = rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned();
        Ok(Results {
            path: path.map(Path::to_owned),
            kept,
        })
    }

    /// Whether a campaign has passed as it is planned.
    pub fn has_passed(&self, name: &str, plan: &Plan) -> bool {
        let planned = |o: &&Outcome| {
            o.campaign == name
                && o.form == plan.form.name()
                && o.front_end.as_deref() == plan.front_end.name()
        };
        let kept = self.kept.campaigns.iter().find(planned);
        kept.is_some_and(|o| o.pass)
    }

    /// Adds a result, in place of an older one, and writes the file.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn add(&mut self, outcome: Outcome) -> Result<()> {
        self.kept
            .campaigns
            .retain(|o| (&o.campaign, &o.front_end) != (&outcome.campaign, &outcome.front_end));
        self.kept.campaigns.push(outcome);
        self.kept.date = now();
        let Some(path) = &self.path else {
            return Ok(());
        };
        let text = self.to_json()?;
        let new = path.with_extension("new");
        std::fs::write(&new, text + "\n")
            .with_context(|| format!("can't write {}", new.display()))?;
        std::fs::rename(&new, path)?;
        Ok(())
    }

    /// As in the file.
    ///
    /// # Errors
    /// None in practice.
    pub fn to_json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(&self.kept)?)
    }

    /// One line for each campaign, failures with their reasons.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for outcome in &self.kept.campaigns {
            lines.push(outcome.line());
            lines.extend(outcome.failed.iter().map(|failed| format!("  {failed}")));
        }
        lines
    }

    /// Whether there are results, and only good ones.
    pub fn all_passed(&self) -> bool {
        !self.kept.campaigns.is_empty() && self.kept.campaigns.iter().all(|o| o.pass)
    }
}

fn said(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

/// The commit of the current directory.
fn commit() -> String {
    let Some(head) = said("git", &["rev-parse", "HEAD"]) else {
        return "unknown-dirty".to_owned();
    };
    // The result files themselves may differ.
    let changed = said(
        "git",
        &["status", "--porcelain", "--", ".", ":!e2e/results"],
    );
    match changed.as_deref() {
        Some("") => head,
        _ => format!("{head}-dirty"),
    }
}

fn now() -> String {
    said("date", &["-u", "+%Y-%m-%dT%H:%M:%SZ"]).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::{Form, FrontEnd};
    use crate::report::Report;

    #[test]
    fn results_are_kept_for_each_campaign_and_front_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("e2e.json");
        let mut plan = Plan::for_test(Form::Full);
        for (name, front_end) in [
            ("plug", FrontEnd::Ublk),
            ("powercut", FrontEnd::Nbd),
            ("powercut", FrontEnd::Nbd),
        ] {
            plan.front_end = front_end;
            let mut report = Report::new(name, &plan);
            report.case("a case", |_| Ok(()));
            let mut results = Results::of(Some(&path), "abc").unwrap();
            results.add(report.finish()).unwrap();
        }
        let kept = Results::of(Some(&path), "abc").unwrap();
        assert_eq!(kept.lines().len(), 2);
        assert!(kept.has_passed("powercut", &plan));
        assert!(!kept.has_passed("plug", &plan));
        let others = Results::of(Some(&path), "def").unwrap();
        assert!(!others.has_passed("powercut", &plan));
    }
}
