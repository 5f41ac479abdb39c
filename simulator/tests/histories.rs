//! A few thousand histories without a broken rule, and each rule broken on purpose: the simulator finds it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use simulator::{Failure, Mutation, Plan, Realm};

const EVENTS: usize = 300;

fn run(
    seed: u64,
    histories: u64,
    mutation: Option<Mutation>,
) -> Result<simulator::Report, Failure> {
    let realm = Realm::new().unwrap();
    Plan { seed, histories, events: EVENTS, mutation }.run(&realm)
}

#[test]
fn invariants_3_4_5_6_and_7_hold_in_all_histories() {
    let report = run(1, 1_000, None).unwrap_or_else(|failure| panic!("{failure}"));
    println!("{}\n{} counters", report.hits, report.counters);
    assert!(report.counters > 5_000, "{}", report.counters);
}

#[test]
fn a_seed_says_everything() {
    assert_eq!(run(77, 20, None), run(77, 20, None));
    assert_ne!(run(77, 20, None), run(78, 20, None));
    let found = || run(1, 20_000, Some(Mutation::RestoreKeepsEpoch)).unwrap_err();
    assert_eq!(found(), found());
}

/// The invariant that is seen to be broken by a mistake.
fn found(mutation: Mutation, invariants: &[u8]) {
    let failure = run(1, 400_000, Some(mutation)).expect_err("nobody has noticed");
    println!("{mutation:?}: {failure}");
    assert!(invariants.contains(&failure.broken.invariant), "{failure}");
    // It is the mistake, and not the seed.
    let realm = Realm::new().unwrap();
    let plan = Plan { seed: failure.seed, histories: 1, events: EVENTS, mutation: None };
    assert!(plan.run(&realm).is_ok());
}

macro_rules! mistakes {
    ($($name:ident $mutation:ident $invariants:expr;)+) => {
        $(#[test]
        fn $name() {
            found(Mutation::$mutation, &$invariants);
        })+

        #[test]
        fn each_mistake_is_tried() {
            assert_eq!(Mutation::ALL.to_vec(), [$(Mutation::$mutation),+]);
        }
    };
}

mistakes! {
    a_base_at_the_epoch_of_the_first_use_is_found BaseAtEpoch [3];
    marks_of_the_meters_own_block_are_found BlockLocalMark [3];
    a_range_that_is_used_before_it_is_stored_is_found UseBeforeReserve [3];
    a_line_that_is_used_before_it_is_proved_is_found UnprovedLine [3];
    a_restored_site_that_does_not_wait_for_what_its_peer_knows_of_lines_is_found NoMergeAfterRestore [3];
    a_restored_site_that_goes_on_in_its_epoch_is_found RestoreKeepsEpoch [3, 4, 5, 7];
    a_restored_site_that_forgets_it_when_it_follows_is_found RestoreForgottenOnFollowing [3, 7];
    a_site_that_is_told_of_a_promotion_and_writes_on_is_found NoFencingAtContact [4, 7];
    a_commit_that_does_not_look_at_the_role_is_found NoRoleCheckInCommit [7];
    an_answer_before_the_commit_is_found AckBeforeCommit [4];
    an_answer_by_a_peer_that_follows_another_is_found IgnoreCardOfRound [4];
    a_block_that_is_stored_without_being_verified_is_found AdoptWithoutVerify [4, 5];
    records_of_the_peer_that_are_written_as_ones_own_are_found AdoptAsOwn [4, 5];
    a_parted_block_that_is_overwritten_is_found NoForkCheck [4];
    what_was_set_aside_and_dropped_is_found DropSetAside [4];
}
