//! Many requests at once against a model.

use super::*;
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Step {
    Write { offset: u64, len: u64, early: bool },
    Punch { offset: u64, len: u64, zero: bool },
    Complete { choice: usize, early: bool },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let place = (0..SIZE, 1..3 * BLOCK);
    let step = prop_oneof![
        3 => (place.clone(), any::<bool>()).prop_map(|((offset, len), early)| Step::Write { offset, len, early }),
        // Whole blocks, as the loop device writes.
        2 => (0..SIZE / BLOCK, 1_u64..3, any::<bool>()).prop_map(|(block, count, early)| Step::Write {
            offset: block * BLOCK, len: count * BLOCK, early }),
        1 => (place, any::<bool>()).prop_map(|((offset, len), zero)| Step::Punch { offset, len, zero }),
        4 => (any::<usize>(), any::<bool>()).prop_map(|(choice, early)| Step::Complete { choice, early }),
    ];
    proptest::collection::vec(step, 1..60)
}

proptest! {
    /// Writers of different bytes of the same blocks never lose each other's, whatever the order of completion.
    #[test]
    fn no_byte_is_lost_among_concurrent_unaligned_writes(steps in steps()) {
        let mut bench = Bench::new(geometry());
        let mut model = bench.memory.clone();
        // The byte ranges of writers that have no answer yet: nobody may say what their order is.
        let mut open: Vec<(u64, u64, u64)> = Vec::new();
        for (count, step) in steps.into_iter().enumerate() {
            let (offset, len) = match &step {
                Step::Write { offset, len, .. } | Step::Punch { offset, len, .. } => (*offset, *len),
                Step::Complete { choice, early } => {
                    if !bench.under_way.is_empty() {
                        bench.complete(*choice, *early);
                    }
                    continue;
                }
            };
            let end = (offset + len).min(SIZE);
            let answered: Vec<u64> = bench.answers.iter().map(|a| a.unique).collect();
            open.retain(|(_, _, unique)| !answered.contains(unique));
            if open.iter().any(|(from, to, _)| *from < end && offset < *to) {
                bench.drain();
                open.clear();
            }
            let bytes = vec![count as u8; (end - offset) as usize];
            let changed = offset as usize..end as usize;
            let unique = match step {
                Step::Write { early, .. } => {
                    model[changed].copy_from_slice(&bytes);
                    bench.send(write(offset, bytes.len(), 0), Some(&bytes), early)
                }
                Step::Punch { zero, .. } => {
                    model[changed].fill(0);
                    bench.send(fallocate(offset, len, if zero { ZERO } else { PUNCH }), None, false)
                }
                Step::Complete { .. } => unreachable!(),
            };
            open.push((offset, end, unique));
        }
        bench.drain();
        prop_assert!(bench.answers.iter().all(|a| a.result.is_ok()));
        bench.answers.clear();
        prop_assert_eq!(&bench.memory, &model);
        prop_assert_eq!(bench.read(3, SIZE as u32), &model[3..]);
        prop_assert_eq!(bench.pool.outstanding_bytes(), 0);
    }
}
