//! The cases of signed papers, and of records that a release can't read.

use super::{
    Seen,
    made_up::meter,
    same,
    site_scene::{FOUNDED, Store, commit, found},
};
use kms_core::{BlockNo, Epoch};
use kms_server::store::papers::{Paper, PaperKind};

type Outcome = Result<(), Seen>;

fn paper(kind: PaperKind, site: &str, place: (u64, u64), signer: u8) -> Paper {
    Paper {
        kind,
        site: site.to_owned(),
        place: (Epoch(place.0), place.1),
        body: vec![signer, place.0 as u8, place.1 as u8],
        signature: [7; 64],
        signer: [signer; 32],
    }
}

pub(super) async fn of_signed_papers_the_newest_of_each_kind_and_site_stays(
    store: Store,
) -> Outcome {
    same(store.papers().await?, Vec::new())?;
    let put = |kind, place, signer| {
        let (store, paper) = (store.clone(), paper(kind, "south", place, signer));
        async move { store.put_paper(&paper).await }
    };
    let (report, table) = (PaperKind::Readiness, PaperKind::HeadTable);
    same(put(report, (2, 5), 1).await?, true)?;
    for (place, taken) in [((2, 5), false), ((2, 4), false), ((1, 9), false), ((2, 6), true)] {
        same(put(report, place, 1).await?, taken)?;
    }
    // A higher epoch counts from anew, and so does another key: of a site with a new token.
    same(put(report, (3, 1), 1).await?, true)?;
    same(put(report, (2, 1), 2).await?, true)?;
    same(put(table, (2, 1), 1).await?, true)?;
    let other = paper(table, "north", (9, 9), 1);
    same(store.put_paper(&other).await?, true)?;
    let all = vec![paper(report, "south", (2, 1), 2), other, paper(table, "south", (2, 1), 1)];
    same(store.papers().await?, all)
}

pub(super) async fn records_that_begin_as_none_that_is_known_are_counted_and_named(
    store: Store,
) -> Outcome {
    let mut scene = found(&store, true).await?;
    commit(&store, &mut scene, (1, FOUNDED), &[meter(1, "a", &[]), meter(2, "b", &[])]).await?;
    commit(&store, &mut scene, (2, FOUNDED), &[meter(3, "c", &[])]).await?;
    let mut all = Vec::new();
    for block in [1, 2] {
        let stored = store.block(BlockNo(block)).await?;
        let stored = stored.ok_or_else(|| Seen(format!("block {block} is not there")))?;
        all.extend(stored.records.into_iter().map(|record| (BlockNo(block), record)));
    }
    let first = |n: usize| [all[n].1.body[0], all[n].1.body[1]];
    let strange = store.strange_records(&[[0xFF, 0xFF], [0xFE, 1]], 2).await?;
    same(strange.count, 3)?;
    let named = all.iter().take(2).map(|(block, record)| (*block, record.key)).collect();
    same(strange.some, named)?;
    let known = [first(0), first(1), first(2)];
    let strange = store.strange_records(&known, 2).await?;
    same((strange.count, strange.some), (0, Vec::new()))
}
