//! The site under attack: one server or three, their database, and a state to go back to.

use std::{fs, net::SocketAddr, thread};

use kms_client::{ImportRules, KmsClient, MeterId, Outcome};
use softhsm_tests::{Role, Running, ServerError};

use super::{
    common::{
        Home, Numbers, client, copy, eventually,
        fleet::{self, id, line, title},
        metric, metrics_of,
    },
    database::{Database, Dump, Table},
    truth::{Truth, guek},
};

/// What somebody who watches is alarmed by (docs/METRICS.md).
const ALARMS: [&str; 4] = [
    "kms_keyring_blocks_failed",
    "kms_keyring_damaged_records",
    "kms_keyring_index_lies_total",
    "kms_audit_fault",
];

pub(crate) struct Node {
    pub(crate) home: Home,
    metrics: SocketAddr,
    pub(crate) running: Option<Running>,
    pub(crate) client: Option<KmsClient>,
    /// Why it would not start.
    pub(crate) refused: Option<String>,
}

impl Node {
    /// The home and where its server's metrics are.
    pub(crate) fn new((home, metrics): (Home, SocketAddr)) -> Self {
        Self { home, metrics, running: None, client: None, refused: None }
    }

    /// It was started, or keeps the sentence with which it refused to.
    async fn started(&mut self, outcome: Result<Running, ServerError>) {
        match outcome {
            Ok(running) => {
                self.running = Some(running);
                self.client = Some(client(&self.home, Role::Dev).await);
            }
            Err(error) => self.refused = Some(error.to_string()),
        }
    }

    /// Until all blocks were looked at once.
    pub(crate) async fn settled(&self) {
        let Some(client) = &self.client else { return };
        eventually("the warm-up has been through", async || {
            let status = client.site_status().await.unwrap();
            status.warm_up.done || !status.faults.is_empty()
        })
        .await;
    }

    pub(crate) fn end(&mut self, kindly: bool) {
        self.client = None;
        self.refused = None;
        match self.running.take() {
            Some(running) if kindly => drop(running.stop().unwrap()),
            Some(running) => running.kill_9().unwrap(),
            None => {}
        }
    }

    /// Metrics that say that something is wrong.
    pub(crate) fn alarms(&self) -> Vec<&'static str> {
        let page = metrics_of(self.metrics);
        ALARMS.into_iter().filter(|name| metric(&page, name) > 0.0).collect()
    }

    pub(crate) async fn faults(&self) -> Vec<String> {
        match &self.client {
            Some(client) => client.site_status().await.unwrap().faults,
            None => self.refused.clone().into_iter().collect(),
        }
    }
}

pub(crate) struct World {
    pub(crate) nodes: Vec<Node>,
    pub(crate) database: Database,
    pub(crate) tables: Vec<Table>,
    pub(crate) truth: Truth,
    golden: (Dump, Truth),
    next_meter: u64,
}

/// Meters of a site when the game begins.
const FLEET: u64 = 24;

impl World {
    /// A site with some history: meters with one and with two key versions, a stricter policy, a
    /// deletion. It is stopped.
    pub(crate) async fn make(homes: Vec<(Home, SocketAddr)>, database: Database) -> Self {
        let nodes = homes.into_iter().map(Node::new).collect();
        let tables = database.tables().await;
        assert!(tables.len() > 5, "{tables:?}");
        database.drop_rules().await;
        let (golden, next_meter) = (<(Dump, Truth)>::default(), 0);
        let truth = Truth::default();
        let mut world = Self { nodes, database, tables, truth, golden, next_meter };
        world.start().await;
        let mut numbers = Numbers(0);
        for _ in 0..FLEET {
            world.add(0).await;
        }
        for _ in 0..12 {
            world.honest(&mut numbers, None).await;
        }
        world.stop(true);
        world.golden = (world.database.dump(&world.tables).await, world.truth.clone());
        for node in &world.nodes {
            let kept = node.home.places().dir.join("golden");
            copy(&node.home.places().data, &kept);
        }
        world
    }

    pub(crate) async fn start(&mut self) {
        let outcomes: Vec<_> = thread::scope(|scope| {
            let starting = self.nodes.iter().map(|node| scope.spawn(|| node.home.start()));
            let starting: Vec<_> = starting.collect();
            starting.into_iter().map(|node| node.join().unwrap()).collect()
        });
        for (node, outcome) in self.nodes.iter_mut().zip(outcomes) {
            node.started(outcome).await;
        }
        for node in &self.nodes {
            node.settled().await;
        }
    }

    pub(crate) fn stop(&mut self, kindly: bool) {
        thread::scope(|scope| {
            for node in &mut self.nodes {
                scope.spawn(move || node.end(kindly));
            }
        });
    }

    /// Everything as it was when the game began.
    pub(crate) async fn reset(&mut self) {
        self.stop(false);
        for node in &self.nodes {
            let data = &node.home.places().data;
            fs::remove_dir_all(data).unwrap();
            copy(&node.home.places().dir.join("golden"), data);
        }
        if let Database::Postgres(_) = self.database {
            let now = self.database.dump(&self.tables).await;
            let mut statements = Vec::new();
            for table in &self.tables {
                let (now, was) = (&now[&table.name], &self.golden.0[&table.name]);
                statements.extend(self.database.restore(table, now, was));
            }
            self.database.write(&statements).await.unwrap();
        }
        self.truth = self.golden.1.clone();
    }

    /// Imports a line through a node; whether it was done, refused (`None`), or nobody knows.
    async fn import(
        &self,
        node: usize,
        line: String,
        rules: ImportRules,
    ) -> Result<Option<Outcome>, ()> {
        let Some(client) = &self.nodes[node].client else { return Ok(None) };
        let mut results = import_results(client, line, rules).await;
        match results.pop() {
            Some(Ok(result)) if result.code.is_empty() => Ok(Some(result.outcome)),
            Some(Ok(_)) => Ok(None),
            // The service said no, or the connection broke.
            Some(Err(kms_client::CallError::DeadlineExceeded)) | None => Err(()),
            Some(Err(_)) => Ok(None),
        }
    }

    async fn add(&mut self, node: usize) {
        let n = self.next_meter;
        self.next_meter += 1;
        match self.import(node, line(n), ImportRules::default()).await {
            Ok(Some(_)) => self.truth.add(n),
            Ok(None) => {}
            Err(()) => {
                self.truth.add(n);
                self.doubt(n);
            }
        }
    }

    fn doubt(&mut self, n: u64) {
        if let Some(meter) = self.truth.meters.get_mut(&n) {
            meter.in_doubt = true;
        }
    }

    /// One honest change by a customer of the service, of a meter of these blocks if there is one.
    pub(crate) async fn honest(&mut self, numbers: &mut Numbers, blocks: Option<&[i64]>) {
        let node = numbers.below(self.nodes.len() as u64) as usize;
        let mut living = self.truth.living();
        if let Some(blocks) = blocks {
            let near: Vec<u64> =
                living.iter().copied().filter(|n| blocks.contains(&self.block_of(*n))).collect();
            if !near.is_empty() {
                living = near;
            }
        }
        let what = numbers.below(6);
        if living.is_empty() || what == 0 {
            return self.add(node).await;
        }
        let n = living[numbers.below(living.len() as u64) as usize];
        let hex_title = hex::encode_upper(title(n).as_bytes());
        match what {
            1 => {
                let Some(client) = &self.nodes[node].client else { return };
                let meter_id: MeterId = id(n).parse().unwrap();
                match client.meters().delete(&meter_id).await {
                    Ok(_) => self.truth.meters.get_mut(&n).unwrap().alive = false,
                    Err(kms_client::CallError::DeadlineExceeded) => self.doubt(n),
                    Err(_) => {}
                }
            }
            2 | 3 => {
                let line = format!(
                    r#"{{"meter_id":"{}","system_title":"{hex_title}","policy":{{"minimum_protection":"AUTHENTICATED_ENCRYPTED"}},"keys":[]}}"#,
                    id(n)
                );
                let rules = ImportRules { change_policy: true, ..ImportRules::default() };
                match self.import(node, line, rules).await {
                    Ok(Some(_)) => self.truth.meters.get_mut(&n).unwrap().strict = true,
                    Ok(None) => {}
                    Err(()) => self.doubt(n),
                }
            }
            _ => {
                let version = self.truth.meters[&n].versions + 1;
                if version > 3 {
                    return;
                }
                let line = format!(
                    r#"{{"meter_id":"{}","system_title":"{hex_title}","keys":[{{"kind":"GUEK","value":"{}"}}]}}"#,
                    id(n),
                    hex::encode_upper(guek(n, version))
                );
                let rules = ImportRules { add_versions: true, ..ImportRules::default() };
                match self.import(node, line, rules).await {
                    Ok(Some(_)) => self.truth.meters.get_mut(&n).unwrap().versions = version,
                    Ok(None) => {}
                    Err(()) => self.doubt(n),
                }
            }
        }
    }

    fn block_of(&self, n: u64) -> i64 {
        let blocks = kms_core::BlockCount::new(64).unwrap();
        i64::from(blocks.block_of(&title(n)).0)
    }
}

async fn import_results(
    client: &KmsClient,
    line: String,
    rules: ImportRules,
) -> Vec<Result<kms_client::ImportResult, kms_client::CallError>> {
    use tokio_stream::StreamExt as _;
    let lines = tokio_stream::iter(fleet::parsed(&line));
    client.meters().import(lines, rules).collect().await
}
