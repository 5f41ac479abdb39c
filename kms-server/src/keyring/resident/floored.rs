//! Of a resident meter that has receive floors: what they are found by.

use kms_core::{Fingerprint, KeyKind, KeyRecord, SecuritySetup, profile::FloorRule};

/// What a meter's receive floors are found by.
#[derive(Clone)]
pub(super) struct Floored {
    rule: FloorRule,
    lines: Box<[FlooredKey]>,
}

#[derive(Clone)]
struct FlooredKey {
    kind: KeyKind,
    setup: SecuritySetup,
    version: u16,
    fingerprint: Fingerprint,
}

impl Floored {
    /// Of those of a meter's live keys for which the rule keeps floors; `None`: it keeps none.
    pub(super) fn of<'k>(
        live: impl Iterator<Item = &'k KeyRecord>,
        rule: FloorRule,
    ) -> Option<Box<Self>> {
        let floored = live.filter(|key| rule.keeps(key.kind)).map(|key| FlooredKey {
            kind: key.kind,
            setup: key.setup,
            version: key.version,
            fingerprint: key.fingerprint,
        });
        (!rule.is_off()).then(|| Box::new(Self { rule, lines: floored.collect() }))
    }

    /// The rule, and the identity of this key's value, if there is a floor for what comes under it.
    pub(super) fn key(
        &self,
        kind: KeyKind,
        setup: SecuritySetup,
        version: u16,
    ) -> Option<(FloorRule, Fingerprint)> {
        let is_it =
            |line: &&FlooredKey| (line.kind, line.setup, line.version) == (kind, setup, version);
        self.lines.iter().find(is_it).map(|line| (self.rule, line.fingerprint))
    }
}
