//! What every front end asks of a device's size.

use dst_client::Geometry;

use crate::{Error, ErrorKind};

/// Refuses a size that no device or file can have.
///
/// # Errors
/// `Geometry`
pub(crate) fn check_size(geometry: &Geometry) -> Result<(), Error> {
    let (size, block) = (geometry.size, geometry.logical_block);
    let what = if size == 0 || !size.is_multiple_of(u64::from(block)) {
        format!("a size of {size} bytes is no multiple of the block size {block}")
    } else if i64::try_from(size).is_err() {
        format!("{size} bytes are more than a device can have")
    } else {
        return Ok(());
    };
    Err(Error::new(ErrorKind::Geometry, what))
}

/// The same device with another size.
///
/// # Errors
/// `Geometry` if it is smaller, or a size that can't be.
pub(crate) fn grown(geometry: &Geometry, new_size: u64) -> Result<Geometry, Error> {
    if new_size < geometry.size {
        return Err(Error::new(
            ErrorKind::Geometry,
            format!(
                "the device can't shrink from {} to {new_size} bytes",
                geometry.size
            ),
        ));
    }
    let grown = Geometry {
        size: new_size,
        ..*geometry
    };
    check_size(&grown)?;
    Ok(grown)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A disk that can do everything.
    pub(crate) fn geometry() -> Geometry {
        Geometry {
            size: 1 << 20,
            logical_block: 512,
            physical_block: 512,
            max_transfer: 1 << 20,
            read_only: false,
            rotational: false,
            discard: true,
            discard_granularity: 4096,
            write_zeroes: true,
            write_cache: true,
            fua: true,
        }
    }

    #[test]
    fn a_device_grows_by_whole_blocks_and_never_shrinks() {
        let device = Geometry {
            size: 8192,
            logical_block: 4096,
            physical_block: 4096,
            ..geometry()
        };
        check_size(&device).unwrap();
        assert_eq!(grown(&device, 12288).unwrap().size, 12288);
        assert_eq!(grown(&device, 8192).unwrap(), device);
        for bad in [0, 4096, 8192 + 512, 1 << 63] {
            let error = grown(&device, bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Geometry, "{bad}");
        }
    }
}
