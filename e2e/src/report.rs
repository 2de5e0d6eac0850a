//! What a campaign has found: cases with their outcome, counts, figures.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::interrupt;
use crate::lab::Plan;

/// The result of one campaign, as it is printed and kept.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// Its name.
    pub campaign: String,
    /// `full`, `short` or `quick`.
    pub form: String,
    /// The front end that was asked for, if one was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub front_end: Option<String>,
    /// Every case passed.
    pub pass: bool,
    /// What repeats it.
    pub seed: u64,
    /// Wall clock.
    pub seconds: f64,
    /// Cases that passed.
    pub passed: u64,
    /// Cases that failed, with the reason.
    pub failed: Vec<String>,
    /// Cases that can't be tried on this machine, with the reason.
    pub skipped: Vec<String>,
    /// How often what was done.
    pub counts: BTreeMap<String, u64>,
    /// Measurements.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub figures: BTreeMap<String, Value>,
}

impl Outcome {
    /// The line that says it.
    pub fn line(&self) -> String {
        let counts: Vec<String> = self
            .counts
            .iter()
            .map(|(k, n)| format!("{k}={n}"))
            .collect();
        let counts = match counts.is_empty() {
            true => String::new(),
            false => format!(", {}", counts.join(" ")),
        };
        let skipped = match self.skipped.len() {
            0 => String::new(),
            n => format!(", {n} skipped"),
        };
        let front_end = self.front_end.as_ref();
        let front_end = front_end.map_or_else(String::new, |name| format!(" on {name}"));
        format!(
            "{} {}{front_end} ({}): {} cases passed, {} failed{skipped}{counts}, seed {}, {:.1} s",
            if self.pass { "PASS" } else { "FAIL" },
            self.campaign,
            self.form,
            self.passed,
            self.failed.len(),
            self.seed,
            self.seconds
        )
    }
}

/// Collects the result while a campaign runs.
pub struct Report {
    outcome: Outcome,
    start: Instant,
}

impl Report {
    /// Of a campaign that starts now.
    pub fn new(campaign: &str, plan: &Plan) -> Report {
        Report {
            outcome: Outcome {
                campaign: campaign.to_owned(),
                form: plan.form.name().to_owned(),
                front_end: plan.front_end.name().map(str::to_owned),
                pass: false,
                seed: plan.seed,
                seconds: 0.0,
                passed: 0,
                failed: Vec::new(),
                skipped: Vec::new(),
                counts: BTreeMap::new(),
                figures: BTreeMap::new(),
            },
            start: Instant::now(),
        }
    }

    /// Runs one case and notes how it went; the campaign goes on in any case. True if it passed. After a signal nothing
    /// more is run.
    pub fn case(&mut self, name: &str, case: impl FnOnce(&mut Report) -> Result<()>) -> bool {
        if interrupt::asked() {
            return false;
        }
        let start = Instant::now();
        let result = case(self);
        let took = start.elapsed();
        self.note(name, result, took)
    }

    /// Notes how a case went that has been run already.
    pub fn note(&mut self, name: &str, result: Result<()>, took: Duration) -> bool {
        let took = took.as_secs_f64();
        match result {
            Ok(()) => {
                self.outcome.passed += 1;
                eprintln!("  ok    {name} ({took:.1} s)");
                true
            }
            Err(error) => {
                eprintln!("  FAIL  {name} ({took:.1} s): {error:#}");
                self.outcome.failed.push(format!("{name}: {error:#}"));
                false
            }
        }
    }

    /// Notes a case that this machine can't run.
    pub fn skip(&mut self, name: &str, why: &str) {
        eprintln!("  skip  {name}: {why}");
        self.outcome.skipped.push(format!("{name}: {why}"));
    }

    /// Adds to a count.
    pub fn count(&mut self, what: &str, n: u64) {
        *self.outcome.counts.entry(what.to_owned()).or_default() += n;
    }

    /// Keeps a measurement.
    pub fn figure(&mut self, what: &str, value: impl Into<Value>) {
        self.outcome.figures.insert(what.to_owned(), value.into());
    }

    /// Whether nothing has come of any case so far.
    pub fn is_empty(&self) -> bool {
        let outcome = &self.outcome;
        outcome.passed == 0 && outcome.failed.is_empty() && outcome.skipped.is_empty()
    }

    /// Whether a case failed so far.
    pub fn has_failures(&self) -> bool {
        !self.outcome.failed.is_empty()
    }

    /// The result. Nothing passed is no pass.
    pub fn finish(mut self) -> Outcome {
        if interrupt::asked() {
            self.outcome
                .failed
                .push("interrupted by a signal".to_owned());
        }
        self.outcome.pass = self.outcome.failed.is_empty() && self.outcome.passed > 0;
        self.outcome.seconds = (self.start.elapsed().as_secs_f64() * 10.0).round() / 10.0;
        self.outcome
    }
}

/// Says what goes on, on standard error.
pub fn say(text: &str) {
    eprintln!("        {text}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::Form;

    #[test]
    fn one_failed_case_fails_the_campaign_and_nothing_is_no_pass() {
        let mut report = Report::new("x", &Plan::for_test(Form::Short));
        assert!(!report.clone_for_test().finish().pass);
        report.case("good", |_| Ok(()));
        assert!(report.clone_for_test().finish().pass);
        report.case("bad", |_| anyhow::bail!("because"));
        let outcome = report.finish();
        assert!(!outcome.pass);
        assert_eq!(outcome.failed, ["bad: because"]);
        assert!(outcome
            .line()
            .starts_with("FAIL x (short): 1 cases passed, 1 failed"));
    }

    impl Report {
        fn clone_for_test(&self) -> Report {
            Report {
                outcome: self.outcome.clone(),
                start: self.start,
            }
        }
    }
}
