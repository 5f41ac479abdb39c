//! `grpc.health.v1`: one answer for the process and the same for each of its services.

use std::collections::BTreeSet;

use kms_proto::Method;
use tonic_health::{
    ServingStatus,
    pb::health_server::HealthServer,
    server::{HealthReporter, HealthService},
};

/// Names that a client may ask for: the empty one, the process as a whole, and each service that has calls.
fn names() -> BTreeSet<String> {
    let service = |method: &Method| method.name().split('/').next().unwrap_or_default();
    let services = Method::ALL.iter().map(service);
    services.map(|name| format!("ami.kms.v1.{name}")).chain([String::new()]).collect()
}

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
        for name in names() {
            self.0.set_service_status(name, status).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use kms_proto::v1::{
        approvals_server, audit_server, ciphering_server, groups_server, meters_server,
        nodes_server, replication_server, rotation_server, site_server,
    };

    #[test]
    fn each_service_has_a_name_that_can_be_asked_for() {
        let services = [
            "",
            approvals_server::SERVICE_NAME,
            audit_server::SERVICE_NAME,
            ciphering_server::SERVICE_NAME,
            groups_server::SERVICE_NAME,
            meters_server::SERVICE_NAME,
            nodes_server::SERVICE_NAME,
            replication_server::SERVICE_NAME,
            rotation_server::SERVICE_NAME,
            site_server::SERVICE_NAME,
        ];
        assert!(super::names().iter().map(String::as_str).eq(services));
    }
}
