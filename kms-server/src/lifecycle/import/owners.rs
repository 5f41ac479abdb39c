//! Whose meter it is: what one signer's files brought, another one's do not change. Two rules, of which the first needs
//! settings and the second none: ranges ([`super::ranges`]), and the file that changed the meter last.

use std::collections::HashMap;

use super::{
    meter::NewMeter,
    sealed_file::{SealedFile, signer_hash},
};
use crate::{
    keyring::KeyringError,
    lifecycle::{
        refusal::{Refusal, refusal},
        verbs::Lifecycle,
    },
};
use kms_core::{
    ChangeMark, MeterRecord, RefusalCode,
    fact::{Fact, FactName},
};

/// Who signed a file, by its number and time, as far as it was asked in one call.
#[derive(Default)]
pub(super) struct Origins(HashMap<([u8; 16], u64), Option<String>>);

impl Lifecycle {
    /// Whether the meter is one that this file's signer may bring at all.
    pub(super) fn check_range(&self, file: &SealedFile, meter: &NewMeter) -> Result<(), Refusal> {
        let name = file.signer();
        let own = self.signers.get(name);
        let refused = |reason| Err(refusal(RefusalCode::NotSignersMeter, reason));
        if own.is_some_and(|own| !own.ranges.has(meter)) {
            return refused(format!(
                "meter {} is not in the range of the signer {name}: nothing of it is taken from his file",
                meter.meter_id
            ));
        }
        // His own range says more than another one's that is wider.
        let is_own = own.is_some_and(|own| own.ranges.touches(meter));
        let owner = self.signers.others(name).find(|(_, other)| other.ranges.touches(meter));
        let owner = owner.filter(|(owner, _)| !is_own && !self.signers.may_change(name, owner));
        match owner {
            None => Ok(()),
            Some((owner, _)) => refused(format!(
                "meter {} is in the range of the signer {owner}: only his files bring it",
                meter.meter_id
            )),
        }
    }

    /// Whether a line that brings news may change a meter that a sealed file has changed last: only if that was its own
    /// signer's, or of one who is known no more. What people change by hand is nobody's.
    pub(super) async fn check_owner(
        &self,
        file: &SealedFile,
        record: &MeterRecord,
        origins: &mut Origins,
    ) -> Result<Option<Refusal>, KeyringError> {
        let name = file.signer();
        if self.signers.others(name).next().is_none() {
            return Ok(None);
        }
        let Some(owner) = self.signer_of(&record.changed_by, origins).await? else {
            return Ok(None);
        };
        if owner == name || self.signers.may_change(name, &owner) {
            return Ok(None);
        }
        Ok(Some(refusal(
            RefusalCode::SignerDiffers,
            format!(
                "meter {} was brought by a file of the signer {owner}: a file of {name} does not change it",
                record.meter_id
            ),
        )))
    }

    /// Who of those that the site knows signed the file of a change. Of two who gave their files one number and one
    /// time, the one whose file was taken first: he was there before the other one could copy it.
    async fn signer_of(
        &self,
        mark: &ChangeMark,
        origins: &mut Origins,
    ) -> Result<Option<String>, KeyringError> {
        let Some(place) = &mark.file else { return Ok(None) };
        let asked = (place.file, mark.at_ms);
        if let Some(known) = origins.0.get(&asked) {
            return Ok(known.clone());
        }
        let mut first: Option<(u64, &String)> = None;
        for (name, signer) in self.signers.iter() {
            let fact = FactName::of_file(&signer_hash(&signer.key), &place.file);
            let Some(Fact::File(known)) = self.records.fact(&fact).await? else { continue };
            let is_earlier = first.is_none_or(|(taken_ms, _)| known.taken_ms < taken_ms);
            if known.sealed_ms == mark.at_ms && is_earlier {
                first = Some((known.taken_ms, name));
            }
        }
        let found = first.map(|(_, name)| name.clone());
        origins.0.insert(asked, found.clone());
        Ok(found)
    }
}
