//! The bytes of retained writes where a dead process has left them: their pages are taken out of a pool over the same memory
//! before anything else is.

use dst_buf::{Pool, Shared};

/// The bytes of retained writes, by index, where they lie: `lens[index]` of them at `places[index]`. Writes may share a page,
/// as parts of one buffer did. None: they can't be there.
pub(super) fn claim(
    pool: &Pool,
    places: &[u64],
    lens: &[Option<u32>],
) -> Option<Vec<Option<Shared>>> {
    let mut kept: Vec<Option<Shared>> = lens.iter().map(|_| None).collect();
    let mut ranges = Vec::new();
    for (index, (place, len)) in places.iter().zip(lens).enumerate() {
        if let Some(len) = len {
            let from = usize::try_from(*place).ok()?;
            let to = from.checked_add(usize::try_from(*len).ok()?)?;
            if to == from {
                return None;
            }
            ranges.push((from, to, index));
        }
    }
    ranges.sort_unstable();
    let page = |at: usize| at / dst_buf::ALIGNMENT;
    let mut rest = ranges.as_slice();
    while let Some(&(from, first_end, _)) = rest.first() {
        // All that begin on a page of those before them.
        let mut end = first_end;
        let together = rest
            .iter()
            .take_while(|(start, to, _)| {
                let joined = page(*start) <= page(end - 1);
                end = if joined { end.max(*to) } else { end };
                joined
            })
            .count();
        let block = pool.claim(from, end.checked_sub(from)?)?;
        let (these, others) = rest.split_at(together);
        for (start, to, index) in these {
            kept[*index] = Some(block.slice(start - from..to - from));
        }
        rest = others;
    }
    Some(kept)
}

#[cfg(test)]
mod tests {
    use dst_buf::ALIGNMENT;
    use proptest::prelude::*;

    use super::*;
    use crate::record::{About, RecordFile, Shape};

    const PAGES: usize = 32;

    /// A pool over the payload of a record, which holds bytes that tell where they are.
    fn pool() -> (Pool, RecordFile) {
        let dir = std::env::temp_dir().join(format!(
            "dst-claim-{}",
            dst_ids::hex(&dst_ids::random::<8>())
        ));
        std::fs::create_dir(&dir).unwrap();
        let about = About {
            url: "dst://storage/disk".into(),
            insecure: false,
            read_only: false,
        };
        let holder = dst_proto::Holder {
            identity: [1; 16],
            boot: [2; 16],
            instance: [3; 16],
        };
        let shape = Shape {
            slots: 17,
            entries: 64,
            payload: PAGES * ALIGNMENT,
        };
        let file = RecordFile::create(&dir, &about, &holder, shape).unwrap();
        crate::record::remove(&dir).unwrap();
        std::fs::remove_dir(&dir).unwrap();
        let first = Pool::over(0, file.region()).unwrap();
        let mut all = first.get(PAGES * ALIGNMENT);
        for (at, byte) in all.iter_mut().enumerate() {
            *byte = (at % 251) as u8;
        }
        drop((all, first));
        (Pool::over(0, file.region()).unwrap(), file)
    }

    #[test]
    fn writes_of_one_page_are_claimed_together_and_all_are_let_go() {
        let (pool, _file) = pool();
        let places = [5000, 4096, 0, 9000, 12288];
        let lens = [Some(600), Some(512), None, Some(100), Some(4096)];
        let kept = claim(&pool, &places, &lens).unwrap();
        for (index, kept) in kept.iter().enumerate() {
            let expected = lens[index].map(|len| {
                let place = places[index] as usize;
                (place..place + len as usize)
                    .map(|at| (at % 251) as u8)
                    .collect::<Vec<_>>()
            });
            assert_eq!(
                kept.as_ref().map(|bytes| bytes.to_vec()),
                expected,
                "{index}"
            );
        }
        assert_eq!(pool.outstanding_bytes(), 3 * ALIGNMENT);
        drop(kept);
        assert_eq!(pool.outstanding_bytes(), 0);
    }

    #[test]
    fn bytes_that_can_not_be_there_are_told() {
        let (pool, _file) = pool();
        let end = (PAGES * ALIGNMENT) as u64;
        for place in [end, end - 1, u64::MAX, u64::MAX - 1] {
            assert!(claim(&pool, &[place], &[Some(2)]).is_none(), "{place}");
        }
        assert_eq!(pool.outstanding_bytes(), 0);
    }

    proptest! {
        #[test]
        fn any_writes_are_found_where_they_lie_and_nothing_else_is_given_their_pages(
            writes in proptest::collection::vec((0..PAGES * ALIGNMENT - 9000, 1_u32..9000), 0..20),
        ) {
            let (pool, _file) = pool();
            let places: Vec<u64> = writes.iter().map(|(place, _)| *place as u64).collect();
            let lens: Vec<Option<u32>> = writes.iter().map(|(_, len)| Some(*len)).collect();
            let kept = claim(&pool, &places, &lens).unwrap();
            let mut others = Vec::new();
            while pool.missed() == 0 {
                let mut other = pool.get(1);
                other.fill(255);
                others.push(other);
            }
            for ((place, len), kept) in writes.iter().zip(&kept) {
                let kept = kept.as_ref().unwrap();
                prop_assert_eq!(kept.len(), *len as usize);
                prop_assert_eq!(pool.place(kept), Some(*place));
                let right = kept.iter().zip(*place..).all(|(byte, at)| *byte == (at % 251) as u8);
                prop_assert!(right);
            }
        }
    }
}
