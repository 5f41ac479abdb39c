//! Two sites in the log: what is adopted is said and signed for, and a promotion's table counts at once.

use std::sync::{Arc, Mutex};

use kms_core::{
    BlockNo, Epoch, Position,
    audit::{ChainTip, Checkpoint},
    block::BlockMark,
    freshness::{Freshness, HeadTable, NotFresh},
    ports::{HeadWitness, KnownTips, WitnessFailed},
    site::role::RoleChange,
};
use kms_server::{
    app::SystemClock,
    audit::{Audit, Config, Parts, Scope},
    hsm::Hsm,
    store::{
        AuditStore as _, AuditedStore as _, ReadStore as _, StoreError,
        sites::{Decided, DivergenceAsked, Resolution, RoleStep},
        sqlite::SqliteStore,
    },
};

use super::store_contract::{
    Scene,
    made_up::meter,
    site_scene::{
        self, BLOCKS, FOUNDED, Store, adoption, head, learnt, mark, peer, promotion, row,
    },
};
use super::support::{Place, begin_table, decode, entry, events, open_store, place};

/// Remembers what a table says, outside the database.
#[derive(Default)]
struct Known(Mutex<KnownTips>);

#[async_trait::async_trait]
impl HeadWitness for Known {
    async fn last(&self) -> Result<Option<Checkpoint>, WitnessFailed> {
        Ok(None)
    }
    async fn keep(&self, _: &Checkpoint) -> Result<(), WitnessFailed> {
        Ok(())
    }
    async fn known(&self) -> Result<KnownTips, WitnessFailed> {
        Ok(self.0.lock().unwrap().clone())
    }
    async fn keep_known(&self, known: &KnownTips) -> Result<(), WitnessFailed> {
        *self.0.lock().unwrap() = known.clone();
        Ok(())
    }
}

/// A process's worth of log over the site's database.
struct Process {
    store: Arc<SqliteStore>,
    audit: Arc<Audit>,
    freshness: Arc<Freshness>,
}

impl Process {
    async fn start(place_of: &Place, witness: &Arc<Known>) -> Self {
        let store = open_store(&place_of.path).await;
        begin_table(&*store, &place_of.signer).await;
        let second = std::time::Duration::from_secs(1);
        let parts = Parts {
            store: store.clone(),
            hsm: Hsm::new(place_of.signer.clone(), 2, second, second * 5),
            clock: Arc::new(SystemClock::new()),
            witness: witness.clone(),
        };
        let freshness = Arc::<Freshness>::default();
        let scope = Scope { freshness: freshness.clone(), ..place() };
        let audit = Audit::open(Config::default(), scope, parts).await.unwrap();
        Self { store, audit, freshness }
    }

    /// The table in the database, as somebody opens it who has the key.
    async fn table(&self, place_of: &Place) -> HeadTable {
        let signed = self.store.head_table().await.unwrap().unwrap();
        signed.open(&place().domain, &place_of.signer.key()).expect("the token signed it")
    }
}

/// A site's database, and where its blocks stand.
async fn found(place_of: &Place, even: bool) -> Scene {
    let store: Store = open_store(&place_of.path).await;
    let scene = site_scene::found(&store, even).await.unwrap();
    store.close().await;
    scene
}

#[tokio::test]
async fn an_adoption_says_where_its_blocks_stand_and_the_head_table_has_them() {
    let place_of = Place::new();
    let mut peers = found(&place_of, false).await;
    let process = Process::start(&place_of, &Arc::default()).await;
    let store: Store = process.store.clone();
    let mut adoptions = Vec::new();
    for block in [1, 3] {
        let theirs = peers.steps(block, FOUNDED, &[meter(block.into(), "a", &[7])]);
        adoptions.push(adoption(&head(&store, block).await.unwrap(), &theirs));
    }
    let marks: Vec<BlockMark> = adoptions.iter().map(|adoption| mark(&adoption.head)).collect();
    process.audit.adopt(adoptions, vec![entry(1), entry(2)]).await.unwrap();
    let said = decode(&events(&process.store).await);
    let heads: Vec<BlockMark> = said.into_iter().flat_map(|event| event.entry.heads).collect();
    assert_eq!(heads, marks);
    process.audit.sign_table(true).await;
    let table = process.table(&place_of).await;
    for mark in &marks {
        assert_eq!(table.heads[mark.block.0 as usize], (mark.position, mark.digest));
    }
    assert_eq!(process.audit.status().fault, None);
    // Refused, it is in no event, and the chain goes on.
    let before = process.audit.status().sequence;
    let stale =
        adoption(&head(&store, 2).await.unwrap(), &peers.steps(2, 9, &[meter(2, "b", &[])]));
    let refused = process.audit.adopt(vec![stale], vec![entry(3)]).await;
    assert!(matches!(refused, Err(StoreError::NotWriter(_))), "{refused:?}");
    assert_eq!(process.audit.status().sequence, before);
    process.audit.record(entry(4)).await.unwrap();
}

/// The step that a promotion makes, its table signed by the token: the former one with the new heads. Its
/// ends may be the former ones.
async fn signed_promotion(process: &Process, place_of: &Place, epoch: u64) -> RoleStep {
    let store: Store = process.store.clone();
    let mut step = promotion(&store, epoch).await.unwrap();
    let mut table = process.table(place_of).await;
    let there = table.number;
    table.number += 1;
    step.blocks.iter().for_each(|change| table.raise(&mark(&change.head)));
    step.table = Some((Some(there), place_of.signer.table(&table)));
    step
}

#[tokio::test]
async fn invariant_5_a_promotions_heads_are_the_newest_at_once_and_after_a_restart() {
    for restarts in [false, true] {
        promote_and_go_on(restarts).await;
    }
}

async fn promote_and_go_on(restarts: bool) {
    let place_of = Place::new();
    let witness = Arc::<Known>::default();
    let mut scene = found(&place_of, true).await;
    let mut process = Process::start(&place_of, &witness).await;
    let change = scene.steps(1, FOUNDED, &[meter(1, "a", &[7])]);
    let before = mark(&change.head);
    process.audit.commit(vec![change], vec![entry(1)]).await.unwrap();
    process.freshness.know(&before);
    process.audit.sign_table(true).await;
    // Not signed for yet when the role changes.
    let second = scene.steps(2, FOUNDED, &[meter(2, "b", &[7])]);
    process.freshness.know(&mark(&second.head));
    process.audit.commit(vec![second], vec![entry(2)]).await.unwrap();

    let step = signed_promotion(&process, &place_of, 4).await;
    let promoted: Vec<BlockMark> = step.blocks.iter().map(|change| mark(&change.head)).collect();
    let number = step.table.as_ref().unwrap().1.number;
    assert_eq!(promoted.len(), BLOCKS as usize);
    process.audit.change_role(step, vec![entry(3)]).await.unwrap();
    assert_eq!(process.store.role().await.unwrap(), row(4, true));
    // No event says it: the table does, and counts at once, in the process and outside the database.
    let said = decode(&events(&process.store).await);
    assert_eq!(said.last().unwrap().entry.heads, []);
    assert_eq!(witness.0.lock().unwrap().table, number);
    let is_newest = |freshness: &Freshness| {
        promoted.iter().all(|mark| freshness.newest(mark.block) == Some(mark.position))
    };
    assert!(is_newest(&process.freshness));
    assert_eq!(
        process.freshness.admit(&before),
        Err(NotFresh::Older(Position { epoch: Epoch(4), ..before.position }))
    );

    if restarts {
        process = Process::start(&place_of, &witness).await;
        assert!(is_newest(&process.freshness));
        assert_eq!((process.audit.status().fault, process.freshness.refusal()), (None, None));
    }

    // The log goes on from that table.
    let store: Store = process.store.clone();
    scene.stands(&head(&store, 1).await.unwrap());
    let change = scene.steps(1, 4, &[meter(1, "a", &[8])]);
    let newest = mark(&change.head);
    process.audit.commit(vec![change], vec![entry(4)]).await.unwrap();
    process.freshness.know(&newest);
    process.audit.sign_table(true).await;
    let table = process.table(&place_of).await;
    assert!(table.number > number, "{} after {number}", table.number);
    assert_eq!(table.heads[1], (newest.position, newest.digest));
    assert_eq!(table.heads[2], (promoted[2].position, promoted[2].digest));
    assert_eq!(process.audit.status().fault, None);
    let again = Process::start(&place_of, &witness).await;
    assert_eq!(again.freshness.newest(BlockNo(1)), Some(newest.position));
    assert_eq!((again.audit.status().fault, again.freshness.refusal()), (None, None));
}

#[tokio::test]
async fn a_promotion_over_a_table_that_was_signed_meanwhile_is_a_conflict_and_leaves_the_chain_whole()
 {
    let place_of = Place::new();
    let witness = Arc::<Known>::default();
    found(&place_of, true).await;
    let process = Process::start(&place_of, &witness).await;
    let stale = signed_promotion(&process, &place_of, 4).await;
    process.audit.record(entry(1)).await.unwrap();
    process.audit.sign_table(true).await;
    let before = process.audit.status().sequence;
    let refused = process.audit.change_role(stale, vec![entry(2)]).await;
    assert!(matches!(refused, Err(StoreError::Conflict(_))), "{refused:?}");
    assert_eq!(process.audit.status().sequence, before);
    let fresh = signed_promotion(&process, &place_of, 4).await;
    process.audit.change_role(fresh, vec![entry(3)]).await.unwrap();
    assert_eq!(process.audit.status().sequence, before + 1);
}

fn first(now: kms_core::site::peer::SignedPeer) -> kms_server::store::sites::PeerStep {
    kms_server::store::sites::PeerStep { expected: None, now }
}

#[tokio::test]
async fn roles_peers_and_decisions_are_written_with_their_events_or_not_at_all() {
    let place_of = Place::new();
    let mut scene = found(&place_of, true).await;
    let process = Process::start(&place_of, &Arc::default()).await;
    let store: Store = process.store.clone();
    let (audit, began) = (&process.audit, process.audit.status().sequence);
    audit.put_peer(first(peer("south", 1)), vec![entry(1)]).await.unwrap();
    let step = learnt(&store, RoleChange::Promotion, 3).await.unwrap();
    audit.change_role(step, vec![entry(2)]).await.unwrap();
    let refused = scene.steps(1, FOUNDED, &[meter(1, "a", &[])]);
    let refused = audit.commit(vec![refused], vec![entry(3)]).await;
    assert!(matches!(refused, Err(StoreError::NotWriter(_))), "{refused:?}");
    let mut divergent = kms_server::store::sites::Divergent {
        block: BlockNo(1),
        record: scene.steps(1, FOUNDED, &[meter(1, "a", &[])]).records.remove(0).record,
        site: "north".to_owned(),
        at_ms: 7,
        decided: None,
    };
    audit.put_divergence(vec![divergent.clone()], vec![entry(4)]).await.unwrap();
    divergent.decided =
        Some(Decided { resolution: Resolution::Discarded, at_ms: 9, by: "somebody".to_owned() });
    audit.put_divergence(vec![divergent.clone()], vec![entry(5)]).await.unwrap();
    assert_eq!(audit.status().sequence, began + 4);
    assert_eq!(store.peers().await.unwrap(), [peer("south", 1)]);
    assert_eq!(store.divergence(DivergenceAsked::first(9)).await.unwrap(), [divergent.clone()]);
    // Nothing is done of which nothing is said.
    for refused in [
        audit.put_peer(first(peer("west", 1)), Vec::new()).await,
        audit.put_divergence(vec![divergent], Vec::new()).await,
        audit.change_role(learnt(&store, RoleChange::Demotion, 3).await.unwrap(), Vec::new()).await,
    ] {
        assert!(matches!(refused, Err(StoreError::AuditNotWritten { .. })), "{refused:?}");
    }
    assert_eq!(
        (store.peers().await.unwrap().len(), store.role().await.unwrap()),
        (1, row(3, false))
    );
    assert_eq!(process.audit.status().fault, None);
    let tip: ChainTip = process.store.audit_chains().await.unwrap()[0];
    assert_eq!(tip.sequence, began + 4);
}
