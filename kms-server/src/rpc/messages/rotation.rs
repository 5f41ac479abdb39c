//! Between the wire's words for the life of keys and ours.

use kms_proto::v1;

use super::{status::Refused, words};
use crate::{
    lifecycle::{Outgoing, Sending, StagedKey},
    transmitting::{Envelope, Outcome, Plain, ProtectedBatch, Whose},
};
use dlms::KeySet;
use kms_core::{
    AssociationForm, Carrier, KeyKind, MeterId, Numbered as _, Protection, SecuritySetup,
    TransferResult, Verdict,
    counters::allocator::Purpose,
    life::{
        choosing::{Pair, Place},
        staging::Wish,
    },
    ports::Proved,
};

const fn field(field: &'static str, problem: &'static str) -> Refused {
    Refused::Field { field, problem }
}

/// A key of a meter.
pub(crate) fn place(place: Option<v1::KeyPlace>) -> Result<(MeterId, Place), Refused> {
    let v1::KeyPlace { meter_id, kind, security_setup } =
        place.ok_or(field("place", "name the meter, the kind and the security setup"))?;
    let id = words::meter_id("place.meter_id", &meter_id)?;
    let transfers = |kind: &KeyKind| {
        matches!(kind, KeyKind::Guek | KeyKind::Gbek | KeyKind::Gak | KeyKind::Kek)
    };
    let kind = u8::try_from(kind).ok().and_then(KeyKind::from_number).filter(transfers);
    let kind = kind.ok_or(field("place.kind", "it is GUEK, GBEK, GAK or KEK"))?;
    let setup = setup("place.security_setup", security_setup)?;
    Ok((id, Place { setup, kind }))
}

fn setup(name: &'static str, number: u32) -> Result<SecuritySetup, Refused> {
    u8::try_from(number).map(SecuritySetup).map_err(|_| field(name, "it is 0 to 255"))
}

/// A version of it, from 1 on.
pub(crate) fn version(number: u32) -> Result<u16, Refused> {
    let version = u16::try_from(number).ok().filter(|version| *version > 0);
    version.ok_or(field("version", "a key's version is 1 to 65,535"))
}

fn version_or_none(name: &'static str, number: u32) -> Result<Option<u16>, Refused> {
    let version = u16::try_from(number);
    let version = version.map_err(|_| field(name, "a key's version is 1 to 65,535"))?;
    Ok(Some(version).filter(|version| *version > 0))
}

fn form(number: i32) -> Result<Option<AssociationForm>, Refused> {
    if number == 0 {
        return Ok(None);
    }
    let form = u8::try_from(number).ok().and_then(AssociationForm::from_number);
    form.map(Some).ok_or(field("form", "there is no such form"))
}

pub(super) fn carrier(carrier: Option<v1::KeyCarrier>, place: Place) -> Result<Carrier, Refused> {
    let Some(v1::KeyCarrier { security_setup, client, form: wire }) = carrier else {
        return Ok(Carrier { setup: place.setup, ..Carrier::default() });
    };
    let client = u16::try_from(client);
    Ok(Carrier {
        setup: setup("carrier.security_setup", security_setup)?,
        client: client.map_err(|_| field("carrier.client", "it is 0 to 65,535"))?,
        form: form(wire)?.unwrap_or_default(),
    })
}

/// A key that somebody wants. `two_people`: they know what `under_compromised_kek` means.
pub(crate) fn wish(
    request: v1::StageKeyRequest,
    request_id: &str,
    two_people: bool,
) -> Result<(MeterId, Wish), Refused> {
    let v1::StageKeyRequest {
        place: wire,
        class_version,
        carrier: over,
        kek_version,
        protection,
        allow_unreplicated,
        under_compromised_kek,
    } = request;
    let (id, place) = place(wire)?;
    let protection = match protection {
        0 => None,
        number => Some(
            u8::try_from(number)
                .ok()
                .and_then(Protection::from_number)
                .filter(|protection| place.kind.allows(*protection))
                .ok_or(field("protection", "a key of this kind does not have it"))?,
        ),
    };
    let class_version = u8::try_from(class_version);
    let wish = Wish {
        place,
        class_version: class_version.map_err(|_| field("class_version", "it is 0 or 1"))?,
        carrier: carrier(over, place)?,
        kek: version_or_none("kek_version", kek_version)?,
        protection,
        request: request_id.to_owned(),
        allow_unreplicated,
        under_compromised_kek: under_compromised_kek && two_people,
    };
    Ok((id, wish))
}

/// A key that is staged.
pub(crate) fn staged(staged: &StagedKey) -> v1::StageKeyResponse {
    let (proved, reason) = match &staged.proved {
        Proved::Yes | Proved::NotApplicable => (true, String::new()),
        Proved::No(why) => (false, why.clone()),
    };
    let key = Some(words::key_of(&staged.meter, &staged.key));
    v1::StageKeyResponse { key, already: staged.already, proved, reason }
}

/// A step of a transfer.
pub(crate) fn sending(request: v1::NextTransferRequest) -> Result<(MeterId, Sending), Refused> {
    let v1::NextTransferRequest {
        place: wire,
        encryption_key_version,
        authentication_key_version,
        invoke_id_and_priority,
        form: over,
        lease,
    } = request;
    let (id, place) = place(wire)?;
    let encryption = version_or_none("encryption_key_version", encryption_key_version)?;
    let authentication = version_or_none("authentication_key_version", authentication_key_version)?;
    let pair = match (encryption, authentication) {
        (None, None) => None,
        (Some(encryption), Some(_)) => Some(Pair { encryption, authentication }),
        _ => {
            let problem = "name the versions of both keys, or of none";
            return Err(field("authentication_key_version", problem));
        }
    };
    let invoke = u8::try_from(invoke_id_and_priority);
    let invoke_id_and_priority =
        invoke.map_err(|_| field("invoke_id_and_priority", "it is one byte"))?;
    let form = form(over)?;
    Ok((id, Sending { place, pair, invoke_id_and_priority, form, lease }))
}

/// The message to protect; `None`: a form that needs an association of its own.
pub(crate) fn plain(outgoing: &Outgoing) -> Option<Plain<'_>> {
    let Outgoing { title, apdu, carrier, pair, .. } = outgoing;
    let envelope = match carrier.form {
        AssociationForm::Glo => Envelope::Service,
        AssociationForm::GeneralGlo => Envelope::GeneralGlo,
        AssociationForm::GeneralCiphering => Envelope::GeneralCiphering,
        AssociationForm::Ded => return None,
    };
    Some(Plain {
        apdu,
        whose: Whose::Title(*title),
        setup: carrier.setup,
        client: carrier.client,
        key_set: KeySet::Unicast,
        envelope,
        protection: (pair.authentication.is_some(), true),
        suite: None,
        purpose: Purpose::KeyTransfer,
        versions: (pair.encryption, pair.authentication.unwrap_or_default()),
    })
}

/// The answer: the protected message, or why none.
pub(crate) fn transfer(batch: ProtectedBatch, version: u16) -> Option<v1::NextTransferResponse> {
    let ProtectedBatch { apdus, mut outcomes, .. } = batch;
    let Outcome {
        verdict,
        refusal,
        invocation_counter,
        encryption_key_version,
        authentication_key_version,
        reason,
        ..
    } = outcomes.pop()?;
    Some(v1::NextTransferResponse {
        apdu: if verdict == Verdict::Ok { apdus.into() } else { Default::default() },
        verdict: verdict as i32,
        refusal: refusal.map_or(0, |refusal| refusal as i32),
        reason: reason.map(String::from).unwrap_or_default(),
        invocation_counter,
        encryption_key_version: encryption_key_version.into(),
        authentication_key_version: authentication_key_version.into(),
        version: version.into(),
    })
}

/// The meter's answer.
pub(crate) fn result(number: i32) -> Result<TransferResult, Refused> {
    let result = u8::try_from(number).ok().and_then(TransferResult::from_number);
    result.ok_or(field("result", "it is SUCCESS, REFUSED or NO_ANSWER"))
}
