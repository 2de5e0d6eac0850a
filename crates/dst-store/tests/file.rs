//! The regular file backend on real files, with both I/O engines.
#![allow(missing_docs)]

mod common;

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use common::{image, image_in, open, options, pattern, Driver, ENGINES};
use dst_store::dice::Dice;
use dst_store::{
    EngineChoice, Extent, ExtentKind, Op, OpenError, OpenOptions, Outcome, StoreError,
};

const MIB: u64 = 1 << 20;

#[test]
fn any_mix_of_requests_shows_what_a_plain_array_shows() {
    for engine in ENGINES {
        let (_directory, path) = image(8 * MIB);
        let mut disk = open(&path, &options(engine)).unwrap();
        let mut model = vec![0u8; 8 << 20];
        let mut dice = Dice::new(11);
        for round in 0..300 {
            let offset = dice.below(2000) * 4096;
            let len = (1 + dice.below(40)) * 4096;
            let len = len.min(8 * MIB - offset);
            let range = offset as usize..(offset + len) as usize;
            match dice.below(7) {
                0 => {
                    disk.discard(offset, len).unwrap();
                    model[range].fill(0);
                }
                1 => {
                    disk.zero(offset, len, dice.chance(50), false).unwrap();
                    model[range].fill(0);
                }
                2 => disk.flush().unwrap(),
                3 => assert_eq!(disk.read(offset, len as usize).unwrap(), &model[range]),
                kind => {
                    let data = pattern(round as u8, len as usize);
                    model[range].copy_from_slice(&data);
                    let op = disk.write_op(offset, &data, kind == 4);
                    disk.call(op).unwrap();
                }
            }
        }
        assert_eq!(disk.read(0, 8 << 20).unwrap(), model);
        drop(disk);
        assert_eq!(fs::read(&path).unwrap(), model, "the file is the disk");
    }
}

#[test]
fn thousands_of_requests_in_flight_all_complete_once() {
    for engine in ENGINES {
        let (_directory, path) = image(64 * MIB);
        let mut disk = open(&path, &options(engine)).unwrap();
        for n in 0..5000 {
            let op = match n % 10 {
                9 => Op::Flush,
                8 => Op::BlockStatus {
                    offset: n * 4096,
                    len: 4096,
                },
                _ => disk.write_op(n * 4096, &[n as u8; 4096], n % 100 == 0),
            };
            disk.submit(n, op);
        }
        assert_eq!(disk.backend.in_flight(), 5000);
        let done = disk.finish();
        assert!(done.iter().all(|completion| completion.result.is_ok()));
        let tokens: Vec<u64> = done.iter().map(|completion| completion.token).collect();
        assert_eq!(tokens, (0..5000).collect::<Vec<u64>>());
        for n in (0..5000).filter(|n| n % 10 < 8) {
            assert_eq!(disk.read(n * 4096, 4096).unwrap(), [n as u8; 4096]);
        }
    }
}

#[test]
fn the_wake_descriptor_is_silent_when_nothing_is_to_be_taken() {
    for engine in ENGINES {
        let (_directory, path) = image(MIB);
        let mut disk = open(&path, &options(engine)).unwrap();
        assert!(!disk.is_readable());
        disk.write(0, &[1; 4096]).unwrap();
        disk.extents(0, 4096).unwrap();
        assert!(!disk.is_readable());
        let beyond = disk.read_op(MIB, 4096);
        disk.submit(1, beyond);
        disk.backend.kick();
        disk.wait_readable();
        let mut done = Vec::new();
        disk.backend.poll(&mut done);
        assert_eq!(done.len(), 1, "an answer that needs no I/O wakes, too");
        assert!(!disk.is_readable());
    }
}

#[test]
fn dropping_a_backend_waits_for_what_is_in_flight() {
    for engine in ENGINES {
        let (_directory, path) = image(64 * MIB);
        let mut disk = open(&path, &options(engine)).unwrap();
        for n in 0..200 {
            let op = disk.write_op(n * 65536, &[7; 65536], false);
            disk.submit(n, op);
        }
        disk.backend.kick();
        let pool = disk.pool.clone();
        drop(disk);
        assert_eq!(
            pool.outstanding_bytes(),
            0,
            "no buffer is still with the kernel"
        );
        let file = fs::File::open(&path).unwrap();
        let mut last = [0];
        file.read_exact_at(&mut last, 200 * 65536 - 1).unwrap();
        assert_eq!(last, [7]);
    }
}

#[test]
fn a_backend_can_be_used_from_another_thread_than_the_one_that_opened_it() {
    for engine in ENGINES {
        let (_directory, path) = image(MIB);
        let mut disk = open(&path, &options(engine)).unwrap();
        disk.write(0, &[1; 4096]).unwrap();
        let op = disk.write_op(4096, &[2; 4096], true);
        disk.submit(1, op);
        disk.backend.kick();
        let thread = std::thread::spawn(move || {
            disk.finish();
            disk.read(0, 8192).unwrap()
        });
        assert_eq!(thread.join().unwrap(), [[1; 4096], [2; 4096]].concat());
    }
}

#[test]
fn discard_gives_the_space_back_and_block_status_shows_it() {
    for engine in ENGINES {
        let (_directory, path) = image(4 * MIB);
        let mut disk = open(&path, &options(engine)).unwrap();
        assert!(
            disk.backend.info().discard,
            "the test's file system punches holes"
        );
        let hole = |len| Extent {
            len,
            kind: ExtentKind::Hole,
        };
        let data = |len| Extent {
            len,
            kind: ExtentKind::Data,
        };
        assert_eq!(disk.extents(0, 4 * MIB).unwrap(), [hole(4 * MIB)]);
        disk.write(MIB, &[1; 1 << 20]).unwrap();
        disk.flush().unwrap();
        let before = fs::metadata(&path).unwrap().blocks();
        let (from, len) = (MIB + (256 << 10), 512 << 10);
        disk.discard(from, len).unwrap();
        assert_eq!(
            disk.extents(0, 4 * MIB).unwrap(),
            [
                hole(MIB),
                data(256 << 10),
                hole(512 << 10),
                data(256 << 10),
                hole(2 * MIB)
            ]
        );
        assert_eq!(disk.extents(from + 4096, 8192).unwrap(), [hole(8192)]);
        assert!(fs::metadata(&path).unwrap().blocks() <= before - 1024);
        assert_eq!(
            disk.read(from, len as usize).unwrap(),
            vec![0; len as usize]
        );
        assert_eq!(fs::metadata(&path).unwrap().len(), 4 * MIB);
    }
}

#[test]
fn zeroes_keep_their_space_unless_it_may_be_given_back() {
    for engine in ENGINES {
        let (_directory, path) = image(4 * MIB);
        let mut disk = open(&path, &options(engine)).unwrap();
        assert!(
            disk.backend.info().fast_zeroes,
            "the test's file system zeroes ranges"
        );
        disk.write(0, &[1; 2 << 20]).unwrap();
        disk.flush().unwrap();
        let blocks = || fs::metadata(&path).unwrap().blocks();
        let full = blocks();
        disk.zero(0, MIB, false, true).unwrap();
        assert_eq!(disk.read(0, 1 << 20).unwrap(), vec![0; 1 << 20]);
        assert!(blocks() >= full);
        disk.zero(0, MIB, true, true).unwrap();
        assert!(blocks() < full);
        let op = Op::WriteZeroes {
            offset: MIB,
            len: 4096,
            may_unmap: false,
            fast_only: false,
            fua: true,
        };
        assert!(matches!(disk.call(op), Ok(Outcome::Done)));
        assert_eq!(
            disk.read(MIB, 8192).unwrap(),
            [[0; 4096], [1; 4096]].concat()
        );
    }
}

#[test]
fn where_only_holes_are_fast_zeroes_that_keep_their_space_are_written_and_fast_only_is_refused() {
    for engine in ENGINES {
        // tmpfs punches holes but does not zero ranges.
        let (_directory, path) = image_in(Some(Path::new("/dev/shm")), 4 * MIB);
        let mut disk = open(&path, &options(engine)).unwrap();
        let info = disk.backend.info();
        assert!(info.discard && info.fast_zeroes);
        disk.write(0, &[1; 2 << 20]).unwrap();
        assert_eq!(disk.zero(0, MIB, false, true), Err(StoreError::Unsupported));
        assert_eq!(disk.read(0, 512).unwrap(), [1; 512]);
        disk.zero(512, MIB, false, false).unwrap();
        let seen = disk.read(0, (1 << 20) + 1024).unwrap();
        assert!(seen[..512].iter().all(|byte| *byte == 1));
        assert!(seen[512..512 + (1 << 20)].iter().all(|byte| *byte == 0));
        assert!(seen[512 + (1 << 20)..].iter().all(|byte| *byte == 1));
        disk.zero(MIB, MIB, true, true).unwrap();
        assert_eq!(disk.read(MIB, 1 << 20).unwrap(), vec![0; 1 << 20]);
    }
}

#[test]
fn a_truncated_file_fails_what_is_beyond_its_end_and_nothing_else() {
    for engine in ENGINES {
        let (_directory, path) = image(4 * MIB);
        let mut disk = open(&path, &options(engine)).unwrap();
        disk.write(0, &[1; 4 << 20]).unwrap();
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(2 * MIB).unwrap();

        assert_eq!(disk.read(2 * MIB - 4096, 8192), Err(StoreError::Truncated));
        assert_eq!(disk.read(3 * MIB, 4096), Err(StoreError::Truncated));
        assert_eq!(disk.write(3 * MIB, &[2; 4096]), Err(StoreError::Truncated));
        assert_eq!(disk.extents(3 * MIB, 4096), Err(StoreError::Truncated));
        assert_eq!(
            disk.zero(3 * MIB, 4096, false, false),
            Err(StoreError::Truncated)
        );
        assert_eq!(disk.read(MIB, 4096).unwrap(), [1; 4096]);
        disk.write(MIB, &[3; 4096]).unwrap();
        disk.flush().unwrap();
        assert_eq!(
            file.metadata().unwrap().len(),
            2 * MIB,
            "no write made it long again"
        );

        let error = disk.backend.refresh().unwrap_err().to_string();
        assert!(
            error.contains("shrunk underneath from 4194304 to 2097152"),
            "{error}"
        );
        assert_eq!(disk.backend.refresh().unwrap(), None, "it says so once");
        file.set_len(8 * MIB).unwrap();
        assert_eq!(disk.backend.refresh().unwrap(), None);
        assert_eq!(
            disk.read(3 * MIB, 4096),
            Err(StoreError::Truncated),
            "what is lost stays lost"
        );
        assert_eq!(disk.backend.info().size, 4 * MIB);
    }
}

#[test]
fn a_file_that_has_grown_gives_a_larger_disk() {
    for engine in ENGINES {
        let (_directory, path) = image(MIB);
        let mut disk = open(&path, &options(engine)).unwrap();
        assert_eq!(disk.backend.refresh().unwrap(), None);
        assert_eq!(disk.write(MIB, &[1; 4096]), Err(StoreError::OutOfRange));
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(2 * MIB + 100).unwrap();
        assert_eq!(disk.backend.refresh().unwrap(), Some(2 * MIB));
        assert_eq!(disk.backend.info().size, 2 * MIB);
        disk.write(2 * MIB - 4096, &[1; 4096]).unwrap();
        assert_eq!(disk.write(2 * MIB, &[1; 4096]), Err(StoreError::OutOfRange));
    }
}

#[test]
fn a_full_file_system_fails_the_write_and_nothing_else() {
    if !common::is_root("a_full_file_system_fails_the_write_and_nothing_else") {
        return;
    }
    for engine in ENGINES {
        let mount = common::Mount::tmpfs("1M");
        let (directory, path) = image_in(Some(mount.path()), 16 * MIB);
        let mut disk = open(&path, &options(engine)).unwrap();
        disk.write(0, &[1; 256 << 10]).unwrap();
        let large = disk.write_op(4 * MIB, &[2; 4 << 20], false);
        disk.submit(1, large);
        let read = disk.read_op(0, 256 << 10);
        disk.submit(2, read);
        let done = disk.finish();
        assert_eq!(done[0].result.as_ref().unwrap_err(), &StoreError::NoSpace);
        assert!(done[1].result.is_ok());
        assert_eq!(
            disk.write_fua(12 * MIB, &[2; 1 << 20]),
            Err(StoreError::NoSpace)
        );
        assert_eq!(
            disk.zero(8 * MIB, 4 * MIB, false, false),
            Err(StoreError::NoSpace)
        );
        disk.discard(MIB, 15 * MIB).unwrap();
        disk.flush()
            .expect("running out of space before a sync is no sync failure");
        disk.write(0, &[3; 128 << 10]).unwrap();
        assert_eq!(disk.read(0, 128 << 10).unwrap(), vec![3; 128 << 10]);
        drop(disk);
        drop(directory);
    }
}

#[test]
fn what_can_be_no_disk_is_refused_with_a_reason() {
    let refused = |size: u64, options: &OpenOptions, words: &[&str]| {
        let (_directory, path) = image(size);
        let error = open(&path, options)
            .err()
            .expect("it is refused")
            .to_string();
        for word in words {
            assert!(error.contains(word), "{error}");
        }
    };
    let block = |size| OpenOptions {
        block_size: Some(size),
        ..OpenOptions::default()
    };
    refused(0, &block(512), &["disk.img", "empty (0 bytes)"]);
    refused(
        1000,
        &block(512),
        &["1000 bytes", "not a multiple of the block size of 512"],
    );
    refused(512 * 9, &block(4096), &["4608 bytes", "block size of 4096"]);
    refused(MIB, &block(1024), &["1024", "512 and 4096"]);

    let directory = tempfile::tempdir().unwrap();
    let error = |path: &Path, options: &OpenOptions| open(path, options).err().unwrap();
    let missing = error(&directory.path().join("no.img"), &OpenOptions::default());
    assert!(missing.to_string().contains("does not exist; give --size"));
    assert!(matches!(
        error(directory.path(), &OpenOptions::default()),
        OpenError::Kind { .. }
    ));
    assert!(matches!(
        error(Path::new("/dev/null"), &OpenOptions::default()),
        OpenError::Kind { .. }
    ));
}

#[test]
fn block_sizes_are_announced_and_15_tib_are_no_problem() {
    let (_directory, path) = image(15 << 40);
    for (block, expected) in [(None, 512), (Some(512), 512), (Some(4096), 4096)] {
        let options = OpenOptions {
            block_size: block,
            ..OpenOptions::default()
        };
        let mut disk = open(&path, &options).unwrap();
        let info = disk.backend.info();
        assert_eq!((info.size, info.logical_block), (15 << 40, expected));
        assert!(info.physical_block >= 4096 && info.max_atomic_write == 0);
        let last = (15 << 40) - 4096;
        disk.write(last, &[5; 4096]).unwrap();
        assert_eq!(disk.read(last, 4096).unwrap(), [5; 4096]);
        disk.discard(0, 15 << 40).unwrap();
        assert_eq!(disk.read(last, 4096).unwrap(), [0; 4096]);
        assert_eq!(disk.extents(0, 15 << 40).unwrap().len(), 1);
    }
}

#[test]
fn a_file_that_is_not_there_is_made_when_a_size_is_given() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("new.img");
    let with_size = |size| OpenOptions {
        create_size: Some(size),
        ..OpenOptions::default()
    };
    assert!(open(&path, &with_size(1000)).is_err());
    assert!(!path.exists(), "what could not be served is not made");
    assert_eq!(
        open(&path, &with_size(MIB)).unwrap().backend.info().size,
        MIB
    );
    let again = open(&path, &with_size(2 * MIB)).unwrap();
    assert_eq!(
        again.backend.info().size,
        MIB,
        "what is there stays as it is"
    );
}

#[test]
fn a_read_only_export_refuses_writes_and_still_locks_the_file() {
    for engine in ENGINES {
        let (_directory, path) = image(MIB);
        let read_only = OpenOptions {
            read_only: true,
            ..options(engine)
        };
        let mut disk = open(&path, &read_only).unwrap();
        assert!(disk.backend.info().read_only && !disk.backend.info().discard);
        assert_eq!(disk.write(0, &[1; 512]), Err(StoreError::ReadOnly));
        assert_eq!(disk.discard(0, 512), Err(StoreError::ReadOnly));
        assert_eq!(disk.zero(0, 512, true, false), Err(StoreError::ReadOnly));
        assert_eq!(disk.read(0, 512).unwrap(), [0; 512]);
        disk.flush().unwrap();
        let error = open(&path, &options(engine)).err().unwrap();
        assert!(matches!(&error, OpenError::InUse { .. }), "{error}");
    }
}

#[test]
fn the_id_stays_with_the_content_and_a_file_made_anew_is_another_export() {
    let (directory, path) = image(MIB);
    let state = directory.path().join("state");
    let options = OpenOptions {
        state_dir: Some(state),
        ..OpenOptions::default()
    };
    let identity = |path: &Path| open(path, &options).unwrap().backend.identity();
    let first = identity(&path);
    assert!(first.note.is_none());
    assert!(first.continuity.is_some());
    assert_eq!(identity(&path), first, "a restart is continuous");

    let moved = directory.path().join("moved.img");
    fs::rename(&path, &moved).unwrap();
    assert_eq!(identity(&moved), first);

    fs::remove_file(&moved).unwrap();
    dst_store::create_sparse(&path, MIB).unwrap();
    let second = identity(&path);
    assert_ne!(second.export_id, first.export_id);
    assert_ne!(second.continuity, first.continuity);

    let mut disk = open(&path, &options).unwrap();
    disk.backend.new_incarnation();
    assert_ne!(disk.backend.identity().continuity, second.continuity);
    disk.flush().unwrap();
}

#[test]
fn the_engine_that_was_chosen_is_named() {
    let (_directory, path) = image(MIB);
    for (engine, name) in [
        (EngineChoice::Uring, "io_uring"),
        (EngineChoice::Threads, "threads"),
        (EngineChoice::Auto, "io_uring"),
    ] {
        let disk: Driver = open(&path, &options(engine)).unwrap();
        let description = &disk.backend.info().description;
        assert!(description.ends_with(name), "{description}");
        assert!(description.starts_with("file ") && description.contains("1 MiB"));
    }
}
