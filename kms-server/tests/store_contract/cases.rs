//! The cases. Each has a store to itself; its name is the sentence that it holds a store to.

use std::sync::Arc;

use super::{
    Said, Seen,
    made_up::{Scene, Step, fingerprint, meter, seal, title, tombstone},
    refused_as_conflict, refused_as_taken, refused_by, same,
};
use kms_core::{
    BlockCount, BlockNo, DomainId, DomainRecord, Epoch, MeterId, RecordKey, Sequence, SystemTitle,
    freshness::SignedHeadTable, site::peer::PeerKind,
};
use kms_server::store::{
    BlockChange, Founding, Positions, StoreError, StoredBlock, WriteStore, rules,
};

type Store = Arc<dyn WriteStore>;
type Outcome = Result<(), Seen>;

fn id(text: &str) -> Result<MeterId, Seen> {
    MeterId::new(text).map_err(|error| Seen(error.to_string()))
}

async fn found(store: &Store, text: &str) -> Result<Option<u64>, Seen> {
    let place = store.find_meter(&id(text)?).await?;
    // Of many at once it is the same, beside one that nobody has.
    let many = store.find_meters(&[id("nobody-s")?, id(text)?]).await?;
    same(many, place.clone().into_iter().collect())?;
    Ok(place.map(|place| u64::from_be_bytes(*place.system_title.as_bytes())))
}

async fn existing(store: &Store, block: u32) -> Result<StoredBlock, Seen> {
    let found = store.block(BlockNo(block)).await?;
    found.ok_or_else(|| Seen(format!("block {block} is not there")))
}

/// Those that live by their ids, the dead by their titles' last byte in brackets.
async fn holders(store: &Store, bytes: &[u8], limit: u32) -> Result<Vec<(u8, String)>, Seen> {
    let wanted: Vec<_> = bytes.iter().map(|byte| fingerprint(*byte)).collect();
    let found = store.holders_of(&wanted, limit).await?;
    let name = |title: SystemTitle, id: Option<MeterId>| match id {
        Some(id) => id.as_str().to_owned(),
        None => format!("({})", title.as_bytes()[7]),
    };
    let mut found: Vec<_> =
        found.into_iter().map(|(print, title, id)| (print.0[0], name(title, id))).collect();
    found.sort();
    Ok(found)
}

pub(super) async fn a_fresh_store_is_empty(store: Store) -> Outcome {
    same(store.domain().await?, None)?;
    same(store.heads().await?, Vec::new())?;
    same(store.block(BlockNo(0)).await?, None)?;
    same(store.count_meters().await?, 0)?;
    same(found(&store, "m-1").await?, None)
}

pub(super) async fn a_domain_comes_to_be_once(store: Store) -> Outcome {
    let first = DomainRecord {
        domain: DomainId([0xD0; 16]),
        blocks: BlockCount::DEFAULT,
        site: "Süd 'A'".into(),
        epoch: Epoch(2),
        kind: PeerKind::Even,
        canaries: vec![0, 0xFF, 0],
        created_ms: 1_700_000_000_000,
        signature: Some([0xE5; 64]),
    };
    // Its blocks come with it, each without a record, or nothing does.
    let mut scene = Scene::default();
    let blocks: Vec<BlockChange> = (0..70).map(|block| scene.steps(block, 2, &[])).collect();
    let twice = [blocks.clone(), blocks[..1].to_vec()].concat();
    let founding = Founding::new(first.clone(), twice, table(1));
    refused_by(store.create_domain(&founding).await, rules::BLOCK_ONCE)?;
    let mut gap = blocks.clone();
    gap[69].head.count = 1;
    let founding = Founding::new(first.clone(), gap, table(1));
    refused_by(store.create_domain(&founding).await, rules::COUNT)?;
    same((store.domain().await?, store.heads().await?), (None, Vec::new()))?;
    let founding = Founding::new(first.clone(), blocks, table(1));
    store.create_domain(&founding).await?;
    same(store.heads().await?.len(), 70)?;
    let mut positions = store.positions().await?;
    positions.at.sort_unstable_by_key(|(block, _)| *block);
    let at = founding.blocks.iter().map(|change| (change.head.block, change.head.position));
    same(positions, Positions { at: at.collect(), damaged: Vec::new(), complete: true })?;
    let second = DomainRecord { site: "other".into(), ..first.clone() };
    let second = Founding::new(second, Vec::new(), table(1));
    refused_as_taken(store.create_domain(&second).await, "the place of key domain")?;
    same(store.domain().await?, Some(first))?;
    same(store.head_table().await?, Some(table(1)))
}

fn table(number: u64) -> SignedHeadTable {
    SignedHeadTable { number, body: vec![0, number as u8, 0xFF, 0], signature: [0xE6; 64] }
}

pub(super) async fn an_old_domain_is_completed_once(store: Store) -> Outcome {
    let mut scene = Scene::default();
    let old = DomainRecord {
        domain: DomainId([0xD0; 16]),
        blocks: BlockCount::DEFAULT,
        site: "old".into(),
        epoch: Epoch(2),
        kind: PeerKind::Replica,
        canaries: vec![1],
        created_ms: 7,
        signature: None,
    };
    let mut founding = Founding::new(old.clone(), Vec::new(), table(1));
    founding.blocks = vec![scene.steps(1, 2, &[])];
    refused_as_taken(store.complete_domain(&founding).await, "the signature of key domain")?;
    store.create_domain(&founding).await?;
    same(store.domain().await?, Some(old.clone()))?;
    // Its head table is in the way: nothing of it is done.
    founding.domain.signature = Some([0xE5; 64]);
    founding.blocks = vec![scene.steps(2, 2, &[])];
    refused_as_taken(store.complete_domain(&founding).await, "the head table of key domain")?;
    same(store.domain().await?, Some(old))?;
    same(store.heads().await?.len(), 1)
}

pub(super) async fn a_head_table_is_replaced_only_by_who_knows_it(store: Store) -> Outcome {
    same(store.head_table().await?, None)?;
    same(store.put_head_table(Some(1), &table(2)).await?, false)?;
    same(store.put_head_table(None, &table(4)).await?, true)?;
    same(store.put_head_table(None, &table(5)).await?, false)?;
    same(store.put_head_table(Some(3), &table(5)).await?, false)?;
    same(store.put_head_table(Some(4), &table(5)).await?, true)?;
    same(store.put_head_table(Some(4), &table(6)).await?, false)?;
    same(store.head_table().await?, Some(table(5)))
}

pub(super) async fn a_block_comes_back_byte_for_byte_and_in_key_order(store: Store) -> Outcome {
    let mut scene = Scene::default();
    // Written last to first, with all of the bytes that a sloppy comparison gets wrong.
    let titles = [u64::MAX, 0x8000_0000_0000_0000, 0x61, 0x41, 0x0100, 0];
    let steps: Vec<Step> = titles
        .iter()
        .zip(["f", "e", "d", "c", "b", "a"])
        .map(|(title, id)| meter(*title, id, &[1, 2]))
        .collect();
    let mut change = scene.steps(7, 4, &steps);
    change.seals = vec![seal(1, 9), seal(1, 3)];
    store.commit(&[change.clone()], Said::new().link()).await?;

    let block = existing(&store, 7).await?;
    same(&block.head, &change.head)?;
    let mut seals = block.seals.clone();
    seals.sort_by_key(|seal| std::cmp::Reverse(seal.kek_id));
    same(seals, change.seals)?;
    let mut records: Vec<_> = change.records.into_iter().map(|change| change.record).collect();
    records.sort_by_key(|record| record.key);
    same(block.records, records)
}

pub(super) async fn a_block_in_part_has_those_that_were_asked_for(store: Store) -> Outcome {
    let mut scene = Scene::default();
    let meters: Vec<Step> = (0..150).map(tombstone).collect();
    let mut change = scene.steps(7, 2, &meters);
    change.seals = vec![seal(1, 1), seal(2, 1)];
    store.commit(&[change], Said::new().link()).await?;
    let all = existing(&store, 7).await?;
    let unknown = RecordKey::meter(&title(900));
    let keys: Vec<RecordKey> = all.records.iter().map(|record| record.key).collect();
    for asked in [&keys[..0], &keys[..1], &keys[3..6], &keys[20..84], &keys[9..74], &keys[..]] {
        let asked = [asked, &[unknown]].concat();
        let part = store.block_in_part(BlockNo(7), &asked).await?;
        let mut wanted = existing(&store, 7).await?;
        wanted.records.retain(|record| asked.contains(&record.key));
        same(part, Some(wanted))?;
    }
    same(store.block_in_part(BlockNo(7), &[]).await?.map(|part| part.records.len()), Some(0))?;
    same(store.block_in_part(BlockNo(8), &keys[..1]).await?, None)
}

pub(super) async fn heads_are_in_order_and_only_of_blocks_that_exist(store: Store) -> Outcome {
    let mut scene = Scene::default();
    let changes = [
        scene.steps(4_095, 1, &[meter(1, "a", &[])]),
        scene.steps(0, 1, &[meter(2, "b", &[])]),
        scene.steps(17, 1, &[]),
    ];
    store.commit(&changes, Said::new().link()).await?;
    let [last, first, middle] = changes.map(|change| change.head);
    same(store.heads().await?, vec![first.clone(), middle, last.clone()])?;
    // In order, whatever the order in which they are asked for; what is not there is left out.
    let asked = [BlockNo(4_095), BlockNo(1), BlockNo(0)];
    same(store.position(BlockNo(4_095)).await?, Some(last.position))?;
    same(store.position(BlockNo(1)).await?, None)?;
    same(store.heads_of(&asked).await?, vec![first, last])?;
    same(store.heads_of(&[]).await?, Vec::new())?;
    same(store.block(BlockNo(1)).await?, None)
}

pub(super) async fn a_change_replaces_the_record_and_leaves_the_others(store: Store) -> Outcome {
    let mut scene = Scene::default();
    let first = scene.steps(3, 1, &[meter(1, "a", &[]), meter(2, "b", &[])]);
    let second = scene.steps(3, 1, &[meter(1, "a", &[5])]);
    store.commit(std::slice::from_ref(&first), Said::new().link()).await?;
    store.commit(std::slice::from_ref(&second), Said::new().link()).await?;
    let block = existing(&store, 3).await?;
    same(block.head, second.head)?;
    same(block.seals, first.seals)?;
    let wanted = [&second.records[0].record, &first.records[1].record];
    same(block.records, wanted.map(Clone::clone).to_vec())
}

pub(super) async fn a_head_that_moved_is_a_conflict(store: Store) -> Outcome {
    let mut scene = Scene::default();
    let first = scene.steps(3, 1, &[meter(1, "a", &[])]);
    let mut other = scene.clone();
    store.commit(std::slice::from_ref(&first), Said::new().link()).await?;
    refused_as_conflict(store.commit(&[first], Said::new().link()).await)?;
    store.commit(&[scene.steps(3, 1, &[meter(2, "b", &[])])], Said::new().link()).await?;
    refused_as_conflict(
        store.commit(&[other.steps(3, 1, &[meter(3, "c", &[])])], Said::new().link()).await,
    )?;
    // The same sequence in another epoch is another place.
    let mut forked = scene.steps(3, 3, &[meter(4, "d", &[])]);
    forked.expected = forked.expected.map(|mut at| {
        at.epoch = Epoch(2);
        at
    });
    refused_as_conflict(store.commit(&[forked], Said::new().link()).await)?;
    // A block that does not exist has no head to extend.
    let mut absent = Scene::default().steps(9, 1, &[meter(9, "z", &[])]);
    absent.expected = Some(Default::default());
    refused_as_conflict(store.commit(&[absent], Said::new().link()).await)
}

pub(super) async fn of_two_writers_exactly_one_wins(store: Store) -> Outcome {
    let mut scene = Scene::default();
    store.commit(&[scene.steps(3, 1, &[meter(1, "a", &[])])], Said::new().link()).await?;
    for round in 2..12 {
        let mine = scene.clone().steps(3, 1, &[meter(round, "x", &[])]);
        let yours = scene.clone().steps(3, 1, &[meter(round, "x", &[]), meter(1, "a", &[])]);
        let both = tokio::join!(commit_apart(&store, mine), commit_apart(&store, yours));
        let winner: &[Step] = match both {
            (Ok(()), Err(StoreError::Conflict(_))) => &[meter(round, "x", &[])],
            (Err(StoreError::Conflict(_)), Ok(())) => &[meter(round, "x", &[]), meter(1, "a", &[])],
            other => return Err(Seen(format!("two writers got {other:?}"))),
        };
        let head = scene.steps(3, 1, winner).head;
        same(existing(&store, 3).await?.head, head)?;
        store.commit(&[scene.steps(3, 1, &[tombstone(round)])], Said::new().link()).await?;
    }
    Ok(())
}

/// Commits from another task, so that two of them meet.
async fn commit_apart(store: &Store, change: BlockChange) -> Result<(), StoreError> {
    let store = Arc::clone(store);
    let task = tokio::spawn(async move { store.commit(&[change], Said::new().link()).await });
    task.await.unwrap_or_else(|lost| Err(StoreError::Unreachable { reason: lost.to_string() }))
}

pub(super) async fn a_gap_or_a_number_twice_is_refused(store: Store) -> Outcome {
    let good = Scene::default().steps(3, 1, &[meter(1, "a", &[]), meter(2, "b", &[])]);
    let renumbered = |numbers: [u64; 2]| {
        let mut change = good.clone();
        for (record, number) in change.records.iter_mut().zip(numbers) {
            record.record.position.sequence = Sequence(number);
        }
        change
    };
    for numbers in [[1, 3], [1, 1], [2, 3], [2, 1], [0, 1], [u64::MAX, 1]] {
        refused_by(store.commit(&[renumbered(numbers)], Said::new().link()).await, rules::GAPLESS)?;
    }
    for sequence in [1, 3] {
        let mut change = good.clone();
        change.head.position.sequence = Sequence(sequence);
        refused_by(store.commit(&[change], Said::new().link()).await, rules::HEAD_SEQUENCE)?;
    }
    let mut change = good.clone();
    change.head.position.sequence = Sequence(u64::MAX);
    refused_by(store.commit(&[change], Said::new().link()).await, rules::NUMBER_FITS)?;
    same(store.heads().await?, Vec::new())?;
    store.commit(&[good], Said::new().link()).await.map_err(Seen::from)
}

pub(super) async fn epochs_never_fall(store: Store) -> Outcome {
    let mut scene = Scene::default();
    store.commit(&[scene.steps(3, 4, &[meter(1, "a", &[])])], Said::new().link()).await?;
    let next = scene.steps(3, 4, &[meter(2, "b", &[]), meter(3, "c", &[])]);
    let with_epochs = |epochs: [u64; 2], head: u64| {
        let mut change = next.clone();
        for (record, epoch) in change.records.iter_mut().zip(epochs) {
            record.record.position.epoch = Epoch(epoch);
        }
        change.head.position.epoch = Epoch(head);
        change
    };
    for (epochs, head) in [([3, 4], 4), ([6, 4], 6), ([4, 6], 4), ([4, 4], 3)] {
        refused_by(
            store.commit(&[with_epochs(epochs, head)], Said::new().link()).await,
            rules::EPOCH_FALLS,
        )?;
    }
    let rising = with_epochs([4, 6], 6);
    store.commit(std::slice::from_ref(&rising), Said::new().link()).await?;
    same(existing(&store, 3).await?.head, rising.head)
}

pub(super) async fn a_wrong_count_is_refused(store: Store) -> Outcome {
    let mut scene = Scene::default();
    let first = scene.steps(3, 1, &[meter(1, "a", &[]), meter(2, "b", &[])]);
    for count in [0, 1, 3] {
        let mut wrong = first.clone();
        wrong.head.count = count;
        refused_by(store.commit(&[wrong], Said::new().link()).await, rules::COUNT)?;
    }
    store.commit(&[first], Said::new().link()).await?;
    // One replaced, one buried, one new: three.
    let steps = [meter(1, "a", &[1]), tombstone(2), meter(3, "c", &[])];
    let second = scene.steps(3, 1, &steps);
    let mut wrong = second.clone();
    wrong.head.count = 2;
    refused_by(store.commit(&[wrong], Said::new().link()).await, rules::COUNT)?;
    store.commit(&[second], Said::new().link()).await?;
    let block = existing(&store, 3).await?;
    same((block.head.count, block.records.len()), (3, 3))
}

pub(super) async fn a_block_stands_in_a_commit_once(store: Store) -> Outcome {
    let mut scene = Scene::default();
    let first = scene.steps(3, 1, &[meter(1, "a", &[])]);
    let second = scene.steps(3, 1, &[meter(2, "b", &[])]);
    refused_by(store.commit(&[first, second], Said::new().link()).await, rules::BLOCK_ONCE)?;
    same(store.heads().await?, Vec::new())
}

pub(super) async fn a_seal_is_never_overwritten(store: Store) -> Outcome {
    let mut scene = Scene::default();
    store.commit(&[scene.steps(3, 1, &[meter(1, "a", &[])])], Said::new().link()).await?;
    let mut change = scene.steps(3, 1, &[meter(2, "b", &[])]);
    let mut other = seal(1, 7);
    other.sealed.push(1);
    change.seals = vec![other];
    refused_by(
        store.commit(std::slice::from_ref(&change), Said::new().link()).await,
        rules::SEAL_ONCE,
    )?;
    change.seals = vec![seal(1, 8), seal(2, 7)];
    store.commit(&[change], Said::new().link()).await?;
    let seals = existing(&store, 3).await?.seals;
    same(seals, vec![seal(1, 7), seal(1, 8), seal(2, 7)])
}

pub(super) async fn nothing_of_a_failed_commit_is_seen(store: Store) -> Outcome {
    let mut scene = Scene::default();
    let before: Vec<_> = (0..3).map(|no| scene.steps(no, 1, &[])).collect();
    store.commit(&before, Said::new().link()).await?;
    let heads = store.heads().await?;
    let good = [
        scene.steps(0, 1, &[meter(1, "a", &[1])]),
        scene.steps(1, 1, &[meter(2, "b", &[2])]),
        scene.steps(2, 1, &[meter(3, "c", &[3])]),
    ];
    // The last of three blocks is at fault, in each of the ways that only the database knows.
    let mut moved = good.clone();
    moved[2].expected = None;
    refused_as_conflict(store.commit(&moved, Said::new().link()).await)?;
    let mut miscounted = good.clone();
    miscounted[2].head.count = 9;
    refused_by(store.commit(&miscounted, Said::new().link()).await, rules::COUNT)?;
    let mut resealed = good.clone();
    resealed[2].seals = vec![seal(1, 7)];
    refused_by(store.commit(&resealed, Said::new().link()).await, rules::SEAL_ONCE)?;
    let mut clashing = good.clone();
    clashing[2].records[0].index = clashing[0].records[0].index.clone();
    refused_as_taken(store.commit(&clashing, Said::new().link()).await, "meter id")?;

    same(store.heads().await?, heads)?;
    for no in 0..3 {
        same(existing(&store, no).await?.records.len(), 0)?;
    }
    same(store.count_meters().await?, 0)?;
    same(holders(&store, &[1, 2, 3], 9).await?, Vec::new())?;
    store.commit(&good, Said::new().link()).await?;
    same(store.count_meters().await?, 3)
}

pub(super) async fn a_reader_sees_a_commit_whole_or_not_at_all(store: Store) -> Outcome {
    let mut scene = Scene::default();
    let steps: Vec<Step> = (1..40).map(tombstone).collect();
    store.commit(&[scene.steps(3, 1, &steps)], Said::new().link()).await?;
    let writer = {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            for _ in 0..40 {
                store.commit(&[scene.steps(3, 1, &steps)], Said::new().link()).await?;
            }
            Ok::<(), StoreError>(())
        })
    };
    while !writer.is_finished() {
        let block = existing(&store, 3).await?;
        let last = block.records.iter().map(|record| record.position).max();
        same(last, Some(block.head.position))?;
        tokio::task::yield_now().await;
    }
    writer.await.map_err(|lost| Seen(lost.to_string()))?.map_err(Seen::from)
}

pub(super) async fn a_tombstone_frees_the_id_and_keeps_the_record(store: Store) -> Outcome {
    let mut scene = Scene::default();
    store.commit(&[scene.steps(3, 1, &[meter(1, "a", &[7])])], Said::new().link()).await?;
    same(found(&store, "a").await?, Some(1))?;
    let buried = scene.steps(3, 1, &[tombstone(1)]);
    store.commit(std::slice::from_ref(&buried), Said::new().link()).await?;

    same(found(&store, "a").await?, None)?;
    same(store.count_meters().await?, 0)?;
    same(holders(&store, &[7], 9).await?, vec![(7, "(1)".to_owned())])?;
    same(existing(&store, 3).await?.records, vec![buried.records[0].record.clone()])?;
    // The id goes to another meter, the title comes back to life under another id.
    store.commit(&[scene.steps(4, 1, &[meter(2, "a", &[])])], Said::new().link()).await?;
    store.commit(&[scene.steps(3, 1, &[meter(1, "b", &[])])], Said::new().link()).await?;
    same((found(&store, "a").await?, found(&store, "b").await?), (Some(2), Some(1)))?;
    same(holders(&store, &[7], 9).await?, vec![(7, "b".to_owned())])?;
    // With the value that it had before.
    store
        .commit(&[scene.steps(3, 1, &[tombstone(1), meter(1, "c", &[7, 8])])], Said::new().link())
        .await?;
    store.commit(&[scene.steps(4, 1, &[meter(3, "d", &[7])])], Said::new().link()).await?;
    same(
        holders(&store, &[7, 8], 9).await?,
        [(7, "c"), (7, "d"), (8, "c")].map(|(n, id)| (n, id.to_owned())).to_vec(),
    )?;
    // The living come first.
    store.commit(&[scene.steps(3, 1, &[tombstone(1)])], Said::new().link()).await?;
    same(holders(&store, &[7], 1).await?, vec![(7, "d".to_owned())])
}

pub(super) async fn an_id_moves_from_the_dead_to_the_living_in_one_commit(store: Store) -> Outcome {
    let mut scene = Scene::default();
    store.commit(&[scene.steps(3, 1, &[meter(1, "a", &[7])])], Said::new().link()).await?;
    // The new owner's block comes first.
    let changes = [scene.steps(2, 1, &[meter(2, "a", &[7])]), scene.steps(3, 1, &[tombstone(1)])];
    store.commit(&changes, Said::new().link()).await?;
    same(found(&store, "a").await?, Some(2))?;
    same(holders(&store, &[7], 9).await?, vec![(7, "(1)".into()), (7, "a".into())])
}

pub(super) async fn an_id_belongs_to_one_meter(store: Store) -> Outcome {
    let mut scene = Scene::default();
    store.commit(&[scene.steps(3, 1, &[meter(1, "a", &[])])], Said::new().link()).await?;
    let mut elsewhere = scene.clone();
    refused_as_taken(
        store.commit(&[elsewhere.steps(4, 1, &[meter(2, "a", &[])])], Said::new().link()).await,
        "meter id",
    )?;
    let mut beside = scene.clone();
    refused_as_taken(
        store.commit(&[beside.steps(3, 1, &[meter(2, "a", &[])])], Said::new().link()).await,
        "meter id",
    )?;
    let mut at_once = scene.clone();
    let twins =
        [at_once.steps(5, 1, &[meter(5, "b", &[])]), at_once.steps(6, 1, &[meter(6, "b", &[])])];
    refused_as_taken(store.commit(&twins, Said::new().link()).await, "meter id")?;
    same(found(&store, "a").await?, Some(1))?;
    // Ids differ by case.
    store.commit(&[scene.steps(4, 1, &[meter(2, "A", &[])])], Said::new().link()).await?;
    same((found(&store, "a").await?, found(&store, "A").await?), (Some(1), Some(2)))
}

pub(super) async fn a_title_belongs_to_one_meter(store: Store) -> Outcome {
    let mut scene = Scene::default();
    store.commit(&[scene.steps(3, 1, &[meter(1, "a", &[])])], Said::new().link()).await?;
    let mut renamed = scene.clone();
    refused_as_taken(
        store.commit(&[renamed.steps(3, 1, &[meter(1, "b", &[])])], Said::new().link()).await,
        "system title",
    )?;
    let mut elsewhere = scene.clone();
    refused_as_taken(
        store.commit(&[elsewhere.steps(4, 1, &[meter(1, "a", &[])])], Said::new().link()).await,
        "system title",
    )?;
    same((found(&store, "a").await?, found(&store, "b").await?), (Some(1), None))
}

pub(super) async fn meters_are_listed_in_order_of_id_page_by_page(store: Store) -> Outcome {
    let mut scene = Scene::default();
    let steps = [
        meter(1, "m-2", &[]),
        meter(2, "m-10", &[]),
        meter(3, "M-1", &[]),
        meter(4, "m-1", &[]),
        meter(5, "~", &[]),
        meter(6, "!", &[]),
        meter(7, "gone", &[]),
    ];
    store.commit(&[scene.steps(3, 1, &steps[..4])], Said::new().link()).await?;
    store.commit(&[scene.steps(8, 1, &steps[4..])], Said::new().link()).await?;
    store.commit(&[scene.steps(8, 1, &[tombstone(7)])], Said::new().link()).await?;
    // As bytes compare: no locale, no numbers.
    let wanted = ["!", "M-1", "m-1", "m-10", "m-2", "~"];
    for limit in 1..8 {
        same(pages(&store, limit).await?, wanted.map(str::to_owned).to_vec())?;
    }
    same(store.list_meters(None, 0).await?, Vec::new())?;
    same(store.count_meters().await?, 6)
}

async fn pages(store: &Store, limit: u32) -> Result<Vec<String>, Seen> {
    let mut ids = Vec::new();
    let mut after = None;
    loop {
        let page = store.list_meters(after.as_ref(), limit).await?;
        if page.len() > limit as usize {
            return Err(Seen(format!("a page of {} where {limit} is the limit", page.len())));
        }
        let Some(last) = page.last() else { return Ok(ids) };
        after = Some(last.meter_id.clone());
        ids.extend(page.into_iter().map(|place| place.meter_id.as_str().to_owned()));
    }
}

pub(super) async fn holders_follow_the_fingerprints(store: Store) -> Outcome {
    let mut scene = Scene::default();
    let changes = [
        // One value twice in one meter is one holder.
        scene.steps(3, 1, &[meter(1, "a", &[1, 2, 1]), meter(2, "b", &[2])]),
        scene.steps(4, 1, &[meter(3, "c", &[2, 3])]),
    ];
    store.commit(&changes, Said::new().link()).await?;
    let owned = |list: &[(u8, &str)]| -> Vec<(u8, String)> {
        list.iter().map(|(byte, id)| (*byte, (*id).to_owned())).collect()
    };
    let all = holders(&store, &[1, 2, 9], 9).await?;
    same(all, owned(&[(1, "a"), (2, "a"), (2, "b"), (2, "c")]))?;
    // The limit is for each fingerprint.
    let few = holders(&store, &[1, 2, 3], 1).await?;
    same(few.iter().map(|(byte, _)| *byte).collect(), vec![1, 2, 3])?;
    store.commit(&[scene.steps(3, 1, &[meter(1, "a", &[4, 2])])], Said::new().link()).await?;
    let all = holders(&store, &[1, 2, 4], 9).await?;
    same(all, owned(&[(2, "a"), (2, "b"), (2, "c"), (4, "a")]))
}

pub(super) async fn an_index_that_changes_twice_in_a_commit_says_the_last(store: Store) -> Outcome {
    let mut scene = Scene::default();
    let steps = [meter(1, "a", &[1]), meter(1, "a", &[2]), meter(2, "b", &[3]), tombstone(2)];
    store.commit(&[scene.steps(3, 1, &steps)], Said::new().link()).await?;
    same(existing(&store, 3).await?.records.len(), 2)?;
    same(store.count_meters().await?, 1)?;
    same(holders(&store, &[1, 2, 3], 9).await?, vec![(2, "a".to_owned())])?;
    // Never written: of several changes of one record the last counts. Buried and brought back under another id.
    store
        .commit(&[scene.steps(3, 1, &[tombstone(1), meter(1, "z", &[2])])], Said::new().link())
        .await?;
    same((found(&store, "a").await?, found(&store, "z").await?), (None, Some(1)))?;
    let key = RecordKey::meter(&title(1));
    let kept = existing(&store, 3).await?.records.into_iter().find(|record| record.key == key);
    same(kept.map(|record| record.position.sequence), Some(Sequence(6)))
}
