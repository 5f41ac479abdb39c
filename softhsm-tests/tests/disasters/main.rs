//! Two sites by the real programs through disasters by chance: killed with -9, frozen, parted, promoted with the old
//! primary alive, behind a proxy that breaks connections. What was acknowledged is there, or is known to have been set
//! aside; what was told to be replicated is never set aside; both sites end byte for byte alike.
//!
//! `make disasters` plays a long game; `KILLS`, `PARTITIONS`, `FREEZES` and `SEED` say what it has.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

#[path = "../common/mod.rs"]
mod common;
mod ledger;
mod world;

use common::Numbers;
use ledger::Ledger;
use world::{Disaster, World};

/// Disasters between two looks at everything.
const BETWEEN_LOOKS: usize = 10;

#[expect(clippy::disallowed_methods, reason = "how long a game is to be played, and which")]
fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().expect("a number"))
}

#[tokio::test(flavor = "multi_thread")]
async fn invariant_4_nothing_acknowledged_is_lost_or_unreported_whatever_befalls_two_sites() {
    let seed = number("SEED", 1);
    let mut numbers = Numbers(seed);
    let counts = [
        (Disaster::Kill, number("KILLS", 4)),
        (Disaster::Partition, number("PARTITIONS", 2)),
        (Disaster::Freeze, number("FREEZES", 2)),
    ];
    let mut left: Vec<Disaster> =
        counts.iter().flat_map(|(what, times)| (0..*times).map(|_| *what)).collect();
    let mut world = World::start(seed).await;
    let ledger = Ledger::default();
    let writers = world.writers(&ledger);
    while !left.is_empty() {
        for _ in 0..BETWEEN_LOOKS.min(left.len()) {
            let what = left.swap_remove(numbers.below(left.len() as u64) as usize);
            world.befall(what, &mut numbers).await;
        }
        world.heal().await;
        world.until_in_step().await;
        ledger.pause().await;
        world.until_in_step().await;
        let found = world.look(&ledger).await;
        println!("{} disasters left; {found}", left.len());
        ledger.go_on();
    }
    ledger.end();
    for writer in writers {
        writer.await.unwrap();
    }
    println!("{}", world.told());
    assert!(ledger.acknowledged() > 0, "nothing was written");
    world.stop();
}
