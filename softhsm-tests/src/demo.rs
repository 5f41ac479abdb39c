//! `make demo`: two sites from nothing, every published telegram through the first one, what it refuses; then
//! the first one is killed, and the second one goes on.

use std::{
    error::Error,
    fs,
    time::{Duration, Instant},
};

use crate::{
    DecryptRequest, DecryptResult, Pair, Programs, Role, Running, Site, SiteOptions, failover,
    fleet::{self, MeterLine, Telegram},
    table::{self, Cell, Column, Tone},
    tool::json_lines,
    vectors,
};

/// A telegram and what became of it.
struct Outcome {
    telegram: Telegram,
    result: DecryptResult,
}

impl Outcome {
    fn is_as_expected(&self) -> bool {
        let Self { telegram, result } = self;
        let plaintext = result.plaintext.as_deref().unwrap_or_default();
        result.verdict == telegram.verdict
            && result.authenticated == (telegram.verdict == "OK")
            && plaintext.eq_ignore_ascii_case(&telegram.plaintext)
    }
}

/// Runs the demonstration; whether every telegram ended as it must.
pub fn run(programs: Programs) -> Result<bool, Box<dyn Error>> {
    let began = Instant::now();
    let dir = tempfile::Builder::new().prefix("kms-demo-").tempdir()?;
    println!("\n  Two sites in {}\n", dir.path().display());
    let pair = step("CA, server and client certificates, PINs, kms.toml, of both", || {
        Pair::make(dir.path(), &programs, &SiteOptions::default())
    })?;
    let running = start_first(&pair)?;
    let outcomes = send_telegrams(&pair.a)?;
    show(&outcomes);
    let second = join_second(&pair)?;
    let mut all = outcomes;
    all.extend(disaster(&pair, running, second)?);
    Ok(conclude(&all, began.elapsed()))
}

fn start_first(pair: &Pair) -> Result<Running, Box<dyn Error>> {
    let site = &pair.a;
    step("A: kms-server init: SoftHSM token, its keys, SQLite database", || site.init())?;
    let listening = format!("A: kms-server serve: mutual TLS on 127.0.0.1:{}", site.port());
    step(&listening, || site.start())
}

/// The second site, from nothing to every block proved there.
fn join_second(pair: &Pair) -> Result<Running, Box<dyn Error>> {
    println!(
        "  A second site joins: a token and a database of its own, KEKs from token to token:\n"
    );
    let (request, fingerprint) =
        step("B: kms-server init --join: its own keys, a request", || pair.ask())?;
    let (bundle, fingerprint) = step(
        "A: kms-server trust-peer, ami-tool site enrol: a bundle for B's token alone",
        || pair.enrol(&request, &fingerprint),
    )?;
    step("B: kms-server init --join: KEKs received, block secrets sealed anew", || {
        pair.join(&bundle, &fingerprint)
    })?;
    let running = step("B: kms-server serve: follows A", || pair.b.start())?;
    step("every block of A is at B, and B's token has proved that it opens it", || {
        pair.until_proved(&pair.a)
    })?;
    Ok(running)
}

/// The first site is lost in mid-load; the second one answers, is promoted, and takes it back.
fn disaster(pair: &Pair, first: Running, second: Running) -> Result<Vec<Outcome>, Box<dyn Error>> {
    println!("\n  The first site is lost:\n");
    let Published { mut telegrams, late_meter, late_telegrams, .. } = Published::read()?;
    let load = failover::Load::start(&pair.client_toml(Role::Hes)?, &telegrams)?;
    let killed =
        step("A is killed -9 under a load of reads from a client that knows both", || {
            load.kill_under_it(first)
        })?;
    println!("  {:<76}  {:>7.2} s", "the first answer of B", killed.first_answer.as_secs_f64());
    println!(
        "    {} reads in {:.1} s, {} failed; the longest took {} ms",
        killed.reads,
        killed.took.as_secs_f64(),
        killed.failed,
        killed.longest.as_millis()
    );
    let mut outcomes = decrypt_all(&pair.b, &telegrams, "at B alone")?;
    step("ami-tool site promote B --primary-is-lost", || promote(&pair.b))?;
    step("ami-tool meter import: a meter that A has never heard of", || {
        let file = pair.b.places().dir.join("late.jsonl");
        fs::write(&file, json_lines(&[late_meter]))?;
        pair.b.ami_tool(Role::AmiAdmin).import(&file, true).map_err(Box::<dyn Error>::from)
    })?;
    telegrams.extend(late_telegrams);
    let again = step("A: kms-server serve: it comes back", || pair.a.start())?;
    step("A has heard of the promotion: it is fenced, and follows", || {
        pair.until_it_is(&pair.a, "SECONDARY", 3)
    })?;
    step("A has caught up, and proved every block to B", || pair.until_proved(&pair.b))?;
    outcomes.extend(decrypt_all(&pair.a, &telegrams, "at A, which follows B")?);
    step("stopping both servers", || check_stopped(again).and_then(|()| check_stopped(second)))?;
    if killed.failed > 0 {
        return Err(format!("{} reads failed: {}", killed.failed, killed.last_failure).into());
    }
    Ok(outcomes)
}

fn promote(site: &Site) -> Result<String, Box<dyn Error>> {
    let arguments = ["site", "promote", "--primary-is-lost", "--yes"];
    Ok(site.ami_tool(Role::AmiAdmin).succeed(&arguments)?)
}

/// All published telegrams and their meters, but for one meter, which comes to be after the first site was lost.
struct Published {
    meters: Vec<MeterLine>,
    telegrams: Vec<Telegram>,
    late_meter: MeterLine,
    late_telegrams: Vec<Telegram>,
}

impl Published {
    fn read() -> Result<Self, Box<dyn Error>> {
        let vectors = vectors::published()?;
        let mut meters = fleet::meters(&vectors);
        let late_meter = meters.pop().ok_or("there are no meters")?;
        let is_late = |telegram: &Telegram| telegram.meter_id == late_meter.meter_id;
        let (late_telegrams, telegrams) = fleet::telegrams(&vectors).into_iter().partition(is_late);
        Ok(Self { meters, telegrams, late_meter, late_telegrams })
    }
}

fn decrypt_all(
    site: &Site,
    telegrams: &[Telegram],
    whereabouts: &str,
) -> Result<Vec<Outcome>, Box<dyn Error>> {
    let requests: Vec<DecryptRequest> =
        telegrams.iter().map(|telegram| telegram.request.clone()).collect();
    let what = format!("ami-tool decrypt: {} telegrams {whereabouts}", requests.len());
    let results = step(&what, || site.ami_tool(Role::Hes).decrypt(&requests))?;
    let outcome =
        |(telegram, result): (&Telegram, _)| Outcome { telegram: telegram.clone(), result };
    Ok(telegrams.iter().zip(results).map(outcome).collect())
}

fn send_telegrams(site: &Site) -> Result<Vec<Outcome>, Box<dyn Error>> {
    let Published { meters, mut telegrams, .. } = Published::read()?;
    telegrams.extend(fleet::forgeries(&telegrams));

    let file = site.places().dir.join("meters.jsonl");
    fs::write(&file, json_lines(&meters))?;
    let keys: usize = meters.iter().map(|meter| meter.keys.len()).sum();
    step(&format!("ami-tool meter import: {} meters with {keys} keys", meters.len()), || {
        site.ami_tool(Role::AmiAdmin).import(&file, true)
    })?;
    let requests: Vec<_> = telegrams.iter().map(|telegram| telegram.request.clone()).collect();
    let results = step(&format!("ami-tool decrypt: {} telegrams", requests.len()), || {
        site.ami_tool(Role::Hes).decrypt(&requests)
    })?;
    let outcome = |(telegram, result)| Outcome { telegram, result };
    Ok(telegrams.into_iter().zip(results).map(outcome).collect())
}

/// Does one thing and says how long it took.
fn step<T, E: Into<Box<dyn Error>>>(
    what: &str,
    work: impl FnOnce() -> Result<T, E>,
) -> Result<T, Box<dyn Error>> {
    let began = Instant::now();
    let done = work();
    let end = if done.is_ok() { "" } else { "  failed" };
    println!("  {what:<76}  {:>7.2} s{end}", began.elapsed().as_secs_f64());
    done.map_err(Into::into)
}

fn check_stopped(running: Running) -> Result<(), Box<dyn Error>> {
    let status = running.stop()?;
    if status.success() { Ok(()) } else { Err(format!("kms-server ended with {status}").into()) }
}

const PUBLISHED: [Column; 6] = [
    ("meter", 16),
    ("from", 10),
    ("form", 21),
    ("suite", 5),
    ("verdict", 18),
    ("plaintext begins", 18),
];

const REFUSED: [Column; 4] = [("meter", 16), ("form", 23), ("what is wrong", 38), ("verdict", 14)];

fn show(outcomes: &[Outcome]) {
    let coloured = table::is_terminal();
    let (refused, published): (Vec<&Outcome>, Vec<&Outcome>) =
        outcomes.iter().partition(|outcome| !outcome.telegram.fault.is_empty());
    println!("\n  Published telegrams of real meters and of the standard:\n");
    let rows: Vec<_> = published.into_iter().map(published_row).collect();
    print!("{}", table::render(&PUBLISHED, &rows, coloured));
    println!("\n  Tampered, forged, or under a wrong key. Nothing of these comes back:\n");
    let rows: Vec<_> = refused.into_iter().map(refused_row).collect();
    println!("{}", table::render(&REFUSED, &rows, coloured));
    for outcome in outcomes.iter().filter(|outcome| !outcome.is_as_expected()) {
        explain(outcome);
    }
}

fn published_row(outcome: &Outcome) -> Vec<Cell> {
    let Outcome { telegram, result } = outcome;
    vec![
        telegram.meter_id.as_str().into(),
        telegram.origin.into(),
        telegram.form.into(),
        telegram.suite.to_string().into(),
        verdict(outcome),
        beginning(result.plaintext.as_deref().unwrap_or_default()).into(),
    ]
}

/// The first eight bytes.
fn beginning(hex: &str) -> String {
    match hex.get(..16) {
        Some(first) if hex.len() > 16 => format!("{}…", first.to_uppercase()),
        _ => hex.to_uppercase(),
    }
}

fn refused_row(outcome: &Outcome) -> Vec<Cell> {
    let Outcome { telegram, result: _ } = outcome;
    vec![
        telegram.meter_id.as_str().into(),
        telegram.form.into(),
        telegram.fault.into(),
        verdict(outcome),
    ]
}

fn verdict(outcome: &Outcome) -> Cell {
    let tone = match outcome.result.verdict.as_str() {
        _ if !outcome.is_as_expected() => Tone::Bad,
        "OK" => Tone::Good,
        "OK_UNAUTHENTICATED" => Tone::Care,
        _ => Tone::Refused,
    };
    Cell { text: outcome.result.verdict.clone(), tone }
}

fn explain(outcome: &Outcome) {
    let Outcome { telegram, result } = outcome;
    println!("  NOT AS EXPECTED: {} ({})", telegram.id, telegram.meter_id);
    println!("    expected {} with plaintext {:?}", telegram.verdict, telegram.plaintext);
    let plaintext = result.plaintext.as_deref().unwrap_or_default();
    println!("    got      {} with plaintext {plaintext:?}", result.verdict);
    println!("    authenticated: {}, reason: {:?}\n", result.authenticated, result.reason);
}

/// Counts and time; whether all is as expected.
fn conclude(outcomes: &[Outcome], took: Duration) -> bool {
    let mut verdicts: Vec<&str> =
        outcomes.iter().map(|outcome| outcome.result.verdict.as_str()).collect();
    verdicts.sort_unstable();
    let mut groups: Vec<&[&str]> = verdicts.chunk_by(|one, other| one == other).collect();
    groups.sort_by_key(|same| std::cmp::Reverse(same.len()));
    let counts: Vec<String> =
        groups.into_iter().map(|same| format!("{} {}", same.len(), same[0])).collect();
    let good = outcomes.iter().filter(|outcome| outcome.is_as_expected()).count();
    let (all, took) = (outcomes.len(), took.as_secs_f64());
    println!("\n  {}", counts.join(" · "));
    println!(
        "  {good} of {all} telegrams ended with the expected verdict and plaintext. {took:.1} s.\n"
    );
    good == all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(change: fn(&mut DecryptResult)) -> Outcome {
        let telegrams = fleet::telegrams(&vectors::published().unwrap());
        let telegram = telegrams.into_iter().find(|telegram| telegram.verdict == "OK").unwrap();
        let mut result = DecryptResult {
            verdict: "OK".to_owned(),
            authenticated: true,
            plaintext: Some(telegram.plaintext.to_lowercase()),
            ..DecryptResult::default()
        };
        change(&mut result);
        Outcome { telegram, result }
    }

    #[test]
    fn the_published_plaintext_is_as_expected_in_either_case() {
        assert!(outcome(|_| ()).is_as_expected());
    }

    #[test]
    fn a_right_verdict_with_a_wrong_plaintext_is_not_as_expected() {
        assert!(!outcome(|result| result.plaintext = Some("00".to_owned())).is_as_expected());
        assert!(!outcome(|result| result.plaintext = None).is_as_expected());
    }

    #[test]
    fn an_opened_telegram_that_was_not_authenticated_is_not_as_expected() {
        assert!(!outcome(|result| result.authenticated = false).is_as_expected());
        assert!(
            !outcome(|result| result.verdict = "OK_UNAUTHENTICATED".to_owned()).is_as_expected()
        );
    }

    #[test]
    fn both_tables_fit_into_100_columns() {
        for columns in [&PUBLISHED[..], &REFUSED[..]] {
            let width: usize = columns.iter().map(|(_, most)| most + 2).sum();
            assert!(width <= 100, "{width}");
        }
    }
}
