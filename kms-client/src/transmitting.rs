//! Protecting what is sent to meters. The service owns the invocation counters, so nothing here is ever sent a second time
//! once it may have arrived: a meter would take both.

use bytes::Bytes;
use dlms::SystemTitle;
use kms_core::Numbered as _;
use kms_core::counters::refusal::Refusal;
use kms_proto::v1;

use crate::apdu::Verdict;
use crate::call::{CallError, ProtocolError};
use crate::meter::optional_title;
use crate::names::MeterName;
use crate::replicated::Replicated;
use crate::sites::Errand;
use crate::stubs;
use crate::transport::Transport;

pub use kms_proto::v1::{ApduProtection, CipheringForm, CounterPurpose};

/// How APDUs are protected. The default: general-glo-ciphering, authenticated and encrypted, under the meter's own key of
/// security setup 0, as its default client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protecting {
    /// e in `0.0.43.0.e.255`.
    pub security_setup: u8,
    /// The client (its address; 0: the meter's default, unless it has a title of its own) whose title begins the nonce.
    pub client: u16,
    /// Under the key that the meter shares with others.
    pub broadcast: bool,
    /// The envelope.
    pub form: CipheringForm,
    /// Authenticated, encrypted, or both.
    pub protection: ApduProtection,
    /// `None`: by the key's length, 0 or 2.
    pub security_suite: Option<u8>,
    /// What the counter is for.
    pub purpose: CounterPurpose,
    /// The version of the encryption key that protects it; 0: the preferred one.
    pub encryption_key_version: u16,
    /// The same of the authentication key.
    pub authentication_key_version: u16,
}

impl Default for Protecting {
    fn default() -> Self {
        Self {
            security_setup: 0,
            client: 0,
            broadcast: false,
            form: CipheringForm::GeneralGlo,
            protection: ApduProtection::AuthenticatedEncrypted,
            security_suite: None,
            purpose: CounterPurpose::Traffic,
            encryption_key_version: 0,
            authentication_key_version: 0,
        }
    }
}

impl Protecting {
    fn to_wire(self) -> v1::Protecting {
        v1::Protecting {
            security_setup: self.security_setup.into(),
            client: self.client.into(),
            broadcast: self.broadcast,
            form: self.form as i32,
            protection: self.protection as i32,
            security_suite: self.security_suite.map(u32::from),
            purpose: self.purpose as i32,
            encryption_key_version: self.encryption_key_version.into(),
            authentication_key_version: self.authentication_key_version.into(),
        }
    }
}

pub(crate) fn id_of(meter: &MeterName) -> String {
    match meter {
        MeterName::Id(id) => id.to_string(),
        MeterName::Title(_) => String::new(),
    }
}

pub(crate) fn title_of(meter: &MeterName) -> Bytes {
    match meter {
        MeterName::Id(_) => Bytes::new(),
        MeterName::Title(title) => Bytes::copy_from_slice(title.as_bytes()),
    }
}

/// One plain APDU on its way out.
#[derive(Clone, PartialEq, Eq)]
pub struct PlainApdu {
    /// From its tag byte on.
    pub bytes: Bytes,
    /// The meter that it is for.
    pub meter: MeterName,
}

/// What is sent may be a secret of the meter's: its length is told, and no more.
impl std::fmt::Debug for PlainApdu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { bytes, meter } = self;
        f.debug_struct("PlainApdu").field("len", &bytes.len()).field("meter", meter).finish()
    }
}

/// What became of a plain APDU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Protected {
    /// `OK`, or why it was not protected.
    pub verdict: Verdict,
    /// The ciphered APDU, if it was.
    pub apdu: Option<Bytes>,
    /// Says more of a verdict that is not `OK`.
    pub refusal: Option<Refusal>,
    /// The counter that it bears, if it was protected.
    pub invocation_counter: Option<u32>,
    /// Version of the key that it is under.
    pub encryption_key_version: u32,
    /// Version of the authentication key; 0: it has no tag.
    pub authentication_key_version: u32,
    /// One sentence for people.
    pub reason: Option<String>,
}

/// A statement about the counter that a meter's key was used with last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CounterDeclaration {
    /// The meter.
    pub meter: MeterName,
    /// e in `0.0.43.0.e.255`.
    pub security_setup: u8,
    /// The client whose counters these are; 0: the meter's default.
    pub client: u16,
    /// Of the key that the meter shares with others.
    pub broadcast: bool,
    /// `None`: the key was never used.
    pub last_invocation_counter: Option<u32>,
}

/// What was declared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CounterDeclared {
    /// The meter's.
    pub system_title: Option<SystemTitle>,
    /// The client title that the counters are of.
    pub client_title: Option<SystemTitle>,
    /// No counter below this one is given out.
    pub at_least: u32,
    /// Whether anything was changed.
    pub changed: bool,
    /// Whether the other site has it.
    pub replicated: Replicated,
}

fn refusal(number: i32) -> Option<Refusal> {
    u8::try_from(number).ok().and_then(Refusal::from_number)
}

/// Protects one.
pub(crate) async fn encrypt(
    transport: &Transport,
    apdu: &PlainApdu,
    how: Protecting,
) -> Result<Protected, CallError> {
    let request = v1::EncryptRequest {
        apdu: apdu.bytes.clone(),
        meter_id: id_of(&apdu.meter),
        system_title: title_of(&apdu.meter),
        protecting: Some(how.to_wire()),
    };
    let send = |link, request| async move { stubs::ciphering(link).encrypt(request).await };
    let reply = transport.call(Errand::Write, request, send).await?;
    Ok(protected(reply)?)
}

/// What became of one, by the service's answer.
pub(crate) fn protected(reply: v1::EncryptResponse) -> Result<Protected, ProtocolError> {
    let verdict = Verdict::from_number(reply.verdict);
    let is_ok = verdict == Verdict::Ok;
    if is_ok == reply.apdu.is_empty() {
        let verdict = verdict.word();
        return Err(ProtocolError::Contradiction { index: 0, what: "the APDU", verdict });
    }
    Ok(Protected {
        verdict,
        apdu: Some(reply.apdu).filter(|_| is_ok),
        refusal: refusal(reply.refusal),
        invocation_counter: Some(reply.invocation_counter).filter(|_| is_ok),
        encryption_key_version: reply.encryption_key_version,
        authentication_key_version: reply.authentication_key_version,
        reason: Some(reply.reason).filter(|reason| !reason.is_empty()),
    })
}

/// Protects many, in one message: results in the order of the APDUs.
pub(crate) async fn encrypt_batch(
    transport: &Transport,
    apdus: &[PlainApdu],
    how: Protecting,
) -> Result<Vec<Protected>, CallError> {
    let title = |apdu: &PlainApdu| match &apdu.meter {
        MeterName::Title(title) => *title.as_bytes(),
        MeterName::Id(_) => [0; 8],
    };
    let request = v1::PlainBatch {
        apdus: apdus.iter().flat_map(|apdu| apdu.bytes.iter().copied()).collect(),
        lengths: apdus.iter().map(|apdu| apdu.bytes.len() as u32).collect(),
        system_titles: apdus.iter().flat_map(title).collect(),
        meter_ids: apdus.iter().map(|apdu| id_of(&apdu.meter)).collect(),
        protecting: Some(how.to_wire()),
        tag: 0,
    };
    let send = |link, request| async move { stubs::ciphering(link).encrypt_batch(request).await };
    let reply: v1::EncryptBatchResponse = transport.call(Errand::Write, request, send).await?;
    Ok(unpack(apdus.len(), reply)?)
}

fn unpack(items: usize, reply: v1::EncryptBatchResponse) -> Result<Vec<Protected>, ProtocolError> {
    let v1::EncryptBatchResponse {
        mut apdus,
        lengths,
        verdicts,
        refusals,
        invocation_counters,
        encryption_key_versions,
        authentication_key_versions,
        reasons,
        tag: _,
    } = reply;
    let sum: usize = lengths.iter().map(|len| *len as usize).sum();
    let columns = [
        ("lengths", lengths.len()),
        ("verdicts", verdicts.len()),
        ("refusals", refusals.len()),
        ("invocation_counters", invocation_counters.len()),
        ("encryption_key_versions", encryption_key_versions.len()),
        ("authentication_key_versions", authentication_key_versions.len()),
    ];
    if let Some((column, found)) = columns.into_iter().find(|(_, found)| *found != items) {
        return Err(ProtocolError::ColumnLength { column, found, items });
    }
    if sum != apdus.len() {
        return Err(ProtocolError::LengthSum { sum: sum as u64, found: apdus.len() });
    }
    let mut reasons: std::collections::BTreeMap<u32, String> =
        reasons.into_iter().map(|reason| (reason.index, reason.reason)).collect();
    let mut all = Vec::with_capacity(items);
    for (index, len) in lengths.iter().enumerate() {
        let verdict = Verdict::from_number(verdicts[index].into());
        let is_ok = verdict == Verdict::Ok;
        if is_ok != (*len > 0) {
            let verdict = verdict.word();
            return Err(ProtocolError::Contradiction { index, what: "the APDU", verdict });
        }
        let apdu = apdus.split_to(*len as usize);
        all.push(Protected {
            verdict,
            apdu: Some(apdu).filter(|_| is_ok),
            refusal: refusal(refusals[index].into()),
            invocation_counter: Some(invocation_counters[index]).filter(|_| is_ok),
            encryption_key_version: encryption_key_versions[index],
            authentication_key_version: authentication_key_versions[index],
            reason: reasons.remove(&(index as u32)),
        });
    }
    Ok(all)
}

/// Declares a counter.
pub(crate) async fn declare(
    transport: &Transport,
    declaration: &CounterDeclaration,
) -> Result<CounterDeclared, CallError> {
    let request = v1::DeclareCounterRequest {
        meter_id: id_of(&declaration.meter),
        system_title: title_of(&declaration.meter),
        security_setup: declaration.security_setup.into(),
        client: declaration.client.into(),
        broadcast: declaration.broadcast,
        last_invocation_counter: declaration.last_invocation_counter,
    };
    let send = |link, request| async move { stubs::meters(link).declare_counter(request).await };
    let reply = transport.call(Errand::Write, request, send).await?;
    Ok(CounterDeclared {
        system_title: optional_title(&reply.system_title)?,
        client_title: optional_title(&reply.client_title)?,
        at_least: reply.at_least,
        changed: reply.changed,
        replicated: Replicated::from_wire(reply.replicated)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(verdicts: &[u8], lengths: &[u32]) -> v1::EncryptBatchResponse {
        let items = verdicts.len();
        v1::EncryptBatchResponse {
            apdus: vec![0xDB; lengths.iter().sum::<u32>() as usize].into(),
            lengths: lengths.to_vec(),
            verdicts: verdicts.to_vec().into(),
            refusals: vec![2; items].into(),
            invocation_counters: vec![7; items],
            encryption_key_versions: vec![1; items],
            authentication_key_versions: vec![1; items],
            reasons: vec![v1::ItemReason { index: 1, reason: "why".into() }],
            tag: 0,
        }
    }

    #[test]
    fn an_answer_that_does_not_fit_its_question_is_none() {
        let all = unpack(2, reply(&[1, 10], &[3, 0])).unwrap();
        assert_eq!(all[0].apdu.as_deref(), Some(&[0xDB; 3][..]));
        assert_eq!((all[0].invocation_counter, all[1].invocation_counter), (Some(7), None));
        assert_eq!(
            (all[1].refusal, all[1].reason.as_deref()),
            (Some(Refusal::CounterUndeclared), Some("why"))
        );
        for (items, verdicts, lengths) in [
            (3, &[1, 10][..], &[3, 0][..]),
            (2, &[1, 10], &[3, 3]),
            (2, &[1, 1], &[3, 0]),
            (1, &[1], &[]),
        ] {
            assert!(unpack(items, reply(verdicts, lengths)).is_err(), "{verdicts:?} {lengths:?}");
        }
        let mut short = reply(&[1], &[3]);
        short.apdus.truncate(2);
        assert!(unpack(1, short).is_err());
    }

    #[test]
    fn what_is_sent_is_not_shown() {
        let meter = MeterName::Id(crate::MeterId::new("m-1").unwrap());
        let shown = format!("{:?}", PlainApdu { bytes: vec![0xAB; 3].into(), meter });
        assert!(shown.contains("len: 3") && !shown.to_lowercase().contains("ab, "), "{shown}");
    }
}
