//! Sites that nobody signed for: domains, peers, role records and adoptions for a store, which verifies none.

use std::sync::Arc;

use super::{
    Said, Seen,
    made_up::{Scene, Step},
};
use kms_core::{
    BlockCount, BlockNo, DomainId, DomainRecord, Epoch, Head, Position, RecordKey, StoredRecord,
    block::BlockMark,
    counters::{allocator::Mark, mark::StoredMark},
    freshness::SignedHeadTable,
    site::{
        peer::{Peer, PeerKind, SignedPeer},
        role::{RoleChange, RoleRecord, SignedRoleRecord},
    },
};
use kms_server::store::{
    BlockChange, Founding, IndexEntry, RecordChange, WriteStore,
    sites::{BlockAdoption, RoleRow, RoleStep},
};

pub type Store = Arc<dyn WriteStore>;

/// The epoch that the domain is founded in: its founder is the even site.
pub const FOUNDED: u64 = 2;

/// Blocks of these domains.
pub const BLOCKS: u32 = 4;

pub fn domain(even: bool) -> DomainRecord {
    DomainRecord {
        domain: DomainId([0xD0; 16]),
        blocks: BlockCount::DEFAULT,
        site: if even { "north".into() } else { "süd".into() },
        epoch: Epoch(FOUNDED),
        kind: PeerKind::of_epochs(even),
        canaries: vec![1],
        created_ms: 7,
        signature: Some([0xE5; 64]),
    }
}

pub fn table(number: u64) -> SignedHeadTable {
    SignedHeadTable { number, body: vec![0, number as u8, 0xFF, 0], signature: [0xE6; 64] }
}

pub fn peer(site: &str, transport: u8) -> SignedPeer {
    let peer = Peer {
        domain: DomainId([0xD0; 16]),
        site: site.to_owned(),
        kind: PeerKind::Odd,
        signing: [4; 65],
        transport_block: vec![transport; 9],
        enrolled_ms: 12,
        former: Vec::new(),
        enrolled_in: None,
        tokens: None,
    };
    SignedPeer { peer, signature: [0xE7; 64] }
}

pub fn role_record(change: RoleChange, epoch: u64) -> SignedRoleRecord {
    let record = RoleRecord {
        domain: DomainId([0xD0; 16]),
        site: "north".to_owned(),
        change,
        epoch: Epoch(epoch),
        after: Epoch(epoch - 1),
        at_ms: 12,
        heads: vec![(Position::default(), [9; 32]); BLOCKS as usize],
    };
    SignedRoleRecord { record, signature: [0xE8; 64] }
}

pub const fn row(epoch: u64, writes: bool) -> RoleRow {
    RoleRow { epoch: Epoch(epoch), writes }
}

/// A domain with empty blocks; the scene stands where they stand.
pub async fn found(store: &Store, even: bool) -> Result<Scene, Seen> {
    let mut scene = Scene::default();
    let blocks = (0..BLOCKS).map(|block| scene.steps(block, FOUNDED, &[])).collect();
    let marks = (0..BLOCKS).map(|block| first_mark(block, FOUNDED)).collect();
    let founding = Founding { marks, ..Founding::new(domain(even), blocks, table(1)) };
    store.create_domain(&founding).await?;
    Ok(scene)
}

/// The mark that a block has from the beginning of an epoch on.
pub fn first_mark(block: u32, epoch: u64) -> StoredMark {
    let mark = Mark::first(BlockNo(block), Epoch(epoch));
    StoredMark { mark, secret_version: 1, mac: [0xF0 | epoch as u8; 16] }
}

/// The step by which this site begins to write in `epoch`: all heads as they stand, in that epoch.
pub async fn promotion(store: &Store, epoch: u64) -> Result<RoleStep, Seen> {
    let blocks = store.heads().await?.into_iter().map(|old| {
        let position = Position { epoch: Epoch(epoch), ..old.position };
        let head = Head { position, mac: [0xAA; 16], ..old };
        BlockChange { expected: Some(old.position), head, seals: Vec::new(), records: Vec::new() }
    });
    let blocks: Vec<BlockChange> = blocks.collect();
    let first = |change: &BlockChange| first_mark(change.head.block.0, epoch);
    let there = store.head_table().await?.map(|table| table.number);
    Ok(RoleStep {
        expected: store.role().await?,
        now: row(epoch, true),
        record: role_record(RoleChange::Promotion, epoch),
        marks: blocks.iter().map(first).collect(),
        blocks,
        left: Vec::new(),
        table: Some((there, table(there.unwrap_or(0) + 1))),
        released: None,
        ends: false,
    })
}

/// The step by which this site ends to write in `epoch`, or learns of what its peer did. Tells where the
/// blocks stand.
pub async fn learnt(store: &Store, change: RoleChange, epoch: u64) -> Result<RoleStep, Seen> {
    let heads = store.heads().await?;
    let mut record = role_record(change, epoch);
    record.record.heads = heads.into_iter().map(|head| (head.position, head.digest)).collect();
    let step = RoleStep::without_blocks(store.role().await?, row(epoch, false), record);
    Ok(RoleStep { ends: change == RoleChange::Demotion, ..step })
}

pub async fn change_role(store: &Store, step: &RoleStep) -> Result<(), Seen> {
    Ok(store.change_role(step, Said::new().link()).await?)
}

/// Commits `steps` to a block, in `epoch`.
pub async fn commit(
    store: &Store,
    scene: &mut Scene,
    (block, epoch): (u32, u64),
    steps: &[Step],
) -> Result<BlockChange, Seen> {
    let change = scene.steps(block, epoch, steps);
    store.commit(std::slice::from_ref(&change), Said::new().link()).await?;
    Ok(change)
}

pub fn mark(head: &Head) -> BlockMark {
    BlockMark { block: head.block, position: head.position, digest: head.digest }
}

/// The head of a block.
pub async fn head(store: &Store, block: u32) -> Result<Head, Seen> {
    let heads = store.heads().await?;
    let head = heads.into_iter().find(|head| head.block == BlockNo(block));
    head.ok_or_else(|| Seen(format!("block {block} is not there")))
}

/// The adoption of what a peer's `change` made of a block that stands here at `ours`.
pub fn adoption(ours: &Head, change: &BlockChange) -> BlockAdoption {
    BlockAdoption {
        expected: mark(ours),
        head: change.head.clone(),
        seals: Vec::new(),
        records: change.records.clone(),
        gone: Vec::new(),
        set_aside: Vec::new(),
    }
}

/// A record of a key of any kind.
pub fn other_record(key: &[u8], position: Position) -> Result<RecordChange, Seen> {
    let key = RecordKey::from_bytes(key).ok_or_else(|| Seen("no key".to_owned()))?;
    let body = vec![0, 0xFF, key.as_bytes().len() as u8];
    let record = StoredRecord { key, position, secret_version: 1, body, mac: [5; 16] };
    Ok(RecordChange { record, index: IndexEntry::Nothing })
}
