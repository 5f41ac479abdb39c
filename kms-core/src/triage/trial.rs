//! Trying keys on a frame. Says whether they fit and nothing else: what comes out is wiped.

use dlms::plain::{Beginning, beginning};
use dlms::{CipheredApdu, GeneralCipheringAad, Keys, SystemTitle};
use zeroize::{Zeroize as _, Zeroizing};

/// Room for what comes out, which nobody sees.
pub struct Trial<'a> {
    apdu: &'a CipheredApdu<'a>,
    scratch: Zeroizing<Vec<u8>>,
}

impl<'a> Trial<'a> {
    /// Of one APDU.
    pub fn of(apdu: &'a CipheredApdu<'a>) -> Self {
        // As much as the longer of both rules takes, so that it is never moved: a move would leave a copy.
        let room = apdu.open_capacity(GeneralCipheringAad::Spec);
        Self { apdu, scratch: Zeroizing::new(Vec::with_capacity(room)) }
    }

    /// Whether the tag verifies.
    pub fn verifies(
        &mut self,
        keys: &Keys<'_>,
        originator: &SystemTitle,
        rule: GeneralCipheringAad,
    ) -> bool {
        let opened = self.apdu.open(keys, originator, rule, &mut self.scratch).is_ok();
        self.scratch.zeroize();
        opened
    }

    /// Whether what counter mode gives begins as an APDU or a P1 telegram does: of random bytes one in fifty does.
    /// `None`: it is not enciphered, or too short to be judged.
    pub fn looks_right(&mut self, encryption: &[u8], originator: &SystemTitle) -> Option<bool> {
        if !self.apdu.security_control().encrypted || self.apdu.plaintext_len() < 2 {
            return None;
        }
        let deciphered =
            self.apdu.decrypt_without_authentication(encryption, originator, &mut self.scratch);
        let looks = deciphered.is_ok().then(|| beginning(&self.scratch) != Beginning::Neither);
        self.scratch.zeroize();
        looks
    }
}
