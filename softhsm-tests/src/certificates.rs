//! Certificates for development: a CA, the server's leaf, the callers' leaves, and leaves that are
//! wrong in exactly one way.

use std::fmt;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevokedCertParams, date_time_ymd,
};

/// A certificate could not be made.
#[derive(Debug, thiserror::Error)]
#[error("making a certificate")]
pub struct CertificateError(#[from] rcgen::Error);

/// A certificate with its private key, both as PEM.
pub struct Identity {
    /// The certificate.
    pub certificate_pem: String,
    /// Its private key, PKCS #8.
    pub private_key_pem: String,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { certificate_pem, private_key_pem: _ } = self;
        f.debug_struct("Identity").field("certificate", certificate_pem).finish_non_exhaustive()
    }
}

/// A certification authority of our own.
pub struct Authority {
    name: String,
    certificate_pem: String,
    key: KeyPair,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, certificate_pem: _, key: _ } = self;
        f.debug_struct("Authority").field("name", name).finish_non_exhaustive()
    }
}

/// The extended key usage of a leaf.
#[derive(Clone, Copy)]
enum Usage {
    Server,
    Client,
}

/// When a leaf is valid, as (first year, last year): from and to the first of January.
type Years = (i32, i32);

/// Longer than any development directory lives.
const VALID: Years = (2020, 2049);
/// Over for long.
const EXPIRED: Years = (2020, 2021);
/// Not for a long time.
const NOT_YET: Years = (2090, 2091);

impl Authority {
    /// A new authority with a new key.
    pub fn make(name: &str) -> Result<Self, CertificateError> {
        let key = KeyPair::generate()?;
        let certificate_pem = authority_params(name)?.self_signed(&key)?.pem();
        Ok(Self { name: name.to_owned(), certificate_pem, key })
    }

    /// An authority that was made earlier, under the same name.
    pub fn load(name: &str, identity: &Identity) -> Result<Self, CertificateError> {
        Ok(Self {
            name: name.to_owned(),
            certificate_pem: identity.certificate_pem.clone(),
            key: KeyPair::from_pem(&identity.private_key_pem)?,
        })
    }

    /// Its certificate and key, to keep.
    pub fn identity(&self) -> Identity {
        Identity {
            certificate_pem: self.certificate_pem.clone(),
            private_key_pem: self.key.serialize_pem(),
        }
    }

    /// Its certificate, as PEM.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The server's leaf, for `localhost` and `127.0.0.1`.
    pub fn server(&self) -> Result<Identity, CertificateError> {
        self.leaf("kms-server", &["localhost", "127.0.0.1"], Usage::Server, VALID)
    }

    /// The leaf of a server of a site with a peer: its servers know it by the site's name, and callers as
    /// `localhost`.
    pub fn site(&self, name: &str) -> Result<Identity, CertificateError> {
        let mut params =
            leaf_params(name, &[name, "localhost", "127.0.0.1"], Usage::Server, VALID)?;
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
        self.sign(&params)
    }

    /// A caller's leaf: its name stands in the subject and as a DNS name.
    pub fn client(&self, caller: &str) -> Result<Identity, CertificateError> {
        self.leaf(caller, &[caller], Usage::Client, VALID)
    }

    /// A caller's leaf that expired.
    pub fn expired_client(&self, caller: &str) -> Result<Identity, CertificateError> {
        self.leaf(caller, &[caller], Usage::Client, EXPIRED)
    }

    /// A caller's leaf whose time has not come.
    pub fn not_yet_valid_client(&self, caller: &str) -> Result<Identity, CertificateError> {
        self.leaf(caller, &[caller], Usage::Client, NOT_YET)
    }

    /// A caller's leaf, and the revocation list, as PEM, that names it and no other.
    pub fn revoked_client(&self, caller: &str) -> Result<(Identity, String), CertificateError> {
        const SERIAL: u64 = 0x7265_766F_6B65_6401;
        let mut params = leaf_params(caller, &[caller], Usage::Client, VALID)?;
        params.serial_number = Some(SERIAL.into());
        let revoked = RevokedCertParams {
            serial_number: SERIAL.into(),
            revocation_time: date_time_ymd(VALID.0, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        Ok((self.sign(&params)?, self.revocation_list(vec![revoked])?))
    }

    /// A revocation list, as PEM, that names nobody.
    pub fn empty_revocation_list(&self) -> Result<String, CertificateError> {
        self.revocation_list(Vec::new())
    }

    fn revocation_list(
        &self,
        revoked_certs: Vec<RevokedCertParams>,
    ) -> Result<String, CertificateError> {
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(VALID.0, 1, 1),
            next_update: date_time_ymd(VALID.1, 1, 1),
            crl_number: (1 + revoked_certs.len() as u64).into(),
            issuing_distribution_point: None,
            revoked_certs,
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let issuer_params = authority_params(&self.name)?;
        Ok(list.signed_by(&Issuer::from_params(&issuer_params, &self.key))?.pem()?)
    }

    /// The server's leaf, expired.
    pub fn expired_server(&self) -> Result<Identity, CertificateError> {
        self.leaf("kms-server", &["localhost", "127.0.0.1"], Usage::Server, EXPIRED)
    }

    /// A caller's leaf that no authority signed but its own key.
    pub fn self_signed_client(caller: &str) -> Result<Identity, CertificateError> {
        let mut params = CertificateParams::new(vec![caller.to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, caller);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        Ok(Identity { certificate_pem: certificate.pem(), private_key_pem: key.serialize_pem() })
    }

    /// A leaf with a caller's name that is good for servers only.
    pub fn client_with_server_usage(&self, caller: &str) -> Result<Identity, CertificateError> {
        self.leaf(caller, &[caller], Usage::Server, VALID)
    }

    fn leaf(
        &self,
        common_name: &str,
        names: &[&str],
        usage: Usage,
        years: Years,
    ) -> Result<Identity, CertificateError> {
        self.sign(&leaf_params(common_name, names, usage, years)?)
    }

    fn sign(&self, params: &CertificateParams) -> Result<Identity, CertificateError> {
        let key = KeyPair::generate()?;
        let issuer_params = authority_params(&self.name)?;
        let certificate =
            params.signed_by(&key, &Issuer::from_params(&issuer_params, &self.key))?;
        Ok(Identity { certificate_pem: certificate.pem(), private_key_pem: key.serialize_pem() })
    }
}

fn leaf_params(
    common_name: &str,
    names: &[&str],
    usage: Usage,
    (from, to): Years,
) -> Result<CertificateParams, CertificateError> {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.not_before = date_time_ymd(from, 1, 1);
    params.not_after = date_time_ymd(to, 1, 1);
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![match usage {
        Usage::Server => ExtendedKeyUsagePurpose::ServerAuth,
        Usage::Client => ExtendedKeyUsagePurpose::ClientAuth,
    }];
    Ok(params)
}

fn authority_params(name: &str) -> Result<CertificateParams, CertificateError> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = date_time_ymd(VALID.0, 1, 1);
    params.not_after = date_time_ymd(VALID.1, 1, 1);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_hides_the_private_key() {
        let identity = Authority::make("test CA").unwrap().client("hes-1").unwrap();
        let shown = format!("{identity:?}");
        assert!(shown.contains("BEGIN CERTIFICATE") && !shown.contains("PRIVATE KEY"));
    }

    #[test]
    fn an_authority_that_was_kept_is_the_same_one() {
        let made = Authority::make("test CA").unwrap();
        let loaded = Authority::load("test CA", &made.identity()).unwrap();
        assert_eq!(loaded.certificate_pem(), made.certificate_pem());
        assert!(loaded.client("hes-1").is_ok());
    }
}
