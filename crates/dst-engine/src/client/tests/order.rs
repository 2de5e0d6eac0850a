//! Ids, overlap, credit, barriers.

extern crate std;

use std::vec::Vec;

use super::super::super::proto::{Credit, Header, Kind, Status};
use super::super::Take;
use super::rig::*;

#[test]
fn ids_have_no_gap_and_follow_submission() {
    let mut rig = Rig::live();
    for slot in [3, 0, 5] {
        rig.submit(slot, read(u64::from(slot), 1));
    }
    let sent: Vec<_> = core::iter::from_fn(|| rig.send(0)).collect();
    let order: Vec<_> = sent.iter().map(|s| (s.header.id, s.header.slot)).collect();
    assert_eq!(order, [(1, 3), (2, 0), (3, 5)]);
}

#[test]
fn an_overlapping_write_waits_and_others_pass_it() {
    let mut rig = Rig::live();
    rig.submit(0, write(0, 4));
    rig.submit(1, write(3, 2));
    rig.submit(2, write(8, 1));
    rig.submit(3, write(4, 1)); // overlaps the one that waits
    let first = rig.send(0).unwrap();
    let third = rig.send(0).unwrap();
    assert_eq!((first.header.slot, third.header.slot), (0, 2));
    assert_eq!(rig.send(0), None);
    rig.reply(0, first, Status::OK);
    let second = rig.send(0).unwrap();
    assert_eq!((second.header.slot, second.header.id), (1, 3));
    assert_eq!(rig.send(0), None);
    rig.reply(0, second, Status::OK);
    assert_eq!(rig.send(0).unwrap().header.slot, 3);
}

#[test]
fn a_barrier_waits_behind_a_write_that_waits_and_stops_what_follows() {
    let mut rig = Rig::live();
    rig.submit(0, write(0, 1));
    rig.submit(1, write(0, 1));
    rig.submit(2, barrier(flush()));
    rig.submit(3, read(5, 1));
    let first = rig.send(0).unwrap();
    assert_eq!(rig.send(0), None);
    rig.reply(0, first, Status::OK);
    let slots: Vec<_> = core::iter::from_fn(|| rig.send(0))
        .map(|sent| (sent.header.slot, sent.header.after))
        .collect();
    assert_eq!(slots, [(1, 0), (2, 0), (3, 1)]);
}

#[test]
fn a_barriers_reply_counts_only_after_all_lower_ones_and_before_all_higher_ones() {
    let mut rig = Rig::live();
    rig.submit(0, read(0, 1));
    rig.submit(1, barrier(flush()));
    rig.submit(2, flush());
    let sent: Vec<_> = core::iter::from_fn(|| rig.send(0)).collect();
    rig.reply(0, sent[2], Status::OK);
    rig.reply(0, sent[1], Status::OK);
    assert_eq!(rig.completed(), []);
    rig.reply(0, sent[0], Status::IO);
    let order: Vec<_> = rig.completed().iter().map(|(slot, _)| *slot).collect();
    assert_eq!(order.len(), 3);
    let at = |slot| order.iter().position(|s| *s == slot).unwrap();
    assert!(at(0) < at(1) && at(1) < at(2));
}

#[test]
fn credit_stops_in_order_and_comes_back_with_replies() {
    let mut rig = Rig::new();
    rig.credit = Credit {
        requests: 2,
        bytes: 4096,
    };
    rig.open();
    rig.submit(0, write(0, 8));
    rig.submit(1, write(8, 1)); // no bytes left
    rig.submit(2, read(0, 1)); // keeps its place behind
    let first = rig.send(0).unwrap();
    assert_eq!(rig.send(0), None);
    rig.reply(0, first, Status::OK);
    assert_eq!(rig.send(0).unwrap().header.slot, 1);
    assert_eq!(rig.send(0).unwrap().header.slot, 2);
    rig.submit(3, read(1, 1));
    assert_eq!(rig.send(0), None);
}

#[test]
fn ids_stay_within_the_window_of_the_oldest_open_one() {
    let mut rig = Rig::live();
    rig.submit(0, read(0, 1));
    let oldest = rig.send(0).unwrap();
    let mut sent = 1;
    loop {
        rig.submit(1, flush());
        let Some(flush) = rig.send(0) else {
            break;
        };
        rig.reply(0, flush, Status::OK);
        rig.completed();
        sent += 1;
    }
    assert_eq!(sent, 128);
    rig.reply(0, oldest, Status::IO);
    assert_eq!(rig.send(0).unwrap().header.id, 129);
}

#[test]
fn a_write_completes_only_when_its_memory_is_free() {
    let mut rig = Rig::live();
    rig.submit(0, write(0, 1));
    let sent = rig.send_pinned(0).unwrap();
    rig.reply(0, sent, Status::OK);
    assert_eq!(rig.completed(), []);
    rig.sent(0, 0);
    assert_eq!(rig.completed(), [(0, Ok(()))]);
}

#[test]
fn a_read_takes_its_pieces_in_order_only() {
    let mut rig = Rig::live();
    rig.submit(0, read(0, 4));
    let sent = rig.send(0).unwrap();
    let piece = |at: u64, length: u32, more| Header {
        offset: at,
        payload_len: length,
        more,
        ..Header::reply(Kind::READ, 0, sent.header.id, Status::OK, Credit::default())
    };
    assert!(rig.frame(0, piece(512, 512, true), &[]).is_err());
    assert!(rig.frame(0, piece(0, 512, false), &[]).is_err());
    assert!(rig.frame(0, piece(0, 2560, false), &[]).is_err());
    rig.frame(0, piece(0, 1536, true), &[]).unwrap();
    let stream = rig.streams[0];
    rig.session
        .payload_done(&mut rig.slots, &mut rig.retained, 0, stream, true);
    assert_eq!(rig.completed(), []);
    rig.frame(0, piece(1536, 512, false), &[]).unwrap();
    rig.session
        .payload_done(&mut rig.slots, &mut rig.retained, 0, stream, true);
    assert_eq!(rig.completed(), [(0, Ok(()))]);
}

#[test]
fn a_read_with_a_bad_digest_is_sent_again_and_the_rest_of_the_bad_answer_thrown_away() {
    let mut rig = Rig::live();
    rig.submit(0, read(0, 2));
    let first = rig.send(0).unwrap();
    let piece = |sent: Sent, at: u64, more| Header {
        attempt: sent.header.attempt,
        offset: at,
        payload_len: 512,
        more,
        ..Header::reply(Kind::READ, 0, 1, Status::OK, Credit::default())
    };
    let stream = rig.streams[0];
    rig.frame(0, piece(first, 0, true), &[]).unwrap();
    rig.session
        .payload_done(&mut rig.slots, &mut rig.retained, 0, stream, false);
    assert_eq!(
        rig.frame(0, piece(first, 512, false), &[]),
        Ok(Take::Discard)
    );
    let again = rig.send(0).unwrap();
    for (at, more) in [(0, true), (512, false)] {
        let at_slot = Take::Payload {
            slot: 0,
            at: at as u32,
        };
        assert_eq!(rig.frame(0, piece(again, at, more), &[]), Ok(at_slot));
        rig.session
            .payload_done(&mut rig.slots, &mut rig.retained, 0, stream, true);
    }
    assert_eq!(rig.completed(), [(0, Ok(()))]);
}
