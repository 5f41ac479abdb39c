//! One at a time: whoever opens or changes a block of this process has it for himself. Between processes
//! the store's conflict decides.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::OwnedMutexGuard;

use kms_core::BlockNo;

/// A block for oneself: nobody else of this process opens or changes it until this is dropped.
pub(super) type Turn = OwnedMutexGuard<()>;

/// Locks kept although nobody holds or waits for them.
const IDLE_MAX: usize = 8192;

/// The lock of each block.
#[derive(Default)]
pub(super) struct Turns {
    locks: Mutex<HashMap<BlockNo, Arc<tokio::sync::Mutex<()>>>>,
}

impl Turns {
    /// Waits until no other task of this process changes or opens the block.
    pub(super) async fn take(&self, block: BlockNo) -> Turn {
        let lock = {
            let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
            if locks.len() > IDLE_MAX {
                locks.retain(|_, lock| Arc::strong_count(lock) > 1);
            }
            Arc::clone(locks.entry(block).or_default())
        };
        lock.lock_owned().await
    }
}
