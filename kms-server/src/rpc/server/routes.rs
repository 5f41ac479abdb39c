//! The services, each at its path.

use std::sync::Arc;

use kms_proto::v1::{
    approvals_server::ApprovalsServer, audit_server::AuditServer,
    ciphering_server::CipheringServer, groups_server::GroupsServer, meters_server::MetersServer,
    nodes_server::NodesServer, replication_server::ReplicationServer,
    rotation_server::RotationServer, site_server::SiteServer,
};
use tonic::service::Routes;

use super::{error::RpcError, parts::Parts};
use crate::rpc::{
    access::{sites::Sites, verb::Verb},
    config::{Config, Limits},
    figures::Figures,
    gate::recording::Recorder,
    messages::shape::FORWARDED_BYTES,
    services::{
        approvals::ApprovalsService, audit::AuditService, ciphering::CipheringService,
        groups::GroupsService, meters::MetersService, nodes::NodesService,
        replication::ReplicationService, rotation::RotationService, site::SiteService,
    },
    shares::budget::Budget,
    tls::in_use::Tls,
};

/// The services that stand on the parts.
pub(super) fn of_parts(
    config: &Config,
    parts: &Parts,
    tls: &Arc<Tls>,
    figures: &Arc<Figures>,
    budget: &Budget,
) -> Routes {
    let message_bytes_max = config.limits.message_bytes_max;
    let nodes = of_nodes(config, parts, budget);
    let ciphering = CipheringService {
        ciphering: Arc::clone(&parts.ciphering),
        transmitting: Arc::clone(&parts.transmitting),
        associations: Arc::clone(&parts.associations),
        audit: Arc::clone(&parts.audit),
        budget: budget.clone(),
        message_bytes_max,
        looks: Arc::default(),
        triages: Arc::default(),
        policy: Arc::new(config.policy.clone()),
    };
    let meters = MetersService {
        lifecycle: Arc::clone(&parts.lifecycle),
        transmitting: Arc::clone(&parts.transmitting),
        audit: Recorder(Arc::clone(&parts.audit)),
        budget: budget.clone(),
        message_bytes_max,
    };
    let replication = ReplicationService {
        parts: parts.replication.as_ref().map(|replicating| replicating.parts.clone()),
        sites: sites(config, parts),
        ciphering: Arc::clone(&parts.ciphering),
        lifecycle: Arc::clone(&parts.lifecycle),
        budget: budget.clone(),
        message_bytes_max,
    };
    let site = of_site(config, parts, tls, figures, budget);
    let audit = of_audit(parts);
    // Answers are as long as their questions made them; only what comes in has a limit.
    Routes::new(CipheringServer::new(ciphering).max_decoding_message_size(message_bytes_max))
        .add_service(MetersServer::new(meters).max_decoding_message_size(message_bytes_max))
        .add_service(
            RotationServer::new(of_rotation(config, parts, budget))
                .max_decoding_message_size(message_bytes_max),
        )
        .add_service(
            GroupsServer::new(of_groups(config, parts, budget))
                .max_decoding_message_size(message_bytes_max),
        )
        .add_service(
            ReplicationServer::new(replication).max_decoding_message_size(message_bytes_max),
        )
        .add_service(
            NodesServer::new(nodes)
                .max_decoding_message_size(message_bytes_max.saturating_add(FORWARDED_BYTES)),
        )
        .add_service(SiteServer::new(site).max_decoding_message_size(message_bytes_max))
        .add_service(AuditServer::new(audit).max_decoding_message_size(message_bytes_max))
}

fn of_site(
    config: &Config,
    parts: &Parts,
    tls: &Arc<Tls>,
    figures: &Arc<Figures>,
    budget: &Budget,
) -> SiteService {
    SiteService {
        looks: parts.looks(),
        replication: parts.replication.as_ref().map(|it| Arc::clone(&it.status)),
        syncing: parts.replication.as_ref().map(|it| Arc::clone(&it.syncing)),
        lifecycle: Arc::clone(&parts.lifecycle),
        fencing: parts.replication.as_ref().map(|it| Arc::clone(&it.fencing)),
        planning: parts.replication.as_ref().map(|it| Arc::clone(&it.planning)),
        promotion_takes_two: config.policy.dual_control().contains(&Verb::Promote),
        roles: Arc::clone(&parts.roles),
        floors: Arc::clone(parts.ciphering.floors()),
        transmitting: Arc::clone(&parts.transmitting),
        rotation: Arc::clone(&parts.rotation),
        kek: Arc::clone(&parts.kek),
        recorder: Recorder(Arc::clone(&parts.audit)),
        enroller: Arc::new(parts.enroller()),
        budget: budget.clone(),
        domain: parts.domain.clone(),
        single_site: parts.single_site,
        clock: Arc::clone(&parts.clock),
        started: parts.clock.now(),
        tls: Arc::clone(tls),
        figures: Arc::clone(figures),
    }
}

fn of_rotation(config: &Config, parts: &Parts, budget: &Budget) -> RotationService {
    RotationService {
        lifecycle: Arc::clone(&parts.lifecycle),
        transmitting: Arc::clone(&parts.transmitting),
        ciphering: Arc::clone(&parts.ciphering),
        audit: Recorder(Arc::clone(&parts.audit)),
        budget: budget.clone(),
        policy: Arc::new(config.policy.clone()),
    }
}

fn of_groups(config: &Config, parts: &Parts, budget: &Budget) -> GroupsService {
    GroupsService {
        lifecycle: Arc::clone(&parts.lifecycle),
        transmitting: Arc::clone(&parts.transmitting),
        audit: Recorder(Arc::clone(&parts.audit)),
        budget: budget.clone(),
        policy: Arc::new(config.policy.clone()),
    }
}

fn of_audit(parts: &Parts) -> AuditService {
    AuditService {
        audit: Arc::clone(&parts.audit),
        copies: parts.replication.as_ref().map(|it| Arc::clone(&it.parts.auditing)),
        site: parts.domain.site.clone(),
    }
}

fn of_nodes(config: &Config, parts: &Parts, budget: &Budget) -> NodesService {
    let (transmitting, audit) = (Arc::clone(&parts.transmitting), Arc::clone(&parts.audit));
    let policy = Arc::new(config.policy.clone());
    NodesService { transmitting, audit, budget: budget.clone(), policy }
}

/// Adds what stands on the gate alone: approvals and reflection.
pub(super) fn with_standing(
    services: Routes,
    approvals: ApprovalsService,
    limits: &Limits,
) -> Result<Routes, RpcError> {
    let approvals =
        ApprovalsServer::new(approvals).max_decoding_message_size(limits.message_bytes_max);
    let described = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(kms_proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let failed = |error: tonic_reflection::server::Error| RpcError::Reflection(error.into());
    // Tools that are some years old, and Python's, ask by the old name.
    let (new, old) =
        (described().build_v1().map_err(failed)?, described().build_v1alpha().map_err(failed)?);
    Ok(services.add_service(approvals).add_service(new).add_service(old))
}

/// Which callers are which sites.
fn sites(config: &Config, parts: &Parts) -> Sites {
    let peers = parts.replication.iter().flat_map(|it| it.parts.serving.peers());
    Sites::new(&config.policy, &config.sites, peers.map(str::to_owned).collect())
}
