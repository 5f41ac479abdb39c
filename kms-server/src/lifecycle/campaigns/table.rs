//! The campaigns that this node drives, as it has them in memory.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use kms_core::{
    SystemTitle,
    campaign::{Campaign, CampaignId, driving::Driven},
};

/// A campaign that is driven here.
#[derive(Debug)]
pub(in crate::lifecycle) struct Held {
    /// It and its members.
    pub(super) driven: Driven,
    /// Members that a call prepares now, with their labels.
    pub(super) busy: BTreeMap<SystemTitle, u8>,
    /// The last exposed member whose record was looked at.
    pub(super) looked: Option<SystemTitle>,
}

impl Held {
    /// One that nobody has begun to work on here.
    pub(super) fn of(driven: Driven) -> Self {
        Self { driven, busy: BTreeMap::new(), looked: None }
    }
}

/// One at a time changes it.
pub(super) type Shared = Arc<tokio::sync::Mutex<Held>>;

/// All of them.
#[derive(Debug, Default)]
pub(in crate::lifecycle) struct Campaigns {
    /// The name of this node.
    pub(super) node: String,
    /// A std lock: held for a look.
    /// By the campaign's place: as many as are remembered.
    held: Mutex<BTreeMap<u8, Entry>>,
    /// Those that were looked at and are driven elsewhere, or are over: as they were stored then. As many as are remembered.
    seen: Mutex<BTreeMap<u8, Arc<Driven>>>,
}

/// What is known of one without waiting for whoever has it.
#[derive(Clone, Debug)]
struct Entry {
    id: CampaignId,
    name: String,
    shared: Shared,
}

impl Campaigns {
    /// For the node of this name.
    pub(in crate::lifecycle) fn of_node(node: String) -> Self {
        Self { node, ..Self::default() }
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<u8, Entry>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The one of this identity, if it is driven here.
    pub(super) fn get(&self, id: &CampaignId) -> Option<Shared> {
        self.held().values().find(|it| it.id == *id).map(|it| Arc::clone(&it.shared))
    }

    /// The one in a place.
    pub(super) fn at(&self, slot: u8) -> Option<Shared> {
        self.held().get(&slot).map(|it| Arc::clone(&it.shared))
    }

    /// The one of this name.
    pub(super) fn named(&self, name: &str) -> Option<Shared> {
        self.held().values().find(|it| it.name == name).map(|it| Arc::clone(&it.shared))
    }

    /// All that are driven here.
    pub(super) fn all(&self) -> Vec<Shared> {
        self.held().values().map(|it| Arc::clone(&it.shared)).collect()
    }

    /// One as it was looked at before, if it has not changed since.
    pub(super) fn seen(&self, stored: &Campaign) -> Option<Arc<Driven>> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.get(&stored.slot).filter(|it| it.campaign == *stored).cloned()
    }

    /// Remembers one that was looked at.
    pub(super) fn note_seen(&self, driven: &Arc<Driven>) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.insert(driven.campaign.slot, Arc::clone(driven));
    }

    /// Drives one; somebody else was first: that one.
    pub(super) fn put(&self, driven: Driven) -> Shared {
        let Campaign { slot, id, name, .. } = &driven.campaign;
        let (slot, id, name) = (*slot, *id, name.clone());
        let mut all = self.held();
        if let Some(known) = all.get(&slot).filter(|it| it.id == id) {
            return Arc::clone(&known.shared);
        }
        let shared = Arc::new(tokio::sync::Mutex::new(Held::of(driven)));
        all.insert(slot, Entry { id, name, shared: Arc::clone(&shared) });
        shared
    }

    /// Drives it no longer: another node has changed it, and it is read again when it is next asked for.
    pub(super) fn forget(&self, id: &CampaignId) {
        self.held().retain(|_, it| it.id != *id);
    }
}
