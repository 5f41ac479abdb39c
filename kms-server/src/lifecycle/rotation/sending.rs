//! One step of a transfer: the plain action, and the keys of the meter that protect it. The counter is given out, and the
//! message protected, where all that is sent to meters is.

use dlms::class64::{TransferredKey, key_transfer};

use super::{
    changing::{About, refused},
    staging::StagedKey,
};
use crate::lifecycle::{
    error::LifecycleError,
    refusal::{Refusal, refusal},
    verbs::Lifecycle,
};
use kms_core::{
    AssociationForm, Carrier, KeyId, KeyKind, KeyRecord, KeyState, MeterId, MeterRecord,
    RefusalCode, SystemTitle,
    audit::AuditedCall,
    life::{
        NotDone,
        choosing::{Pair, Place, pair},
    },
    ports::Proved,
};

/// A step that somebody wants to send.
#[derive(Clone, Copy, Debug)]
pub struct Sending {
    /// The key that is staged.
    pub place: Place,
    /// The versions that the meter is presumed to hold; `None`: the preferred ones.
    pub pair: Option<Pair>,
    /// Of the action.
    pub invoke_id_and_priority: u8,
    /// In another form than the staged one.
    pub form: Option<AssociationForm>,
    /// Of a campaign's work; 0: none.
    pub lease: u64,
}

/// What is to be protected and sent.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// The meter's title.
    pub title: SystemTitle,
    /// The plain action-request.
    pub apdu: Vec<u8>,
    /// The association that carries it.
    pub carrier: Carrier,
    /// The versions that protect it.
    pub pair: Pair,
    /// The version that it brings.
    pub version: u16,
}

impl Lifecycle {
    /// Says what is sent to bring a meter what is staged. Refused while the other site has not proved it, unless it may be
    /// handed out without. That it was handed out is stored first: from then on the meter may hold it.
    pub async fn next_transfer(
        &self,
        call: &AuditedCall,
        id: &MeterId,
        sending: &Sending,
    ) -> Result<Outgoing, LifecycleError> {
        let meter = self.get(id).await?.record;
        self.check_lease(&meter.system_title, sending.lease).await?;
        let (outgoing, staged) = outgoing(&meter, sending)?;
        let unreplicated = staged.life.transfer.as_ref().is_some_and(|it| it.unreplicated);
        // Asked before it is noted as sent, so that nothing is noted of what can't be handed out.
        if !unreplicated && let Proved::No(why) = self.prove_key(&outgoing.title, &staged).await {
            return Err(not_proved(&why));
        }
        let about =
            About { place: Some(sending.place), version: outgoing.version, without_proof: false };
        let wanted = staged.id;
        let stepped = self
            .step(call, id, about, |meter, now_ms| {
                let Place { setup, kind } = sending.place;
                let staged = sending.place.staged(meter).map(|key| key.id);
                let key = meter.keys.iter_mut().find(|key| Some(key.id) == staged);
                let key = key.filter(|key| key.id == wanted);
                let transfer = key.and_then(|key| key.life.transfer.as_mut());
                let transfer = transfer.ok_or(NotDone::NothingStaged { kind, setup })?;
                let first = transfer.sent_ms.is_none();
                transfer.sent_ms.get_or_insert(now_ms);
                Ok((first, first))
            })
            .await?;
        // The other site knows that the meter may hold it, too, before the meter can.
        if stepped.said && !unreplicated {
            let block = self.records.block_of(&outgoing.title);
            if let Proved::No(why) = self.proofs.prove(&[block]).await {
                // What it proved before was that it has the key, and not that it may be sent.
                self.proved.forget(&wanted);
                return Err(not_proved(&why));
            }
        }
        // Given back or run out meanwhile, it is somebody else's.
        self.check_lease(&stepped.meter.system_title, sending.lease).await?;
        // Decided on the record as it is now.
        let (outgoing, _) = self::outgoing(&stepped.meter, sending)?;
        Ok(outgoing)
    }
}

/// A staged key that nobody has proved.
pub(super) fn not_proved(why: &str) -> LifecycleError {
    let reason = format!(
        "the other site has not proved that it has the staged key ({why}): if this site were lost, so would the \
         meter. Nothing was handed out; the same call later goes on with the same key"
    );
    LifecycleError::Refused(refusal(RefusalCode::NotProved, reason))
}

impl StagedKey {
    /// Refused unless it is proved, or may be handed out without.
    pub fn check(&self) -> Result<(), LifecycleError> {
        let unreplicated = self.key.life.transfer.as_ref().is_some_and(|it| it.unreplicated);
        match &self.proved {
            Proved::No(why) if !unreplicated => Err(not_proved(why)),
            _ => Ok(()),
        }
    }
}

fn outgoing(
    meter: &MeterRecord,
    sending: &Sending,
) -> Result<(Outgoing, KeyRecord), LifecycleError> {
    let Place { setup, kind } = sending.place;
    let nothing = || refused(NotDone::NothingStaged { kind, setup });
    let staged = sending.place.staged(meter).ok_or_else(nothing)?;
    let transfer = staged.life.transfer.as_ref().ok_or_else(nothing)?;
    let carrier =
        Carrier { form: sending.form.unwrap_or(transfer.carrier.form), ..transfer.carrier };
    check_title(meter, &carrier)?;
    check_kek(meter, staged, &transfer.kek)?;
    let pair = pair(meter, staged, sending.pair).map_err(refused)?;
    let key = key_id(kind).ok_or_else(|| refused(NotDone::NotTransferable(kind)))?;
    let mut apdu = Vec::with_capacity(64);
    let what = (key, &transfer.wrapped[..]);
    key_transfer(sending.invoke_id_and_priority, setup.0, what, &mut apdu);
    let (title, version) = (meter.system_title, staged.version);
    Ok((Outgoing { title, apdu, carrier, pair, version }, staged.clone()))
}

/// What was staged under a KEK before that was compromised is read by who has it; what was staged since, two people knew.
fn check_kek(meter: &MeterRecord, staged: &KeyRecord, kek: &KeyId) -> Result<(), LifecycleError> {
    let kek = meter.keys.iter().find(|key| key.id == *kek);
    let leaks = kek.is_some_and(|kek| {
        kek.state >= KeyState::Compromised && staged.created_ms <= kek.changed_ms
    });
    if leaks { Err(refused(NotDone::KekCompromised(staged.setup))) } else { Ok(()) }
}

/// The nonces of what we send begin with the client's title: without one, or with the meter's own, nothing is sent.
pub(in crate::lifecycle) fn check_title(
    meter: &MeterRecord,
    carrier: &Carrier,
) -> Result<(), Refusal> {
    let policy = &meter.policy;
    let said = policy.client_titles.of(carrier.setup, carrier.client).or(policy.client_title);
    let own = [Some(meter.system_title), policy.default_system_title];
    let what = match said {
        None => "has no client title",
        Some(title) if own.contains(&Some(title)) => "has the meter's own title for its client's",
        Some(_) => return Ok(()),
    };
    Err(refusal(
        RefusalCode::NoCarrierTitle,
        format!(
            "client {} of security setup {} {what}, and a nonce would begin with it: give it one of its own \
             (`ami-tool meter set-policy`)",
            carrier.client, carrier.setup.0
        ),
    ))
}

/// key_id of class 64.
const fn key_id(kind: KeyKind) -> Option<TransferredKey> {
    match kind {
        KeyKind::Guek => Some(TransferredKey::GlobalUnicastEncryption),
        KeyKind::Gbek => Some(TransferredKey::GlobalBroadcastEncryption),
        KeyKind::Gak => Some(TransferredKey::Authentication),
        KeyKind::Kek => Some(TransferredKey::Master),
        KeyKind::Dedicated | KeyKind::HlsSecret | KeyKind::LlsPassword => None,
    }
}
