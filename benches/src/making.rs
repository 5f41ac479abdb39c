//! Keys made for meters, beside a token that does the same with each key and nothing else.

use std::{process::ExitCode, sync::Arc};

use clap::Parser;
use cryptoki::{
    context::Pkcs11,
    mechanism::{Mechanism, MechanismType},
    object::{Attribute, KeyType, ObjectClass, ObjectHandle},
    session::{Session, UserType},
    types::{AuthPin, Ulong},
};
use kms_core::{ClearKey, SealedKek};
use kms_server::{
    config::{Config, Store},
    hsm::{
        KeyLen, LockedKey, MADE_PER_CALL_MAX, MakeKeys, MakesKeys as _, SealedKeys as _,
        StoreUnder, WantedKey,
        pkcs11::{Canaries, Pkcs11Token},
    },
    store::{
        ReadStore as _,
        sqlite::{self, SqliteStore},
    },
};
use softhsm_tests::Site;

use crate::{Error, home, measure::in_turns, process::hardware};

/// The message that a fingerprint is the CMAC of: as long as the service's.
const LABEL: [u8; 48] = [0x55; 48];
const WRAP_KEY: [u8; 32] = [0xB1; 32];
/// Meters, each with a KEK of its own.
const METERS: usize = 4 * MADE_PER_CALL_MAX;

/// Measures the making of keys in the token.
#[derive(Clone, Debug, Parser)]
struct Options {
    /// Rounds, each with as many keys from either
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
}

/// The program.
pub fn main() -> ExitCode {
    let options = Options::parse();
    home::within_a_site(1, None, |site| run(usize::from(options.rounds), &site))
}

fn run(rounds: usize, site: &Site) -> Result<(), Error> {
    let load = || Config::load(&site.places().kms_toml);
    let (config, canaries) = (load()?, canaries(load()?.store)?);
    let token = Pkcs11Token::connect(load()?.hsm, canaries)?;
    let wrap = |n: usize| {
        let mut kek = vec![0xE1; 16];
        kek[..8].copy_from_slice(&n.to_be_bytes());
        token.wrap(SealedKek::MeterKek, &ClearKey::new(kek))
    };
    let keks = (0..METERS).map(wrap).collect::<Result<Vec<_>, _>>()?;
    let bare = Bare::of(site, &config)?;
    let jobs = |blocks: usize| -> Vec<MakeKeys> {
        keks.chunks(MADE_PER_CALL_MAX).map(|keks| job(keks, blocks)).collect()
    };
    let (one_block, a_block_each) = (jobs(1), jobs(MADE_PER_CALL_MAX));
    let made = |jobs: &[MakeKeys]| {
        let made: Vec<_> = jobs.iter().filter_map(|job| token.make_keys(job).ok()).collect();
        made.iter().flatten().filter(|made| made.is_ok()).count()
    };
    let mut failed = None;
    let figures = in_turns(
        rounds,
        &mut [
            &mut || bare.make_all(&keks).unwrap_or_else(|error| fail(&mut failed, error)),
            &mut || made(&one_block),
            &mut || made(&a_block_each),
        ],
    );
    if let Some(error) = failed {
        return Err(error);
    }
    println!(
        "{METERS} keys a round, a KEK each, {rounds} rounds in turns; processor time of the thread"
    );
    for (index, what) in [
        "bare: unwrap, generate, two CMACs, two wraps, their checks",
        "make_keys, all for one block",
        "make_keys, a block for each",
    ]
    .iter()
    .enumerate()
    {
        println!(
            "  {what}: {:.0} keys/s, {:.0} % of bare",
            1e9 / figures.median(index),
            100.0 * figures.ratio(0, index)
        );
    }
    println!("{}", hardware());
    Ok(())
}

fn fail(failed: &mut Option<Error>, error: Error) -> usize {
    *failed = Some(error);
    0
}

pub(crate) fn canaries(store: Store) -> Result<Canaries, Error> {
    let Store::Sqlite { path } = store else {
        return Err("the benches' sites are on SQLite".into());
    };
    let domain = tokio::runtime::Runtime::new()?.block_on(async {
        let store = SqliteStore::open(sqlite::Config { path, create: false }).await?;
        Ok::<_, Error>(store.domain().await?)
    })?;
    Ok(Canaries::decode(&domain.ok_or("the site is not initialised")?.canaries)?)
}

fn job(keks: &[Vec<u8>], blocks: usize) -> MakeKeys {
    let key =
        |at| WantedKey { len: KeyLen::Aes128, under: StoreUnder::Block(at % blocks), kek: at };
    MakeKeys {
        fingerprint_label: LABEL.to_vec(),
        wrap_keys: (0..blocks.min(keks.len())).map(|_| Arc::new(WRAP_KEY) as LockedKey).collect(),
        keks: keks.to_vec(),
        keys: (0..keks.len()).map(key).collect(),
    }
}

/// A session with a block's key, to wrap and to open.
pub(crate) struct Bare {
    session: Session,
    meter_kek: ObjectHandle,
    wraps: ObjectHandle,
    opens: ObjectHandle,
    /// Of a meter's KEK, as `meter-kek` demands.
    of_kek: Vec<Attribute>,
    /// Of a new key.
    new: Vec<Attribute>,
    /// Of a new key that was opened for its check.
    opened: Vec<Attribute>,
}

impl Bare {
    /// In a session of its own; the library is initialised and logged in.
    pub(crate) fn of(site: &Site, config: &Config) -> Result<Self, Error> {
        let library = Pkcs11::new(&config.hsm.module)?;
        let label = |slot: &_| library.get_token_info(*slot).map(|info| info.label().to_owned());
        let slot = library
            .get_slots_with_token()?
            .into_iter()
            .find(|slot| label(slot).is_ok_and(|label| label == config.hsm.token_label))
            .ok_or("the site's token is not there")?;
        let session = library.open_ro_session(slot)?;
        let pin = std::fs::read_to_string(&site.places().pin)?;
        // The user is logged in already.
        let _ = session.login(UserType::User, Some(&AuthPin::new(pin.trim().to_owned().into())));
        let labelled = [Attribute::Label(b"ami-meter-kek".to_vec())];
        let meter_kek = *session.find_objects(&labelled)?.first().ok_or("no meter-kek")?;
        let block_key = |usage| {
            let mut template = of_session(&[usage], MechanismType::AES_KEY_WRAP, false);
            template.push(Attribute::Value(WRAP_KEY.to_vec()));
            session.create_object(&template)
        };
        let sign = || [Attribute::Sign(true)];
        let mut new = of_session(&sign(), MechanismType::AES_CMAC, true);
        new.insert(0, Attribute::ValueLen(Ulong::new(16)));
        Ok(Self {
            meter_kek,
            wraps: block_key(Attribute::Wrap(true))?,
            opens: block_key(Attribute::Unwrap(true))?,
            of_kek: of_session(&[Attribute::Wrap(true)], MechanismType::AES_KEY_WRAP, false),
            new,
            opened: of_session(&sign(), MechanismType::AES_CMAC, false),
            session,
        })
    }

    pub(crate) fn make_all(&self, keks: &[Vec<u8>]) -> Result<usize, Error> {
        keks.iter().try_for_each(|kek| self.make(kek))?;
        Ok(keks.len())
    }

    fn make(&self, kek: &[u8]) -> Result<(), Error> {
        const WRAP: Mechanism<'_> = Mechanism::AesKeyWrap;
        let session = &self.session;
        let kek = session.unwrap_key(&WRAP, self.meter_kek, kek, &self.of_kek)?;
        let key = session.generate_key(&Mechanism::AesKeyGen, &self.new)?;
        let identity = self.identify(key)?;
        let for_meter = session.wrap_key(&WRAP, kek, key)?;
        let stored = session.wrap_key(&WRAP, self.wraps, key)?;
        let opened = session.unwrap_key(&WRAP, self.opens, &stored, &self.opened)?;
        if self.identify(opened)? != identity || session.wrap_key(&WRAP, kek, key)? != for_meter {
            return Err("the token garbled its answer".into());
        }
        for object in [opened, key, kek] {
            session.destroy_object(object)?;
        }
        Ok(())
    }

    fn identify(&self, key: ObjectHandle) -> Result<[Vec<u8>; 2], Error> {
        let mac = |message: &[u8]| self.session.sign(&Mechanism::AesCMac, key, message);
        Ok([mac(&LABEL)?, mac(&[0; 16])?])
    }
}

/// A session object that may do this and no more.
fn of_session(granted: &[Attribute], mechanism: MechanismType, leaves: bool) -> Vec<Attribute> {
    let mut template = vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::Token(false),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(leaves),
    ];
    let denied = [
        Attribute::Encrypt(false),
        Attribute::Decrypt(false),
        Attribute::Sign(false),
        Attribute::Verify(false),
        Attribute::Wrap(false),
        Attribute::Unwrap(false),
        Attribute::Derive(false),
    ];
    template.extend(denied.into_iter().map(|denied| {
        let is_it = |granted: &&Attribute| granted.attribute_type() == denied.attribute_type();
        granted.iter().find(is_it).cloned().unwrap_or(denied)
    }));
    template.push(Attribute::AllowedMechanisms(vec![mechanism]));
    template.push(Attribute::Copyable(false));
    template.push(Attribute::Modifiable(false));
    template
}
