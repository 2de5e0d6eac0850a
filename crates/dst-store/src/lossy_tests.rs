//! Tests of the test backend.

use super::*;
use dst_buf::Pool;

const SIZE: u64 = 1 << 20;

fn options(early_percent: u32, fail_sync: u64) -> LossyOptions {
    LossyOptions {
        seed: Some(7),
        early_percent,
        fail_sync,
    }
}

fn in_memory(lossy: LossyOptions) -> LossyBackend {
    LossyBackend::memory(SIZE, &lossy, &OpenOptions::default()).unwrap()
}

/// Submits one request and waits for its completion.
fn call(backend: &mut LossyBackend, op: Op) -> Result<Outcome, StoreError> {
    backend.submit(Request { token: 3, op });
    backend.kick();
    let mut done = Vec::new();
    while done.is_empty() {
        let mut fds = [rustix::event::PollFd::from_borrowed_fd(
            backend.wake_fd(),
            rustix::event::PollFlags::IN,
        )];
        rustix::event::poll(&mut fds, None).unwrap();
        backend.poll(&mut done);
    }
    assert_eq!((done.len(), done[0].token, backend.in_flight()), (1, 3, 0));
    done.remove(0).result
}

fn write(
    backend: &mut LossyBackend,
    offset: u64,
    byte: u8,
    len: usize,
    fua: bool,
) -> Result<(), StoreError> {
    let data = Pool::new(0).copy_of(&vec![byte; len]).share();
    call(backend, Op::Write { offset, data, fua }).map(|_| ())
}

fn read(backend: &mut LossyBackend, offset: u64, len: usize) -> Vec<u8> {
    let buf = Pool::new(0).get(len);
    match call(backend, Op::Read { offset, buf }) {
        Ok(Outcome::Read(buf)) => buf.to_vec(),
        other => panic!("{other:?}"),
    }
}

fn flush(backend: &mut LossyBackend) -> Result<(), StoreError> {
    call(backend, Op::Flush).map(|_| ())
}

#[test]
fn flushed_writes_and_fua_writes_survive_a_power_cut_and_the_rest_is_lost_or_torn() {
    let mut lost = 0;
    let mut kept = 0;
    for seed in 0..30 {
        let mut disk = in_memory(LossyOptions {
            seed: Some(seed),
            ..LossyOptions::default()
        });
        write(&mut disk, 0, 1, 64 << 10, false).unwrap();
        flush(&mut disk).unwrap();
        write(&mut disk, 64 << 10, 2, 4096, true).unwrap();
        write(&mut disk, 0, 3, 32 << 10, false).unwrap();
        assert_eq!(read(&mut disk, 0, 4096), [3; 4096]);
        disk.power_cut(seed);
        let after = read(&mut disk, 0, 64 << 10);
        assert_eq!(&after[32 << 10..], &[1; 32 << 10]);
        assert_eq!(read(&mut disk, 64 << 10, 4096), [2; 4096]);
        for sector in after[..32 << 10].chunks(512) {
            assert!(
                sector == [1; 512] || sector == [3; 512],
                "a sector is whole"
            );
            *(if sector[0] == 1 { &mut lost } else { &mut kept }) += 1;
        }
    }
    assert!(lost > 100 && kept > 100, "{lost} lost, {kept} kept");
}

#[test]
fn after_a_power_cut_no_flush_succeeds_before_a_new_incarnation() {
    let mut disk = in_memory(options(30, 0));
    disk.power_cut(1);
    assert_eq!(flush(&mut disk), Err(StoreError::SyncFailed));
    assert_eq!(
        write(&mut disk, 0, 1, 512, true),
        Err(StoreError::SyncFailed)
    );
    assert_eq!(write(&mut disk, 0, 1, 512, false), Ok(()));
    disk.new_incarnation();
    assert_eq!(flush(&mut disk), Ok(()));
    assert_eq!(disk.identity().continuity, None);
}

#[test]
fn every_nth_sync_fails_once_and_loses_what_was_unflushed() {
    let mut disk = in_memory(options(0, 2));
    write(&mut disk, 0, 1, 4096, false).unwrap();
    flush(&mut disk).unwrap();
    let mut lost = false;
    for _ in 0..20 {
        write(&mut disk, 0, 2, 4096, false).unwrap();
        assert_eq!(flush(&mut disk), Err(StoreError::SyncFailed));
        assert_eq!(flush(&mut disk), Err(StoreError::SyncFailed));
        disk.new_incarnation();
        lost |= read(&mut disk, 0, 4096) != [2; 4096];
        write(&mut disk, 0, 1, 4096, true).unwrap();
        assert_eq!(read(&mut disk, 0, 4096), [1; 4096]);
    }
    assert!(lost);
}

#[test]
fn closing_without_a_flush_is_a_power_cut_that_shows_in_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.img");
    crate::create_sparse(&path, SIZE).unwrap();
    let open = || LossyBackend::open(&path, &options(40, 0), &OpenOptions::default()).unwrap();
    let mut disk = open();
    let id = disk.identity().export_id;
    write(&mut disk, 0, 1, 256 << 10, false).unwrap();
    flush(&mut disk).unwrap();
    for n in 0..64 {
        write(&mut disk, n * 4096, 2, 4096, false).unwrap();
    }
    drop(disk);
    let mut disk = open();
    assert_eq!(disk.identity().export_id, id);
    let after = read(&mut disk, 0, 256 << 10);
    let blocks: Vec<usize> = after
        .chunks(4096)
        .map(|block| block.chunks(512).filter(|sector| sector[0] == 2).count())
        .collect();
    assert!(blocks.contains(&0), "some writes were dropped");
    assert!(
        blocks.iter().any(|new| (1..8).contains(new)),
        "some writes were torn"
    );
    assert!(blocks.contains(&8), "some writes arrived");
}

#[test]
fn zeroes_and_discards_are_seen_at_once_and_ranges_are_checked() {
    let mut disk = in_memory(options(30, 0));
    write(&mut disk, 0, 9, 64 << 10, false).unwrap();
    let zero = |offset, len| Op::WriteZeroes {
        offset,
        len,
        may_unmap: true,
        fast_only: true,
        fua: false,
    };
    call(&mut disk, zero(4096, 4096)).unwrap();
    call(
        &mut disk,
        Op::Discard {
            offset: 16 << 10,
            len: 4096,
        },
    )
    .unwrap();
    let seen = read(&mut disk, 0, 24 << 10);
    let kinds: Vec<u8> = seen.chunks(4096).map(|block| block[0]).collect();
    assert_eq!(kinds, [9, 0, 9, 9, 0, 9]);
    assert_eq!(
        call(&mut disk, zero(SIZE, 512)).unwrap_err(),
        StoreError::OutOfRange
    );
    assert!(matches!(
        call(&mut disk, Op::BlockStatus { offset: 0, len: 512 }),
        Ok(Outcome::Extents(extents)) if extents == [Extent { len: 512, kind: ExtentKind::Data }]
    ));
}
