//! Key transfer: class 64, method 2.

use crate::{
    dialect::{Applies, Arrays, ClassVersion, ResultWord},
    keys::KeyId,
    meter::{
        setup::{Changes, Setup},
        state::{Association, Meter},
    },
    service::result,
    value::Value,
    wrap,
};

impl Meter {
    /// The result that is told, and the keys that were taken: both as the dialect has it.
    pub(super) fn transfer(
        &self,
        with: Association,
        instance: u8,
        argument: Option<&Value>,
    ) -> (u8, Changes) {
        if !with.manages && with.setup != Some(instance) {
            return (result::DENIED, Changes::new());
        }
        let Some(setup) = self.setup(instance) else { return (result::UNDEFINED, Changes::new()) };
        let Some(items) = argument.and_then(items) else {
            return (result::TYPE_UNMATCHED, Changes::new());
        };
        let numbered = items.iter().enumerate();
        let each: Vec<_> = numbered.map(|(at, item)| self.element(setup, at, *item)).collect();
        let all = each.iter().all(Option::is_some);
        let none = self.dialect.arrays == Arrays::Atomic && !all;
        let taken = if none { Changes::new() } else { each.into_iter().flatten().collect() };
        match self.dialect.result {
            ResultWord::True if all => (result::SUCCESS, taken),
            ResultWord::OkNotApplied => (result::SUCCESS, Changes::new()),
            ResultWord::True | ResultWord::NotOkApplied => (result::OTHER, taken),
        }
    }

    /// One key of a transfer. All are unwrapped by the KEK that was there before it.
    fn element(
        &self,
        setup: &Setup,
        at: usize,
        (id, wrapped): (u8, &[u8]),
    ) -> Option<(KeyId, Vec<u8>)> {
        let id = KeyId::of(id)?;
        let unknown = id == KeyId::Kek && self.dialect.class == ClassVersion::V0;
        let late = at > 0 && self.dialect.arrays == Arrays::FirstAlone;
        if unknown || late {
            return None;
        }
        let key = wrap::unwrap(&setup.keys().kek, wrapped)?;
        (key.len() == setup.key_length()).then_some((id, key))
    }

    /// What was taken begins to count, now or later.
    pub(super) fn settle(&mut self, with: Association, instance: u8, changes: Changes) {
        let dialect = self.dialect;
        if changes.is_empty() {
            return;
        }
        match dialect.applies {
            Applies::AtRelease => {
                if let Some(session) = self.sessions.get_mut(&with.client) {
                    session.at_release.push((instance, changes));
                }
            }
            Applies::AtOnce => {
                if let Some(setup) = self.setup_mut(instance) {
                    setup.apply(&changes, &dialect);
                }
            }
            Applies::AfterReboot => {
                if let Some(setup) = self.setup_mut(instance) {
                    setup.apply_after_restart(changes);
                }
            }
        }
    }
}

/// An array of structures of key id and wrapped key; an empty one is none.
fn items(argument: &Value) -> Option<Vec<(u8, &[u8])>> {
    let Value::Array(items) = argument else { return None };
    if items.is_empty() {
        return None;
    }
    items.iter().map(pair).collect()
}

fn pair(item: &Value) -> Option<(u8, &[u8])> {
    match item {
        Value::Structure(fields) => match fields.as_slice() {
            [Value::Enum(id), Value::Octets(wrapped)] => Some((*id, wrapped)),
            _ => None,
        },
        _ => None,
    }
}
