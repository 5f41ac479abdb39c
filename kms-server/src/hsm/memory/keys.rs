//! The keys that `init` makes on a token, in memory.

use kms_core::SealedKek;
use p256::ecdsa::SigningKey;
use rsa::{BoxedUint, RsaPrivateKey};
use zeroize::Zeroizing;

use crate::hsm::TokenError;

/// The primes of `transport-import`. Making a pair takes seconds, and this one guards nothing.
const PRIMES: [&str; 2] = [
    "e0e41438a3b543c5af2aa09a203cc20c9c721f08e212e52585f5294006799aa52a9e383df6f41853\
     e922dafd83a1a59f85f7d2c00db068273adad648dc0ab2384926d07e4f20cc1819d079d5c9ccb8fa\
     cf90eb1f9c72bd26510b4c8827be127c1bb697540825ac82b2078e2913d48c183379d9fef827289e\
     e498b50e825f200208040afa20e1f7aa29336e8f2e31d22d571f6dc01fa88e37e1553037be27ac3f\
     f88139551a4594dc41520fcd919f881ffa937ec75cecc0f4eb4c1a53955f6963",
    "d9e0009ec74aed5978b2d75d6bf6203d0e15cc7b6b0ee24fc2123197cf58500d3b287f72f355bdb5\
     61cac5cd126427b4ef091d426550a84bf9a59af43ebfed497965aae6e733afdfbe54ec7be19c222b\
     80d5129e9ceb5b414767ae1244fa177991bfd3366fc6e31c32053cf4e61cfb6fdcff0c73d36af6a2\
     44b2a10b541a486b3b3839b7dfb0204d3c0b390a7a083d9092bc021bff3bfad1642e4fcff52b6a24\
     af5a318fe42268f4c3f16b54680fd224dad7279f131bd93147c3abc2eb8b1b55",
];
/// 65,537.
const EXPONENT: u64 = 65_537;

/// An AES-256 key.
pub(super) type Kek = Zeroizing<[u8; 32]>;

/// All keys of one token.
pub(super) struct Keys {
    meter_kek: Kek,
    use_kek: Kek,
    /// Signs heads.
    pub(super) signing: SigningKey,
    /// Opens the keys of sealed files.
    pub(super) import: RsaPrivateKey,
}

impl Keys {
    /// New keys; that of imports is always the same.
    pub(super) fn make() -> Result<Self, TokenError> {
        let scalar = random()?;
        Ok(Self {
            meter_kek: random()?,
            use_kek: random()?,
            signing: SigningKey::from_slice(&*scalar).map_err(|_| failed("make a signing key"))?,
            import: import_key().ok_or_else(|| failed("make an import key"))?,
        })
    }

    /// One of the sealed KEKs.
    pub(super) fn sealed(&self, kek: SealedKek) -> &Kek {
        match kek {
            SealedKek::MeterKek => &self.meter_kek,
            SealedKek::Use => &self.use_kek,
        }
    }
}

/// Random bytes of the operating system.
pub(super) fn fill(out: &mut [u8]) -> Result<(), TokenError> {
    getrandom::fill(out).map_err(|_| failed("give random bytes"))
}

/// A new KEK.
pub(super) fn random() -> Result<Kek, TokenError> {
    let mut bytes = Zeroizing::new([0; 32]);
    fill(&mut *bytes)?;
    Ok(bytes)
}

fn import_key() -> Option<RsaPrivateKey> {
    let [p, q] = PRIMES.map(|prime| hex::decode(prime).ok());
    let prime = |bytes: Option<Vec<u8>>| Some(BoxedUint::from_be_slice_vartime(&bytes?));
    RsaPrivateKey::from_p_q(prime(p)?, prime(q)?, BoxedUint::from(EXPONENT)).ok()
}

fn failed(what: &str) -> TokenError {
    TokenError::Unreachable { reason: format!("the token in memory can't {what}") }
}
