//! How long to wait before the next attempt to connect: exponential backoff with jitter, without clock or randomness
//! of its own.
//!
//! The delays' upper bound doubles from `min` to `max`; each delay is drawn evenly from the upper half of its bound,
//! so that many clients of one dead server don't come back in step. After [`Backoff::immediately`] (the server said
//! that it drains and will be back) the first attempt is made at once.

use std::time::Duration;

/// The state between attempts.
#[derive(Debug, Clone)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    /// Upper bound of the next delay.
    bound: Duration,
    /// The next attempt waits for nothing.
    at_once: bool,
}

impl Backoff {
    /// Upper bound of the first delay of [`Backoff::default`].
    pub const DEFAULT_MIN: Duration = Duration::from_millis(100);
    /// Upper bound of all delays of [`Backoff::default`].
    pub const DEFAULT_MAX: Duration = Duration::from_secs(5);

    /// Delays of up to `min` first and up to `max` in the end.
    pub fn new(min: Duration, max: Duration) -> Self {
        let max = max.max(min);
        Self {
            min,
            max,
            bound: min,
            at_once: false,
        }
    }

    /// The delay before the next attempt. `random` is any evenly distributed number.
    pub fn next(&mut self, random: u64) -> Duration {
        if std::mem::take(&mut self.at_once) {
            return Duration::ZERO;
        }
        let bound = self.bound;
        self.bound = bound.saturating_mul(2).min(self.max);
        let half = bound / 2;
        // The top 32 bits as a fraction of one, in whole nanoseconds; no product is beyond u128.
        let jitter = (half.as_nanos() * u128::from(random >> 32)) >> 32;
        bound - half + Duration::from_nanos(u64::try_from(jitter).unwrap_or(u64::MAX))
    }

    /// The connection works: the next failure starts from the shortest delay.
    pub fn reset(&mut self) {
        *self = Self::new(self.min, self.max);
    }

    /// The next attempt is made at once, the ones after it from the shortest delay on.
    pub fn immediately(&mut self) {
        self.reset();
        self.at_once = true;
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new(Self::DEFAULT_MIN, Self::DEFAULT_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn delays_double_up_to_the_longest() {
        let mut backoff = Backoff::default();
        let delays: Vec<_> = (0..8).map(|_| backoff.next(0)).collect();
        assert_eq!(delays, [50, 100, 200, 400, 800, 1600, 2500, 2500].map(ms));
    }

    #[test]
    fn a_connection_that_worked_starts_again_from_the_shortest() {
        let mut backoff = Backoff::default();
        for _ in 0..5 {
            backoff.next(0);
        }
        backoff.reset();
        assert_eq!(backoff.next(0), ms(50));
    }

    #[test]
    fn after_a_drain_the_first_attempt_is_at_once_and_then_it_backs_off() {
        let mut backoff = Backoff::default();
        backoff.next(0);
        backoff.immediately();
        assert_eq!(
            [backoff.next(u64::MAX), backoff.next(0), backoff.next(0)],
            [ms(0), ms(50), ms(100)]
        );
    }

    proptest! {
        #[test]
        fn every_delay_is_within_the_upper_half_of_its_bound(
            randoms in proptest::collection::vec(any::<u64>(), 1..80), min in 0..10_000_u64, max in 0..u64::MAX
        ) {
            let mut backoff = Backoff::new(Duration::from_nanos(min), Duration::from_nanos(max));
            for (step, random) in randoms.into_iter().enumerate() {
                let top = max.max(min);
                let bound = min.saturating_mul(1_u64.checked_shl(step as u32).unwrap_or(u64::MAX)).min(top);
                let delay = u64::try_from(backoff.next(random).as_nanos()).unwrap();
                prop_assert!(delay >= bound / 2 && delay <= bound, "{delay} of {bound}");
            }
        }
    }
}
