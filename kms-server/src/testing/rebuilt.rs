//! Sites that were put back, or lost and made anew: which epoch they take, and who is a witness of what they forgot.

#![allow(clippy::unwrap_used, reason = "tests may")]

use std::sync::Arc;

use kms_core::{
    BlockNo, Epoch,
    audit::{AuditOutcome, Subject},
    counters::refusal::Refusal,
    site::restored::RolledBackBy,
};

use super::{
    home::at_two_homes,
    pair::{Network, Running, beside, enrol_in, entry, eventually, in_step, promote, sites},
    restored::{above, bear_a_mark, bear_a_mark_by, met, move_all, remembering_of},
    site_common::{Site, call, meter},
    transmitting::{counter, declare, refusal_or, talking},
    two_sites::fence,
};
use crate::{
    keyring::{NotChanged, Wish},
    replication::{MarksAsked, NotServed},
    store::sites::Divergent,
};

async fn promoted(site: &Site, expected: u64, above: Option<u64>) -> Result<Epoch, NotChanged> {
    let wish = Wish { expected: Epoch(expected), is_lost: false, above: above.map(Epoch) };
    let entry = call("Site/Promote").entry(0, Subject::NONE, AuditOutcome::Done);
    Ok(site.keyring.roles.promote(wish, entry, 9).await?.standing.epoch)
}

/// The second site was promoted to 3; the first one is marked and follows; then the second one writes once more, and ends
/// its epoch, by its clock long after the first one was put back.
async fn put_back_under_a_demotion(a: &Arc<Site>, b: &Arc<Site>) {
    a.add(meter(1)).await;
    move_all(a, b, &[]).await;
    let record = promote(b).await;
    fence(a, record.clone()).await;
    move_all(b, a, &[record]).await;
    bear_a_mark(a).await;
    b.add(meter(2)).await;
    let ended = b.keyring.roles.demote(Epoch(3), entry("Site/Demote"), 1_000).await;
    assert_eq!(ended.unwrap().epoch, Epoch(3));
    let ended = b.store.role_records().await.unwrap().pop().unwrap();
    fence(a, ended).await;
}

#[test]
fn invariant_3_a_site_that_was_put_back_is_told_an_epoch_although_the_other_one_ended_its_own_since()
 {
    at_two_homes(async |north, south| {
        let (a, b) = sites(north, south).await;
        put_back_under_a_demotion(&a, &b).await;
        move_all(&b, &a, &[]).await;
        // It may have been in 4, while it was cut off: the other one never heard of that, whenever it was demoted.
        let refused = promoted(&a, 3, None).await.unwrap_err();
        assert!(matches!(refused, NotChanged::RolledBack { epoch: Epoch(2 | 3), .. }), "{refused}");
        assert_eq!(promoted(&a, 3, Some(4)).await.unwrap(), Epoch(6));
    });
}

#[test]
fn invariant_4_a_site_that_was_put_back_is_not_promoted_behind_what_the_other_one_left() {
    at_two_homes(async |north, south| {
        let (a, b) = sites(north, south).await;
        put_back_under_a_demotion(&a, &b).await;
        let refused = promoted(&a, 3, Some(3)).await.unwrap_err();
        assert!(matches!(refused, NotChanged::NotInStep { differing: 1 }), "{refused}");
        move_all(&b, &a, &[]).await;
        assert_eq!(promoted(&a, 3, Some(3)).await.unwrap(), Epoch(4));
    });
}

#[test]
fn invariant_3_a_site_that_joined_with_a_bundle_from_before_a_restore_is_no_witness_of_it() {
    at_two_homes(async |north, south| {
        let (a, b) = sites(north, south).await;
        a.add(talking(1)).await;
        let alone = a.transmitting(true, None);
        declare(&alone, 1, Some(0x0300_0005)).await.unwrap();
        let before = counter(&alone, 1).await;
        // Put back to where the line was not raised yet: the enrolment is in the backup, and the bundle is as old.
        assert_eq!(above(&a).await, Epoch(4));
        enrol_in(&b, &a, met(2, 2).not_met()).await;
        let network = Network::new();
        let north = Running::start(a, &network).await;
        let south = Running::start(b, &network).await;
        in_step(&north.site, &south.site).await;
        eventually("the other one has said that it remembers nothing of it", async || {
            refusal_or(&north.transmitting, 1).await == Some(Refusal::CounterUndeclared)
        })
        .await;
        let known = south.site.keyring.roles.peers().await.unwrap().remove(0);
        assert_eq!(known.enrolled_in, Some(met(4, 4)));
        declare(&north.transmitting, 1, Some(before)).await.unwrap();
        eventually("what was declared since is sent on", async || {
            refusal_or(&north.transmitting, 1).await.is_none()
        })
        .await;
        let after = counter(&north.transmitting, 1).await;
        assert!(after >> 24 > before >> 24, "{after:08X} after {before:08X}");
        // Since they met it is one, however high the epochs become.
        assert_eq!(
            south.site.keyring.roles.remembers_since("north", BlockNo(0)).await.unwrap(),
            Some(Epoch(4))
        );
        for running in [north, south] {
            running.cut().await;
        }
    });
}

#[test]
fn a_site_that_has_not_met_the_other_one_says_nothing_of_its_counters_and_a_rebuilt_one_that_has_does()
 {
    at_two_homes(async |north, south| {
        let (a, b) = sites(north, south).await;
        let network = Network::new();
        let (grounds, _) = beside(&b, &network, network.north);
        let remembering = remembering_of(&b, &grounds);
        let asked = || MarksAsked { marks: Vec::new(), lines_of: Some(BlockNo(0)) };
        enrol_in(&b, &a, met(2, 2).not_met()).await;
        let refused = remembering.exchange("north", asked()).await;
        assert!(matches!(refused, Err(NotServed::Past(_))), "{refused:?}");
        b.keyring.roles.meet("north", Epoch(2)).await.unwrap();
        bear_a_mark_by(&b, RolledBackBy::Rebuilt).await;
        let said = remembering.exchange("north", asked()).await.unwrap();
        assert_eq!(said.since, Some(Epoch(2)));
    });
}

#[test]
fn invariant_3_lines_that_were_set_aside_are_told_all_or_not_at_all() {
    at_two_homes(async |north, south| {
        let (a, b) = sites(north, south).await;
        a.add(talking(1)).await;
        let alone = a.transmitting(true, None);
        let declared = declare(&alone, 1, Some(0x0300_0005)).await.unwrap();
        let block = declared.states[0].block;
        let stored = a.store.block(block).await.unwrap().unwrap();
        let line = stored.records.into_iter().find(|record| !record.key.is_meter()).unwrap();
        let row = |n: u64| {
            let mut record = line.clone();
            record.position.sequence.0 += n;
            Divergent { block, record, site: "south".to_owned(), at_ms: 1, decided: None }
        };
        b.commits.put_divergence(vec![row(1), row(2)], vec![entry("x/y")]).await.unwrap();
        let network = Network::new();
        let (grounds, _) = beside(&b, &network, network.north);
        let asked = || MarksAsked { marks: Vec::new(), lines_of: Some(block) };
        let tells = |most| remembering_of(&b, &grounds).with_set_aside_max(most);
        let told = tells(2).exchange("north", asked()).await.unwrap();
        assert_eq!(told.set_aside.len(), 2);
        let refused = tells(1).exchange("north", asked()).await;
        assert!(matches!(refused, Err(NotServed::TooMuchAside { most: 1, .. })), "{refused:?}");
    });
}
