//! The life of meters' keys: a new one is staged, sent, proved by the meter and preferred; an old one goes.
//!
//! What changes nothing twice is sent again where its answer was lost, at the same site. A step of a transfer spends a
//! counter, and a revival makes a version: they are not.

use std::sync::Arc;

use kms_proto::v1;
use serde::Serialize;

use crate::call::{CallError, ProtocolError};
use crate::meter::{AssociationForm, KeyInfo, KeyKind, KeyState, Protection, TransferResult};
use crate::names::MeterId;
use crate::replicated::Replicated;
use crate::sites::Errand;
use crate::stubs;
use crate::transmitting::{self, Protected};
use crate::transport::Transport;

/// The calls about the life of keys.
#[derive(Clone)]
pub struct Rotation {
    transport: Arc<Transport>,
}

/// A key of a meter, all its versions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPlace {
    /// The meter.
    pub meter_id: MeterId,
    /// GUEK, GBEK, GAK or KEK.
    pub kind: KeyKind,
    /// e in `0.0.43.0.e.255`.
    pub security_setup: u8,
}

/// The association that carries a transfer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct KeyCarrier {
    /// e in `0.0.43.0.e.255`: the setup whose keys protect it.
    pub security_setup: u8,
    /// The client's address (SAP).
    pub client: u16,
    /// The form of its messages.
    pub form: AssociationForm,
}

/// How a key is staged. The default: class version 0, over the key's own setup, under the preferred KEK, protected as its
/// predecessor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StageOptions {
    /// Of COSEM class 64 in the meter: 0 or 1. Version 0 can't change the KEK.
    pub class_version: u8,
    /// `None`: general-glo-ciphering over the key's own setup, as the meter's default client.
    pub carrier: Option<KeyCarrier>,
    /// The version of the KEK that it is to travel under; 0: the preferred one.
    pub kek_version: u16,
    /// `None`: as its predecessor's.
    pub protection: Option<Protection>,
    /// It may be handed out although the other site has not proved that it has it. If this site is lost, so is the meter.
    pub allow_unreplicated: bool,
    /// The KEK is compromised, and that is known. Always takes two people.
    pub under_compromised_kek: bool,
}

/// A key that waits to be sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StagedKey {
    /// As the service knows it.
    pub key: KeyInfo,
    /// It was staged before, and stays as it was asked for then.
    pub already: bool,
    /// The other site has proved it, or there is no other site.
    pub proved: bool,
    /// Why it is not proved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// How one step of a transfer is sent. The default: under the preferred versions, in the staged form.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TransferOptions {
    /// The versions that the meter is presumed to hold, within the carrier's setup; 0 and 0: those that are preferred.
    pub encryption_key_version: u16,
    /// The same of the authentication key.
    pub authentication_key_version: u16,
    /// Invoke-id and priority of the action: the whole byte.
    pub invoke_id_and_priority: u8,
    /// `None`: the form that was staged.
    pub form: Option<AssociationForm>,
    /// Of a campaign's work; 0: none.
    pub lease: u64,
}

/// One step of a transfer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextTransfer {
    /// The ciphered action-request, or why there is none.
    pub protected: Protected,
    /// The version that it brings.
    pub version: u32,
}

/// A key after its meter's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KeyConfirmed {
    /// As the service knows it now.
    pub key: KeyInfo,
    /// Whether the other site has that.
    #[serde(skip_serializing_if = "Replicated::is_nothing")]
    pub replicated: Replicated,
}

/// A decision about a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct KeyChanged {
    /// False: it was so already.
    pub changed: bool,
    /// Whether the other site has that.
    #[serde(skip_serializing_if = "Replicated::is_nothing")]
    pub replicated: Replicated,
}

/// A key that was given up and is used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct KeyRevived {
    /// The version that it goes on as.
    pub version: u32,
    /// Whether the other site has that.
    #[serde(skip_serializing_if = "Replicated::is_nothing")]
    pub replicated: Replicated,
}

/// A key that is known to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct KeyCompromised {
    /// `DESTROYED` where its successor is proved already.
    pub state: KeyState,
    /// Whether the other site has that.
    #[serde(skip_serializing_if = "Replicated::is_nothing")]
    pub replicated: Replicated,
}

/// A key that is to be destroyed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct KeyCondemned {
    /// Until then it may be restored; milliseconds since 1970.
    pub destroy_at_ms: u64,
    /// Whether the other site has that.
    #[serde(skip_serializing_if = "Replicated::is_nothing")]
    pub replicated: Replicated,
}

impl Rotation {
    pub(crate) fn of(transport: Arc<Transport>) -> Self {
        Self { transport }
    }

    pub(crate) fn transport(&self) -> &Transport {
        &self.transport
    }

    /// Has a key made for a meter. Asked again, whoever asks, it is the same one. Refused as `NOT_PROVED` while the other
    /// site has not proved that it has it: the same call later goes on with the same key.
    pub async fn stage(
        &self,
        place: &KeyPlace,
        options: StageOptions,
    ) -> Result<StagedKey, CallError> {
        let send = |link, request| async move { stubs::rotation(link).stage_key(request).await };
        let request = options.to_wire(place);
        let reply = self.transport.call(Errand::AtPrimary, request, send).await?;
        let v1::StageKeyResponse { key, already, proved, reason } = reply;
        let reason = Some(reason).filter(|reason| !reason.is_empty());
        Ok(StagedKey { key: present(key)?, already, proved, reason })
    }

    /// Protects the transfer of what is staged, to be sent at once. Never tried again once it may have arrived: a counter is
    /// spent. Whoever gets [`CallError::OutcomeUnknown`] may ask anew: nothing went to the meter, the wrapped key stays the
    /// same, and the counter is another one.
    pub async fn next_transfer(
        &self,
        place: &KeyPlace,
        options: TransferOptions,
    ) -> Result<NextTransfer, CallError> {
        let send =
            |link, request| async move { stubs::rotation(link).next_transfer(request).await };
        let request = options.to_wire(place);
        let reply = self.transport.call(Errand::Write, request, send).await?;
        let (version, reply) = (reply.version, as_protected(reply));
        Ok(NextTransfer { protected: transmitting::protected(reply)?, version })
    }

    /// Says what the meter answered. A hint: what it sends under the new key is what proves it.
    pub async fn confirm(
        &self,
        place: &KeyPlace,
        result: TransferResult,
    ) -> Result<KeyConfirmed, CallError> {
        let send = |link, request| async move { stubs::rotation(link).confirm_key(request).await };
        let place = Some(place.to_wire());
        let request = v1::ConfirmKeyRequest { place, result: result as i32 };
        let reply = self.transport.call(Errand::AtPrimary, request, send).await?;
        let replicated = Replicated::from_wire(reply.replicated)?;
        Ok(KeyConfirmed { key: present(reply.key)?, replicated })
    }

    /// Moves the preference to a version that is active: to the predecessor, of a meter that fell back, or forward again.
    pub async fn roll_back(&self, place: &KeyPlace, version: u16) -> Result<KeyChanged, CallError> {
        let send =
            |link, request| async move { stubs::rotation(link).roll_back_key(request).await };
        let (place, version) = (Some(place.to_wire()), version.into());
        let request = v1::RollBackKeyRequest { place, version };
        let reply = self.transport.call(Errand::AtPrimary, request, send).await?;
        KeyChanged::from_wire(reply.changed, reply.replicated)
    }

    /// A meter was set back to a key that is deactivated: its value goes on as a new version. Always takes two people. Not
    /// tried again once it may have arrived.
    pub async fn revive(&self, place: &KeyPlace, version: u16) -> Result<KeyRevived, CallError> {
        let send = |link, request| async move { stubs::rotation(link).revive_key(request).await };
        let (place, version) = (Some(place.to_wire()), version.into());
        let request = v1::ReviveKeyRequest { place, version };
        let reply = self.transport.call(Errand::Write, request, send).await?;
        let replicated = Replicated::from_wire(reply.replicated)?;
        Ok(KeyRevived { version: reply.version, replicated })
    }

    /// Says that a version is known to others. It still carries the transfer of its successor, and is wiped once that one is
    /// proved.
    pub async fn compromise(
        &self,
        place: &KeyPlace,
        version: u16,
    ) -> Result<KeyCompromised, CallError> {
        let send =
            |link, request| async move { stubs::rotation(link).compromise_key(request).await };
        let (place, version) = (Some(place.to_wire()), version.into());
        let request = v1::CompromiseKeyRequest { place, version };
        let reply = self.transport.call(Errand::AtPrimary, request, send).await?;
        let replicated = Replicated::from_wire(reply.replicated)?;
        Ok(KeyCompromised { state: crate::meter::numbered(reply.state)?, replicated })
    }

    /// Has a version destroyed when the site's delay is over. `last_way`: the meter may not be reached without it, and that
    /// is known; this always takes two people.
    pub async fn destroy(
        &self,
        place: &KeyPlace,
        version: u16,
        last_way: bool,
    ) -> Result<KeyCondemned, CallError> {
        let send = |link, request| async move { stubs::rotation(link).destroy_key(request).await };
        let (place, version) = (Some(place.to_wire()), version.into());
        let request = v1::DestroyKeyRequest { place, version, last_way };
        let reply = self.transport.call(Errand::AtPrimary, request, send).await?;
        let replicated = Replicated::from_wire(reply.replicated)?;
        Ok(KeyCondemned { destroy_at_ms: reply.destroy_at_ms, replicated })
    }

    /// Takes that back, before the delay is over.
    pub async fn restore(&self, place: &KeyPlace, version: u16) -> Result<KeyChanged, CallError> {
        let send = |link, request| async move { stubs::rotation(link).restore_key(request).await };
        let (place, version) = (Some(place.to_wire()), version.into());
        let request = v1::RestoreKeyRequest { place, version };
        let reply = self.transport.call(Errand::AtPrimary, request, send).await?;
        KeyChanged::from_wire(reply.changed, reply.replicated)
    }

    /// Puts a meter under a legal hold, or lifts it: nothing of it is destroyed meanwhile.
    pub async fn set_legal_hold(
        &self,
        meter_id: &MeterId,
        hold: bool,
    ) -> Result<KeyChanged, CallError> {
        let send =
            |link, request| async move { stubs::rotation(link).set_legal_hold(request).await };
        let request = v1::SetLegalHoldRequest { meter_id: meter_id.to_string(), hold };
        let reply = self.transport.call(Errand::AtPrimary, request, send).await?;
        KeyChanged::from_wire(reply.changed, reply.replicated)
    }
}

impl KeyPlace {
    fn to_wire(&self) -> v1::KeyPlace {
        let Self { meter_id, kind, security_setup } = self;
        v1::KeyPlace {
            meter_id: meter_id.to_string(),
            kind: *kind as i32,
            security_setup: (*security_setup).into(),
        }
    }
}

impl KeyCarrier {
    pub(crate) fn to_wire(self) -> v1::KeyCarrier {
        let Self { security_setup, client, form } = self;
        v1::KeyCarrier {
            security_setup: security_setup.into(),
            client: client.into(),
            form: form as i32,
        }
    }

    pub(crate) fn from_wire(wire: v1::KeyCarrier) -> Result<Self, ProtocolError> {
        let v1::KeyCarrier { security_setup, client, form } = wire;
        let out_of_range = |what| move |_| ProtocolError::OutOfRange { what };
        Ok(Self {
            security_setup: u8::try_from(security_setup)
                .map_err(out_of_range("carrier.security_setup"))?,
            client: u16::try_from(client).map_err(out_of_range("carrier.client"))?,
            form: crate::meter::numbered(form)?,
        })
    }
}

impl StageOptions {
    fn to_wire(self, place: &KeyPlace) -> v1::StageKeyRequest {
        v1::StageKeyRequest {
            place: Some(place.to_wire()),
            class_version: self.class_version.into(),
            carrier: self.carrier.map(KeyCarrier::to_wire),
            kek_version: self.kek_version.into(),
            protection: self.protection.map_or(0, |protection| protection as i32),
            allow_unreplicated: self.allow_unreplicated,
            under_compromised_kek: self.under_compromised_kek,
        }
    }
}

impl TransferOptions {
    fn to_wire(self, place: &KeyPlace) -> v1::NextTransferRequest {
        v1::NextTransferRequest {
            place: Some(place.to_wire()),
            encryption_key_version: self.encryption_key_version.into(),
            authentication_key_version: self.authentication_key_version.into(),
            invoke_id_and_priority: self.invoke_id_and_priority.into(),
            form: self.form.map_or(0, |form| form as i32),
            lease: self.lease,
        }
    }
}

impl KeyChanged {
    fn from_wire(changed: bool, replicated: i32) -> Result<Self, CallError> {
        Ok(Self { changed, replicated: Replicated::from_wire(replicated)? })
    }
}

/// The part of the answer that `Encrypt` has, too.
fn as_protected(reply: v1::NextTransferResponse) -> v1::EncryptResponse {
    v1::EncryptResponse {
        verdict: reply.verdict,
        apdu: reply.apdu,
        refusal: reply.refusal,
        invocation_counter: reply.invocation_counter,
        encryption_key_version: reply.encryption_key_version,
        authentication_key_version: reply.authentication_key_version,
        reason: reply.reason,
        ..v1::EncryptResponse::default()
    }
}

fn present(key: Option<v1::Key>) -> Result<KeyInfo, ProtocolError> {
    KeyInfo::from_wire(key.ok_or(ProtocolError::Missing("key"))?)
}
