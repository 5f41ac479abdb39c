//! Keys staged for many meters, durable: planned, made in the token, stored with their counter lines and their entries in the
//! audit log. Beside them sessions of the same token that make as many keys and do nothing else.

use std::{
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use clap::Parser;
use futures_util::{StreamExt as _, stream};
use kms_core::{
    AssociationForm, BlockNo, Carrier, ClearKey, Epoch, KeyKind, MeterId, MeterPolicy, SealedKek,
    SecuritySetup,
    audit::AuditedCall,
    block::{proof::Challenge, spread},
    life::{choosing::Place, staging::Wish},
    ports::{ProofGate, Proved},
};
use kms_server::{
    config::Config,
    hsm::{SealedKeys as _, pkcs11::Pkcs11Token},
    keyring::{Confirmed, Prover},
    lifecycle::{ImportRules, KeyValue, Lifecycle, NewKey, NewMeter},
};
use softhsm_tests::Site;

use crate::{
    Error, fleet, home, in_process,
    making::{self, Bare},
    measure::Rounds,
    process::{cpu_time, hardware},
    site::Parts,
};

/// Meters in one commit of the import.
const COMMIT_METERS: usize = 4_000;
/// Blocks that are proved at one time, as a site does it.
const PROVED_AT_ONCE: usize = 2;
/// Times that a block is asked for while it changes.
const PROOFS_MAX: usize = 100;

/// Measures the staging of many keys
#[derive(Clone, Debug, Parser)]
struct Options {
    /// Meters of the fleet, each with a KEK of its own
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1_024..))]
    meters: u32,
    /// Keys of a turn, staged by one call
    #[arg(long, default_value_t = 4_096, value_parser = clap::value_parser!(u16).range(1..))]
    keys: u16,
    /// Rounds; the median of their ratios counts
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Only these, by their numbers in the order of the table; `0` is the bare token
    #[arg(long, value_delimiter = ',', default_values_t = [0, 1, 2, 3, 4])]
    only: Vec<usize>,
    /// Sessions of the bare token
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..))]
    sessions: u8,
}

/// The program.
pub fn main() -> ExitCode {
    let options = Options::parse();
    // Three keys, a fourth that is staged, and lines.
    home::within_a_site(options.meters * 2, None, |site| run(&options, &site))
}

/// What is done in a turn.
const WHAT: [&str; 5] = [
    "bare: unwrap, generate, two CMACs, two wraps, their checks",
    "stage_keys, meters at random",
    "stage_keys, meters in the order of their blocks",
    "the same at random, each block opened anew and proved, for both sites",
    "stage_key, one meter a call",
];
/// Of those that are staged alone there are fewer.
const ALONE: usize = 16;

fn run(options: &Options, site: &Site) -> Result<(), Error> {
    let runtime = in_process::all_threads()?;
    let parts = runtime.block_on(Parts::of(site))?;
    let fleet = Fleet::of(options, &parts);
    runtime.block_on(import(&parts, options.meters))?;
    let (keyring, warm_up) = runtime.block_on(parts.warm_up())?;
    let alone = parts.lifecycle(&keyring);
    let proofs = Arc::new(BothSites(Arc::clone(&keyring.prover)));
    let proved = parts.lifecycle(&keyring).with_proofs(proofs);
    let mut bare = BareSessions::of(site, options)?;
    let mut rounds = Rounds::default();
    let mut cpu = Rounds::default();
    for round in 0..=options.rounds {
        let mut figures = [(0.0, 0.0); WHAT.len()];
        for step in 0..options.only.len() {
            let what = options.only.get((step + round) % options.only.len()).copied();
            let what = what.unwrap_or_default();
            let keys = fleet.of_round(what, round);
            let turn = match what {
                0 => timed(usize::from(options.keys), || bare.make_all())?,
                3 => timed(keys.len(), || runtime.block_on(stage_all(&proved, &keys)))?,
                4 => timed(keys.len(), || runtime.block_on(stage_each(&alone, &keys)))?,
                _ => timed(keys.len(), || runtime.block_on(stage_all(&alone, &keys)))?,
            };
            if let Some(figure) = figures.get_mut(what) {
                *figure = turn;
            }
        }
        if round > 0 {
            rounds.push(figures.iter().map(|(wall, _)| *wall).collect());
            cpu.push(figures.iter().map(|(_, cpu)| *cpu).collect());
        }
    }
    println!(
        "{} meters in {} blocks; {} keys a turn, {} sessions of the bare token, {} rounds in turns",
        options.meters, warm_up.blocks, options.keys, options.sessions, options.rounds
    );
    for (at, what) in WHAT.iter().enumerate().filter(|(at, _)| options.only.contains(at)) {
        println!(
            "  {what}: {:.0} keys/s, {:.0} % of bare; {:.0} µs of processor time a key",
            1.0 / rounds.median(at),
            100.0 * rounds.ratio(0, at),
            1e6 * cpu.median(at)
        );
    }
    println!("{}", hardware());
    Ok(())
}

/// Seconds a key, by the clock on the wall and of all this process's threads.
fn timed(keys: usize, work: impl FnOnce() -> Result<(), Error>) -> Result<(f64, f64), Error> {
    let pid = std::process::id();
    let (started, before) = (Instant::now(), cpu_time(pid)?);
    work()?;
    let a_key = |took: Duration| took.as_secs_f64() / keys.max(1) as f64;
    Ok((a_key(started.elapsed()), a_key(cpu_time(pid)? - before)))
}

async fn stage_all(on: &Lifecycle, wanted: &[(MeterId, Wish)]) -> Result<(), Error> {
    let call = AuditedCall::new("benches", "Rotation/StageKey");
    for staged in on.stage_keys(&call, wanted).await {
        let staged = staged?;
        if staged.already || matches!(staged.proved, Proved::No(_)) {
            return Err(format!("not staged anew, or not proved: {:?}", staged.proved).into());
        }
    }
    Ok(())
}

async fn stage_each(on: &Lifecycle, wanted: &[(MeterId, Wish)]) -> Result<(), Error> {
    let call = AuditedCall::new("benches", "Rotation/StageKey");
    for (id, wish) in wanted {
        on.stage_key(&call, id, wish).await?;
    }
    Ok(())
}

/// The meters, and who of them is rotated when: nobody twice.
struct Fleet {
    /// At random.
    at_random: Vec<u32>,
    /// By their blocks.
    in_order: Vec<u32>,
    keys: usize,
}

impl Fleet {
    fn of(options: &Options, parts: &Parts) -> Self {
        let mut at_random: Vec<u32> = (0..options.meters).collect();
        at_random.sort_by_key(|n| spread(u64::from(*n) ^ 0x5EED));
        let mut in_order = at_random.split_off(at_random.len() / 4 * 3);
        in_order.sort_by_key(|n| parts.block_of(&fleet::title(*n)));
        Self { at_random, in_order, keys: usize::from(options.keys) }
    }

    fn of_round(&self, what: usize, round: usize) -> Vec<(MeterId, Wish)> {
        let third = self.at_random.len() / 3;
        let (from, first, keys) = match what {
            1 => (&self.at_random, 0, self.keys),
            2 => (&self.in_order, 0, self.keys),
            3 => (&self.at_random, third, self.keys),
            4 => (&self.at_random, 2 * third, self.keys / ALONE),
            _ => return Vec::new(),
        };
        let some = from.iter().skip(first + round * keys).take(keys);
        some.filter_map(|n| Some((MeterId::new(&format!("meter-{n}")).ok()?, wish()))).collect()
    }
}

/// Imports meters with KEKs, block by block, or gives KEKs to those that are there.
pub(crate) async fn import(parts: &Parts, meters: u32) -> Result<(), Error> {
    let mut order: Vec<u32> = (0..meters).collect();
    order.sort_by_key(|n| parts.block_of(&fleet::title(*n)));
    let lifecycle = parts.lifecycle(&*parts.keyring()?);
    let call = AuditedCall::new("benches", "Meters/ImportMeters");
    for some in order.chunks(COMMIT_METERS) {
        let lines = some.iter().map(|n| with_kek(*n)).collect::<Result<_, _>>()?;
        let rules = ImportRules { change_policy: true, ..ImportRules::default() };
        let imported = lifecycle.import(&call, lines, rules).await?;
        if let Some(refused) = imported.results.iter().find(|it| it.outcome.is_err()) {
            return Err(format!("a meter was refused: {refused:?}").into());
        }
    }
    Ok(())
}

/// The n-th meter with a KEK, which is sent to.
pub(crate) fn with_kek(n: u32) -> Result<NewMeter, Error> {
    let mut meter = fleet::new_meter(n)?;
    meter.keys.push(NewKey {
        kind: KeyKind::Kek,
        setup: SecuritySetup(0),
        protection: None,
        value: KeyValue::from(ClearKey::new(kek(n).to_vec())),
    });
    let client_title = Some(kms_core::SystemTitle::new(*b"AMIHES\x00\x01"));
    meter.policy = Some(MeterPolicy { client_title, ..MeterPolicy::default() });
    Ok(meter)
}

pub(crate) fn kek(n: u32) -> [u8; 16] {
    let mut kek = [0xE1; 16];
    kek[..8].copy_from_slice(&spread(u64::from(n) << 8 | 9).to_be_bytes());
    kek
}

pub(crate) fn wish() -> Wish {
    let setup = SecuritySetup(0);
    Wish {
        place: Place { setup, kind: KeyKind::Guek },
        class_version: 1,
        carrier: Carrier { setup, client: 1, form: AssociationForm::GeneralGlo },
        kek: None,
        protection: None,
        request: "bench".to_owned(),
        allow_unreplicated: false,
        under_compromised_kek: false,
    }
}

/// What both sites do for a proof, on this machine: the one opens the block anew, the other one checks it.
struct BothSites(Arc<Prover>);

impl BothSites {
    /// What others change meanwhile is asked again, as a site does.
    async fn one(&self, block: BlockNo) -> Result<Proved, String> {
        let nonce = [block.0 as u8; 32];
        let challenge =
            Challenge { prover: "south", verifier: "north", nonce, epoch: Epoch::default() };
        let said = |error: kms_server::keyring::KeyringError| error.to_string();
        for _ in 0..PROOFS_MAX {
            let (head, proof) = self.0.prove(block, &challenge).await.map_err(said)??;
            match self.0.confirms(&challenge, &head, &proof).await.map_err(said)? {
                Confirmed::Yes => return Ok(Proved::Yes),
                Confirmed::OtherState => {}
                Confirmed::Wrong => return Err("the proof is wrong".to_owned()),
            }
        }
        Err("the block does not rest".to_owned())
    }
}

#[async_trait]
impl ProofGate for BothSites {
    async fn prove_each(&self, blocks: &[BlockNo]) -> Vec<Proved> {
        let one = async |block: BlockNo| self.one(block).await.unwrap_or_else(Proved::No);
        stream::iter(blocks.to_vec()).map(one).buffered(PROVED_AT_ONCE).collect().await
    }
}

/// Sessions that only make keys.
struct BareSessions {
    sessions: Vec<(Bare, Vec<Vec<u8>>)>,
}

impl BareSessions {
    /// In sessions of their own; the library is initialised and logged in.
    fn of(site: &Site, options: &Options) -> Result<Self, Error> {
        let load = || Config::load(&site.places().kms_toml);
        let (config, canaries) = (load()?, making::canaries(load()?.store)?);
        let token = Pkcs11Token::connect(load()?.hsm, canaries)?;
        let keys = usize::from(options.keys);
        let wrap =
            |n: usize| token.wrap(SealedKek::MeterKek, &ClearKey::new(kek(n as u32).to_vec()));
        let keks = (0..keys).map(wrap).collect::<Result<Vec<_>, _>>()?;
        let a_session = keys.div_ceil(usize::from(options.sessions));
        let of = |keks: &[Vec<u8>]| Ok::<_, Error>((Bare::of(site, &config)?, keks.to_vec()));
        Ok(Self { sessions: keks.chunks(a_session).map(of).collect::<Result<_, _>>()? })
    }

    fn make_all(&mut self) -> Result<(), Error> {
        std::thread::scope(|scope| {
            let make = |(bare, keks): &mut (Bare, Vec<Vec<u8>>)| bare.make_all(keks).map(drop);
            let each = self.sessions.iter_mut().map(|one| scope.spawn(move || make(one)));
            let each: Vec<_> = each.collect();
            each.into_iter().try_for_each(|one| one.join().unwrap_or(Err("a thread fell".into())))
        })
    }
}
