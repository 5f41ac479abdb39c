//! Broadcast groups: meters that share one GBEK. A broadcast is protected once for each value that members may use, and all
//! of its messages are to be sent.

use std::sync::Arc;

use bytes::Bytes;
use dlms::SystemTitle;
use kms_proto::v1;
use serde::Serialize;

pub use kms_core::{fact::ValueStage, life::grouping::MemberState};

use crate::call::{CallError, ProtocolError};
use crate::meter::{KeyKind, numbered};
use crate::names::{MeterId, title_hex};
use crate::replicated::Replicated;
use crate::rotation::KeyCarrier;
use crate::sites::Errand;
use crate::stubs;
use crate::transmitting::{self, CipheringForm, Protected};
use crate::transport::Transport;

/// Meters of one call: more are asked for in several.
pub const GROUP_CALL_MAX: usize = 256;

/// The calls about broadcast groups.
#[derive(Clone)]
pub struct Groups {
    transport: Arc<Transport>,
}

/// A group that is to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewGroup {
    /// 1 to 64 visible ASCII characters.
    pub name: String,
    /// e in `0.0.43.0.e.255` of its members.
    pub security_setup: u8,
    /// The client that broadcasts.
    pub client: u16,
    /// Its title, which every member's policy has for it.
    pub client_title: SystemTitle,
    /// Broadcasts get a tag, under a GAK that all members share.
    pub authenticated: bool,
    /// Of COSEM class 64 in its members.
    pub class_version: u8,
    /// `None`: general-glo-ciphering over the group's setup, as the meter's default client.
    pub carrier: Option<KeyCarrier>,
}

/// A value that a group has, or had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GroupValue {
    /// GBEK or GAK.
    pub kind: KeyKind,
    /// Its check value, in hex.
    pub kcv: String,
    /// How far it is.
    pub stage: ValueStage,
    /// Since when it is the group's; milliseconds since 1970.
    pub since_ms: u64,
}

/// A broadcast group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// e in `0.0.43.0.e.255` of its members.
    pub security_setup: u32,
    /// The client that broadcasts.
    pub client: u32,
    /// Its title.
    #[serde(with = "title_hex")]
    pub client_title: SystemTitle,
    /// Broadcasts get a tag.
    pub authenticated: bool,
    /// When it was made; milliseconds since 1970.
    pub created_ms: u64,
    /// Its values.
    pub values: Vec<GroupValue>,
    /// A member that knows the GBEK left then: rotate it. Milliseconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wants_gbek_since_ms: Option<u64>,
    /// The number of its members.
    pub members: u32,
}

/// A member, and how far it is with the values that it is to have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GroupMember {
    /// Empty: its record is gone, or can't be read.
    pub meter_id: String,
    /// Its title.
    #[serde(with = "title_hex")]
    pub system_title: SystemTitle,
    /// With the GBEK.
    pub gbek: MemberState,
    /// With the GAK; `None`: the group has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gak: Option<MemberState>,
    /// The version of that GBEK at this meter; 0: it has none.
    pub gbek_version: u32,
    /// The same of the GAK.
    pub gak_version: u32,
}

/// A group with its members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GroupView {
    /// The group.
    pub group: Group,
    /// Its members, in the order of their titles.
    pub members: Vec<GroupMember>,
    /// Of a rotation: all members have confirmed, and it can be ended.
    pub complete: bool,
}

/// Why something was not done with a meter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GroupRefusal {
    /// The meter.
    pub meter_id: String,
    /// For machines.
    pub code: String,
    /// For people.
    pub reason: String,
}

/// Meters that came into a group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MembersAdded {
    /// Members that are new.
    pub added: u32,
    /// Members that have the group's keys staged since.
    pub staged: u32,
    /// Meters that are no members, or have not got its keys.
    pub refused: Vec<GroupRefusal>,
    /// Whether the other site has that.
    #[serde(skip_serializing_if = "Replicated::is_nothing")]
    pub replicated: Replicated,
}

/// Meters that left a group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MembersRemoved {
    /// How many.
    pub removed: u32,
    /// The group wants another GBEK.
    pub wants_gbek: bool,
    /// Meters that are no members.
    pub refused: Vec<GroupRefusal>,
    /// Whether the other site has that.
    #[serde(skip_serializing_if = "Replicated::is_nothing")]
    pub replicated: Replicated,
}

/// How far a group's rotation is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GroupRotated {
    /// The new value.
    pub value: GroupValue,
    /// It was begun before.
    pub already: bool,
    /// Members at which it was staged now.
    pub staged: u32,
    /// Members that have had no turn yet: ask again.
    pub left: u32,
    /// Members that it could not be staged at.
    pub refused: Vec<GroupRefusal>,
    /// The other site has proved what was staged now, or there is none.
    pub proved: bool,
    /// Why it is not proved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A group after its rotation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GroupChanged {
    /// The group.
    pub group: Group,
    /// Whether the other site has that.
    #[serde(skip_serializing_if = "Replicated::is_nothing")]
    pub replicated: Replicated,
}

/// One message of a broadcast.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BroadcastMessage {
    /// The ciphered APDU, or why there is none.
    pub protected: Protected,
    /// The check value of the GBEK, in hex.
    pub gbek_kcv: String,
    /// The same of the GAK; `None`: it has no tag.
    pub gak_kcv: Option<String>,
    /// Members that use these values.
    pub reaches: u32,
    /// Members that may use them.
    pub may_reach: u32,
}

/// A broadcast. All of its messages are to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broadcast {
    /// One for each value that members may use.
    pub messages: Vec<BroadcastMessage>,
    /// Members that none of them is for, and why.
    pub not_reached: Vec<(SystemTitle, String)>,
    /// The number of members.
    pub members: u32,
}

impl Groups {
    pub(crate) fn of(transport: Arc<Transport>) -> Self {
        Self { transport }
    }

    /// Makes a group. Not tried again once it may have arrived.
    pub async fn create(&self, new: &NewGroup) -> Result<GroupChanged, CallError> {
        let send = |link, request| async move { stubs::groups(link).create_group(request).await };
        let reply = self.transport.call(Errand::Write, new.to_wire(), send).await?;
        changed(reply.group, reply.replicated)
    }

    /// A group with its members.
    pub async fn get(&self, name: &str) -> Result<GroupView, CallError> {
        let send = |link, request| async move { stubs::groups(link).get_group(request).await };
        let request = v1::GetGroupRequest { name: name.to_owned() };
        let reply = self.transport.call(Errand::AtPrimary, request, send).await?;
        let members = reply.members.into_iter().map(GroupMember::from_wire);
        Ok(GroupView {
            group: Group::from_wire(reply.group)?,
            members: members.collect::<Result<_, _>>()?,
            complete: reply.complete,
        })
    }

    /// All groups. The service looks through all blocks of the domain.
    pub async fn list(&self) -> Result<Vec<Group>, CallError> {
        let (mut groups, mut page_token) = (Vec::new(), String::new());
        loop {
            let send =
                |link, request| async move { stubs::groups(link).list_groups(request).await };
            let request = v1::ListGroupsRequest { page_token };
            let reply = self.transport.call(Errand::AtPrimary, request, send).await?;
            for group in reply.groups {
                groups.push(Group::from_wire(Some(group))?);
            }
            page_token = reply.next_page_token;
            if page_token.is_empty() {
                return Ok(groups);
            }
        }
    }

    /// Takes meters in, some at a time. It changes nothing twice.
    pub async fn add(
        &self,
        name: &str,
        meters: &[MeterId],
        allow_unreplicated: bool,
    ) -> Result<MembersAdded, CallError> {
        let mut all = MembersAdded::default();
        for some in meters.chunks(GROUP_CALL_MAX) {
            let send =
                |link, request| async move { stubs::groups(link).add_members(request).await };
            let meter_ids = ids(some);
            let request =
                v1::AddMembersRequest { name: name.to_owned(), meter_ids, allow_unreplicated };
            let reply = self.transport.call(Errand::AtPrimary, request, send).await?;
            all.added += reply.added;
            all.staged += reply.staged;
            all.refused.extend(reply.refused.into_iter().map(GroupRefusal::from_wire));
            all.replicated = Replicated::from_wire(reply.replicated)?;
        }
        Ok(all)
    }

    /// Takes meters out: by title those whose records are gone. At most [`GROUP_CALL_MAX`] of each.
    pub async fn remove(
        &self,
        name: &str,
        meters: &[MeterId],
        titles: &[SystemTitle],
    ) -> Result<MembersRemoved, CallError> {
        let send = |link, request| async move { stubs::groups(link).remove_members(request).await };
        let titles = titles.iter().map(|title| Bytes::copy_from_slice(title.as_bytes()));
        let request = v1::RemoveMembersRequest {
            name: name.to_owned(),
            meter_ids: ids(meters),
            system_titles: titles.collect(),
        };
        let reply = self.transport.call(Errand::Write, request, send).await?;
        Ok(MembersRemoved {
            removed: reply.removed,
            wants_gbek: reply.wants_gbek,
            refused: reply.refused.into_iter().map(GroupRefusal::from_wire).collect(),
            replicated: Replicated::from_wire(reply.replicated)?,
        })
    }

    /// Gives up a group that has no members.
    pub async fn delete(&self, name: &str) -> Result<Replicated, CallError> {
        let send = |link, request| async move { stubs::groups(link).delete_group(request).await };
        let request = v1::DeleteGroupRequest { name: name.to_owned() };
        let reply = self.transport.call(Errand::Write, request, send).await?;
        Ok(Replicated::from_wire(reply.replicated)?)
    }

    /// Has one value made and staged at members, as many as one call does: where some are left, the same call goes on with
    /// the same value.
    pub async fn rotate(
        &self,
        name: &str,
        kind: KeyKind,
        allow_unreplicated: bool,
    ) -> Result<GroupRotated, CallError> {
        let send =
            |link, request| async move { stubs::groups(link).rotate_group_key(request).await };
        let (name, kind) = (name.to_owned(), kind as i32);
        let request = v1::RotateGroupKeyRequest { name, kind, allow_unreplicated };
        let reply = self.transport.call(Errand::AtPrimary, request, send).await?;
        let value = reply.value.ok_or(ProtocolError::Missing("value"))?;
        Ok(GroupRotated {
            value: GroupValue::from_wire(&value)?,
            already: reply.already,
            staged: reply.staged,
            left: reply.left,
            refused: reply.refused.into_iter().map(GroupRefusal::from_wire).collect(),
            proved: reply.proved,
            reason: Some(reply.reason).filter(|reason| !reason.is_empty()),
        })
    }

    /// Ends a rotation. Members that have not confirmed are named, exactly.
    pub async fn finish(
        &self,
        name: &str,
        kind: KeyKind,
        left_out: &[MeterId],
    ) -> Result<GroupChanged, CallError> {
        let send =
            |link, request| async move { stubs::groups(link).finish_group_rotation(request).await };
        let left_out = ids(left_out);
        let request =
            v1::FinishGroupRotationRequest { name: name.to_owned(), kind: kind as i32, left_out };
        let reply = self.transport.call(Errand::Write, request, send).await?;
        changed(reply.group, reply.replicated)
    }

    /// Protects a broadcast, in general-glo-ciphering or the service's own form. Never tried again once it may have arrived:
    /// counters are spent.
    pub async fn broadcast(
        &self,
        name: &str,
        apdu: Bytes,
        form: CipheringForm,
    ) -> Result<Broadcast, CallError> {
        let send =
            |link, request| async move { stubs::groups(link).encrypt_broadcast(request).await };
        let request =
            v1::EncryptBroadcastRequest { name: name.to_owned(), apdu, form: form as i32 };
        let reply = self.transport.call(Errand::Write, request, send).await?;
        let messages = reply.messages.into_iter().map(BroadcastMessage::from_wire);
        let unreached = |one: v1::NotReachedMember| Ok((title(&one.system_title)?, one.reason));
        Ok(Broadcast {
            messages: messages.collect::<Result<_, _>>()?,
            not_reached: reply
                .not_reached
                .into_iter()
                .map(unreached)
                .collect::<Result<_, ProtocolError>>()?,
            members: reply.members,
        })
    }
}

fn ids(meters: &[MeterId]) -> Vec<String> {
    meters.iter().map(MeterId::to_string).collect()
}

fn title(bytes: &[u8]) -> Result<SystemTitle, ProtocolError> {
    let bytes = bytes.try_into().map_err(|_| ProtocolError::Missing("system_title"))?;
    Ok(SystemTitle::new(bytes))
}

fn changed(group: Option<v1::Group>, replicated: i32) -> Result<GroupChanged, CallError> {
    let replicated = Replicated::from_wire(replicated)?;
    Ok(GroupChanged { group: Group::from_wire(group)?, replicated })
}

impl NewGroup {
    fn to_wire(&self) -> v1::CreateGroupRequest {
        let carrier = |KeyCarrier { security_setup, client, form }: KeyCarrier| v1::KeyCarrier {
            security_setup: security_setup.into(),
            client: client.into(),
            form: form as i32,
        };
        v1::CreateGroupRequest {
            name: self.name.clone(),
            security_setup: self.security_setup.into(),
            client: self.client.into(),
            client_title: Bytes::copy_from_slice(self.client_title.as_bytes()),
            authenticated: self.authenticated,
            class_version: self.class_version.into(),
            carrier: self.carrier.map(carrier),
        }
    }
}

impl GroupValue {
    fn from_wire(wire: &v1::GroupValue) -> Result<Self, ProtocolError> {
        let (kind, stage) = (numbered(wire.kind)?, numbered(wire.stage)?);
        let kcv = hex::encode_upper(&wire.kcv);
        Ok(Self { kind, kcv, stage, since_ms: wire.since_ms })
    }
}

impl Group {
    fn from_wire(wire: Option<v1::Group>) -> Result<Self, ProtocolError> {
        let wire = wire.ok_or(ProtocolError::Missing("group"))?;
        Ok(Self {
            name: wire.name,
            security_setup: wire.security_setup,
            client: wire.client,
            client_title: title(&wire.client_title)?,
            authenticated: wire.authenticated,
            created_ms: wire.created_ms,
            values: wire.values.iter().map(GroupValue::from_wire).collect::<Result<_, _>>()?,
            wants_gbek_since_ms: wire.wants_gbek_since_ms,
            members: wire.members,
        })
    }
}

impl GroupMember {
    fn from_wire(wire: v1::GroupMember) -> Result<Self, ProtocolError> {
        Ok(Self {
            meter_id: wire.meter_id,
            system_title: title(&wire.system_title)?,
            gbek: numbered(wire.gbek)?,
            gak: (wire.gak != 0).then(|| numbered(wire.gak)).transpose()?,
            gbek_version: wire.gbek_version,
            gak_version: wire.gak_version,
        })
    }
}

impl GroupRefusal {
    fn from_wire(v1::GroupRefusal { meter_id, code, reason }: v1::GroupRefusal) -> Self {
        Self { meter_id, code, reason }
    }
}

impl BroadcastMessage {
    fn from_wire(wire: v1::BroadcastMessage) -> Result<Self, ProtocolError> {
        let protected = wire.protected.ok_or(ProtocolError::Missing("protected"))?;
        let gak = Some(hex::encode_upper(&wire.gak_kcv)).filter(|kcv| !kcv.is_empty());
        Ok(Self {
            protected: transmitting::protected(protected)?,
            gbek_kcv: hex::encode_upper(&wire.gbek_kcv),
            gak_kcv: gak,
            reaches: wire.reaches,
            may_reach: wire.may_reach,
        })
    }
}
