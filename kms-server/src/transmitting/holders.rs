//! What this node knows of the others as holders: whether one is silent, and whether somebody is finding out.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use kms_core::audit::NodeId;

/// The holders that were asked. Bounded by the nodes of the site.
#[derive(Default)]
pub(super) struct Holders(Mutex<BTreeMap<NodeId, Holder>>);

#[derive(Clone, Copy, Default)]
struct Holder {
    /// A call is under way that does not end with its caller.
    is_judged: bool,
    is_silent: bool,
}

/// The one call to a holder that finds out.
pub(super) struct Turn {
    holders: Arc<Holders>,
    holder: NodeId,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.holders.lock().entry(self.holder).or_default().is_judged = false;
    }
}

impl Holders {
    /// `None`: another call finds out.
    pub(super) fn begin(self: &Arc<Self>, holder: NodeId) -> Option<Turn> {
        let was = std::mem::replace(&mut self.lock().entry(holder).or_default().is_judged, true);
        (!was).then(|| Turn { holders: Arc::clone(self), holder })
    }

    pub(super) fn is_silent(&self, holder: NodeId) -> bool {
        self.lock().get(&holder).is_some_and(|it| it.is_silent)
    }

    pub(super) fn found(&self, holder: NodeId, is_silent: bool) {
        self.lock().entry(holder).or_default().is_silent = is_silent;
    }

    /// Held for a look, never across an `.await`.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, Holder>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
