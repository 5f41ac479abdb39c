//! Whatever is asked for and shown in whichever order, no meter is stranded.

use proptest::prelude::*;

use super::*;

proptest! {
    /// Whatever is done in whatever order: no state goes back, no more than four versions are live, a meter that had a
    /// way in has one until somebody destroys it knowingly, and a compromised key never protects what is sent.
    #[test]
    fn no_story_strands_a_meter(steps in prop::collection::vec((0u8..8, 0usize..4, 1u16..8, 1u64..80), 1..60)) {
        let kinds = [KeyKind::Guek, KeyKind::Gak, KeyKind::Kek, KeyKind::Gbek];
        let mut meter = meter();
        let mut now_ms = 10;
        for (at, (step, kind, version, wait)) in steps.into_iter().enumerate() {
            now_ms += wait;
            let place = place(kinds[kind]);
            let before = meter.clone();
            match step {
                0 | 1 => if let Ok(Staging::Make(plan)) = plan(&meter, &wish(place.kind), &TIMES, now_ms) {
                    let id = KeyId([0x80 + at as u8; 16]);
                    let made = Made { id, fingerprint: Fingerprint(id.0), ..made(place.kind, plan.version) };
                    stage(&mut meter, &wish(place.kind), &plan, made, now_ms);
                },
                2 => {
                    let shown = shown_by(&meter, version);
                    show(&mut meter, &shown, &TIMES, now_ms);
                }
                3 => { sent(&mut meter, now_ms); let _ = answered(&mut meter, place, TransferResult::Success, (&TIMES, now_ms)); }
                4 => { let _ = prefer(&mut meter, place, version, now_ms); }
                5 => { let _ = revive(&mut meter, place, version, KeyId([0x80 + at as u8; 16]), now_ms); }
                6 => { let _ = compromise(&mut meter, place, version, now_ms); }
                _ => { let _ = destroy(&mut meter, place, version, destruction(false, now_ms)); }
            }
            due::pass(&mut meter, now_ms);
            for key in &before.keys {
                if let Some(now) = meter.keys.iter().find(|now| now.id == key.id) {
                    prop_assert!(now.state >= key.state);
                    prop_assert_eq!(now.wrapped.is_empty(), now.state == KeyState::Destroyed);
                }
            }
            for kind in kinds {
                let place = super::choosing::Place { setup: SecuritySetup(0), kind };
                let live = place.versions(&meter).filter(|key| key.is_live()).count();
                prop_assert!((1..=LIVE_MAX).contains(&live), "{} live of {}", live, kind);
                prop_assert!(place.carries(&meter).is_some(), "no way in by {kind}");
                prop_assert!(place.preferred(&meter).is_none_or(|key| key.state == KeyState::Active));
            }
            let record = crate::Record::Meter(meter.clone());
            prop_assert_eq!(crate::Record::decode(&record.encode().unwrap()), Ok(record));
        }
    }
}
