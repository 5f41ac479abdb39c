//! Importing and deleting.

#![allow(clippy::unwrap_used, reason = "tests may")]

use kms_core::{KeyKind, MeterId, Verdict};

use super::{
    home::at_home,
    site_common::{GAK, GUEK, Site, call, id, in_hsm, key, meter, push, title, value},
};
use crate::lifecycle::{ImportResult, ImportRules, Imported, LifecycleError, NewMeter};

const PLAIN: &[u8] = b"\x0f\x00";

fn outcome(result: &ImportResult) -> Result<Imported, &'static str> {
    result.outcome.clone().map_err(|refusal| refusal.code.word())
}

fn meter_id(n: u64) -> MeterId {
    MeterId::new(&id(n)).unwrap()
}

#[test]
fn lines_of_one_message_are_taken_or_refused_each_by_itself() {
    at_home(async |home| {
        let site = Site::new(home).await;
        let same_id = NewMeter { meter_id: meter_id(1), ..meter(2) };
        let known = NewMeter { keys: vec![key(KeyKind::Guek, vec![0; 16])], ..meter(3) };
        let kek = NewMeter { keys: vec![in_hsm(key(KeyKind::Kek, value(4, 9)))], ..meter(4) };
        let lines = vec![meter(1), same_id, known, kek, meter(1)];
        let results = site.import(lines, ImportRules::default()).await;
        let outcomes: Vec<_> = results.iter().map(outcome).collect();
        let wanted = [
            Ok(Imported::Created),
            Err("METER_ID_TAKEN"),
            Err("TEST_KEY"),
            Ok(Imported::Created),
            Ok(Imported::Unchanged),
        ];
        assert_eq!(outcomes, wanted);
        assert_eq!(site.verdict(&push(1, PLAIN)).await, Verdict::Ok);
        assert_eq!(site.verdict(&push(2, PLAIN)).await, Verdict::UnknownMeter);
    });
}

#[test]
fn a_dry_run_says_the_same_and_changes_nothing() {
    at_home(async |home| {
        let site = Site::new(home).await;
        let rules = ImportRules { dry_run: true, ..ImportRules::default() };
        let dry = site.import(vec![meter(1)], rules).await;
        let before = site.store.heads().await.unwrap();
        assert_eq!(outcome(&dry[0]), Ok(Imported::Created));
        assert!(matches!(
            site.lifecycle.get(&meter_id(1)).await,
            Err(LifecycleError::NotAllOpen { .. })
        ));
        site.add(meter(1)).await;
        assert_ne!(site.store.heads().await.unwrap(), before);
    });
}

#[test]
fn a_dry_run_of_one_meter_says_what_would_be_made() {
    at_home(async |home| {
        let site = Site::new(home).await;
        let rules = ImportRules { dry_run: true, ..ImportRules::default() };
        let Err(LifecycleError::Refused(refusal)) =
            site.lifecycle.create(&call("dry"), meter(1), rules).await
        else {
            panic!("it was made");
        };
        assert_eq!(refusal.code.word(), "DRY_RUN");
        let told = ["would be created in block ", "GUEK (setup 0, MEMORY)", "nothing was changed"];
        assert!(told.iter().all(|part| refusal.reason.contains(part)), "{}", refusal.reason);
        site.add(meter(1)).await;
    });
}

#[test]
fn one_value_is_of_one_kind_in_line_meter_and_fleet() {
    at_home(async |home| {
        let site = Site::new(home).await;
        site.add(meter(1)).await;
        let both = vec![key(KeyKind::Guek, value(2, 1)), key(KeyKind::Gak, value(2, 1))];
        let in_line = NewMeter { keys: both, ..meter(2) };
        let elsewhere = NewMeter { keys: vec![key(KeyKind::Gak, value(1, GUEK))], ..meter(3) };
        let results = site.import(vec![in_line, elsewhere], ImportRules::default()).await;
        let outcomes: Vec<_> = results.iter().map(outcome).collect();
        assert_eq!(outcomes, [Err("KEY_OF_ANOTHER_KIND"), Err("KEY_OF_ANOTHER_KIND")]);
        let shared = NewMeter { keys: vec![key(KeyKind::Guek, value(1, GUEK))], ..meter(4) };
        let result = site.import(vec![shared], ImportRules::default()).await.remove(0);
        assert_eq!(outcome(&result), Ok(Imported::Created));
        assert!(result.warnings[0].contains(&id(1)), "{:?}", result.warnings);
    });
}

#[test]
fn a_token_that_is_away_takes_only_what_it_need_not_see() {
    at_home(async |home| {
        let site = Site::new(home).await;
        site.keyring.refresher.warm_up().await;
        home.token.go_away("pulled out");
        site.add(meter(1)).await;
        let in_token =
            vec![in_hsm(key(KeyKind::Guek, value(2, GUEK))), key(KeyKind::Gak, value(2, GAK))];
        let lines = vec![NewMeter { keys: in_token, ..meter(2) }];
        let call = call("Meters/ImportMeters");
        let refused =
            site.lifecycle.import(&call, lines, ImportRules::default()).await.unwrap_err();
        assert!(matches!(refused, LifecycleError::Unavailable { .. }), "{refused}");
        assert!(site.keyring.records.read(&title(2)).await.unwrap().is_none(), "all or nothing");
    });
}

#[test]
fn a_deleted_meter_is_gone_and_none_of_its_old_keys_comes_back_with_it() {
    at_home(async |home| {
        let site = Site::new(home).await;
        site.add(meter(1)).await;
        site.lifecycle.delete(&call("Meters/DeleteMeter"), &meter_id(1)).await.unwrap();
        assert_eq!(site.verdict(&push(1, PLAIN)).await, Verdict::UnknownMeter);
        let again = site.import(vec![meter(1)], ImportRules::default()).await.remove(0);
        assert_eq!(outcome(&again), Err("METER_DELETED"));
        let twice = site.lifecycle.delete(&call("Meters/DeleteMeter"), &meter_id(1)).await;
        assert!(twice.is_err());
    });
}
