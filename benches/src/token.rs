//! The bound below a sealed import: a token that does with each key what must be done, and nothing else.

use std::time::{Duration, Instant};

use cmac::{Cmac, KeyInit as _, Mac as _};
use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Pkcs11},
    mechanism::{
        Mechanism, MechanismType,
        rsa::{PkcsMgfType, PkcsOaepParams, PkcsOaepSource},
    },
    object::{Attribute, KeyType, ObjectClass, ObjectHandle},
    session::{Session, UserType},
    types::AuthPin,
};
use kms_server::{config::Config, hsm::KEYS_PER_CALL_MAX};
use softhsm_tests::Site;

use crate::{Error, fleet::keys};

/// The message that a fingerprint is the CMAC of: as long as the service's.
const LABEL: [u8; 48] = [0x55; 48];

/// A session with a file's key, a block's key, and wrapped keys.
pub struct BareToken {
    session: Session,
    file_key: ObjectHandle,
    block_key: ObjectHandle,
    wrapped: Vec<Vec<u8>>,
    /// Of a key that was unwrapped.
    taken: Vec<Attribute>,
    /// A file's key by RSA-OAEP, under a pair of this session.
    file: (ObjectHandle, Vec<u8>),
    _library: Pkcs11,
}

impl BareToken {
    /// On the token of the site, with `count` wrapped keys.
    pub fn of(site: &Site, count: u32) -> Result<Self, Error> {
        let config = Config::load(&site.places().kms_toml)?;
        let library = Pkcs11::new(&config.hsm.module)?;
        library.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK))?;
        let label = |slot: &_| library.get_token_info(*slot).map(|info| info.label().to_owned());
        let slots = library.get_slots_with_token()?;
        let slot = slots
            .into_iter()
            .find(|slot| label(slot).is_ok_and(|label| label == config.hsm.token_label))
            .ok_or("the site's token is not there")?;
        let session = library.open_rw_session(slot)?;
        let pin = std::fs::read_to_string(&site.places().pin)?;
        session.login(UserType::User, Some(&AuthPin::new(pin.trim().to_owned().into())))?;
        let key = |value: [u8; 32], usage| {
            let mut template = of_session();
            template.extend([usage, Attribute::Value(value.to_vec())]);
            session.create_object(&template)
        };
        let file_key = key([0xF1; 32], Attribute::Unwrap(true))?;
        let block_key = key([0xB1; 32], Attribute::Wrap(true))?;
        let mut wrapped = Vec::new();
        for n in 0..count {
            let mut blob = vec![0; 24];
            dlms::key_wrap::wrap(&[0xF1; 32], &keys(n).0, &mut blob)
                .map_err(|error| format!("wrapping: {error:?}"))?;
            wrapped.push(blob);
        }
        let mut taken = of_session();
        taken.extend([
            Attribute::Sensitive(true),
            Attribute::Extractable(true),
            Attribute::Sign(true),
            Attribute::AllowedMechanisms(vec![MechanismType::AES_CMAC]),
        ]);
        let file = wrapped_file_key(&session)?;
        Ok(Self { session, file_key, block_key, wrapped, taken, file, _library: library })
    }

    /// Unwraps each key, asks for its fingerprint, wraps and destroys it.
    pub fn take_all(&self) -> Result<Duration, Error> {
        let started = Instant::now();
        for blob in &self.wrapped {
            let key = self.take(blob, self.block_key)?;
            self.session.destroy_object(key)?;
        }
        Ok(started.elapsed())
    }

    /// The same for meters with two keys each: besides, each key's check value, and a block's key that
    /// comes and goes for each meter, as meters are spread over blocks.
    pub fn take_all_of_meters(&self) -> Result<Duration, Error> {
        let started = Instant::now();
        for meter in self.wrapped.chunks(2) {
            let mut template = of_session();
            template.extend([Attribute::Wrap(true), Attribute::Value(vec![0xB2; 32])]);
            let block_key = self.session.create_object(&template)?;
            for blob in meter {
                let key = self.take(blob, block_key)?;
                self.session.sign(&Mechanism::AesCMac, key, &[0; 16])?;
                self.session.destroy_object(key)?;
            }
            self.session.destroy_object(block_key)?;
        }
        Ok(started.elapsed())
    }

    /// As the service does it: for each group an RSA operation and the blocks' keys, which come and go; each key taken,
    /// identified twice, wrapped, destroyed; then what was wrapped is opened and identified again, outside the token.
    pub fn take_all_as_an_import(&self, meters_a_block: usize) -> Result<Duration, Error> {
        let started = Instant::now();
        let (private, wrapped) = &self.file;
        for group in self.wrapped.chunks(KEYS_PER_CALL_MAX) {
            let mut template = of_session();
            template.push(Attribute::Unwrap(true));
            let file_key = self.session.unwrap_key(&oaep(), *private, wrapped, &template)?;
            for block in group.chunks(2 * meters_a_block.max(1)) {
                let mut template = of_session();
                template.extend([Attribute::Wrap(true), Attribute::Value(vec![0xB2; 32])]);
                let block_key = self.session.create_object(&template)?;
                for blob in block {
                    self.take_and_compare(blob, file_key, block_key)?;
                }
                self.session.destroy_object(block_key)?;
            }
            self.session.destroy_object(file_key)?;
        }
        Ok(started.elapsed())
    }

    fn take_and_compare(
        &self,
        blob: &[u8],
        file_key: ObjectHandle,
        block_key: ObjectHandle,
    ) -> Result<(), Error> {
        let Self { session, taken, .. } = self;
        let key = session.unwrap_key(&Mechanism::AesKeyWrap, file_key, blob, taken)?;
        let fingerprint = session.sign(&Mechanism::AesCMac, key, &LABEL)?;
        let check_value = session.sign(&Mechanism::AesCMac, key, &[0; 16])?;
        let stored = session.wrap_key(&Mechanism::AesKeyWrap, block_key, key)?;
        session.destroy_object(key)?;
        let mut clear = [0; 16];
        dlms::key_wrap::unwrap(&[0xB2; 32], &stored, &mut clear)
            .map_err(|error| format!("unwrapping: {error:?}"))?;
        let cmac = |message: &[u8]| -> Result<Vec<u8>, Error> {
            let mut mac = Cmac::<aes::Aes128>::new_from_slice(&clear)?;
            mac.update(message);
            Ok(mac.finalize().into_bytes().to_vec())
        };
        if cmac(&LABEL)? == fingerprint && cmac(&[0; 16])? == check_value {
            Ok(())
        } else {
            Err("the token made another key".into())
        }
    }

    fn take(&self, blob: &[u8], block_key: ObjectHandle) -> Result<ObjectHandle, Error> {
        let Self { session, file_key, taken, .. } = self;
        let key = session.unwrap_key(&Mechanism::AesKeyWrap, *file_key, blob, taken)?;
        session.sign(&Mechanism::AesCMac, key, &LABEL)?;
        session.wrap_key(&Mechanism::AesKeyWrap, block_key, key)?;
        Ok(key)
    }
}

fn oaep() -> Mechanism<'static> {
    Mechanism::RsaPkcsOaep(PkcsOaepParams::new(
        MechanismType::SHA1,
        PkcsMgfType::MGF1_SHA1,
        PkcsOaepSource::empty(),
    ))
}

/// A pair as long as a site's import key, and a file's key under it.
fn wrapped_file_key(session: &Session) -> Result<(ObjectHandle, Vec<u8>), Error> {
    let public = [
        Attribute::Token(false),
        Attribute::ModulusBits(3_072.into()),
        Attribute::PublicExponent(vec![1, 0, 1]),
        Attribute::Encrypt(true),
    ];
    let private = [Attribute::Token(false), Attribute::Unwrap(true), Attribute::Sensitive(true)];
    let (public, private) =
        session.generate_key_pair(&Mechanism::RsaPkcsKeyPairGen, &public, &private)?;
    let wrapped = session.encrypt(&oaep(), public, &[0xF1; 32])?;
    Ok((private, wrapped))
}

fn of_session() -> Vec<Attribute> {
    vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::Token(false),
        Attribute::Private(true),
    ]
}
