//! Two sites: one writes at random, the other takes over its blocks at random times and in random order.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Said, Seen,
    made_up::{Scene, Step, fingerprint, title},
    same,
    site_scene::{BLOCKS, FOUNDED, Store, found, head, mark},
};
use kms_core::{BlockNo, MeterId, Position, RecordKey, SystemTitle};
use kms_server::store::{IndexEntry, RecordChange, StoreError, sites::BlockAdoption};

/// Names that move from meter to meter.
const IDS: [&str; 3] = ["a", "b", "c"];
const TITLES: u64 = 8;
const VALUES: u8 = 6;
const ROUNDS: u32 = 400;

pub(super) fn id(text: &str) -> Result<MeterId, Seen> {
    MeterId::new(text).map_err(|error| Seen(error.to_string()))
}

/// Numbers that repeat with their seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % most
    }
}

/// A meter's life so far, as its records tell it.
#[derive(Clone, Default)]
struct Life {
    id: Option<&'static str>,
    values: Vec<u8>,
    former: Vec<u8>,
}

impl Life {
    /// What happens next: it is born, gets other keys, or dies.
    fn next(&mut self, title: u64, dice: &mut Dice) -> Step {
        let values = (0..=dice.below(2)).map(|_| dice.below(VALUES.into()) as u8).collect();
        if self.id.is_some() && dice.below(2) == 0 {
            self.id = None;
            self.former.append(&mut self.values);
        } else {
            self.id = self.id.or(Some(IDS[dice.below(3) as usize]));
            self.values = values;
        }
        let Self { id, values, former } = self.clone();
        Step { title, id, fingerprints: values, former }
    }
}

/// The site that writes, and the index entries of all that it wrote.
struct Writer {
    store: Store,
    scene: Scene,
    lives: BTreeMap<u64, Life>,
    entries: BTreeMap<(RecordKey, Position), IndexEntry>,
}

impl Writer {
    /// One to three meters change in one commit, unless the writer's own rules refuse it.
    async fn write(&mut self, dice: &mut Dice) -> Result<bool, Seen> {
        let (mut scene, mut lives) = (self.scene.clone(), self.lives.clone());
        let mut steps: BTreeMap<u32, Vec<Step>> = BTreeMap::new();
        // Each once, as the keyring stages them.
        let titles: BTreeSet<u64> = (0..=dice.below(2)).map(|_| dice.below(TITLES)).collect();
        for title in titles {
            let step = lives.entry(title).or_default().next(title, dice);
            steps.entry((title % u64::from(BLOCKS)) as u32).or_default().push(step);
        }
        let changes: Vec<_> =
            steps.iter().map(|(block, steps)| scene.steps(*block, FOUNDED, steps)).collect();
        match self.store.commit(&changes, Said::new().link()).await {
            Err(StoreError::Taken { .. }) => return Ok(false),
            done => done?,
        }
        (self.scene, self.lives) = (scene, lives);
        let records = changes.into_iter().flat_map(|change| change.records);
        self.entries.extend(
            records.map(|change| ((change.record.key, change.record.position), change.index)),
        );
        Ok(true)
    }
}

/// Takes over a block as it stands at the writer now.
async fn follow(writer: &Writer, follower: &Store, block: u32) -> Result<bool, Seen> {
    let ours = head(follower, block).await?;
    let theirs = writer.store.changes_after(BlockNo(block), ours.position).await?;
    let theirs = theirs.ok_or_else(|| Seen(format!("block {block} is not there")))?;
    if theirs.head == ours {
        return Ok(false);
    }
    let record = |record: kms_core::StoredRecord| {
        let index = writer.entries.get(&(record.key, record.position)).cloned();
        let index = index.ok_or_else(|| Seen(format!("nobody wrote {:?}", record.key)))?;
        Ok(RecordChange { record, index })
    };
    let adoption = BlockAdoption {
        expected: mark(&ours),
        head: theirs.head,
        seals: Vec::new(),
        records: theirs.records.into_iter().map(record).collect::<Result<_, Seen>>()?,
        gone: Vec::new(),
        set_aside: Vec::new(),
    };
    follower.adopt(&[adoption], Said::new().link()).await?;
    Ok(true)
}

/// All that the indexes of a store say.
async fn index(store: &Store) -> Result<Vec<String>, Seen> {
    let mut said = vec![format!("{:?}", store.count_meters().await?)];
    for text in IDS {
        said.push(format!("{text}: {:?}", store.find_meter(&id(text)?).await?));
    }
    for serial in 0..TITLES {
        let title: SystemTitle = title(serial);
        said.push(format!("{serial}: {:?}", store.find_title(&title).await?));
    }
    said.push(format!("{:?}", store.list_meters(None, 99).await?));
    for value in 0..VALUES {
        said.push(format!("{value}: {:?}", store.holders_of(&[fingerprint(value)], 99).await?));
    }
    Ok(said)
}

pub(super) async fn in_whatever_order_blocks_arrive_the_index_is_the_writers(
    writer: Store,
    follower: Store,
) -> Result<(), Seen> {
    let scene = found(&writer, true).await?;
    found(&follower, false).await?;
    let mut dice = Dice(0x5EED);
    let mut writer =
        Writer { store: writer, scene, lives: BTreeMap::new(), entries: BTreeMap::new() };
    let (mut written, mut adopted, mut compared, mut claimed_twice) = (0, 0, 0, 0);
    for _ in 0..ROUNDS {
        written += u32::from(writer.write(&mut dice).await?);
        if dice.below(2) == 0 {
            let block = dice.below(BLOCKS.into()) as u32;
            adopted += u32::from(follow(&writer, &follower, block).await?);
            let listed = follower.list_meters(None, 99).await?;
            claimed_twice +=
                u32::from(listed.windows(2).any(|two| two[0].meter_id == two[1].meter_id));
        }
        if dice.below(10) == 0 {
            let first = dice.below(BLOCKS.into()) as u32;
            for nth in 0..BLOCKS {
                follow(&writer, &follower, (first + nth) % BLOCKS).await?;
            }
            compared += 1;
            for (said, wanted) in
                index(&follower).await?.into_iter().zip(index(&writer.store).await?)
            {
                same(said, wanted)?;
            }
            for block in (0..BLOCKS).map(BlockNo) {
                let theirs = writer.store.block(block).await?;
                same(follower.block(block).await?, theirs)?;
            }
        }
    }
    // Else it would show nothing.
    let shows = written > 100 && adopted > 50 && compared > 20 && claimed_twice > 0;
    let figures = format!(
        "{written} written, {adopted} adopted, {compared} compared, {claimed_twice} claimed twice"
    );
    if shows { Ok(()) } else { Err(Seen(figures)) }
}
