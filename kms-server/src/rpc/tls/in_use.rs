//! TLS 1.3 with a certificate on both sides, from files that may change while the server runs.

use std::{
    collections::BTreeSet,
    error::Error as StdError,
    fmt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use rustls::{
    CertificateError, Error as RustlsError, ServerConfig,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, UnixTime},
    server::{NoServerSessionStorage, WebPkiClientVerifier, danger::ClientCertVerifier},
    sign::SingleCertAndKey,
    time_provider::TimeProvider,
};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::{
    certificate::{Pem, first_expiry_ms, load_authorities, load_chain, load_identity},
    error::TlsError,
    newest::{Authority, Edition, Newest},
    revocation::{self, Demands, Due},
};
use crate::{
    replication::Trust,
    rpc::config::TlsConfig,
    telemetry::{
        catalogue::CERTIFICATE_LEFT,
        metrics::{Page, Source},
    },
};
use kms_core::{fact::NewestList, ports::Clock, site::makeup::digest_of};

const DAY_MS: f64 = 24.0 * 3_600.0 * 1_000.0;

/// The certificates in use, and the way to newer ones.
pub(crate) struct Tls {
    files: TlsConfig,
    clock: Arc<dyn Clock>,
    current: ArcSwap<Loaded>,
    last: Mutex<Last>,
    /// One reload at a time: an older set must not be stored over a newer one. The newest lists that were
    /// in use.
    reloading: tokio::sync::Mutex<Newest>,
    /// Rises with each set of files that is taken into use.
    generation: AtomicU64,
}

/// One set of files, in use.
pub(crate) struct Loaded {
    /// The settings for new connections.
    pub(crate) config: Arc<ServerConfig>,
    verifier: Arc<dyn ClientCertVerifier>,
    clock: Arc<dyn Clock>,
    /// The number of this set.
    pub(crate) generation: u64,
    /// When our own certificate expires; milliseconds since 1970.
    pub(crate) not_after_ms: u64,
    /// When the first of the authorities for callers expires; milliseconds since 1970.
    pub(crate) authorities_not_after_ms: u64,
    /// When the first revocation list has to be replaced; `None` without lists.
    pub(crate) lists_due: Option<Due>,
    /// The authorities of these lists, and the lists' places.
    used: Vec<(Authority, Edition)>,
    /// Of the authorities for callers, in whatever order they stand.
    authorities: [u8; 32],
    /// Of the lists' numbers and dates, likewise.
    lists: [u8; 32],
}

/// The reason why a chain is no longer accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Distrust {
    /// A revocation list names one of its certificates.
    Revoked,
    /// No authority accepts it.
    NotTrusted,
}

/// The files as they were last read. A std lock: held for a comparison, never across an `.await`.
struct Last {
    /// A digest of the files' contents; the contents themselves are not kept.
    digest: [u8; 32],
    fault: Option<String>,
    /// Why a list in use is not the newest of the domain.
    behind: Option<String>,
}

/// The outcome of a reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reloaded {
    /// New files, in use for new connections from now on.
    Changed,
    /// The files that are in use already.
    Unchanged,
}

/// The files' contents.
struct Contents {
    certificate: Vec<u8>,
    private_key: Zeroizing<Vec<u8>>,
    client_ca: Vec<u8>,
    client_crls: Vec<(PathBuf, Vec<u8>)>,
}

impl Tls {
    /// Reads the files for the first time: here a fault is an error.
    pub(crate) async fn load(files: TlsConfig, clock: Arc<dyn Clock>) -> Result<Self, TlsError> {
        let contents = Contents::read(&files).await?;
        let newest = Newest::read(files.client_crl_memory.as_ref())?;
        let loaded = contents.load(&files, &clock, 1, &newest)?;
        let (newest, fault) = remember(&files, &newest, &loaded.used);
        Ok(Self {
            last: Mutex::new(Last { digest: contents.digest(), fault, behind: None }),
            files,
            clock,
            current: ArcSwap::from_pointee(loaded),
            reloading: tokio::sync::Mutex::new(newest),
            generation: AtomicU64::new(1),
        })
    }

    /// The set that is in use now.
    pub(crate) fn current(&self) -> Arc<Loaded> {
        self.current.load_full()
    }

    /// Who is let in now, with this policy, for another site to compare.
    pub(crate) fn trust(&self, policy: [u8; 32]) -> Trust {
        let loaded = self.current();
        Trust { policy, authorities: loaded.authorities, revocation_lists: loaded.lists }
    }

    /// The reason why the files that lie there are not in use; `None` if they are.
    pub(crate) fn fault(&self) -> Option<String> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.fault.clone().or_else(|| last.behind.clone())
    }

    /// The newest lists that this node knows of the authorities whose lists are in use, for the domain to remember.
    pub(crate) async fn newest_lists(&self) -> Vec<NewestList> {
        let newest = self.reloading.lock().await;
        newest.of(self.current().used.iter().map(|(authority, _)| *authority))
    }

    /// Takes in what the domain remembers: from now on nothing older is taken into use here. The reason why a list that
    /// is in use would not be taken any more; it is a fault of the status until a newer one lies there.
    pub(crate) async fn learn_lists(&self, domains: &[NewestList]) -> Option<String> {
        let mut newest = self.reloading.lock().await;
        let learnt = newest.with_domains(domains);
        let used = &self.current().used;
        let behind = learnt.is_ahead_of(used).map(|why| {
            format!(
                "a revocation list in use is older than one that a site of this domain has used: {why}; fetch the                  newest list of each authority ([rpc.tls] client_crl)"
            )
        });
        if learnt != *newest {
            let fault = write_memory(&self.files, &learnt);
            *newest = learnt;
            let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            last.fault = fault.or_else(|| last.fault.take());
        }
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if behind.is_some() && last.behind != behind {
            tracing::error!("{}", behind.as_deref().unwrap_or_default());
        }
        last.behind.clone_from(&behind);
        behind
    }

    /// Reads the files again. Bad ones change nothing: those in use stay, and the fault is kept for
    /// [`Tls::fault`] until better ones come.
    pub(crate) async fn reload(&self) -> Result<Reloaded, TlsError> {
        let mut newest = self.reloading.lock().await;
        let result = self.try_reload(&mut newest).await;
        if let Err(error) = &result {
            let fault = format!(
                "the certificates in use are kept, the new ones not used: {}",
                chain(error)
            );
            let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            if last.fault.as_ref() != Some(&fault) {
                tracing::error!("{fault}");
                last.fault = Some(fault);
            }
        }
        result
    }

    async fn try_reload(&self, newest: &mut Newest) -> Result<Reloaded, TlsError> {
        let contents = Contents::read(&self.files).await?;
        let digest = contents.digest();
        {
            let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            if last.digest == digest {
                // Someone has put the files in use back: whatever was wrong is over.
                last.fault = None;
                return Ok(Reloaded::Unchanged);
            }
        }
        let generation = self.generation.fetch_add(1, Ordering::Relaxed) + 1;
        let loaded = contents.load(&self.files, &self.clock, generation, newest)?;
        let (now, fault) = remember(&self.files, newest, &loaded.used);
        *newest = now;
        self.current.store(Arc::new(loaded));
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        // What is newer than all that was remembered is behind nothing.
        *last = Last { digest, fault, behind: None };
        tracing::info!(generation, "new certificates are in use");
        Ok(Reloaded::Changed)
    }

    /// Looks at the files for as long as it is polled.
    pub(crate) async fn watch(&self, clock: &dyn Clock) {
        let mut warned = None;
        loop {
            // To the log once when a list is running out, has expired, has lost its grace; to the status
            // for as long as it lasts.
            let (now_ms, due) = (clock.unix_ms(), self.current().lists_due);
            let stage = due.map(|due| (due.ends_ms, due.stage(now_ms)));
            if stage != warned {
                warned = stage;
                if let Some(warning) = due.and_then(|due| due.warning(now_ms)) {
                    tracing::warn!("{warning}");
                }
            }
            tokio::time::sleep(self.files.reload_poll).await;
            // Reported by `reload`: to the log once, to the status for as long as it lasts.
            let _ = self.reload().await;
        }
    }
}

impl Source for Tls {
    fn tell(&self, page: &mut Page) {
        let (loaded, now_ms) = (self.current(), self.clock.unix_ms());
        let certificates = [
            ("server", Some(loaded.not_after_ms)),
            ("client_ca", Some(loaded.authorities_not_after_ms)),
            ("client_crl", loaded.lists_due.map(|due| due.next_ms)),
        ];
        for (certificate, not_after_ms) in certificates {
            let Some(not_after_ms) = not_after_ms else { continue };
            let left = (not_after_ms as f64 - now_ms as f64) / DAY_MS;
            page.sample(&CERTIFICATE_LEFT, &[certificate.into()], left);
        }
    }
}

impl Loaded {
    /// Whether a chain that was accepted under an older set still would be.
    pub(crate) fn trusts(&self, chain: &[CertificateDer<'static>]) -> Result<(), Distrust> {
        let (leaf, intermediates) = chain.split_first().ok_or(Distrust::NotTrusted)?;
        match self.verifier.verify_client_cert(leaf, intermediates, time_of(self.clock.as_ref())) {
            Ok(_) => Ok(()),
            Err(RustlsError::InvalidCertificate(CertificateError::Revoked)) => {
                Err(Distrust::Revoked)
            }
            Err(_) => Err(Distrust::NotTrusted),
        }
    }
}

impl Contents {
    async fn read(files: &TlsConfig) -> Result<Self, TlsError> {
        let mut client_crls = Vec::with_capacity(files.client_crls.len());
        for path in &files.client_crls {
            client_crls.push((path.clone(), read(path).await?));
        }
        Ok(Self {
            certificate: read(&files.certificate).await?,
            private_key: Zeroizing::new(read(&files.private_key).await?),
            client_ca: read(&files.client_ca).await?,
            client_crls,
        })
    }

    fn digest(&self) -> [u8; 32] {
        let Self { certificate, private_key, client_ca, client_crls } = self;
        let mut digest = Sha256::new();
        let lists = client_crls.iter().map(|(_, list)| list.as_slice());
        for part in [certificate, private_key.as_slice(), client_ca].into_iter().chain(lists) {
            digest.update((part.len() as u64).to_be_bytes());
            digest.update(part);
        }
        digest.finalize().into()
    }

    fn load(
        &self,
        files: &TlsConfig,
        clock: &Arc<dyn Clock>,
        generation: u64,
        newest: &Newest,
    ) -> Result<Loaded, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let identity = load_identity(
            Pem { path: &files.certificate, content: &self.certificate },
            Pem { path: &files.private_key, content: &self.private_key },
            &provider,
        )?;
        let authorities = load_authorities(&files.client_ca, &self.client_ca)?;
        let authorities_not_after_ms = first_expiry_ms(&files.client_ca, &self.client_ca)?;
        let chain = load_chain(&files.client_ca, &self.client_ca)?;
        let now_ms = clock.unix_ms();
        let demands = Demands {
            client_ca: &files.client_ca,
            authorities: &chain,
            newest,
            now_ms,
            grace: files.client_crl_grace,
        };
        let revocation = revocation::load(&self.client_crls, &demands)?;
        let mut verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(authorities), provider.clone());
        if !revocation.lists.is_empty() {
            // Fail closed: a certificate of which no list speaks is refused like a revoked one.
            // Intermediates are asked about, too. A list's end is watched at the gate, which knows of
            // the grace.
            verifier = verifier.with_crls(revocation.lists);
        }
        let verifier = verifier.build().map_err(set_up)?;
        let config = server_config(provider, clock, verifier.clone(), identity.key)?;
        let not_after_ms = identity.not_after_ms;
        Ok(Loaded {
            config: Arc::new(config),
            verifier,
            clock: Arc::clone(clock),
            generation,
            not_after_ms,
            authorities_not_after_ms,
            lists_due: revocation.due,
            authorities: digest_of(
                "ami.kms/authorities/1",
                sorted(chain.iter().map(|der| der.as_ref())),
            ),
            lists: digest_of("ami.kms/lists/1", sorted(revocation.used.iter().map(list_of))),
            used: revocation.used,
        })
    }
}

/// In an order that does not depend on where they stand, each once.
fn sorted<P: AsRef<[u8]> + Ord>(parts: impl IntoIterator<Item = P>) -> BTreeSet<P> {
    parts.into_iter().collect()
}

/// A list's authority, number and date.
fn list_of((authority, edition): &(Authority, Edition)) -> Vec<u8> {
    let number = edition.number.as_deref().unwrap_or_default();
    [&authority[..], &edition.this_update_ms.to_be_bytes(), number].concat()
}

/// Remembers the lists that are taken into use. Newer ones are used even where that can't be written: the
/// fault says so, and until the process ends its own memory holds.
fn remember(
    files: &TlsConfig,
    before: &Newest,
    used: &[(Authority, Edition)],
) -> (Newest, Option<String>) {
    let newest = before.with(used);
    let fault = if newest == *before { None } else { write_memory(files, &newest) };
    (newest, fault)
}

/// Writes what is remembered, if it is kept in a file; the fault if that fails.
fn write_memory(files: &TlsConfig, newest: &Newest) -> Option<String> {
    let path = files.client_crl_memory.as_ref()?;
    newest.write(path).err().map(|error| {
        let fault = format!(
            "the revocation lists are in use, but {} can't be written, so that older ones could be put \
             back at the next start: {error}",
            path.display()
        );
        tracing::error!("{fault}");
        fault
    })
}

fn server_config(
    provider: Arc<CryptoProvider>,
    clock: &Arc<dyn Clock>,
    verifier: Arc<dyn ClientCertVerifier>,
    key: rustls::sign::CertifiedKey,
) -> Result<ServerConfig, TlsError> {
    let mut config =
        ServerConfig::builder_with_details(provider, Arc::new(OurTime(Arc::clone(clock))))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(set_up)?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
    config.alpn_protocols = vec![b"h2".to_vec()];
    // A resumed session would skip the check of the client's certificate against the authorities that
    // are in use now: no tickets, no stored sessions, no early data.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(config)
}

/// Our clock, for the library: its own way to the time panics where that is before 1970.
struct OurTime(Arc<dyn Clock>);

impl fmt::Debug for OurTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OurTime")
    }
}

impl TimeProvider for OurTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(time_of(self.0.as_ref()))
    }
}

fn time_of(clock: &dyn Clock) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_millis(clock.unix_ms()))
}

async fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    tokio::fs::read(path).await.map_err(|source| TlsError::Read { path: path.to_owned(), source })
}

fn set_up(error: impl Into<Box<dyn StdError + Send + Sync>>) -> TlsError {
    TlsError::SetUp(error.into())
}

/// An error and its causes on one line.
pub(crate) fn chain(error: &dyn StdError) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    line
}
