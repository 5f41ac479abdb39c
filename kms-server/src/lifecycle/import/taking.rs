//! Having the token take the keys of a sealed file over, unseen.

use std::collections::BTreeMap;

use super::{
    checks,
    line::Line,
    meter::{ImportResult, ImportRules},
    sealed_file::SealedFile,
    value::{KeyValue, TakenValue},
};
use crate::{
    hsm::TokenError,
    keyring::{Change, SealedKey, TakeError},
    lifecycle::{
        error::LifecycleError,
        refusal::{Refusal, refusal},
        verbs::Lifecycle,
    },
};
use kms_core::{BlockNo, ClearKey, Protection, RefusalCode, SealedKek};

/// The most times that the token is asked for a proof that does not fit.
const PROOF_TRIES: u32 = 2;

impl Lifecycle {
    /// Has the token take all keys of these lines. A line with a key that does not open, or with a test
    /// key, is refused; the others go on.
    pub(super) async fn take_keys(
        &self,
        file: &SealedFile,
        lines: &mut [Line],
        changes: &BTreeMap<BlockNo, Change>,
        rules: ImportRules,
    ) -> Result<(), LifecycleError> {
        // The proof comes first: the token opens it as it does a key, and what it opens to is compared.
        let Some(any) = changes.values().next() else { return Ok(()) };
        let (statement, proof) = file.proof();
        let mut wanted =
            vec![SealedKey { change: any, under: Some(SealedKek::Use), wrapped: proof }];
        for meter in lines.iter().filter_map(|line| line.meter.as_ref()) {
            let block = self.records.block_of(&meter.system_title);
            let Some(change) = changes.get(&block) else { continue };
            for key in &meter.keys {
                let KeyValue::Sealed(wrapped) = &key.value else { continue };
                let is_in_token = key.wanted_protection() == Protection::Hsm;
                let under = is_in_token.then(|| SealedKek::of_kind(key.kind));
                wanted.push(SealedKey { change, under, wrapped });
            }
        }
        let stated = self.identities.identify(&ClearKey::new(statement.to_vec()));
        let stated = stated.map(|(fingerprint, _)| fingerprint);
        let mut tries = 0;
        let mut taken = loop {
            tries += 1;
            let taken = self.taker.take_keys(file.wrapped_file_key(), &wanted).await;
            let mut taken = taken.map_err(of_token)?.into_iter();
            let proved = taken.next().flatten().map(|value| value.fingerprint);
            if proved.is_some() && proved == stated {
                break taken;
            }
            // A token that garbles an answer now and then does not make a thief of a signer.
            if tries == PROOF_TRIES {
                return Err(LifecycleError::Refused(unproved()));
            }
        };
        for line in lines {
            let Some(meter) = &mut line.meter else { continue };
            // All of a line's keys are drawn, whatever becomes of the first.
            let mut refusals = Vec::new();
            for key in &mut meter.keys {
                if !matches!(key.value, KeyValue::Sealed(_)) {
                    continue;
                }
                match taken.next().flatten() {
                    None => refusals.push(refusal(
                        RefusalCode::KeyUnwrapRefused,
                        format!("the {} does not open under the file's key", key.kind),
                    )),
                    Some(value) if self.identities.is_test_key(&value.fingerprint) => {
                        if !rules.allow_test_keys {
                            refusals.push(checks::test_key(key.kind));
                        }
                        key.value = KeyValue::Taken(Box::new(TakenValue::new(value)));
                    }
                    Some(value) => key.value = KeyValue::Taken(Box::new(TakenValue::new(value))),
                }
            }
            if let Some(refusal) = refusals.into_iter().next() {
                line.meter = None;
                line.result = Some(ImportResult::refused(refusal));
            }
        }
        Ok(())
    }
}

fn unproved() -> Refusal {
    refusal(
        RefusalCode::FileKeyOfAnother,
        "the file's signer does not prove that he knows the file's key: the key and what is wrapped under \
         it come from somebody else's file, or the header was changed and signed again; the one who has \
         the keys must seal",
    )
}

fn of_token(error: TakeError) -> LifecycleError {
    match error {
        TakeError::Token(TokenError::Refused { .. }) => LifecycleError::Refused(refusal(
            RefusalCode::FileKeyRefused,
            "the file's own key does not open under this site's import key: seal the file again, for \
             this site and with its oaep_hash",
        )),
        TakeError::Token(error) => LifecycleError::Unavailable { reason: error.to_string() },
        TakeError::Keyring(error) => LifecycleError::from(error),
    }
}
