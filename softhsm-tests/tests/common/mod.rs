//! A site for each test: a server process with its token, database and certificates; meters to import
//! and what they send.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]
#![allow(missing_docs, reason = "not a library")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

pub mod fleet;
pub mod relay;
pub mod search;
pub mod up;
pub mod wire;

use std::{
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use kms_client::{ClientConfig, KmsClient};
use softhsm_tests::{Programs, Role, Setting, Site, SiteOptions};
use tempfile::TempDir;

/// Longer than anything here takes, shorter than a developer's patience.
pub const SOON: Duration = Duration::from_secs(20);

/// A site in a directory of its own. Everything is in memory: there a token object costs 1 ms.
pub struct Home {
    pub site: Site,
    pub dir: TempDir,
}

impl std::ops::Deref for Home {
    type Target = Site;

    fn deref(&self) -> &Site {
        &self.site
    }
}

/// A site that was initialised, its server not started.
pub fn home() -> Home {
    home_with(&[])
}

/// The same, with other settings.
pub fn home_with(settings: &[(&'static str, &'static str, &str)]) -> Home {
    let home = blank_home(settings);
    let template = template();
    for part in ["tokens", "data", "secrets"] {
        let target = home.places().dir.join(part);
        fs::remove_dir_all(&target).unwrap();
        copy(&template.join(part), &target);
    }
    home
}

/// A site whose `kms-server init` was not run.
pub fn blank_home(settings: &[(&'static str, &'static str, &str)]) -> Home {
    let dir = tempfile::Builder::new().prefix("kms-site-").tempdir_in(memory()).unwrap();
    let settings = settings
        .iter()
        .map(|&(section, key, value)| Setting { section, key, value: value.to_owned() })
        .collect();
    let options = SiteOptions { settings, ..SiteOptions::default() };
    let site = Site::make(dir.path(), programs(), options).unwrap();
    Home { site, dir }
}

/// An address that was free a moment ago.
pub fn free_address() -> SocketAddr {
    TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap()
}

/// What a server tells machines that watch it.
pub fn metrics_of(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).unwrap();
    page
}

/// The value of a metric without labels.
pub fn metric(page: &str, name: &str) -> f64 {
    let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("no metric {name}: {page}")).parse().unwrap()
}

pub fn programs() -> Programs {
    Programs::find().unwrap()
}

fn memory() -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    if memory.is_dir() { memory } else { std::env::temp_dir() }
}

/// Token, database and PINs as `kms-server init` made them, once for each build of the server: keys of
/// RSA take a second or two.
fn template() -> PathBuf {
    let program = fs::metadata(programs().kms_server).unwrap();
    let mut hasher = DefaultHasher::new();
    (program.mtime(), program.mtime_nsec(), program.len()).hash(&mut hasher);
    let build = format!("{:016x}", hasher.finish());
    let template = Path::new(env!("CARGO_TARGET_TMPDIR")).join("site-template");
    let lock = fs::File::create(template.with_extension("lock")).unwrap();
    lock.lock().unwrap();
    // Written last: it says that the template is whole, and whose.
    let stamp = template.join("build");
    if fs::read_to_string(&stamp).ok().as_deref() != Some(&build) {
        let made = blank_home(&[]);
        made.init().unwrap();
        let _ = fs::remove_dir_all(&template);
        for part in ["tokens", "data", "secrets"] {
            copy(&made.places().dir.join(part), &template.join(part));
        }
        fs::write(stamp, build).unwrap();
    }
    template
}

/// A directory with all that is in it; permissions stay.
pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    fs::set_permissions(to, fs::metadata(from).unwrap().permissions()).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// A client in this role that does not try again by itself: a test sees each refusal.
pub async fn client(site: &Site, role: Role) -> KmsClient {
    client_of(&site.client_toml(role)).await
}

pub async fn client_of(path: &Path) -> KmsClient {
    let text = fs::read_to_string(path).unwrap().replace("retries = 2", "retries = 0");
    let once = path.with_extension("once.toml");
    fs::write(&once, text).unwrap();
    KmsClient::connect(ClientConfig::load(&once).unwrap()).await.unwrap()
}

/// Asks until `condition` holds.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let began = Instant::now();
    while !condition().await {
        assert!(began.elapsed() < SOON, "{what}: not within {SOON:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until the warm-up is over, or can't begin: no block of an older database is opened.
pub async fn warm(client: &KmsClient) {
    eventually("warm-up", async || {
        let status = client.site_status().await.unwrap();
        status.warm_up.done || status.faults.iter().any(|fault| fault.contains("is not the newest"))
    })
    .await;
}

/// Numbers without order, the same for the same seed (splitmix64).
pub struct Numbers(pub u64);

impl Numbers {
    /// A seed that nobody chose; print it.
    pub fn fresh() -> Self {
        let mut hasher = DefaultHasher::new();
        (Instant::now(), std::process::id()).hash(&mut hasher);
        Self(hasher.finish())
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}
