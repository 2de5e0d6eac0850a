//! The random numbers of a scenario: xoshiro256**, seeded through SplitMix64. The same seed gives the same numbers on every
//! machine. Independent streams are forked off by name, so that a change in one part doesn't shift the numbers of another.

/// A generator.
#[derive(Clone, Debug)]
pub struct Rng {
    state: [u64; 4],
}

fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Rng {
    /// The generator of `seed`.
    pub fn new(seed: u64) -> Rng {
        let mut mix = seed;
        Rng {
            state: std::array::from_fn(|_| split_mix(&mut mix)),
        }
    }

    /// A generator of its own that depends on this one's seed and on `stream`, and takes nothing from this one.
    pub fn fork(&self, stream: u64) -> Rng {
        let mut mix = stream.wrapping_mul(0xd6e8_feb8_6659_fd93);
        let salt = split_mix(&mut mix);
        Rng::new(self.state[0] ^ self.state[3].rotate_left(17) ^ salt)
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        let s = &mut self.state;
        let result = s[1].wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// A number below `n`; 0 where `n` is 0.
    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(n)) >> 64) as u64
    }

    /// A number from `low` to `high`, both included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// An index below `n`, which is not 0.
    pub fn index(&mut self, n: usize) -> usize {
        self.below(n as u64) as usize
    }

    /// True in `percent` of 100 cases.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// True once in `n` cases.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// One of `items`, which is not empty.
    pub fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.index(items.len())]
    }

    /// An index of `weights` with a chance in proportion to its weight.
    pub fn weighted(&mut self, weights: &[u32]) -> usize {
        let total: u64 = weights.iter().map(|w| u64::from(*w)).sum();
        let mut at = self.below(total);
        for (index, weight) in weights.iter().enumerate() {
            let weight = u64::from(*weight);
            if at < weight {
                return index;
            }
            at -= weight;
        }
        0
    }

    /// A duration from `low` to `high` whose logarithm is evenly spread: short and long ones are as frequent.
    pub fn spread(&mut self, low: u64, high: u64) -> u64 {
        let low_bits = low.max(1).ilog2();
        let high_bits = high.max(1).ilog2();
        let bits = self.between(u64::from(low_bits), u64::from(high_bits));
        let base = 1u64 << bits;
        base.saturating_add(self.below(base)).clamp(low, high)
    }

    /// Sixteen random bytes.
    pub fn bytes16(&mut self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.next_u64().to_le_bytes());
        bytes[8..].copy_from_slice(&self.next_u64().to_le_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_its_numbers_and_forks_are_independent() {
        let numbers = |mut rng: Rng| [rng.next_u64(), rng.next_u64()];
        assert_eq!(numbers(Rng::new(1)), numbers(Rng::new(1)));
        assert_ne!(numbers(Rng::new(1)), numbers(Rng::new(2)));
        let rng = Rng::new(1);
        assert_eq!(numbers(rng.fork(3)), numbers(rng.fork(3)));
        assert_ne!(numbers(rng.fork(3)), numbers(rng.fork(4)));
    }

    #[test]
    fn bounds_are_kept_and_reached() {
        let mut rng = Rng::new(5);
        let seen: std::collections::BTreeSet<u64> = (0..300).map(|_| rng.between(2, 6)).collect();
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), [2, 3, 4, 5, 6]);
        assert!((0..300).all(|_| (10..=5000).contains(&rng.spread(10, 5000))));
        assert!((0..300).all(|_| rng.weighted(&[0, 3, 0]) == 1));
    }
}
