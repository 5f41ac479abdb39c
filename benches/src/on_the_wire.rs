//! The figures of the wire: batches through mutual TLS beside an echo of the same bytes, single calls
//! beside empty ones.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use kms_client::{ClientConfig, KmsClient, PackedBatch};
use softhsm_tests::{Role, Running, Site};
use tonic::transport::Channel;

use crate::{
    Error,
    echo::Echo,
    fleet::Telegrams,
    home::client_toml_for,
    load::{self, CONNECTIONS, Call, Clients},
    measure::{Rounds, quantile},
    process::cpu_time,
};

/// The longest time for a server to open all blocks.
const WARM_UP_PATIENCE: Duration = Duration::from_secs(120);

/// The service and the echo, both running, with connections to each.
pub struct Wire {
    kms: Running,
    echo: Echo,
    kms_clients: Clients,
    echo_clients: Clients,
    kms_channels: Vec<Channel>,
    echo_channels: Vec<Channel>,
    batches: Arc<Vec<PackedBatch>>,
    single: Call,
}

/// The way in which a server is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Batches in, batches out.
    Stream,
    /// A batch a call.
    Unary,
}

/// One turn of a load: items and what they took.
#[derive(Clone, Copy, Debug)]
pub struct Turn {
    /// Items answered.
    pub items: usize,
    /// Of the server, all threads.
    pub cpu: Duration,
    /// On the clock.
    pub wall: Duration,
}

impl Turn {
    /// Processor time of the server for one item, in nanoseconds.
    pub fn cpu_ns(&self) -> f64 {
        self.cpu.as_nanos() as f64 / self.items.max(1) as f64
    }

    /// Items a second on the clock.
    pub fn per_second(&self) -> f64 {
        self.items as f64 / self.wall.as_secs_f64()
    }
}

impl Wire {
    /// Starts both servers, waits until the service has opened all blocks; how long that took by its
    /// own account.
    pub async fn up(site: &Site, telegrams: &Telegrams) -> Result<(Self, Duration), Error> {
        let (kms, echo) = (site.start()?, Echo::start(site)?);
        let client_toml = site.client_toml(Role::Dev);
        let warmed = wait_until_warm(&client_toml).await?;
        let mut kms_channels = Vec::new();
        let mut echo_channels = Vec::new();
        for _ in 0..CONNECTIONS {
            kms_channels.push(load::channel(site, site.port()).await?);
            echo_channels.push(load::channel(site, echo.port).await?);
        }
        let apdus = telegrams.iter().map(|(_, apdu)| Bytes::copy_from_slice(apdu)).take(65_536);
        let wire = Self {
            kms_clients: Clients::connect(&client_toml).await?,
            echo_clients: Clients::connect(&client_toml_for(site, echo.port)?).await?,
            batches: load::packed(telegrams)?,
            single: Call::Decrypt(Arc::new(apdus.collect())),
            kms,
            echo,
            kms_channels,
            echo_channels,
        };
        for batch in wire.batches.iter() {
            let opened = wire.kms_clients.opened(batch).await?;
            if opened != batch.len() {
                return Err(format!("{opened} of {} APDUs were opened", batch.len()).into());
            }
        }
        Ok((wire, warmed))
    }

    /// The service's process.
    pub fn kms_pid(&self) -> u32 {
        self.kms.pid()
    }

    /// The service under load.
    pub async fn kms(&self, way: Way, lasting: Duration) -> Result<Turn, Error> {
        self.turn(&self.kms_clients, self.kms.pid(), way, lasting).await
    }

    /// The echo under the same load.
    pub async fn echo(&self, way: Way, lasting: Duration) -> Result<Turn, Error> {
        self.turn(&self.echo_clients, self.echo.pid(), way, lasting).await
    }

    async fn turn(
        &self,
        clients: &Clients,
        pid: u32,
        way: Way,
        lasting: Duration,
    ) -> Result<Turn, Error> {
        let (cpu, start) = (cpu_time(pid)?, Instant::now());
        let items = match way {
            Way::Stream => clients.stream(&self.batches, lasting).await?,
            Way::Unary => clients.batches(&self.batches, lasting).await?,
        };
        let wall = start.elapsed();
        Ok(Turn { items, cpu: cpu_time(pid)? - cpu, wall })
    }

    /// Rounds of: service and echo, processor nanoseconds an item, then items a second of the two.
    pub async fn compare(
        &self,
        way: Way,
        rounds: usize,
        lasting: Duration,
    ) -> Result<Rounds, Error> {
        let mut all = Rounds::default();
        for round in 0..rounds {
            let (kms, echo) = if round % 2 == 0 {
                let kms = self.kms(way, lasting).await?;
                (kms, self.echo(way, lasting).await?)
            } else {
                let echo = self.echo(way, lasting).await?;
                (self.kms(way, lasting).await?, echo)
            };
            all.push(vec![kms.cpu_ns(), echo.cpu_ns(), kms.per_second(), echo.per_second()]);
        }
        Ok(all)
    }

    /// Single calls at one rate, in microseconds. Rounds of: decrypt p50, p99; the service's own
    /// health check p50, p99; the health check of a bare tonic server p50, p99.
    pub async fn single_calls(
        &self,
        per_second: u32,
        rounds: usize,
        lasting: Duration,
    ) -> Result<Rounds, Error> {
        let kinds = [
            (&self.kms_channels, &self.single),
            (&self.kms_channels, &Call::Health),
            (&self.echo_channels, &Call::Health),
        ];
        let mut all = Rounds::default();
        for round in 0..rounds {
            let mut figures = vec![0.0; 2 * kinds.len()];
            for step in 0..kinds.len() {
                let kind = (round + step) % kinds.len();
                let Some((channels, call)) = kinds.get(kind) else { continue };
                let took = load::at_rate(channels, call, per_second, lasting).await?;
                let micros = |q| quantile(&took, q).as_nanos() as f64 / 1_000.0;
                if let Some(places) = figures.get_mut(2 * kind..2 * kind + 2) {
                    places.copy_from_slice(&[micros(0.50), micros(0.99)]);
                }
            }
            all.push(figures);
        }
        Ok(all)
    }

    /// Stops both.
    pub fn down(self) -> Result<(), Error> {
        self.kms.stop()?;
        Ok(())
    }
}

async fn wait_until_warm(client_toml: &std::path::Path) -> Result<Duration, Error> {
    let client = KmsClient::connect(ClientConfig::load(client_toml)?).await?;
    let until = Instant::now() + WARM_UP_PATIENCE;
    while Instant::now() < until {
        let status = client.site_status().await?;
        if status.warm_up.done {
            return Ok(Duration::from_millis(status.warm_up.elapsed_ms));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Err("the server did not get warm".into())
}
