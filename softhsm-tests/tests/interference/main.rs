//! Somebody with the keys of both sites' certificates sits between them, within TLS, and changes what the one that writes
//! sends to the one that follows. Every byte of a replicated block in turn, truncation, duplicates, another order, old
//! answers: what does not come from the writer is refused and named, and nothing of it is ever stored. Once he goes, both
//! sites end byte for byte alike.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

#[path = "../common/mod.rs"]
mod common;
mod middle;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use common::{
    client,
    fleet::{add, line, title},
    programs,
};
use kms_client::KmsClient;
use kms_core::{BlockCount, RecordKey};
use kms_proto::v1::{BlockRecord, BlockState, BlockUpdate, FollowChangesRequest};
use middle::{Middle, Passing, honest};
use prost::Message as _;
use softhsm_tests::{
    Pair, Role, Running, Setting, Site, SiteOptions, pair::said_by, settings::quoted,
};
use sqlx::{Connection as _, Row as _, SqliteConnection};
use tempfile::TempDir;
use tokio::{task::block_in_place, time::sleep};

/// More than a replicated block of one meter has bytes.
const BLOCKS: u32 = 1_024;
/// Blocks from here on have numbers of two bytes: their updates are of one length.
const FIRST: u32 = 128;
/// The longest wait for a refusal, and for two sites to be in step.
const PATIENCE: Duration = Duration::from_secs(90);

fn block_of(n: u64) -> u32 {
    BlockCount::new(BLOCKS).unwrap().block_of(&title(n)).0
}

/// One change of the bytes of an update.
#[derive(Clone, Copy, Debug)]
enum Change {
    /// This bit of this byte.
    Flip(usize, u8),
    /// Nothing from this byte on.
    Cut(usize),
}

impl Change {
    fn apply(self, bytes: &mut Vec<u8>) {
        match self {
            Self::Flip(at, bit) => bytes[at] ^= 1 << bit,
            Self::Cut(at) => bytes.truncate(at),
        }
    }
}

/// What became of the change of a block's update.
#[derive(Clone, Debug)]
struct Changed {
    change: Change,
    /// The block that it seems to be of now; `None`: it can't be read.
    named: Option<u32>,
    /// The stream that it went into last.
    stream: Option<u64>,
    /// It went into an answer with the whole block.
    in_whole: bool,
}

/// The changes, by the blocks whose updates they are for.
type Changes = Arc<Mutex<BTreeMap<u32, Changed>>>;

/// Two sites, and somebody in the way that the one that follows goes.
struct Stage {
    pair: Pair,
    running: (Running, Running),
    middle: Middle,
    writer: KmsClient,
    /// Meters so far, and the blocks that they are in.
    next: u64,
    used: BTreeSet<u32>,
    _dir: TempDir,
}

impl Stage {
    async fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("kms-between-").tempdir_in("/dev/shm").unwrap();
        let set = |key, value: &str| Setting { section: "peer", key, value: value.to_owned() };
        let settings = vec![
            set("heartbeat_ms", "300"),
            set("write_wait_ms", "0"),
            set("compare_interval_s", "5"),
            set("prove_interval_s", "60"),
            set("proof_age_max_s", "600"),
        ];
        let options = SiteOptions { settings, block_count: BLOCKS, ..SiteOptions::default() };
        let pair = Pair::make(dir.path(), &programs(), &options).unwrap();
        let middle = Middle::start(&pair.a, &pair.b).await;
        let kms_toml = &pair.b.places().kms_toml;
        let text = fs::read_to_string(kms_toml).unwrap();
        let (straight, through) = (
            format!("https://localhost:{}", pair.a.port()),
            format!("https://{}", middle.address()),
        );
        assert_eq!(text.matches(&quoted(&straight)).count(), 1);
        fs::write(kms_toml, text.replace(&straight, &through)).unwrap();
        let running = block_in_place(|| pair.start()).unwrap();
        let writer = client(&pair.a, Role::Dev).await;
        Self { pair, running, middle, writer, next: 0, used: BTreeSet::new(), _dir: dir }
    }

    /// A meter in a block that none was in.
    fn fresh(&mut self) -> u64 {
        loop {
            self.next += 1;
            let block = block_of(self.next);
            if block >= FIRST && self.used.insert(block) {
                return self.next;
            }
        }
    }

    /// Further meters in the block of `n`.
    fn beside(&mut self, n: u64) -> u64 {
        loop {
            self.next += 1;
            if block_of(self.next) == block_of(n) {
                return self.next;
            }
        }
    }

    async fn import(&self, n: u64) {
        add(&self.writer, &[line(n)]).await;
    }

    async fn in_step(&self) {
        until("the sites are in step", async || {
            contents(&self.pair.a).await == contents(&self.pair.b).await
        })
        .await;
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.pair.b.places().log).unwrap()
    }

    /// Refusals of this block in the follower's log.
    fn refusals(&self, block: u32) -> Vec<String> {
        refusals(&self.log(), block)
    }

    fn status(&self) -> serde_json::Value {
        let words = ["site", "status", "--json"];
        let said = block_in_place(|| said_by(&self.pair.b, "status", &words)).unwrap();
        serde_json::from_str(&said).unwrap()
    }

    fn following(&self) -> serde_json::Value {
        self.status()["replication"]["following"].clone()
    }

    /// Each of these changes befalls the updates of a block of its own, which nobody has yet. How they are named.
    async fn all_changed(&mut self, changes: Vec<Change>) -> BTreeMap<u32, (Changed, Vec<String>)> {
        let mut meters = Vec::new();
        let mut by_block = BTreeMap::new();
        for change in changes {
            let n = self.fresh();
            meters.push(line(n));
            let changed = Changed { change, named: None, stream: None, in_whole: false };
            by_block.insert(block_of(n), changed);
        }
        let changes: Changes = Arc::new(Mutex::new(by_block));
        self.middle.does(changing(Arc::clone(&changes)));
        add(&self.writer, &meters).await;
        until("each change is named", async || {
            // The log is long.
            sleep(Duration::from_millis(100)).await;
            self.is_each_named(&changes)
        })
        .await;
        let (log, all) = (self.log(), changes.lock().unwrap());
        let told = |(block, it): (&u32, &Changed)| {
            (*block, (it.clone(), refusals(&log, it.named.unwrap_or(*block))))
        };
        all.iter().map(told).collect()
    }

    fn is_each_named(&self, changes: &Changes) -> bool {
        let (log, all) = (self.log(), changes.lock().unwrap());
        all.iter().all(|(block, changed)| self.is_named(&log, *block, changed))
    }

    /// Its block is refused by name, as an update and as a whole; or its stream ended, since it can't be read.
    fn is_named(&self, log: &str, block: u32, changed: &Changed) -> bool {
        let Some(stream) = changed.stream else { return false };
        match changed.named {
            None => self.middle.has_ended(stream),
            Some(named) if named == block => changed.in_whole && !refusals(log, block).is_empty(),
            // Another block is refused in its place.
            Some(named) => !refusals(log, named).is_empty(),
        }
    }
}

/// The block that an update seems to be of; `None`: it is none.
fn block_named(update: &BlockUpdate) -> Option<u32> {
    let head =
        update.head.as_ref().filter(|head| (head.digest.len(), head.mac.len()) == (32, 16))?;
    let head = Some(head).filter(|head| head.block < BLOCKS)?;
    let is_one = |it: &BlockRecord| it.mac.len() == 16 && RecordKey::from_bytes(&it.key).is_some();
    update.records.iter().all(is_one).then_some(head.block)
}

/// Refusals of this block in a log.
fn refusals(log: &str, block: u32) -> Vec<String> {
    let mark = format!("a block of the peer is not taken over block={block} reason=");
    let told = log.lines().filter_map(|line| line.split_once(&mark));
    told.map(|(_, reason)| reason.to_owned()).collect()
}

/// Changes the updates of each block in its way. Behind one that can't be read nothing comes in its stream, and it does
/// not come twice: others are behind it.
fn changing(changes: Changes) -> impl FnMut(Passing) -> Vec<Vec<u8>> + Send + 'static {
    let mut over = BTreeSet::new();
    move |passing| {
        let Passing { stream, whole, update } = &passing;
        let block = update.head.as_ref().unwrap().block;
        let mut changes = changes.lock().unwrap();
        let Some(changed) = changes.get_mut(&block) else { return honest(passing) };
        let was_unread = changed.stream.is_some() && changed.named.is_none();
        if !*whole && (was_unread || over.contains(stream)) {
            return Vec::new();
        }
        let mut bytes = update.encode_to_vec();
        changed.change.apply(&mut bytes);
        let read = BlockUpdate::decode(&bytes[..]).ok();
        assert!(read.as_ref() != Some(update), "{changed:?} changed nothing of {update:?}");
        let named = read.as_ref().and_then(block_named);
        match whole {
            true => changed.in_whole = true,
            false => {
                changed.stream = Some(*stream);
                changed.named = named;
                if named.is_none() {
                    over.insert(*stream);
                }
            }
        }
        vec![bytes]
    }
}

async fn until<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let began = Instant::now();
    while !condition().await {
        assert!(began.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// Heads and records as they are stored, byte for byte.
async fn contents(site: &Site) -> Vec<String> {
    let url = format!("sqlite://{}", site.places().data.join("kms.db").display());
    let mut database = SqliteConnection::connect(&url).await.unwrap();
    let rows = sqlx::query(
        "SELECT block || '/' || secret_version || '/' || epoch || '/' || sequence || '/' || count || '/' || \
         hex(digest) || '/' || hex(mac) FROM blocks UNION ALL SELECT block || '/' || hex(key) || '/' || epoch || '/' || \
         sequence || '/' || hex(mac) || '/' || hex(body) FROM records ORDER BY 1",
    )
    .fetch_all(&mut database)
    .await
    .unwrap();
    database.close().await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn invariant_5_nothing_of_a_block_that_was_changed_within_tls_is_stored_and_each_change_is_named()
 {
    let mut stage = Stage::start().await;
    let length = a_length(&mut stage).await;
    let before = contents(&stage.pair.b).await;
    let adopted = stage.following()["records_adopted"].clone();
    let flips = (0..length).map(|at| Change::Flip(at, (at * 5 % 8) as u8));
    let cuts = (0..length).step_by(5).map(Change::Cut);
    let told = stage.all_changed(flips.chain(cuts).collect()).await;
    assert_eq!(contents(&stage.pair.b).await, before, "something of it was stored");
    let following = stage.following();
    assert_eq!(following["records_adopted"], adopted, "{following}");
    let unread = told.values().filter(|(it, _)| it.named.is_none()).count();
    let reasons: BTreeSet<String> =
        told.values().flat_map(|(_, reasons)| reasons.iter().map(|it| kind(it))).collect();
    println!(
        "{length} bytes of an update, one bit of each flipped, and {} cuts: {} were read and refused by their blocks, \
         {unread} could not be read and ended their streams; named: {reasons:#?}",
        told.len() - length,
        told.len() - unread
    );
    for reason in ["head is not this block's", "is not what the peer's writer wrote"] {
        assert!(reasons.iter().any(|it| it.contains(reason)), "{reason}: {reasons:?}");
    }
    stage.he_goes().await;
}

/// A reason without its numbers.
fn kind(reason: &str) -> String {
    let words =
        reason.split_whitespace().filter(|word| !word.contains(|it: char| it.is_ascii_digit()));
    words.collect::<Vec<_>>().join(" ")
}

/// The length of an update of one meter, as the protocol has it.
async fn a_length(stage: &mut Stage) -> usize {
    let (n, length) = (stage.fresh(), Arc::<Mutex<usize>>::default());
    let seen = Arc::clone(&length);
    stage.middle.does(move |passing| {
        let sent = honest(passing);
        *seen.lock().unwrap() = sent[0].len();
        sent
    });
    stage.import(n).await;
    stage.in_step().await;
    let length = *length.lock().unwrap();
    assert!(length > 200, "{length}");
    length
}

impl Stage {
    /// From now on all is passed on as it is: both sites are alike before long, and nothing is wrong any more.
    async fn he_goes(self) {
        self.middle.does(honest);
        self.in_step().await;
        until("nothing is refused any more", async || self.following()["refused_count"] == 0).await;
        let (a, b) = self.running;
        a.stop().unwrap();
        b.stop().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn invariant_6_updates_twice_in_another_order_or_again_later_change_nothing_and_old_ones_are_named()
 {
    let mut stage = Stage::start().await;
    a_length(&mut stage).await;
    let adopted = |stage: &Stage| stage.following()["records_adopted"].as_u64().unwrap();

    // Each twice: written once.
    let before = adopted(&stage);
    stage.middle.does(|passing| {
        let sent = honest(passing);
        [sent.clone(), sent].concat()
    });
    for _ in 0..20 {
        let n = stage.fresh();
        stage.import(n).await;
    }
    stage.in_step().await;
    assert_eq!(adopted(&stage), before + 20);

    // Other blocks first: each stands for itself.
    let held = Arc::<Mutex<Vec<Vec<u8>>>>::default();
    let keeps = Arc::clone(&held);
    stage.middle.does(move |passing| {
        let mut held = keeps.lock().unwrap();
        held.extend(honest(passing));
        match held.len() {
            10 => std::mem::take(&mut *held).into_iter().rev().collect(),
            _ => Vec::new(),
        }
    });
    for _ in 0..10 {
        let n = stage.fresh();
        stage.import(n).await;
    }
    stage.in_step().await;

    another_order(&mut stage).await;
    again_later(&mut stage).await;
    stage.he_goes().await;
}

/// A block's second change comes before its first, which the writer was made to believe is stored.
async fn another_order(stage: &mut Stage) {
    let (first, kept) = (stage.fresh(), Arc::<Mutex<Vec<BlockUpdate>>>::default());
    let (second, block) = (stage.beside(first), block_of(first));
    let keeps = Arc::clone(&kept);
    stage.middle.does(move |passing| {
        let mut kept = keeps.lock().unwrap();
        match passing.whole {
            // Nothing that would mend it.
            true => Vec::new(),
            false if kept.is_empty() => {
                kept.push(passing.update);
                Vec::new()
            }
            false => honest(passing),
        }
    });
    let before = contents(&stage.pair.b).await;
    stage.import(first).await;
    until("the first change is held", async || !kept.lock().unwrap().is_empty()).await;
    let head = kept.lock().unwrap()[0].head.clone().unwrap();
    assert_eq!(head.block, block);
    let stored = BlockState {
        block,
        epoch: head.epoch,
        sequence: head.sequence,
        digest: head.digest.clone(),
    };
    let said = FollowChangesRequest { stored: vec![stored], ..FollowChangesRequest::default() };
    stage.middle.say(&said);
    stage.import(second).await;
    until("the gap is named", async || {
        stage.refusals(block).iter().any(|reason| reason.contains("ask for all of it"))
    })
    .await;
    assert_eq!(contents(&stage.pair.b).await, before, "a change without the one before it");
    stage.middle.does(honest);
    stage.in_step().await;
}

/// What was sent once comes again when the block has gone on: as a change, and as the whole block.
async fn again_later(stage: &mut Stage) {
    let (first, kept) = (stage.fresh(), Arc::<Mutex<Option<BlockUpdate>>>::default());
    let (second, block) = (stage.beside(first), block_of(first));
    let keeps = Arc::clone(&kept);
    stage.middle.does(move |passing| {
        let head = passing.update.head.as_ref().unwrap();
        if head.block == block {
            keeps.lock().unwrap().get_or_insert_with(|| passing.update.clone());
        }
        honest(passing)
    });
    stage.import(first).await;
    stage.in_step().await;
    stage.import(second).await;
    stage.in_step().await;
    let old = kept.lock().unwrap().take().unwrap();

    // With another block's change.
    let again = old.clone();
    stage.middle.does(move |passing| vec![again.encode_to_vec(), honest(passing).remove(0)]);
    let other = stage.fresh();
    stage.import(other).await;
    let behind = |stage: &Stage| {
        stage.refusals(block).iter().filter(|reason| reason.contains("behind our")).count()
    };
    until("the old state is named", async || behind(stage) > 0).await;
    stage.in_step().await;
    until("it is no fault for ever", async || stage.following()["refused_count"] == 0).await;

    // In the place of the whole block that is asked for.
    let third = stage.beside(first);
    stage.middle.does(move |passing| match passing.whole {
        true => vec![old.encode_to_vec()],
        false => {
            let mut sent = honest(passing);
            let last = sent[0].len() - 1;
            sent[0][last] ^= 1;
            sent
        }
    });
    let before = contents(&stage.pair.b).await;
    stage.import(third).await;
    until("the change is named, then the old block", async || behind(stage) > 1).await;
    assert_eq!(contents(&stage.pair.b).await, before, "an old state, or a changed one");
}
