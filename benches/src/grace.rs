//! Decryption while the whole fleet is in the grace of a rotation: two versions of each GUEK, and the utility's titles in each
//! policy. Beside it the same fleet before, each meter with one GUEK and one GAK and no more.

use std::process::ExitCode;

use clap::Parser;
use kms_core::{MeterId, SecuritySetup, SystemTitle, audit::AuditedCall, life::evidence::Shown};
use kms_server::lifecycle::Lifecycle;
use softhsm_tests::Site;

use crate::{
    Error,
    fleet::{self, Telegrams},
    home,
    in_process::{self, BATCH, open_batches},
    measure::in_turns,
    process::hardware,
    rotating::{import, kek, wish},
    site::Parts,
};

/// Keys that are staged by one call.
const STAGED: usize = 4_096;

/// Measures decryption in the grace of a rotation
#[derive(Clone, Debug, Parser)]
struct Options {
    /// Meters of the fleet
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1_024..))]
    meters: u32,
    /// Rounds; the median of their ratios counts
    #[arg(long, default_value_t = 9)]
    rounds: usize,
}

/// The program.
pub fn main() -> ExitCode {
    let options = Options::parse();
    home::within_a_site(options.meters * 2, None, |site| run(&options, &site))
}

fn run(options: &Options, site: &Site) -> Result<(), Error> {
    let (runtime, one) = (in_process::all_threads()?, in_process::one_thread()?);
    let count = options.meters as usize / BATCH * BATCH;
    // What is open before the rotation stays as it was: another process of the site would read it so.
    let before = runtime.block_on(Parts::of(site))?;
    runtime.block_on(before.import(options.meters))?;
    let (keyring, _) = runtime.block_on(before.warm_up())?;
    let plain = before.ciphering(&keyring);
    let after = runtime.block_on(Parts::of(site))?;
    let new = runtime.block_on(rotate(&after, options.meters))?;
    let (rotated, _) = runtime.block_on(after.warm_up())?;
    let grace = after.ciphering(&rotated);

    let old = Telegrams::of_random_meters(options.meters, count)?;
    let new = Telegrams::under(
        |n| new.get(n as usize).copied().unwrap_or_default(),
        options.meters,
        count,
    )?;
    let figures = in_turns(
        options.rounds,
        &mut [
            &mut || open_batches(&one, &plain, &old),
            &mut || open_batches(&one, &grace, &new),
            &mut || open_batches(&one, &grace, &old),
        ],
    );
    for (what, opened) in [
        ("plain", open_batches(&one, &plain, &old)),
        ("new", open_batches(&one, &grace, &new)),
        ("old", open_batches(&one, &grace, &old)),
    ] {
        if opened != count {
            return Err(format!("{what}: {opened} of {count} opened").into());
        }
    }
    println!(
        "{} meters, batches of {BATCH} at random, {} rounds in turns; processor time of the thread",
        options.meters, options.rounds
    );
    let what =
        ["plain: one GUEK, one GAK", "in grace, under the new key", "in grace, under the old key"];
    for (at, what) in what.iter().enumerate() {
        println!(
            "  {what}: {:.0} ns an item, {:.2} of plain",
            figures.median(at),
            figures.ratio(0, at)
        );
    }
    println!("{}", hardware());
    Ok(())
}

/// Gives each meter a KEK and the utility's title, stages a GUEK for it, and has it shown. The new GUEKs.
async fn rotate(parts: &Parts, meters: u32) -> Result<Vec<[u8; 16]>, Error> {
    import(parts, meters).await?;
    let (keyring, _) = parts.warm_up().await?;
    let lifecycle = parts.lifecycle(&keyring);
    let mut order: Vec<u32> = (0..meters).collect();
    order.sort_by_key(|n| parts.block_of(&fleet::title(*n)));
    let mut new = vec![[0; 16]; meters as usize];
    for some in order.chunks(STAGED) {
        stage_and_show(&lifecycle, some, &mut new).await?;
    }
    Ok(new)
}

async fn stage_and_show(
    lifecycle: &Lifecycle,
    meters: &[u32],
    new: &mut [[u8; 16]],
) -> Result<(), Error> {
    let call = AuditedCall::new("benches", "Rotation/StageKey");
    let wanted = meters.iter().map(|n| Ok((MeterId::new(&format!("meter-{n}"))?, wish())));
    let wanted = wanted.collect::<Result<Vec<_>, Error>>()?;
    let mut shown: Vec<(SystemTitle, Shown)> = Vec::with_capacity(meters.len());
    for (n, staged) in meters.iter().zip(lifecycle.stage_keys(&call, &wanted).await) {
        let key = staged?.key;
        let transfer = key.life.transfer.as_ref().ok_or("a staged key without its transfer")?;
        let value = new.get_mut(*n as usize).ok_or("a meter of another fleet")?;
        dlms::key_wrap::unwrap(&kek(*n), &transfer.wrapped, value)
            .map_err(|error| format!("unwrapping: {error:?}"))?;
        let encryption = Some(key.id);
        let of = Shown { setup: SecuritySetup(0), encryption, authentication: None };
        shown.push((fleet::title(*n), of));
    }
    let proved = lifecycle.take_shown(&shown).await?.len();
    if proved == meters.len() { Ok(()) } else { Err("not all keys were proved".into()) }
}
