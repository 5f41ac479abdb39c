//! Between the wire's columns of plain APDUs and the items of `transmitting`, and the status of a declaration that was
//! refused.

use bytes::Bytes;
use dlms::{KeySet, Suite};
use kms_proto::v1::{
    ApduProtection, CipheringForm, CounterPurpose, EncryptBatchResponse, EncryptResponse,
    ItemReason, PlainBatch, Protecting,
};
use tonic::{Code, Status};

use super::{
    columns::{ColumnFault, Misfit},
    lifecycle_status::{of_lifecycle, word_of_lifecycle},
    status::{Again, Refused, Row, status},
    words,
};
use crate::{
    lifecycle::LifecycleError,
    transmitting::{Envelope, NotDeclared, Outcome, Plain, ProtectedBatch, Whose},
};
use kms_core::{SecuritySetup, SystemTitle, Verdict, counters::allocator::Purpose};

/// How all items of a call are protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct How {
    setup: SecuritySetup,
    client: u16,
    key_set: KeySet,
    envelope: Envelope,
    protection: (bool, bool),
    suite: Option<Suite>,
    purpose: Purpose,
    versions: (u16, u16),
}

const fn field(field: &'static str, problem: &'static str) -> Refused {
    Refused::Field { field, problem }
}

/// The key that a call is about: setup, client, and whose it is.
pub(crate) fn key(
    security_setup: u32,
    client: u32,
    broadcast: bool,
) -> Result<(SecuritySetup, u16, KeySet), Refused> {
    let setup = u8::try_from(security_setup).map(SecuritySetup);
    let setup = setup.map_err(|_| field("security_setup", "it is 0 to 255"))?;
    let client = u16::try_from(client).map_err(|_| field("client", "it is 0 to 65,535"))?;
    Ok((setup, client, if broadcast { KeySet::Broadcast } else { KeySet::Unicast }))
}

/// What the wire says of how to protect; nothing: the usual.
pub(crate) fn how(protecting: Option<Protecting>) -> Result<How, Refused> {
    let protecting = protecting.unwrap_or_default();
    let Protecting {
        security_setup,
        client,
        broadcast,
        form,
        protection,
        security_suite,
        purpose,
        encryption_key_version,
        authentication_key_version,
    } = protecting;
    let version = |number, name| {
        u16::try_from(number).map_err(|_| field(name, "a key's version is 1 to 65,535"))
    };
    let versions = (
        version(encryption_key_version, "encryption_key_version")?,
        version(authentication_key_version, "authentication_key_version")?,
    );
    let (setup, client, key_set) = key(security_setup, client, broadcast)?;
    let (envelope, protection) = self::form(form, protection)?;
    let suite =
        security_suite.map(|suite| u8::try_from(suite).ok().and_then(|it| it.try_into().ok()));
    let suite =
        suite.map(|suite| suite.ok_or(field("security_suite", "it is 0, 1 or 2"))).transpose()?;
    let purpose = CounterPurpose::try_from(purpose);
    let purpose = match purpose.map_err(|_| field("purpose", "there is no such purpose"))? {
        CounterPurpose::Unspecified | CounterPurpose::Traffic => Purpose::Traffic,
        CounterPurpose::KeyTransfer => Purpose::KeyTransfer,
        CounterPurpose::Hls => Purpose::Hls,
        CounterPurpose::Broadcast => Purpose::Broadcast,
        CounterPurpose::Probe => Purpose::Probe,
    };
    Ok(How { setup, client, key_set, envelope, protection, suite, purpose, versions })
}

/// The envelope and the protection that a caller may ask for.
pub(crate) fn form(form: i32, protection: i32) -> Result<(Envelope, (bool, bool)), Refused> {
    let none = field("form", "there is no such form");
    let envelope = match CipheringForm::try_from(form).map_err(|_| none.clone())? {
        CipheringForm::Unspecified | CipheringForm::GeneralGlo => Envelope::GeneralGlo,
        CipheringForm::Glo => Envelope::Service,
        CipheringForm::GeneralCiphering => Envelope::GeneralCiphering,
        // For other nodes alone: a caller's challenge is looked at by `AnswerHlsChallenge`.
        CipheringForm::HlsAnswer => return Err(none),
    };
    let protection = ApduProtection::try_from(protection);
    let protection =
        match protection.map_err(|_| field("protection", "there is no such protection"))? {
            ApduProtection::Unspecified | ApduProtection::AuthenticatedEncrypted => (true, true),
            ApduProtection::Authenticated => (true, false),
            ApduProtection::Encrypted => (false, true),
        };
    Ok((envelope, protection))
}

/// The same from another node, which forwards a step of an association as well.
pub(crate) fn how_forwarded(
    protecting: Option<Protecting>,
    is_answer: bool,
) -> Result<How, Refused> {
    let answer = CipheringForm::HlsAnswer as i32;
    match protecting {
        Some(asked) if is_answer && asked.form == answer => {
            let how = how(Some(Protecting { form: 0, ..asked }))?;
            Ok(How { envelope: Envelope::HlsAnswer, ..how })
        }
        other => how(other),
    }
}

/// The meter that a call names, in one of the two ways.
pub(crate) fn whose<'a>(meter_id: &'a str, system_title: &[u8]) -> Result<Whose<'a>, Refused> {
    match (words::optional_title("system_title", system_title)?, meter_id) {
        (Some(title), "") => Ok(Whose::Title(title)),
        (None, id) if !id.is_empty() => Ok(Whose::Id(id)),
        _ => Err(field("meter_id", "give a meter id or a system title, and not both")),
    }
}

/// One item.
pub(crate) fn item<'a>(apdu: &'a [u8], whose: Whose<'a>, how: How) -> Plain<'a> {
    let How { setup, client, key_set, envelope, protection, suite, purpose, versions } = how;
    Plain { apdu, whose, setup, client, key_set, envelope, protection, suite, purpose, versions }
}

/// The batch's items, borrowed from its columns.
pub(crate) fn items(batch: &PlainBatch, how: How) -> Result<Vec<Plain<'_>>, Refused> {
    let PlainBatch { apdus, lengths, system_titles, meter_ids, protecting: _, tag: _ } = batch;
    let count = lengths.len();
    let sum: u64 = lengths.iter().map(|len| u64::from(*len)).sum();
    if sum != apdus.len() as u64 {
        return Err(ColumnFault::Sum { sum, apdus: apdus.len() }.into());
    }
    let (titles, rest) = system_titles.as_chunks::<{ SystemTitle::LEN }>();
    if !rest.is_empty() {
        return Err(ColumnFault::TitleBytes(system_titles.len()).into());
    }
    for (column, entries) in [("system_titles", titles.len()), ("meter_ids", meter_ids.len())] {
        if entries != 0 && entries != count {
            return Err(ColumnFault::Size { column, entries, items: count }.into());
        }
    }
    let mut items = Vec::with_capacity(count);
    let mut left = &apdus[..];
    for (index, len) in lengths.iter().enumerate() {
        // In bounds: the lengths add up to what there is.
        let (apdu, rest) = left.split_at_checked(*len as usize).unwrap_or((left, &[]));
        left = rest;
        let title = titles.get(index).filter(|title| **title != [0; SystemTitle::LEN]);
        let id = meter_ids.get(index).map_or("", String::as_str);
        let whose = match (title, id) {
            (Some(title), "") => Whose::Title(SystemTitle::new(*title)),
            (None, id) if !id.is_empty() => Whose::Id(id),
            (None, _) => return Err(field("meter_ids", "an item names no meter")),
            (Some(_), _) => return Err(ColumnFault::NamedTwice { item: index }.into()),
        };
        items.push(item(apdu, whose, how));
    }
    Ok(items)
}

/// The answer to one. No byte of an APDU that was not protected leaves.
pub(crate) fn protected(batch: ProtectedBatch) -> Result<EncryptResponse, Misfit> {
    let ProtectedBatch { apdus, lengths, mut outcomes } = batch;
    let outcome = outcomes.pop().filter(|_| outcomes.is_empty()).ok_or(Misfit)?;
    let is_ok = outcome.verdict == Verdict::Ok;
    if lengths != [apdus.len() as u32] || is_ok == apdus.is_empty() {
        return Err(Misfit);
    }
    let title = title_bytes(&outcome);
    Ok(EncryptResponse {
        verdict: outcome.verdict as i32,
        apdu: apdus.into(),
        refusal: outcome.refusal.map_or(0, |refusal| refusal as i32),
        system_title: title,
        invocation_counter: outcome.invocation_counter,
        encryption_key_version: outcome.encryption_key_version.into(),
        authentication_key_version: outcome.authentication_key_version.into(),
        reason: outcome.reason.map_or_else(String::new, Into::into),
    })
}

/// The meter's title, if it is known.
pub(crate) fn title_bytes(outcome: &Outcome) -> Bytes {
    let title = outcome.system_title;
    title.map_or_else(Bytes::new, |title| Bytes::copy_from_slice(title.as_bytes()))
}

/// The answer to many.
pub(crate) fn protected_batch(
    tag: u64,
    items: usize,
    batch: ProtectedBatch,
) -> Result<EncryptBatchResponse, Misfit> {
    let ProtectedBatch { apdus, lengths, mut outcomes } = batch;
    let sum: u64 = lengths.iter().map(|len| u64::from(*len)).sum();
    let each = |(len, outcome): (&u32, &Outcome)| (*len > 0) == (outcome.verdict == Verdict::Ok);
    let fits = outcomes.len() == items
        && lengths.len() == items
        && sum == apdus.len() as u64
        && lengths.iter().zip(&outcomes).all(each);
    if !fits {
        return Err(Misfit);
    }
    let reasons = (0u32..).zip(&mut outcomes).filter_map(|(index, outcome)| {
        let reason = outcome.reason.take()?;
        Some(ItemReason { index, reason: reason.into() })
    });
    let reasons = reasons.collect();
    let bytes = |byte: fn(&Outcome) -> u8| outcomes.iter().map(byte).collect::<Bytes>();
    Ok(EncryptBatchResponse {
        apdus: apdus.into(),
        verdicts: bytes(|outcome| outcome.verdict as u8),
        refusals: bytes(|outcome| outcome.refusal.map_or(0, |refusal| refusal as u8)),
        invocation_counters: outcomes.iter().map(|outcome| outcome.invocation_counter).collect(),
        encryption_key_versions: outcomes
            .iter()
            .map(|outcome| outcome.encryption_key_version.into())
            .collect(),
        authentication_key_versions: outcomes
            .iter()
            .map(|outcome| outcome.authentication_key_version.into())
            .collect(),
        lengths,
        reasons,
        tag,
    })
}

/// The reason word of a declaration that was refused, and whether the fault is ours.
pub(crate) fn word_of_declaration(error: &NotDeclared) -> (&'static str, bool) {
    match row_of(error) {
        Ok(row) => (row.word, row.code == Code::Unavailable),
        Err(said) => word_of_lifecycle(&said),
    }
}

/// The status of a declaration that was refused.
pub(crate) fn of_declaration(error: &NotDeclared) -> Status {
    match row_of(error) {
        Ok(row) => status(row, error.to_string(), Vec::new()),
        Err(said) => of_lifecycle(&said),
    }
}

fn row_of(error: &NotDeclared) -> Result<Row, LifecycleError> {
    use Again::{Later, Never};
    let (code, word, again) = match error {
        NotDeclared::Unusable(outcome) => match (outcome.refusal, outcome.verdict) {
            (Some(refusal), _) => (Code::FailedPrecondition, refusal.word(), Never),
            (None, Verdict::UnknownMeter) => (Code::NotFound, "METER_NOT_FOUND", Never),
            (None, Verdict::Unavailable) => (Code::Unavailable, "NOT_REACHABLE", Later),
            (None, _) => (Code::FailedPrecondition, "NO_USABLE_KEY", Never),
        },
        NotDeclared::RekeyFirst(_) => (Code::FailedPrecondition, "REKEY_FIRST", Never),
        NotDeclared::StepTooLong { .. } => (Code::FailedPrecondition, "STEP_TOO_LONG", Never),
        NotDeclared::Restored => (Code::FailedPrecondition, "COUNTER_FORGOTTEN", Never),
        NotDeclared::Keyring(error) => {
            return Err(LifecycleError::of_keyring(error, error.to_string()));
        }
    };
    Ok(Row { code, word, again })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_said_is_the_usual_and_what_there_is_not_is_refused() {
        let usual = how(None).unwrap();
        assert_eq!((usual.envelope, usual.protection), (Envelope::GeneralGlo, (true, true)));
        assert_eq!(
            (usual.key_set, usual.suite, usual.purpose),
            (KeySet::Unicast, None, Purpose::Traffic)
        );
        let with = |protecting| how(Some(protecting));
        let default = Protecting::default;
        for wrong in [
            Protecting { security_setup: 256, ..default() },
            Protecting { client: 65_536, ..default() },
            Protecting { form: 4, ..default() },
            Protecting { protection: 9, ..default() },
            Protecting { security_suite: Some(3), ..default() },
            Protecting { purpose: 6, ..default() },
        ] {
            assert!(with(wrong).is_err(), "{wrong:?}");
        }
        let other = Protecting { security_suite: Some(2), broadcast: true, form: 3, ..default() };
        let other = with(other).unwrap();
        assert_eq!(
            (other.suite, other.key_set, other.envelope),
            (Some(Suite::Suite2), KeySet::Broadcast, Envelope::GeneralCiphering)
        );
    }

    #[test]
    fn an_item_names_its_meter_once() {
        let batch = |titles: &[u8], ids: &[&str]| PlainBatch {
            apdus: vec![1, 2, 3].into(),
            lengths: vec![1, 2],
            system_titles: titles.to_vec().into(),
            meter_ids: ids.iter().map(ToString::to_string).collect(),
            ..PlainBatch::default()
        };
        let how = how(None).unwrap();
        let both = batch(&[[7; 8], [0; 8]].concat(), &["", "m-2"]);
        let items = items(&both, how).unwrap();
        assert_eq!(items[0].apdu, [1]);
        assert_eq!((items[1].apdu, items[1].whose), (&[2u8, 3][..], Whose::Id("m-2")));
        for wrong in [
            batch(&[], &[]),
            batch(&[7; 16], &["m", ""]),
            batch(&[7; 8], &["", "m"]),
            batch(&[7; 9], &["m", "m"]),
            PlainBatch { lengths: vec![1, 1], ..batch(&[], &["m", "m"]) },
        ] {
            assert!(super::items(&wrong, how).is_err(), "{wrong:?}");
        }
        assert!(whose("", &[]).is_err() && whose("m", &[7; 8]).is_err());
    }

    #[test]
    fn invariant_8_no_byte_of_what_was_not_protected_leaves() {
        let outcome = |verdict| Outcome {
            verdict,
            refusal: None,
            system_title: None,
            invocation_counter: 0,
            encryption_key_version: 0,
            authentication_key_version: 0,
            reason: None,
            by_another: false,
        };
        let batch = |verdict, len: u32| ProtectedBatch {
            apdus: vec![9; len as usize],
            lengths: vec![len],
            outcomes: vec![outcome(verdict)],
        };
        assert!(protected(batch(Verdict::Ok, 3)).is_ok());
        assert!(protected(batch(Verdict::Unavailable, 0)).is_ok());
        for (verdict, len) in [(Verdict::Unavailable, 3), (Verdict::Ok, 0)] {
            assert_eq!(protected(batch(verdict, len)), Err(Misfit));
            assert_eq!(protected_batch(0, 1, batch(verdict, len)), Err(Misfit));
        }
        assert_eq!(protected_batch(0, 2, batch(Verdict::Ok, 3)), Err(Misfit));
    }
}
