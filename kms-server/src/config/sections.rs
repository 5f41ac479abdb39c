//! The file as it is written: strings and numbers, units in the names, defaults; and the way from
//! there to the checked types. Unknown fields are refused: a misspelt setting is no setting.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use serde::Deserialize;

use super::{
    error::ConfigError,
    limits_section::LimitsSection,
    nodes_section::NodeSection,
    peer_section::{PeerSection, SecondPeerSection},
    pin,
    profiles::{FloorsSection, ProfilesSection},
    rotation_section::RotationSection,
    settings::{Config, Site},
    store_section::StoreSection,
    values::{absolute, address, millis, seconds, text, within},
};
use crate::{
    audit, ciphering,
    hsm::{self, OaepHash},
    keyring, lifecycle,
    rpc::{self, CallerName, MetricsConfig, Policy, TlsConfig},
    telemetry,
};
use kms_core::BlockCount;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Sections {
    site: SiteSection,
    hsm: HsmSection,
    store: StoreSection,
    #[serde(default)]
    keyring: KeyringSection,
    #[serde(default)]
    import: ImportSection,
    #[serde(default)]
    rotation: RotationSection,
    peer: Option<PeerSection>,
    second_peer: Option<SecondPeerSection>,
    #[serde(default)]
    nodes: Vec<NodeSection>,
    #[serde(default)]
    profiles: ProfilesSection,
    #[serde(default)]
    receive_floors: FloorsSection,
    #[serde(default)]
    audit: AuditSection,
    rpc: RpcSection,
    #[serde(default)]
    metrics: MetricsSection,
    #[serde(default)]
    log: telemetry::Config,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SiteSection {
    name: String,
    #[serde(default = "data_dir")]
    data_dir: PathBuf,
    single_site: bool,
    #[serde(default = "block_count")]
    block_count: u32,
    #[serde(default = "yes")]
    even: bool,
    #[serde(default)]
    read_only: bool,
}

fn data_dir() -> PathBuf {
    "/var/lib/ami".into()
}

fn block_count() -> u32 {
    BlockCount::DEFAULT.get()
}

fn yes() -> bool {
    true
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HsmSection {
    module: PathBuf,
    token_label: String,
    pin_file: Option<PathBuf>,
    pin_env: Option<String>,
    #[serde(default = "sessions_max")]
    sessions_max: u64,
    #[serde(default = "call_timeout_ms")]
    call_timeout_ms: u64,
    #[serde(default = "patience_ms")]
    patience_ms: u64,
    #[serde(default = "unwrapped_keys_max")]
    unwrapped_keys_max: u64,
    #[serde(default)]
    oaep_hash: OaepHashSetting,
    token_dir: Option<PathBuf>,
}

/// Hash and MGF1 hash of RSA-OAEP.
#[derive(Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum OaepHashSetting {
    Sha1,
    #[default]
    Sha256,
}

fn sessions_max() -> u64 {
    8
}

fn call_timeout_ms() -> u64 {
    5_000
}

fn patience_ms() -> u64 {
    1_000
}

fn unwrapped_keys_max() -> u64 {
    1_000
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct KeyringSection {
    arena_mib: u64,
    block_states_mib: u64,
    allow_unlocked: bool,
    warm_up_parallelism: u64,
}

impl Default for KeyringSection {
    fn default() -> Self {
        // 80 bytes a meter: room for three million; and 25 of each that was changed, for 1.3 million.
        Self { arena_mib: 256, block_states_mib: 32, allow_unlocked: false, warm_up_parallelism: 4 }
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ImportSection {
    allow_clear: bool,
    signers: Vec<SignerSection>,
}

/// Somebody whose sealed import files are taken.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SignerSection {
    name: String,
    public_key: PathBuf,
    #[serde(default)]
    meters: Vec<String>,
    #[serde(default)]
    titles: Vec<String>,
    #[serde(default)]
    may_change: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct AuditSection {
    traffic_interval_s: u64,
    traffic_blocks_max: u64,
    checkpoint_events: u64,
    checkpoint_interval_s: u64,
}

impl Default for AuditSection {
    fn default() -> Self {
        Self {
            traffic_interval_s: 60,
            traffic_blocks_max: 256,
            checkpoint_events: 1_000,
            checkpoint_interval_s: 60,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RpcSection {
    listen: String,
    tls: TlsSection,
    #[serde(default = "reload_poll_s")]
    reload_poll_s: u64,
    #[serde(default)]
    limits: LimitsSection,
    #[serde(default)]
    callers: Vec<CallerSection>,
    #[serde(default)]
    grants: BTreeMap<String, BTreeSet<String>>,
    #[serde(default)]
    dual_control: BTreeSet<String>,
}

fn client_crl_grace_h() -> u64 {
    TlsConfig::CRL_GRACE.as_secs() / 3_600
}

fn reload_poll_s() -> u64 {
    TlsConfig::RELOAD_POLL.as_secs()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TlsSection {
    certificate: PathBuf,
    private_key: PathBuf,
    client_ca: PathBuf,
    #[serde(default)]
    client_crl: Paths,
    #[serde(default = "client_crl_grace_h")]
    client_crl_grace_h: u64,
}

/// One path, or several.
#[derive(Deserialize)]
#[serde(untagged, expecting = "a path, or a list of paths")]
enum Paths {
    One(PathBuf),
    Several(Vec<PathBuf>),
}

impl Default for Paths {
    fn default() -> Self {
        Self::Several(Vec::new())
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct MetricsSection {
    listen: Option<String>,
    allow_remote: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CallerSection {
    name: String,
    roles: Vec<String>,
    site: Option<String>,
}

impl TryFrom<Sections> for Config {
    type Error = ConfigError;

    fn try_from(sections: Sections) -> Result<Self, ConfigError> {
        let Sections {
            site,
            hsm,
            store,
            keyring,
            import,
            rotation,
            peer,
            second_peer,
            nodes,
            profiles,
            receive_floors,
            audit,
            rpc,
            metrics,
            log,
        } = sections;
        let ImportSection { allow_clear, signers } = import;
        let site: Site = site.try_into()?;
        let (times, schedules) = rotation.read()?;
        let peer = PeerSection::of((peer, second_peer), &site)?;
        let mut rpc: rpc::Config = (rpc, metrics).try_into()?;
        rpc.tls.client_crl_memory = Some(site.data_dir.join("newest-client-crls"));
        Ok(Self {
            site,
            store: store.try_into()?,
            keyring: keyring.try_into()?,
            import: lifecycle::Config { allow_clear, times },
            schedules,
            import_signers: signing(signers)?,
            peer,
            nodes: NodeSection::all(nodes)?,
            profiles: Arc::new(profiles.read()?),
            floors: ciphering::FloorsConfig { flush_interval: receive_floors.flush_interval()? },
            audit: audit.try_into()?,
            rpc,
            log,
            // Last: the PIN is not read for a file that is refused anyway.
            hsm: hsm.try_into()?,
        })
    }
}

impl TryFrom<SiteSection> for Site {
    type Error = ConfigError;

    fn try_from(section: SiteSection) -> Result<Self, ConfigError> {
        let SiteSection { name, data_dir, single_site, block_count, even, read_only } = section;
        Ok(Self {
            name: text("site.name", name, 64)?,
            data_dir: absolute("site.data_dir", data_dir)?,
            single_site,
            blocks: BlockCount::new(block_count).map_err(|_| ConfigError::OutOfRange {
                key: "site.block_count",
                value: block_count.into(),
                least: 1,
                most: 65_536,
            })?,
            even,
            read_only,
        })
    }
}

impl TryFrom<HsmSection> for hsm::Config {
    type Error = ConfigError;

    fn try_from(section: HsmSection) -> Result<Self, ConfigError> {
        let HsmSection {
            module,
            token_label,
            pin_file,
            pin_env,
            sessions_max,
            call_timeout_ms,
            patience_ms,
            unwrapped_keys_max,
            oaep_hash,
            token_dir,
        } = section;
        Ok(Self {
            module: absolute("hsm.module", module)?,
            token_label: text("hsm.token_label", token_label, 32)?, // PKCS #11: 32 bytes, padded
            sessions_max: within("hsm.sessions_max", sessions_max, 1..=64)?,
            call_timeout: millis("hsm.call_timeout_ms", call_timeout_ms, 10..=600_000)?,
            patience: millis("hsm.patience_ms", patience_ms, 1..=60_000)?,
            unwrapped_keys_max: within(
                "hsm.unwrapped_keys_max",
                unwrapped_keys_max,
                1..=1_000_000,
            )?,
            oaep_hash: match oaep_hash {
                OaepHashSetting::Sha1 => OaepHash::Sha1,
                OaepHashSetting::Sha256 => OaepHash::Sha256,
            },
            sync_dir: token_dir.map(|dir| absolute("hsm.token_dir", dir)).transpose()?,
            pin: pin::read(pin_file, pin_env)?,
        })
    }
}

impl TryFrom<KeyringSection> for keyring::Config {
    type Error = ConfigError;

    fn try_from(section: KeyringSection) -> Result<Self, ConfigError> {
        let KeyringSection { arena_mib, block_states_mib, allow_unlocked, warm_up_parallelism } =
            section;
        let arena_mib: usize = within("keyring.arena_mib", arena_mib, 1..=65_536)?;
        let states_mib: usize = within("keyring.block_states_mib", block_states_mib, 0..=65_536)?;
        Ok(Self {
            arena_bytes: arena_mib << 20,
            block_states_bytes: states_mib << 20,
            allow_unlocked,
            warm_up_parallelism: within(
                "keyring.warm_up_parallelism",
                warm_up_parallelism,
                1..=64,
            )?,
        })
    }
}

impl TryFrom<AuditSection> for audit::Config {
    type Error = ConfigError;

    fn try_from(section: AuditSection) -> Result<Self, ConfigError> {
        let AuditSection {
            traffic_interval_s,
            traffic_blocks_max,
            checkpoint_events,
            checkpoint_interval_s,
        } = section;
        Ok(Self {
            traffic_interval: seconds("audit.traffic_interval_s", traffic_interval_s, 1..=3_600)?,
            traffic_blocks_max: within("audit.traffic_blocks_max", traffic_blocks_max, 0..=65_536)?,
            checkpoint_events: within("audit.checkpoint_events", checkpoint_events, 1..=100_000)?,
            checkpoint_interval: seconds(
                "audit.checkpoint_interval_s",
                checkpoint_interval_s,
                1..=3_600,
            )?,
        })
    }
}

impl TryFrom<(RpcSection, MetricsSection)> for rpc::Config {
    type Error = ConfigError;

    fn try_from((section, metrics): (RpcSection, MetricsSection)) -> Result<Self, ConfigError> {
        let RpcSection { listen, tls, reload_poll_s, limits, callers, grants, dual_control } =
            section;
        let listen = address("rpc.listen", listen, "0.0.0.0:7443")?;
        let metrics = self::metrics(metrics)?;
        if let Some(metrics) = &metrics
            && takes(listen, metrics.listen())
        {
            return Err(ConfigError::AddressTaken { address: metrics.listen() });
        }
        let reload_poll = seconds("rpc.reload_poll_s", reload_poll_s, 1..=3_600)?;
        let sites = sites(&callers)?;
        Ok(Self {
            listen,
            tls: (tls, reload_poll).try_into()?,
            limits: limits.try_into()?,
            policy: policy(callers, &grants, &dual_control)?,
            sites,
            metrics,
        })
    }
}

/// Whether who listens at `first` leaves no room at `second`.
fn takes(first: SocketAddr, second: SocketAddr) -> bool {
    // `[::]` takes the addresses of both kinds.
    let covers = |all: SocketAddr, one: SocketAddr| {
        all.ip() == one.ip() || all.ip().is_unspecified() && (all.is_ipv6() || one.is_ipv4())
    };
    let same_port = first.port() != 0 && first.port() == second.port();
    same_port && (covers(first, second) || covers(second, first))
}

fn metrics(section: MetricsSection) -> Result<Option<MetricsConfig>, ConfigError> {
    let MetricsSection { listen, allow_remote } = section;
    let Some(listen) = listen else { return Ok(None) };
    let listen = address("metrics.listen", listen, "127.0.0.1:9464")?;
    Ok(Some(MetricsConfig::new(listen, allow_remote)?))
}

impl TryFrom<(TlsSection, Duration)> for TlsConfig {
    type Error = ConfigError;

    fn try_from((section, reload_poll): (TlsSection, Duration)) -> Result<Self, ConfigError> {
        let TlsSection { certificate, private_key, client_ca, client_crl, client_crl_grace_h } =
            section;
        let client_crls = match client_crl {
            Paths::One(path) => vec![path],
            Paths::Several(paths) => paths,
        };
        let most = Self::CRLS_MAX as u64;
        within::<usize>("rpc.tls.client_crl (files)", client_crls.len() as u64, 0..=most)?;
        Ok(Self {
            certificate: absolute("rpc.tls.certificate", certificate)?,
            private_key: absolute("rpc.tls.private_key", private_key)?,
            client_ca: absolute("rpc.tls.client_ca", client_ca)?,
            client_crls: client_crls
                .into_iter()
                .map(|path| absolute("rpc.tls.client_crl", path))
                .collect::<Result<_, _>>()?,
            client_crl_grace: Duration::from_secs(
                3_600 * within::<u64>("rpc.tls.client_crl_grace_h", client_crl_grace_h, 0..=8_760)?,
            ),
            client_crl_memory: None,
            reload_poll,
        })
    }
}

fn ranges_of(section: SignerSection) -> Result<lifecycle::Ranges, ConfigError> {
    let SignerSection { meters, titles, may_change, .. } = section;
    let texts = |key, all: Vec<String>| -> Result<Vec<String>, ConfigError> {
        all.into_iter().map(|it| text(key, it, 64)).collect()
    };
    let title =
        |it: String| it.parse().map_err(|bad| ConfigError::SignerTitles { titles: it, bad });
    Ok(lifecycle::Ranges {
        meters: texts("import.signers.meters", meters)?,
        titles: titles.into_iter().map(title).collect::<Result<_, _>>()?,
        may_change: texts("import.signers.may_change", may_change)?,
    })
}

/// Reads the signers' public keys, which are no secrets.
fn signing(sections: Vec<SignerSection>) -> Result<lifecycle::Signers, ConfigError> {
    let mut signers = BTreeMap::new();
    for section in sections {
        let name = text("import.signers.name", section.name.clone(), 64)?;
        let path = absolute("import.signers.public_key", section.public_key.clone())?;
        let pem = std::fs::read_to_string(&path)
            .map_err(|source| ConfigError::SignerUnreadable { path: path.clone(), source })?;
        let signer = lifecycle::Signer::from_pem(&pem, ranges_of(section)?)
            .map_err(|bad| ConfigError::Signer { path, source: bad })?;
        if signers.insert(name.clone(), signer).is_some() {
            return Err(ConfigError::SignerTwice(name));
        }
    }
    Ok(lifecycle::Signers::of(signers))
}

/// The sites of callers whose certificates don't have the site's name.
fn sites(sections: &[CallerSection]) -> Result<BTreeMap<CallerName, String>, ConfigError> {
    let mut sites = BTreeMap::new();
    for CallerSection { name, roles, site } in sections {
        let Some(site) = site else { continue };
        if !roles.iter().any(|role| ["peer", "replica"].contains(&role.as_str())) {
            return Err(ConfigError::SiteOfNoSite(name.clone()));
        }
        let site = text("rpc.callers.site", site.clone(), 64)?;
        // A name that no certificate has is refused with the policy.
        let Ok(name) = CallerName::new(name) else { continue };
        sites.insert(name, site);
    }
    Ok(sites)
}

fn policy(
    sections: Vec<CallerSection>,
    grants: &BTreeMap<String, BTreeSet<String>>,
    dual_control: &BTreeSet<String>,
) -> Result<Policy, ConfigError> {
    let mut callers = BTreeMap::new();
    for CallerSection { name, roles, .. } in sections {
        if roles.is_empty() {
            return Err(ConfigError::NoRoles(name));
        }
        if callers.insert(name.clone(), roles).is_some() {
            return Err(ConfigError::CallerTwice(name));
        }
    }
    if callers.is_empty() {
        return Err(ConfigError::NoCallers);
    }
    let callers =
        callers.iter().map(|(name, roles)| (name.as_str(), roles.iter().map(String::as_str)));
    let grants =
        grants.iter().map(|(role, calls)| (role.as_str(), calls.iter().map(String::as_str)));
    let policy = Policy::from_words(callers, grants).map_err(ConfigError::Policy)?;
    let dual_control = dual_control.iter().map(String::as_str);
    policy.with_dual_control(dual_control).map_err(ConfigError::Policy)
}
