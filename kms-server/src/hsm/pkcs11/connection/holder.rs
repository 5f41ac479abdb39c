//! The session that holds unwrapped keys of protection `HSM`.
//!
//! A session object can be used from every session until the one that made it closes. So one session
//! makes them all, does nothing else, and lives as long as its epoch.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use cryptoki::{object::ObjectHandle, session::Session};

use crate::hsm::{
    WrappedKey,
    pkcs11::{
        failure::Failure,
        keys::canary::{Keks, unwrap},
    },
};
use kms_core::{KeyId, SealedKek};

/// Unwrapped keys, at most `keys_max` (`Quirk::HeavyObjects`); the longest unused goes first, and none that
/// is in use.
pub(crate) struct Holder {
    session: Session,
    keys: HashMap<KeyId, Held>,
    /// Keys by the turn of their last use.
    turns: BTreeMap<u64, KeyId>,
    turn: u64,
    keys_max: usize,
    /// Session objects made in this epoch: see `Quirk::LeaksObjects`.
    made: u64,
}

struct Held {
    handle: UsableKey,
    wrapped: Vec<u8>,
    turn: u64,
}

/// A handle that stays good while somebody has it.
pub(crate) type UsableKey = Arc<ObjectHandle>;

impl Holder {
    /// `session` is used for nothing else.
    pub(crate) fn new(session: Session, keys_max: usize) -> Self {
        Self { session, keys: HashMap::new(), turns: BTreeMap::new(), turn: 0, keys_max, made: 0 }
    }

    /// Ends the holder, giving its session up.
    pub(crate) fn into_session(self) -> Session {
        self.session
    }

    /// Session objects made so far.
    pub(crate) fn made(&self) -> u64 {
        self.made
    }

    /// The key, unwrapped now or earlier.
    pub(crate) fn get(&mut self, keks: &Keks, key: &WrappedKey) -> Result<UsableKey, Failure> {
        self.turn += 1;
        // The same id with other wrapped bytes is another key: unwrap it, forget the old one.
        if let Some(held) = self.keys.get_mut(&key.id)
            && held.wrapped == key.wrapped
        {
            self.turns.remove(&held.turn);
            held.turn = self.turn;
            self.turns.insert(self.turn, key.id);
            return Ok(Arc::clone(&held.handle));
        }
        let handle = unwrap(&self.session, keks.use_kek, SealedKek::Use, &key.wrapped)?;
        self.made += 1;
        let handle = Arc::new(handle);
        let held =
            Held { handle: Arc::clone(&handle), wrapped: key.wrapped.clone(), turn: self.turn };
        self.make_room(key.id)?;
        self.keys.insert(key.id, held);
        self.turns.insert(self.turn, key.id);
        Ok(handle)
    }

    /// Destroys the predecessor of `id`, and the longest unused key if there is no room. Handles are
    /// given out under this object's lock, so a count of one says that nobody uses the key. Callers hold
    /// a session each and `keys_max` is at least the number of sessions: one is always free.
    fn make_room(&mut self, id: KeyId) -> Result<(), Failure> {
        if let Some(old) = self.keys.remove(&id) {
            self.turns.remove(&old.turn);
            // Whoever still uses it finishes; the object is then left to the end of the epoch.
            if Arc::strong_count(&old.handle) == 1 {
                self.session.destroy_object(*old.handle)?;
            }
        }
        while self.keys.len() >= self.keys_max {
            let unused = self.turns.iter().find_map(|(turn, id)| {
                let held = self.keys.get(id)?;
                (Arc::strong_count(&held.handle) == 1).then_some((*turn, *id))
            });
            let Some((turn, id)) = unused else { break };
            self.turns.remove(&turn);
            if let Some(held) = self.keys.remove(&id) {
                self.session.destroy_object(*held.handle)?;
            }
        }
        Ok(())
    }
}
