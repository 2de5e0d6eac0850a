//! What is sent and in which order.

use super::*;

#[test]
fn a_long_read_does_not_hold_up_a_short_one() {
    let mut rig = rig();
    rig.take(A, &request(Kind::READ, 0, 1, 0, 384));
    rig.take(A, &request(Kind::READ, 1, 2, 0, 8));
    rig.start();
    rig.done(0, 1);
    rig.done(1, 2);
    let expected = [
        Out::Piece(0, 1, 0, 65536, false),
        Out::Piece(1, 2, 0, 4096, true),
        Out::Piece(0, 1, 65536, 65536, false),
        Out::Piece(0, 1, 131072, 65536, true),
    ];
    assert_eq!(rig.out(A), expected);
    assert_eq!(rig.session.unanswered(), 0);
    assert!(rig.session.is_idle());
}

#[test]
fn pieces_are_cut_at_granules() {
    let mut rig = rig();
    rig.take(A, &request(Kind::READ, 0, 1, 1, 256));
    rig.start();
    rig.done(0, 1);
    let mut out = [0; 64];
    let mut offset = BLOCK;
    loop {
        let transmit = rig.session.poll_reply(&mut rig.slots, A, &mut out);
        let Some(Transmit::Data { header, piece }) = transmit else {
            panic!("a piece");
        };
        assert_eq!(header.offset, offset);
        assert_eq!(header.offset, BLOCK + u64::from(piece.from));
        let granules = (header.offset + u64::from(piece.len)).div_ceil(4096) - header.offset / 4096;
        assert_eq!(
            u64::from(header.digest_len),
            (granules * 4).next_multiple_of(8)
        );
        offset += u64::from(piece.len);
        if piece.last {
            break;
        }
        assert_eq!(offset % 4096, 0);
    }
    assert_eq!(offset, 257 * BLOCK);
}

#[test]
fn a_failed_read_has_one_reply_without_payload() {
    let mut rig = rig();
    rig.take(A, &request(Kind::READ, 0, 1, 0, 384));
    rig.start();
    rig.done_with(0, 1, Status::IO);
    assert_eq!(rig.out(A), [Out::Reply(Kind::READ, 0, 1, Status::IO)]);
}

#[test]
fn the_extents_of_a_block_status_are_the_drivers_to_put_in() {
    let mut rig = rig();
    rig.send(A, Kind::BLOCK_STATUS, 0, 1);
    rig.start();
    rig.done(0, 1);
    assert_eq!(rig.out(A), [Out::Extents(0, 1)]);
    rig.send(A, Kind::BLOCK_STATUS, 0, 1);
    assert_eq!(rig.start(), [1]);
    rig.done_with(0, 1, Status::IO);
    assert_eq!(
        rig.out(A),
        [Out::Reply(Kind::BLOCK_STATUS, 0, 1, Status::IO)]
    );
}

#[test]
fn ping_is_answered_with_its_id() {
    let mut rig = rig();
    let ping = Header {
        id: 4711,
        ..Header::new(Kind::PING)
    };
    assert_eq!(rig.handle(A, &ping), Ok(Take::Nothing));
    assert_eq!(rig.out(A), [ok(Kind::PING, NO_SLOT, 4711)]);
}

#[test]
fn a_new_geometry_and_draining_are_told_to_every_connection() {
    let mut rig = rig();
    rig.join(B, 1, 1).unwrap();
    rig.session.set_geometry(Geometry {
        size: 2 << 20,
        ..geometry()
    });
    rig.session.drain();
    let expected = [Out::Frame(Kind::CHANGED, 0), Out::Frame(Kind::DRAINING, 0)];
    assert_eq!(rig.out(A), expected);
    assert_eq!(rig.out(B), expected);
    rig.take(A, &request(Kind::READ, 0, 1, 2048, 1));
    assert_eq!(rig.start(), [1]);
    assert!(!rig.session.is_idle());
    rig.done(0, 1);
    assert!(!rig.session.is_idle());
    rig.out(A);
    assert!(rig.session.is_idle());
}

#[test]
fn a_result_that_nobody_waits_for_changes_nothing() {
    let mut rig = rig();
    rig.done(0, 1);
    rig.done(SLOTS, 1);
    rig.send(A, Kind::WRITE, 0, 1);
    rig.done(0, 1);
    assert_eq!(rig.start(), [1]);
    rig.done(0, 2);
    assert_eq!(rig.out(A), []);
    rig.done(0, 1);
    rig.done(0, 1);
    assert_eq!(rig.out(A), [ok(Kind::WRITE, 0, 1)]);
}

#[test]
fn a_session_fits_a_kernel_stack() {
    type Kernel<'m> = Session<&'m mut [u64], &'m mut [Lane]>;
    assert!(core::mem::size_of::<Kernel<'_>>() <= 512);
    assert!(core::mem::size_of::<Lane>() <= 128);
    assert!(core::mem::size_of::<Export<&mut [Entry]>>() <= 512);
}
