//! A random story of one fleet, and what must hold in it whatever comes.

use std::collections::BTreeSet;

use super::*;

/// SplitMix64, so that a failure can be had again by its seed.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (x ^ (x >> 31)) % n
    }
}

fn orders(n: usize) -> Vec<Vec<usize>> {
    if n == 0 {
        return vec![Vec::new()];
    }
    let insert = |order: Vec<usize>| {
        (0..n).map(move |at| {
            let mut order = order.clone();
            order.insert(at, n - 1);
            order
        })
    };
    orders(n - 1).into_iter().flat_map(insert).collect()
}

/// What must hold of one meter, whatever comes.
#[derive(Default)]
struct Known {
    /// GUEK values that were active once and then were not.
    given_up: BTreeSet<[u8; 16]>,
    active: Option<[u8; 16]>,
    policy: Option<MeterPolicy>,
    /// When that was last changed: when its file was sealed, or when a person set it.
    changed_ms: u64,
    deleted: bool,
    readmitted: bool,
}

impl Known {
    /// Looks at the meter after an import of a file, or after anything else.
    fn look(&mut self, meter: Option<&MeterRecord>, file: Option<&File>, seed: u64) {
        let Some(meter) = meter else { return };
        assert!(!self.deleted || self.readmitted, "seed {seed}: a deleted meter is back");
        (self.deleted, self.readmitted) = (false, false);
        let guek =
            meter.keys.iter().find(|k| k.kind == KeyKind::Guek && k.state == KeyState::Active);
        let active = guek.map(|key| key.fingerprint.0);
        assert!(
            active.is_none_or(|now| !self.given_up.contains(&now)),
            "seed {seed}: an old key is back"
        );
        if let (Some(old), Some(_)) = (self.active.filter(|old| Some(*old) != active), active) {
            self.given_up.insert(old);
        }
        self.active = active.or(self.active);
        if self.policy.as_ref().is_some_and(|old| *old != meter.policy) {
            let sealed_ms = file.map_or(u64::MAX, |file| file.sealed_ms);
            assert!(sealed_ms >= self.changed_ms, "seed {seed}: an older file changed the policy");
        }
        if self.policy.as_ref() != Some(&meter.policy) {
            self.changed_ms = file.map_or(self.changed_ms, |file| file.sealed_ms);
        }
        self.policy = Some(meter.policy.clone());
    }
}

/// Seals, imports, deletes, readmits and sets policies at random; then plays every file in every order.
pub(super) async fn play(world: &World, seed: u64) {
    let mut dice = Dice(seed);
    // Meters of this story only.
    let meters: Vec<u64> = (0..3).map(|n| 1_000 * (seed + 1) + n).collect();
    let mut known: Vec<Known> = meters.iter().map(|_| Known::default()).collect();
    let mut files: Vec<File> = Vec::new();
    for _ in 0..24 {
        world.pass(dice.below(5_000));
        let at = dice.below(3) as usize;
        let n = meters[at];
        match dice.below(12) {
            0..=3 if files.len() < 4 => {
                let mut lines = Vec::new();
                for _ in 0..=dice.below(3) {
                    let n = meters[dice.below(3) as usize];
                    let keys: Vec<_> = (0..dice.below(3))
                        .map(|_| ("GUEK", value(n, 10 + dice.below(4) as u8)))
                        .collect();
                    let policy = [None, Some(WEAK), Some(STRONG)][dice.below(3) as usize];
                    lines.push(line(n, &keys, policy));
                }
                // By either of the two: what the one brought, the other one's files try to change.
                files.push(world.seal_by(dice.below(2) as usize, &lines, world.now()));
            }
            0..=7 if !files.is_empty() => {
                let file = files[dice.below(files.len() as u64) as usize].clone();
                world.import(&file, EVERYTHING).await.unwrap();
                for (known, n) in known.iter_mut().zip(&meters) {
                    known.look(world.meter(*n).await.as_ref(), Some(&file), seed);
                }
            }
            8 if world.meter(n).await.is_some() => {
                world.delete(n).await;
                (known[at].deleted, known[at].readmitted, known[at].policy) = (true, false, None);
            }
            9 | 10 if known[at].deleted => {
                world.readmit(n).await.unwrap();
                known[at].readmitted = true;
            }
            11 if world.meter(n).await.is_some() => {
                world.set_policy(n, strong()).await;
                known[at].policy = Some(strong());
                known[at].changed_ms = world.now();
            }
            _ => {}
        }
    }
    // What may still come for the first time comes now, the oldest first.
    for file in &files {
        world.import(file, EVERYTHING).await.unwrap();
        for (known, n) in known.iter_mut().zip(&meters) {
            known.look(world.meter(*n).await.as_ref(), Some(file), seed);
        }
    }
    let before = world.site.store.heads().await.unwrap();
    for order in orders(files.len()) {
        for at in &order {
            world.pass(dice.below(1_000));
            world.import(&files[*at], EVERYTHING).await.unwrap();
        }
        assert_eq!(world.site.store.heads().await.unwrap(), before, "seed {seed}: {order:?}");
    }
}
