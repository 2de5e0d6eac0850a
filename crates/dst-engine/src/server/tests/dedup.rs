//! PROTOCOL.md 5.1 and 5.3: which copy counts, what ends the connection.

use super::*;

#[test]
fn a_write_is_executed_when_its_payload_is_there_and_answered_when_it_is_done() {
    let mut rig = rig();
    let write = request(Kind::WRITE, 0, 1, 4, 2);
    assert_eq!(rig.handle(A, &write), Ok(Take::Payload { slot: 0 }));
    assert_eq!(rig.start(), []);
    rig.session.payload_done(&mut rig.slots, A, true);
    let execute = rig.session.poll_execute(&mut rig.slots).unwrap();
    assert_eq!((execute.slot, execute.id), (0, 1));
    assert_eq!((execute.offset, execute.length), (4 * BLOCK, 2 * BLOCK));
    assert_eq!(rig.out(A), []);
    rig.done(0, 1);
    assert_eq!(rig.out(A), [ok(Kind::WRITE, 0, 1)]);
    assert_eq!(rig.session.unanswered(), 0);
    assert_eq!(rig.session.unanswered_bytes(), 0);
}

#[test]
fn a_resent_write_is_answered_from_the_kept_status_and_not_executed_again() {
    let mut rig = rig();
    rig.send(A, Kind::WRITE, 0, 1);
    rig.start();
    rig.done_with(0, 1, Status::NO_SPACE);
    rig.out(A);
    assert_eq!(rig.send(A, Kind::WRITE, 0, 1), Take::Discard);
    assert_eq!(rig.start(), []);
    let again = Out::Reply(Kind::WRITE, 0, 1, Status::NO_SPACE);
    assert_eq!(rig.out(A), [again]);
}

#[test]
fn a_resent_flush_is_answered_from_the_kept_status() {
    let mut rig = rig();
    rig.run(Kind::FLUSH, FLUSH_SLOT, 1);
    rig.send(A, Kind::FLUSH, FLUSH_SLOT, 1);
    assert_eq!(rig.start(), []);
    assert_eq!(rig.out(A), [ok(Kind::FLUSH, FLUSH_SLOT, 1)]);
}

#[test]
fn a_resent_read_is_executed_again() {
    let mut rig = rig();
    rig.run(Kind::READ, 0, 1);
    rig.send(A, Kind::READ, 0, 1);
    assert_eq!(rig.start(), [1]);
    rig.done(0, 1);
    assert_eq!(rig.out(A), [Out::Piece(0, 1, 0, 512, true)]);
}

#[test]
fn a_copy_of_a_request_in_progress_moves_the_reply_to_its_connection() {
    let mut rig = rig();
    rig.join(B, 1, 1).unwrap();
    rig.send(A, Kind::WRITE, 0, 1);
    rig.start();
    assert_eq!(rig.send(B, Kind::WRITE, 0, 1), Take::Discard);
    rig.done(0, 1);
    assert_eq!(rig.out(A), []);
    assert_eq!(rig.out(B), [ok(Kind::WRITE, 0, 1)]);
}

#[test]
fn a_copy_on_another_connection_takes_over_from_one_that_is_still_arriving() {
    let mut rig = rig();
    rig.join(B, 1, 1).unwrap();
    let write = request(Kind::WRITE, 0, 1, 0, 1);
    assert_eq!(rig.handle(A, &write), Ok(Take::Payload { slot: 0 }));
    assert_eq!(rig.handle(B, &write), Ok(Take::Payload { slot: 0 }));
    assert!(!rig.session.payload_wanted(A));
    assert!(rig.session.payload_wanted(B));
    // The old copy ends, with whatever digests: nothing comes of it.
    rig.session.payload_done(&mut rig.slots, A, true);
    assert_eq!(rig.start(), []);
    rig.session.payload_done(&mut rig.slots, B, true);
    assert_eq!(rig.start(), [1]);
    rig.done(0, 1);
    assert_eq!(rig.out(A), []);
    assert_eq!(rig.out(B), [ok(Kind::WRITE, 0, 1)]);
    assert_eq!(rig.events(), [Event::Replayed]);
}

#[test]
fn an_id_below_the_slots_is_thrown_away_without_an_answer() {
    let mut rig = rig();
    rig.run(Kind::WRITE, 0, 1);
    rig.run(Kind::WRITE, 0, 2);
    assert_eq!(rig.send(A, Kind::WRITE, 0, 1), Take::Discard);
    assert_eq!(rig.start(), []);
    assert_eq!(rig.out(A), []);
}

#[test]
fn a_bad_digest_is_answered_retry_and_the_id_counts_as_not_arrived() {
    let mut rig = rig();
    let write = request(Kind::WRITE, 0, 1, 0, 1);
    rig.handle(A, &write).unwrap();
    rig.session.payload_done(&mut rig.slots, A, false);
    // The barrier behind it waits for its arrival.
    rig.take(A, &barrier(request(Kind::FLUSH, 1, 2, 0, 0)));
    assert_eq!(rig.start(), []);
    assert_eq!(rig.out(A), [Out::Reply(Kind::WRITE, 0, 1, Status::RETRY)]);
    assert_eq!(rig.events(), [Event::Drop { slot: 0 }, Event::Replayed]);
    rig.take(A, &write);
    assert_eq!(rig.start(), [1]);
    rig.done(0, 1);
    assert_eq!(rig.start(), [2]);
}

#[test]
fn a_resend_before_the_retry_was_handed_out_takes_it_back() {
    let mut rig = rig();
    let write = request(Kind::WRITE, 0, 1, 0, 1);
    rig.handle(A, &write).unwrap();
    rig.session.payload_done(&mut rig.slots, A, false);
    rig.take(A, &write);
    rig.start();
    rig.done(0, 1);
    assert_eq!(rig.out(A), [ok(Kind::WRITE, 0, 1)]);
}

#[test]
fn an_id_beyond_the_window_or_zero_ends_the_connection() {
    let mut rig = rig();
    assert!(rig.handle(A, &request(Kind::READ, 0, 65, 0, 1)).is_err());
    assert!(rig.handle(A, &request(Kind::READ, 0, 0, 0, 1)).is_err());
    assert!(rig.handle(A, &request(Kind::READ, 0, 64, 0, 1)).is_ok());
}

#[test]
fn a_slot_out_of_range_or_not_for_this_type_ends_the_connection() {
    let mut rig = rig();
    assert!(rig.handle(A, &request(Kind::READ, SLOTS, 1, 0, 1)).is_err());
    assert!(rig
        .handle(A, &request(Kind::READ, NO_SLOT, 1, 0, 1))
        .is_err());
    let in_flush_slot = request(Kind::READ, FLUSH_SLOT, 1, 0, 1);
    assert!(rig.handle(A, &in_flush_slot).is_err());
}

#[test]
fn a_slot_used_before_its_outcome_is_known_ends_the_connection() {
    let mut rig = rig();
    rig.send(A, Kind::WRITE, 0, 1);
    assert!(rig.handle(A, &request(Kind::READ, 0, 2, 0, 1)).is_err());
    rig.start();
    assert!(rig.handle(A, &request(Kind::READ, 0, 2, 0, 1)).is_err());
    rig.done(0, 1);
    assert!(rig.handle(A, &request(Kind::READ, 0, 2, 0, 1)).is_ok());
}

#[test]
fn a_slot_whose_id_has_not_arrived_takes_no_higher_one() {
    let mut rig = rig();
    rig.join(B, 1, 1).unwrap();
    rig.handle(A, &request(Kind::WRITE, 0, 1, 0, 1)).unwrap();
    rig.lose(A);
    assert!(rig.handle(B, &request(Kind::READ, 0, 2, 0, 1)).is_err());
}

#[test]
fn an_id_used_in_two_slots_ends_the_connection() {
    let mut rig = rig();
    rig.run(Kind::WRITE, 0, 1);
    assert!(rig.handle(A, &request(Kind::WRITE, 1, 1, 0, 1)).is_err());
}

#[test]
fn an_id_used_for_two_requests_ends_the_connection() {
    let mut rig = rig();
    rig.send(A, Kind::WRITE, 0, 1);
    assert!(rig.handle(A, &request(Kind::WRITE, 0, 1, 99, 1)).is_err());
}

#[test]
fn acknowledging_what_has_not_finished_ends_the_connection() {
    let mut rig = rig();
    rig.run(Kind::WRITE, 0, 1);
    let header = Header {
        acked: 2,
        ..request(Kind::READ, 0, 2, 0, 1)
    };
    assert!(rig.handle(A, &header).is_err());
    let header = Header { acked: 1, ..header };
    assert!(rig.handle(A, &header).is_ok());
}

#[test]
fn more_requests_than_the_credit_end_the_connection_but_flush_has_its_slot() {
    let mut config = config();
    config.limits.slots = 3;
    let mut rig = rig_with(config);
    rig.send(A, Kind::READ, 0, 1);
    rig.send(A, Kind::READ, 1, 2);
    rig.send(A, Kind::FLUSH, 2, 3);
    rig.session.set_credit(Credit {
        requests: 1,
        bytes: 0,
    });
    // What was granted before stays allowed.
    rig.start();
    rig.done(0, 1);
    assert_eq!(rig.out(A).len(), 1);
    rig.send(A, Kind::READ, 0, 4);
    assert_eq!(rig.session.unanswered(), 2);
}

#[test]
fn more_bytes_than_the_highest_credit_end_the_connection() {
    let mut config = config();
    config.limits.credit_bytes = 3 * BLOCK as u32;
    let mut rig = rig_with(config);
    rig.take(A, &request(Kind::WRITE, 0, 1, 0, 2));
    assert!(rig.handle(A, &request(Kind::WRITE, 1, 2, 10, 2)).is_err());
    rig.take(A, &request(Kind::WRITE, 1, 2, 10, 1));
    rig.start();
    rig.done(0, 1);
    // It counts until it is answered.
    assert!(rig.handle(A, &request(Kind::WRITE, 2, 3, 20, 2)).is_err());
    rig.session.set_credit(Credit {
        requests: 7,
        bytes: 5 * BLOCK as u32,
    });
    assert!(rig.handle(A, &request(Kind::WRITE, 2, 3, 20, 3)).is_err());
    rig.out(A);
    rig.take(A, &request(Kind::WRITE, 2, 3, 20, 4));
}

#[test]
fn a_refused_request_is_answered_and_leaves_no_gap() {
    let mut rig = rig();
    let beyond = request(Kind::WRITE, 0, 1, 2048, 1);
    assert_eq!(rig.handle(A, &beyond), Ok(Take::Discard));
    assert_eq!(rig.out(A), [Out::Reply(Kind::WRITE, 0, 1, Status::RANGE)]);
    rig.take(A, &barrier(request(Kind::FLUSH, 1, 2, 0, 0)));
    assert_eq!(rig.start(), [2]);
}

#[test]
fn each_refusal_has_its_status() {
    let write = request(Kind::WRITE, 0, 1, 0, 1);
    let read = request(Kind::READ, 0, 1, 0, 1);
    let zeroes = request(Kind::WRITE_ZEROES, 0, 1, 0, 1);
    let with = |header: Header, change: fn(&mut Header)| {
        let mut header = header;
        change(&mut header);
        header
    };
    let cases = [
        (with(read, |h| h.length = 0), Status::INVALID),
        (with(read, |h| h.offset = 1), Status::INVALID),
        (with(read, |h| h.length = 513), Status::INVALID),
        (with(read, |h| h.length = (1 << 18) + 512), Status::INVALID),
        (with(read, |h| h.offset = 1 << 20), Status::RANGE),
        (with(read, |h| h.offset = u64::MAX - 511), Status::RANGE),
        (with(zeroes, |h| h.length = u64::MAX - 511), Status::RANGE),
        (with(write, |h| h.payload_len = 1024), Status::INVALID),
        (
            with(read, |h| h.op_flags = OpFlags::FUA),
            Status::UNSUPPORTED,
        ),
        (
            with(read, |h| h.op_flags = OpFlags(1 << 7)),
            Status::UNSUPPORTED,
        ),
        (
            with(zeroes, |h| h.op_flags = OpFlags::FAST_ONLY),
            Status::UNSUPPORTED,
        ),
        (with(read, |h| h.kind = Kind(200)), Status::UNSUPPORTED),
        (with(read, |h| h.kind = Kind::FLUSH), Status::INVALID),
    ];
    for (header, status) in cases {
        let mut rig = rig();
        assert!(!matches!(rig.handle(A, &header), Ok(Take::Payload { .. })));
        assert_eq!(
            rig.out(A),
            [Out::Reply(header.kind, 0, 1, status)],
            "{header:?}"
        );
        assert_eq!(rig.start(), []);
        assert_eq!(rig.session.unanswered_bytes(), 0);
    }
}

#[test]
fn a_reader_may_not_write() {
    let mut config = config();
    config.writable = false;
    for kind in [Kind::WRITE, Kind::DISCARD, Kind::WRITE_ZEROES] {
        let mut rig = rig_with(config.clone());
        rig.handle(A, &request(kind, 0, 1, 0, 1)).unwrap();
        assert_eq!(rig.out(A), [Out::Reply(kind, 0, 1, Status::READ_ONLY)]);
    }
}

#[test]
fn an_unknown_critical_option_is_unsupported_and_another_is_skipped() {
    for (kind, expected) in [(0x8077u16, Status::UNSUPPORTED), (0x0077, Status::OK)] {
        let mut rig = rig();
        let mut options = [0; 8];
        options[..2].copy_from_slice(&kind.to_le_bytes());
        let header = request(Kind::FLUSH, 0, 1, 0, 0);
        rig.session
            .handle_request(&mut rig.slots, A, &header, &options, 0)
            .unwrap();
        rig.start();
        rig.done(0, 1);
        assert_eq!(rig.out(A), [Out::Reply(Kind::FLUSH, 0, 1, expected)]);
    }
}

#[test]
fn frames_in_the_wrong_place_end_the_connection() {
    let mut rig = rig();
    for kind in [
        Kind::OPEN,
        Kind::JOIN,
        Kind::LIST,
        Kind::CHANGED,
        Kind::DRAINING,
        Kind(99),
    ] {
        assert!(rig.handle(A, &Header::new(kind)).is_err(), "{kind:?}");
    }
    let reply = Header::reply(Kind::READ, 0, 1, Status::OK, Credit::default());
    assert!(rig.handle(A, &reply).is_err());
    assert!(rig.handle(C, &Header::new(Kind::PING)).is_err());
}

#[test]
fn a_frame_within_a_payload_is_a_fault() {
    let mut rig = rig();
    rig.handle(A, &request(Kind::WRITE, 0, 1, 0, 1)).unwrap();
    assert!(rig.handle(A, &Header::new(Kind::PING)).is_err());
}

#[test]
fn a_delayed_older_copy_takes_neither_the_answer_nor_the_payload_along() {
    let mut rig = rig();
    rig.join(B, 1, 1).unwrap();
    // Resent over B; then what A still had in the network arrives.
    let flush = request(Kind::FLUSH, FLUSH_SLOT, 1, 0, 0);
    let again = Header {
        attempt: 1,
        ..flush
    };
    assert_eq!(rig.handle_copy(B, &again), Ok(Take::Nothing));
    assert_eq!(rig.start(), [1]);
    assert_eq!(rig.handle_copy(A, &flush), Ok(Take::Nothing));
    rig.done(FLUSH_SLOT, 1);
    assert_eq!(rig.out(A), []);
    assert_eq!(rig.out(B), [ok(Kind::FLUSH, FLUSH_SLOT, 1)]);

    let write = request(Kind::WRITE, 0, 2, 0, 1);
    let again = Header {
        attempt: 255,
        ..write
    };
    let newest = Header {
        attempt: 0,
        ..write
    };
    assert_eq!(rig.handle_copy(A, &again), Ok(Take::Payload { slot: 0 }));
    assert_eq!(rig.handle_copy(B, &newest), Ok(Take::Payload { slot: 0 }));
    assert!(!rig.session.payload_wanted(A));
    rig.session.payload_done(&mut rig.slots, B, true);
    assert_eq!(rig.start(), [2]);
}
