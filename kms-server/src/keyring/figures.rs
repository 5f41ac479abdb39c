//! The keyring's figures: those of its status.

use super::{Keyring, KeyringStatus};
use crate::telemetry::{
    catalogue::{
        ARENA, ARENA_LOCKED, ARENA_USED, BLOCKS, BLOCKS_FAILED, BLOCKS_OPEN, DAMAGED_RECORDS,
        INDEX_LIES, RESIDENT_METERS, WARM_UP, WARM_UP_DONE,
    },
    metrics::{Page, Source},
};

impl Source for Keyring {
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
