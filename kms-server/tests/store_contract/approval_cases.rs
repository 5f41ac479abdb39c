//! The cases of calls that wait for their second person.

use super::{
    Said, Seen, same,
    site_scene::{FOUNDED, Store, change_role, found, learnt, promotion},
};
use kms_core::site::role::RoleChange;
use kms_server::store::{
    StoreError,
    approvals::{ApprovalStep, StoredApproval},
};

type Outcome = Result<(), Seen>;

fn row(call: u8, number: u64, signature: u8) -> StoredApproval {
    let (name, signature) = ([call; 32], [signature; 64]);
    StoredApproval { name, number, expires_ms: 1_000, body: vec![call, signature[0]], signature }
}

fn step(call: u8, before: Option<u8>, after: Option<StoredApproval>) -> ApprovalStep {
    let before = before.map(|signature| [signature; 64]);
    ApprovalStep { name: [call; 32], before, after, over_by_ms: 0 }
}

/// True: it was done, with its event. False: somebody else was first, and neither is there.
async fn put(store: &Store, step: ApprovalStep) -> Result<bool, Seen> {
    let said = Said::new();
    let node = said.link().events[0].node;
    let done = match store.put_approval(&step, said.link()).await {
        Ok(()) => true,
        Err(StoreError::Taken { .. }) => false,
        Err(error) => return Err(error.into()),
    };
    let is_said = store.audit_chains().await?.iter().any(|tip| tip.node == node);
    same(is_said, done)?;
    Ok(done)
}

async fn rows(store: &Store) -> Result<Vec<StoredApproval>, Seen> {
    let mut rows = store.approvals().await?;
    rows.sort_by_key(|row| row.name);
    Ok(rows)
}

pub(super) async fn a_waiting_call_changes_only_from_the_row_that_is_there_and_with_its_event(
    store: Store,
) -> Outcome {
    same(rows(&store).await?, Vec::new())?;
    same(put(&store, step(1, None, Some(row(1, 11, 1)))).await?, true)?;
    // The same call, asked at another server too; and a number that another call has.
    same(put(&store, step(1, None, Some(row(1, 12, 2)))).await?, false)?;
    same(put(&store, step(2, None, Some(row(2, 11, 2)))).await?, false)?;
    same(put(&store, step(2, None, Some(row(2, 12, 2)))).await?, true)?;
    same(rows(&store).await?, vec![row(1, 11, 1), row(2, 12, 2)])?;
    // Approved, by who knows the row; then used, once.
    same(put(&store, step(1, Some(9), Some(row(1, 11, 3)))).await?, false)?;
    same(put(&store, step(1, Some(1), Some(row(1, 11, 3)))).await?, true)?;
    same(put(&store, step(1, Some(1), None)).await?, false)?;
    same(rows(&store).await?, vec![row(1, 11, 3), row(2, 12, 2)])?;
    same(put(&store, step(1, Some(3), None)).await?, true)?;
    same(put(&store, step(1, Some(3), None)).await?, false)?;
    same(rows(&store).await?, vec![row(2, 12, 2)])
}

pub(super) async fn waiting_calls_that_are_over_go_with_the_next_step_of_another(
    store: Store,
) -> Outcome {
    for (call, expires_ms) in [(1, 10), (2, 20), (3, 30)] {
        let row = StoredApproval { expires_ms, ..row(call, call.into(), call) };
        same(put(&store, step(call, None, Some(row))).await?, true)?;
    }
    let next = ApprovalStep { over_by_ms: 20, ..step(4, None, Some(row(4, 4, 4))) };
    same(put(&store, next).await?, true)?;
    let left: Vec<u64> = rows(&store).await?.iter().map(|row| row.number).collect();
    same(left, vec![2, 3, 4])?;
    // A step that is not done clears nothing away.
    let vain = ApprovalStep { over_by_ms: 900, ..step(4, Some(9), None) };
    same(put(&store, vain).await?, false)?;
    same(rows(&store).await?.len(), 3)
}

pub(super) async fn a_site_that_begins_to_write_again_keeps_no_call_that_waited_before(
    store: Store,
) -> Outcome {
    found(&store, true).await?;
    same(put(&store, step(1, None, Some(row(1, 11, 1)))).await?, true)?;
    change_role(&store, &learnt(&store, RoleChange::Demotion, FOUNDED).await?).await?;
    same(put(&store, step(2, None, Some(row(2, 12, 2)))).await?, true)?;
    same(rows(&store).await?, vec![row(1, 11, 1), row(2, 12, 2)])?;
    change_role(&store, &promotion(&store, 4).await?).await?;
    same(rows(&store).await?, Vec::new())
}
