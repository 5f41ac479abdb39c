//! `rotate meter`: what stands of one meter whose keys are being changed, for whoever has to get it unstuck.

use kms_client::{MeterId, MeterRotation};

use crate::key_text::keys;
use crate::rotate_text::{member, tried};

/// Its keys, its campaign, the pairs that it may hold, what was tried, and what may be done next.
pub(crate) fn stands(meter_id: &MeterId, rotation: &MeterRotation) -> String {
    let MeterRotation { keys: all, campaign, member: found, pairs, actions } = rotation;
    let mut lines = vec![format!("meter {meter_id}")];
    if !all.is_empty() {
        lines.push(keys(all));
    }
    match (campaign, found) {
        (Some(campaign), Some(found)) => {
            lines.push(format!("campaign {campaign}  {}", member(found)));
            lines.extend(found.tried.iter().map(tried));
        }
        _ => lines.push("campaign  it is a member of none".to_owned()),
    }
    let pairs: Vec<String> = pairs.iter().map(ToString::to_string).collect();
    if !pairs.is_empty() {
        let pairs = pairs.join(", ");
        lines.push(format!(
            "pairs that may open what it sends, the likeliest first (GUEK/GAK): {pairs}"
        ));
    }
    if actions.is_empty() {
        lines.push("next  nothing: none of its keys waits or may be gone back to".to_owned());
    }
    for action in actions {
        lines.push(format!("next  {}", action.command));
        lines.push(format!("      {}", action.reason));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use kms_client::{KeyPair, NextAction};

    use super::*;
    use crate::rotate_text::tests::member_of;

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
