//! `rotate meter`: what stands of one meter whose keys are being changed, for whoever has to get it unstuck.

use kms_client::{KeyPair, MeterId, MeterRotation, NextAction};

use crate::key_text::keys;
use crate::rotate_text::{member, tried};

/// Its keys, its campaign, the pairs that it may hold, what was tried, and what may be done next.
pub(crate) fn stands(meter_id: &MeterId, rotation: &MeterRotation) -> String {
    let mut lines = vec![format!("meter {meter_id}")];
    lines.extend(Some(keys(&rotation.keys)).filter(|keys| !keys.is_empty()));
    lines.extend(of_campaign(rotation));
    lines.extend(pairs(&rotation.pairs));
    lines.extend(actions(&rotation.actions));
    lines.join("\n")
}

fn of_campaign(rotation: &MeterRotation) -> Vec<String> {
    let (Some(campaign), Some(found)) = (&rotation.campaign, &rotation.member) else {
        return vec!["campaign  it is a member of none".to_owned()];
    };
    let mut lines = vec![format!("campaign {campaign}  {}", member(found))];
    lines.extend(found.tried.iter().map(tried));
    lines
}

fn pairs(pairs: &[KeyPair]) -> Option<String> {
    let pairs: Vec<String> = pairs.iter().map(ToString::to_string).collect();
    let text = "pairs that may open what it sends, the likeliest first (GUEK/GAK)";
    (!pairs.is_empty()).then(|| format!("{text}: {}", pairs.join(", ")))
}

fn actions(actions: &[NextAction]) -> Vec<String> {
    if actions.is_empty() {
        return vec!["next  nothing: none of its keys waits or may be gone back to".to_owned()];
    }
    let two = |it: &NextAction| format!("next  {}\n      {}", it.command, it.reason);
    actions.iter().map(two).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rotate_samples_tests::member_of;

    #[test]
    fn a_stuck_meter_says_what_was_tried_and_what_may_be_done() {
        let pair = |encryption_key_version| KeyPair {
            encryption_key_version,
            authentication_key_version: 1,
        };
        let action = NextAction {
            command: "ami-tool key next-transfer m-1 GUEK".into(),
            reason: "version 2 is staged".into(),
        };
        let rotation = MeterRotation {
            keys: Vec::new(),
            campaign: Some("spring".into()),
            member: Some(member_of()),
            pairs: vec![pair(2), pair(1)],
            actions: vec![action],
        };
        let id = MeterId::new("m-1").unwrap();
        let text = stands(&id, &rotation);
        assert!(text.contains("campaign spring  m-1  4D4D4D4D4D4D4D4D  MMM  FAILED"), "{text}");
        assert!(text.contains("\ntried  1970-01-01T00:00:00Z  2/1  ANSWERED  DB08…\n"), "{text}");
        assert!(text.contains("(GUEK/GAK): 2/1, 1/1\n"), "{text}");
        assert!(
            text.ends_with("next  ami-tool key next-transfer m-1 GUEK\n      version 2 is staged")
        );
        let none = MeterRotation { campaign: None, actions: Vec::new(), ..rotation };
        let text = stands(&id, &none);
        assert!(text.contains("a member of none") && text.contains("next  nothing"), "{text}");
    }
}
