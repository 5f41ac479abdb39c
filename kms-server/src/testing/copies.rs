//! Each site's copy of the other one's audit log.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests may")]

use std::sync::Arc;

use kms_core::audit::{AuditEvent, ChainTip, NodeId};

use super::{
    forks::put_back,
    home::at_two_homes,
    pair::{Network, Running, again, eventually, in_step, promote, sites},
    site_common::{Site, call, id, meter},
};
use crate::store::{AuditStore as _, peer_audit::PeerAuditStore as _};

async fn end(site: &Site, node: NodeId) -> ChainTip {
    let chains = site.measured.audit_chains().await.unwrap();
    *chains.iter().find(|tip| tip.node == node).unwrap()
}

/// Waits until `there` has a copy of the chain of `site` as it is now.
async fn copied(site: &Site, there: &Site) -> ChainTip {
    let mut tip = end(site, site.node).await;
    eventually("the chain is copied", async || {
        tip = end(site, site.node).await;
        let copies = there.measured.peer_chains(&site.domain.site).await.unwrap();
        copies.iter().any(|copy| copy.tip == tip)
    })
    .await;
    tip
}

#[test]
fn who_did_what_at_a_site_that_is_lost_is_read_and_verified_at_the_other_one() {
    at_two_homes(async |north, south| {
        let (a, b) = sites(north, south).await;
        let network = Network::new();
        let runs = (
            Running::start(Arc::clone(&a), &network).await,
            Running::start(Arc::clone(&b), &network).await,
        );
        for n in 1..4 {
            a.add(meter(n)).await;
        }
        let meter_id = kms_core::MeterId::new(&id(2)).unwrap();
        a.lifecycle.delete(&call("Meters/DeleteMeter"), &meter_id).await.unwrap();
        in_step(&a, &b).await;
        // The end is signed behind its event, when the copy has the event already.
        copied(&a, &b).await;
        a.audit.verify(a.node).await.unwrap().unwrap();
        let copies = &runs.1.auditing;
        eventually("its signed head is there too", async || {
            copies.verify(a.node).await.unwrap().is_some_and(|found| found.heads > 0)
        })
        .await;
        copied(&b, &a).await;
        runs.0.cut().await;
        let tip = end(&a, a.node).await;
        let found = copies.verify(a.node).await.unwrap().unwrap();
        assert_eq!((found.broken, found.tip), (None, tip));
        let page = copies.page(a.node, 0, 1_000).await.unwrap().unwrap();
        let events = page.events.iter().map(|event| AuditEvent::decode(&event.body).unwrap());
        let about = |event: &AuditEvent| {
            let verb = event.entry.call.verb.as_str() == "Meters/DeleteMeter";
            verb && event.entry.subject.meter_id.as_ref() == Some(&meter_id)
        };
        assert_eq!(events.filter(about).count(), 1);
        // It stands when that site is replaced, and is none of ours.
        promote(&b).await;
        assert_eq!(copies.ends().await.unwrap(), (vec![tip], Some(a.node)));
        assert!(b.audit.chains().await.unwrap().iter().all(|own| own.node != a.node));
        assert_eq!(runs.1.status.all().faults.iter().find(|it| it.contains("audit")), None);
        runs.1.cut().await;
    });
}

#[test]
fn a_chain_that_is_cut_at_its_site_is_a_fault_at_the_other_one_which_keeps_what_it_has() {
    at_two_homes(async |north, south| {
        let (a, b) = sites(north, south).await;
        let network = Network::new();
        a.add(meter(1)).await;
        let (node, database) = (a.node, a.database.clone());
        // The database as it is now, with what its chain says so far.
        a.store.close().await;
        let before = std::fs::read(&database).unwrap();
        drop(a);
        let first = Running::start(again(north, "north", None).await, &network).await;
        let other = Running::start(Arc::clone(&b), &network).await;
        let site = Arc::clone(&first.site);
        for n in 2..5 {
            site.add(meter(n)).await;
        }
        let tip = copied(&site, &b).await;
        let later = site.node;
        assert_ne!(node, later);
        first.cut().await;
        put_back(site, &before).await;
        let first = Running::start(again(north, "north", None).await, &network).await;
        eventually("the cut is told", async || {
            let faults = other.status.all().faults;
            faults
                .iter()
                .any(|it| it.contains(&later.to_string()) && it.contains("cut off the end"))
        })
        .await;
        let kept = b.measured.peer_chains("north").await.unwrap();
        let kept = kept.iter().find(|copy| copy.tip.node == later).unwrap();
        assert_eq!((kept.tip, kept.broken_in.is_some()), (tip, true));
        let found = other.auditing.verify(later).await.unwrap().unwrap();
        assert_eq!((found.broken, found.tip), (None, tip));
        first.cut().await;
        other.cut().await;
    });
}
