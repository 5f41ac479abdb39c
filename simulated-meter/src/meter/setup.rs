//! One security setup (class 64): its keys as they are used, as a power loss finds them, and as they will be.

use crate::{
    dialect::{CounterOnNewKey, Dialect, PowerLoss},
    keys::{KeyId, Keys},
    meter::line::{Line, Lines},
};

/// A security setup as it leaves the factory.
#[derive(Clone, Debug)]
pub struct SetupOf {
    /// `e` of its instance 0.0.43.0.e.255.
    pub instance: u8,
    /// Its suite: 0, 1 or 2.
    pub suite: u8,
    /// Its keys.
    pub keys: Keys,
    /// The first counter that the meter sends with.
    pub first_counter: u32,
}

/// Keys that a transfer brought.
pub(super) type Changes = Vec<(KeyId, Vec<u8>)>;

#[derive(Clone, Debug)]
pub(super) struct Setup {
    pub(super) instance: u8,
    pub(super) suite: u8,
    in_use: Keys,
    /// What a power loss brings back.
    durable: Keys,
    after_restart: Changes,
    lines: Lines,
    broadcasts: Lines,
}

impl Setup {
    pub(super) fn new(of: SetupOf, dialect: &Dialect) -> Self {
        Self {
            instance: of.instance,
            suite: of.suite,
            lines: Lines::new(dialect.counter, &of.keys.unicast, of.first_counter),
            broadcasts: Lines::new(CounterOnNewKey::Reset, &of.keys.broadcast, 0),
            durable: of.keys.clone(),
            in_use: of.keys,
            after_restart: Changes::new(),
        }
    }

    pub(super) fn keys(&self) -> &Keys {
        &self.in_use
    }

    pub(super) fn key_length(&self) -> usize {
        if self.suite == 2 { 32 } else { 16 }
    }

    /// The line of the GUEK that is used.
    pub(super) fn line(&mut self) -> &mut Line {
        self.lines.of(&self.in_use.unicast)
    }

    pub(super) fn line_of(&mut self, unicast: &[u8]) -> &mut Line {
        self.lines.of(unicast)
    }

    pub(super) fn broadcast_line(&mut self) -> &mut Line {
        self.broadcasts.of(&self.in_use.broadcast)
    }

    pub(super) fn changed(&self, changes: &Changes) -> Keys {
        let mut keys = self.in_use.clone();
        changes.iter().for_each(|(id, value)| keys.replace(*id, value.clone()));
        keys
    }

    pub(super) fn apply(&mut self, changes: &Changes, dialect: &Dialect) {
        self.in_use = self.changed(changes);
        if dialect.power_loss == PowerLoss::Keeps {
            self.durable = self.in_use.clone();
        }
    }

    pub(super) fn apply_after_restart(&mut self, changes: Changes) {
        self.after_restart.extend(changes);
    }

    pub(super) fn waiting(&self) -> &Changes {
        &self.after_restart
    }

    pub(super) fn restart(&mut self, orderly: bool) {
        if !orderly {
            self.in_use = self.durable.clone();
        }
        let changes = std::mem::take(&mut self.after_restart);
        self.in_use = self.changed(&changes);
        self.durable = self.in_use.clone();
    }
}
