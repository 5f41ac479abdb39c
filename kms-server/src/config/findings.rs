//! Faults outside the file: in directories, libraries, limits, certificates, addresses. For
//! `check-config`, which tells all of it at once; the parts check again when they start.

use std::{
    collections::BTreeSet,
    error::Error,
    fmt,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
};

use rustix::{
    fs::Access,
    process::{Resource, getrlimit},
};

use super::{Config, Store};
use crate::{
    keyring,
    rpc::{self, access::sites::Sites},
    store::postgres::Tls,
};

/// One thing that is wrong, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    /// The setting that it is about.
    pub key: &'static str,
    /// One sentence.
    pub sentence: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.sentence)
    }
}

impl Finding {
    /// A sentence of its own.
    pub fn new(key: &'static str, sentence: impl Into<String>) -> Self {
        Self { key, sentence: sentence.into() }
    }

    /// An error with its causes, as one sentence.
    pub fn of(key: &'static str, error: &(dyn Error + 'static)) -> Self {
        let mut sentence = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            sentence.push_str(&format!(" ({error})"));
            cause = error.source();
        }
        Self { key, sentence }
    }
}

/// Everything that is wrong at `now_ms`, milliseconds since 1970; empty if the service can start. The
/// token is not asked: that takes an attempt, which `app` makes.
pub fn check(config: &Config, now_ms: u64) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(unwritable("site.data_dir", &config.site.data_dir));
    findings.extend(bad_store(&config.store, &config.site.data_dir));
    findings.extend(missing_module(&config.hsm.module));
    if let Some(directory) = &config.hsm.sync_dir {
        findings.extend(unwritable("hsm.token_dir", directory));
    }
    findings.extend(small_memlock(&config.keyring));
    findings.extend(bad_certificates(&config.rpc, now_ms));
    findings.extend(bad_ways(config));
    findings.extend(stranger_as_peer(config));
    findings.extend(busy_address("rpc.listen", config.rpc.listen));
    let metrics = config.rpc.metrics.map(|metrics| metrics.listen());
    findings.extend(metrics.and_then(|address| busy_address("metrics.listen", address)));
    findings
}

/// The fault of the store that shows without asking the database: to ask it is for `app`.
fn bad_store(store: &Store, data_dir: &Path) -> Option<Finding> {
    match store {
        Store::Sqlite { path } => {
            let database_dir = path.parent().unwrap_or(Path::new("/"));
            (database_dir != data_dir).then(|| unwritable("store.path", database_dir))?
        }
        Store::Postgresql(config) => {
            let (Tls::VerifyFull { ca } | Tls::VerifyCa { ca }) = &config.tls else { return None };
            let error = std::fs::File::open(ca).err()?;
            let ca = ca.display();
            let sentence = format!(
                "cannot read {ca}, the authority of the database's certificate: put it there, \
                 readable for the service account, or correct the path ({error})"
            );
            Some(Finding::new("store.tls_ca", sentence))
        }
    }
}

fn unwritable(key: &'static str, directory: &Path) -> Option<Finding> {
    let path = directory.display();
    if !directory.is_dir() {
        let sentence =
            format!("{path} is not a directory: create it (install -d -o ami_admin -m 750 {path})");
        return Some(Finding::new(key, sentence));
    }
    let access = rustix::fs::access(directory, Access::WRITE_OK | Access::EXEC_OK);
    access.err().map(|error| {
        let sentence = format!(
            "cannot write to {path}: give it to the service account (chown ami_admin {path}) ({error})"
        );
        Finding::new(key, sentence)
    })
}

fn missing_module(module: &PathBuf) -> Option<Finding> {
    let found = std::fs::File::open(module).and_then(|file| file.metadata());
    let reason = match found {
        Ok(found) if found.is_file() => return None,
        Ok(_) => "it is not a file".to_owned(),
        Err(error) => error.to_string(),
    };
    let module = module.display();
    let sentence = format!(
        "cannot read the PKCS #11 library {module}: install the token's software, or correct the \
         path ({reason})"
    );
    Some(Finding::new("hsm.module", sentence))
}

/// For what else the process locks: the arena's bookkeeping, libraries.
const MEMLOCK_SPARE_BYTES: u64 = 1 << 20;

fn small_memlock(keyring: &keyring::Config) -> Option<Finding> {
    let limit = getrlimit(Resource::Memlock).current?; // `None`: unlimited
    let may_exceed_it = keyring.allow_unlocked || may_lock_anything();
    if may_exceed_it { None } else { arena_beyond(keyring.arena_bytes as u64, limit) }
}

fn arena_beyond(arena_bytes: u64, limit_bytes: u64) -> Option<Finding> {
    let needed = arena_bytes + MEMLOCK_SPARE_BYTES;
    if needed <= limit_bytes {
        return None;
    }
    let (needed, limit) = (needed >> 10, limit_bytes >> 10);
    let sentence = format!(
        "the arena needs {needed} KiB of locked memory, and the limit is {limit} KiB: set \
         LimitMEMLOCK={needed}K in the unit, or make the arena smaller"
    );
    Some(Finding::new("keyring.arena_mib", sentence))
}

/// Whether this process has CAP_IPC_LOCK, which lifts the limit.
fn may_lock_anything() -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| has_ipc_lock(&status))
}

fn has_ipc_lock(status: &str) -> bool {
    const CAP_IPC_LOCK: u64 = 1 << 14;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let set = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    set.is_some_and(|set| set & CAP_IPC_LOCK != 0)
}

fn bad_certificates(rpc: &rpc::Config, now_ms: u64) -> Vec<Finding> {
    let wrong = rpc::check_certificates(&rpc.tls, now_ms);
    let refused = rpc::check_presented(&rpc.tls, now_ms);
    wrong.iter().chain(&refused).map(|(key, error)| Finding::of(key, error)).collect()
}

/// The faults of this server where it is a client, of the other site or of other servers of this one.
fn bad_ways(config: &Config) -> Vec<Finding> {
    let nodes = config.nodes.values().map(|way| ("nodes.ca", &*way.ca));
    let mut ways: BTreeSet<(&'static str, &Path)> = nodes.collect();
    if let Some(peer) = &config.peer {
        ways.insert(("peer.ca", &peer.connection.ca));
        ways.extend(peer.second.as_ref().map(|way| ("second_peer.ca", &*way.ca)));
    }
    let own = (!ways.is_empty()).then(|| rpc::check_as_client(&config.rpc.tls)).flatten();
    let wrong = ways.into_iter().filter_map(|(key, ca)| Some((key, rpc::check_ca(ca)?)));
    own.into_iter().chain(wrong).map(|(key, error)| Finding::of(key, &error)).collect()
}

/// The other site is somebody whom this one would refuse as a caller. Nobody calls a read-only site.
fn stranger_as_peer(config: &Config) -> Vec<Finding> {
    let Some(peer) = config.peer.as_ref().filter(|_| !config.site.read_only) else {
        return Vec::new();
    };
    let site = &peer.replication.peer;
    let sites = Sites::new(&config.rpc.policy, &config.rpc.sites, vec![site.clone()]);
    let unknown = (!sites.know(site)).then(|| {
        let sentence = format!(
            "no caller of the role peer can be site {site:?}, so that it is refused here: enter the name in its \
             certificate, with roles = [\"peer\"], and site = {site:?} where another site's stands"
        );
        Finding::new("rpc.callers", sentence)
    });
    let turned_away = rpc::check_peer_as_caller(&config.rpc.tls, &peer.connection.ca);
    let turned_away = turned_away.map(|error| Finding::of("rpc.tls.client_ca", &error));
    unknown.into_iter().chain(turned_away).collect()
}

fn busy_address(key: &'static str, address: SocketAddr) -> Option<Finding> {
    let error = TcpListener::bind(address).err()?;
    let sentence = format!(
        "cannot listen on {address}: stop what uses this address (this service itself, perhaps), or \
         choose one of this machine ({error})"
    );
    Some(Finding::new(key, sentence))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arena_beyond_the_memlock_limit_is_found_with_the_limit_that_it_needs() {
        assert_eq!(arena_beyond(7 << 20, 8 << 20), None);
        let found = arena_beyond(8 << 20, 8 << 20).unwrap().to_string();
        assert!(found.contains("the limit is 8192 KiB: set LimitMEMLOCK=9216K"), "{found}");
    }

    #[test]
    fn the_capability_to_lock_memory_is_bit_14() {
        assert!(has_ipc_lock("Name:\tx\nCapEff:\t0000000000004000\n"));
        assert!(has_ipc_lock("CapEff:\t000001ffffffffff"));
        assert!(!has_ipc_lock("CapEff:\t0000000000003fff"));
        assert!(!has_ipc_lock("CapPrm:\t0000000000004000"));
        assert!(!has_ipc_lock(""));
    }
}
