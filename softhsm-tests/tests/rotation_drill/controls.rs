//! Drills that have to find something: a head-end that retries under the counter of its first try, and a key that was handed
//! out although the other site had not proved it.

use kms_client::{KeyKind, KeyPlace, StageOptions, TransferOptions};
use simulated_meter::{Dialect, Losses};

use super::{
    Drill,
    common::fleet::id,
    fates::Fates,
    field::{ALWAYS, Field},
    policy,
};

fn by_the_book(meters: u64) -> Field {
    Field::new((1..=meters).map(|n| (n, Dialect::BY_THE_BOOK)), Losses::default())
}

#[tokio::test(flavor = "multi_thread")]
async fn control_a_retry_that_reuses_its_counter_is_found_on_the_wire() {
    let mut drill = Drill::of(by_the_book(3), Fates::default()).await;
    let all: Vec<u64> = drill.field.devices.keys().copied().collect();
    drill.start("again", &all, policy(0, 20)).await;
    drill.field.reuses_counters = true;
    drill.work_off().await;
    drill.field.reuses_counters = false;
    let judged = drill.judge().await;
    assert!(drill.field.ledger.reused() > 0);
    assert!(judged.wrong.iter().any(|it| it.contains("nonces twice")), "{:?}", judged.wrong);
    println!("{:?}", judged.wrong);
    drill.sites.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn control_a_key_without_the_other_sites_proof_and_a_failover_strand_a_meter() {
    let mut drill = Drill::of(by_the_book(4), Fates::default()).await;
    // The other site has the lines of the old keys' counters, as of any meter that was sent to.
    let before = drill.judge().await;
    assert!(before.wrong.is_empty() && before.reached == 4, "{before:?}");
    drill.sites.until_proved();
    // Nothing gets to the other site any more.
    let b = drill.sites.running[1].take().unwrap();
    tokio::task::block_in_place(|| b.stop()).unwrap();
    let rotation = drill.sites.client().rotation();
    let options = StageOptions { allow_unreplicated: true, ..StageOptions::default() };
    let half: Vec<u64> = drill.field.devices.keys().copied().filter(|n| *n > 2).collect();
    for n in &half {
        let place =
            KeyPlace { meter_id: id(*n).parse().unwrap(), kind: KeyKind::Guek, security_setup: 0 };
        let staged = rotation.stage(&place, options).await.unwrap();
        assert!(!staged.proved, "{staged:?}");
        let sending = TransferOptions { invoke_id_and_priority: 0xc1, ..Default::default() };
        let next = rotation.next_transfer(&place, sending).await.unwrap();
        let apdu = next.protected.apdu.unwrap();
        assert!(!drill.field.exchange(*n, (ALWAYS, &apdu), None).is_empty());
    }
    // The site that made them is lost, and its database with it.
    drill.sites.kill();
    drill.sites.start_again(1);
    drill.sites.promote(1).await;
    let wrong = drill.judge().await.wrong;
    println!("{wrong:#?}");
    for n in drill.field.devices.keys() {
        let stranded = wrong.iter().any(|it| it.starts_with(&format!("a push of {} ", id(*n))));
        assert_eq!(stranded, half.contains(n), "{}: {wrong:?}", id(*n));
    }
    drill.sites.stop();
}
