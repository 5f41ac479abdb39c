//! Between the wire's words for broadcast groups and ours.

use bytes::Bytes;
use kms_proto::v1;

use super::{rotation::carrier, status::Refused, transmitting, words};
use crate::{
    lifecycle::{GroupMember, Joined, Left, PER_CALL_MAX, Refusal, Rotated},
    transmitting::{Broadcast, BroadcastMessage, Envelope, NotReached, ProtectedBatch},
};
use kms_core::{
    BlockNo, KeyKind, MeterId, Numbered as _, SecuritySetup, SystemTitle,
    fact::{Group, GroupName, GroupValue},
    life::choosing::Place,
    ports::Proved,
};

const fn field(field: &'static str, problem: &'static str) -> Refused {
    Refused::Field { field, problem }
}

/// A group's name.
pub(crate) fn name(name: &str) -> Result<GroupName, Refused> {
    let problem = "a group's name is 1 to 64 visible ASCII characters without spaces";
    GroupName::new(name).map_err(|_| field("name", problem))
}

/// The kind of key that a group shares.
pub(crate) fn kind(number: i32) -> Result<KeyKind, Refused> {
    let kind = u8::try_from(number).ok().and_then(KeyKind::from_number);
    let shared = kind.filter(|kind| matches!(kind, KeyKind::Gbek | KeyKind::Gak));
    shared.ok_or(field("kind", "it is GBEK or GAK"))
}

fn setup_of(number: u32) -> Result<SecuritySetup, Refused> {
    let setup = u8::try_from(number).map(SecuritySetup);
    setup.map_err(|_| field("security_setup", "it is 0 to 255"))
}

fn class_of(number: u32) -> Result<u8, Refused> {
    let version = u8::try_from(number).ok().filter(|version| *version <= 1);
    version.ok_or(field("class_version", "it is 0 or 1"))
}

/// A group that somebody wants.
pub(crate) fn wanted(request: v1::CreateGroupRequest) -> Result<Group, Refused> {
    let setup = setup_of(request.security_setup)?;
    let over = Place { setup, kind: KeyKind::Gbek };
    Ok(Group {
        name: name(&request.name)?,
        created_ms: 0,
        setup,
        client: client_of(request.client)?,
        originator: words::title("client_title", &request.client_title)?,
        authenticated: request.authenticated,
        class_version: class_of(request.class_version)?,
        carrier: carrier(request.carrier, over)?,
        deleted_ms: None,
        wants_ms: None,
        values: Vec::new(),
        members: Vec::new(),
    })
}

fn client_of(number: u32) -> Result<u16, Refused> {
    u16::try_from(number).map_err(|_| field("client", "it is 0 to 65,535"))
}

/// Meters, of one call.
pub(crate) fn meters(name: &'static str, ids: &[String]) -> Result<Vec<MeterId>, Refused> {
    if ids.len() > PER_CALL_MAX {
        return Err(field(name, "one call is about 256 meters at most"));
    }
    ids.iter().map(|id| words::meter_id(name, id)).collect()
}

/// Titles, of one call.
pub(crate) fn titles(titles: &[Bytes]) -> Result<Vec<SystemTitle>, Refused> {
    if titles.len() > PER_CALL_MAX {
        return Err(field("system_titles", "one call is about 256 meters at most"));
    }
    titles.iter().map(|title| words::title("system_titles", title)).collect()
}

/// Where a list goes on.
pub(crate) fn page(token: &str) -> Result<BlockNo, Refused> {
    let problem = "it is what the answer before said, or empty";
    match token {
        "" => Ok(BlockNo(0)),
        token => token.parse().map(BlockNo).map_err(|_| field("page_token", problem)),
    }
}

/// A group, without its members' names.
pub(crate) fn group(group: &Group) -> v1::Group {
    v1::Group {
        name: group.name.to_string(),
        security_setup: group.setup.0.into(),
        client: group.client.into(),
        client_title: Bytes::copy_from_slice(group.originator.as_bytes()),
        authenticated: group.authenticated,
        class_version: group.class_version.into(),
        carrier: Some(words::key_carrier(&group.carrier)),
        created_ms: group.created_ms,
        values: group.values.iter().map(value).collect(),
        wants_gbek_since_ms: group.wants_ms,
        members: group.members.len() as u32,
    }
}

/// A value of a group.
pub(crate) fn value(value: &GroupValue) -> v1::GroupValue {
    let (kind, stage) = (value.kind as i32, value.stage as i32);
    v1::GroupValue { kind, kcv: kcv(value), stage, since_ms: value.since_ms }
}

fn kcv(value: &GroupValue) -> Bytes {
    Bytes::copy_from_slice(&value.kcv)
}

/// A member.
pub(crate) fn member(member: &GroupMember) -> v1::GroupMember {
    v1::GroupMember {
        meter_id: member.meter_id.as_ref().map_or_else(String::new, MeterId::to_string),
        system_title: Bytes::copy_from_slice(member.title.as_bytes()),
        gbek: member.gbek as i32,
        gak: member.gak.map_or(0, |state| state as i32),
        gbek_version: member.gbek_version.into(),
        gak_version: member.gak_version.into(),
    }
}

fn refused(refused: Vec<(MeterId, Refusal)>) -> Vec<v1::GroupRefusal> {
    refused.into_iter().map(refusal).collect()
}

fn refusal((id, why): (MeterId, Refusal)) -> v1::GroupRefusal {
    let (meter_id, code) = (id.to_string(), why.code.word().to_owned());
    v1::GroupRefusal { meter_id, code, reason: why.reason }
}

/// Meters that came in.
pub(crate) fn joined(joined: Joined, replicated: i32) -> v1::AddMembersResponse {
    let (added, staged) = (joined.added as u32, joined.staged as u32);
    v1::AddMembersResponse { added, staged, refused: refused(joined.refused), replicated }
}

/// Meters that left.
pub(crate) fn left(left: Left, replicated: i32) -> v1::RemoveMembersResponse {
    let (removed, wants_gbek) = (left.removed as u32, left.wants_gbek);
    v1::RemoveMembersResponse { removed, wants_gbek, refused: refused(left.refused), replicated }
}

/// How far a rotation is.
pub(crate) fn rotated(rotated: Rotated) -> v1::RotateGroupKeyResponse {
    let (proved, reason) = proved(rotated.proved);
    v1::RotateGroupKeyResponse {
        value: Some(value(&rotated.value)),
        already: rotated.already,
        staged: rotated.brought.staged.len() as u32,
        left: rotated.brought.left as u32,
        refused: refused(rotated.brought.refused),
        proved,
        reason,
    }
}

fn proved(proved: Proved) -> (bool, String) {
    match proved {
        Proved::Yes | Proved::NotApplicable => (true, String::new()),
        Proved::No(why) => (false, why),
    }
}

/// The envelope of a broadcast. General-ciphering names one recipient.
pub(crate) fn form(form: i32) -> Result<Envelope, Refused> {
    match transmitting::form(form, 0)?.0 {
        envelope @ (Envelope::GeneralGlo | Envelope::Service) => Ok(envelope),
        _ => Err(field("form", "a broadcast is GENERAL_GLO or GLO")),
    }
}

/// A broadcast; `None`: its messages are not what was asked for.
pub(crate) fn broadcast(
    broadcast: Broadcast,
    members: usize,
) -> Option<v1::EncryptBroadcastResponse> {
    let Broadcast { messages, not_reached } = broadcast;
    let messages = messages.into_iter().map(message).collect::<Option<Vec<_>>>()?;
    let not_reached = not_reached.iter().map(unreached).collect();
    Some(v1::EncryptBroadcastResponse { messages, not_reached, members: members as u32 })
}

fn message(message: BroadcastMessage) -> Option<v1::BroadcastMessage> {
    let BroadcastMessage { apdu, outcome, gbek, gak, reaches, may_reach } = message;
    let lengths = vec![apdu.len() as u32];
    let batch = ProtectedBatch { apdus: apdu, lengths, outcomes: vec![outcome] };
    Some(v1::BroadcastMessage {
        protected: Some(transmitting::protected(batch).ok()?),
        gbek_kcv: kcv(&gbek),
        gak_kcv: gak.map_or_else(Bytes::new, |gak| kcv(&gak)),
        reaches: reaches as u32,
        may_reach: may_reach as u32,
    })
}

fn unreached(NotReached { title, reason }: &NotReached) -> v1::NotReachedMember {
    v1::NotReachedMember {
        system_title: Bytes::copy_from_slice(title.as_bytes()),
        reason: reason.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_read_as_it_was_asked_for_and_shown_so() {
        let asked = v1::CreateGroupRequest {
            name: "north".into(),
            security_setup: 1,
            client: 5,
            client_title: Bytes::from_static(b"AMIHES\x00\x01"),
            authenticated: true,
            class_version: 1,
            carrier: None,
        };
        let read = wanted(asked.clone()).unwrap();
        assert_eq!(
            (read.setup, read.client, read.carrier.setup),
            (SecuritySetup(1), 5, read.setup)
        );
        let shown = group(&read);
        assert_eq!(
            (shown.name, shown.client_title),
            (asked.name.clone(), asked.client_title.clone())
        );
        for wrong in [
            v1::CreateGroupRequest { name: "a b".into(), ..asked.clone() },
            v1::CreateGroupRequest { security_setup: 256, ..asked.clone() },
            v1::CreateGroupRequest { client: 65_536, ..asked.clone() },
            v1::CreateGroupRequest { client_title: Bytes::new(), ..asked.clone() },
            v1::CreateGroupRequest { class_version: 2, ..asked.clone() },
        ] {
            assert!(wanted(wrong).is_err());
        }
        assert_eq!(kind(2).unwrap(), KeyKind::Gbek);
        assert!(kind(1).is_err() && kind(0).is_err());
        assert!(form(0).is_ok() && form(v1::CipheringForm::GeneralCiphering as i32).is_err());
        assert!(meters("meter_ids", &vec!["m".to_owned(); PER_CALL_MAX + 1]).is_err());
        assert_eq!(page("").unwrap(), BlockNo(0));
        assert!(page("x").is_err());
    }
}
