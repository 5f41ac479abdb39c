//! `make dev`: a server to develop against, in a directory that lasts.

use std::{error::Error, fs, io, path::Path, time::Duration};

use tokio::signal::unix::{SignalKind, signal};

use crate::{
    Programs, Running, Site, SiteOptions,
    fleet::{self, MeterLine, Telegram},
    server::ServerError,
    settings,
    tool::json_lines,
    vectors,
};

/// The vectors of the example: two meters whose published keys are not test keys.
const EXAMPLES: [&str; 2] = ["esphome-e450-gbt", "netznoe-evn-ma309"];

/// Between two looks at the server.
const POLL: Duration = Duration::from_millis(200);

/// Runs a server in `dir` until it is told to stop.
pub fn run(dir: &Path, port: Option<u16>, programs: Programs) -> Result<(), Box<dyn Error>> {
    let site = open_or_make(dir, port, programs)?;
    let telegrams = write_examples(&site)?;
    let running = site.start_apart()?;
    introduce(&site, &telegrams);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let running = runtime.block_on(until_told_to_stop(running))?;
    println!("\n  stopping …");
    let kept = site.places().dir.display();
    let status = running.stop()?;
    println!("  kms-server ended with {status}; everything is kept in {kept}");
    Ok(())
}

fn open_or_make(dir: &Path, port: Option<u16>, programs: Programs) -> Result<Site, Box<dyn Error>> {
    let site = if dir.join("port").is_file() {
        println!("\n  Using the site in {}", dir.display());
        Site::open(dir, programs)?
    } else {
        println!("\n  Making a new site in {}", dir.display());
        Site::make(dir, programs, SiteOptions { port, ..SiteOptions::default() })?
    };
    if !site.is_initialised() {
        site.init()?;
    }
    Ok(site)
}

fn write_examples(site: &Site) -> Result<Vec<Telegram>, Box<dyn Error>> {
    let vectors: Vec<_> = vectors::published()?
        .into_iter()
        .filter(|vector| EXAMPLES.contains(&vector.id.as_str()))
        .collect();
    let meters: Vec<MeterLine> = fleet::meters(&vectors);
    let telegrams = fleet::telegrams(&vectors);
    let requests: Vec<_> = telegrams.iter().map(|telegram| telegram.request.clone()).collect();
    let dir = &site.places().dir;
    write_unless_there(&dir.join("meters.jsonl"), &json_lines(&meters))?;
    write_unless_there(&dir.join("telegrams.jsonl"), &json_lines(&requests))?;
    Ok(telegrams)
}

/// A file that a developer has changed stays.
fn write_unless_there(path: &Path, text: &str) -> io::Result<()> {
    if path.exists() { Ok(()) } else { fs::write(path, text) }
}

fn introduce(site: &Site, telegrams: &[Telegram]) {
    let dir = site.places().dir.display();
    let tool = site.programs().ami_tool.display();
    println!("  kms-server listens on https://localhost:{} (mutual TLS)", site.port());
    println!("  its log: {}", site.places().log.display());
    if let (_, true) = settings::arena() {
        println!("  the memlock limit is too low here: keys are in memory that may be swapped out");
    }
    println!("\n  In another terminal:\n");
    println!("{tool} --config {dir}/client.toml site status\n");
    println!("{tool} --config {dir}/client.toml meter import {dir}/meters.jsonl\n");
    println!("{tool} --config {dir}/client.toml decrypt - --json < {dir}/telegrams.jsonl\n");
    let authenticated = telegrams.iter().find(|telegram| telegram.verdict == "OK");
    if let Some(Telegram { meter_id, request, .. }) = authenticated {
        let apdu = &request.apdu;
        println!(
            "{tool} --config {dir}/client.toml decrypt --meter {meter_id} --json --apdu {apdu}\n"
        );
    }
    println!("  Meters with published test keys need `meter import --allow-test-keys`.");
    println!("  Ctrl-C stops.");
}

async fn until_told_to_stop(mut running: Running) -> Result<Running, Box<dyn Error>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    loop {
        tokio::select! {
            _ = interrupt.recv() => return Ok(running),
            _ = terminate.recv() => return Ok(running),
            _ = hang_up.recv() => return Ok(running),
            () = tokio::time::sleep(POLL) => {}
        }
        if let Some(status) = running.ended()? {
            let output = running.log_tail();
            return Err(ServerError::EndedEarly { status, output }.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_needs_no_permission_for_test_keys_and_opens_authenticated() {
        let vectors: Vec<_> = vectors::published()
            .unwrap()
            .into_iter()
            .filter(|vector| EXAMPLES.contains(&vector.id.as_str()))
            .collect();
        let keys = fleet::meters(&vectors).into_iter().flat_map(|meter| meter.keys);
        for key in keys.map(|key| hex::decode(key.value).unwrap()) {
            assert!(!kms_core::test_keys::is_test_key(&key));
        }
        let verdicts: Vec<_> = fleet::telegrams(&vectors).iter().map(|one| one.verdict).collect();
        assert!(verdicts.contains(&"OK") && verdicts.contains(&"OK_UNAUTHENTICATED"));
    }
}
