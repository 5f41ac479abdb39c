//! What every store must do, written against the traits alone: SQLite and PostgreSQL run the same
//! cases. They return what is broken, they don't panic, so that a program can run them as well.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

mod adopt_cases;
mod approval_cases;
mod arrival;
mod audit_cases;
mod cases;
pub mod counter_cases;
mod floor_cases;
mod kek_cases;
pub mod made_up;
mod paper_cases;
mod peer_audit_cases;
mod role_cases;
pub mod site_scene;

use std::{
    future::Future,
    hash::{BuildHasher as _, RandomState},
    sync::Arc,
};

use kms_core::audit::{ChainTip, NodeId, StoredEvent};
use kms_server::store::{ChainLink, StoreError, WriteStore, sites::RoleRow};

pub use made_up::Scene;

/// The event that a commit can't be without, where a test asks for none: the first of a chain of its own,
/// so that no two writers are in each other's way.
pub struct Said {
    behind: ChainTip,
    events: [StoredEvent; 1],
}

impl Said {
    pub fn new() -> Self {
        // Two stores never meet in one node by chance, nor do two processes over one store.
        let [high, low] = [RandomState::new(), RandomState::new()].map(|one| one.hash_one(0));
        let node = NodeId((u128::from(high) << 64 | u128::from(low)).to_be_bytes());
        let behind = ChainTip::empty(node);
        Self { behind, events: [behind.append(audit_cases::entry()).1] }
    }

    pub fn link(&self) -> ChainLink<'_> {
        ChainLink { behind: self.behind, events: &self.events }
    }
}

/// A store that does not do what the traits say.
#[derive(Debug, thiserror::Error)]
#[error("the store breaks the contract that {case}: {what}")]
pub struct Broken {
    /// Which case; a sentence.
    pub case: &'static str,
    /// What was seen.
    pub what: String,
}

/// Runs all cases, each on a store of its own that `fresh` makes: empty, migrated, and nobody else's.
/// Ends at the first that is broken.
pub async fn run<F, Made>(fresh: F) -> Result<(), Broken>
where
    F: Fn() -> Made,
    Made: Future<Output = Arc<dyn WriteStore>>,
{
    macro_rules! each {
        ($file:ident: $($case:ident)*) => {$(
            $file::$case(fresh().await).await.map_err(|what| Broken {
                case: concat!(stringify!($case)),
                what: what.0,
            })?;
        )*};
    }
    each! { cases:
        a_fresh_store_is_empty
        a_domain_comes_to_be_once
        an_old_domain_is_completed_once
        a_head_table_is_replaced_only_by_who_knows_it
        a_block_comes_back_byte_for_byte_and_in_key_order
        a_block_in_part_has_those_that_were_asked_for
        heads_are_in_order_and_only_of_blocks_that_exist
        a_change_replaces_the_record_and_leaves_the_others
        a_head_that_moved_is_a_conflict
        of_two_writers_exactly_one_wins
        a_gap_or_a_number_twice_is_refused
        epochs_never_fall
        a_wrong_count_is_refused
        a_block_stands_in_a_commit_once
        a_seal_is_never_overwritten
        nothing_of_a_failed_commit_is_seen
        a_reader_sees_a_commit_whole_or_not_at_all
        a_tombstone_frees_the_id_and_keeps_the_record
        an_id_moves_from_the_dead_to_the_living_in_one_commit
        an_id_belongs_to_one_meter
        a_title_belongs_to_one_meter
        meters_are_listed_in_order_of_id_page_by_page
        holders_follow_the_fingerprints
        an_index_that_changes_twice_in_a_commit_says_the_last
    }
    each! { role_cases:
        a_site_begins_in_the_role_of_its_founding
        a_site_that_does_not_write_refuses_changes_and_records_events
        a_promotion_takes_all_blocks_into_its_epoch_at_once
        a_refused_change_of_role_leaves_everything_as_it_was
        a_demotion_tells_where_the_blocks_stand_or_is_a_conflict
        a_promotion_leaves_the_blocks_of_which_nothing_is_known
        of_two_changes_of_role_exactly_one_wins
        a_role_is_learnt_from_a_peers_record_once
        a_peer_is_enrolled_and_enrolled_anew
        a_peers_row_that_somebody_else_wrote_meanwhile_stays
        the_lock_of_the_follower_is_had
    }
    each! { counter_cases:
        a_mark_is_replaced_only_by_who_knows_it
        a_site_that_does_not_write_in_a_marks_epoch_reserves_nothing
        a_mark_that_falls_is_refused
        a_promotion_without_the_mark_of_each_block_is_refused
        of_two_reservations_exactly_one_wins
        marks_of_another_site_are_merged_by_maximum
    }
    each! { adopt_cases:
        an_adopted_block_is_the_peers_byte_for_byte
        a_site_that_writes_adopts_nothing_and_nobody_adopts_an_unknown_epoch
        an_adoption_for_another_state_is_a_conflict
        each_broken_rule_of_an_adoption_is_named
        an_adoption_that_fails_leaves_nothing
        what_a_fenced_site_wrote_is_set_aside_with_the_adoption
        a_row_that_is_not_the_peers_goes_and_a_damaged_one_is_replaced
        divergence_is_kept_once_decided_once_and_listed_page_by_page
        changes_after_a_position_are_those_and_in_order
        records_that_are_no_meters_come_back_and_find_nobody
        two_meters_may_claim_an_id_until_all_has_arrived
    }
    each! { kek_cases:
        a_row_of_site_keks_is_replaced_only_by_who_knows_it
        a_secret_gets_its_twin_once_and_pairs_come_page_by_page
        no_step_lets_a_seal_go_whose_secret_has_no_twin
        a_seal_under_a_closed_kek_is_refused_and_nothing_comes_with_it
    }
    each! { paper_cases:
        of_signed_papers_the_newest_of_each_kind_and_site_stays
        records_that_begin_as_none_that_is_known_are_counted_and_named
    }
    each! { approval_cases:
        a_waiting_call_changes_only_from_the_row_that_is_there_and_with_its_event
        waiting_calls_that_are_over_go_with_the_next_step_of_another
        a_site_that_begins_to_write_again_keeps_no_call_that_waited_before
    }
    each! { peer_audit_cases:
        a_copy_of_a_peers_chain_goes_on_from_where_it_ends_and_from_nowhere_else
        a_break_of_a_peers_chain_is_noted_with_the_epoch_in_which_it_was_found_first
    }
    let (writer, follower) = (fresh().await, fresh().await);
    arrival::in_whatever_order_blocks_arrive_the_index_is_the_writers(writer, follower)
        .await
        .map_err(|what| Broken {
            case: "in_whatever_order_blocks_arrive_the_index_is_the_writers",
            what: what.0,
        })?;
    each! { floor_cases:
        floors_come_back_byte_for_byte_and_each_node_has_its_own
    }
    each! { audit_cases:
        audit_events_come_back_byte_for_byte_page_by_page
        an_audit_event_stands_only_behind_the_end_of_its_chain
        a_change_and_its_audit_events_are_there_together_or_not_at_all
        a_change_of_which_nothing_is_said_is_refused
        signed_heads_come_back_and_the_last_is_found
    }
    Ok(())
}

/// What a case saw that it should not have.
#[derive(Debug)]
pub struct Seen(pub String);

impl From<StoreError> for Seen {
    fn from(error: StoreError) -> Self {
        Self(format!("it failed: {error}"))
    }
}

/// The two are to be equal.
fn same<T: PartialEq + std::fmt::Debug>(found: T, wanted: T) -> Result<(), Seen> {
    if found == wanted {
        Ok(())
    } else {
        Err(Seen(format!("{found:?} where {wanted:?} should be")))
    }
}

/// The write is to fail with an error that `wanted` describes.
fn refused(
    outcome: Result<(), StoreError>,
    wanted: impl FnOnce(&StoreError) -> bool,
) -> Result<(), Seen> {
    match outcome {
        Err(error) if wanted(&error) => Ok(()),
        other => Err(Seen(format!("not refused as it should be, but {other:?}"))),
    }
}

/// As [`refused`], for the rule of `store::rules`.
fn refused_by(outcome: Result<(), StoreError>, wanted: &str) -> Result<(), Seen> {
    refused(outcome, |error| matches!(error, StoreError::Rule { rule, .. } if *rule == wanted))
}

/// As [`refused`], because another meter has the id or title.
fn refused_as_taken(outcome: Result<(), StoreError>, wanted: &str) -> Result<(), Seen> {
    refused(outcome, |error| matches!(error, StoreError::Taken { what, .. } if *what == wanted))
}

/// As [`refused`], because this site is in this role.
fn refused_as_not_writer(outcome: Result<(), StoreError>, wanted: RoleRow) -> Result<(), Seen> {
    refused(outcome, |error| matches!(error, StoreError::NotWriter(row) if *row == wanted))
}

/// As [`refused`], because somebody else was first.
fn refused_as_conflict(outcome: Result<(), StoreError>) -> Result<(), Seen> {
    refused(outcome, |error| matches!(error, StoreError::Conflict(_)))
}
