//! `make demo` as a test: every published telegram ends as it must, and nothing forged opens.

#![allow(clippy::unwrap_used, reason = "helpers of tests may")]

use softhsm_tests::{Programs, demo};

#[test]
fn the_demonstration_ends_well() {
    assert!(demo::run(Programs::find().unwrap()).unwrap());
}
