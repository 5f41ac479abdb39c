//! This node's own files in `data_dir`: its name, the last signed head of its audit chain
//! (`audit-head`), the chain's end after each commit (`audit-tip`), the ends of all chains when the
//! head table was signed last (`audit-tips`), and the newest enrolment of each other site (`peers-seen`).
//!
//! `node-id` makes the chain this node's: without it a new node, with a new chain, begins. That is also
//! the way on after a chain was found broken: move `node-id` away and keep the broken chain as evidence.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use sha2::{Digest as _, Sha256};

use super::fault::Fault;
use kms_core::{
    audit::{ChainTip, Checkpoint, NodeId},
    ports::{HeadWitness, KnownTips, Randomness, WitnessFailed},
};

const NODE_ID: &str = "node-id";
const HEAD: &str = "audit-head";
const TIP: &str = "audit-tip";
const TIPS: &str = "audit-tips";
pub(super) const PEERS: &str = "peers-seen";

/// What a node knows of itself and of audit chains.
pub(super) const OWN_FILES: [&str; 5] = [HEAD, TIP, TIPS, NODE_ID, PEERS];

/// The name of this node; made if there is none.
pub(super) fn node_id(data_dir: &Path, randomness: &dyn Randomness) -> Result<NodeId, Fault> {
    let path = data_dir.join(NODE_ID);
    let not_writable = |source: io::Error| {
        let sentence = format!(
            "cannot read or write {}: give {} to the account that this service runs under \
             (chown ami_admin {}), or correct [site] data_dir: {source}",
            path.display(),
            data_dir.display(),
            data_dir.display()
        );
        Fault::Setting(sentence.into())
    };
    match fs::read_to_string(&path) {
        Ok(text) => {
            let bytes = hex::decode(text.trim()).ok().and_then(|bytes| bytes.try_into().ok());
            let sentence = || {
                format!(
                    "{} is not a node's name (32 hexadecimal digits): restore it, or move it away \
                     for a new node with an audit chain of its own",
                    path.display()
                )
            };
            bytes.map(NodeId).ok_or_else(|| Fault::Setting(sentence().into()))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut id = [0; 16];
            randomness.fill(&mut id).map_err(|error| Fault::Runtime(error.into()))?;
            let text = format!("{}\n", hex::encode(id));
            let made = fs::DirBuilder::new().recursive(true).mode(0o750).create(data_dir);
            made.and_then(|()| replace(&path, text.as_bytes())).map_err(not_writable)?;
            tracing::info!(node = %NodeId(id), "a new node: its audit chain begins");
            Ok(NodeId(id))
        }
        Err(error) => Err(not_writable(error)),
    }
}

/// Keeps what is known of audit chains in files beside the database. Those of another node are no
/// concern of ours: after `node-id` was moved away they stay behind.
pub(super) struct HeadFile {
    node: NodeId,
    head: PathBuf,
    tip: TipFile,
    tips: PathBuf,
}

impl HeadFile {
    pub(super) fn of(data_dir: &Path, node: NodeId) -> io::Result<Self> {
        let tip = TipFile::open(&data_dir.join(TIP), node)?;
        Ok(Self { node, head: data_dir.join(HEAD), tip, tips: data_dir.join(TIPS) })
    }

    /// Whether this node has seen a signed head table.
    pub(super) async fn knows_a_table(&self) -> Result<bool, WitnessFailed> {
        Ok(self.known().await?.table > 0)
    }

    fn failed(&self, error: &io::Error) -> WitnessFailed {
        WitnessFailed(format!("{}: {error}", self.head.display()))
    }
}

// A few hundred bytes, once a minute: not worth a thread.
#[async_trait]
impl HeadWitness for HeadFile {
    async fn last(&self) -> Result<Option<Checkpoint>, WitnessFailed> {
        let mut bytes = Vec::new();
        match fs::File::open(&self.head).and_then(|mut file| file.read_to_end(&mut bytes)) {
            Ok(_) => decode(&bytes).map(Some).ok_or_else(|| {
                let file = self.head.display();
                WitnessFailed(format!("{file} is not a signed head: restore it, or move it away"))
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.failed(&error)),
        }
    }

    async fn keep(&self, head: &Checkpoint) -> Result<(), WitnessFailed> {
        replace(&self.head, &encode(head)).map_err(|error| self.failed(&error))
    }

    fn note(&self, tip: &ChainTip) -> Result<(), WitnessFailed> {
        self.tip.write(tip).map_err(|error| self.failed(&error))
    }

    async fn known(&self) -> Result<KnownTips, WitnessFailed> {
        let mut known = match fs::read(&self.tips) {
            Ok(bytes) => {
                let file = self.tips.display();
                let broken = || {
                    let what = "does not hold ends of audit chains: restore it, or move it away";
                    WitnessFailed(format!("{file} {what}"))
                };
                let (node, known) = tips_of(&bytes).ok_or_else(broken)?;
                if node == self.node { known } else { KnownTips::default() }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => KnownTips::default(),
            Err(error) => return Err(self.failed(&error)),
        };
        let tip = self.tip.read().map_err(|error| self.failed(&error))?;
        known.tips.extend(tip);
        Ok(known)
    }

    async fn keep_known(&self, known: &KnownTips) -> Result<(), WitnessFailed> {
        let KnownTips { tips, table } = known;
        let mut bytes = [&TIPS_MAGIC[..], &self.node.0, &table.to_be_bytes()].concat();
        tips.iter().for_each(|tip| bytes.extend(tip_bytes(tip)));
        let sum = Sha256::digest(&bytes);
        bytes.extend(sum);
        replace(&self.tips, &bytes).map_err(|error| self.failed(&error))
    }
}

const TIPS_MAGIC: [u8; 5] = *b"AMIT\x01";
const TIP_LEN: usize = 16 + 8 + 32;
const SUM_LEN: usize = 32;

fn tip_bytes(tip: &ChainTip) -> Vec<u8> {
    [&tip.node.0[..], &tip.sequence.to_be_bytes(), &tip.hash].concat()
}

fn tip_of(bytes: &[u8]) -> Option<ChainTip> {
    let (node, rest) = bytes.split_first_chunk::<16>()?;
    let (sequence, rest) = rest.split_first_chunk::<8>()?;
    let hash = rest.try_into().ok()?;
    Some(ChainTip { node: NodeId(*node), sequence: u64::from_be_bytes(*sequence), hash })
}

/// The node of a file of known ends, and what the file holds.
fn tips_of(bytes: &[u8]) -> Option<(NodeId, KnownTips)> {
    let (bytes, sum) = bytes.split_last_chunk::<SUM_LEN>()?;
    let rest = bytes.strip_prefix(&TIPS_MAGIC)?;
    let (node, rest) = rest.split_first_chunk::<16>()?;
    let (table, rest) = rest.split_first_chunk::<8>()?;
    let tips = rest.chunks(TIP_LEN).map(tip_of).collect::<Option<Vec<_>>>()?;
    let known = KnownTips { tips, table: u64::from_be_bytes(*table) };
    (Sha256::digest(bytes)[..] == sum[..]).then_some((NodeId(*node), known))
}

/// Two places that are written in turn, each with its sum: a write that was torn leaves the other one.
/// Not synced: what is lost in a power cut is made up for by `audit-tips`, which is.
struct TipFile {
    node: NodeId,
    /// And the place to write next.
    file: Mutex<(fs::File, usize)>,
}

const PLACE_LEN: usize = TIP_LEN + SUM_LEN;

impl TipFile {
    fn open(path: &Path, node: NodeId) -> io::Result<Self> {
        let mut options = fs::OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = Self { node, file: Mutex::new((file.open(path)?, 0)) };
        if let Some((_, newest)) = file.newest()? {
            file.lock().1 = newest + 1;
        }
        Ok(file)
    }

    fn write(&self, tip: &ChainTip) -> io::Result<()> {
        let mut bytes = tip_bytes(tip);
        let sum = Sha256::digest(&bytes);
        bytes.extend(sum);
        let mut file = self.lock();
        let place = file.1 % 2;
        file.0.write_all_at(&bytes, (place * PLACE_LEN) as u64)?;
        file.1 = place + 1;
        Ok(())
    }

    fn read(&self) -> io::Result<Option<ChainTip>> {
        Ok(self.newest()?.map(|(tip, _)| tip))
    }

    /// The higher of the two that are this node's, and where it stands.
    fn newest(&self) -> io::Result<Option<(ChainTip, usize)>> {
        let file = self.lock();
        let mut newest: Option<(ChainTip, usize)> = None;
        for place in 0..2 {
            let mut bytes = [0; PLACE_LEN];
            match file.0.read_exact_at(&mut bytes, (place * PLACE_LEN) as u64) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => continue,
                Err(error) => return Err(error),
            }
            let (tip, sum) = bytes.split_at(TIP_LEN);
            if Sha256::digest(tip)[..] == *sum
                && let Some(tip) = tip_of(tip)
                && tip.node == self.node
                && newest.is_none_or(|(other, _)| tip.sequence > other.sequence)
            {
                newest = Some((tip, place));
            }
        }
        Ok(newest)
    }

    fn lock(&self) -> MutexGuard<'_, (fs::File, usize)> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const MAGIC: [u8; 5] = *b"AMIH\x01";

fn encode(head: &Checkpoint) -> Vec<u8> {
    let Checkpoint { tip: ChainTip { node, sequence, hash }, at_ms, signature } = head;
    [&MAGIC[..], &node.0, &sequence.to_be_bytes(), hash, &at_ms.to_be_bytes(), signature].concat()
}

/// The last signed head that is kept in `data_dir`, whoever's it is. Nothing is written.
pub(super) fn signed_head(data_dir: &Path) -> Option<Checkpoint> {
    decode(&fs::read(data_dir.join(HEAD)).ok()?)
}

fn decode(bytes: &[u8]) -> Option<Checkpoint> {
    let (magic, rest) = bytes.split_first_chunk::<5>()?;
    let (node, rest) = rest.split_first_chunk::<16>()?;
    let (sequence, rest) = rest.split_first_chunk::<8>()?;
    let (hash, rest) = rest.split_first_chunk::<32>()?;
    let (at_ms, signature) = rest.split_first_chunk::<8>()?;
    let tip =
        ChainTip { node: NodeId(*node), sequence: u64::from_be_bytes(*sequence), hash: *hash };
    let at_ms = u64::from_be_bytes(*at_ms);
    let signature = signature.try_into().ok()?;
    (*magic == MAGIC).then_some(Checkpoint { tip, at_ms, signature })
}

/// The old file or the new one, never half of either; on disk when this returns.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    let directory = path.parent().unwrap_or(Path::new("."));
    fs::File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::OperatingSystem;

    #[test]
    fn a_node_keeps_its_name_until_its_file_is_moved_away() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let first = node_id(&data, &OperatingSystem).unwrap();
        assert_eq!(node_id(&data, &OperatingSystem).unwrap(), first);
        fs::remove_file(data.join(NODE_ID)).unwrap();
        assert_ne!(node_id(&data, &OperatingSystem).unwrap(), first);
        fs::write(data.join(NODE_ID), "x").unwrap();
        let refused = node_id(&data, &OperatingSystem).unwrap_err().to_string();
        assert!(refused.contains("node-id is not a node's name"), "{refused}");
    }

    #[tokio::test]
    async fn a_head_comes_back_and_nothing_else_does() {
        let dir = tempfile::tempdir().unwrap();
        let file = HeadFile::of(dir.path(), NodeId([1; 16])).unwrap();
        assert_eq!(file.last().await, Ok(None));
        let tip = ChainTip { node: NodeId([1; 16]), sequence: 2, hash: [3; 32] };
        let head = Checkpoint { tip, at_ms: 4, signature: [5; 64] };
        file.keep(&head).await.unwrap();
        assert_eq!(file.last().await, Ok(Some(head)));
        fs::write(dir.path().join(HEAD), b"AMIH").unwrap();
        assert!(file.last().await.is_err());
    }

    #[tokio::test]
    async fn ends_of_chains_come_back_for_their_node_and_a_torn_write_leaves_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let (ours, other) = (NodeId([1; 16]), NodeId([2; 16]));
        let tip = |node, sequence| ChainTip { node, sequence, hash: [sequence as u8; 32] };
        let file = HeadFile::of(dir.path(), ours).unwrap();
        assert_eq!(file.known().await, Ok(KnownTips::default()));
        let known = KnownTips { tips: vec![tip(ours, 3), tip(other, 9)], table: 7 };
        file.keep_known(&known).await.unwrap();
        assert_eq!(file.known().await, Ok(known.clone()));
        for sequence in 4..9 {
            file.note(&tip(ours, sequence)).unwrap();
            let again = HeadFile::of(dir.path(), ours).unwrap().known().await.unwrap();
            assert_eq!((again.table, again.tips.last()), (7, Some(&tip(ours, sequence))));
        }
        // Places are taken in turn, after a start too.
        let file = HeadFile::of(dir.path(), ours).unwrap();
        file.note(&tip(ours, 9)).unwrap();
        let bytes = fs::read(dir.path().join(TIP)).unwrap();
        assert_eq!(bytes.len(), 2 * PLACE_LEN);
        for at in [0, PLACE_LEN] {
            let mut torn = bytes.clone();
            torn[at] ^= 1;
            fs::write(dir.path().join(TIP), &torn).unwrap();
            let left = HeadFile::of(dir.path(), ours).unwrap().known().await.unwrap();
            assert!([tip(ours, 8), tip(ours, 9)].contains(left.tips.last().unwrap()), "{left:?}");
        }
        fs::write(dir.path().join(TIP), [0; 40]).unwrap();
        assert_eq!(HeadFile::of(dir.path(), ours).unwrap().known().await, Ok(known));
        // Another node begins anew.
        let new = HeadFile::of(dir.path(), other).unwrap();
        assert_eq!(new.known().await, Ok(KnownTips::default()));
        fs::write(dir.path().join(TIPS), b"AMIT").unwrap();
        assert!(new.known().await.is_err());
    }
}
