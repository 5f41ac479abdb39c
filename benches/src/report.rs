//! All figures in one table.

use std::{
    path::PathBuf,
    process::{Command, ExitCode},
    time::Duration,
};

use aes::{Aes128, Aes128Enc};
use clap::Parser;
use kms_server::ciphering::Ciphering;
use softhsm_tests::Site;
use tokio::runtime::Runtime;

use crate::{
    Error,
    bare::FlatTable,
    fleet::{APDU_LEN, PLAINTEXT_LEN, Telegrams, keys},
    home,
    in_process::{self, BATCH},
    measure::in_turns,
    on_the_wire::{Way, Wire},
    process::hardware,
    site::{Parts, WarmUp},
    table::{self, Row},
};

/// Telegrams in the pool: so many that a round over it does not fit into any cache.
const POOL_MAX: usize = 1 << 20;

/// Measures what the service costs beside the bounds below it.
#[derive(Clone, Debug, Parser)]
pub struct Options {
    /// Meters of the fleet
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1_024..))]
    meters: u32,
    /// Rounds of each figure; the median counts
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u8).range(1..))]
    rounds: u8,
    /// Seconds of each turn of a load over the wire
    #[arg(long, default_value_t = 1.5)]
    turn_seconds: f64,
    /// Single calls a second
    #[arg(long, default_value_t = 4_000, value_parser = clap::value_parser!(u32).range(100..))]
    rate: u32,
    /// Keep the site in this directory, and use it again if it is there
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Leave the wire out
    #[arg(long)]
    in_process_only: bool,
    /// Leave the parts in this process out
    #[arg(long)]
    wire_only: bool,
    /// Print the table as Markdown
    #[arg(long)]
    markdown: bool,
    /// Cargo says this to every bench
    #[arg(long, hide = true)]
    bench: bool,
}

/// The program.
pub fn main() -> ExitCode {
    let options = Options::parse();
    let (meters, keep) = (options.meters, options.dir.clone());
    home::within_a_site(meters, keep.as_deref(), |site| run(&options, &site))
}

fn run(options: &Options, site: &Site) -> Result<(), Error> {
    let mut rows = Vec::new();
    let runtime = in_process::all_threads()?;
    tell(&format!("importing {} meters, unless they are there", options.meters));
    let parts = runtime.block_on(Parts::of(site))?;
    if let Some(took) = runtime.block_on(parts.import(options.meters))? {
        tell(&format!("imported in {:.0} s", took.as_secs_f64()));
    }
    let telegrams = Telegrams::of_random_meters(options.meters, pool(options.meters))?;
    let mut bare_ns = None;
    if !options.wire_only {
        rows.extend(open_rows(options)?);
        let (keyring, warm_up) = runtime.block_on(parts.warm_up())?;
        let table = FlatTable::new(options.meters)?;
        rows.push(look_up_row(options, &keyring, &table, &telegrams));
        let (row, bare) =
            batch_row(options, &parts.ciphering(&keyring), &table, &telegrams, &runtime)?;
        rows.push(row);
        bare_ns = Some(bare);
        rows.extend(warm_up_rows(&warm_up));
    }
    drop(parts);
    if !options.in_process_only {
        rows.extend(runtime.block_on(wire_rows(options, site, &telegrams, bare_ns))?);
    }
    print!("{}", table::print(&rows, options.markdown));
    println!("\n{}", circumstances(options));
    Ok(())
}

/// As many as make whole batches.
fn pool(meters: u32) -> usize {
    (meters as usize).min(POOL_MAX) / BATCH * BATCH
}

fn tell(what: &str) {
    eprintln!("{what} ...");
}

fn circumstances(options: &Options) -> String {
    let Options { meters, rounds, .. } = options;
    let git = Command::new("git")
        .args(["describe", "--always", "--dirty"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output();
    let commit = git.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    format!(
        "{meters} meters, {PLAINTEXT_LEN} bytes of plaintext in APDUs of {APDU_LEN}, medians of \
         {rounds} rounds; {}; commit {}",
        hardware(),
        commit.unwrap_or_else(|_| "unknown".to_owned())
    )
}

fn open_rows(options: &Options) -> Result<Vec<Row>, Error> {
    tell("opening with one hot key");
    let telegrams = Telegrams::of_random_meters(1, 4_096)?;
    let apdus: Vec<&[u8]> = telegrams.iter().map(|(_, apdu)| apdu).collect();
    let (guek, gak) = keys(0);
    let mut out = Vec::with_capacity(PLAINTEXT_LEN);
    let mut outs = [[0; PLAINTEXT_LEN]; 3];
    let [first, second, third] = &mut outs;
    let rounds = in_turns(
        4 * usize::from(options.rounds),
        &mut [
            &mut || in_process::dlms_open(&apdus, &guek, &gak, &mut out),
            &mut || in_process::bare_open::<Aes128Enc>(&apdus, &guek, &gak, first),
            &mut || in_process::bare_open::<Aes128>(&apdus, &guek, &gak, second),
            &mut || in_process::bare_open_cached(&apdus, &guek, &gak, third),
        ],
    );
    let row = |index, what: &str| Row {
        what: what.to_owned(),
        measured: format!("{:.0} ns", rounds.median(0)),
        bound: format!("{:.0} ns", rounds.median(index)),
        ratio: percent(rounds.ratio(index, 0)),
        budget: String::new(),
        met: None,
    };
    Ok(vec![
        row(1, "`dlms` parse and open, one hot key; bare aes-gcm call (`Aes128Enc`)"),
        row(2, "the same; bare call with `AesGcm<Aes128, U12, U12>`"),
        row(3, "the same; bare call with a cipher kept expanded"),
    ])
}

fn look_up_row(
    options: &Options,
    keyring: &kms_server::keyring::Keyring,
    table: &FlatTable,
    telegrams: &Telegrams,
) -> Row {
    tell("looking up");
    let titles = in_process::titles(telegrams);
    let rounds = in_turns(
        usize::from(options.rounds),
        &mut [&mut || in_process::look_up(keyring, &titles), &mut || {
            in_process::read_lines(table, &telegrams.meters)
        }],
    );
    Row {
        what: "keyring look-up by title; bare read of one cache line".to_owned(),
        measured: format!("{:.0} ns", rounds.median(0)),
        bound: format!("{:.0} ns", rounds.median(1)),
        ratio: percent(rounds.ratio(1, 0)),
        budget: String::new(),
        met: None,
    }
}

/// The row, and nanoseconds an item of the bare loop.
fn batch_row(
    options: &Options,
    ciphering: &Ciphering,
    table: &FlatTable,
    telegrams: &Telegrams,
    _alive: &Runtime,
) -> Result<(Row, f64), Error> {
    const BUDGET: f64 = 0.9;
    tell("opening batches in this process");
    let one = in_process::one_thread()?;
    let rounds = in_turns(
        usize::from(options.rounds),
        &mut [&mut || in_process::open_batches(&one, ciphering, telegrams), &mut || {
            in_process::open_batches_bare(table, telegrams)
        }],
    );
    if in_process::open_batches(&one, ciphering, telegrams) != telegrams.len() {
        return Err("not all telegrams were opened".into());
    }
    let row = Row {
        what: format!("batch of {BATCH} in this process; bare loop"),
        measured: format!("{:.0} ns an item", rounds.median(0)),
        bound: format!("{:.0} ns", rounds.median(1)),
        ratio: percent(rounds.ratio(1, 0)),
        budget: percent(BUDGET),
        met: Some(rounds.ratio(1, 0) >= BUDGET),
    };
    Ok((row, rounds.median(1)))
}

fn warm_up_rows(warm_up: &WarmUp) -> Vec<Row> {
    /// Calls besides one a block: the token's check.
    const CALLS_BESIDES: u64 = 8;
    let WarmUp { took, hsm_calls, blocks, meters, arena_bytes, grown_bytes } = warm_up;
    let seconds = took.as_secs_f64();
    let for_a_million = seconds * 1e6 / *meters as f64;
    let a_meter = *grown_bytes as f64 / *meters as f64;
    vec![
        Row {
            what: format!("warm-up of {meters} meters"),
            measured: format!("{seconds:.1} s"),
            bound: String::new(),
            ratio: format!("{for_a_million:.1} s for a million"),
            budget: "10 s for a million".to_owned(),
            met: Some(for_a_million <= 10.0),
        },
        Row {
            what: "HSM calls of the warm-up; blocks".to_owned(),
            measured: hsm_calls.to_string(),
            bound: blocks.to_string(),
            ratio: format!("{:+}", *hsm_calls as i64 - i64::from(*blocks)),
            budget: "blocks + a constant".to_owned(),
            met: Some(*hsm_calls <= u64::from(*blocks) + CALLS_BESIDES),
        },
        Row {
            what: "memory a meter, GUEK + GAK + index; arena alone".to_owned(),
            measured: format!("{a_meter:.0} bytes"),
            bound: format!("{:.0} bytes", *arena_bytes as f64 / *meters as f64),
            ratio: String::new(),
            budget: "128 bytes".to_owned(),
            met: Some(a_meter <= 128.0),
        },
    ]
}

async fn wire_rows(
    options: &Options,
    site: &Site,
    telegrams: &Telegrams,
    bare_ns: Option<f64>,
) -> Result<Vec<Row>, Error> {
    tell("starting the server");
    let (wire, warmed) = Wire::up(site, telegrams).await?;
    tell(&format!("the server was warm after {:.1} s", warmed.as_secs_f64()));
    let (rounds, turn) =
        (usize::from(options.rounds), Duration::from_secs_f64(options.turn_seconds));
    let mut rows = Vec::new();
    for (way, name) in [(Way::Stream, "stream"), (Way::Unary, "unary")] {
        tell(&format!("batches over the wire, {name}"));
        rows.extend(batches_rows(&wire.compare(way, rounds, turn).await?, name, bare_ns));
    }
    tell("single calls");
    let single = wire.single_calls(options.rate, rounds, turn).await?;
    rows.extend(single_rows(&single, options.rate));
    wire.down()?;
    Ok(rows)
}

fn batches_rows(rounds: &crate::measure::Rounds, way: &str, bare_ns: Option<f64>) -> Vec<Row> {
    const BUDGET: f64 = 1e6;
    let per_core = |ns: f64| 1e9 / ns;
    let (kms, echo) = (rounds.median(0), rounds.median(1));
    let mut rows = vec![Row {
        what: format!("batches of {BATCH} over mTLS, {way}; echo of the same bytes"),
        measured: format!("{} a core second", count(per_core(kms))),
        bound: count(per_core(echo)),
        ratio: percent(rounds.ratio(1, 0)),
        budget: count(BUDGET),
        met: Some(per_core(kms) >= BUDGET),
    }];
    if let Some(bare) = bare_ns {
        rows.push(Row {
            what: format!("the same, {way}; echo and bare loop together"),
            measured: format!("{kms:.0} ns of the server's core"),
            bound: format!("{echo:.0} + {bare:.0} ns"),
            ratio: percent((echo + bare) / kms),
            budget: String::new(),
            met: None,
        });
    }
    rows
}

fn single_rows(rounds: &crate::measure::Rounds, rate: u32) -> Vec<Row> {
    const BUDGET: f64 = 1.2;
    let row = |quantile: &str, figure: usize, under: usize, bound: &str, budget: Option<f64>| Row {
        what: format!("unary decrypt {quantile} at {rate}/s; {bound}"),
        measured: format!("{:.0} µs", rounds.median(figure)),
        bound: format!("{:.0} µs", rounds.median(under)),
        ratio: format!("{:.2}", rounds.ratio(figure, under)),
        budget: budget.map_or_else(String::new, |budget| format!("{budget}")),
        met: budget.map(|budget| rounds.ratio(figure, under) <= budget),
    };
    vec![
        row("p50", 0, 4, "empty call of a bare tonic server", None),
        row("p99", 1, 5, "empty call of a bare tonic server", Some(BUDGET)),
        row("p99", 1, 3, "health check of the same server", None),
    ]
}

fn percent(ratio: f64) -> String {
    format!("{:.0} %", 100.0 * ratio)
}

/// A number with its thousands apart.
fn count(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_apart() {
        assert_eq!(count(1e6), "1,000,000");
        assert_eq!(count(999.4), "999");
        assert_eq!(count(12_345.0), "12,345");
    }
}
