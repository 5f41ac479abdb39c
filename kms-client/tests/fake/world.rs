//! Where a fake service stands: its certificates, and the configuration that leads to it.
#![allow(clippy::unwrap_used, reason = "helpers of tests may")]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use kms_proto::v1::ciphering_server::CipheringServer;
use kms_proto::v1::meters_server::MetersServer;
use kms_proto::v1::rotation_server::RotationServer;
use kms_proto::v1::site_server::SiteServer;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};

use super::{Fake, Script};

/// Certificates of one test, and the directory that the configuration lives in.
pub(crate) struct World {
    pub(crate) dir: tempfile::TempDir,
    ca: String,
    server: (String, String),
}

impl World {
    pub(crate) fn new() -> Self {
        let ca_key = rcgen::KeyPair::generate().unwrap();
        let mut ca_params = rcgen::CertificateParams::new(vec![]).unwrap();
        ca_params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca = ca_params.self_signed(&ca_key).unwrap();
        let issuer = rcgen::Issuer::new(ca_params, ca_key);
        let leaf = || {
            let key = rcgen::KeyPair::generate().unwrap();
            let params = rcgen::CertificateParams::new(vec!["localhost".into()]).unwrap();
            (params.signed_by(&key, &issuer).unwrap().pem(), key.serialize_pem())
        };
        let (server, client) = (leaf(), leaf());
        let dir = tempfile::tempdir().unwrap();
        for (name, pem) in
            [("ca.pem", &ca.pem()), ("client.pem", &client.0), ("client.key", &client.1)]
        {
            std::fs::write(dir.path().join(name), pem).unwrap();
        }
        Self { dir, ca: ca.pem(), server }
    }

    pub(crate) async fn serve(&self, script: Arc<Script>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let tls = ServerTlsConfig::new()
            .identity(Identity::from_pem(&self.server.0, &self.server.1))
            .client_ca_root(Certificate::from_pem(&self.ca));
        let fake = Fake(script);
        let server = Server::builder()
            .tls_config(tls)
            .unwrap()
            .add_service(CipheringServer::new(fake.clone()))
            .add_service(MetersServer::new(fake.clone()))
            .add_service(RotationServer::new(fake.clone()))
            .add_service(SiteServer::new(fake));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        address
    }

    /// Writes `client.toml` and says where.
    pub(crate) fn config(&self, endpoints: &[SocketAddr], more: &str) -> PathBuf {
        let endpoints: Vec<_> =
            endpoints.iter().map(|at| format!("\"https://localhost:{}\"", at.port())).collect();
        let text = format!(
            "endpoints = [{}]\nca = \"ca.pem\"\ncertificate = \"client.pem\"\nprivate_key = \"client.key\"\nserver_name = \"localhost\"\n{more}\n",
            endpoints.join(", ")
        );
        let path = self.dir.path().join("client.toml");
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Writes a `client.toml` with two sites, `north` preferred, and says where.
    pub(crate) fn two_sites(&self, north: SocketAddr, south: SocketAddr, more: &str) -> PathBuf {
        let site = |name: &str, at: SocketAddr| {
            let port = at.port();
            format!("[[sites]]\nname = \"{name}\"\nendpoints = [\"https://localhost:{port}\"]\n")
        };
        let text = format!(
            "ca = \"ca.pem\"\ncertificate = \"client.pem\"\nprivate_key = \"client.key\"\nserver_name = \"localhost\"\n{more}\n{}{}",
            site("north", north),
            site("south", south)
        );
        let path = self.dir.path().join("client.toml");
        std::fs::write(&path, text).unwrap();
        path
    }
}
