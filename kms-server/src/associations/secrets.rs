//! Mechanisms 2, 3, 4 and 6: answers made with a meter's HLS secret, which is opened for the length of a call.

use dlms::{
    Side,
    hls::{self, Exchange, HlsError, SecretMechanism},
};
use zeroize::Zeroizing;

use super::{
    item::{Answered, Mechanism, Verified},
    table::Facts,
    verbs::Associations,
};
use crate::{
    keyring::{ResidentMeter, SealedHlsSecret, scrub_stack},
    transmitting::Outcome,
};
use kms_core::{Record, SystemTitle, Verdict};

/// Versions of a secret that an answer is tried under.
const VERSIONS_MAX: usize = 16;

/// Bytes of mechanism 2's key.
const KEY_LEN: usize = 16;

/// A secret for the length of a call, and what is known of it.
type Opened = (Zeroizing<Vec<u8>>, SealedHlsSecret);

impl Facts {
    /// The mechanism, if it is one with a secret.
    pub(super) fn secret_mechanism(&self) -> Option<SecretMechanism> {
        match self.mechanism {
            Mechanism::Gmac => None,
            Mechanism::Manufacturer => Some(self.dialect),
            Mechanism::Secret(mechanism) => Some(mechanism),
        }
    }

    fn exchange<'a>(&'a self, server_challenge: &'a [u8]) -> Exchange<'a> {
        Exchange {
            client: self.client_title,
            server: self.server,
            client_challenge: &self.challenge,
            server_challenge,
        }
    }
}

impl Associations {
    /// Whether the meter has a secret that the mechanism takes. Mechanism 2 enciphers what the meter chooses: its secret must
    /// be no key that anything else is enciphered under.
    pub(super) async fn check_secret(&self, facts: &Facts) -> Result<(), Outcome> {
        let Some(mechanism) = facts.secret_mechanism() else { return Ok(()) };
        let (secret, ..) = self.secret_of(facts).await?;
        hls::check_secret(mechanism, &secret).map_err(Outcome::of_hls)?;
        if facts.mechanism == Mechanism::Manufacturer {
            self.check_no_cipher_key(facts.title, &secret).await?;
        }
        Ok(())
    }

    async fn check_no_cipher_key(&self, title: SystemTitle, secret: &[u8]) -> Result<(), Outcome> {
        let mut key = Zeroizing::new([0; KEY_LEN]);
        key.iter_mut().zip(secret).for_each(|(to, from)| *to = *from);
        let identity = self.identities.identify_bytes(&key[..]);
        scrub_stack();
        let unavailable = |why: String| Outcome::of(Verdict::Unavailable).because(why);
        let record = self.records.read(&title).await;
        let Some(Record::Meter(meter)) = record.map_err(|error| unavailable(error.to_string()))?
        else {
            return Err(unavailable("the meter was changed meanwhile: try again".to_owned()));
        };
        let same = meter.keys.iter().filter(|key| key.kind.is_cipher_key());
        match same.into_iter().find(|key| Some(key.fingerprint) == identity) {
            Some(key) => Err(Outcome::of(Verdict::PolicyRefused).because(format!(
                "the meter's HLS secret is its {} version {} as well: mechanism 2 would encipher what the meter chooses \
                 under it; give the meter another secret",
                key.kind, key.version
            ))),
            None => Ok(()),
        }
    }

    /// f(StoC) under the newest active secret.
    pub(super) async fn answer_with_secret(
        &self,
        facts: &Facts,
        mechanism: SecretMechanism,
        challenge: &[u8],
    ) -> Result<Answered, Outcome> {
        let (secret, sealed) = self.secret_of(facts).await?;
        let exchange = facts.exchange(challenge);
        let answer = hls::compute_with_secret(mechanism, &secret, &exchange, Side::Client);
        scrub_stack();
        Ok(Answered {
            outcome: Outcome::of(Verdict::Ok).about(facts.title),
            bytes: answer.map_err(Outcome::of_hls)?.as_bytes().to_vec(),
            answer_counter: 0,
            action_counter: 0,
            secret_version: sealed.version,
        })
    }

    /// Verifies f(CtoS) under each live version of the secret.
    pub(super) async fn verify_with_secret(
        &self,
        facts: &Facts,
        mechanism: SecretMechanism,
        (challenge, answer): (&[u8], &[u8]),
    ) -> Result<Verified, Outcome> {
        let secrets = self.secrets_of(facts, |_| true).await?;
        let exchange = facts.exchange(challenge);
        let mut why = HlsError::NotAuthentic;
        for (secret, sealed) in secrets.iter().take(VERSIONS_MAX) {
            match hls::verify_with_secret(mechanism, secret, &exchange, answer) {
                Ok(()) => {
                    scrub_stack();
                    let verdict = Verdict::of_authentic(sealed.vouches);
                    let verified = Verified::of(verdict, facts.title);
                    return Ok(Verified { secret_version: sealed.version, ..verified });
                }
                Err(error) => why = error,
            }
        }
        scrub_stack();
        Err(Outcome::of_hls(why))
    }

    async fn secret_of(&self, facts: &Facts) -> Result<Opened, Outcome> {
        // What was compromised answers where nothing is active: its successor has to be brought there.
        self.secrets_of(facts, |it| it.protects || !it.vouches)
            .await?
            .into_iter()
            .next()
            .ok_or_else(|| {
                Outcome::of(Verdict::NoUsableKey)
                    .because(format!(
                        "the meter has no active HLS secret in security setup {}",
                        facts.setup.0
                    ))
                    .about(facts.title)
            })
    }

    /// The secrets of the association's setup, in the order to try them.
    async fn secrets_of(
        &self,
        facts: &Facts,
        wanted: impl Fn(&SealedHlsSecret) -> bool,
    ) -> Result<Vec<Opened>, Outcome> {
        let unavailable =
            |why: String| Outcome::of(Verdict::Unavailable).because(why).about(facts.title);
        let table = self.reader.open(self.reader.block_of(&facts.title)).await;
        let table = table.map_err(|error| unavailable(error.to_string()))?;
        let meter = table.find(&facts.title).filter(|meter| !meter.is_damaged());
        let meter = meter.ok_or_else(|| unavailable("the meter can't be served".to_owned()))?;
        let sealed = meter.hls_secrets(facts.setup).filter(|sealed| wanted(sealed));
        let open = |meter: &ResidentMeter<'_>, sealed| self.reader.open_secret(meter, sealed);
        let opened = sealed.filter_map(|sealed| Some((open(&meter, sealed)?, sealed.clone())));
        let opened = opened.collect();
        scrub_stack();
        Ok(opened)
    }
}
