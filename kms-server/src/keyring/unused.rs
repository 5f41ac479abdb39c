//! Keys that no APDU is opened with: those of records that were set aside, and those that were declared compromised.
//! For the question why a meter's frames don't open. They lie in a piece of the arena of their own, which is wiped
//! when the answer is there. The token is not asked: the block is open.

use super::{
    error::KeyringError,
    opening::{Opener, Room},
    resident::{arena::Segment, scrub_stack},
};
use crate::store::sites::DivergenceAsked;
use kms_core::{
    KeyKind, KeyRecord, KeyState, MeterRecord, Protection, Record, RecordKey, SecuritySetup,
    SystemTitle, block::keys::BlockKeys,
};

/// Keys of one meter that are tried at most: two records' worth of a meter in the middle of a rotation.
const KEYS_MAX: usize = 32;
/// Records that were set aside in the meter's block and are looked through, at most.
const ROWS_MAX: u32 = 1_024;
/// Room for the value of a key.
const SLOT_LEN: usize = 32;

/// The reason why a key opens nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whence {
    /// Its record was set aside: the other site wrote it.
    SetAside,
    /// It was declared compromised.
    Compromised,
}

/// One of them.
pub struct UnusedKey<'a> {
    /// Its kind.
    pub kind: KeyKind,
    /// Its setup.
    pub setup: SecuritySetup,
    /// Its version, in the record that has it.
    pub version: u16,
    /// Why it opens nothing.
    pub whence: Whence,
    /// Its value, in the arena.
    pub bytes: &'a [u8],
}

struct Place {
    kind: KeyKind,
    setup: SecuritySetup,
    version: u16,
    whence: Whence,
    at: usize,
    len: usize,
}

/// All of one meter's, for as long as they are tried.
#[derive(Default)]
pub struct UnusedKeys {
    piece: Option<Segment>,
    places: Vec<Place>,
}

impl UnusedKeys {
    /// Those of a kind.
    pub fn of(&self, kind: KeyKind) -> impl Iterator<Item = UnusedKey<'_>> {
        let bytes = self.piece.as_ref().map_or(&[][..], Segment::bytes);
        let places = self.places.iter().filter(move |place| place.kind == kind);
        places.map(move |&Place { kind, setup, version, whence, at, len }| UnusedKey {
            kind,
            setup,
            version,
            whence,
            bytes: bytes.get(at..at + len).unwrap_or_default(),
        })
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Reads and unwraps those of a meter.
    pub(super) async fn read(opener: &Opener, title: &SystemTitle) -> Result<Self, KeyringError> {
        let block = opener.resident.blocks().block_of(title);
        let (unsealed, verified) = opener.verified(block).await?;
        let own = match verified.record(title) {
            Ok(Some(Record::Meter(meter))) => Some(meter),
            _ => None,
        };
        let asked = DivergenceAsked { block: Some(block), ..DivergenceAsked::open(None, ROWS_MAX) };
        let rows = opener.store.divergence(asked).await?;
        let mut scratch = Vec::new();
        let aside = rows.into_iter().filter_map(|row| {
            let is_its = row.block == block && row.record.key == RecordKey::meter(title);
            let is_authentic =
                is_its && unsealed.keys.record_is_authentic(block, &row.record, &mut scratch);
            match Record::decode(&row.record.body).ok().filter(|_| is_authentic) {
                Some(Record::Meter(meter)) if meter.system_title == *title => Some(meter),
                _ => None,
            }
        });
        let aside: Vec<MeterRecord> = aside.collect();
        let keys = chosen(own.as_ref(), &aside);
        if keys.is_empty() {
            return Ok(Self::default());
        }
        // A diagnosis closes no other block.
        let piece = opener.room(block, keys.len() * SLOT_LEN, Room::AsItIs)?;
        let unused = Self::unwrapped(piece, &keys, &unsealed.keys);
        scrub_stack();
        Ok(unused)
    }

    fn unwrapped(mut piece: Segment, keys: &[(Whence, &KeyRecord)], block: &BlockKeys) -> Self {
        let mut places = Vec::with_capacity(keys.len());
        for (slot, (whence, key)) in keys.iter().enumerate() {
            let (at, len) = (slot * SLOT_LEN, usize::from(key.value_len));
            let Some(room) = piece.bytes_mut().get_mut(at..at + len) else { continue };
            if len <= SLOT_LEN && block.unwrap_into(&key.wrapped, room).is_ok() {
                let KeyRecord { kind, setup, version, .. } = **key;
                places.push(Place { kind, setup, version, whence: *whence, at, len });
            }
        }
        Self { piece: Some(piece), places }
    }
}

/// Those that are worth a trial: no value that opens anyway, none twice.
fn chosen<'k>(
    own: Option<&'k MeterRecord>,
    aside: &'k [MeterRecord],
) -> Vec<(Whence, &'k KeyRecord)> {
    let own = || own.into_iter().flat_map(|meter| &meter.keys);
    let mut known: Vec<_> =
        own().filter(|key| key.state.may_open()).map(|key| (key.kind, key.fingerprint)).collect();
    let compromised = own()
        .filter(|key| key.state == KeyState::Compromised)
        .map(|key| (Whence::Compromised, key));
    let aside = aside.iter().flat_map(|meter| &meter.keys);
    let aside = aside.filter(|key| key.state.may_open()).map(|key| (Whence::SetAside, key));
    compromised
        .chain(aside)
        .filter(|(_, key)| {
            key.protection == Protection::Memory
                && matches!(key.kind, KeyKind::Guek | KeyKind::Gbek | KeyKind::Gak)
        })
        .filter(|(_, key)| {
            let is_new = !known.contains(&(key.kind, key.fingerprint));
            known.push((key.kind, key.fingerprint));
            is_new
        })
        .take(KEYS_MAX)
        .collect()
}
