//! The cases of a site's role: who writes, and how that changes.

use super::{
    Said, Seen,
    made_up::{meter, seal},
    refused, refused_as_conflict, refused_as_not_writer, refused_as_taken, refused_by, same,
    site_scene::{
        BLOCKS, FOUNDED, Store, change_role, commit, domain, found, head, learnt, peer, promotion,
        role_record, row, table,
    },
};
use kms_core::{
    Epoch, Head, Position, Sequence,
    site::{
        peer::{Peer, SignedPeer},
        restored::{RestoreMark, RolledBackBy, SignedRestoreMark},
        role::RoleChange,
    },
};
use kms_server::store::{
    BlockChange, Founding, StoreError, rules,
    sites::{PeerStep, RoleStep},
};

type Outcome = Result<(), Seen>;

pub(super) async fn a_site_begins_in_the_role_of_its_founding(store: Store) -> Outcome {
    refused(store.role().await.map(drop), |error| matches!(error, StoreError::Damaged(_)))?;
    same((store.role_records().await?, store.peers().await?), (Vec::new(), Vec::new()))?;
    // One that joins does not write, though the newest epoch has its parity: it has lost what it wrote.
    let mut founding = Founding::new(domain(true), Vec::new(), table(1));
    founding.role_records =
        vec![role_record(RoleChange::Promotion, 4), role_record(RoleChange::Promotion, 3)];
    founding.peers = vec![peer("b", 1), peer("Ä", 2), peer("a", 3)];
    let mark = RestoreMark {
        domain: founding.domain.domain,
        site: founding.domain.site.clone(),
        id: [5; 16],
        by: RolledBackBy::Rebuilt,
        at_ms: 9,
        epoch: Epoch(4),
        from: "rebuilt".to_owned(),
    };
    let mark = SignedRestoreMark { mark, signature: [7; 64] };
    founding.rebuilt = Some((mark.clone(), [8; 64]));
    store.create_domain(&founding).await?;
    same(store.role().await?, row(4, false))?;
    same(store.restore_state().await?.mark(), Some(mark))?;
    same(store.domain().await?.and_then(|domain| domain.signature), Some([8; 64]))?;
    let mut records = founding.role_records;
    records.reverse();
    same(store.role_records().await?, records)?;
    let sites = store.peers().await?.into_iter().map(|peer| peer.peer.site);
    same(sites.collect(), vec!["a".to_owned(), "b".to_owned(), "Ä".to_owned()])
}

pub(super) async fn a_site_that_does_not_write_refuses_changes_and_records_events(
    store: Store,
) -> Outcome {
    let mut scene = found(&store, false).await?;
    same(store.role().await?, row(FOUNDED, false))?;
    let change = scene.clone().steps(1, FOUNDED, &[meter(1, "a", &[])]);
    let refused = store.commit(std::slice::from_ref(&change), Said::new().link()).await;
    refused_as_not_writer(refused, row(FOUNDED, false))?;
    same(store.audit_chains().await?, Vec::new())?;
    same((head(&store, 1).await?.count, store.count_meters().await?), (0, 0))?;
    store.commit(&[], Said::new().link()).await?;
    same(store.audit_chains().await?.len(), 1)?;
    // Promoted, it takes them, in its epoch and in no other.
    change_role(&store, &promotion(&store, 3).await?).await?;
    for block in 0..BLOCKS {
        scene.stands(&head(&store, block).await?);
    }
    for epoch in [FOUNDED, 4, 5] {
        let mut change = scene.clone().steps(1, epoch.max(3), &[meter(1, "a", &[])]);
        change.head.position.epoch = Epoch(epoch.max(3));
        if epoch >= 3 {
            let refused = store.commit(&[change], Said::new().link()).await;
            refused_as_not_writer(refused, row(3, true))?;
        }
    }
    commit(&store, &mut scene, (1, 3), &[meter(1, "a", &[])]).await.map(drop)
}

pub(super) async fn a_promotion_takes_all_blocks_into_its_epoch_at_once(store: Store) -> Outcome {
    let mut scene = found(&store, true).await?;
    commit(&store, &mut scene, (2, FOUNDED), &[meter(1, "a", &[7])]).await?;
    let before = store.heads().await?;
    let demotion = learnt(&store, RoleChange::Demotion, FOUNDED).await?;
    change_role(&store, &demotion).await?;
    same(store.role().await?, row(FOUNDED, false))?;
    same(store.heads().await?, before.clone())?;
    let step = promotion(&store, 4).await?;
    change_role(&store, &step).await?;
    same(store.role().await?, row(4, true))?;
    let promoted = |old: &Head| {
        let position = Position { epoch: Epoch(4), ..old.position };
        Head { position, mac: [0xAA; 16], ..old.clone() }
    };
    same(store.heads().await?, before.iter().map(promoted).collect())?;
    same(store.head_table().await?, Some(table(2)))?;
    let records = vec![demotion.record, role_record(RoleChange::Promotion, 4)];
    same(store.role_records().await?, records)?;
    same(store.find_meter(&super::arrival::id("a")?).await?.is_some(), true)?;
    // A promotion stands before the demotion from it.
    change_role(&store, &learnt(&store, RoleChange::Demotion, 4).await?).await?;
    let changes = store.role_records().await?.into_iter();
    let changes = changes.map(|signed| (signed.record.epoch.0, signed.record.change)).collect();
    let wanted =
        vec![(2, RoleChange::Demotion), (4, RoleChange::Promotion), (4, RoleChange::Demotion)];
    same(changes, wanted)
}

/// What makes a change of role break a rule.
type Break<'a> = &'a dyn Fn(&mut RoleStep);

/// All that a change of role may touch.
async fn all(store: &Store) -> Result<impl PartialEq + std::fmt::Debug + use<>, Seen> {
    let roles = (store.role().await?, store.role_records().await?);
    Ok((roles, store.heads().await?, store.head_table().await?, store.audit_chains().await?))
}

pub(super) async fn a_refused_change_of_role_leaves_everything_as_it_was(store: Store) -> Outcome {
    let mut scene = found(&store, true).await?;
    commit(&store, &mut scene, (2, FOUNDED), &[meter(1, "a", &[7])]).await?;
    let before = all(&store).await?;
    let good = promotion(&store, 4).await?;
    let with = |change: &dyn Fn(&mut RoleStep)| {
        let mut step = good.clone();
        change(&mut step);
        step
    };
    let ask = async |step: RoleStep| store.change_role(&step, Said::new().link()).await;
    let stale = with(&|step| step.expected = row(3, false));
    refused_as_not_writer(ask(stale).await, row(FOUNDED, true))?;
    let moved = with(&|step| step.blocks[2].expected = Some(Position::default()));
    refused(ask(moved).await, |error| {
        matches!(error, StoreError::Conflict(_) | StoreError::Rule { .. })
    })?;
    refused_as_conflict(ask(with(&|step| step.table = Some((Some(7), table(8))))).await)?;
    refused_as_conflict(ask(with(&|step| step.table = Some((None, table(8))))).await)?;
    let broken: [(&str, Break<'_>); 12] = [
        (rules::ROLE_BLOCKS, &|step| drop((step.blocks.pop(), step.marks.pop()))),
        (rules::ROLE_BLOCKS, &|step| step.blocks.clear()),
        (rules::ROLE_BLOCKS, &|step| step.now.writes = false),
        (rules::ROLE_BLOCKS, &|step| step.blocks[1].head.position.epoch = Epoch(6)),
        (rules::BLOCK_ONCE, &|step| {
            step.blocks.push(step.blocks[0].clone());
            step.marks.push(step.marks[0]);
        }),
        (rules::HEAD_SEQUENCE, &|step| step.blocks[1].head.position.sequence = Sequence(9)),
        (rules::ROLE_RECORDS, &|step| step.blocks[1].head.digest = [0; 32]),
        (rules::ROLE_RECORDS, &|step| step.blocks[1].head.count += 1),
        (rules::ROLE_RECORDS, &|step| step.blocks[1].seals.push(seal(9, 9))),
        (rules::ROLE_TABLE, &|step| step.table = None),
        (rules::ROLE_RECORD, &|step| step.record = role_record(RoleChange::Promotion, 6)),
        (rules::NUMBER_FITS, &|step| {
            let most = Epoch(u64::MAX - 1);
            step.now.epoch = most;
            step.record.record.epoch = most;
            step.blocks.iter_mut().for_each(|change| change.head.position.epoch = most);
            step.marks.iter_mut().for_each(|stored| stored.mark.epoch = most);
        }),
    ];
    for (rule, change) in broken {
        refused_by(ask(with(change)).await, rule)?;
    }
    // Its event has no place.
    let said = Said::new();
    let nowhere = kms_core::audit::ChainTip { sequence: 7, ..said.link().behind };
    let (_, event) = nowhere.append(super::audit_cases::entry());
    let link = kms_server::store::ChainLink { behind: nowhere, events: &[event] };
    refused(store.change_role(&good, link).await, |error| {
        matches!(error, StoreError::AuditMoved(_))
    })?;
    same(all(&store).await? == before, true)?;
    change_role(&store, &good).await
}

pub(super) async fn a_demotion_tells_where_the_blocks_stand_or_is_a_conflict(
    store: Store,
) -> Outcome {
    let mut scene = found(&store, true).await?;
    let stale = learnt(&store, RoleChange::Demotion, FOUNDED).await?;
    commit(&store, &mut scene, (2, FOUNDED), &[meter(1, "a", &[7])]).await?;
    refused_as_conflict(store.change_role(&stale, Said::new().link()).await)?;
    same((store.role().await?, store.role_records().await?.len()), (row(FOUNDED, true), 0))?;
    change_role(&store, &learnt(&store, RoleChange::Demotion, FOUNDED).await?).await
}

pub(super) async fn a_promotion_leaves_the_blocks_of_which_nothing_is_known(
    store: Store,
) -> Outcome {
    found(&store, true).await?;
    let mut step = promotion(&store, 4).await?;
    let left = step.blocks.remove(1).head.block;
    step.marks.remove(1);
    step.left = vec![left];
    change_role(&store, &step).await?;
    let epochs = store.heads().await?.into_iter().map(|head| head.position.epoch.0).collect();
    same(epochs, vec![4, FOUNDED, 4, 4])
}

pub(super) async fn of_two_changes_of_role_exactly_one_wins(store: Store) -> Outcome {
    found(&store, true).await?;
    let (first, second) = (promotion(&store, 4).await?, promotion(&store, 6).await?);
    let (said, unsaid) = (Said::new(), Said::new());
    let (one, two) = tokio::join!(
        store.change_role(&first, said.link()),
        store.change_role(&second, unsaid.link())
    );
    let is_refused =
        |answer: &Result<(), StoreError>| matches!(answer, Err(StoreError::NotWriter(_)));
    let wanted = match (&one, &two) {
        (Ok(()), lost) if is_refused(lost) => row(4, true),
        (lost, Ok(())) if is_refused(lost) => row(6, true),
        both => return Err(Seen(format!("{both:?}"))),
    };
    same(store.role().await?, wanted)?;
    same(store.role_records().await?.len(), 1)?;
    same(store.heads().await?.iter().all(|head| head.position.epoch == wanted.epoch), true)
}

pub(super) async fn a_role_is_learnt_from_a_peers_record_once(store: Store) -> Outcome {
    let mut scene = found(&store, true).await?;
    let step = learnt(&store, RoleChange::Promotion, 3).await?;
    change_role(&store, &step).await?;
    same(store.role().await?, row(3, false))?;
    let change: BlockChange = scene.steps(1, FOUNDED, &[meter(1, "a", &[])]);
    refused_as_not_writer(store.commit(&[change], Said::new().link()).await, row(3, false))?;
    // The same once more is of a row that is no longer there, and its record is there already.
    refused_as_not_writer(store.change_role(&step, Said::new().link()).await, row(3, false))?;
    let again = RoleStep { expected: row(3, false), ..step.clone() };
    refused_as_taken(store.change_role(&again, Said::new().link()).await, "the role record")?;
    let falls = RoleStep { expected: row(3, false), now: row(2, false), ..step };
    refused_by(store.change_role(&falls, Said::new().link()).await, rules::EPOCH_FALLS)?;
    same((store.role().await?, store.role_records().await?.len()), (row(3, false), 1))
}

pub(super) async fn a_peer_is_enrolled_and_enrolled_anew(store: Store) -> Outcome {
    found(&store, true).await?;
    for step in [first(peer("west", 1)), first(peer("east", 2)), after(peer("west", 1), 3)] {
        store.put_peer(&step, Said::new().link()).await?;
    }
    same(store.peers().await?, vec![peer("east", 2), after(peer("west", 1), 3).now])?;
    same(store.audit_chains().await?.len(), 3)
}

/// As if this were the first that is known of it.
fn first(now: SignedPeer) -> PeerStep {
    PeerStep { expected: None, now }
}

/// The same peer, with another transport key and another signature.
fn after(before: SignedPeer, transport: u8) -> PeerStep {
    let peer = Peer { transport_block: vec![transport; 9], ..before.peer };
    let now = SignedPeer { peer, signature: [transport; 64] };
    PeerStep { expected: Some(before.signature), now }
}

pub(super) async fn a_peers_row_that_somebody_else_wrote_meanwhile_stays(store: Store) -> Outcome {
    found(&store, true).await?;
    let west = peer("west", 1);
    let lone = after(west.clone(), 2);
    let ask = async |step: PeerStep| store.put_peer(&step, Said::new().link()).await;
    refused_as_taken(ask(lone).await, "the row of the peer")?;
    same((store.peers().await?, store.audit_chains().await?.len()), (Vec::new(), 0))?;
    ask(first(west.clone())).await?;
    refused_as_taken(ask(first(after(west.clone(), 5).now)).await, "the row of the peer")?;
    // Two that read the same row.
    let (one, other) = (after(west.clone(), 3), after(west.clone(), 4));
    let (said, also) = (Said::new(), Said::new());
    let (one_done, other_done) =
        tokio::join!(store.put_peer(&one, said.link()), store.put_peer(&other, also.link()));
    let (there, refused) = match (one_done, other_done) {
        (Ok(()), refused) => (one.now, refused),
        (refused, done) => done.map(|()| (other.now, refused))?,
    };
    refused_as_taken(refused, "the row of the peer")?;
    same((store.peers().await?, store.audit_chains().await?.len()), (vec![there.clone()], 2))?;
    // The former row does not come back, either.
    refused_as_taken(ask(after(west, 6)).await, "the row of the peer")?;
    ask(after(there, 7)).await?;
    same(store.audit_chains().await?.len(), 3)
}

pub(super) async fn the_lock_of_the_follower_is_had(store: Store) -> Outcome {
    let lock = store.follower_lock().await?;
    let mut lock = lock.ok_or_else(|| Seen("nobody else has it".to_owned()))?;
    let lost = tokio::time::timeout(std::time::Duration::from_millis(1500), lock.until_lost());
    match lost.await {
        Err(_) => Ok(()),
        Ok(lost) => Err(Seen(format!("it is lost: {lost}"))),
    }
}
