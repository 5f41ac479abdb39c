//! Those whose signatures count: a public key, or certificates, which the operator got from the supplier by another way
//! than the file.

use ring::signature as ring_sig;
use rsa::pkcs8::{Document, ObjectIdentifier, spki::SubjectPublicKeyInfoRef};
use sha2::{Digest as _, Sha256};
use tokio_rustls::rustls::pki_types::{CertificateDer, UnixTime, pem::PemObject as _};
use webpki::{
    EndEntityCert, ExtendedKeyUsageValidator, KeyPurposeIdIter, anchor_from_trusted_cert,
};

use super::error::ShipmentError;

const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");

/// An algorithm of signatures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SignatureMethod {
    RsaSha256,
    RsaSha384,
    RsaSha512,
    EcdsaSha256,
    EcdsaSha384,
}

impl SignatureMethod {
    /// By its identifier. None with SHA-1 or MD5, and no HMAC, whose key would be ours.
    pub(super) fn of(algorithm: &str) -> Option<Self> {
        let name = algorithm.strip_prefix("http://www.w3.org/2001/04/xmldsig-more#")?;
        Some(match name {
            "rsa-sha256" => Self::RsaSha256,
            "rsa-sha384" => Self::RsaSha384,
            "rsa-sha512" => Self::RsaSha512,
            "ecdsa-sha256" => Self::EcdsaSha256,
            "ecdsa-sha384" => Self::EcdsaSha384,
            _ => return None,
        })
    }

    /// ECDSA on the curve that has the hash's strength; an XML signature is r and s side by side.
    fn algorithm(
        self,
        key: ObjectIdentifier,
    ) -> Option<&'static dyn ring_sig::VerificationAlgorithm> {
        Some(match (self, key) {
            (Self::RsaSha256, RSA) => &ring_sig::RSA_PKCS1_2048_8192_SHA256,
            (Self::RsaSha384, RSA) => &ring_sig::RSA_PKCS1_2048_8192_SHA384,
            (Self::RsaSha512, RSA) => &ring_sig::RSA_PKCS1_2048_8192_SHA512,
            (Self::EcdsaSha256, EC) => &ring_sig::ECDSA_P256_SHA256_FIXED,
            (Self::EcdsaSha384, EC) => &ring_sig::ECDSA_P384_SHA384_FIXED,
            _ => return None,
        })
    }
}

/// Whose signatures count. None beyond these, whatever key a file brings along.
#[derive(Clone)]
pub(super) enum TrustAnchor {
    /// This public key's (SubjectPublicKeyInfo).
    Key(Vec<u8>),
    /// These certificates', and those of whom they vouch for.
    Certificates(Vec<CertificateDer<'static>>),
}

/// A signature that has to be judged.
pub(super) struct Signed<'a> {
    pub(super) method: SignatureMethod,
    pub(super) message: &'a [u8],
    pub(super) signature: &'a [u8],
    /// The certificates that the file brings along.
    pub(super) certificates: &'a [Vec<u8>],
}

impl TrustAnchor {
    /// Reads a public key or certificates in PEM.
    pub(super) fn from_pem(pem: &str) -> Result<Self, ShipmentError> {
        let bad = |what: &str| ShipmentError::Settings { what: format!("trust_anchor: {what}") };
        if pem.contains("BEGIN PUBLIC KEY") {
            let (label, key) =
                Document::from_pem(pem).map_err(|_| bad("not a public key in PEM"))?;
            let sound = label == "PUBLIC KEY" && Spki::read(key.as_bytes()).is_some();
            return sound
                .then(|| Self::Key(key.as_bytes().to_vec()))
                .ok_or_else(|| bad("not an RSA or EC public key in PEM"));
        }
        let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
        let certificates = read.map_err(|_| bad("not certificates in PEM"))?;
        let sound = certificates.iter().all(|it| anchor_from_trusted_cert(it).is_ok());
        if certificates.is_empty() || !sound {
            return Err(bad("neither a public key nor certificates in PEM"));
        }
        Ok(Self::Certificates(certificates))
    }

    /// Whether the signature is of somebody who counts; gives the fingerprint of his key.
    pub(super) fn verify(&self, signed: &Signed<'_>) -> Result<String, ShipmentError> {
        let untrusted = |what| Err(ShipmentError::Untrusted { what });
        let anchors = match self {
            Self::Key(key) => {
                if signed.is_by(key) {
                    return Ok(fingerprint(key));
                }
                return Err(BAD);
            }
            Self::Certificates(anchors) => anchors,
        };
        let own = signed.certificates.iter().map(|it| CertificateDer::from(it.as_slice()));
        let own: Vec<CertificateDer<'_>> = own.collect();
        // A file may leave its certificate out where the operator has that very one.
        let mut leaves: Vec<&CertificateDer<'_>> = own.iter().collect();
        if own.is_empty() {
            leaves.extend(anchors);
        }
        let mut why = BAD;
        for leaf in leaves {
            let Ok(spki) = public_key(leaf) else { continue };
            if !signed.is_by(&spki) {
                continue;
            }
            if anchors.iter().any(|anchor| anchor == leaf) || vouched_for(leaf, anchors, &own) {
                return Ok(fingerprint(&spki));
            }
            why = match untrusted("its certificate leads to none of them, or is out of date") {
                Ok(never) => return Ok(never),
                Err(why) => why,
            };
        }
        Err(why)
    }
}

const BAD: ShipmentError =
    ShipmentError::Signature { what: "the signature does not fit the signer's key" };

/// Any purpose will do: the anchor is named for these files alone.
struct AnyPurpose;

impl ExtendedKeyUsageValidator for AnyPurpose {
    fn validate(&self, mut purposes: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        purposes.try_for_each(|purpose| purpose.map(drop))
    }
}

/// Whether the chain ends at an anchor, now: dates, constraints, who may sign certificates.
fn vouched_for(
    leaf: &CertificateDer<'_>,
    anchors: &[CertificateDer<'static>],
    own: &[CertificateDer<'_>],
) -> bool {
    let anchors: Vec<_> =
        anchors.iter().filter_map(|it| anchor_from_trusted_cert(it).ok()).collect();
    let Ok(leaf) = EndEntityCert::try_from(leaf) else { return false };
    let algorithms = webpki::ALL_VERIFICATION_ALGS;
    leaf.verify_for_usage(algorithms, &anchors, own, UnixTime::now(), AnyPurpose, None, None)
        .is_ok()
}

fn public_key(certificate: &CertificateDer<'_>) -> Result<Vec<u8>, webpki::Error> {
    // Of an authority's certificate too, which is no end entity's.
    let anchor = anchor_from_trusted_cert(certificate)?;
    let inner = anchor.subject_public_key_info.as_ref();
    let mut whole = vec![0x30];
    match inner.len() {
        len @ ..=0x7F => whole.push(len as u8),
        len @ ..=0xFF => whole.extend([0x81, len as u8]),
        len => whole.extend([0x82, (len >> 8) as u8, len as u8]),
    }
    whole.extend_from_slice(inner);
    Ok(whole)
}

fn fingerprint(spki: &[u8]) -> String {
    hex::encode(Sha256::digest(spki))
}

struct Spki<'a> {
    kind: ObjectIdentifier,
    key: &'a [u8],
}

impl<'a> Spki<'a> {
    fn read(der: &'a [u8]) -> Option<Self> {
        let spki = SubjectPublicKeyInfoRef::try_from(der).ok()?;
        let kind = spki.algorithm.oid;
        matches!(kind, RSA | EC).then_some(())?;
        Some(Self { kind, key: spki.subject_public_key.as_bytes()? })
    }
}

impl Signed<'_> {
    fn is_by(&self, spki: &[u8]) -> bool {
        let Some(Spki { kind, key }) = Spki::read(spki) else { return false };
        self.method.algorithm(kind).is_some_and(|algorithm| {
            let key = ring_sig::UnparsedPublicKey::new(algorithm, key);
            key.verify(self.message, self.signature).is_ok()
        })
    }
}
