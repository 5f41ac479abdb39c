//! Whether a sealed file holds what its header says: somebody may have approved of that, and of no more.

use std::collections::HashMap;

use kms_proto::v1::{ImportLine, SealedContents};

use crate::lifecycle::Refusal;
use kms_core::RefusalCode;

/// What a header names, and how much of it the stream has brought.
#[derive(Debug)]
pub(super) struct Said {
    contents: SealedContents,
    /// By kind and protection.
    brought: HashMap<(i32, i32), u64>,
}

impl Said {
    pub(super) fn new(contents: SealedContents) -> Self {
        Self { contents, brought: HashMap::new() }
    }

    /// Counts these lines in; refuses what the header does not name.
    pub(super) fn bring(&mut self, lines: &[ImportLine]) -> Result<(), Refusal> {
        let meters = || lines.iter().filter_map(|line| line.meter.as_ref());
        for key in meters().flat_map(|meter| &meter.keys) {
            let pair = (key.kind, key.protection);
            let brought = self.brought.entry(pair).or_default();
            *brought += 1;
            let of_pair = self.contents.keys.iter().filter(|it| (it.kind, it.protection) == pair);
            if *brought > of_pair.map(|it| it.count).sum() {
                return Err(differ("keys of a kind or protection, or more of them,"));
            }
        }
        let is_named =
            |policy| self.contents.more_policies || self.contents.policies.contains(policy);
        match meters().filter_map(|meter| meter.policy.as_ref()).all(is_named) {
            true => Ok(()),
            false => Err(differ("a policy")),
        }
    }
}

fn differ(what: &str) -> Refusal {
    let reason =
        format!("a line of the file has {what} that its header does not name: seal it again");
    Refusal { code: RefusalCode::ContentsDiffer, reason }
}

#[cfg(test)]
mod tests {
    use kms_proto::v1::{MeterPolicy, NewKey, NewMeter, SealedKeys};

    use super::*;

    fn line(kind: i32, policy: Option<MeterPolicy>) -> ImportLine {
        let keys = vec![NewKey { kind, ..NewKey::default() }];
        ImportLine { line: 1, meter: Some(NewMeter { keys, policy, ..NewMeter::default() }) }
    }

    #[test]
    fn what_a_header_does_not_name_is_none_of_its_file() {
        let policy = MeterPolicy { client_title: vec![1; 8].into(), ..MeterPolicy::default() };
        let weak = MeterPolicy { allow_encryption_only: true, ..MeterPolicy::default() };
        let contents = SealedContents {
            keys: vec![SealedKeys { kind: 1, protection: 0, count: 2 }],
            policies: vec![policy.clone()],
            more_policies: false,
        };
        let said = || Said::new(contents.clone());
        let refused = |lines: &[ImportLine]| said().bring(lines).map_err(|it| it.code);
        let differs = Err(RefusalCode::ContentsDiffer);
        assert_eq!(refused(&[line(1, None), line(1, Some(policy.clone()))]), Ok(()));
        assert_eq!(refused(&[line(3, None)]), differs);
        assert_eq!(refused(&[line(1, Some(weak.clone()))]), differs);
        let mut stream = said();
        assert!(stream.bring(&[line(1, None)]).is_ok());
        assert!(stream.bring(&[line(1, None)]).is_ok());
        assert!(stream.bring(&[line(1, None)]).is_err(), "a third one");
        let others = SealedContents { more_policies: true, ..contents };
        assert!(Said::new(others).bring(&[line(1, Some(weak))]).is_ok());
    }
}
