//! Clients: streams, batches, single calls at a given rate.

use std::{
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{StreamExt as _, future::try_join_all, stream};
use kms_client::{Apdu, ClientConfig, KmsClient, PackedBatch};
use kms_proto::v1::{DecryptRequest, ciphering_client::CipheringClient};
use softhsm_tests::{Role, Site};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::{Error, fleet::Telegrams, in_process::BATCH};

/// Connections of a load.
pub const CONNECTIONS: usize = 4;
/// Callers of unary batches on each connection.
const CALLERS: usize = 2;

/// Telegrams, packed once, sent many times.
pub fn packed(telegrams: &Telegrams) -> Result<Arc<Vec<PackedBatch>>, Error> {
    let apdus = telegrams
        .iter()
        .map(|(_, apdu)| Apdu::new(Bytes::copy_from_slice(apdu)))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Arc::new(apdus.chunks(BATCH).map(|some| PackedBatch::new(some, 0)).collect()))
}

/// Connections to one server.
pub struct Clients(Vec<KmsClient>);

impl Clients {
    /// Connects [`CONNECTIONS`] times.
    pub async fn connect(client_toml: &Path) -> Result<Self, Error> {
        let mut clients = Vec::new();
        for _ in 0..CONNECTIONS {
            clients.push(KmsClient::connect(ClientConfig::load(client_toml)?).await?);
        }
        Ok(Self(clients))
    }

    /// One stream on each connection, as fast as the wire takes them; how many items were answered.
    pub async fn stream(
        &self,
        batches: &Arc<Vec<PackedBatch>>,
        lasting: Duration,
    ) -> Result<usize, Error> {
        let until = Instant::now() + lasting;
        let streams = self.0.iter().enumerate().map(|(number, client)| async move {
            let mut answers =
                client.decrypt_packed_stream(stream::iter(turns(batches, number, until))).await?;
            let mut items = 0;
            while let Some(answer) = answers.next().await {
                items += answer?.len();
            }
            Ok::<_, Error>(items)
        });
        Ok(try_join_all(streams).await?.iter().sum())
    }

    /// Unary batches, [`CALLERS`] at a time on each connection; how many items were answered.
    pub async fn batches(
        &self,
        batches: &Arc<Vec<PackedBatch>>,
        lasting: Duration,
    ) -> Result<usize, Error> {
        let until = Instant::now() + lasting;
        let callers = self.0.iter().enumerate().flat_map(|(number, client)| {
            (0..CALLERS).map(move |caller| async move {
                let mut items = 0;
                for batch in turns(batches, number * CALLERS + caller, until) {
                    items += client.decrypt_packed(&batch).await?.len();
                }
                Ok::<_, Error>(items)
            })
        });
        Ok(try_join_all(callers).await?.iter().sum())
    }

    /// The number of a batch's items that are opened; the bench is void if it is not all.
    pub async fn opened(&self, batch: &PackedBatch) -> Result<usize, Error> {
        let client = self.0.first().ok_or("no client")?;
        Ok(client.decrypt_packed(batch).await?.opened())
    }
}

/// Batches in turn, from a place of the sender's own on, until the time is over.
fn turns(
    batches: &Arc<Vec<PackedBatch>>,
    sender: usize,
    until: Instant,
) -> impl Iterator<Item = PackedBatch> + Send + 'static {
    // Senders start apart: no two open the same meters at the same time.
    let (batches, first) = (Arc::clone(batches), sender * batches.len() / (CALLERS * CONNECTIONS));
    (first..)
        .take_while(move |_| Instant::now() < until)
        .filter_map(move |turn| batches.get(turn % batches.len()).cloned())
}

/// A bare channel: single calls are measured without our client around them.
pub async fn channel(site: &Site, port: u16) -> Result<Channel, Error> {
    let places = site.places();
    let caller = Role::Dev.caller();
    let read = |path| fs::read(path);
    let identity =
        Identity::from_pem(read(places.certificate(caller))?, read(places.private_key(caller))?);
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(read(places.certificate("ca"))?))
        .identity(identity)
        .domain_name("localhost");
    let endpoint = Endpoint::from_shared(format!("https://localhost:{port}"))?;
    Ok(endpoint.tls_config(tls)?.tcp_nodelay(true).connect().await?)
}

/// One kind of single call.
#[derive(Clone)]
pub enum Call {
    /// Opens these, one after the other.
    Decrypt(Arc<Vec<Bytes>>),
    /// The empty call: the standard health service.
    Health,
}

impl Call {
    async fn make(&self, channel: &Channel, turn: usize) -> Result<(), Error> {
        match self {
            Self::Decrypt(apdus) => {
                let apdu = apdus.get(turn % apdus.len()).cloned().unwrap_or_default();
                let request = DecryptRequest { apdu, ..DecryptRequest::default() };
                CipheringClient::new(channel.clone()).decrypt(request).await?;
            }
            Self::Health => {
                HealthClient::new(channel.clone()).check(HealthCheckRequest::default()).await?;
            }
        }
        Ok(())
    }
}

/// Calls at a rate that does not depend on the answers; how long each took, sorted. A call that comes
/// late because its caller was still waiting counts from when it should have begun.
pub async fn at_rate(
    channels: &[Channel],
    call: &Call,
    per_second: u32,
    lasting: Duration,
) -> Result<Vec<Duration>, Error> {
    /// A caller each millisecond or so: the timer knows nothing shorter.
    const CALLERS: u32 = 32;
    let pause = Duration::from_secs(1) * CALLERS / per_second;
    let start = tokio::time::Instant::now() + Duration::from_millis(5);
    let callers = (0..CALLERS).map(|caller| {
        let channel = channels.get(caller as usize % channels.len().max(1)).cloned();
        let (call, first) = (call.clone(), start + pause * caller / CALLERS);
        tokio::spawn(async move {
            let channel = channel.ok_or("no channel")?;
            let mut took = Vec::new();
            for turn in 0.. {
                let due = first + pause * turn;
                if due > start + lasting {
                    break;
                }
                tokio::time::sleep_until(due).await;
                let late = tokio::time::Instant::now();
                // The timer's own lateness is not the server's.
                let begun = if late > due + Duration::from_millis(2) { due } else { late };
                call.make(&channel, (turn * CALLERS + caller) as usize).await?;
                took.push(begun.elapsed());
            }
            Ok::<_, Error>(took)
        })
    });
    let mut all = Vec::new();
    for took in try_join_all(callers).await? {
        all.extend(took?);
    }
    all.sort_unstable();
    Ok(all)
}
