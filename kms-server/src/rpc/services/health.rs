//! `grpc.health.v1`: one answer for the process and the same for each of its services.

use kms_proto::v1::{ciphering_server, meters_server, site_server};
use tonic_health::{
    ServingStatus,
    pb::health_server::HealthServer,
    server::{HealthReporter, HealthService},
};

/// Names that a client may ask for; the empty one is the process as a whole.
const NAMES: [&str; 4] =
    ["", ciphering_server::SERVICE_NAME, meters_server::SERVICE_NAME, site_server::SERVICE_NAME];

/// Sets what the health service answers.
#[derive(Clone)]
pub(crate) struct Health(HealthReporter);

impl Health {
    /// Serving.
    pub(crate) async fn new() -> (Self, HealthServer<HealthService>) {
        let reporter = HealthReporter::new();
        let service = HealthServer::new(HealthService::from_health_reporter(reporter.clone()));
        let health = Self(reporter);
        health.set_serving(true).await;
        (health, service)
    }

    pub(crate) async fn set_serving(&self, serving: bool) {
        let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
        for name in NAMES {
            self.0.set_service_status(name, status).await;
        }
    }
}
