//! The state of blocks and keys: for the status and for metrics.

use std::sync::Arc;

use super::{damage::DamageStatus, opening::Opener, renewing::Renewer, warm_up::WarmUp};
use crate::telemetry::{
    catalogue::{
        ARENA, ARENA_LOCKED, ARENA_USED, BLOCKS, BLOCKS_FAILED, BLOCKS_OPEN, DAMAGED_RECORDS,
        INDEX_LIES, RESIDENT_METERS, WARM_UP, WARM_UP_DONE,
    },
    metrics::{Page, Source},
};
use kms_core::{ProfileName, following::NotFollowing};

/// For `GetStatus`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyringStatus {
    /// Blocks of the key domain.
    pub blocks_total: u32,
    /// Blocks that are open.
    pub blocks_open: u32,
    /// Blocks that can't be opened, or are not stored as they should be.
    pub blocks_failed: u32,
    /// Whether the warm-up has been through all blocks once.
    pub warm_up_done: bool,
    /// Since the warm-up began, or how long it took.
    pub warm_up_elapsed_ms: u64,
    /// Meters whose keys are resident.
    pub resident_meters: u64,
    /// Bytes in use.
    pub arena_bytes_used: u64,
    /// Bytes mapped.
    pub arena_bytes_total: u64,
    /// Whether the arena's pages are locked.
    pub memory_locked: bool,
    /// The reason why this server does not follow the others of its database, while it lasts.
    pub not_following: Option<NotFollowing>,
    /// The faults, while they last; of many blocks, the first.
    pub faults: Vec<String>,
    /// Damaged records, and ids that the index has wrong.
    pub damage: DamageStatus,
    /// Device profiles that meters name and this site does not have.
    pub unknown_profiles: Vec<ProfileName>,
    /// Device profiles that this site has.
    pub profiles: Vec<ProfileName>,
    /// What two sites compare of them.
    pub profiles_digest: [u8; 32],
}

/// Looks at the others and says how it stands. It can read and change nothing.
pub struct Overview {
    opener: Arc<Opener>,
    renewer: Arc<Renewer>,
    warm_up: Arc<WarmUp>,
}

impl Overview {
    /// Over the same blocks as `opener`.
    pub(super) fn new(opener: Arc<Opener>, renewer: Arc<Renewer>, warm_up: Arc<WarmUp>) -> Self {
        Self { opener, renewer, warm_up }
    }

    /// Figures for people.
    pub fn status(&self) -> KeyringStatus {
        let Opener { resident, faults, freshness, profiles, .. } = &*self.opener;
        let snapshot = resident.snapshot();
        let open = snapshot.blocks.iter().flatten();
        let (blocks_open, resident_meters) = open.fold((0, 0), |(blocks, meters), table| {
            (blocks + 1, meters + u64::from(table.meters()))
        });
        let refusal = freshness.refusal();
        let mut sentences = faults.sentences();
        sentences.splice(0..0, refusal.iter().map(ToString::to_string));
        let progress = self.warm_up.progress.read(self.opener.now());
        let (arena, blocks_total) = (resident.arena(), resident.blocks().get());
        KeyringStatus {
            blocks_total,
            blocks_open,
            blocks_failed: if refusal.is_some() { blocks_total } else { faults.blocks() },
            warm_up_done: progress.done,
            warm_up_elapsed_ms: progress.elapsed_ms,
            resident_meters,
            arena_bytes_used: arena.used() as u64,
            arena_bytes_total: arena.mapped() as u64,
            memory_locked: arena.is_locked(),
            not_following: self.renewer.not_following(),
            faults: sentences,
            damage: faults.damage.status(),
            unknown_profiles: faults.unknown_profiles(),
            profiles: profiles.iter().map(|profile| profile.name.clone()).collect(),
            profiles_digest: profiles.digest(),
        }
    }
}

impl Source for Overview {
    fn tell(&self, page: &mut Page) {
        let KeyringStatus {
            blocks_total,
            blocks_open,
            blocks_failed,
            warm_up_done,
            warm_up_elapsed_ms,
            resident_meters,
            arena_bytes_used,
            arena_bytes_total,
            memory_locked,
            not_following: _,
            faults: _,
            damage,
            unknown_profiles: _,
            profiles: _,
            profiles_digest: _,
        } = self.status();
        page.sample(&RESIDENT_METERS, &[], resident_meters);
        page.sample(&BLOCKS, &[], u64::from(blocks_total));
        page.sample(&BLOCKS_OPEN, &[], u64::from(blocks_open));
        page.sample(&BLOCKS_FAILED, &[], u64::from(blocks_failed));
        page.sample(&DAMAGED_RECORDS, &[], damage.records);
        page.sample(&INDEX_LIES, &[], damage.lies_met);
        page.sample(&ARENA_USED, &[], arena_bytes_used);
        page.sample(&ARENA, &[], arena_bytes_total);
        page.sample(&ARENA_LOCKED, &[], memory_locked);
        page.sample(&WARM_UP_DONE, &[], warm_up_done);
        page.sample(&WARM_UP, &[], warm_up_elapsed_ms as f64 / 1e3);
    }
}
