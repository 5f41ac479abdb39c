//! The cases of transmit counters' marks.

use super::{
    Said, Scene, Seen, refused_by, same,
    site_scene::{
        BLOCKS, FOUNDED, Store, change_role, domain, first_mark, found, learnt, promotion, row,
        table,
    },
};
use kms_core::{
    BlockNo, DomainRecord, Epoch,
    audit::NodeId,
    counters::{
        allocator::{Mark, Witnessed},
        mark::StoredMark,
    },
    site::role::RoleChange,
};
use kms_server::store::{Founding, StoreError, rules};

type Outcome = Result<(), Seen>;

fn mark(block: u32, epoch: u64, end: u32, term: u64) -> StoredMark {
    let holder = Some(NodeId([term as u8; 16]));
    let mark = Mark { block: BlockNo(block), epoch: Epoch(epoch), end, holder, term };
    StoredMark { mark, secret_version: 1, mac: [(end >> 10) as u8 ^ term as u8; 16] }
}

/// In the place of what stands there.
async fn reserve(store: &Store, mark: &StoredMark) -> Result<bool, StoreError> {
    let there = store.counter_mark(mark.mark.block).await?;
    store.put_counter_mark(there.as_ref(), mark).await
}

fn not_writer(put: Result<bool, StoreError>, epoch: u64, writes: bool) -> Outcome {
    match put {
        Err(StoreError::NotWriter(there)) if there == row(epoch, writes) => Ok(()),
        other => Err(Seen(format!("not refused as it should be, but {other:?}"))),
    }
}

pub(super) async fn a_mark_is_replaced_only_by_who_knows_it(store: Store) -> Outcome {
    found(&store, true).await?;
    let founded: Vec<_> = (0..BLOCKS).map(|block| first_mark(block, FOUNDED)).collect();
    same(store.counter_marks().await?, founded.clone())?;
    let (first, second) = (mark(3, FOUNDED, 1_024, 1), mark(3, FOUNDED, 2_048, 2));
    same(store.counter_mark(BlockNo(3)).await?, Some(founded[3]))?;
    same(store.put_counter_mark(None, &first).await?, false)?;
    same(store.put_counter_mark(Some(&founded[3]), &first).await?, true)?;
    same(store.put_counter_mark(None, &second).await?, false)?;
    let unknown = StoredMark { mac: [0xEE; 16], ..first };
    same(store.put_counter_mark(Some(&unknown), &second).await?, false)?;
    same(store.counter_mark(BlockNo(3)).await?, Some(first))?;
    same(store.put_counter_mark(Some(&first), &second).await?, true)?;
    let mut given_back = mark(3, FOUNDED, 2_048, 3);
    given_back.mark.holder = None;
    same(store.put_counter_mark(Some(&second), &given_back).await?, true)?;
    let other = mark(1, FOUNDED, 1_024, 1);
    same(store.put_counter_mark(Some(&founded[1]), &other).await?, true)?;
    // A block that has none, as an older version left it.
    let late = mark(9, FOUNDED, 1_024, 1);
    same(store.put_counter_mark(None, &late).await?, true)?;
    let all = vec![founded[0], other, founded[2], given_back, late];
    same(store.counter_marks().await?, all)
}

/// A domain that an older version made has no head table: `take_away` takes that of this one, past the store.
pub async fn a_mark_that_is_there_stays_when_a_domain_is_completed(
    store: Store,
    take_away: impl Future<Output = ()>,
) -> Outcome {
    let unsigned = DomainRecord { signature: None, ..domain(true) };
    let mut scene = Scene::default();
    let blocks = (0..BLOCKS).map(|block| scene.steps(block, FOUNDED, &[])).collect();
    store.create_domain(&Founding::new(unsigned, blocks, table(1))).await?;
    let reserved = mark(3, FOUNDED, 1_024, 1);
    same(store.put_counter_mark(None, &reserved).await?, true)?;
    take_away.await;
    let mut marks: Vec<_> = (0..BLOCKS).map(|block| first_mark(block, FOUNDED)).collect();
    let signed = Founding::new(domain(true), Vec::new(), table(1));
    store.complete_domain(&Founding { marks: marks.clone(), ..signed }).await?;
    marks[3] = reserved;
    same(store.counter_marks().await?, marks)
}

pub(super) async fn a_site_that_does_not_write_in_a_marks_epoch_reserves_nothing(
    store: Store,
) -> Outcome {
    found(&store, true).await?;
    not_writer(store.put_counter_mark(None, &mark(3, 4, 1_024, 1)).await, FOUNDED, true)?;
    let first = mark(3, FOUNDED, 1_024, 1);
    same(reserve(&store, &first).await?, true)?;
    change_role(&store, &learnt(&store, RoleChange::Demotion, FOUNDED).await?).await?;
    let next = mark(3, FOUNDED, 2_048, 2);
    not_writer(store.put_counter_mark(Some(&first), &next).await, FOUNDED, false)?;
    change_role(&store, &promotion(&store, 4).await?).await?;
    not_writer(store.put_counter_mark(Some(&first), &next).await, 4, true)?;
    // The sequences of an epoch are its own: the promotion has marked where they begin, in all blocks.
    let begun = (0..BLOCKS).map(|block| first_mark(block, 4)).collect::<Vec<_>>();
    same(store.counter_marks().await?, begun)?;
    same(reserve(&store, &mark(3, 4, 1_024, 1)).await?, true)
}

pub(super) async fn a_promotion_without_the_mark_of_each_block_is_refused(store: Store) -> Outcome {
    found(&store, true).await?;
    change_role(&store, &learnt(&store, RoleChange::Demotion, FOUNDED).await?).await?;
    let step = promotion(&store, 4).await?;
    let before = store.counter_marks().await?;
    let mut fewer = step.clone();
    fewer.marks.pop();
    let (mut further, mut of_before, mut swapped) = (step.clone(), step.clone(), step);
    further.marks[1].mark.end = 1_024;
    of_before.marks[1] = first_mark(1, FOUNDED);
    swapped.marks.swap(0, 1);
    for wrong in [fewer, further, of_before, swapped] {
        let said = Said::new();
        refused_by(store.change_role(&wrong, said.link()).await, rules::ROLE_MARKS)?;
    }
    same(store.counter_marks().await?, before)
}

pub(super) async fn a_mark_that_falls_is_refused(store: Store) -> Outcome {
    found(&store, true).await?;
    let first = mark(3, FOUNDED, 2_048, 5);
    same(reserve(&store, &first).await?, true)?;
    for lower in [
        mark(3, FOUNDED, 1_024, 6),
        mark(3, FOUNDED, 4_096, 5),
        mark(3, FOUNDED - 1, 4_096, 6),
        mark(2, FOUNDED, 4_096, 6),
    ] {
        let put = store.put_counter_mark(Some(&first), &lower).await;
        refused_by(put.map(drop), rules::MARK_FALLS)?;
    }
    let huge = mark(3, FOUNDED, 4_096, u64::MAX);
    refused_by(store.put_counter_mark(Some(&first), &huge).await.map(drop), rules::NUMBER_FITS)?;
    same(store.counter_mark(BlockNo(3)).await?, Some(first))
}

pub(super) async fn of_two_reservations_exactly_one_wins(store: Store) -> Outcome {
    found(&store, true).await?;
    let mut known = store.counter_mark(BlockNo(3)).await?;
    for round in 1..=20 {
        let (one, two) = (
            mark(3, FOUNDED, round * 1_024, 2 * u64::from(round)),
            mark(3, FOUNDED, round * 1_024, 2 * u64::from(round) + 1),
        );
        let (a, b) = tokio::join!(
            store.put_counter_mark(known.as_ref(), &one),
            store.put_counter_mark(known.as_ref(), &two),
        );
        // A database that gave one up for the other's sake says so.
        let won = |put: Result<bool, StoreError>| match put {
            Err(StoreError::Conflict(_)) => Ok(false),
            put => put,
        };
        let winner = match (won(a)?, won(b)?) {
            (true, false) => one,
            (false, true) => two,
            both => return Err(Seen(format!("{both:?} won"))),
        };
        known = store.counter_mark(BlockNo(3)).await?;
        same(known, Some(winner))?;
    }
    // Commits of events alone go on beside it.
    Ok(store.commit(&[], Said::new().link()).await?)
}

pub(super) async fn marks_of_another_site_are_merged_by_maximum(store: Store) -> Outcome {
    found(&store, false).await?;
    let told = |block, epoch, end| (BlockNo(block), Witnessed { epoch: Epoch(epoch), end });
    store.witness_marks("north", &[told(2, 2, 1_024), told(1, 2, 9_000)]).await?;
    store.witness_marks("north", &[told(2, 2, 2_048), told(1, 2, 1_024)]).await?;
    store.witness_marks("other", &[told(2, 8, 1)]).await?;
    store.witness_marks("north", &[]).await?;
    same(store.witnessed_marks("north").await?, vec![told(1, 2, 9_000), told(2, 2, 2_048)])?;
    store.witness_marks("north", &[told(2, 4, 0), told(1, 1, 99_999)]).await?;
    same(store.witnessed_marks("north").await?, vec![told(1, 2, 9_000), told(2, 4, 0)])?;
    same(store.witnessed_marks("nobody").await?, Vec::new())
}
