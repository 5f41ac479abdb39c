//! A directory with a database, and a token in memory that outlives the sites over it.

#![allow(clippy::unwrap_used, reason = "tests may")]

use std::{path::PathBuf, sync::Arc};

use tempfile::TempDir;

use super::site_common::{Options, Site, run};
use crate::hsm::{Token, memory::MemoryToken};
use kms_core::{
    ProfileName,
    profile::{CountersOnNewKey, DeviceProfile, FloorRule, HlsMechanism2, Profiles},
};

pub(crate) struct Home {
    dir: TempDir,
    pub(crate) token: Arc<MemoryToken>,
}

/// Proofs of the token's KEKs: the one in memory needs none.
pub(crate) struct NoCanaries;

impl NoCanaries {
    pub(crate) fn encode(&self) -> Vec<u8> {
        Vec::new()
    }
}

impl Home {
    pub(crate) fn any_token(&self) -> Arc<dyn Token> {
        self.token.clone()
    }

    pub(crate) fn canaries(&self) -> NoCanaries {
        NoCanaries
    }

    pub(crate) fn tokens(&self) -> PathBuf {
        self.dir.path().join("tokens")
    }
}

/// Runs a test with a home of its own.
pub(crate) fn at_home(test: impl AsyncFnOnce(&Home)) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("tokens")).unwrap();
    let home = Home { dir, token: Arc::new(MemoryToken::new().unwrap()) };
    run(test(&home));
}

/// The same, with a second one: of another site.
pub(crate) fn at_two_homes(test: impl AsyncFnOnce(&Home, &Home)) {
    let home = || {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("tokens")).unwrap();
        Home { dir, token: Arc::new(MemoryToken::new().unwrap()) }
    };
    let (one, other) = (home(), home());
    run(test(&one, &other));
}

/// A site with an arena of its own size.
pub(crate) async fn site_of(home: &Home, blocks: u32, arena_bytes: usize) -> Site {
    Site::with(home, Options { blocks, arena_bytes, ..Options::default() }).await
}

fn profile(name: &str, floors: FloorRule) -> DeviceProfile {
    DeviceProfile {
        name: ProfileName::new(name).unwrap(),
        description: "d".to_owned(),
        counters_on_new_key: CountersOnNewKey::Reset,
        largest_gap: None,
        hls_mechanism_2: HlsMechanism2::default(),
        floors,
    }
}

/// One with floors, one with a window, one without.
pub(crate) fn profiles() -> Arc<Profiles> {
    let windowed = FloorRule { window: 8, ..FloorRule::STRICT };
    let all = [
        profile("strict", FloorRule::STRICT),
        profile("windowed", windowed),
        profile("without", FloorRule::OFF),
    ];
    Arc::new(Profiles::new(all).unwrap())
}

/// The same, and one whose meters have the other dialect of HLS mechanism 2.
pub(crate) fn profiles_for_hls() -> Arc<Profiles> {
    let chained = profile("chained", FloorRule::OFF);
    let chained = DeviceProfile { hls_mechanism_2: HlsMechanism2::Cbc, ..chained };
    Arc::new(Profiles::new(profiles().iter().cloned().chain([chained])).unwrap())
}
