//! What the model permits and what it does not.

use super::*;

const ONE: Range = Range { first: 0, count: 1 };

fn write(model: &mut Model, request: u32, value: u64) {
    model.submit_write(request, 0, ONE, value);
    model.sent(request, ONE);
}

fn reads(model: &mut Model, client: u8, value: u64) -> bool {
    model.submit_read(900, client, ONE, 0, false);
    model.finish_read(900, [Some(value)].into_iter()).is_ok()
}

fn model() -> Model {
    let mut model = Model::new(2);
    model.grant(0, true, false);
    model
}

fn medium(model: &Model, value: u64) -> bool {
    model.check_medium([Some(value)].into_iter()).is_ok()
}

#[test]
fn a_pending_write_may_be_seen_or_not_and_an_acked_one_must_be() {
    let mut model = model();
    write(&mut model, 1, 5);
    assert!(reads(&mut model, 0, 5) && reads(&mut model, 0, 0));
    model.ack_write(1, ONE, false).unwrap();
    assert!(reads(&mut model, 0, 5) && !reads(&mut model, 0, 0));
}

#[test]
fn a_read_under_way_may_see_what_is_written_meanwhile() {
    let mut model = model();
    model.submit_read(9, 0, ONE, 0, false);
    write(&mut model, 1, 5);
    model.ack_write(1, ONE, false).unwrap();
    assert!(model.finish_read(9, [Some(5)].into_iter()).is_ok());
    model.submit_read(9, 0, ONE, 0, false);
    assert!(model.finish_read(9, [Some(0)].into_iter()).is_err());
}

#[test]
fn a_read_behind_a_barrier_sees_what_was_before_it() {
    let mut model = model();
    let when = model.submit_write(1, 0, ONE, 5);
    model.sent(1, ONE);
    model.submit_read(9, 0, ONE, when, false);
    model.ack_write(1, ONE, false).unwrap();
    assert!(model.finish_read(9, [Some(0)].into_iter()).is_err());
}

#[test]
fn a_failed_write_is_decided_by_the_first_read_after_it() {
    for (first, second) in [(5, 0), (0, 5)] {
        let mut model = model();
        write(&mut model, 1, 5);
        model.fail_write(1, ONE, true);
        assert!(reads(&mut model, 0, first));
        assert!(!reads(&mut model, 0, second));
    }
    let mut model = model();
    write(&mut model, 1, 5);
    model.fail_write(1, ONE, true);
    model.never_executed(1, ONE);
    assert!(!reads(&mut model, 0, 5));
}

#[test]
fn a_flush_covers_what_was_acked_before_it_was_handed_in() {
    let mut model = model();
    write(&mut model, 1, 5);
    model.ack_write(1, ONE, false).unwrap();
    let when = model.tick();
    write(&mut model, 2, 6);
    model.ack_write(2, ONE, false).unwrap();
    assert!(medium(&model, 0));
    model.ack_flush(when);
    assert!(!medium(&model, 0) && medium(&model, 5) && medium(&model, 6));
    model.ack_flush(when);
    write(&mut model, 3, 7);
    model.ack_write(3, ONE, true).unwrap();
    assert!(!medium(&model, 6) && medium(&model, 7));
}

#[test]
fn what_a_power_cut_takes_comes_back_by_replay_or_any_version_is_there() {
    let mut model = model();
    write(&mut model, 1, 5);
    model.ack_write(1, ONE, false).unwrap();
    model.lose();
    model.replayed();
    assert!(!reads(&mut model, 0, 0));
    model.lose();
    model.client_gone(0);
    model.grant(1, true, false);
    assert!(reads(&mut model, 1, 0), "it may be gone");
    assert!(!reads(&mut model, 1, 5), "and then it stays gone");
}

#[test]
fn overlapping_writes_complete_in_order() {
    let mut model = model();
    write(&mut model, 1, 5);
    write(&mut model, 2, 6);
    assert!(model.ack_write(2, ONE, false).is_err());
}

#[test]
fn a_new_holder_finds_everything_acked_durable() {
    let mut model = model();
    write(&mut model, 1, 5);
    model.ack_write(1, ONE, false).unwrap();
    model.client_gone(0);
    model.grant(1, true, false);
    assert!(!medium(&model, 0) && medium(&model, 5));
}
