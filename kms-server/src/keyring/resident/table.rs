//! One open block: its meters' keys in one piece of the arena, found by title without a lock.
//!
//! Layout of the piece: the block's subkeys, one tag byte a place, one 64-byte entry a place (open
//! addressing, at most 4/5 full), then 32-byte slots for the keys that do not fit an entry. A search
//! walks over tags, which stay in the processor's caches, and touches the one entry that it wants. An entry is one cache line
//! and holds all that most meters have: title, one GUEK, one GAK, policy. Nothing here changes after
//! it was built; a change of the block builds a new table.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::hsm::WrappedKey;
use kms_core::{
    Epoch, KeyKind, KeyRecord, KeyState, MeterRecord, Position, Protection, SecuritySetup,
    Sequence, SystemTitle,
    block::{
        keys::{BlockKeys, DoesNotOpen, SUBKEYS_LEN},
        spread,
    },
    life::{
        choosing::{Place, awaits_evidence},
        due,
    },
    profile::FloorRule,
};

use super::{
    arena::Segment,
    candidate::{KeyMaterial, Standing},
    extra::{Extra, Held, SlotInfo},
    floored::Floored,
    ids::IdTag,
    policy::PolicyBits,
    secrets,
};

/// Bytes of an entry.
pub(in crate::keyring) const ENTRY_LEN: usize = 64;
/// Bytes of a slot: the longest key.
const SLOT_LEN: usize = 32;
/// Where the tags start: right after the subkeys.
const TAGS_AT: usize = SUBKEYS_LEN;
/// The tag of a place that is free. No title has it.
const FREE: u8 = 0;
/// Bytes of the key in an entry.
pub(super) const INLINE_LEN: usize = 16;

// Places within an entry.
pub(super) const TITLE: usize = 0;
pub(super) const GUEK: usize = 8;
pub(super) const GAK: usize = 24;
pub(super) const GUEK_VERSION: usize = 40;
pub(super) const GAK_VERSION: usize = 42;
pub(super) const FLAGS: usize = 44;
pub(super) const POLICY: usize = 45;
pub(super) const EXTRA: usize = 48;
pub(super) const ID_HASH: usize = 52;
pub(super) const ID_CHECK: usize = 60;

/// The entry is taken.
const OCCUPIED: u8 = 1;
/// The entry itself has all of the meter's keys: at most one GUEK and one GAK, 16 bytes each,
/// protection `MEMORY`, security setup 0.
pub(super) const PLAIN: u8 = 2;
/// A plain entry has a GUEK.
pub(super) const HAS_GUEK: u8 = 4;
/// A plain entry has a GAK.
pub(super) const HAS_GAK: u8 = 8;
/// The meter's record failed its MAC, can't be read, or has a key that does not open: nothing of it is
/// used.
pub(super) const DAMAGED: u8 = 16;
/// The GUEK of a plain entry is active.
pub(super) const GUEK_PROTECTS: u8 = 32;
/// Its GAK is.
pub(super) const GAK_PROTECTS: u8 = 64;
/// The entry has copies of the GUEK and the GAK that are tried first, of a meter that has more: one that was rotated,
/// or that is sent to. They are such as a plain entry has.
pub(super) const FIRST: u8 = 128;

const NO_EXTRA: u32 = u32::MAX;

/// One open block. On a cache line of its own: a look-up begins with it.
#[repr(align(64))]
pub struct BlockTable {
    /// Raised when the block enters another epoch with the same records.
    epoch: AtomicU64,
    sequence: Sequence,
    secret_version: u32,
    meters: u32,
    damaged: u32,
    places: u32,
    piece: Option<Segment>,
    pub(super) extras: Box<[Extra]>,
}

/// One meter of an open block.
#[derive(Clone, Copy)]
pub struct ResidentMeter<'a> {
    pub(super) table: &'a BlockTable,
    pub(super) entry: &'a [u8; ENTRY_LEN],
}

/// The row that one record brings into the table.
pub(in crate::keyring) enum Row<'a> {
    /// A meter whose record is authentic, and what its profile says of receive floors.
    Meter(&'a MeterRecord, IdTag, FloorRule),
    /// The title of a record that is not: it may stand for another meter.
    Damaged(SystemTitle),
    /// The title of a record that is authentic and can't be read.
    Unreadable(SystemTitle),
    /// A meter as it is in the table before.
    Kept(ResidentMeter<'a>),
}

impl Row<'_> {
    fn title(&self) -> SystemTitle {
        match self {
            Self::Meter(meter, ..) => meter.system_title,
            Self::Damaged(title) | Self::Unreadable(title) => *title,
            Self::Kept(meter) => meter.title(),
        }
    }
}

/// Room that a table of these rows takes, in bytes.
pub(in crate::keyring) fn piece_len(rows: &[Row<'_>]) -> usize {
    let slots: usize = rows.iter().map(slots_of).sum();
    entry_at(places_for(rows.len()), places_for(rows.len())) + slots * SLOT_LEN
}

/// One place in five stays empty, so that a search for an unknown title ends soon.
fn places_for(meters: usize) -> u32 {
    (meters + meters / 4 + 1) as u32
}

fn slots_of(row: &Row<'_>) -> usize {
    match row {
        Row::Meter(meter, ..) if !is_plain(meter) => {
            live_keys(meter).filter(|key| key.protection == Protection::Memory).count()
        }
        Row::Kept(meter) => meter.extra().map_or(0, Extra::slots),
        Row::Meter(..) | Row::Damaged(_) | Row::Unreadable(_) => 0,
    }
}

/// The keys that may open something a meter sent.
fn live_keys(meter: &MeterRecord) -> impl Iterator<Item = &KeyRecord> {
    meter.keys.iter().filter(|key| {
        key.state.may_open()
            && matches!(key.kind, KeyKind::Guek | KeyKind::Gbek | KeyKind::Gak | KeyKind::Dedicated)
    })
}

/// Whether a key fits an entry, and what it opens is nothing but opened.
fn is_ordinary(key: &KeyRecord) -> bool {
    key.state.vouches()
        && !awaits_evidence(key)
        && matches!(key.kind, KeyKind::Guek | KeyKind::Gak)
        && key.protection == Protection::Memory
        && usize::from(key.value_len) == INLINE_LEN
        && key.setup == SecuritySetup(0)
}

fn is_plain(meter: &MeterRecord) -> bool {
    let one_at_most =
        |kind| live_keys(meter).filter(|key: &&KeyRecord| key.kind == kind).count() <= 1;
    live_keys(meter).all(is_ordinary)
        && one_at_most(KeyKind::Guek)
        && one_at_most(KeyKind::Gak)
        && meter.policy.default_system_title.is_none()
        && meter.policy.client_title.is_none()
        && meter.policy.client_titles.is_empty()
        && due::next(meter).is_none()
}

impl BlockTable {
    /// Builds the table in `piece`, whose first bytes already hold the subkeys. Also the titles of those
    /// meters of which a key does not open although their record is authentic: they are not served.
    pub(in crate::keyring) fn build(
        position: Position,
        secret_version: u32,
        piece: Segment,
        keys: &BlockKeys,
        rows: &[Row<'_>],
    ) -> (Self, Vec<SystemTitle>) {
        let places = places_for(rows.len());
        let mut table = Self {
            epoch: AtomicU64::new(position.epoch.0),
            sequence: position.sequence,
            secret_version,
            meters: rows.len() as u32,
            damaged: rows.iter().filter(|row| matches!(row, Row::Damaged(_))).count() as u32,
            places,
            piece: None,
            extras: Box::default(),
        };
        let mut filling = Filling {
            piece,
            places,
            next_slot: entry_at(places, places),
            extras: Vec::new(),
            keys,
        };
        let unopened =
            rows.iter().filter(|row| filling.put(row).is_err()).map(Row::title).collect();
        table.extras = filling.extras.into();
        table.piece = Some(filling.piece);
        (table, unopened)
    }

    /// The block's last change that this table knows.
    pub fn position(&self) -> Position {
        let epoch = Epoch(self.epoch.load(Ordering::Acquire));
        Position { epoch, sequence: self.sequence }
    }

    /// The block stands in a higher epoch now, with the records that this table has.
    pub(in crate::keyring) fn enter(&self, epoch: Epoch) {
        self.epoch.fetch_max(epoch.0, Ordering::AcqRel);
    }

    /// The secret that its subkeys derive from.
    pub fn secret_version(&self) -> u32 {
        self.secret_version
    }

    /// The number of its meters.
    pub fn meters(&self) -> u32 {
        self.meters
    }

    /// The time at which something of its meters' keys is due first.
    pub(in crate::keyring) fn due_ms(&self) -> Option<u64> {
        self.extras.iter().filter_map(|extra| extra.due_ms).min()
    }

    /// The number of its records that failed their MAC. Then their titles are not sure either, and a title that
    /// is not found may be one of theirs.
    pub fn damaged(&self) -> u32 {
        self.damaged
    }

    /// The block's subkeys; `None` for a block that does not exist yet.
    pub(in crate::keyring) fn subkeys(&self) -> Option<&[u8]> {
        self.piece.as_ref().map(|piece| &piece.bytes()[..SUBKEYS_LEN])
    }

    /// Asks the processor to fetch the entry of `title`, if there seems to be one.
    #[inline]
    pub fn prefetch(&self, title: &SystemTitle) {
        if let Some(piece) = &self.piece
            && let Some(place) = self.places_of(piece.bytes(), title).next()
        {
            piece.prefetch(entry_at(self.places, place));
        }
    }

    /// The meter with this title. No lock, no allocation.
    #[inline]
    pub fn find(&self, title: &SystemTitle) -> Option<ResidentMeter<'_>> {
        let bytes = self.piece.as_ref()?.bytes();
        self.places_of(bytes, title)
            .filter_map(|place| entry(bytes, self.places, place))
            .find(|entry| entry[TITLE..TITLE + 8] == title.as_bytes()[..])
            .map(|entry| ResidentMeter { table: self, entry })
    }

    /// The places whose tag is that of `title`, from where a search for it starts to the first free
    /// one.
    #[inline]
    fn places_of<'b>(
        &self,
        bytes: &'b [u8],
        title: &SystemTitle,
    ) -> impl Iterator<Item = u32> + use<'b> {
        let (first, wanted) = place_and_tag(title, self.places);
        let tags = bytes.get(TAGS_AT..TAGS_AT + self.places as usize).unwrap_or_default();
        let (before, from) = tags.split_at_checked(first as usize).unwrap_or_default();
        (first..)
            .zip(from)
            .chain((0..).zip(before))
            .take_while(|(_, tag)| **tag != FREE)
            .filter(move |(_, tag)| **tag == wanted)
            .map(|(place, _)| place)
    }

    /// All meters of the block.
    pub fn iter(&self) -> impl Iterator<Item = ResidentMeter<'_>> {
        let bytes = self.piece.as_ref().map(Segment::bytes);
        (0..self.places)
            .filter_map(move |place| entry(bytes?, self.places, place))
            .filter(|entry| entry[FLAGS] & OCCUPIED != 0)
            .map(|entry| ResidentMeter { table: self, entry })
    }
}

/// A table on its way.
struct Filling<'k> {
    piece: Segment,
    places: u32,
    next_slot: usize,
    extras: Vec<Extra>,
    keys: &'k BlockKeys,
}

impl Filling<'_> {
    fn put(&mut self, row: &Row<'_>) -> Result<(), DoesNotOpen> {
        let at = self.free_entry(&row.title());
        let filled = match row {
            Row::Damaged(_) | Row::Unreadable(_) => {
                self.put_damaged(at, &row.title());
                Ok(())
            }
            Row::Kept(meter) => self.put_kept(at, meter),
            Row::Meter(meter, id, floors) => {
                let entry = &mut self.piece.bytes_mut()[at..at + ENTRY_LEN];
                entry[TITLE..TITLE + 8].copy_from_slice(meter.system_title.as_bytes());
                entry[FLAGS] = OCCUPIED;
                entry[POLICY] = PolicyBits::of(&meter.policy, *floors).byte();
                entry[EXTRA..EXTRA + 4].copy_from_slice(&NO_EXTRA.to_le_bytes());
                entry[ID_HASH..ID_HASH + 8].copy_from_slice(&id.hash.to_le_bytes());
                entry[ID_CHECK..ID_CHECK + 4].copy_from_slice(&id.check.to_le_bytes());
                if is_plain(meter) {
                    self.put_plain(at, meter, *floors)
                } else {
                    self.put_extra(at, meter, *floors)
                }
            }
        };
        if filled.is_err() {
            self.put_damaged(at, &row.title());
        }
        filled
    }

    /// An entry that has a title, and nothing that could be used.
    fn put_damaged(&mut self, at: usize, title: &SystemTitle) {
        let entry = &mut self.piece.bytes_mut()[at..at + ENTRY_LEN];
        entry.fill(0);
        entry[TITLE..TITLE + 8].copy_from_slice(title.as_bytes());
        entry[FLAGS] = OCCUPIED | DAMAGED;
        entry[EXTRA..EXTRA + 4].copy_from_slice(&NO_EXTRA.to_le_bytes());
    }

    fn free_entry(&mut self, title: &SystemTitle) -> usize {
        let (mut place, tag) = place_and_tag(title, self.places);
        let tags = &mut self.piece.bytes_mut()[TAGS_AT..];
        // There are more places than rows, so one is free.
        while tags[place as usize] != FREE {
            place = (place + 1) % self.places;
        }
        tags[place as usize] = tag;
        entry_at(self.places, place)
    }

    fn put_plain(
        &mut self,
        at: usize,
        meter: &MeterRecord,
        floors: FloorRule,
    ) -> Result<(), DoesNotOpen> {
        let (floors, secrets) = (Floored::of(live_keys(meter), floors), secrets::of(meter));
        if floors.is_some() || !secrets.is_empty() {
            self.add_extra(at, Extra { floors, secrets, ..Extra::default() });
        }
        self.put_inline(at, PLAIN, live_keys(meter))
    }

    /// Keys into the entry itself, of each kind one.
    fn put_inline<'m>(
        &mut self,
        at: usize,
        what: u8,
        keys: impl Iterator<Item = &'m KeyRecord>,
    ) -> Result<(), DoesNotOpen> {
        let entry = &mut self.piece.bytes_mut()[at..at + ENTRY_LEN];
        entry[FLAGS] |= what;
        for key in keys {
            let (bytes, version, flag, protects) = match key.kind {
                KeyKind::Gak => (GAK, GAK_VERSION, HAS_GAK, GAK_PROTECTS),
                _ => (GUEK, GUEK_VERSION, HAS_GUEK, GUEK_PROTECTS),
            };
            self.keys.unwrap_into(&key.wrapped, &mut entry[bytes..bytes + INLINE_LEN])?;
            entry[version..version + 2].copy_from_slice(&key.version.to_le_bytes());
            entry[FLAGS] |= if key.state.may_protect() { flag | protects } else { flag };
        }
        Ok(())
    }

    /// An entry as it was, and its keys beside it.
    fn put_kept(&mut self, at: usize, meter: &ResidentMeter<'_>) -> Result<(), DoesNotOpen> {
        self.piece.bytes_mut()[at..at + ENTRY_LEN].copy_from_slice(meter.entry);
        let Some(extra) = meter.extra() else { return Ok(()) };
        let mut extra = extra.clone();
        for key in &mut extra.keys {
            let Held::Arena { at: from, len } = &mut key.held else { continue };
            let bytes = meter.table.bytes_at(*from, *len);
            let room = self.piece.bytes_mut().get_mut(self.next_slot..).unwrap_or_default();
            room.get_mut(..bytes.len()).ok_or(DoesNotOpen)?.copy_from_slice(bytes);
            *from = self.next_slot as u32;
            self.next_slot += SLOT_LEN;
        }
        self.add_extra(at, extra);
        Ok(())
    }

    fn add_extra(&mut self, at: usize, extra: Extra) {
        let number = (self.extras.len() as u32).to_le_bytes();
        self.piece.bytes_mut()[at + EXTRA..][..4].copy_from_slice(&number);
        self.extras.push(extra);
    }

    fn put_extra(
        &mut self,
        at: usize,
        meter: &MeterRecord,
        floors: FloorRule,
    ) -> Result<(), DoesNotOpen> {
        let mut live: Vec<&KeyRecord> = live_keys(meter).collect();
        // The preferred one first, then active ones, then the newest: the order in which they most likely open.
        let is_preferred = |key: &KeyRecord| {
            Place::of(key).preferred(meter).is_some_and(|preferred| preferred.id == key.id)
        };
        live.sort_by_key(|key| {
            let rank = (!is_preferred(key), key.state != KeyState::Active, !key.state.vouches());
            (key.setup, rank, std::cmp::Reverse(key.version))
        });
        let first = |kind| live.iter().find(|key| key.kind == kind).copied();
        if let (Some(guek), Some(gak)) = (first(KeyKind::Guek), first(KeyKind::Gak))
            && is_ordinary(guek)
            && is_ordinary(gak)
        {
            self.put_inline(at, FIRST, [guek, gak].into_iter())?;
        }
        let keys = live.into_iter().map(|key| self.put_slot(key, is_preferred(key)));
        let keys = keys.collect::<Result<_, _>>()?;
        let extra = Extra {
            default_title: meter.policy.default_system_title,
            client_title: meter.policy.client_title,
            client_titles: meter.policy.client_titles.clone(),
            floors: Floored::of(live_keys(meter), floors),
            due_ms: due::next(meter),
            secrets: secrets::of(meter),
            keys,
        };
        self.add_extra(at, extra);
        Ok(())
    }

    fn put_slot(&mut self, key: &KeyRecord, protects: bool) -> Result<SlotInfo, DoesNotOpen> {
        let held = match key.protection {
            Protection::Hsm => Held::Token(WrappedKey { id: key.id, wrapped: key.wrapped.clone() }),
            Protection::Memory => {
                let (at, len) = (self.next_slot, usize::from(key.value_len));
                let room = self.piece.bytes_mut().get_mut(at..at + len).ok_or(DoesNotOpen)?;
                self.keys.unwrap_into(&key.wrapped, room)?;
                self.next_slot += SLOT_LEN;
                Held::Arena { at: at as u32, len: key.value_len }
            }
        };
        let KeyRecord { kind, setup, version, state, .. } = *key;
        let standing = Standing {
            protects,
            active: state.may_protect(),
            carries: state.may_carry(),
            compromised: !state.vouches(),
            sent: key.life.transfer.as_ref().is_some_and(|it| it.sent_ms.is_some()),
            awaits: awaits_evidence(key).then_some(key.id),
        };
        Ok(SlotInfo { kind, setup, version, standing, held })
    }
}

impl BlockTable {
    pub(super) fn material<'a>(&'a self, held: &'a Held) -> KeyMaterial<'a> {
        match held {
            Held::Token(key) => KeyMaterial::Token(key),
            Held::Arena { at, len } => KeyMaterial::Bytes(self.bytes_at(*at, *len)),
        }
    }

    fn bytes_at(&self, at: u32, len: u8) -> &[u8] {
        let bytes = self.piece.as_ref().map_or(&[][..], Segment::bytes);
        &bytes[at as usize..][..usize::from(len)]
    }
}

/// Where a search for `title` starts, and its tag. The block took the upper bits of the spread title;
/// the place comes from its lower half and the tag from bits between, independent of both.
#[inline]
fn place_and_tag(title: &SystemTitle, places: u32) -> (u32, u8) {
    let spread = spread(u64::from_be_bytes(*title.as_bytes()));
    let place = (u64::from(spread as u32) * u64::from(places)) >> 32;
    (place as u32, (spread >> 36) as u8 | 0x80)
}

/// Where the entry of `place` starts: entries follow the tags, on cache lines.
#[inline]
const fn entry_at(places: u32, place: u32) -> usize {
    (TAGS_AT + places as usize).next_multiple_of(ENTRY_LEN) + place as usize * ENTRY_LEN
}

#[inline]
fn entry(bytes: &[u8], places: u32, place: u32) -> Option<&[u8; ENTRY_LEN]> {
    bytes.get(entry_at(places, place)..)?.first_chunk()
}

#[inline]
pub(super) fn array<const N: usize>(entry: &[u8; ENTRY_LEN], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&entry[at..at + N]);
    out
}
