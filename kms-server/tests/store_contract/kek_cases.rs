//! The cases of site KEKs: which seals there are under two of them, and that none goes too early.

use super::{
    Said, Seen,
    made_up::{meter, seal},
    same,
    site_scene::{FOUNDED, Store, commit, found},
};
use kms_core::{
    BlockNo, DomainId,
    site::keks::{Kek, KekId, KekWish, Looked, SignedSiteKeks, SiteKeks},
};
use kms_server::store::{
    SealedSecret, StoreError,
    keks::{KEK_ROW, KekStep, SealsThen, Twins},
};

type Outcome = Result<(), Seen>;

/// What the scene's blocks are sealed under, and another one.
const FORMER: KekId = [7; 16];
const NEW: KekId = [8; 16];
const TWINS: Twins = Twins { new: NEW, former: FORMER };

/// A row that no token has signed: a store looks at no signature.
fn row(token: u8, sequence: u8) -> Result<SignedSiteKeks, Seen> {
    let wish = KekWish {
        domain: DomainId([1; 16]),
        site: "north".to_owned(),
        signing: [token; 65],
        in_use: Kek { id: FORMER, proof: vec![0, 1, 0xFF] },
        new: NEW,
        maker: [3; 16],
    };
    let keks =
        SiteKeks::ask(None, wish, u64::from(sequence)).map_err(|why| Seen(why.to_string()))?;
    Ok(SignedSiteKeks { keks, signature: [sequence; 64] })
}

fn step(expected: Option<u8>, now: SignedSiteKeks, seals: SealsThen) -> KekStep {
    KekStep { expected: expected.map(|byte| [byte; 64]), now, seals }
}

async fn put(store: &Store, step: KekStep) -> Result<(), StoreError> {
    store.put_site_keks(&step, Said::new().link()).await
}

fn taken(outcome: &Result<(), StoreError>) -> bool {
    matches!(outcome, Err(StoreError::Taken { what: KEK_ROW, .. }))
}

/// Two blocks, each sealed under the former KEK.
async fn two_blocks(store: &Store) -> Result<u64, Seen> {
    let mut scene = found(store, true).await?;
    for (block, id) in [(1, "a"), (2, "b")] {
        commit(store, &mut scene, (block, FOUNDED), &[meter(u64::from(block), id, &[])]).await?;
    }
    Ok(store.count_pairs(TWINS).await?.blocks)
}

/// A twin for each seal that has none.
async fn seal_all(store: &Store) -> Outcome {
    for pair in store.pairs(TWINS, None, 1_000).await? {
        if pair.twin.is_none() {
            let twin = SealedSecret { kek_id: NEW, ..pair.former };
            same(store.add_twin(pair.block, &FORMER, &twin).await?, true)?;
        }
    }
    Ok(())
}

pub(super) async fn a_row_of_site_keks_is_replaced_only_by_who_knows_it(store: Store) -> Outcome {
    found(&store, true).await?;
    same(store.site_keks().await?, Vec::new())?;
    let lone = step(Some(9), row(4, 1)?, SealsThen::Stay);
    same(taken(&put(&store, lone).await), true)?;
    same((store.site_keks().await?.len(), store.audit_chains().await?.len()), (0, 0))?;
    put(&store, step(None, row(4, 1)?, SealsThen::Stay)).await?;
    // Each token has one of its own.
    put(&store, step(None, row(3, 5)?, SealsThen::Stay)).await?;
    same(taken(&put(&store, step(None, row(4, 2)?, SealsThen::Stay)).await), true)?;
    same(store.site_keks().await?, vec![row(3, 5)?, row(4, 1)?])?;
    put(&store, step(Some(1), row(4, 2)?, SealsThen::Stay)).await?;
    same(taken(&put(&store, step(Some(1), row(4, 3)?, SealsThen::Stay)).await), true)?;
    same(store.site_keks().await?, vec![row(3, 5)?, row(4, 2)?])
}

pub(super) async fn a_secret_gets_its_twin_once_and_pairs_come_page_by_page(
    store: Store,
) -> Outcome {
    let blocks = two_blocks(&store).await?;
    let all = store.pairs(TWINS, None, 1_000).await?;
    same(all.iter().all(|pair| pair.twin.is_none() && pair.former.kek_id == FORMER), true)?;
    same(all.len() as u64, blocks)?;
    let mut paged = Vec::new();
    while let Some(pair) = {
        let after = paged
            .last()
            .map(|pair: &kms_server::store::keks::Pair| (pair.block, pair.former.secret_version));
        store.pairs(TWINS, after, 1).await?.pop()
    } {
        paged.push(pair);
    }
    same(paged, all)?;
    let twin = seal(1, 8);
    same(store.add_twin(BlockNo(1), &FORMER, &twin).await?, true)?;
    same(store.add_twin(BlockNo(1), &FORMER, &twin).await?, false)?;
    // Of a secret that has no seal under the former one any more there is none.
    same(store.add_twin(BlockNo(1), &[9; 16], &seal(1, 6)).await?, false)?;
    same(store.add_twin(BlockNo(1), &FORMER, &seal(2, 8)).await?, false)?;
    let of_first = store.pairs(TWINS, None, 1_000).await?;
    let with: Vec<BlockNo> = of_first
        .iter()
        .filter(|pair| pair.twin == Some(twin.clone()))
        .map(|pair| pair.block)
        .collect();
    same(with, vec![BlockNo(1)])?;
    let looked = Looked { blocks, blocks_sealed: 1, seals: blocks, proved: 0 };
    same(store.count_pairs(TWINS).await?, looked)
}

pub(super) async fn no_step_lets_a_seal_go_whose_secret_has_no_twin(store: Store) -> Outcome {
    let blocks = two_blocks(&store).await?;
    put(&store, step(None, row(4, 1)?, SealsThen::Stay)).await?;
    let seals = [SealsThen::HaveTwins(TWINS), SealsThen::Closed(TWINS), SealsThen::Gone(TWINS)];
    for then in seals {
        let refused = put(&store, step(Some(1), row(4, 2)?, then)).await;
        same(matches!(refused, Err(StoreError::Conflict(_))), true)?;
        same(store.site_keks().await?, vec![row(4, 1)?])?;
        same(store.count_pairs(TWINS).await?.seals, blocks)?;
    }
    seal_all(&store).await?;
    for (at, then) in (1..).zip(seals) {
        put(&store, step(Some(at), row(4, at + 1)?, then)).await?;
    }
    let looked = Looked { blocks, blocks_sealed: blocks, seals: 0, proved: 0 };
    same(store.count_pairs(TWINS).await?, looked)
}

pub(super) async fn a_seal_under_a_closed_kek_is_refused_and_nothing_comes_with_it(
    store: Store,
) -> Outcome {
    let mut scene = found(&store, true).await?;
    commit(&store, &mut scene, (1, FOUNDED), &[meter(1, "a", &[])]).await?;
    seal_all(&store).await?;
    put(&store, step(None, row(4, 1)?, SealsThen::Closed(TWINS))).await?;
    let before = store.block(BlockNo(1)).await?;
    for (kek, is_taken) in [(7, false), (8, true)] {
        let mut ahead = scene.clone();
        let mut change = ahead.steps(1, FOUNDED, &[meter(2, "b", &[])]);
        change.seals = vec![seal(2, kek)];
        let done = store.commit(&[change], Said::new().link()).await;
        if is_taken {
            done?;
            scene = ahead;
        } else {
            same(matches!(done, Err(StoreError::Conflict(BlockNo(1)))), true)?;
            same(&store.block(BlockNo(1)).await?, &before)?;
        }
    }
    drop(scene);
    Ok(())
}
