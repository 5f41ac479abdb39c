//! Promotion and demotion of one site: what is written, what stays resident, and what is refused.

#![allow(clippy::unwrap_used, reason = "tests may")]

use kms_core::{
    Epoch, Verdict,
    audit::{AuditEntry, AuditOutcome, Subject},
    site::role::{Role, RoleChange},
};

use super::{
    home::at_home,
    site_common::{Options, Site, call, meter, push},
};
use crate::{
    keyring::{NotChanged, Wish},
    lifecycle::{ImportRules, LifecycleError},
    store::sites::{RoleRow, RoleStep},
};

const PLAIN: &[u8] = b"\x0f\x00";

fn entry(verb: &str) -> AuditEntry {
    call(verb).entry(1, Subject::NONE, AuditOutcome::Done)
}

fn wish(expected: u64) -> Wish {
    Wish { expected: Epoch(expected), is_lost: false, above: None }
}

impl Site {
    async fn demote(&self, expected: u64) -> Result<Epoch, NotChanged> {
        let demoted = self.keyring.roles.demote(Epoch(expected), entry("Site/Demote"), 5).await;
        demoted.map(|standing| standing.epoch)
    }

    async fn promote(&self, wish: Wish) -> Result<Epoch, NotChanged> {
        let promoted = self.keyring.roles.promote(wish, entry("Site/Promote"), 6).await?;
        assert!(promoted.left.is_empty() && promoted.standing.writes());
        Ok(promoted.standing.epoch)
    }

    /// Imports a meter; the error says why not.
    async fn try_add(&self, n: u64) -> Result<(), LifecycleError> {
        let rules = ImportRules::default();
        let by = call("Meters/ImportMeters");
        let results = self.lifecycle.import(&by, vec![meter(n)], rules);
        assert!(results.await?.results.remove(0).outcome.is_ok());
        Ok(())
    }
}

#[test]
fn invariant_7_a_demoted_site_changes_nothing_and_a_promoted_one_goes_on_in_its_epoch() {
    at_home(async |home| {
        let site = Site::new(home).await;
        site.add(meter(1)).await;
        assert_eq!(site.verdict(&push(1, PLAIN)).await, Verdict::Ok);
        assert_eq!(site.demote(2).await.unwrap(), Epoch(2));
        let refused = site.try_add(2).await.unwrap_err();
        assert!(matches!(refused, LifecycleError::NotPrimary { .. }), "{refused}");
        assert_eq!(site.verdict(&push(1, PLAIN)).await, Verdict::Ok);
        assert_eq!(site.promote(wish(2)).await.unwrap(), Epoch(4));
        site.try_add(2).await.unwrap();
        for n in [1, 2] {
            assert_eq!(site.verdict(&push(n, PLAIN)).await, Verdict::Ok);
        }
        let heads = site.store.heads().await.unwrap();
        assert!(heads.iter().all(|head| head.position.epoch == Epoch(4)));
        let records = site.keyring.roles.records().await.unwrap();
        let changes: Vec<_> =
            records.iter().map(|signed| (signed.record.change, signed.record.epoch)).collect();
        assert_eq!(changes, [(RoleChange::Demotion, Epoch(2)), (RoleChange::Promotion, Epoch(4))]);
    });
}

#[test]
fn a_promotion_leaves_resident_tables_as_they_are() {
    at_home(async |home| {
        let site = Site::new(home).await;
        site.add(meter(1)).await;
        site.keyring.refresher.warm_up().await;
        site.demote(2).await.unwrap();
        home.token.go_away("pulled out after the demotion");
        let refused = site.promote(wish(2)).await.unwrap_err();
        assert!(matches!(refused, NotChanged::Token(_)), "{refused}");
        home.token.come_back();
        site.promote(wish(2)).await.unwrap();
        home.token.go_away("pulled out after the promotion");
        assert_eq!(site.verdict(&push(1, PLAIN)).await, Verdict::Ok);
    });
}

#[test]
fn invariant_5_a_server_that_starts_finds_the_promoted_heads_as_the_newest() {
    at_home(async |home| {
        let site = Site::new(home).await;
        site.add(meter(1)).await;
        site.demote(2).await.unwrap();
        site.promote(wish(2)).await.unwrap();
        site.try_add(2).await.unwrap();
        drop(site);
        let again = Site::new(home).await;
        assert_eq!(again.keyring.roles.standing().epoch, Epoch(4));
        for n in [1, 2] {
            assert_eq!(again.verdict(&push(n, PLAIN)).await, Verdict::Ok);
        }
        again.try_add(3).await.unwrap();
        assert_eq!(again.audit.status().fault, None);
    });
}

#[test]
fn invariant_7_another_process_that_has_not_heard_of_the_change_is_refused_in_its_commit() {
    at_home(async |home| {
        let (site, other) = (Site::new(home).await, Site::new(home).await);
        site.demote(2).await.unwrap();
        assert!(other.keyring.roles.standing().writes(), "it has not looked");
        let refused = other.try_add(1).await.unwrap_err();
        assert!(matches!(refused, LifecycleError::NotPrimary { .. }), "{refused}");
        other.keyring.roles.look().await.unwrap();
        assert!(!other.keyring.roles.standing().writes());
        other.promote(wish(2)).await.unwrap();
        let refused = site.try_add(1).await.unwrap_err();
        assert!(matches!(refused, LifecycleError::NotPrimary { .. }), "{refused}");
        site.keyring.roles.look().await.unwrap();
        site.try_add(1).await.unwrap();
    });
}

#[test]
fn a_change_of_role_that_makes_no_sense_is_refused_by_its_reason() {
    at_home(async |home| {
        let site = Site::new(home).await;
        let refused = site.promote(wish(2)).await.unwrap_err();
        assert!(matches!(refused, NotChanged::Standing(_)), "it writes already: {refused}");
        let refused = site.promote(wish(3)).await.unwrap_err();
        assert!(matches!(refused, NotChanged::Epoch { .. }), "{refused}");
        site.demote(2).await.unwrap();
        let refused = site.demote(2).await.unwrap_err();
        assert!(matches!(refused, NotChanged::Standing(_)), "{refused}");
        // A restored site takes an epoch above the one that is named.
        let above = Wish { above: Some(Epoch(7)), ..wish(2) };
        assert_eq!(site.promote(above).await.unwrap(), Epoch(8));
        assert_eq!(
            site.promote(Wish { above: Some(Epoch(8)), ..wish(8) }).await.unwrap(),
            Epoch(10)
        );
    });
}

#[test]
fn invariant_7_a_role_record_that_nobody_of_ours_signed_changes_nothing() {
    at_home(async |home| {
        let site = Site::new(home).await;
        site.demote(2).await.unwrap();
        let mut forged = site.keyring.roles.records().await.unwrap().remove(0);
        forged.record.change = RoleChange::Promotion;
        forged.record.epoch = Epoch(3);
        let refused = site.keyring.roles.learn(vec![forged.clone()], entry("x/y")).await;
        assert!(matches!(refused, Err(NotChanged::NotAdmitted(_))), "{refused:?}");
        assert_eq!(site.keyring.roles.standing().role, Role::Primary);
        // Put into the database by somebody else, it takes the site out of service, and no further.
        let (before, after) = (
            RoleRow { epoch: Epoch(2), writes: false },
            RoleRow { epoch: Epoch(3), writes: false },
        );
        let step = RoleStep::without_blocks(before, after, forged);
        crate::store::AuditedStore::change_role(&*site.audit, step, vec![entry("x/y")])
            .await
            .unwrap();
        let refused = site.keyring.roles.look().await.unwrap_err();
        assert!(matches!(refused, NotChanged::NotAdmitted(_)), "{refused}");
    });
}

#[test]
fn invariant_7_a_site_that_was_rolled_back_behind_its_own_demotion_takes_it_in_and_writes_no_more()
{
    at_home(async |home| {
        let site = Site::new(home).await;
        site.add(meter(1)).await;
        let (database, old) = (site.database.clone(), site.database.with_extension("old"));
        site.store.close().await;
        std::fs::copy(&database, &old).unwrap();
        drop(site);
        let site = Site::new(home).await;
        site.try_add(2).await.unwrap();
        site.demote(2).await.unwrap();
        let ended = site.keyring.roles.records().await.unwrap();
        let (token, canaries) = (home.any_token(), home.canaries().encode());
        let rolled_back = Site::on(token, canaries, &old, Options::default()).await;
        assert!(rolled_back.keyring.roles.standing().writes());
        // Its blocks stand where no record says: that must not keep it from hearing of the end.
        rolled_back.try_add(3).await.unwrap();
        rolled_back.keyring.roles.learn(ended, entry("Replication/Fence")).await.unwrap();
        assert!(!rolled_back.keyring.roles.standing().writes());
        let refused = rolled_back.try_add(4).await.unwrap_err();
        assert!(matches!(refused, LifecycleError::NotPrimary { .. }), "{refused}");
    });
}
