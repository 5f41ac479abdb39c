//! The cases of a site that takes over what its peer has.

use super::{
    Said, Seen,
    arrival::id,
    made_up::{Scene, meter, seal, title, tombstone},
    refused, refused_as_conflict, refused_as_not_writer, refused_by, same,
    site_scene::{
        FOUNDED, Store, adoption, change_role, commit, found, head, learnt, other_record,
        promotion, row,
    },
};
use kms_core::{
    BlockNo, Epoch, Fingerprint, Head, Position, RecordKey, Sequence, StoredRecord,
    site::role::RoleChange,
};
use kms_server::store::{
    RecordChange, StoreError, StoredBlock, rules,
    sites::{BlockAdoption, BlockChanges, Decided, DivergenceAsked, Divergent, Resolution},
};

type Outcome = Result<(), Seen>;

async fn adopt(store: &Store, adoptions: &[BlockAdoption]) -> Result<(), StoreError> {
    store.adopt(adoptions, Said::new().link()).await
}

async fn block(store: &Store, block: u32) -> Result<StoredBlock, Seen> {
    let found = store.block(BlockNo(block)).await?;
    found.ok_or_else(|| Seen(format!("block {block} is not there")))
}

async fn titles_of(store: &Store, value: u8) -> Result<Vec<u64>, Seen> {
    let holders = store.holders_of(&[Fingerprint([value; 16])], 9).await?;
    Ok(holders.into_iter().map(|(_, title, _)| u64::from_be_bytes(*title.as_bytes())).collect())
}

async fn found_by(store: &Store, text: &str) -> Result<Option<u64>, Seen> {
    let place = store.find_meter(&id(text)?).await?;
    let many = store.find_meters(&[id(text)?, id("nobody-s")?]).await?;
    same(many.len(), usize::from(place.is_some()))?;
    Ok(place.map(|place| u64::from_be_bytes(*place.system_title.as_bytes())))
}

pub(super) async fn an_adopted_block_is_the_peers_byte_for_byte(store: Store) -> Outcome {
    let mut peers = found(&store, false).await?;
    let theirs = peers.steps(2, FOUNDED, &[meter(1, "a", &[7]), meter(2, "b", &[8, 9])]);
    adopt(&store, &[adoption(&head(&store, 2).await?, &theirs)]).await?;
    let there = block(&store, 2).await?;
    same(&there.head, &theirs.head)?;
    let records: Vec<StoredRecord> =
        theirs.records.iter().map(|change| change.record.clone()).collect();
    same(there.records, records)?;
    same((found_by(&store, "a").await?, titles_of(&store, 9).await?), (Some(1), vec![2]))?;
    // Numbers are the peer's, with gaps: a record that changed twice comes once. Seals come along.
    let twice = peers.steps(2, FOUNDED, &[meter(1, "a", &[6]), meter(1, "a", &[5])]);
    let mut second = adoption(&theirs.head, &twice);
    second.records.remove(0);
    second.seals = vec![seal(2, 9)];
    adopt(&store, std::slice::from_ref(&second)).await?;
    let there = block(&store, 2).await?;
    same((there.head.clone(), there.seals.len()), (twice.head, 2))?;
    same(titles_of(&store, 5).await?, vec![1])?;
    same((titles_of(&store, 6).await?, titles_of(&store, 7).await?), (Vec::new(), Vec::new()))?;
    // Once more it is for a state that is no longer there: nothing is written twice.
    refused_as_conflict(adopt(&store, &[second]).await)?;
    same(block(&store, 2).await?, there)
}

pub(super) async fn a_site_that_writes_adopts_nothing_and_nobody_adopts_an_unknown_epoch(
    store: Store,
) -> Outcome {
    let mut peers = found(&store, true).await?;
    let ours = head(&store, 1).await?;
    let theirs = peers.clone().steps(1, FOUNDED, &[meter(1, "a", &[])]);
    refused_as_not_writer(adopt(&store, &[adoption(&ours, &theirs)]).await, row(FOUNDED, true))?;
    change_role(&store, &learnt(&store, RoleChange::Promotion, 3).await?).await?;
    let theirs = peers.clone().steps(1, 5, &[meter(1, "a", &[])]);
    refused_as_not_writer(adopt(&store, &[adoption(&ours, &theirs)]).await, row(3, false))?;
    same(head(&store, 1).await?, ours.clone())?;
    let theirs = peers.steps(1, 3, &[meter(1, "a", &[])]);
    adopt(&store, &[adoption(&ours, &theirs)]).await?;
    same(head(&store, 1).await?, theirs.head)
}

pub(super) async fn an_adoption_for_another_state_is_a_conflict(store: Store) -> Outcome {
    let mut peers = found(&store, false).await?;
    let ours = head(&store, 1).await?;
    let theirs = peers.steps(1, FOUNDED, &[meter(1, "a", &[])]);
    for other in [
        Head { digest: [0xDD; 32], ..ours.clone() },
        Head { position: Position { epoch: Epoch(1), ..ours.position }, ..ours.clone() },
    ] {
        refused_as_conflict(adopt(&store, &[adoption(&other, &theirs)]).await)?;
    }
    // A block that is not there.
    let mut absent = adoption(&ours, &theirs);
    (absent.expected.block, absent.head.block) = (BlockNo(99), BlockNo(99));
    refused_as_conflict(adopt(&store, &[absent]).await)?;
    same(head(&store, 1).await?, ours)
}

/// What makes an adoption break a rule.
type Break<'a> = &'a dyn Fn(&mut BlockAdoption);

pub(super) async fn each_broken_rule_of_an_adoption_is_named(store: Store) -> Outcome {
    let mut peers = found(&store, false).await?;
    let ours = head(&store, 1).await?;
    let theirs = peers.steps(1, FOUNDED, &[meter(1, "a", &[]), meter(2, "b", &[])]);
    let good = adoption(&ours, &theirs);
    let record = theirs.records[0].record.clone();
    let broken: [(&str, Break<'_>); 11] = [
        (rules::BLOCK_SAME, &|one| one.head.block = BlockNo(2)),
        (rules::NUMBER_FITS, &|one| one.head.position.sequence = Sequence(u64::MAX)),
        (rules::HEAD_BACK, &|one| one.expected.position.sequence = Sequence(9)),
        (rules::HEAD_FORKED, &|one| {
            one.expected.position = one.head.position;
            one.expected.digest = [0xDD; 32];
        }),
        (rules::RECORD_BEHIND, &|one| one.records[0].record.position.sequence = Sequence(3)),
        (rules::RECORD_ONCE, &|one| one.records.push(one.records[0].clone())),
        (rules::RECORD_ONCE, &|one| one.gone.push(one.records[0].record.key)),
        (rules::ASIDE_WITHIN, &|one| one.set_aside.push(record.clone())),
        (rules::COUNT, &|one| one.head.count = 3),
        (rules::COUNT, &|one| drop(one.records.pop())),
        (rules::SEAL_ONCE, &|one| one.seals.push(seal(1, 7))),
    ];
    for (rule, change) in broken {
        let mut broken = good.clone();
        change(&mut broken);
        refused_by(adopt(&store, &[broken]).await, rule)?;
    }
    refused_by(adopt(&store, &[good.clone(), good.clone()]).await, rules::BLOCK_ONCE)?;
    same(head(&store, 1).await?, ours)?;
    same(store.audit_chains().await?, Vec::new())?;
    adopt(&store, &[good]).await.map_err(Seen::from)
}

pub(super) async fn an_adoption_that_fails_leaves_nothing(store: Store) -> Outcome {
    let mut peers = found(&store, true).await?;
    commit(&store, &mut peers, (1, FOUNDED), &[meter(1, "a", &[7])]).await?;
    let fork = peers.clone();
    let lost = commit(&store, &mut peers, (1, FOUNDED), &[meter(2, "b", &[8])]).await?;
    change_role(&store, &learnt(&store, RoleChange::Promotion, 3).await?).await?;
    let before = (block(&store, 1).await?, block(&store, 2).await?);
    let ours = head(&store, 1).await?;
    let mut whole = adoption(&ours, &fork.clone().steps(1, 3, &[meter(1, "a", &[9])]));
    whole.gone = vec![RecordKey::meter(&title(2))];
    whole.set_aside = vec![lost.records[0].record.clone()];
    // The second block's head moved: the first one stays as it is, and so does all that goes with it.
    let mut stale =
        adoption(&head(&store, 2).await?, &fork.clone().steps(2, 3, &[meter(3, "c", &[])]));
    stale.expected.digest = [0xDD; 32];
    refused_as_conflict(adopt(&store, &[whole.clone(), stale]).await)?;
    // Its events have no place.
    let said = Said::new();
    let behind = kms_core::audit::ChainTip { sequence: 7, ..said.link().behind };
    let (_, event) = behind.append(super::audit_cases::entry());
    let link = kms_server::store::ChainLink { behind, events: &[event] };
    refused(store.adopt(std::slice::from_ref(&whole), link).await, |error| {
        matches!(error, StoreError::AuditMoved(_))
    })?;
    same((block(&store, 1).await?, block(&store, 2).await?), before)?;
    same(store.divergence(DivergenceAsked::first(9)).await?, Vec::new())?;
    same((found_by(&store, "b").await?, titles_of(&store, 8).await?), (Some(2), vec![2]))?;
    same(titles_of(&store, 9).await?, Vec::new())?;
    adopt(&store, &[whole]).await.map_err(Seen::from)
}

pub(super) async fn what_a_fenced_site_wrote_is_set_aside_with_the_adoption(
    store: Store,
) -> Outcome {
    let mut ours = found(&store, true).await?;
    commit(&store, &mut ours, (1, FOUNDED), &[meter(1, "a", &[7])]).await?;
    let mut peers = ours.clone();
    // Past the fork: a key of the meter, another meter, and one that came and went.
    let beyond = [meter(1, "a", &[8]), meter(2, "b", &[9]), meter(3, "c", &[6]), tombstone(3)];
    commit(&store, &mut ours, (1, FOUNDED), &beyond).await?;
    change_role(&store, &learnt(&store, RoleChange::Promotion, 3).await?).await?;
    let theirs = peers.steps(1, 3, &[meter(1, "a", &[5])]);
    // A higher position in a lower epoch is behind.
    let mine = block(&store, 1).await?;
    same(mine.head.position.sequence > theirs.head.position.sequence, true)?;
    let mut whole = adoption(&mine.head, &theirs);
    whole.gone = [2, 3].map(|serial| RecordKey::meter(&title(serial))).to_vec();
    whole.set_aside = mine.records.clone();
    adopt(&store, &[whole]).await?;
    let there = block(&store, 1).await?;
    let record = theirs.records[0].record.clone();
    same((there.head, there.records), (theirs.head, vec![record]))?;
    let aside = store.divergence(DivergenceAsked::first(9)).await?;
    same(aside.iter().map(|one| one.record.clone()).collect(), mine.records)?;
    let known = |one: &Divergent| {
        (one.block, one.site.as_str(), one.at_ms, one.decided.clone())
            == (BlockNo(1), "north", super::audit_cases::SAID_AT, None)
    };
    same(aside.iter().all(known), true)?;
    same((found_by(&store, "a").await?, found_by(&store, "b").await?), (Some(1), None))?;
    same((titles_of(&store, 5).await?, titles_of(&store, 8).await?), (vec![1], Vec::new()))?;
    same(titles_of(&store, 9).await?, Vec::new())
}

pub(super) async fn a_row_that_is_not_the_peers_goes_and_a_damaged_one_is_replaced(
    store: Store,
) -> Outcome {
    let mut peers = found(&store, false).await?;
    let theirs = peers.steps(1, FOUNDED, &[meter(1, "a", &[7]), meter(2, "b", &[])]);
    // As after somebody changed the kind in a record's key, and the bytes of another one.
    let mut damaged = adoption(&head(&store, 1).await?, &theirs);
    let strange = RecordKey::from_bytes(&[9; 9]).ok_or_else(|| Seen("no key".to_owned()))?;
    damaged.records[0].record.key = strange;
    damaged.records[1].record.body = vec![1];
    adopt(&store, &[damaged]).await?;
    same(found_by(&store, "a").await?, None)?;
    // The same head: only the rows come.
    let mut repair = adoption(&theirs.head, &theirs);
    repair.gone = vec![strange];
    adopt(&store, &[repair]).await?;
    let records = theirs.records.iter().map(|change| change.record.clone());
    same(block(&store, 1).await?.records, records.collect())?;
    same((found_by(&store, "a").await?, found_by(&store, "b").await?), (Some(1), Some(2)))
}

/// A record of a meter that was set aside.
fn divergent(serial: u64, sequence: u64, resolution: Option<Resolution>) -> Divergent {
    let position = Position { epoch: Epoch(2), sequence: Sequence(sequence) };
    let key = RecordKey::meter(&title(serial));
    let body = vec![0, sequence as u8, 0xFF];
    let record = StoredRecord { key, position, secret_version: 3, body, mac: [8; 16] };
    let by = |resolution| Decided { resolution, at_ms: 100, by: "somebody".into() };
    let decided = resolution.map(by);
    Divergent { block: BlockNo(1), record, site: "süd".into(), at_ms: 99, decided }
}

pub(super) async fn divergence_is_kept_once_decided_once_and_listed_page_by_page(
    store: Store,
) -> Outcome {
    found(&store, true).await?;
    let all: Vec<Divergent> = [(1, 5), (1, 7), (2, 1), (3, 2), (3, 9)]
        .map(|(serial, sequence)| divergent(serial, sequence, None))
        .to_vec();
    let mut shuffled = all.clone();
    shuffled.reverse();
    for _ in 0..2 {
        store.put_divergence(&shuffled, Said::new().link()).await?;
    }
    for limit in 1..7 {
        let mut found: Vec<Divergent> = Vec::new();
        loop {
            let after = found.last().map(Divergent::name);
            let page = store.divergence(DivergenceAsked::open(after, limit)).await?;
            same(page.len() <= limit as usize, true)?;
            if page.is_empty() {
                break;
            }
            found.extend(page);
        }
        same(found, all.clone())?;
    }
    // Decided; neither a second decision nor its coming once more takes that back.
    for resolution in [Some(Resolution::Merged), None, Some(Resolution::Discarded)] {
        store.put_divergence(&[divergent(1, 7, resolution)], Said::new().link()).await?;
        let there = store.divergence(DivergenceAsked::first(9)).await?;
        same(there[1].clone(), divergent(1, 7, Some(Resolution::Merged)))?;
        same(there.len(), 5)?;
    }
    // What was decided is known, and no more among what waits.
    let waits = store.divergence(DivergenceAsked::open(None, 9)).await?;
    same((waits.len() as u64, store.count_undecided().await?), (4, 4))?;
    let of_site = [store.count_undecided_of("süd").await?, store.count_undecided_of("nord").await?];
    same(of_site, [4, 0])?;
    let of_block =
        |block| DivergenceAsked { block: Some(BlockNo(block)), ..DivergenceAsked::first(9) };
    same(store.divergence(of_block(1)).await?.len(), 5)?;
    same(store.divergence(of_block(2)).await?, Vec::new())?;
    // Two records at one place: a site that was rolled back wrote there twice.
    let mut other = divergent(1, 5, None);
    other.record.mac = [9; 16];
    store.put_divergence(std::slice::from_ref(&other), Said::new().link()).await?;
    same(store.divergence(of_block(1)).await?[1].clone(), other)
}

pub(super) async fn changes_after_a_position_are_those_and_in_order(store: Store) -> Outcome {
    let mut scene = found(&store, true).await?;
    // Keys in another order than their numbers; one of them changes twice.
    let steps = [meter(9, "i", &[]), meter(1, "a", &[]), meter(5, "e", &[]), meter(9, "i", &[3])];
    let change = commit(&store, &mut scene, (1, FOUNDED), &steps).await?;
    change_role(&store, &promotion(&store, 4).await?).await?;
    scene.stands(&head(&store, 1).await?);
    let last = commit(&store, &mut scene, (1, 4), &[meter(2, "b", &[])]).await?;
    let records: Vec<StoredRecord> = change.records[1..]
        .iter()
        .chain(&last.records)
        .map(|change| change.record.clone())
        .collect();
    let at = |epoch, sequence| Position { epoch: Epoch(epoch), sequence: Sequence(sequence) };
    for (after, left) in [
        (at(0, 0), 0),
        (at(FOUNDED, 0), 0),
        (at(FOUNDED, 2), 1),
        (at(FOUNDED, 4), 3),
        // Of the place between the epochs, and beyond all of them.
        (at(4, 4), 3),
        (at(4, 5), 4),
        (at(u64::MAX, u64::MAX), 4),
    ] {
        let found = store.changes_after(BlockNo(1), after).await?;
        let wanted = BlockChanges { head: last.head.clone(), records: records[left..].to_vec() };
        same(found, Some(wanted))?;
    }
    same(store.changes_after(BlockNo(99), at(0, 0)).await?, None)
}

pub(super) async fn records_that_are_no_meters_come_back_and_find_nobody(store: Store) -> Outcome {
    let mut scene = found(&store, true).await?;
    let mut change = scene.steps(1, FOUNDED, &[meter(1, "a", &[]), meter(2, "b", &[])]);
    let keys: [&[u8]; 2] = [&[7], &[8; RecordKey::LEN_MAX]];
    for (at, key) in keys.into_iter().enumerate() {
        let position = change.records[at].record.position;
        change.records[at] = other_record(key, position)?;
    }
    store.commit(std::slice::from_ref(&change), Said::new().link()).await?;
    let written: Vec<StoredRecord> =
        change.records.iter().map(|change| change.record.clone()).collect();
    same(block(&store, 1).await?.records, written.clone())?;
    same((store.count_meters().await?, store.list_meters(None, 9).await?.len()), (0, 0))?;
    // Taken over, they are the same.
    change_role(&store, &learnt(&store, RoleChange::Promotion, 3).await?).await?;
    let mut peers = Scene::default();
    peers.stands(&head(&store, 3).await?);
    let mut theirs = peers.steps(3, 3, &[meter(1, "a", &[]), meter(2, "b", &[])]);
    for (at, record) in written.iter().enumerate() {
        let position = theirs.records[at].record.position;
        theirs.records[at] = other_record(record.key.as_bytes(), position)?;
    }
    adopt(&store, &[adoption(&head(&store, 3).await?, &theirs)]).await?;
    let adopted: Vec<RecordChange> = theirs.records;
    let there = block(&store, 3).await?.records;
    same(there, adopted.into_iter().map(|change| change.record).collect())?;
    same(store.count_meters().await?, 0)
}

pub(super) async fn two_meters_may_claim_an_id_until_all_has_arrived(store: Store) -> Outcome {
    let mut peers = found(&store, false).await?;
    let first = peers.steps(1, FOUNDED, &[meter(1, "a", &[])]);
    let ours = [head(&store, 1).await?, head(&store, 2).await?];
    adopt(&store, &[adoption(&ours[0], &first)]).await?;
    // The id went to a meter of another block; that block comes first.
    peers.steps(1, FOUNDED, &[tombstone(1)]);
    let second = peers.steps(2, FOUNDED, &[meter(2, "a", &[])]);
    adopt(&store, &[adoption(&ours[1], &second)]).await?;
    same(found_by(&store, "a").await?.is_some(), true)?;
    same(store.count_meters().await?, 2)?;
    // Promoted in between, the site gives that id to nobody else, and works with both.
    let mut promoted = peers.clone();
    change_role(&store, &promotion(&store, 3).await?).await?;
    for block in [1, 2, 3] {
        promoted.stands(&head(&store, block).await?);
    }
    let third = promoted.clone().steps(3, 3, &[meter(3, "a", &[])]);
    super::refused_as_taken(store.commit(&[third], Said::new().link()).await, "meter id")?;
    commit(&store, &mut promoted, (1, 3), &[meter(1, "a", &[5])]).await?;
    commit(&store, &mut promoted, (2, 3), &[meter(2, "a", &[6])]).await?;
    same((titles_of(&store, 5).await?, titles_of(&store, 6).await?), (vec![1], vec![2]))?;
    store.commit(&[promoted.steps(1, 3, &[tombstone(1)])], Said::new().link()).await?;
    same((found_by(&store, "a").await?, store.count_meters().await?), (Some(2), 1))
}
