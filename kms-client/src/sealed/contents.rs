//! What a file holds, for its header: who is asked to approve of the file sees it there, and the site takes nothing
//! else of it.

use std::collections::BTreeMap;

use kms_core::wire::sealed::POLICIES_MAX;
use kms_proto::v1;

use crate::meter::{KeyKind, MeterPolicy, NewMeter, Protection};

/// The lines of a file: how many, and what they bring.
#[derive(Clone, Debug, Default)]
pub struct Contents {
    lines: u64,
    keys: BTreeMap<(KeyKind, Option<Protection>), u64>,
    policies: Vec<MeterPolicy>,
    more_policies: bool,
    /// Only the number of lines was said.
    unsaid: bool,
}

impl Contents {
    /// One more line.
    pub fn add(&mut self, meter: &NewMeter) {
        self.lines += 1;
        for key in &meter.keys {
            *self.keys.entry((key.kind, key.protection)).or_default() += 1;
        }
        let Some(policy) = &meter.policy else { return };
        if self.policies.contains(policy) {
            return;
        }
        if self.policies.len() < POLICIES_MAX {
            self.policies.push(policy.clone());
        } else {
            self.more_policies = true;
        }
    }

    /// The number of lines.
    pub fn lines(&self) -> u64 {
        self.lines
    }

    pub(super) fn to_wire(&self) -> Option<v1::SealedContents> {
        if self.unsaid {
            return None;
        }
        let keys = self.keys.iter().map(|((kind, protection), count)| v1::SealedKeys {
            kind: *kind as i32,
            protection: protection.map_or(0, |protection| protection as i32),
            count: *count,
        });
        Some(v1::SealedContents {
            keys: keys.collect(),
            policies: self.policies.iter().map(MeterPolicy::to_wire).collect(),
            more_policies: self.more_policies,
        })
    }
}

/// So many lines of which nothing is said.
impl From<u64> for Contents {
    fn from(lines: u64) -> Self {
        Self { lines, unsaid: true, ..Self::default() }
    }
}
