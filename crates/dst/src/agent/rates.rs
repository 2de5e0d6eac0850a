//! Rates over the last second or two, from counters that are looked at only when something happens anyway.
//!
//! Two samples are kept. A busy device takes one about every second; an idle one takes none, and none is needed: nothing
//! has been counted since the last.

use std::time::{Duration, Instant};

use crate::control::{Rates, Totals};

/// Time between samples, and the shortest time that a rate is taken over if there is a longer one.
pub const INTERVAL: Duration = Duration::from_secs(1);

/// Over less than this a rate says nothing.
const SHORTEST: Duration = Duration::from_millis(50);

/// After a pause of this length the sample before it is no base for a rate.
const STALE: Duration = Duration::from_secs(3);

/// The samples.
#[derive(Debug)]
pub struct Sampler {
    older: (Instant, Totals),
    newer: (Instant, Totals),
}

impl Sampler {
    /// Starts at zero.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        let zero = (now, Totals::default());
        Self {
            older: zero,
            newer: zero,
        }
    }

    /// Whether it is time for a sample.
    #[must_use]
    pub fn is_due(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.newer.0) >= INTERVAL
    }

    /// Takes a sample.
    pub fn sample(&mut self, now: Instant, totals: Totals) {
        let paused = now.saturating_duration_since(self.newer.0) >= STALE;
        let sample = (now, totals);
        self.older = if paused { sample } else { self.newer };
        self.newer = sample;
    }

    /// The rates at this moment.
    #[must_use]
    pub fn rates(&self, now: Instant, totals: &Totals) -> Rates {
        let age = |sample: &(Instant, Totals)| now.saturating_duration_since(sample.0);
        let base = match age(&self.newer) >= INTERVAL {
            true => &self.newer,
            false => &self.older,
        };
        let over = age(base);
        if over < SHORTEST {
            return Rates::default();
        }
        totals.rates_since(&base.1, over.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reads(reads: u64) -> Totals {
        Totals {
            reads,
            ..Totals::default()
        }
    }

    #[test]
    fn a_busy_device_shows_the_last_second_or_two() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut sampler = Sampler::new(start);
        assert!(!sampler.is_due(at(999)));
        assert!(sampler.is_due(at(1000)));
        sampler.sample(at(1000), reads(100));
        sampler.sample(at(2000), reads(300));
        assert_eq!(sampler.rates(at(2500), &reads(400)).reads, 200.0);
        assert_eq!(sampler.rates(at(3000), &reads(400)).reads, 100.0);
    }

    #[test]
    fn an_idle_device_goes_to_zero_and_starts_anew() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut sampler = Sampler::new(start);
        sampler.sample(at(1000), reads(100));
        assert_eq!(sampler.rates(at(60_000), &reads(100)).reads, 0.0);
        sampler.sample(at(60_000), reads(101));
        assert_eq!(sampler.rates(at(60_010), &reads(200)), Rates::default());
        assert_eq!(sampler.rates(at(60_500), &reads(151)).reads, 100.0);
    }
}
