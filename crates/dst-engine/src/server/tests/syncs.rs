//! PROTOCOL.md 7: a sync that fails ends the incarnation.

use super::admission::{admit, export, holder, open, LEASE};
use super::*;

const NEXT: [u8; 16] = [2; 16];
const LATER: [u8; 16] = [5; 16];

#[test]
fn a_failed_sync_ends_every_session_and_the_incarnation() {
    let mut export = export();
    admit(&mut export, 10, holder(1, 1), 0);
    export.open(20, &open(None), 0);
    assert_eq!(export.sync_failed(Some(10), NEXT, 0), Status::SESSION_LOST);
    assert_eq!(export.state().incarnation, NEXT);
    let mut ended = Vec::new();
    while let Some(Action::Settle { session, reason }) = export.poll_action(0) {
        assert_eq!(reason, Status::SESSION_LOST);
        ended.push(session);
    }
    ended.sort();
    assert_eq!(ended, [10, 20]);
    // The backend goes on only when nothing of the old incarnation is under way.
    export.settled(10);
    assert_eq!(export.poll_action(0), None);
    let reader = export.open(21, &open(None), 0);
    assert!(matches!(reader, Admission::Refused(_)));
    export.settled(20);
    assert_eq!(export.poll_action(0), Some(Action::Renew));
    assert_eq!(export.open(21, &open(None), 0), Admission::Granted);
    assert!(export.is_gated(21));
    admit(&mut export, 11, holder(1, 1), 0);
    assert_eq!(export.state().epoch, 1);
}

#[test]
fn further_failures_of_the_incarnation_that_ended_change_nothing() {
    let mut export = export();
    admit(&mut export, 10, holder(1, 1), 0);
    export.sync_failed(Some(10), NEXT, 0);
    assert_eq!(export.sync_failed(Some(10), LATER, 0), Status::SESSION_LOST);
    assert_eq!(export.state().incarnation, NEXT);
}

/// Ends the incarnation and lets the holder come back.
fn fail(export: &mut Export<Vec<Entry>>, old: u64, new: u64) -> Status {
    let status = export.sync_failed(Some(old), NEXT, 0);
    assert!(matches!(export.poll_action(0), Some(Action::Settle { .. })));
    export.settled(old);
    assert_eq!(export.poll_action(0), Some(Action::Renew));
    admit(export, new, holder(1, 1), 0);
    status
}

#[test]
fn the_second_failure_without_a_success_between_is_answered() {
    let mut export = export();
    admit(&mut export, 10, holder(1, 1), 0);
    assert_eq!(fail(&mut export, 10, 11), Status::SESSION_LOST);
    export.replayed(11);
    assert_eq!(fail(&mut export, 11, 12), Status::SYNC_FAILED);
}

#[test]
fn a_sync_that_succeeded_after_the_replay_begins_anew() {
    let mut export = export();
    admit(&mut export, 10, holder(1, 1), 0);
    fail(&mut export, 10, 11);
    export.replayed(11);
    assert_eq!(export.poll_action(0), Some(Action::Ungate));
    export.sync_succeeded(11);
    assert_eq!(fail(&mut export, 11, 12), Status::SESSION_LOST);
}

#[test]
fn a_sync_that_succeeded_before_the_replay_proves_nothing() {
    let mut export = export();
    admit(&mut export, 10, holder(1, 1), 0);
    fail(&mut export, 10, 11);
    export.sync_succeeded(11);
    export.replayed(11);
    assert_eq!(fail(&mut export, 11, 12), Status::SYNC_FAILED);
}

#[test]
fn a_failing_flush_of_an_admission_refuses_it_and_ends_the_incarnation() {
    let mut export = export();
    for status in [Status::IO, Status::SYNC_FAILED] {
        export.open(10, &open(Some(holder(1, 1))), 0);
        assert_eq!(export.poll_action(0), Some(Action::Flush));
        export.sync_failed(None, NEXT, 0);
        assert_eq!(export.poll_action(0), Some(Action::Renew));
        let Some(Action::Refuse { session, refused }) = export.poll_action(0) else {
            panic!("refused");
        };
        assert_eq!((session, refused.status), (10, status));
        assert!(refused.wait.is_some());
    }
    assert_eq!(export.sessions(), 0);
    admit(&mut export, 11, holder(1, 1), 0);
}

#[test]
fn a_sync_failing_under_an_admission_refuses_it_when_its_step_is_over() {
    let mut export = export();
    export.open(20, &open(None), 0);
    export.open(10, &open(Some(holder(1, 1))), 0);
    assert_eq!(export.poll_action(0), Some(Action::Flush));
    export.sync_failed(Some(20), NEXT, 0);
    assert!(matches!(export.poll_action(0), Some(Action::Settle { .. })));
    export.settled(20);
    // The flush is still at the backend.
    assert_eq!(export.poll_action(0), None);
    export.flushed();
    assert_eq!(export.poll_action(0), Some(Action::Renew));
    assert!(matches!(export.poll_action(0), Some(Action::Refuse { .. })));
}

#[test]
fn a_sync_failing_while_the_record_is_written_refuses_and_the_holder_comes_back() {
    let mut export = export();
    export.open(20, &open(None), 0);
    export.open(10, &open(Some(holder(1, 1))), 0);
    export.poll_action(0);
    export.flushed();
    assert!(matches!(export.poll_action(0), Some(Action::Persist(_))));
    export.sync_failed(Some(20), NEXT, 0);
    assert!(matches!(export.poll_action(0), Some(Action::Settle { .. })));
    export.settled(20);
    assert_eq!(export.poll_action(0), Some(Action::Renew));
    export.persisted(true, 0);
    assert!(matches!(export.poll_action(0), Some(Action::Refuse { .. })));
    assert_eq!(export.state().epoch, 1);
    admit(&mut export, 11, holder(1, 1), 0);
}

#[test]
fn a_sync_failing_under_a_probe_leaves_the_lease_to_its_holder() {
    let mut export = export();
    admit(&mut export, 10, holder(1, 1), 0);
    export.open(11, &open(Some(holder(1, 2))), 0);
    export.poll_action(0);
    export.sync_failed(Some(10), NEXT, 0);
    assert!(matches!(export.poll_action(0), Some(Action::Settle { .. })));
    assert!(matches!(export.poll_action(0), Some(Action::Refuse { .. })));
    export.settled(10);
    assert_eq!(export.poll_action(0), Some(Action::Renew));
    // Its session is gone through no fault of its own, so nobody else gets it for a lease time.
    let other = export.open(12, &open(Some(holder(1, 2))), LEASE - 1);
    assert!(matches!(other, Admission::Refused(_)));
    admit(&mut export, 13, holder(1, 1), LEASE - 1);
}
