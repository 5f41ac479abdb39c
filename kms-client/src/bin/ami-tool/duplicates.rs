//! Key values that two meters of one file share. Kept as keyed 128-bit hashes whose key is random
//! and dies with the process: nothing here says anything of a key.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher as _, RandomState};

use kms_client::{KeyKind, NewMeter};

/// Values kept at most: about 300 MiB.
const VALUES_MAX: usize = 5_000_000;

/// The GUEK values seen so far.
pub(crate) struct SeenValues {
    keys: [RandomState; 2],
    seen: HashMap<[u64; 2], (u64, u64)>,
}

impl SeenValues {
    pub(crate) fn new() -> Self {
        Self { keys: [RandomState::new(), RandomState::new()], seen: HashMap::new() }
    }

    /// Whether no further value is kept, so that duplicates may go unseen.
    pub(crate) fn is_full(&self) -> bool {
        self.seen.len() >= VALUES_MAX
    }

    /// One warning for each GUEK of `meter` that another meter had on an earlier line.
    pub(crate) fn warnings(&mut self, line: u64, meter: &NewMeter) -> Vec<String> {
        let owner = self.keys[0].hash_one(&meter.meter_id);
        let values = meter.keys.iter().filter(|key| key.kind == KeyKind::Guek);
        let hashes: Vec<_> = values
            .map(|key| self.keys.each_ref().map(|hash| hash.hash_one(key.value.expose_key_bytes())))
            .collect();
        let mut warnings = Vec::new();
        for hash in hashes {
            let full = self.is_full();
            match self.seen.entry(hash) {
                Entry::Occupied(first) if first.get().1 != owner => {
                    let first = first.get().0;
                    warnings
                        .push(format!("its GUEK has the same value as the one on line {first}"));
                }
                Entry::Vacant(free) if !full => {
                    free.insert((line, owner));
                }
                _ => {}
            }
        }
        warnings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meter(id: &str, guek: &str) -> NewMeter {
        let json = format!(
            r#"{{"meter_id":"{id}","system_title":"4D4D4D0000BC614E","keys":[{{"kind":"GUEK","value":"{guek}"}}]}}"#
        );
        NewMeter::from_json(json.as_bytes()).unwrap()
    }

    #[test]
    fn a_value_of_another_meter_is_reported_and_ones_own_is_not() {
        let mut seen = SeenValues::new();
        assert!(seen.warnings(1, &meter("a", "D491470F47126332B07D1923B3504188")).is_empty());
        assert!(seen.warnings(2, &meter("a", "D491470F47126332B07D1923B3504188")).is_empty());
        assert!(seen.warnings(3, &meter("b", "E80A1C5DCB8FF2B6E3DCCD45A4F9C601")).is_empty());
        let warnings = seen.warnings(4, &meter("c", "D491470F47126332B07D1923B3504188"));
        assert_eq!(warnings, ["its GUEK has the same value as the one on line 1"]);
    }
}
