//! What the device announces: the geometry as parameters of the ublk driver, and as what sysfs is to show of it
//! (`/sys/block/ublkbN/queue`, Documentation/ABI/stable/sysfs-block).

use dst_client::Geometry;

use super::abi::{self, attr, ParamBasic, ParamDiscard, Params, SECTOR};
use crate::geometry::check_size;
use crate::{Error, ErrorKind};

/// Largest READ and WRITE in bytes: the largest buffer that the pool keeps.
pub(super) const LARGEST_TRANSFER: u32 = 1 << 20;
const _: () = assert!(LARGEST_TRANSFER <= abi::LONGEST_PAYLOAD);
/// Longest discard and write zeroes, in sectors: 2 GiB, a multiple of every block size. One bio has less than 4 GiB.
const LONGEST_RANGE: u32 = 1 << 22;
/// How far to read ahead, in KiB: a remote disk wants more under way than a local one, whose default is 128.
pub(super) const READ_AHEAD_KIB: u32 = 1024;

/// Requests at once on each queue, of [`super::DEPTH`] tags: so that one tag of each always fetches. A driver before Linux 6.16
/// notices at once that the server of a queue is dead only if a command of that one is with it; if all tags are taken it takes up
/// to 30 s.
pub(super) const REQUESTS: u16 = super::DEPTH - 1;

/// Refuses what the driver can't show.
///
/// # Errors
/// `Geometry`
pub(super) fn check(geometry: &Geometry, page: u32) -> Result<(), Error> {
    let bad = |what: String| Err(Error::new(ErrorKind::Geometry, what));
    let block = geometry.logical_block;
    if !block.is_power_of_two() || block < 512 {
        return bad(format!("{block} is no block size"));
    }
    if block > page {
        return bad(format!(
            "a ublk device can't have blocks of {block} bytes, which is more than a page"
        ));
    }
    if !geometry.physical_block.is_power_of_two() || geometry.physical_block < block {
        return bad(format!(
            "a physical block of {} bytes is no power of two of at least {block}",
            geometry.physical_block
        ));
    }
    if geometry.max_transfer < page {
        return bad(format!(
            "a largest transfer of {} bytes is less than a page",
            geometry.max_transfer
        ));
    }
    check_size(geometry)
}

/// Largest READ and WRITE in bytes, a multiple of the page; the geometry has passed [`check`].
pub(super) fn transfer(geometry: &Geometry, page: u32) -> u32 {
    geometry.max_transfer.min(LARGEST_TRANSFER) / page * page
}

/// The driver's parameters. `transfer` as the function of that name has it.
pub(super) fn params(geometry: &Geometry, transfer: u32) -> Params {
    let mut attrs = 0;
    let mut set = |bit, on| attrs |= if on { bit } else { 0 };
    set(attr::READ_ONLY, geometry.read_only);
    set(attr::ROTATIONAL, geometry.rotational);
    // What is never written needs no flush.
    set(
        attr::VOLATILE_CACHE,
        geometry.write_cache && !geometry.read_only,
    );
    set(attr::FUA, has_fua(geometry));

    let physical = shift(geometry.physical_block);
    let range = |on: bool| if on { LONGEST_RANGE } else { 0 };
    let discards = discards(geometry);
    let write_zeroes = write_zeroes(geometry);
    let mut types = abi::PARAM_BASIC;
    if discards || write_zeroes {
        types |= abi::PARAM_DISCARD;
    }
    Params {
        len: Params::LEN,
        types,
        basic: ParamBasic {
            attrs,
            logical_bs_shift: shift(geometry.logical_block),
            physical_bs_shift: physical,
            // A larger optimal size would be taken for the stripe of a RAID by mkfs.
            io_opt_shift: physical,
            io_min_shift: physical,
            max_sectors: transfer / SECTOR as u32,
            chunk_sectors: 0,
            dev_sectors: geometry.size / SECTOR,
            virt_boundary_mask: 0,
        },
        discard: ParamDiscard {
            discard_alignment: 0,
            // The driver takes no 0, even where there is only write zeroes.
            discard_granularity: geometry.discard_granularity.max(geometry.logical_block),
            max_discard_sectors: range(discards),
            max_write_zeroes_sectors: range(write_zeroes),
            max_discard_segments: u16::from(discards),
            reserved0: 0,
        },
    }
}

/// What sysfs is to show below `queue/`, and what it means in words.
pub(super) fn announced(
    geometry: &Geometry,
    transfer: u32,
) -> [(&'static str, String, &'static str); 9] {
    let bit = |on: bool| u8::from(on).to_string();
    let bytes = |on: bool| (u64::from(on) * u64::from(LONGEST_RANGE) * SECTOR).to_string();
    let cache = match geometry.write_cache && !geometry.read_only {
        true => "write back",
        false => "write through",
    };
    [
        (
            "logical_block_size",
            geometry.logical_block.to_string(),
            "the logical block size",
        ),
        (
            "physical_block_size",
            geometry.physical_block.to_string(),
            "the physical block size",
        ),
        (
            "max_sectors_kb",
            (transfer / 1024).to_string(),
            "the largest request in KiB",
        ),
        ("write_cache", cache.to_owned(), "the write cache"),
        ("fua", bit(has_fua(geometry)), "FUA"),
        (
            "discard_max_bytes",
            bytes(discards(geometry)),
            "the longest discard",
        ),
        (
            "write_zeroes_max_bytes",
            bytes(write_zeroes(geometry)),
            "the longest write zeroes",
        ),
        ("rotational", bit(geometry.rotational), "rotational"),
        (
            "read_ahead_kb",
            READ_AHEAD_KIB.to_string(),
            "the read-ahead in KiB",
        ),
    ]
}

fn has_fua(geometry: &Geometry) -> bool {
    // The block layer knows FUA only together with a cache.
    geometry.fua && geometry.write_cache && !geometry.read_only
}

fn discards(geometry: &Geometry) -> bool {
    geometry.discard && !geometry.read_only
}

fn write_zeroes(geometry: &Geometry) -> bool {
    geometry.write_zeroes && !geometry.read_only
}

/// The exponent of a power of two.
fn shift(size: u32) -> u8 {
    size.trailing_zeros() as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u32 = 4096;

    fn geometry() -> Geometry {
        Geometry {
            size: 1 << 30,
            logical_block: 512,
            physical_block: 4096,
            max_transfer: 32 << 20,
            read_only: false,
            rotational: false,
            discard: true,
            discard_granularity: 4096,
            write_zeroes: true,
            write_cache: true,
            fua: true,
        }
    }

    fn shown(geometry: &Geometry, attribute: &str) -> String {
        announced(geometry, transfer(geometry, PAGE))
            .into_iter()
            .find_map(|(name, value, _)| (name == attribute).then_some(value))
            .unwrap()
    }

    #[test]
    fn a_whole_geometry_is_announced_as_it_is() {
        let geometry = geometry();
        check(&geometry, PAGE).unwrap();
        let params = params(&geometry, transfer(&geometry, PAGE));
        assert_eq!((params.len, params.types), (60, 3));
        let basic = params.basic;
        assert_eq!(basic.attrs, attr::VOLATILE_CACHE | attr::FUA);
        assert_eq!((basic.logical_bs_shift, basic.physical_bs_shift), (9, 12));
        assert_eq!(basic.max_sectors, 2048);
        assert_eq!(basic.dev_sectors, 1 << 21);
        assert_eq!(params.discard.discard_granularity, 4096);
        assert_eq!(params.discard.max_discard_sectors, 1 << 22);
        assert_eq!(params.discard.max_discard_segments, 1);
        assert_eq!(shown(&geometry, "write_cache"), "write back");
        assert_eq!(shown(&geometry, "fua"), "1");
        assert_eq!(shown(&geometry, "discard_max_bytes"), "2147483648");
        assert_eq!(shown(&geometry, "max_sectors_kb"), "1024");
    }

    #[test]
    fn a_read_only_device_has_nothing_that_changes_it() {
        let geometry = Geometry {
            read_only: true,
            rotational: true,
            ..geometry()
        };
        let params = params(&geometry, transfer(&geometry, PAGE));
        assert_eq!(params.basic.attrs, attr::READ_ONLY | attr::ROTATIONAL);
        assert_eq!(params.types, abi::PARAM_BASIC);
        assert_eq!(shown(&geometry, "write_cache"), "write through");
        assert_eq!(shown(&geometry, "fua"), "0");
        assert_eq!(shown(&geometry, "write_zeroes_max_bytes"), "0");
    }

    #[test]
    fn write_zeroes_without_discard_has_a_granularity_all_the_same() {
        let geometry = Geometry {
            discard: false,
            discard_granularity: 0,
            ..geometry()
        };
        let params = params(&geometry, transfer(&geometry, PAGE));
        assert_eq!(params.types & abi::PARAM_DISCARD, abi::PARAM_DISCARD);
        assert_eq!(params.discard.discard_granularity, 512);
        assert_eq!(params.discard.max_discard_sectors, 0);
        assert_eq!(params.discard.max_discard_segments, 0);
        assert_eq!(params.discard.max_write_zeroes_sectors, 1 << 22);
        assert_eq!(shown(&geometry, "discard_max_bytes"), "0");
    }

    #[test]
    fn without_a_cache_there_is_no_fua() {
        let geometry = Geometry {
            write_cache: false,
            ..geometry()
        };
        let params = params(&geometry, transfer(&geometry, PAGE));
        assert_eq!(params.basic.attrs, 0);
        assert_eq!(shown(&geometry, "fua"), "0");
    }

    #[test]
    fn transfers_are_whole_pages_and_fit_the_pool() {
        let with = |max_transfer| Geometry {
            max_transfer,
            ..geometry()
        };
        assert_eq!(transfer(&with(32 << 20), PAGE), 1 << 20);
        assert_eq!(transfer(&with(100 * 1024 + 512), PAGE), 100 * 1024);
        assert_eq!(
            check(&with(2048), PAGE).unwrap_err().kind(),
            ErrorKind::Geometry
        );
    }

    #[test]
    fn what_the_driver_can_not_show_is_refused() {
        for bad in [
            Geometry {
                logical_block: 256,
                ..geometry()
            },
            Geometry {
                logical_block: 8192,
                physical_block: 8192,
                ..geometry()
            },
            Geometry {
                physical_block: 256,
                ..geometry()
            },
            Geometry {
                size: 0,
                ..geometry()
            },
            Geometry {
                size: 1000,
                ..geometry()
            },
        ] {
            assert_eq!(check(&bad, PAGE).unwrap_err().kind(), ErrorKind::Geometry);
        }
    }
}
