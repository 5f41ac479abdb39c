//! The services' generated clients, each with the bound on its answers.

use kms_proto::v1::audit_client::AuditClient;
use kms_proto::v1::ciphering_client::CipheringClient;
use kms_proto::v1::groups_client::GroupsClient;
use kms_proto::v1::meters_client::MetersClient;
use kms_proto::v1::rotation_client::RotationClient;

use crate::link::Link;
use crate::transport::ANSWER_LEN_MAX;

pub(crate) fn meters(link: Link) -> MetersClient<Link> {
    MetersClient::new(link).max_decoding_message_size(ANSWER_LEN_MAX)
}

pub(crate) fn audit(link: Link) -> AuditClient<Link> {
    AuditClient::new(link).max_decoding_message_size(ANSWER_LEN_MAX)
}

pub(crate) fn rotation(link: Link) -> RotationClient<Link> {
    RotationClient::new(link).max_decoding_message_size(ANSWER_LEN_MAX)
}

pub(crate) fn groups(link: Link) -> GroupsClient<Link> {
    GroupsClient::new(link).max_decoding_message_size(ANSWER_LEN_MAX)
}

pub(crate) fn ciphering(link: Link) -> CipheringClient<Link> {
    CipheringClient::new(link).max_decoding_message_size(ANSWER_LEN_MAX)
}
