//! What the other token of a site signed counts for the site, and what a stranger signed does not.

#![allow(clippy::unwrap_used, reason = "tests may")]

use std::sync::Arc;

use kms_core::{
    BlockNo, Epoch,
    audit::{Checkpoint, SiteKeys, Subject},
    freshness::{HeadTable, SignedHeadTable},
    site::{
        peer::{FormerSigner, SignedPeer},
        readiness::ReadinessReport,
        tokens::{SignedSiteTokens, SiteTokens, TokenId},
    },
    two_people::{NotSigned, WaitingCall},
};

use super::{
    home::{at_home, at_two_homes},
    lying::{Lies, beside_a_liar},
    pair::{Network, Running, entry, eventually, opened, sites},
    restored::whole,
    site_common::{Site, meter},
};
use crate::{
    hsm::{Signs as _, memory::MemoryToken},
    replication::AuditSaid,
    store::{
        AuditStore as _,
        papers::{Paper, PaperKind, PaperStore as _},
        sites::PeerStep,
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

/// As north would sign it: `site` has opened all, on this token.
async fn complete(by: &Site, site: &Site, token: TokenId) -> Paper {
    let blocks = site.domain.blocks.get();
    let at_ms = site.clock.unix_ms() + 60_000;
    let own = reported(by, site, &MemoryToken::new().unwrap());
    let report = ReadinessReport::decode(&own.body).unwrap();
    let done = ReadinessReport { proved: blocks, keks: true, oldest_ms: at_ms, ..report };
    let report = ReadinessReport { token: Some(token), at_ms, ..done };
    let body = report.message();
    let signature = by.hsm.sign(body.clone()).await.unwrap();
    Paper { place: (report.epoch, at_ms), body, signature, ..own }
}

#[test]
fn invariant_11_a_server_proves_its_own_token_although_the_peer_reports_about_the_other_one() {
    at_two_homes(async |north, south| {
        let (a, b) = sites(north, south).await;
        let network = Network::new();
        let own = TokenId::of(&b.hsm.public_key().await.unwrap());
        let other = TokenId([7; 8]);
        let paper = complete(&a, &b, other).await;
        assert!(b.measured.put_paper(&paper).await.unwrap());
        let (grounds, beside) = beside_a_liar(&b, &network, Lies::default());
        let proving = Arc::clone(&beside.proving);
        let proving = tokio::spawn(async move { proving.run().await });
        let newest = || grounds.status.all().reports.newest.map(|newest| newest.report);
        eventually("it has the report", async || newest().is_some()).await;
        let refused = beside.planning.ready().await;
        if newest().is_some_and(|report| report.by == "north") {
            let refused = refused.unwrap_err().to_string();
            assert!(refused.contains(&format!("nothing of token {own}")), "{refused}");
        }
        eventually("it opens all for itself", async || {
            newest().is_some_and(|it| it.by == "south" && it.token == Some(own) && it.is_complete())
        })
        .await;
        beside.planning.ready().await.unwrap();
        // The peer's word about the other token takes nothing of that back.
        beside.reporting.load().await.unwrap();
        assert_eq!(newest().unwrap().token, Some(own));
        beside.planning.ready().await.unwrap();
        proving.abort();
    });
}

#[test]
fn invariant_11_a_report_names_the_token_that_proved_and_one_that_is_not_known_proves_nothing() {
    at_two_homes(async |north, south| {
        let (a, b) = sites(north, south).await;
        let network = Network::new();
        let south_runs = Running::start(Arc::clone(&b), &network).await;
        let north_runs = Running::start(Arc::clone(&a), &network).await;
        let token = TokenId::of(&b.hsm.public_key().await.unwrap());
        for running in [&north_runs, &south_runs] {
            eventually("it is proved, by name", async || {
                let newest = running.status.all().reports.newest;
                newest.is_some_and(|it| it.report.is_complete() && it.report.token == Some(token))
            })
            .await;
        }
        // Here its site was enrolled with another token, and what this one signs counts for nothing.
        let SignedPeer { mut peer, signature } = a.store.peers().await.unwrap().remove(0);
        (peer.signing, peer.enrolled_ms) = (MemoryToken::new().unwrap().public_key().unwrap(), 2);
        let signed = a.hsm.sign(peer.message()).await.unwrap();
        let now = SignedPeer { peer, signature: signed };
        let step = PeerStep { expected: Some(signature), now };
        a.commits.put_peer(step, vec![entry("Site/EnrolPeer")]).await.unwrap();
        eventually("its proofs count no more", async || {
            let readiness = north_runs.status.all().readiness.unwrap_or_default();
            let why = readiness.failures.first().cloned().unwrap_or_default();
            why.contains(&format!("its token {token}, which is not known here"))
        })
        .await;
        let of = |running: &Running| running.status.all().faults;
        let named = format!("token {token} of site south is not known here");
        eventually("it is named", async || of(&north_runs).iter().any(|it| it.contains(&named)))
            .await;
        let named = format!("this server's token {token} is not known at site north");
        eventually("there, too", async || of(&south_runs).iter().any(|it| it.contains(&named)))
            .await;
        north_runs.cut().await;
        south_runs.cut().await;
    });
}

#[test]
fn an_old_copy_of_a_site_that_was_built_anew_is_called_so_at_both_sites() {
    at_two_homes(async |north, south| {
        let (a, b) = sites(north, south).await;
        let network = Network::new();
        let south_runs = Running::start(Arc::clone(&b), &network).await;
        let north_runs = Running::start(Arc::clone(&a), &network).await;
        let key = b.hsm.public_key().await.unwrap();
        let token = TokenId::of(&key);
        // South was lost and built anew, with another token. What answers is what was there before.
        let SignedPeer { mut peer, signature } = a.store.peers().await.unwrap().remove(0);
        (peer.signing, peer.enrolled_ms) = (MemoryToken::new().unwrap().public_key().unwrap(), 2);
        peer.former = vec![FormerSigner { key, until: Epoch(2) }];
        let signed = a.hsm.sign(peer.message()).await.unwrap();
        let now = SignedPeer { peer, signature: signed };
        let step = PeerStep { expected: Some(signature), now };
        a.commits.put_peer(step, vec![entry("Site/EnrolPeer")]).await.unwrap();
        let old = format!("an old copy of site south answers in its place: it has token {token}");
        eventually("its proofs count no more", async || {
            let readiness = north_runs.status.all().readiness.unwrap_or_default();
            readiness.failures.first().is_some_and(|why| why.contains(&old))
        })
        .await;
        let named = async |running: &Running, what: &str| {
            eventually(what, async || {
                running.status.all().faults.iter().any(|fault| fault.contains(what))
            })
            .await;
        };
        named(&north_runs, &old).await;
        named(&south_runs, "this is an old copy of it, to be stopped for good").await;
        north_runs.cut().await;
        south_runs.cut().await;
    });
}

#[test]
fn a_second_token_that_was_made_anew_is_named_and_not_taken_up_by_itself() {
    at_two_homes(async |north, south| {
        let (a, b) = sites(north, south).await;
        let network = Network::new();
        let [before, anew] = [(); 2].map(|()| Arc::new(MemoryToken::new().unwrap()));
        let running = Running::start(Arc::clone(&a), &network).await;
        has_too(&a, &before).await;
        let (grounds, beside) = beside_a_liar(&b, &network, Lies::default());
        let strange = || {
            let mut faults = grounds.status.all().faults;
            faults.retain(|fault| fault.contains("not known"));
            faults
        };
        beside.witnessing.look().await.unwrap();
        assert_eq!(strange(), Vec::<String>::new());
        let known = b.keyring.roles.peers().await.unwrap();
        assert_eq!(known[0].keys().iter().count(), 2);
        // The site was put back, and its second token made once more.
        has_too(&a, &anew).await;
        beside.witnessing.look().await.unwrap();
        let id = TokenId::of(&anew.public_key().unwrap());
        let faults = strange();
        let named = format!("token {id} of site north is not known here");
        assert!(faults.len() == 1 && faults[0].starts_with(&named), "{faults:?}");
        assert_eq!(b.keyring.roles.peers().await.unwrap(), known);
        // With the one that is known it is well again.
        has_too(&a, &before).await;
        beside.witnessing.look().await.unwrap();
        assert_eq!(strange(), Vec::<String>::new());
        running.cut().await;
    });
}

#[test]
fn a_site_that_is_configured_and_not_enrolled_is_named() {
    at_two_homes(async |north, south| {
        let (a, b) = sites(north, south).await;
        let network = Network::new();
        let running = Running::start(Arc::clone(&a), &network).await;
        // Its row is there, and our token did not sign it: it is nobody's.
        let SignedPeer { peer, signature } = b.store.peers().await.unwrap().remove(0);
        let now = SignedPeer { peer, signature: [1; 64] };
        let step = PeerStep { expected: Some(signature), now };
        b.commits.put_peer(step, vec![entry("Site/EnrolPeer")]).await.unwrap();
        let (grounds, beside) = beside_a_liar(&b, &network, Lies::default());
        let refused = beside.witnessing.look().await.unwrap_err();
        assert!(refused.contains("not enrolled"), "{refused}");
        let faults = grounds.status.all().faults;
        let named = "site north is not enrolled here";
        assert!(faults.iter().any(|fault| fault.starts_with(named)), "{faults:?}");
        running.cut().await;
    });
}
