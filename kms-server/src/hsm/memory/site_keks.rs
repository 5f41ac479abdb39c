//! Several site KEKs. The proof of one is its name: of a key in memory nothing more is to be shown.

use kms_core::{
    BlockSecret,
    site::keks::{Kek, KekId},
};

use super::{
    keys::random,
    token::{MemoryToken, refused},
};
use crate::hsm::{SiteKeks, TokenError};

type Answer<T> = Result<T, TokenError>;

const USE: &str = "use a site KEK";

impl SiteKeks for MemoryToken {
    fn kek_in_use(&self) -> Kek {
        let id = self.in_use().first().copied().unwrap_or_default();
        Kek { id, proof: id.to_vec() }
    }

    fn keks_that_open(&self) -> Vec<KekId> {
        self.in_use().clone()
    }

    fn seal_under(&self, kek: &KekId, place: &[u8], secret: &BlockSecret) -> Answer<Vec<u8>> {
        self.seal_with(&self.used(kek)?, place, secret)
    }

    fn open_under(&self, kek: &KekId, place: &[u8], sealed: &[u8]) -> Answer<BlockSecret> {
        self.open_with(&self.used(kek)?, place, sealed)
    }

    fn make_kek(&self, id: &KekId) -> Result<Kek, TokenError> {
        self.call()?;
        let mut made = self.site_keks();
        if !made.iter().any(|(known, _)| known == id) {
            made.push((*id, random()?));
        }
        Ok(Kek { id: *id, proof: id.to_vec() })
    }

    fn use_keks(&self, current: &Kek, further: &[Kek]) -> Result<(), TokenError> {
        self.call()?;
        let has = |kek: &Kek| self.site_keks().iter().any(|(known, _)| *known == kek.id);
        if !has(current) || current.proof != current.id {
            return Err(refused(USE, "it does not have it"));
        }
        let further: Vec<KekId> = further.iter().filter(|kek| has(kek)).map(|kek| kek.id).collect();
        *self.in_use() = [vec![current.id], further].concat();
        Ok(())
    }

    fn destroy_kek(&self, id: &KekId) -> Result<(), TokenError> {
        self.call()?;
        if self.in_use().contains(id) {
            return Err(refused("destroy a site KEK", "it is in use"));
        }
        self.site_keks().retain(|(known, _)| known != id);
        Ok(())
    }
}

impl MemoryToken {
    /// The names of the site KEKs that it has, used or not.
    pub fn has_site_keks(&self) -> Vec<KekId> {
        self.site_keks().iter().map(|(id, _)| *id).collect()
    }
}
