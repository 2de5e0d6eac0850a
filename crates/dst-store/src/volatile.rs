//! The model of a disk's volatile write cache: what was written and not flushed, sector by sector. No I/O happens here; the
//! test backend puts it over a file, the simulation over a simulated disk.
//!
//! A sector is 512 bytes: the unit in which a write can be torn. Of each sector with unflushed writes the layer keeps the
//! versions since the last flush, oldest first. A read sees the newest. A flush moves the newest to the medium. At a power
//! cut any version, or none, may be what has reached the medium, for each sector by itself: writes are dropped, torn and
//! reordered, but never across a flush.
//!
//! Invariants: the list of versions of a sector in the map is never empty and at most [`MAX_VERSIONS`] long (older ones
//! fall out, which only makes fewer outcomes possible, never an impossible one).

use std::collections::BTreeMap;
use std::ops::Range;

use crate::dice::Dice;

/// Bytes in a sector.
pub const SECTOR: usize = 512;

/// How many unflushed versions of a sector are kept.
pub const MAX_VERSIONS: usize = 4;

/// The content of one sector.
pub type SectorData = Box<[u8; SECTOR]>;

/// A sector that goes to the medium.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToMedium {
    /// Offset in bytes.
    pub offset: u64,
    /// What is to be written there.
    pub data: SectorData,
}

/// See the [module](self).
#[derive(Clone, Debug, Default)]
pub struct Volatile {
    sectors: BTreeMap<u64, Vec<SectorData>>,
}

impl Volatile {
    /// With nothing unflushed.
    pub fn new() -> Volatile {
        Volatile::default()
    }

    /// Whether everything is on the medium.
    pub fn is_empty(&self) -> bool {
        self.sectors.is_empty()
    }

    /// Sectors with unflushed writes.
    pub fn sectors(&self) -> usize {
        self.sectors.len()
    }

    /// A write that stays in the cache. `offset` and the length are multiples of [`SECTOR`].
    ///
    /// # Panics
    /// If they are not.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        let sectors = sectors(offset, data.len() as u64);
        for (sector, chunk) in sectors.zip(data.chunks_exact(SECTOR)) {
            let mut version = Box::new([0; SECTOR]);
            version.copy_from_slice(chunk);
            self.push(sector, version);
        }
    }

    /// A write of zeroes that stays in the cache.
    ///
    /// # Panics
    /// As [`write`](Volatile::write).
    pub fn zero(&mut self, offset: u64, len: u64) {
        for sector in sectors(offset, len) {
            self.push(sector, Box::new([0; SECTOR]));
        }
    }

    fn push(&mut self, sector: u64, version: SectorData) {
        let versions = self.sectors.entry(sector).or_default();
        if versions.len() == MAX_VERSIONS {
            versions.remove(0);
        }
        versions.push(version);
    }

    /// Puts unflushed sectors over `buf`, which was read from the medium at `offset`.
    ///
    /// # Panics
    /// As [`write`](Volatile::write).
    pub fn overlay(&self, offset: u64, buf: &mut [u8]) {
        let range = sectors(offset, buf.len() as u64);
        let first = range.start;
        for (sector, versions) in self.sectors.range(range) {
            if let Some(newest) = versions.last() {
                let at = (sector - first) as usize * SECTOR;
                buf[at..at + SECTOR].copy_from_slice(&newest[..]);
            }
        }
    }

    /// Forgets what is unflushed in a range, because something newer goes straight to the medium there.
    ///
    /// # Panics
    /// As [`write`](Volatile::write).
    pub fn forget(&mut self, offset: u64, len: u64) {
        let range = sectors(offset, len);
        if self.sectors.range(range.clone()).next().is_some() {
            self.sectors.retain(|sector, _| !range.contains(sector));
        }
    }

    /// Early writeback: takes the newest version of each sector of a range with the given chance and hands it to `medium`;
    /// nothing older of it can come back after that.
    ///
    /// # Panics
    /// As [`write`](Volatile::write).
    pub fn write_back_some(
        &mut self,
        offset: u64,
        len: u64,
        percent: u32,
        dice: &mut Dice,
        medium: &mut Vec<ToMedium>,
    ) {
        for sector in sectors(offset, len) {
            if self.sectors.contains_key(&sector) && dice.chance(percent) {
                let newest = self
                    .sectors
                    .remove(&sector)
                    .and_then(|mut versions| versions.pop());
                medium.extend(newest.map(|data| to_medium(sector, data)));
            }
        }
    }

    /// A flush: hands the newest version of everything to `medium`, in order of offset, and is empty.
    pub fn flush(&mut self, medium: &mut Vec<ToMedium>) {
        for (sector, mut versions) in std::mem::take(&mut self.sectors) {
            medium.extend(versions.pop().map(|data| to_medium(sector, data)));
        }
    }

    /// A power cut: for each sector none or any one of its versions has reached the medium; what has is handed to `medium`.
    /// One cut in four loses everything, one loses nothing but order, the others something between. Is empty afterwards.
    pub fn power_cut(&mut self, dice: &mut Dice, medium: &mut Vec<ToMedium>) {
        let survives = [0, 30, 70, 100][dice.below(4) as usize];
        for (sector, mut versions) in std::mem::take(&mut self.sectors) {
            if dice.chance(survives) {
                let which = dice.below(versions.len() as u64) as usize;
                medium.push(to_medium(sector, versions.swap_remove(which)));
            }
        }
    }

    /// A power cut that loses every unflushed write.
    pub fn drop_all(&mut self) {
        self.sectors.clear();
    }
}

fn to_medium(sector: u64, data: SectorData) -> ToMedium {
    ToMedium {
        offset: sector * SECTOR as u64,
        data,
    }
}

/// The sectors of a range of bytes.
fn sectors(offset: u64, len: u64) -> Range<u64> {
    let unit = SECTOR as u64;
    assert!(
        offset.is_multiple_of(unit) && len.is_multiple_of(unit),
        "{len} bytes at {offset} are not whole sectors"
    );
    offset / unit..(offset + len) / unit
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn data(byte: u8, sectors: usize) -> Vec<u8> {
        vec![byte; sectors * SECTOR]
    }

    #[test]
    fn a_read_sees_the_newest_version_over_the_medium() {
        let mut layer = Volatile::new();
        layer.write(512, &data(1, 2));
        layer.write(1024, &data(2, 1));
        layer.zero(1536, 512);
        let mut buf = data(9, 5);
        layer.overlay(0, &mut buf);
        let expected = [data(9, 1), data(1, 1), data(2, 1), data(0, 1), data(9, 1)].concat();
        assert_eq!(buf, expected);
    }

    #[test]
    fn a_flush_hands_over_the_newest_versions_in_order() {
        let mut layer = Volatile::new();
        layer.write(4096, &data(1, 1));
        layer.write(0, &data(2, 1));
        layer.write(4096, &data(3, 1));
        let mut medium = Vec::new();
        layer.flush(&mut medium);
        let seen: Vec<(u64, u8)> = medium.iter().map(|s| (s.offset, s.data[0])).collect();
        assert_eq!(seen, [(0, 2), (4096, 3)]);
        assert!(layer.is_empty());
    }

    #[test]
    fn a_power_cut_tears_between_sectors_and_shows_old_versions() {
        let mut torn = false;
        let mut older = false;
        let mut all = false;
        let mut none = false;
        for seed in 0..200 {
            let mut layer = Volatile::new();
            layer.write(0, &data(1, 4));
            layer.write(0, &data(2, 4));
            let mut medium = Vec::new();
            layer.power_cut(&mut Dice::new(seed), &mut medium);
            assert!(layer.is_empty());
            torn |= (1..4).contains(&medium.len());
            older |= medium.iter().any(|sector| sector.data[0] == 1);
            all |= medium.len() == 4;
            none |= medium.is_empty();
        }
        assert!(torn && older && all && none);
    }

    #[test]
    fn early_writeback_leaves_no_older_version_behind() {
        let mut layer = Volatile::new();
        layer.write(0, &data(1, 8));
        layer.write(0, &data(2, 8));
        let mut medium = Vec::new();
        layer.write_back_some(0, 4096, 50, &mut Dice::new(5), &mut medium);
        assert!(!medium.is_empty() && medium.len() < 8);
        assert!(medium.iter().all(|sector| sector.data[0] == 2));
        assert_eq!(layer.sectors() + medium.len(), 8);
    }

    #[test]
    fn what_was_forgotten_is_neither_flushed_nor_seen() {
        let mut layer = Volatile::new();
        layer.write(0, &data(1, 4));
        layer.forget(512, 1024);
        let mut buf = data(7, 4);
        layer.overlay(0, &mut buf);
        assert_eq!(buf, [data(1, 1), data(7, 2), data(1, 1)].concat());
    }

    #[test]
    #[should_panic(expected = "not whole sectors")]
    fn parts_of_sectors_are_refused() {
        Volatile::new().write(100, &[0; 512]);
    }

    proptest! {
        /// After any writes and a cut, each sector shows the medium's old content or something written to it since the
        /// last flush.
        #[test]
        fn a_cut_shows_only_what_was_there_or_was_written(
            ops in proptest::collection::vec((0u64..8, 1usize..4, any::<bool>()), 1..40), seed: u64
        ) {
            let mut layer = Volatile::new();
            let mut medium = [0u8; 11];
            let mut possible: Vec<Vec<u8>> = vec![vec![0]; 11];
            let mut out = Vec::new();
            for (n, (sector, count, flush)) in ops.iter().enumerate() {
                let byte = n as u8 + 1;
                layer.write(sector * 512, &data(byte, *count));
                for versions in possible.iter_mut().skip(*sector as usize).take(*count) {
                    versions.push(byte);
                }
                if *flush {
                    layer.flush(&mut out);
                    for s in out.drain(..) {
                        medium[(s.offset / 512) as usize] = s.data[0];
                    }
                    for (s, byte) in medium.iter().enumerate() {
                        prop_assert_eq!(Some(byte), possible[s].last());
                        possible[s] = vec![*byte];
                    }
                }
            }
            layer.power_cut(&mut Dice::new(seed), &mut out);
            for s in out {
                medium[(s.offset / 512) as usize] = s.data[0];
            }
            for (s, byte) in medium.iter().enumerate() {
                prop_assert!(possible[s].contains(byte));
            }
        }
    }
}
