//! Verification of a whole document's signature. There is one form: one signature, a child of the root, over the root
//! with all that is below it but itself. What else XML Signature can say (parts by Id, several references, XPath,
//! objects) is refused: a file could be signed in one place and read in another.

use roxmltree::{Document, Node};
use sha2::{Digest as _, Sha256, Sha384, Sha512};

use super::{
    anchor::{SignatureMethod, Signed, TrustAnchor},
    c14n::{Canonical, canonicalize},
    error::ShipmentError,
    xml::{DS, base64, elements, one, text},
};

const ENVELOPED: &str = "http://www.w3.org/2000/09/xmldsig#enveloped-signature";
/// Certificates of one file: a chain.
const CERTIFICATES_MAX: usize = 8;

/// What was signed: the only way into a shipment.
#[derive(Clone, Copy, Debug)]
pub(super) struct SignedRoot<'a, 'i> {
    root: Node<'a, 'i>,
    signature: Node<'a, 'i>,
}

impl<'a, 'i> SignedRoot<'a, 'i> {
    /// The element's name.
    pub(super) fn name(&self) -> &'a str {
        self.root.tag_name().name()
    }

    /// A child of the root by its name, which stands once. Never the signature, which does not cover itself.
    pub(super) fn part(&self, name: &str) -> Result<Option<Node<'a, 'i>>, ShipmentError> {
        Ok(one(self.root, name)?.filter(|part| *part != self.signature))
    }
}

/// Verifies the document, and gives what of it was signed, and the fingerprint of the key that did.
pub(super) fn verify<'a, 'i>(
    document: &'a Document<'i>,
    anchor: &TrustAnchor,
) -> Result<(SignedRoot<'a, 'i>, String), ShipmentError> {
    let root = document.root_element();
    let is_signature = |node: &Node<'_, '_>| node.has_tag_name((DS, "Signature"));
    let mut signatures = document.descendants().filter(is_signature);
    let signature = signatures.next().ok_or(ShipmentError::Unsigned)?;
    if signatures.next().is_some() {
        return Err(ShipmentError::Signature { what: "it has two signatures" });
    }
    if signature.parent() != Some(root) {
        return Err(ShipmentError::Signature {
            what: "its signature is not one of the whole file",
        });
    }
    // A reference to the whole covers what stands beside the root, too.
    if document.root().children().any(|node| node.is_pi()) {
        return Err(ShipmentError::Form { what: "instructions stand outside the first element" });
    }
    let parts = Parts::of(signature)?;
    let method = Method::of(parts.info, root)?;
    let info = canonicalize(parts.info, None, &method.canonical)?;
    let (value, certificates) = (base64(text(parts.value)?)?, parts.certificates()?);
    let signed = Signed {
        method: method.signature,
        message: &info,
        signature: &value,
        certificates: &certificates,
    };
    let signer = anchor.verify(&signed)?;
    let bytes = canonicalize(root, Some(signature), &method.reference)?;
    if method.digest.digest(&bytes) != *method.digest_value {
        return Err(ShipmentError::Signature { what: "the content does not fit the signature" });
    }
    Ok((SignedRoot { root, signature }, signer))
}

/// The parts of a signature, in their order and nothing besides.
struct Parts<'a, 'i> {
    info: Node<'a, 'i>,
    value: Node<'a, 'i>,
    key_info: Option<Node<'a, 'i>>,
}

const FORM: ShipmentError =
    ShipmentError::Signature { what: "its signature has a form that is not taken" };

impl<'a, 'i> Parts<'a, 'i> {
    fn of(signature: Node<'a, 'i>) -> Result<Self, ShipmentError> {
        let mut parts = elements(signature);
        let mut next = |name| parts.next().filter(|node| node.has_tag_name((DS, name)));
        let (info, value) = (next("SignedInfo").ok_or(FORM)?, next("SignatureValue").ok_or(FORM)?);
        let key_info = parts.next();
        let is_known = key_info.is_none_or(|node| node.has_tag_name((DS, "KeyInfo")));
        if !is_known || parts.next().is_some() {
            return Err(FORM);
        }
        Ok(Self { info, value, key_info })
    }

    /// Keys that the file says are its signer's are not looked at: they would prove nothing.
    fn certificates(&self) -> Result<Vec<Vec<u8>>, ShipmentError> {
        let is_certificate = |node: &Node<'_, '_>| node.has_tag_name((DS, "X509Certificate"));
        let all = self.key_info.into_iter().flat_map(|it| it.descendants()).filter(is_certificate);
        let all: Vec<_> = all.take(CERTIFICATES_MAX + 1).collect();
        if all.len() > CERTIFICATES_MAX {
            return Err(ShipmentError::TooLarge { what: "certificates", limit: CERTIFICATES_MAX });
        }
        all.into_iter().map(|node| Ok(base64(text(node)?)?.to_vec())).collect()
    }
}

/// The algorithms of a signature, and the digest that it covers.
struct Method {
    canonical: Canonical,
    signature: SignatureMethod,
    reference: Canonical,
    digest: DigestMethod,
    digest_value: zeroize::Zeroizing<Vec<u8>>,
}

impl Method {
    fn of(info: Node<'_, '_>, root: Node<'_, '_>) -> Result<Self, ShipmentError> {
        let mut parts = elements(info);
        let mut next = |name| parts.next().filter(|it| it.has_tag_name((DS, name))).ok_or(FORM);
        let canonical = canonical(next("CanonicalizationMethod")?)?;
        let signature = algorithm(next("SignatureMethod")?)?;
        let reference = next("Reference")?;
        if parts.next().is_some() {
            return Err(ShipmentError::Signature { what: "it signs several things" });
        }
        let signature = SignatureMethod::of(signature).ok_or(ShipmentError::Algorithm {
            what: "the algorithm of its signature",
            instead: "ask for rsa-sha256 (384, 512) or ecdsa-sha256 (384)",
        })?;
        if !is_of_root(reference, root) {
            return Err(ShipmentError::Signature { what: "its signature covers a part of it" });
        }
        let mut parts = elements(reference);
        let mut next = |name| parts.next().filter(|it| it.has_tag_name((DS, name))).ok_or(FORM);
        let transformed = transforms(next("Transforms")?)?;
        let digest = DigestMethod::of(algorithm(next("DigestMethod")?)?)?;
        let digest_value = base64(text(next("DigestValue")?)?)?;
        if parts.next().is_some() {
            return Err(FORM);
        }
        Ok(Self { canonical, signature, reference: transformed, digest, digest_value })
    }
}

/// The whole document, by nothing or by the root's own Id, which no other element has.
fn is_of_root(reference: Node<'_, '_>, root: Node<'_, '_>) -> bool {
    match reference.attribute("URI") {
        Some("") => true,
        Some(uri) => uri.strip_prefix('#').is_some_and(|id| {
            let ids = root.attributes().filter(|it| matches!(it.name(), "Id" | "ID" | "id"));
            !id.is_empty() && ids.map(|it| it.value()).any(|known| known == id)
        }),
        None => false,
    }
}

/// The signature left out, then written in a canonical way: inclusive if none is named.
fn transforms(node: Node<'_, '_>) -> Result<Canonical, ShipmentError> {
    let mut all = elements(node);
    let first = all.next().ok_or(FORM)?;
    if !first.has_tag_name((DS, "Transform")) || algorithm(first)? != ENVELOPED {
        return Err(FORM);
    }
    let way = all.next().map_or(Ok(Canonical::Inclusive), canonical)?;
    if all.next().is_some() { Err(FORM) } else { Ok(way) }
}

fn canonical(node: Node<'_, '_>) -> Result<Canonical, ShipmentError> {
    let unknown = ShipmentError::Algorithm {
        what: "the canonical form of its signature",
        instead: "ask for Canonical XML 1.0, inclusive or exclusive, without comments",
    };
    let way = Canonical::of(algorithm(node)?).ok_or(unknown)?;
    let mut prefixes = elements(node);
    let listed = prefixes.next();
    match (way, listed) {
        (way, None) => Ok(way),
        (Canonical::Exclusive(_), Some(listed))
            if listed.tag_name().name() == "InclusiveNamespaces" =>
        {
            let prefixes = listed.attribute("PrefixList").unwrap_or_default();
            Ok(Canonical::Exclusive(prefixes.split_whitespace().map(str::to_owned).collect()))
        }
        _ => Err(FORM),
    }
}

fn algorithm<'a>(node: Node<'a, '_>) -> Result<&'a str, ShipmentError> {
    node.attribute("Algorithm").ok_or(FORM)
}

#[derive(Clone, Copy)]
enum DigestMethod {
    Sha256,
    Sha384,
    Sha512,
}

impl DigestMethod {
    fn of(algorithm: &str) -> Result<Self, ShipmentError> {
        match algorithm {
            "http://www.w3.org/2001/04/xmlenc#sha256" => Ok(Self::Sha256),
            "http://www.w3.org/2001/04/xmldsig-more#sha384" => Ok(Self::Sha384),
            "http://www.w3.org/2001/04/xmlenc#sha512" => Ok(Self::Sha512),
            _ => Err(ShipmentError::Algorithm {
                what: "the digest of its signature",
                instead: "ask for SHA-256, 384 or 512",
            }),
        }
    }

    fn digest(self, bytes: &[u8]) -> Vec<u8> {
        match self {
            Self::Sha256 => Sha256::digest(bytes).to_vec(),
            Self::Sha384 => Sha384::digest(bytes).to_vec(),
            Self::Sha512 => Sha512::digest(bytes).to_vec(),
        }
    }
}
