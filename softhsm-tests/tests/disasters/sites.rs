//! The sites of a game: two servers over SQLite and SoftHSM; or the whole, each site in a network of its own, one over
//! PostgreSQL with a standby and with two servers, the other one on a token of another vendor.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use softhsm_tests::{
    Module, Namespace, Pair, PeerOptions, Role, Running, Setting, Site, SiteOptions,
    proxy::{Manner, Plan, Proxy, Way},
    settings::quoted,
};
use tempfile::TempDir;

use super::{
    common::{Numbers, copy, programs},
    stored::{Databases, Stored},
};

/// Of 100 connections between the sites so many break by chance.
const BROKEN_PERCENT: u64 = 30;

/// Which sites there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// One server each, SQLite, SoftHSM, one machine.
    Simple,
    /// Namespaces, PostgreSQL with a synchronous standby, two servers, two vendors' tokens.
    Full,
}

/// A server of a site.
pub(crate) struct Server {
    /// 0: the site that founded the domain.
    pub(crate) of: usize,
    /// Empty: it is `Sites::pair`'s.
    further: Option<Site>,
    pub(crate) running: Option<Running>,
}

/// All of them, and what is between the sites.
pub(crate) struct Sites {
    pub(crate) kind: Kind,
    pair: Pair,
    pub(crate) servers: Vec<Server>,
    pub(crate) stored: [Stored; 2],
    pub(crate) networks: Vec<Namespace>,
    pub(crate) between: Vec<Proxy>,
    /// Connections between the sites come to nothing.
    pub(crate) cut: Arc<AtomicBool>,
    client_toml: PathBuf,
    _dir: TempDir,
}

/// What the whole needs and this machine may lack; the reason why it can't be had.
pub(crate) struct Needs {
    kryoptic: Module,
    networks: Vec<Namespace>,
}

impl Needs {
    pub(crate) fn here() -> Result<Self, String> {
        let kryoptic = Module::kryoptic_for("the disasters on real parts");
        let kryoptic = kryoptic.ok_or("Kryoptic is not built: make kryoptic")?;
        let networks = [1, 2].map(Namespace::make).into_iter().collect::<Result<_, _>>();
        let networks = networks.map_err(|error| {
            format!("no network namespace can be made, which wants root: {error}")
        })?;
        Ok(Self { kryoptic, networks })
    }
}

fn set(section: &'static str, key: &'static str, value: &str) -> Setting {
    Setting { section, key, value: value.to_owned() }
}

fn peering() -> Vec<Setting> {
    vec![
        set("peer", "heartbeat_ms", "200"),
        set("peer", "write_wait_ms", "400"),
        set("peer", "compare_interval_s", "5"),
    ]
}

fn directory() -> TempDir {
    tempfile::Builder::new().prefix("kms-disasters-").tempdir_in("/dev/shm").unwrap()
}

impl Sites {
    pub(crate) async fn simple(seed: u64) -> Self {
        let dir = directory();
        let options = SiteOptions { settings: peering(), ..SiteOptions::default() };
        let pair = Pair::make(dir.path(), &programs(), &options).unwrap();
        let stored = [Stored::sqlite(&pair.a), Stored::sqlite(&pair.b)];
        let client_toml = pair.client_toml(Role::Dev).unwrap();
        let mut sites = Self {
            kind: Kind::Simple,
            pair,
            servers: Vec::new(),
            stored,
            networks: Vec::new(),
            between: Vec::new(),
            cut: Arc::default(),
            client_toml,
            _dir: dir,
        };
        sites.start(None, seed).await;
        sites
    }

    pub(crate) async fn full(needs: Needs, seed: u64) -> Self {
        let Needs { kryoptic, networks } = needs;
        let dir = directory();
        let databases = Databases::start(dir.path());
        let mut of_a = peering();
        of_a.extend(databases.settings());
        let network = |at: usize| Some(networks[at].clone());
        let of_a = SiteOptions { settings: of_a, network: network(0), ..SiteOptions::default() };
        let of_b = SiteOptions {
            settings: peering(),
            network: network(1),
            module: kryoptic,
            ..SiteOptions::default()
        };
        let pair = Pair::make_of(dir.path(), &programs(), [&of_a, &of_b]).unwrap();
        let second = second_server(&pair, of_a, &dir.path().join("site-a-2"));
        let client_toml = pair.client_toml(Role::Dev).unwrap();
        let text = fs::read_to_string(&client_toml).unwrap();
        let (one, both) = (pair.a.endpoint(), second.endpoint());
        let both = text.replace(&one, &format!("{one}\", \"https://{both}"));
        assert_ne!(both, text);
        fs::write(&client_toml, both).unwrap();
        let stored = [Stored::Postgres(Box::new(databases)), Stored::sqlite(&pair.b)];
        let mut sites = Self {
            kind: Kind::Full,
            pair,
            servers: Vec::new(),
            stored,
            networks,
            between: Vec::new(),
            cut: Arc::default(),
            client_toml,
            _dir: dir,
        };
        sites.start(Some(second), seed).await;
        sites
    }

    /// Puts proxies between the sites, and has them enrolled and serve.
    async fn start(&mut self, second: Option<Site>, seed: u64) {
        let all = [(0, Some(&self.pair.a)), (0, second.as_ref()), (1, Some(&self.pair.b))];
        let mut ways: [Vec<SocketAddr>; 2] = Default::default();
        for (number, (of, site)) in all.iter().enumerate() {
            let Some(site) = site else { continue };
            let here = self.networks.get(1 - of).map_or(Ipv4Addr::LOCALHOST, Namespace::outside);
            let seed = seed ^ (number as u64) << 40;
            let proxy = self.proxy((site.address(), site.port()).into(), here, seed).await;
            ways[1 - of].push(proxy.address());
            self.between.push(proxy);
        }
        for (of, site) in all {
            let Some(site) = site else { continue };
            go_through(site, &ways[of]);
        }
        let (a, b) = tokio::task::block_in_place(|| self.pair.start()).unwrap();
        let server = |of, running| Server { of, further: None, running: Some(running) };
        self.servers = vec![server(0, a), server(1, b)];
        if let Some(second) = second {
            let running = tokio::task::block_in_place(|| second.start()).unwrap();
            self.servers.push(Server { of: 0, further: Some(second), running: Some(running) });
        }
    }

    async fn proxy(&self, of: SocketAddr, here: Ipv4Addr, seed: u64) -> Proxy {
        let cut = Arc::clone(&self.cut);
        let drawn = AtomicU64::new(seed);
        let plan = move |_| {
            if cut.load(Ordering::SeqCst) {
                return Plan::fault(Way::Up, 0, Manner::Swallow);
            }
            let mut numbers = Numbers(drawn.fetch_add(1, Ordering::SeqCst));
            match numbers.below(100) < BROKEN_PERCENT {
                true => Plan::by_seed(numbers.next(), 400_000),
                false => Plan::PASS,
            }
        };
        Proxy::start_at(here, of, plan).await.unwrap()
    }

    pub(crate) fn server(&self, at: usize) -> &Site {
        let Server { of, further, .. } = &self.servers[at];
        further.as_ref().unwrap_or(if *of == 0 { &self.pair.a } else { &self.pair.b })
    }

    /// The site, by one of its servers.
    pub(crate) fn site(&self, of: usize) -> &Site {
        if of == 0 { &self.pair.a } else { &self.pair.b }
    }

    /// A client that knows all servers.
    pub(crate) fn client_toml(&self) -> &PathBuf {
        &self.client_toml
    }
}

/// The peer's endpoints are these from now on.
fn go_through(site: &Site, ways: &[SocketAddr]) {
    // The peer is known by the name `localhost`, wherever it is.
    let ways: Vec<String> = ways.iter().map(|way| quoted(&format!("https://{way}"))).collect();
    let line = format!("endpoints = [{}]", ways.join(", "));
    let kms_toml = &site.places().kms_toml;
    let text = fs::read_to_string(kms_toml).unwrap();
    let is_it = |line: &&str| line.starts_with("endpoints = [");
    assert_eq!(
        text.lines().filter(is_it).count(),
        1,
        "the peer's endpoints are not where they were"
    );
    let lines = text.lines().map(|it| if is_it(&it) { line.as_str() } else { it });
    fs::write(kms_toml, lines.collect::<Vec<_>>().join("\n")).unwrap();
}

/// A further server of the first site: its own data directory and port; the first one's token, PINs and certificates.
fn second_server(pair: &Pair, mut options: SiteOptions, dir: &std::path::Path) -> Site {
    let first = pair.a.places();
    let tokens = quoted(&first.tokens.display().to_string());
    options.settings.push(set("hsm", "token_dir", &tokens));
    options.peer = Some(PeerOptions {
        site: "site-b".to_owned(),
        port: pair.b.port(),
        even: true,
        read_only: false,
        second: None,
    });
    let second = Site::make(dir, programs(), options).unwrap();
    for part in ["secrets", "certificates"] {
        let target = second.places().dir.join(part);
        fs::remove_dir_all(&target).unwrap();
        copy(&first.dir.join(part), &target);
    }
    fs::copy(&first.softhsm_conf, &second.places().softhsm_conf).unwrap();
    second
}
