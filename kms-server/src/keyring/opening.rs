//! Opening a block: read it, open its secret in the HSM, verify everything, fill a table. The opener can
//! read the database and publish tables; it can write nothing.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use sha2::{Digest as _, Sha256};
use tokio::sync::OnceCell;

use crate::{
    hsm::Hsm,
    store::{ReadStore, SealedSecret, StoreError, StoredBlock},
};
use kms_core::{
    BlockNo, BlockSecret, DomainRecord, Head, MeterRecord, Record, RecordKey,
    block::{
        BlockMark,
        entering::is_entry,
        keys::{BlockKeys, SUBKEYS_LEN, SecretBinding},
        known::InPart,
        proof::ProofKey,
        verified::Verified,
    },
    freshness::Freshness,
    moment::Moment,
    ports::Clock,
    profile::{FloorRule, Profiles},
};

use super::{
    error::{KeyringError, SharedError},
    faults::Faults,
    known_states::{KnownStates, State},
    resident::{BlockTable, Resident, ResidentMeter, Row, arena::Segment, piece_len, scrub_stack},
    role::SiteRole,
    site_keks::SiteKekKeeper,
    turns::Turns,
};

/// The most blocks closed to make room for one that is asked for, before giving up. Their memory
/// comes back when the last batch that uses them ends.
const CLOSE_AT_MOST: usize = 64;

/// The most times that the token is asked for a secret under which the block's head is not authentic.
const ANSWERS_MAX: usize = 2;

/// The most times that a block is read again because it was changed while it was read.
const OVERTAKEN_MAX: usize = 8;

/// Whether blocks that nobody has asked for may be closed to make room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// Others are closed.
    MayCloseOthers,
    /// Only what is free.
    AsItIs,
}

/// Whether the newest state became known only after the read had begun: then what was read is no roll-back.
struct Overtaken(bool);

/// A block's subkeys: raw in the arena, and expanded.
pub(super) struct Unsealed {
    pub(super) subkeys: Segment,
    pub(super) keys: BlockKeys,
    pub(super) secret_version: u32,
    /// The table of the block as it stands, where not all of its records were read.
    pub(super) base: Option<Base>,
}

/// A resident table to build the next one on.
pub(super) struct Base {
    pub(super) table: Arc<BlockTable>,
    /// When all of the block was read.
    pub(super) since: Moment,
}

type Opening = Arc<OnceCell<Result<Arc<BlockTable>, SharedError>>>;

/// The parts that blocks are opened from.
pub struct Below {
    /// Opens their secrets.
    pub hsm: Hsm,
    /// Has them, wrapped.
    pub store: Arc<dyn ReadStore>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// The newest states that are known: what is older is not used.
    pub freshness: Arc<Freshness>,
    /// Whether this site writes, and in which epoch.
    pub role: Arc<SiteRole>,
    /// How the makes of meters differ.
    pub profiles: Arc<Profiles>,
}

/// Opens blocks, and knows what is wrong with them.
pub(super) struct Opener {
    pub(super) domain: DomainRecord,
    pub(super) resident: Resident,
    pub(super) faults: Faults,
    pub(super) turns: Turns,
    /// The newest known state of each block.
    pub(super) freshness: Arc<Freshness>,
    pub(super) hsm: Hsm,
    pub(super) store: Arc<dyn ReadStore>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) role: Arc<SiteRole>,
    pub(super) profiles: Arc<Profiles>,
    pub(super) states: KnownStates,
    /// Which site KEKs are in use.
    pub(super) keks: Arc<SiteKekKeeper>,
    /// Openings under way: many ask, one opens.
    opening: Mutex<HashMap<BlockNo, Opening>>,
    /// The seal that each block's resident subkeys came from: its SHA-256.
    seals: Mutex<HashMap<BlockNo, [u8; 32]>>,
}

impl Opener {
    /// Nothing is open yet.
    pub(super) fn new(
        domain: DomainRecord,
        resident: Resident,
        states: KnownStates,
        below: Below,
    ) -> Self {
        let Below { hsm, store, clock, freshness, role, profiles } = below;
        let keks = SiteKekKeeper::new(hsm.clone(), Arc::clone(&store), domain.clone());
        Self {
            keks: Arc::new(keks),
            domain,
            resident,
            faults: Faults::default(),
            turns: Turns::default(),
            freshness,
            hsm,
            store,
            clock,
            role,
            profiles,
            states,
            opening: Mutex::default(),
            seals: Mutex::default(),
        }
    }

    /// The block's table, opening it if need be: once, however many ask. A failure is shared by all
    /// who waited and not tried again for 100 ms.
    pub(super) async fn open(&self, block: BlockNo) -> Result<Arc<BlockTable>, SharedError> {
        if let Some(table) = self.resident.table(block) {
            return Ok(table);
        }
        if let Some(error) = self.faults.failed_just_now(self.now(), block) {
            return Err(error);
        }
        let cell = {
            let mut opening = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(opening.entry(block).or_default())
        };
        // If this future is dropped half-way, the next one who waits starts the opening again.
        let outcome = cell.get_or_init(|| self.open_and_publish(block)).await.clone();
        self.opening.lock().unwrap_or_else(PoisonError::into_inner).remove(&block);
        outcome
    }

    async fn open_and_publish(&self, block: BlockNo) -> Result<Arc<BlockTable>, SharedError> {
        // A writer publishes what it wrote: an opening beside it could publish an older state later.
        let _no_writer = self.turns.take(block).await;
        if let Some(table) = self.resident.table(block) {
            return Ok(table);
        }
        let opened =
            self.open_now(block, Room::MayCloseOthers).await.map(Arc::new).map_err(Arc::new);
        match &opened {
            Ok(table) => {
                self.faults.forget_failed(block);
                self.resident.put(block, Arc::clone(table));
            }
            Err(error) => {
                tracing::warn!(block = block.0, %error, "block can't be opened");
                self.faults.note_failed(self.now(), block, Arc::clone(error));
            }
        }
        opened
    }

    /// Reads and opens a block, without publishing it.
    pub(super) async fn open_now(
        &self,
        block: BlockNo,
        room: Room,
    ) -> Result<BlockTable, KeyringError> {
        let (unsealed, verified) = self.verified(block).await?;
        self.build(&verified, unsealed, room)
    }

    /// The block as it is stored, its subkeys beside it: verified, or the reason is remembered.
    pub(super) async fn verified(
        &self,
        block: BlockNo,
    ) -> Result<(Unsealed, Verified), KeyringError> {
        let mut outcome = self.read_and_verify(block).await;
        for _ in 0..OVERTAKEN_MAX {
            match outcome {
                Err((KeyringError::Stale { .. }, Overtaken(true))) => {
                    outcome = self.read_and_verify(block).await;
                }
                _ => break,
            }
        }
        // Once damage was found, whoever comes next looks at all of it.
        if !matches!(&outcome, Ok((_, verified)) if verified.damaged().is_empty()) {
            self.states.forget(block);
        }
        self.faults.note_lasting(block, outcome.map_err(|(error, _)| error))
    }

    /// The same, of a block whose turn the caller has: with the records under these keys alone, if the others are known
    /// from before and the head is the one of then; else with all of them.
    pub(super) async fn verified_for(
        &self,
        block: BlockNo,
        asked: &[RecordKey],
    ) -> Result<(Unsealed, Verified), KeyringError> {
        match self.verified_in_part(block, asked).await {
            Some(part) => Ok(part),
            None => {
                self.states.forget(block);
                self.verified(block).await
            }
        }
    }

    /// `None`: whatever it is, reading all of it tells.
    async fn verified_in_part(
        &self,
        block: BlockNo,
        asked: &[RecordKey],
    ) -> Option<(Unsealed, Verified)> {
        let State { known, since } = self.states.get(block, self.now())?;
        self.not_refused().ok()?;
        let table = self.resident.table(block)?;
        if table.position() != known.head().position {
            return None;
        }
        let stored = self.store.block_in_part(block, asked).await.ok()??;
        let mut unsealed = self.unseal(&stored).await.ok()?;
        unsealed.base = Some(Base { table, since });
        let read = InPart { head: stored.head, asked, records: stored.records };
        let verified = known.verified(read, &unsealed.keys, &self.freshness)?;
        Some((unsealed, verified))
    }

    async fn read_and_verify(
        &self,
        block: BlockNo,
    ) -> Result<(Unsealed, Verified), (KeyringError, Overtaken)> {
        let before = self.freshness.newest(block);
        let read = async {
            self.not_refused()?;
            let stored = self.stored(block).await?;
            let unsealed = self.unseal(&stored).await?;
            let verified = self.verify(stored, &unsealed.keys)?;
            Ok((unsealed, verified))
        };
        read.await.map_err(|error| {
            let overtaken = matches!(
                &error,
                KeyringError::Stale { found, .. } if before.is_none_or(|before| *found >= before)
            );
            (error, Overtaken(overtaken))
        })
    }

    /// The block as it is stored.
    async fn stored(&self, block: BlockNo) -> Result<StoredBlock, KeyringError> {
        let stored = self.store.block(block).await.map_err(|error| match error {
            StoreError::Damaged(what) => KeyringError::Damaged { block, what },
            error => error.into(),
        })?;
        stored.ok_or_else(|| KeyringError::missing(block))
    }

    /// The block's subkeys: from its resident table, or by one HSM call.
    async fn unseal(&self, stored: &StoredBlock) -> Result<Unsealed, KeyringError> {
        let (block, secret_version) = (stored.head.block, stored.head.secret_version);
        let mut subkeys = self.room(block, SUBKEYS_LEN, Room::MayCloseOthers)?;
        let seal = self.own_seal(block, secret_version, &stored.seals).await?;
        let seal_hash: [u8; 32] = Sha256::digest(&seal.sealed).into();
        // Records written under subkeys whose seal is another one by now could never be opened again.
        let is_the_same = self.seals().get(&block) == Some(&seal_hash);
        let resident = self
            .resident
            .table(block)
            .filter(|table| is_the_same && table.secret_version() == secret_version);
        if let Some(known) = resident.as_ref().and_then(|table| table.subkeys()) {
            subkeys.bytes_mut()[..SUBKEYS_LEN].copy_from_slice(known);
        } else {
            self.ask_token(&stored.head, &seal, &mut subkeys).await?;
            self.seals().insert(block, seal_hash);
        }
        self.expand(block, subkeys, secret_version)
    }

    /// Has the token open the block's secret, whose subkeys come into `out`.
    async fn ask_token(
        &self,
        head: &Head,
        seal: &SealedSecret,
        out: &mut Segment,
    ) -> Result<BlockSecret, KeyringError> {
        let (block, secret_version) = (head.block, head.secret_version);
        let domain = &self.domain.domain;
        let binding = SecretBinding { domain, block, secret_version };
        let aad = binding.seal_aad(&seal.kek_id);
        // A head that is not authentic may be the token's answer and not the database's: it is asked
        // once more before anybody is blamed.
        let mut asked = 0;
        loop {
            let secret = self
                .hsm
                .open_under(seal.kek_id, aad.clone(), seal.sealed.clone())
                .await
                .map_err(|said| KeyringError::Token { block, said })?;
            asked += 1;
            let out = &mut out.bytes_mut()[..SUBKEYS_LEN];
            binding.derive_subkeys(&secret, out);
            let keys = BlockKeys::new(*domain, out);
            if asked == ANSWERS_MAX || keys.is_some_and(|keys| keys.head_is_authentic(head)) {
                return Ok(secret);
            }
        }
    }

    /// The block as it is stored, verified under what the token makes of its seal now, whatever is resident; and
    /// the key that it is proved with.
    pub(super) async fn reopened(
        &self,
        block: BlockNo,
    ) -> Result<(ProofKey, Verified), KeyringError> {
        self.not_refused()?;
        let stored = self.stored(block).await?;
        let mut subkeys = self.room(block, SUBKEYS_LEN, Room::MayCloseOthers)?;
        let secret_version = stored.head.secret_version;
        let seal = self.own_seal(block, secret_version, &stored.seals).await?;
        let secret = self.ask_token(&stored.head, &seal, &mut subkeys).await?;
        let binding = SecretBinding { domain: &self.domain.domain, block, secret_version };
        let key = ProofKey::of(&binding, &secret);
        let unsealed = self.expand(block, subkeys, secret_version)?;
        let seals = stored.seals.clone();
        let verified = self.verify(stored, &unsealed.keys)?;
        let key = self.with_staged(key, &verified, &seals).await?;
        Ok((key, verified))
    }

    /// Expands subkeys that stand in the arena.
    pub(super) fn expand(
        &self,
        block: BlockNo,
        subkeys: Segment,
        secret_version: u32,
    ) -> Result<Unsealed, KeyringError> {
        let keys = BlockKeys::new(self.domain.domain, subkeys.bytes()).ok_or_else(|| {
            KeyringError::Damaged { block, what: "its subkeys are incomplete".to_owned() }
        })?;
        Ok(Unsealed { subkeys, keys, secret_version, base: None })
    }

    /// Verifies head, freshness, digest and every record (invariant 5), and tells what is damaged.
    fn verify(&self, stored: StoredBlock, keys: &BlockKeys) -> Result<Verified, KeyringError> {
        let StoredBlock { head, seals: _, records } = stored;
        let block = head.block;
        let verified = Verified::of(head, records, keys, &self.freshness)
            .map_err(|refused| KeyringError::refused(block, refused))?;
        let titles = verified.damaged_titles();
        for title in &titles {
            tracing::error!(
                block = block.0,
                system_title = %hex::encode_upper(title.as_bytes()),
                "a record was changed outside this service; its meter is not served"
            );
        }
        self.faults.damage.set_changed(block, &titles);
        Ok(verified)
    }

    /// Fills a table from what was verified; what was not read is as it is in the table before.
    pub(super) fn build(
        &self,
        verified: &Verified,
        unsealed: Unsealed,
        room: Room,
    ) -> Result<BlockTable, KeyringError> {
        let block = verified.block();
        let mut meters = Vec::with_capacity(verified.head().count as usize);
        let mut unreadable = Vec::new();
        for record in verified.authentic() {
            match Record::decode(&record.body) {
                Ok(Record::Meter(meter)) if Record::key_of(&meter) == record.key => {
                    meters.push(meter);
                }
                Ok(Record::Tombstone(_)) => {}
                Ok(Record::Line(_) | Record::Fact(_)) if !record.key.is_meter() => {}
                // Of a kind that this release does not know: kept as it is, and nobody's concern here.
                Err(_) if !record.key.is_meter() => {}
                // Authentic, and still nothing that we can read: its meter is out, and no other.
                Ok(Record::Meter(_) | Record::Line(_) | Record::Fact(_)) | Err(_) => {
                    unreadable.extend(record.key.system_title())
                }
            }
        }
        // Behind the meters: a title whose kind was changed must not come before a meter's own.
        let damaged = verified.damaged_titles().into_iter().map(Row::Damaged);
        let base = unsealed.base.as_ref().map(|base| &*base.table);
        let was_read =
            |meter: &ResidentMeter<'_>| verified.was_read(&RecordKey::meter(&meter.title()));
        let kept = base.into_iter().flat_map(BlockTable::iter).filter(|meter| !was_read(meter));
        let rows: Vec<Row<'_>> = kept
            .map(Row::Kept)
            .chain(meters.iter().map(|meter| {
                let tag = self.resident.tag(meter.meter_id.as_str());
                Row::Meter(meter, tag, self.floors_of(meter))
            }))
            .chain(unreadable.iter().copied().map(Row::Unreadable))
            .chain(damaged)
            .collect();
        let mut piece = self.room(block, piece_len(&rows), room)?;
        piece.bytes_mut()[..SUBKEYS_LEN].copy_from_slice(&unsealed.subkeys.bytes()[..SUBKEYS_LEN]);
        let position = verified.head().position;
        let (table, unopened) =
            BlockTable::build(position, unsealed.secret_version, piece, &unsealed.keys, &rows);
        // RFC 3394 leaves the halves of the last key that was unwrapped.
        scrub_stack();
        for system_title in &unreadable {
            tracing::error!(block = block.0, %system_title, "a record is not of this schema; its meter is not served");
        }
        for system_title in &unopened {
            tracing::error!(block = block.0, %system_title, "a key does not open although its record is authentic; its meter is not served");
        }
        unreadable.extend(unopened);
        // What was found meanwhile in what was not read here is not taken back.
        if verified.is_whole() || !unreadable.is_empty() {
            self.faults.damage.set_unreadable(block, &unreadable);
        }
        Ok(table)
    }

    /// The receive floors that a meter's profile wants. A profile that this site does not have is told by name.
    fn floors_of(&self, meter: &MeterRecord) -> FloorRule {
        let profile = meter.policy.profile.as_ref();
        if let Some(unknown) = profile.filter(|name| self.profiles.get(name).is_none()) {
            self.faults.note_unknown_profile(unknown);
        }
        self.profiles.floors_of(profile)
    }

    /// A block stands under this head now, which is authentic, and which brought what is resident of it into
    /// another epoch. What does not fit is read anew by who asks for it.
    pub(super) fn entered(&self, head: &Head) {
        let Head { block, position, digest, .. } = *head;
        if let Some(table) = self.resident.table(block) {
            let before = BlockMark { block, position: table.position(), digest };
            if self.freshness.is_at(&before) && is_entry(&before, head) {
                table.enter(position.epoch);
            }
        }
        self.freshness.know(&BlockMark { block, position, digest });
    }

    fn not_refused(&self) -> Result<(), KeyringError> {
        self.freshness.refusal().map_or(Ok(()), |reason| Err(KeyringError::RolledBack(reason)))
    }

    /// The time of the monotonic clock.
    pub(super) fn now(&self) -> Moment {
        self.clock.now()
    }

    /// Whether a block's resident table is older than a state of it that is known to be authentic.
    pub(super) fn is_past(&self, block: BlockNo) -> bool {
        let table = self.resident.table(block);
        table.is_some_and(|table| self.freshness.is_past(block, table.position()))
    }

    /// A piece of the arena; closes other blocks for it if allowed.
    pub(super) fn room(
        &self,
        block: BlockNo,
        needed: usize,
        room: Room,
    ) -> Result<Segment, KeyringError> {
        if let Some(piece) = self.resident.allocate(needed) {
            return Ok(piece);
        }
        for _ in 0..if room == Room::MayCloseOthers { CLOSE_AT_MOST } else { 0 } {
            self.faults.note_no_room(block, needed);
            if !self.resident.close_one_but(block) {
                break;
            }
            if let Some(piece) = self.resident.allocate(needed) {
                return Ok(piece);
            }
        }
        Err(KeyringError::ArenaFull { block, needed })
    }

    fn seals(&self) -> MutexGuard<'_, HashMap<BlockNo, [u8; 32]>> {
        self.seals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
