//! This node's own files in `data_dir`: its name, and the last signed head of its audit chain.
//!
//! `node-id` makes the chain this node's: without it a new node, with a new chain, begins. That is also
//! the way on after a chain was found broken: move `node-id` away and keep the broken chain as evidence.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use async_trait::async_trait;

use super::Fault;
use crate::domain::{
    audit::{ChainTip, Checkpoint, NodeId},
    ports::{HeadWitness, Randomness, WitnessFailed},
};

const NODE_ID: &str = "node-id";
const HEAD: &str = "audit-head";

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

/// Keeps the last signed head in a file beside the database.
pub(super) struct HeadFile(PathBuf);

impl HeadFile {
    pub(super) fn of(data_dir: &Path) -> Self {
        Self(data_dir.join(HEAD))
    }

    fn failed(&self, error: &io::Error) -> WitnessFailed {
        WitnessFailed(format!("{}: {error}", self.0.display()))
    }
}

// A few hundred bytes, once a minute: not worth a thread.
#[async_trait]
impl HeadWitness for HeadFile {
    async fn last(&self) -> Result<Option<Checkpoint>, WitnessFailed> {
        let mut bytes = Vec::new();
        match fs::File::open(&self.0).and_then(|mut file| file.read_to_end(&mut bytes)) {
            Ok(_) => decode(&bytes).map(Some).ok_or_else(|| {
                let file = self.0.display();
                WitnessFailed(format!("{file} is not a signed head: restore it, or move it away"))
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.failed(&error)),
        }
    }

    async fn keep(&self, head: &Checkpoint) -> Result<(), WitnessFailed> {
        replace(&self.0, &encode(head)).map_err(|error| self.failed(&error))
    }
}

const MAGIC: [u8; 5] = *b"AMIH\x01";

fn encode(head: &Checkpoint) -> Vec<u8> {
    let Checkpoint { tip: ChainTip { node, sequence, hash }, at_ms, signature } = head;
    [&MAGIC[..], &node.0, &sequence.to_be_bytes(), hash, &at_ms.to_be_bytes(), signature].concat()
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
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
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
        let file = HeadFile::of(dir.path());
        assert_eq!(file.last().await, Ok(None));
        let tip = ChainTip { node: NodeId([1; 16]), sequence: 2, hash: [3; 32] };
        let head = Checkpoint { tip, at_ms: 4, signature: [5; 64] };
        file.keep(&head).await.unwrap();
        assert_eq!(file.last().await, Ok(Some(head)));
        fs::write(dir.path().join(HEAD), b"AMIH").unwrap();
        assert!(file.last().await.is_err());
    }
}
