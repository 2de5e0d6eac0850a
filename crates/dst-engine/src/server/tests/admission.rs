//! PROTOCOL.md 6.1 and 6.2: who is admitted, and what has to happen first.

use super::super::super::proto::{
    ClientName, Digests, Expect, ExportName, Holder, Mode, OpenRequest,
};
use super::*;

pub const LEASE: u64 = 30_000_000_000;
pub const SECOND: u64 = 1_000_000_000;
const ID: [u8; 16] = [3; 16];

pub fn holder(identity: u8, instance: u8) -> Holder {
    Holder {
        identity: [identity; 16],
        boot: [1; 16],
        instance: [instance; 16],
    }
}

pub fn open(holder: Option<Holder>) -> OpenRequest<'static> {
    OpenRequest {
        name: ExportName::new("disk").unwrap(),
        nonce: [0; 16],
        mode: if holder.is_some() {
            Mode::SoleWriter
        } else {
            Mode::ReadOnly
        },
        limits: config().limits,
        digests: Digests {
            mask: 1,
            granule: 4096,
        },
        holder,
        client: ClientName::default(),
        expect: None,
        retained: None,
    }
}

pub fn export_with(record: Record, fresh: bool) -> Export<Vec<Entry>> {
    let config = ExportConfig {
        id: ID,
        incarnation: [1; 16],
        fresh,
        record,
        read_only: false,
        lease_time: LEASE,
    };
    Export::new(&config, vec![Entry::default(); 4], 0)
}

pub fn export() -> Export<Vec<Entry>> {
    export_with(Record::NONE, true)
}

/// Admits a writer that nothing stands in the way of.
pub fn admit(export: &mut Export<Vec<Entry>>, session: u64, holder: Holder, now: u64) {
    assert_eq!(
        export.open(session, &open(Some(holder)), now),
        Admission::Pending
    );
    loop {
        match export.poll_action(now).expect("an action") {
            Action::Settle { session, .. } => export.settled(session),
            Action::Flush => export.flushed(),
            Action::Persist(_) => export.persisted(true, now),
            Action::Ungate => {}
            Action::Grant { session: granted } => {
                assert_eq!(granted, session);
                return;
            }
            other => panic!("{other:?}"),
        }
    }
}

fn refused(action: Option<Action>) -> Status {
    match action {
        Some(Action::Refuse { refused, .. }) => refused.status,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_first_writer_is_granted_after_flush_and_durable_record() {
    let mut export = export();
    let me = holder(1, 1);
    assert_eq!(export.open(10, &open(Some(me)), 5), Admission::Pending);
    assert_eq!(export.poll_action(5), Some(Action::Flush));
    assert_eq!(export.poll_action(5), None);
    export.flushed();
    let record = Record {
        holder: me,
        epoch: 1,
        held: true,
    };
    assert_eq!(export.poll_action(5), Some(Action::Persist(record)));
    assert_eq!(export.poll_action(5), None);
    assert_eq!(export.state().epoch, 0);
    export.persisted(true, 6);
    assert_eq!(export.poll_action(6), Some(Action::Grant { session: 10 }));
    assert_eq!(export.poll_action(6), None);
    assert_eq!((export.writer(), export.state().epoch), (Some(10), 1));
}

#[test]
fn the_same_holder_comes_back_at_once_with_its_old_session_fenced_first() {
    let mut export = export();
    let me = holder(1, 1);
    admit(&mut export, 10, me, 0);
    assert_eq!(export.open(11, &open(Some(me)), 5), Admission::Pending);
    let settle = Action::Settle {
        session: 10,
        reason: Status::SESSION_LOST,
    };
    assert_eq!(export.poll_action(5), Some(settle));
    // Not before the backend has given back everything of the old one.
    assert_eq!(export.poll_action(5), None);
    export.settled(10);
    assert_eq!(export.poll_action(5), Some(Action::Flush));
    export.flushed();
    // The record is unchanged.
    assert_eq!(export.poll_action(5), Some(Action::Grant { session: 11 }));
    assert_eq!(export.state().epoch, 1);
    assert_eq!(export.sessions(), 1);
}

#[test]
fn another_client_is_told_to_wait_until_the_lease_has_expired() {
    let mut export = export();
    admit(&mut export, 10, holder(1, 1), 0);
    export.heard(10, SECOND);
    let busy = Refused {
        status: Status::LEASE_BUSY,
        wait: Some(29_000),
    };
    let other = open(Some(holder(2, 1)));
    assert_eq!(
        export.open(11, &other, 2 * SECOND),
        Admission::Refused(busy)
    );
    let late = SECOND + LEASE;
    assert_eq!(export.open(11, &other, late), Admission::Pending);
    let settle = Action::Settle {
        session: 10,
        reason: Status::LEASE_LOST,
    };
    assert_eq!(export.poll_action(late), Some(settle));
}

#[test]
fn an_expired_lease_is_lost_only_when_it_is_taken() {
    let mut export = export();
    admit(&mut export, 10, holder(1, 1), 0);
    export.settled(10);
    admit(&mut export, 11, holder(1, 1), 10 * LEASE);
    assert_eq!(export.state().epoch, 1);
    export.settled(11);
    admit(&mut export, 12, holder(2, 1), 20 * LEASE);
    assert_eq!(export.state().epoch, 2);
    let old = OpenRequest {
        expect: Some(Expect {
            export: ID,
            epoch: 1,
        }),
        ..open(Some(holder(1, 1)))
    };
    let lost = Admission::Refused(Refused::for_good(Status::LEASE_LOST));
    assert_eq!(export.open(13, &old, 20 * LEASE), lost);
}

#[test]
fn the_same_identity_takes_over_when_the_old_session_does_not_answer() {
    let mut export = export();
    admit(&mut export, 10, holder(1, 1), 0);
    let again = open(Some(holder(1, 2)));
    assert_eq!(export.open(11, &again, 0), Admission::Pending);
    assert_eq!(export.poll_action(0), Some(Action::Probe { session: 10 }));
    assert_eq!(export.poll_action(0), None);
    assert_eq!(export.next_timeout(), Some(3 * SECOND));
    export.handle_timeout(3 * SECOND - 1);
    assert_eq!(export.poll_action(3 * SECOND - 1), None);
    export.handle_timeout(3 * SECOND);
    assert_eq!(export.next_timeout(), None);
    let settle = Action::Settle {
        session: 10,
        reason: Status::LEASE_LOST,
    };
    assert_eq!(export.poll_action(3 * SECOND), Some(settle));
}

#[test]
fn the_same_identity_is_refused_when_the_old_session_answers() {
    let mut export = export();
    admit(&mut export, 10, holder(1, 1), 0);
    export.open(11, &open(Some(holder(1, 2))), SECOND);
    export.poll_action(SECOND);
    export.probe_answered(99, 2 * SECOND);
    assert_eq!(export.poll_action(SECOND), None);
    export.probe_answered(10, 2 * SECOND);
    assert_eq!(refused(export.poll_action(2 * SECOND)), Status::LEASE_BUSY);
    assert_eq!((export.writer(), export.sessions()), (Some(10), 1));
}

#[test]
fn after_a_start_only_the_holder_comes_back_for_one_lease_time() {
    let record = Record::NONE.granted_to(&holder(1, 1));
    let mut export = export_with(record, true);
    for other in [holder(1, 2), holder(2, 1)] {
        let admission = export.open(10, &open(Some(other)), LEASE - 1);
        assert!(matches!(admission, Admission::Refused(_)));
    }
    admit(&mut export, 10, holder(1, 1), LEASE - 1);
    assert_eq!(export.state().epoch, 1);
    let mut export = export_with(record, true);
    admit(&mut export, 10, holder(2, 1), LEASE);
    assert_eq!(export.state().epoch, 2);
}

#[test]
fn one_writer_is_admitted_at_a_time() {
    let mut export = export();
    assert_eq!(
        export.open(10, &open(Some(holder(1, 1))), 0),
        Admission::Pending
    );
    let admission = export.open(11, &open(Some(holder(2, 1))), 0);
    let Admission::Refused(refused) = admission else {
        panic!("{admission:?}");
    };
    assert_eq!(refused.status, Status::LEASE_BUSY);
    assert!(refused.wait.is_some());
}

#[test]
fn expect_is_checked_before_anything_else() {
    let mut export = export();
    admit(&mut export, 10, holder(1, 1), 0);
    let expecting = |holder, export, epoch| OpenRequest {
        expect: Some(Expect { export, epoch }),
        ..open(holder)
    };
    let me = Some(holder(1, 1));
    let for_good = |status| Admission::Refused(Refused::for_good(status));
    let changed = for_good(Status::EXPORT_CHANGED);
    let lost = for_good(Status::LEASE_LOST);
    assert_eq!(export.open(11, &expecting(me, [4; 16], 1), 0), changed);
    assert_eq!(export.open(11, &expecting(None, [4; 16], 1), 0), changed);
    assert_eq!(export.open(11, &expecting(me, ID, 2), 0), lost);
    let other = Some(holder(2, 1));
    assert_eq!(export.open(11, &expecting(other, ID, 1), 0), lost);
    // A reader has no lease to lose.
    assert_eq!(
        export.open(12, &expecting(None, ID, 9), 0),
        Admission::Granted
    );
    assert_eq!(
        export.open(11, &expecting(me, ID, 1), 0),
        Admission::Pending
    );
}

#[test]
fn readers_are_bounded_and_leave_room_for_two_writers() {
    let mut export = export();
    assert_eq!(export.open(1, &open(None), 0), Admission::Granted);
    assert_eq!(export.open(2, &open(None), 0), Admission::Granted);
    let admission = export.open(3, &open(None), 0);
    assert!(matches!(
        admission,
        Admission::Refused(Refused {
            status: Status::LIMIT,
            ..
        })
    ));
    admit(&mut export, 4, holder(1, 1), 0);
    admit(&mut export, 5, holder(1, 1), 0);
    export.settled(1);
    assert_eq!(export.open(6, &open(None), 0), Admission::Granted);
}

#[test]
fn writers_are_refused_where_nobody_may_write_or_sharing_is_asked_for() {
    let config = ExportConfig {
        id: ID,
        incarnation: [1; 16],
        fresh: true,
        record: Record::NONE,
        read_only: true,
        lease_time: LEASE,
    };
    let mut export = Export::new(&config, vec![Entry::default(); 4], 0);
    let status = |admission| match admission {
        Admission::Refused(refused) => refused.status,
        other => panic!("{other:?}"),
    };
    let me = Some(holder(1, 1));
    assert_eq!(status(export.open(1, &open(me), 0)), Status::READ_ONLY);
    let shared = OpenRequest {
        mode: Mode::SharedWriters,
        ..open(me)
    };
    assert_eq!(status(export.open(1, &shared, 0)), Status::UNSUPPORTED);
}

#[test]
fn a_record_that_could_not_be_written_refuses_and_leaves_the_holder() {
    let mut export = export();
    admit(&mut export, 10, holder(1, 1), 0);
    export.settled(10);
    export.open(11, &open(Some(holder(2, 1))), LEASE);
    assert_eq!(export.poll_action(LEASE), Some(Action::Flush));
    export.flushed();
    assert!(matches!(
        export.poll_action(LEASE),
        Some(Action::Persist(_))
    ));
    export.persisted(false, LEASE);
    assert_eq!(refused(export.poll_action(LEASE)), Status::IO);
    assert_eq!(export.record().holder, holder(1, 1));
    admit(&mut export, 12, holder(1, 1), LEASE);
}

#[test]
fn an_opener_that_is_gone_is_not_granted_a_session() {
    let mut export = export();
    export.open(10, &open(Some(holder(1, 1))), 0);
    assert_eq!(export.poll_action(0), Some(Action::Flush));
    export.cancel(10);
    export.flushed();
    assert!(matches!(export.poll_action(0), Some(Action::Persist(_))));
    export.persisted(true, 0);
    assert_eq!(export.poll_action(0), None);
    assert_eq!((export.sessions(), export.writer()), (0, None));
    // It comes back as the holder.
    admit(&mut export, 11, holder(1, 1), 0);
}

#[test]
fn an_opener_that_is_gone_while_the_holder_is_asked_leaves_it_alone() {
    let mut export = export();
    admit(&mut export, 10, holder(1, 1), 0);
    export.open(11, &open(Some(holder(1, 2))), 0);
    export.poll_action(0);
    export.cancel(11);
    assert_eq!(export.poll_action(0), None);
    assert_eq!(export.next_timeout(), None);
    assert_eq!(export.writer(), Some(10));
}

#[test]
fn release_is_durable_before_close_is_answered() {
    let mut export = export();
    admit(&mut export, 10, holder(1, 1), 0);
    assert!(!export.release(10));
    let Some(Action::Persist(record)) = export.poll_action(0) else {
        panic!("the record");
    };
    assert!(!record.held);
    assert_eq!(export.poll_action(0), None);
    export.persisted(true, 0);
    let released = Action::Released {
        session: 10,
        status: Status::OK,
    };
    assert_eq!(export.poll_action(0), Some(released));
    export.settled(10);
    admit(&mut export, 11, holder(2, 1), 0);
    assert_eq!(export.state().epoch, 2);
}

#[test]
fn a_reader_has_nothing_to_release() {
    let mut export = export();
    export.open(10, &open(None), 0);
    assert!(export.release(10));
    assert_eq!(export.poll_action(0), None);
}

#[test]
fn a_holder_that_closes_while_it_is_asked_makes_way_at_once_and_is_answered() {
    let mut export = export();
    admit(&mut export, 10, holder(1, 1), 0);
    export.open(11, &open(Some(holder(1, 2))), 0);
    assert_eq!(export.poll_action(0), Some(Action::Probe { session: 10 }));
    assert!(!export.release(10));
    // It is closing by itself and must not be settled from outside.
    assert_eq!(export.poll_action(0), Some(Action::Flush));
    export.flushed();
    assert!(matches!(export.poll_action(0), Some(Action::Persist(_))));
    export.persisted(true, 0);
    assert_eq!(export.poll_action(0), Some(Action::Grant { session: 11 }));
    let released = Action::Released {
        session: 10,
        status: Status::OK,
    };
    assert_eq!(export.poll_action(0), Some(released));
    assert!(export.record().held);
    export.settled(10);
    assert_eq!(export.writer(), Some(11));
}

#[test]
fn in_a_new_incarnation_others_wait_until_the_holder_has_replayed() {
    let record = Record::NONE.granted_to(&holder(1, 1));
    let mut export = export_with(record, true);
    export.open(20, &open(None), 0);
    assert!(export.is_gated(20));
    admit(&mut export, 10, holder(1, 1), 0);
    assert!(!export.is_gated(10));
    assert!(export.is_gated(20));
    export.replayed(20);
    assert_eq!(export.poll_action(0), None);
    export.replayed(10);
    assert_eq!(export.poll_action(0), Some(Action::Ungate));
    assert!(!export.is_gated(20));
    export.replayed(10);
    assert_eq!(export.poll_action(0), None);
}

#[test]
fn the_gate_opens_when_the_lease_changes_hands() {
    let record = Record::NONE.granted_to(&holder(1, 1));
    let mut export = export_with(record, true);
    export.open(20, &open(None), 0);
    export.open(10, &open(Some(holder(2, 1))), LEASE);
    assert_eq!(export.poll_action(LEASE), Some(Action::Flush));
    export.flushed();
    assert!(matches!(
        export.poll_action(LEASE),
        Some(Action::Persist(_))
    ));
    assert!(export.is_gated(20));
    export.persisted(true, LEASE);
    assert_eq!(export.poll_action(LEASE), Some(Action::Ungate));
    assert_eq!(
        export.poll_action(LEASE),
        Some(Action::Grant { session: 10 })
    );
}

#[test]
fn there_is_no_gate_where_nothing_can_have_been_lost() {
    let record = Record::NONE.granted_to(&holder(1, 1));
    assert!(!export_with(record, false).is_gated(20));
    assert!(!export_with(record.released(), true).is_gated(20));
    assert!(!export_with(Record::NONE, true).is_gated(20));
}
