//! The honest caller: one APDU every ten milliseconds on an open connection, and a new connection with one
//! call every second, as from a client that starts now.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use kms_client::{Apdu, ClientConfig, KmsClient};

/// Between two calls.
const PACE: Duration = Duration::from_millis(10);
/// Between two new connections.
const FRESH: Duration = Duration::from_secs(1);

/// One call.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    /// On a connection of its own.
    pub(super) fresh: bool,
    pub(super) took: Duration,
    pub(super) ended: Instant,
    /// The error, if there was one.
    pub(super) failed: Option<String>,
}

/// Calls until it is dropped.
pub(super) struct Honest {
    samples: Arc<Mutex<Vec<Sample>>>,
    tasks: tokio::task::JoinSet<()>,
}

impl Drop for Honest {
    fn drop(&mut self) {
        self.tasks.abort_all();
    }
}

impl Honest {
    pub(super) async fn begin(
        toml: &Path,
        telegram: Vec<u8>,
    ) -> Result<Self, Box<dyn std::error::Error>> {
        let samples = Arc::new(Mutex::new(Vec::new()));
        let apdu = Apdu::new(telegram)?;
        let client = KmsClient::connect(ClientConfig::load(toml)?).await?;
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(steadily(client, apdu.clone(), Arc::clone(&samples)));
        tasks.spawn(afresh(toml.to_owned(), apdu, Arc::clone(&samples)));
        Ok(Self { samples, tasks })
    }

    /// The samples since the last time.
    pub(super) fn take(&self) -> Vec<Sample> {
        std::mem::take(&mut *self.samples.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

async fn steadily(client: KmsClient, apdu: Apdu, samples: Arc<Mutex<Vec<Sample>>>) {
    let mut pace = tokio::time::interval(PACE);
    loop {
        let due = pace.tick().await;
        let (client, apdu, samples) = (client.clone(), apdu.clone(), Arc::clone(&samples));
        // A slow call must not keep the next one from being made in time.
        tokio::spawn(async move { call(&client, &apdu, false, due.into_std(), &samples).await });
    }
}

async fn afresh(toml: PathBuf, apdu: Apdu, samples: Arc<Mutex<Vec<Sample>>>) {
    let mut pace = tokio::time::interval(FRESH);
    loop {
        let due = pace.tick().await.into_std();
        let connected = match ClientConfig::load(&toml) {
            Ok(config) => KmsClient::connect(config).await.map_err(|error| said(&error)),
            Err(error) => Err(said(&error)),
        };
        match connected {
            Ok(client) => call(&client, &apdu, true, due, &samples).await,
            Err(failed) => note(&samples, true, due, Some(failed)),
        }
    }
}

async fn call(
    client: &KmsClient,
    apdu: &Apdu,
    fresh: bool,
    due: Instant,
    samples: &Mutex<Vec<Sample>>,
) {
    let failed = match client.decrypt(apdu).await {
        Ok(opened) if opened.verdict() == kms_client::Verdict::Ok => None,
        Ok(opened) => Some(format!("verdict {:?}", opened.verdict())),
        Err(error) => Some(said(&error)),
    };
    note(samples, fresh, due, failed);
}

fn note(samples: &Mutex<Vec<Sample>>, fresh: bool, due: Instant, failed: Option<String>) {
    let sample = Sample { fresh, took: due.elapsed(), ended: Instant::now(), failed };
    samples.lock().unwrap_or_else(PoisonError::into_inner).push(sample);
}

fn said(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line = format!("{line}: {error}");
        cause = error.source();
    }
    line
}
