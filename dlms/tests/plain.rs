//! The beginnings of plaintexts.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may")]

mod common;

use common::vectors;
use dlms::plain::{Beginning, beginning};

#[test]
fn every_published_plaintext_begins_as_an_apdu_or_a_p1_telegram() {
    let mut p1 = 0;
    for class in ["1", "2", "3", "4"] {
        for vector in vectors(class, "dlms-apdu").iter().filter(|vector| vector.expects_success()) {
            let found = beginning(&vector.plaintext());
            assert_ne!(found, Beginning::Neither, "{}", vector.id);
            p1 += usize::from(found == Beginning::P1);
        }
    }
    assert!(p1 > 0, "Smarty's telegram is P1");
}

#[test]
fn few_random_bytes_begin_so() {
    let mut state = 7_u64;
    let mut byte = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) as u8
    };
    let garbage = |_| (0..64).map(|_| byte()).collect::<Vec<u8>>();
    let passed = (0..20_000).map(garbage).filter(|b| beginning(b) != Beginning::Neither).count();
    assert!((1..400).contains(&passed), "{passed} of 20,000");
    assert_eq!(beginning(&[]), Beginning::Neither);
    for tag in 0..=255 {
        assert_eq!(beginning(&[tag]), Beginning::Neither, "{tag:02X}");
    }
}
