//! The summary of a call about a broadcast group, for the person who is to approve it.

use kms_proto::v1::{
    AddMembersRequest, CreateGroupRequest, DeleteGroupRequest, EncryptBroadcastRequest,
    FinishGroupRotationRequest, GetGroupRequest, KeyKind, RemoveMembersRequest,
    RotateGroupKeyRequest,
};

use super::about::{About, line, read};
use crate::rpc::access::verb::Verb;

/// Meters that a line names; of the others it says how many they are.
const NAMED_MAX: usize = 5;

/// The matter of this message, of one of these calls.
pub(super) fn about_group(verb: Verb, message: &[u8]) -> About {
    match verb {
        Verb::CreateGroup => read(message, |asked: CreateGroupRequest| {
            let CreateGroupRequest { name, security_setup, client, authenticated, .. } = asked;
            let tag = if authenticated { "authenticated" } else { "without a tag" };
            line(format!(
                "a new broadcast group {name:?}: setup {security_setup}, client {client}, {tag}"
            ))
        }),
        Verb::GetGroup => read(message, |asked: GetGroupRequest| {
            line(format!("broadcast group {:?}", asked.name))
        }),
        Verb::ListGroups => line("broadcast groups".to_owned()),
        Verb::AddMembers => read(message, |asked: AddMembersRequest| {
            let risk = unreplicated(asked.allow_unreplicated);
            line(format!("{} into group {:?}{risk}", meters(&asked.meter_ids), asked.name))
        }),
        Verb::RemoveMembers => read(message, |asked: RemoveMembersRequest| {
            let titles = asked.system_titles.iter().map(hex::encode);
            let all: Vec<String> = asked.meter_ids.into_iter().chain(titles).collect();
            line(format!("{} out of group {:?}", meters(&all), asked.name))
        }),
        Verb::DeleteGroup => read(message, |asked: DeleteGroupRequest| {
            line(format!("give up group {:?}", asked.name))
        }),
        Verb::RotateGroupKey => read(message, |asked: RotateGroupKeyRequest| {
            let risk = unreplicated(asked.allow_unreplicated);
            line(format!("a new {} for group {:?}{risk}", kind(asked.kind), asked.name))
        }),
        Verb::FinishGroupRotation => read(message, |asked: FinishGroupRotationRequest| {
            let left_out = match asked.left_out.is_empty() {
                true => String::new(),
                false => format!(", leaving out {}", meters(&asked.left_out)),
            };
            let kind = kind(asked.kind);
            line(format!("end the rotation of the {kind} of group {:?}{left_out}", asked.name))
        }),
        Verb::EncryptBroadcast => read(message, |asked: EncryptBroadcastRequest| {
            let (len, name) = (asked.apdu.len(), asked.name);
            line(format!("a broadcast of {len} bytes to group {name:?}"))
        }),
        _ => About::default(),
    }
}

fn unreplicated(allowed: bool) -> &'static str {
    match allowed {
        true => ", handed out although the other site has not proved it",
        false => "",
    }
}

fn meters(ids: &[String]) -> String {
    let named = ids.get(..NAMED_MAX.min(ids.len())).unwrap_or_default();
    let more = if ids.len() > NAMED_MAX { " …" } else { "" };
    format!("{} meters {named:?}{more}", ids.len())
}

fn kind(kind: i32) -> &'static str {
    KeyKind::try_from(kind).map_or("unknown key", |kind| kind.as_str_name())
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    #[test]
    fn the_second_person_sees_the_group_and_who_is_left_out() {
        let asked = FinishGroupRotationRequest {
            name: "n\n1".into(),
            kind: KeyKind::Gbek as i32,
            left_out: (0..7).map(|n| format!("m{n}")).collect(),
        };
        let about = about_group(Verb::FinishGroupRotation, &asked.encode_to_vec());
        assert_eq!(
            about.line,
            "end the rotation of the GBEK of group \"n\\n1\", leaving out 7 meters [\"m0\", \"m1\", \"m2\", \"m3\", \
             \"m4\"] …"
        );
        let rotated = RotateGroupKeyRequest {
            name: "g".into(),
            kind: KeyKind::Gak as i32,
            allow_unreplicated: true,
        };
        let about = about_group(Verb::RotateGroupKey, &rotated.encode_to_vec());
        assert_eq!(
            about.line,
            "a new GAK for group \"g\", handed out although the other site has not proved it"
        );
        let garbled = about_group(Verb::AddMembers, &[0xFF]);
        assert_eq!(garbled.line, "a request that can't be read");
    }
}
