//! One sector: its base and the versions behind it.

use super::RequestId;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Pending,
    /// At this time of the model.
    Acked(u64),
    Failed(u64),
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Version {
    pub value: u64,
    pub request: RequestId,
    pub client: u8,
    pub submitted: u64,
    pub state: State,
    /// Some byte of it has gone out. Before that it can have no effect.
    pub sent: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Sector {
    pub base: Vec<u64>,
    pub versions: Vec<Version>,
    pub ghosts: Vec<u64>,
}

impl Sector {
    /// Index behind the last acked version.
    pub(super) fn settled(&self) -> usize {
        let acked = |version: &Version| matches!(version.state, State::Acked(_));
        self.versions.iter().rposition(acked).map_or(0, |at| at + 1)
    }

    /// Calls `f` with each value that a read may return now, and when it was submitted.
    pub(super) fn visible(&self, mut f: impl FnMut(u64, u64)) {
        let settled = self.settled();
        match settled.checked_sub(1) {
            Some(at) => f(self.versions[at].value, self.versions[at].submitted),
            None => self.base.iter().for_each(|value| f(*value, 0)),
        }
        for version in &self.versions[settled..] {
            f(version.value, version.submitted);
        }
    }

    /// The last version acked before `time` is on the medium.
    pub(super) fn durable_before(&mut self, time: u64) {
        let before = |v: &Version| matches!(v.state, State::Acked(at) if at < time);
        if let Some(at) = self.versions.iter().rposition(before) {
            self.rebase(at);
        }
    }

    /// Version `at` is on the medium, and with it nothing older.
    pub(super) fn rebase(&mut self, at: usize) {
        let value = self.versions[at].value;
        self.base.clear();
        self.base.push(value);
        self.versions.drain(..=at);
        self.ghosts.clear();
    }

    pub(super) fn describe(&self) -> String {
        let versions: Vec<String> = self
            .versions
            .iter()
            .map(|v| {
                let sent = if v.sent { "" } else { ", unsent" };
                format!(
                    "{}({:?} of #{} at {}{sent})",
                    v.value, v.state, v.request, v.submitted
                )
            })
            .collect();
        format!(
            "base {:?}, then [{}], ghosts {:?}",
            self.base,
            versions.join(", "),
            self.ghosts
        )
    }
}
