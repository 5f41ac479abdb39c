//! Blocks that were never sealed by anyone: bytes enough for a store, which checks no MAC.

use std::collections::{BTreeMap, BTreeSet};

use kms_core::{
    BlockNo, Epoch, Fingerprint, Head, MeterId, Position, RecordKey, Sequence, StoredRecord,
    SystemTitle,
};
use kms_server::store::{BlockChange, IndexEntry, RecordChange, SealedSecret};

/// One made-up change of one meter.
#[derive(Clone, Debug)]
pub struct Step {
    pub title: u64,
    /// `None`: a tombstone.
    pub id: Option<&'static str>,
    pub fingerprints: Vec<u8>,
    /// Those that it had before.
    pub former: Vec<u8>,
}

/// The meter `title` lives under `id`, with keys of these `fingerprints`.
pub fn meter(title: u64, id: &'static str, fingerprints: &[u8]) -> Step {
    Step { title, id: Some(id), fingerprints: fingerprints.to_vec(), former: Vec::new() }
}

/// The meter `title` is buried.
pub fn tombstone(title: u64) -> Step {
    Step { title, id: None, fingerprints: Vec::new(), former: Vec::new() }
}

/// Follows what blocks should be, and makes the next change of each: for tests of whatever needs a
/// store with something in it.
#[derive(Clone, Debug, Default)]
pub struct Scene {
    heads: BTreeMap<BlockNo, Position>,
    keys: BTreeMap<BlockNo, BTreeSet<RecordKey>>,
}

impl Scene {
    /// The next changes are of a site in this role: `block` is where its head says.
    pub fn stands(&mut self, head: &Head) {
        self.heads.insert(head.block, head.position);
    }

    /// A change of `block` by one meter without keys: `serial` is its title and, as text, its id.
    pub fn change(
        &mut self,
        block: u32,
        serial: u64,
    ) -> Result<BlockChange, kms_core::meter::BadMeterId> {
        let mut change = self.steps(block, 1, &[meter(serial, "placeholder", &[])]);
        let meter_id = MeterId::new(&format!("meter-{serial:07}"))?;
        for record in &mut change.records {
            record.index = IndexEntry::Meter {
                meter_id: meter_id.clone(),
                fingerprints: Vec::new(),
                former: Vec::new(),
            };
        }
        Ok(change)
    }

    /// The next change of `block`, by `steps`, in `epoch`. The scene moves on as if it succeeded.
    pub fn steps(&mut self, block: u32, epoch: u64, steps: &[Step]) -> BlockChange {
        let no = BlockNo(block);
        let expected = self.heads.get(&no).copied();
        let mut position = expected.unwrap_or_default();
        position.epoch = Epoch(epoch);
        let keys = self.keys.entry(no).or_default();
        let mut records = Vec::new();
        for step in steps {
            position.sequence = Sequence(position.sequence.0 + 1);
            let change = record_change(step, position);
            keys.insert(change.record.key);
            records.push(change);
        }
        let head = Head {
            block: no,
            secret_version: 1,
            position,
            count: keys.len() as u32,
            digest: [block as u8; 32],
            mac: [position.sequence.0 as u8; 16],
        };
        self.heads.insert(no, position);
        let seals = if expected.is_none() { vec![seal(1, 7)] } else { Vec::new() };
        BlockChange { expected, head, seals, records }
    }
}

/// A seal of `version` under the KEK `kek`.
pub fn seal(version: u32, kek: u8) -> SealedSecret {
    // Zeros first and last, for a database that takes bytes for text.
    SealedSecret { secret_version: version, kek_id: [kek; 16], sealed: vec![0, kek, 0xFF, 0] }
}

fn record_change(step: &Step, position: Position) -> RecordChange {
    let key = RecordKey::meter(&title(step.title));
    let body = [&step.title.to_be_bytes()[..], &position.sequence.0.to_be_bytes(), b"\0\xFF'\0"];
    let record = StoredRecord {
        key,
        position,
        secret_version: 1,
        body: body.concat(),
        mac: [step.title as u8; 16],
    };
    let values = |bytes: &[u8]| bytes.iter().map(|byte| fingerprint(*byte)).collect();
    let former = values(&step.former);
    let index = match step.id.and_then(|id| MeterId::new(id).ok()) {
        None => IndexEntry::Tombstone { former },
        Some(meter_id) => {
            IndexEntry::Meter { meter_id, fingerprints: values(&step.fingerprints), former }
        }
    };
    RecordChange { record, index }
}

pub fn title(serial: u64) -> SystemTitle {
    SystemTitle::new(serial.to_be_bytes())
}

pub fn fingerprint(byte: u8) -> Fingerprint {
    Fingerprint([byte; 16])
}
