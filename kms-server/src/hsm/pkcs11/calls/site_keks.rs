//! A second site KEK beside the first one: made, proved, used, and the former one destroyed.
//!
//! The sessions that calls are made in are read-only: no token object can be made or destroyed through one. Here one is
//! opened that may, for the length of a call.

use std::sync::Arc;

use cryptoki::session::Session;

use super::block_seals;
use crate::hsm::{
    SiteKeks, TokenError,
    pkcs11::{
        connection::{
            epoch::{Connection, Proof},
            token::Pkcs11Token,
        },
        failure::Failure,
        init::{destroy, sync},
        keys::{
            canary::Canaries,
            finding::find,
            making::make,
            template::{self, Kept, OurKey},
        },
    },
};
use kms_core::{
    BlockSecret,
    site::keks::{Kek, KekId},
};

const USE: &str = "use a site KEK";

impl SiteKeks for Pkcs11Token {
    fn kek_in_use(&self) -> Kek {
        let canaries = self.canaries();
        Kek { id: canaries.site, proof: canaries.encode() }
    }

    fn keks_that_open(&self) -> Vec<KekId> {
        self.site_keks().iter().map(|canaries| canaries.site).collect()
    }

    fn seal_under(
        &self,
        kek: &KekId,
        place: &[u8],
        secret: &BlockSecret,
    ) -> Result<Vec<u8>, TokenError> {
        let canaries = self.used(kek)?;
        block_seals::seal(self, &canaries, place, secret)
    }

    fn open_under(
        &self,
        kek: &KekId,
        place: &[u8],
        sealed: &[u8],
    ) -> Result<BlockSecret, TokenError> {
        let canaries = self.used(kek)?;
        block_seals::open(self, &canaries, place, sealed)
    }

    fn make_kek(&self, id: &KekId) -> Result<Kek, TokenError> {
        self.call("make a site KEK", Proof::Site, |_, _| {
            let session = self.writing()?;
            let found = find(&self.module, &session, OurKey::SiteKek, Some(id))?;
            let handle = match found.as_slice() {
                [] => make(&self.module, &session, OurKey::SiteKek, id, Kept::OnToken)?.0,
                // An attempt before made it, and was not heard of.
                [handle] => {
                    template::verify(&session, *handle, OurKey::SiteKek, Kept::OnToken)?;
                    *handle
                }
                several => {
                    let count = several.len();
                    return Err(Failure::Unfit(format!("the token has {count} new site KEKs")));
                }
            };
            self.synced()?;
            let canaries = self.canaries().with_site_kek(&self.module, &session, (handle, *id))?;
            Ok(Kek { id: *id, proof: canaries.encode() })
        })
    }

    fn use_keks(&self, current: &Kek, further: &[Kek]) -> Result<(), TokenError> {
        let new = self.beside(current)?;
        if let Some(reason) = self.lacks(&new)? {
            return Err(TokenError::Refused { operation: USE, source: reason.into() });
        }
        let mut others = Vec::new();
        for kek in further {
            let other = self.beside(kek)?;
            match self.lacks(&other)? {
                None => others.push(other),
                Some(reason) => tracing::debug!(reason, "a further site KEK is not used"),
            }
        }
        self.take_site_keks([vec![new], others].concat());
        Ok(())
    }

    fn destroy_kek(&self, id: &KekId) -> Result<(), TokenError> {
        if self.keks_that_open().contains(id) {
            let source = "it is in use".into();
            return Err(TokenError::Refused { operation: "destroy a site KEK", source });
        }
        self.call("destroy a site KEK", Proof::Site, |connection, _| {
            let session = self.writing()?;
            destroy(&self.module, &session, OurKey::SiteKek, id)?;
            connection.forget_site_kek(id);
            self.synced()
        })
    }
}

impl Pkcs11Token {
    /// A session in which token objects can be made and destroyed; closed on drop, within the gate.
    fn writing(&self) -> Result<Session, Failure> {
        let slot = self.module.slot(&self.config.token_label)?;
        Ok(self.module.pkcs11().open_rw_session(slot)?)
    }

    fn synced(&self) -> Result<(), Failure> {
        sync(&self.config).map_err(|error| Failure::Broken(error.to_string()))
    }

    fn used(&self, kek: &KekId) -> Result<Arc<Canaries>, TokenError> {
        self.site_keks()
            .into_iter()
            .find(|it| it.site == *kek)
            .ok_or_else(|| TokenError::unknown_kek(kek))
    }

    /// Our canaries with another site KEK, if these are of it and of our sealed KEKs.
    fn beside(&self, kek: &Kek) -> Result<Arc<Canaries>, TokenError> {
        let theirs = Canaries::decode(&kek.proof).ok().filter(|it| it.site == kek.id);
        let ours = self.canaries();
        let both = theirs.filter(|it| it.has_sealed_keks_of(&ours));
        both.map(Arc::new).ok_or_else(|| TokenError::Refused {
            operation: USE,
            source: "its proof is not one beside this token's sealed KEKs".into(),
        })
    }

    /// Why the token does not have the site KEK that these prove. A connection that can't be had without it, since the
    /// former one is gone, is made with it.
    fn lacks(&self, canaries: &Arc<Canaries>) -> Result<Option<String>, TokenError> {
        let look = || {
            self.call(USE, Proof::Site, |connection, session| {
                match self.site_handle(connection, session, canaries) {
                    Ok(_) => Ok(None),
                    Err(Failure::Unfit(reason)) => Ok(Some(reason)),
                    Err(failure) => Err(failure),
                }
            })
        };
        let looked = look();
        if !matches!(looked, Err(TokenError::Unreachable { .. })) {
            return looked;
        }
        let before = self.site_keks();
        self.take_site_keks(vec![Arc::clone(canaries)]);
        self.may_connect_at_once();
        let looked = look();
        if !matches!(looked, Ok(None)) {
            self.take_site_keks(before);
        }
        looked
    }

    /// The handle of a site KEK in this connection: found and proved once.
    pub(super) fn site_handle(
        &self,
        connection: &Connection,
        session: &Session,
        canaries: &Canaries,
    ) -> Result<cryptoki::object::ObjectHandle, Failure> {
        connection.site_kek(&self.module, session, canaries)
    }
}
