//! `kms-server trust-peer`: the security officer lets the sealed KEKs go to the site that asks to join. In a process of
//! its own, and the only one that ever has the officer's PIN beside `init --create-token`.

use std::path::PathBuf;

use super::{
    fault::Fault,
    handing_on,
    init::{CAN_HAND_ON, pin_from},
    join::read_request,
    report::Report,
};
use crate::{
    config::Config,
    hsm::{
        CeremonyKey, OaepHash, RsaKey,
        pkcs11::{self, TrustError},
    },
};
use kms_core::enrolment::{Fingerprint, Oaep, request::SignedRequest};

/// The options of `trust-peer`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustOptions {
    /// The file of the join request; `None`: it is only tried whether the token can trust a key at all.
    pub request: Option<PathBuf>,
    /// Of the request, as somebody at the joining site read it out.
    pub fingerprint: Option<Fingerprint>,
    /// The security officer's PIN is in this file.
    pub so_pin_file: PathBuf,
    /// The key is to be trusted no longer.
    pub withdraw: bool,
}

/// Trusts the ceremony key of a join request, or trusts it no longer.
pub fn trust_peer(config: Config, options: &TrustOptions) -> Result<Report, Fault> {
    let so_pin = pin_from(&options.so_pin_file)?;
    let refused = |error: TrustError| Fault::Token(error.into());
    let token = ("token".to_owned(), config.hsm.token_label.clone());
    let Some(path) = &options.request else {
        handing_on::try_it(&config, &so_pin).map_err(refused)?;
        let can = ("a second site".to_owned(), CAN_HAND_ON.to_owned());
        return Ok(Report { lines: vec![token, can] });
    };
    let signed = read_request(path)?;
    let fingerprint = signed.fingerprint();
    if options.fingerprint != Some(fingerprint) {
        let sentence = format!(
            "the request in {} has the fingerprint {fingerprint}, and another one was confirmed: trust no key of it, \
             find out which request is the joining site's",
            path.display()
        );
        return Err(Fault::Setting(sentence.into()));
    }
    let key = ceremony_key(&signed)?;
    let (id, label) = (hex::encode(key.id), key.label());
    let what = if options.withdraw {
        match pkcs11::distrust_peer(&config.hsm, &so_pin, &key).map_err(refused)? {
            true => "destroyed: the sealed KEKs leave under it no more",
            false => "there was none",
        }
    } else {
        match pkcs11::trust_peer(&config.hsm, &so_pin, &key).map_err(refused)? {
            true => {
                "trusted: the sealed KEKs may leave under it, to the token that has its private half"
            }
            false => "it was trusted already",
        }
    };
    let request = &signed.request;
    Ok(Report {
        lines: [
            ("joining site", format!("{}, which wants to be {}", request.site, request.what())),
            ("request", fingerprint.to_string()),
            ("ceremony key", hex::encode(key.key.fingerprint())),
            ("object", format!("{label}, id {id}")),
            ("outcome", what.to_owned()),
        ]
        .map(|(what, is)| (what.to_owned(), is))
        .into_iter()
        .chain([token])
        .collect(),
    })
}

/// The ceremony key of a request.
fn ceremony_key(signed: &SignedRequest) -> Result<CeremonyKey, Fault> {
    let key = RsaKey::from_der(&signed.request.ceremony);
    let key = key.map_err(|error| Fault::Setting(format!("the ceremony key is {error}").into()))?;
    let oaep = match signed.request.oaep {
        Oaep::Sha1 => OaepHash::Sha1,
        Oaep::Sha256 => OaepHash::Sha256,
    };
    Ok(CeremonyKey::of(&signed.fingerprint(), key, oaep))
}
