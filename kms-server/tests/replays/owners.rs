//! Whose meter it is: two signers, and what the one does with the other one's meters.

use kms_server::lifecycle::{Ranges, Signer};

use super::*;

const ANN: usize = 0;
const BOB: usize = 1;

/// What one brought, the other one does not change, whatever the rules.
pub(super) async fn keep_apart(home: &Home) {
    let world = World::new(home, true).await;
    let anns = world.seal(&[usual(1, Some(STRONG)), usual(2, None)]);
    assert_eq!(world.outcomes(&anns, ImportRules::default()).await, ["CREATED", "CREATED"]);
    let before = [world.meter(1).await, world.meter(2).await];
    world.pass(10);
    let named = |mut file: File| {
        file.lines[0].meter.as_mut().unwrap().logical_device_name = "BOB".into();
        file
    };
    for (lines, due) in [
        // Another value, a value that is new, another policy: taken over.
        (line(1, &[("GUEK", value(1, 50))], None), "SIGNER_DIFFERS"),
        (line(1, &[("KEK", value(1, 51))], None), "SIGNER_DIFFERS"),
        (line(1, &[], Some(WEAK)), "SIGNER_DIFFERS"),
        // A value under another kind, at its meter and at another one: changed in kind.
        (line(1, &[("GUEK", value(1, GAK))], None), "KEY_OF_ANOTHER_KIND"),
        (line(3, &[("KEK", value(1, GUEK))], None), "KEY_OF_ANOTHER_KIND"),
        // Its id under another title, its title under another id: relabelled.
        (usual(1, None).replace(&id(1), &id(9)), "SYSTEM_TITLE_TAKEN"),
        (usual(4, None).replace(&id(4), &id(1)), "METER_ID_TAKEN"),
        // What is known already is no news from anybody.
        (usual(1, None), "UNCHANGED"),
    ] {
        let bobs = world.seal_by(BOB, &[lines.clone()], world.now());
        assert_eq!(world.outcomes(&bobs, EVERYTHING).await, [due], "{lines}");
    }
    let bobs = named(world.seal_by(BOB, &[line(1, &[], None)], world.now()));
    assert_eq!(world.outcomes(&bobs, EVERYTHING).await, ["SIGNER_DIFFERS"]);
    // Neither record moved.
    assert_eq!([world.meter(1).await, world.meter(2).await], before);
    assert_eq!(
        before[0].as_ref().map(|it| (it.policy.clone(), it.keys.len())),
        Some((strong(), 2))
    );
    // She herself may, and a file of two people's meters loses only the line of the other one.
    let hers = world.seal(&[line(1, &[("GUEK", value(1, 50))], None)]);
    assert_eq!(world.outcomes(&hers, EVERYTHING).await, ["UPDATED"]);
    let both = [usual(5, None), line(2, &[], Some(WEAK)), usual(6, None)];
    let both = world.seal_by(BOB, &both, world.now());
    let due = ["CREATED", "SIGNER_DIFFERS", "CREATED"];
    assert_eq!(world.outcomes(&both, EVERYTHING).await, due);
    let hers = world.seal(&[line(5, &[], Some(WEAK))]);
    assert_eq!(world.outcomes(&hers, EVERYTHING).await, ["SIGNER_DIFFERS"]);
    // What people change by hand is nobody's file any more.
    world.set_policy(2, weak()).await;
    world.pass(10);
    let bobs = world.seal_by(BOB, &[line(2, &[], Some(STRONG))], world.now());
    assert_eq!(world.outcomes(&bobs, EVERYTHING).await, ["UPDATED"]);
}

/// Ranges, and who may change whose.
pub(super) async fn keep_their_ranges(home: &Home) {
    let range = |meters: &[&str], titles: &[&str], may_change: &[&str]| Ranges {
        meters: meters.iter().map(|it| (*it).to_owned()).collect(),
        titles: titles.iter().map(|it| it.parse().unwrap()).collect(),
        may_change: may_change.iter().map(|it| (*it).to_owned()).collect(),
    };
    // Ann owns meter-1… by id, and the titles that end in 0x70 to 0x7F; bob owns nothing.
    let anns = range(&["meter-1"], &[], &[]);
    let world = World::with(home, false, |name| match name {
        "ann" => anns.clone(),
        _ => Ranges::default(),
    })
    .await;
    let refused = "NOT_SIGNERS_METER";
    let lines = [usual(1, None), usual(2, None), usual(10, None)];
    let hers = world.seal(&lines);
    assert_eq!(world.outcomes(&hers, EVERYTHING).await, ["CREATED", refused, "CREATED"]);
    let his = world.seal_by(BOB, &[usual(3, None), usual(11, None)], world.now());
    assert_eq!(world.outcomes(&his, EVERYTHING).await, ["CREATED", refused]);
    // Not even what would change nothing: a line of his about her meter is none of his.
    let his = world.seal_by(BOB, &[usual(1, None)], world.now());
    assert_eq!(world.outcomes(&his, EVERYTHING).await, [refused]);
}

/// Titles, and one who may change the other one's meters.
pub(super) async fn share_by_name(home: &Home) {
    let titles = "414D490000000070-414D49000000007F";
    let world = World::with(home, false, |name| match name {
        "ann" => Ranges { titles: vec![titles.parse().unwrap()], ..Ranges::default() },
        _ => Ranges { may_change: vec!["ann".to_owned()], ..Ranges::default() },
    })
    .await;
    let hers = world.seal(&[usual(0x70, None), usual(0x7F, None), usual(0x80, None)]);
    let due = ["CREATED", "CREATED", "NOT_SIGNERS_METER"];
    assert_eq!(world.outcomes(&hers, EVERYTHING).await, due);
    world.pass(10);
    // Bob may; and now the meter is his, so that she may not.
    let his = world.seal_by(BOB, &[line(0x70, &[], Some(WEAK))], world.now());
    assert_eq!(world.outcomes(&his, EVERYTHING).await, ["UPDATED"]);
    world.pass(10);
    let hers = world.seal_by(ANN, &[line(0x70, &[], Some(STRONG))], world.now());
    assert_eq!(world.outcomes(&hers, EVERYTHING).await, ["SIGNER_DIFFERS"]);
    assert!(Signer::from_pem("no key", Ranges::default()).is_err());
}
