//! What the other token of a site signed counts for the site, and what a stranger signed does not.

#![allow(clippy::unwrap_used, reason = "tests may")]

use std::sync::Arc;

use kms_core::{
    BlockNo,
    audit::{Checkpoint, SiteKeys, Subject},
    freshness::{HeadTable, SignedHeadTable},
    site::{
        readiness::ReadinessReport,
        tokens::{SignedSiteTokens, SiteTokens},
    },
    two_people::{NotSigned, WaitingCall},
};

use super::{
    home::{at_home, at_two_homes},
    lying::{Lies, beside_a_liar},
    pair::{Network, Running, eventually, opened, sites},
    restored::whole,
    site_common::{Site, meter},
};
use crate::{
    hsm::{Signs as _, memory::MemoryToken},
    replication::AuditSaid,
    store::{
        AuditStore as _,
        papers::{Paper, PaperKind, PaperStore as _},
    },
};

/// This site has `other` from now on, beside the token in use.
async fn has_too(site: &Site, other: &MemoryToken) {
    let (own, further) = (site.hsm.public_key().await.unwrap(), other.public_key().unwrap());
    let tokens = SiteTokens {
        domain: site.domain.domain,
        site: site.domain.site.clone(),
        number: SiteTokens::OF_TWO,
        signing: vec![own, further],
        canaries: Vec::new(),
    };
    let signature = site.hsm.sign(tokens.message()).await.unwrap();
    let lists = vec![SignedSiteTokens { tokens, signature }];
    site.hsm.believe(&SiteKeys::new(own, [further]), lists);
}

#[test]
fn a_call_waits_that_either_token_of_the_site_signed_and_none_of_a_stranger() {
    at_home(async |home| {
        let site = Site::new(home).await;
        let (other, stranger) = (MemoryToken::new().unwrap(), MemoryToken::new().unwrap());
        let call = WaitingCall {
            number: 493_028_117,
            verb: "Meters/DeleteMeter".to_owned(),
            requester: "ann".to_owned(),
            digest: [7; 32],
            line: String::new(),
            subject: Subject::NONE,
            asked_ms: 1,
            approver: None,
            ends: Vec::new(),
        };
        let own = site.audit.sign_approval(&call).await.unwrap();
        let message = WaitingCall::message(&site.domain.domain, &own.body);
        let (mut theirs, mut strange) = (own.clone(), own.clone());
        theirs.signature = other.sign(&message).unwrap();
        strange.signature = stranger.sign(&message).unwrap();
        assert_eq!(site.audit.open_approval(&theirs), Err(NotSigned));
        has_too(&site, &other).await;
        assert_eq!(site.audit.open_approval(&own), Ok(call.clone()));
        assert_eq!(site.audit.open_approval(&theirs), Ok(call));
        assert_eq!(site.audit.open_approval(&strange), Err(NotSigned));
    });
}

#[test]
fn a_site_that_was_put_back_is_known_by_a_table_that_its_other_token_signed() {
    at_home(async |home| {
        let site = Site::new(home).await;
        let other = MemoryToken::new().unwrap();
        site.add(meter(1)).await;
        site.audit.sign_table(true).await;
        let (keys, _) = opened(&site, BlockNo(0)).await;
        let mut lost = site.store.heads().await.unwrap().remove(0);
        lost.position.sequence.0 += 100;
        lost.mac = keys.head_mac(&lost);
        let roles = &site.keyring.roles;
        roles.keep_marks_in(Arc::new(whole(&site).await));
        assert!(roles.hold_against(&lost).await.unwrap().is_some());
        let own = site.measured.head_table().await.unwrap().unwrap();
        let mut table = HeadTable::decode(&own.body).unwrap();
        table.heads[0].0 = lost.position;
        let body = table.encode();
        let message = HeadTable::message(&site.domain.domain, &body);
        let signature = other.sign(&message).unwrap();
        let signed = SignedHeadTable { number: table.number, body, signature };
        roles.store_rolled_back(&signed).await.unwrap();
        assert_eq!(site.store.restore_state().await.unwrap().mark(), None);
        has_too(&site, &other).await;
        roles.store_rolled_back(&signed).await.unwrap();
        assert!(site.store.restore_state().await.unwrap().mark().is_some());
    });
}

#[test]
fn the_other_site_takes_heads_and_reports_of_either_token_once_it_was_shown_both() {
    at_two_homes(async |north, south| {
        let (a, b) = sites(north, south).await;
        let (network, other) = (Network::new(), Arc::new(MemoryToken::new().unwrap()));
        a.add(meter(1)).await;
        a.audit.verify(a.node).await.unwrap().unwrap();
        let running = Running::start(Arc::clone(&a), &network).await;
        // As if the site's server had its other token.
        let token = Arc::clone(&other);
        let audit = Box::new(move |_, mut said: AuditSaid| {
            for head in &mut said.piece.heads {
                let message = Checkpoint::message(&head.tip, head.at_ms);
                head.signature = token.sign(&message).unwrap();
            }
            Ok(said)
        });
        let (grounds, beside) = beside_a_liar(&b, &network, Lies { audit, ..Lies::default() });
        let by = || grounds.status.all().reports.newest.map(|newest| newest.report.by);
        let proving = Arc::clone(&beside.proving);
        let proving = tokio::spawn(async move { proving.run().await });
        eventually("it reports of itself", async || by().as_deref() == Some("south")).await;
        proving.abort();
        assert!(b.measured.put_paper(&reported(&a, &b, &other)).await.unwrap());
        let is_broken = || {
            let faults = grounds.status.all().faults;
            faults.iter().any(|fault| fault.contains("audit chain"))
        };
        beside.auditing.look().await.unwrap();
        beside.reporting.load().await.unwrap();
        assert!(is_broken() && by().as_deref() == Some("south"));
        has_too(&a, &other).await;
        let taken = b.keyring.roles.take_tokens("north", &a.hsm.token_lists()).await;
        assert!(taken.unwrap());
        beside.auditing.look().await.unwrap();
        beside.reporting.load().await.unwrap();
        assert_eq!((is_broken(), by().as_deref()), (false, Some("north")));
        let both = a.hsm.site_keys().await.unwrap();
        assert_eq!(beside.auditing.keys(a.node).await, Ok(both));
        let found = beside.auditing.verify(a.node).await.unwrap().unwrap();
        assert!(found.broken.is_none() && found.heads > 0, "{found:?}");
        running.cut().await;
    });
}

/// A report of `by` about `site`, signed by this token, as it is kept.
fn reported(by: &Site, site: &Site, token: &MemoryToken) -> Paper {
    let report = ReadinessReport {
        domain: site.domain.domain,
        site: site.domain.site.clone(),
        by: by.domain.site.clone(),
        epoch: site.domain.epoch,
        at_ms: site.clock.unix_ms() + 60_000,
        blocks: site.domain.blocks.get(),
        proved: 0,
        failed: 0,
        oldest_ms: 0,
        keks: false,
        heads: [0; 32],
        differences: Vec::new(),
        failures: Vec::new(),
        token: None,
    };
    let body = report.message();
    let signature = token.sign(&body).unwrap();
    let (site, place) = (report.site, (report.epoch, report.at_ms));
    Paper { kind: PaperKind::Readiness, site, place, body, signature, signer: [0; 32] }
}
