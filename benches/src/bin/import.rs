//! A sealed import of many meters, by the programs as they are built: time, keys/s, calls to the token.
//!
//! `cargo build --release --workspace --bins && cargo run --release -p benches --bin import -- 100000`

use std::{error::Error, time::Instant};

use softhsm_tests::{
    Programs, Role, Setting, Site, SiteOptions, Tokens,
    sealing::{Signing, made_up},
};

/// As a site has them by default.
const BLOCKS: u32 = 4096;
/// GUEK and GAK.
const KEYS_PER_METER: u64 = 2;

fn main() -> Result<(), Box<dyn Error>> {
    let count: u64 = std::env::args().nth(1).map_or(Ok(100_000), |count| count.parse())?;
    let dir = tempfile::tempdir()?;
    let signing = Signing::make(dir.path())?;
    let options = SiteOptions {
        tokens: Tokens::SharedMemory,
        block_count: BLOCKS,
        allow_clear: false,
        // Room for all blocks, locked or not: closing and opening them is not what is measured.
        settings: vec![
            signing.setting(),
            Setting { section: "keyring", key: "arena_mib", value: "64".to_owned() },
            Setting { section: "keyring", key: "allow_unlocked", value: "true".to_owned() },
        ],
        ..SiteOptions::default()
    };
    let site = Site::make(&dir.path().join("site"), Programs::find()?, options)?;
    site.init()?;
    let running = site.start()?;
    let admin = site.ami_tool(Role::AmiAdmin);
    let (clear, sealed) = (dir.path().join("meters.jsonl"), dir.path().join("sealed.jsonl"));
    made_up(count, &clear)?;

    let started = Instant::now();
    signing.seal(&admin, &clear, &sealed)?;
    let bytes = std::fs::metadata(&sealed)?.len();
    println!("sealed   {count} meters in {:.1} s, {bytes} bytes", started.elapsed().as_secs_f64());
    for what in ["imported", "again"] {
        let before = calls(&admin)?;
        let started = Instant::now();
        let said = admin.import(&sealed, false)?;
        let seconds = started.elapsed().as_secs_f64();
        let keys = (count * KEYS_PER_METER) as f64 / seconds;
        let calls = calls(&admin)? - before;
        println!("{what:8} {seconds:.1} s, {keys:.0} keys/s, {calls} calls to the token");
        println!("         {}", said.trim().replace('\n', "; "));
    }
    running.stop()?;
    Ok(())
}

fn calls(tool: &softhsm_tests::AmiTool) -> Result<u64, Box<dyn Error>> {
    let status: serde_json::Value =
        serde_json::from_str(tool.succeed(&["site", "status", "--json"])?.trim())?;
    Ok(status["token"]["calls"].as_u64().unwrap_or_default())
}
