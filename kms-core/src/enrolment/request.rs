//! The request of a site to join a key domain: its public keys, signed by itself. Nothing in it is secret, and
//! nothing of it is believed before two people have compared its fingerprint.

use super::{
    BadPaper, Fingerprint, NAME_LEN_MAX, Oaep, RELEASE_LEN_MAX, SPKI_LEN_MAX, file, is_site_name,
};
use crate::{
    audit::{PublicKey, Signature, is_signed},
    codec::{BadEncoding, Reader, put_bytes},
    date::date,
    numbered::Numbered as _,
    site::peer::PeerKind,
};

/// What a joining site says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinRequest {
    /// The operator's name for the joining site.
    pub site: String,
    /// What it wants to be.
    pub kind: PeerKind,
    /// What it signs with, this request too.
    pub signing: PublicKey,
    /// What block secrets are wrapped to for it: SubjectPublicKeyInfo, DER.
    pub transport_block: Vec<u8>,
    /// What the sealed KEKs are wrapped to, once: SubjectPublicKeyInfo, DER.
    pub ceremony: Vec<u8>,
    /// Random: no two requests are the same.
    pub nonce: [u8; 32],
    /// The OAEP hash that its token can do.
    pub oaep: Oaep,
    /// The release that it runs.
    pub release: String,
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// It is no further site that asks, but a second token of the site that it names.
    pub same_site: bool,
}

/// A request and its signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedRequest {
    /// The request.
    pub request: JoinRequest,
    /// Of the key that the request names, over [`JoinRequest::message`].
    pub signature: Signature,
}

impl JoinRequest {
    /// The message that is signed, which is its encoding.
    pub fn message(&self) -> Vec<u8> {
        let Self { site, kind, signing, transport_block, ceremony, nonce, oaep, release, .. } =
            self;
        let mut out = if self.same_site { LABEL_SAME_SITE } else { LABEL }.to_vec();
        put_bytes(&mut out, site.as_bytes());
        out.push(*kind as u8);
        out.extend_from_slice(signing);
        put_bytes(&mut out, transport_block);
        put_bytes(&mut out, ceremony);
        out.extend_from_slice(nonce);
        out.push(*oaep as u8);
        put_bytes(&mut out, release.as_bytes());
        out.extend_from_slice(&self.at_ms.to_be_bytes());
        out
    }

    /// What it wants to be, for people.
    pub fn what(&self) -> String {
        match self.same_site {
            true => format!("a second token of this very site, {}", self.kind),
            false => self.kind.to_string(),
        }
    }

    fn read(input: &mut Reader<'_>) -> Result<Self, BadEncoding> {
        let label = input.array::<{ LABEL.len() }>()?;
        let same_site = label == *LABEL_SAME_SITE;
        if label != *LABEL && !same_site {
            return Err(BadEncoding);
        }
        let request = Self {
            site: input.text()?.to_owned(),
            kind: PeerKind::from_number(input.u8()?).ok_or(BadEncoding)?,
            signing: input.array()?,
            transport_block: input.bytes()?.to_vec(),
            ceremony: input.bytes()?.to_vec(),
            nonce: input.array()?,
            oaep: Oaep::from_number(input.u8()?).ok_or(BadEncoding)?,
            release: input.text()?.to_owned(),
            at_ms: input.u64()?,
            same_site,
        };
        let lengths = [
            (request.site.len(), NAME_LEN_MAX),
            (request.release.len(), RELEASE_LEN_MAX),
            (request.transport_block.len(), SPKI_LEN_MAX),
            (request.ceremony.len(), SPKI_LEN_MAX),
        ];
        if lengths.iter().any(|(len, max)| len > max) {
            return Err(BadEncoding);
        }
        Ok(request)
    }
}

impl SignedRequest {
    /// The longest encoding, in bytes.
    pub const LEN_MAX: usize = 4096;

    /// The message, then the signature.
    pub fn encode(&self) -> Vec<u8> {
        [&self.request.message()[..], &self.signature].concat()
    }

    /// The request in these bytes, if all of them are one that its own key signed.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadPaper> {
        let encoding = |_| BadPaper::Encoding(WHAT);
        let mut input = Reader::new(bytes);
        let request = JoinRequest::read(&mut input).map_err(encoding)?;
        let signature = input.array().map_err(encoding)?;
        input.end().map_err(encoding)?;
        if !is_site_name(&request.site) {
            return Err(BadPaper::Name);
        }
        let signed = Self { request, signature };
        let is_own = is_signed(&signed.request.signing, &signed.request.message(), &signature);
        if is_own { Ok(signed) } else { Err(BadPaper::Signature) }
    }

    /// What two people compare.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.encode())
    }

    /// The file: what it is, in clear, and then the request.
    pub fn to_file(&self) -> String {
        let JoinRequest { site, oaep, release, at_ms, .. } = &self.request;
        let header = [
            ("site", site.clone()),
            ("wants to be", self.request.what()),
            ("OAEP", oaep.to_string()),
            ("release", release.clone()),
            ("made", date(*at_ms)),
            ("fingerprint", self.fingerprint().to_string()),
        ];
        file::write(TITLE, &header, &self.encode())
    }

    /// The request of a file that [`SignedRequest::to_file`] wrote; every character of it counts.
    pub fn from_file(text: &str) -> Result<Self, BadPaper> {
        let bytes = file::read(TITLE, text, Self::LEN_MAX).ok_or(BadPaper::File(WHAT_FILE))?;
        let signed = Self::decode(&bytes)?;
        if signed.to_file() == text { Ok(signed) } else { Err(BadPaper::Header) }
    }
}

const LABEL: &[u8; 22] = b"ami.kms/join-request/1";
const LABEL_SAME_SITE: &[u8; 22] = b"ami.kms/join-request/2";
const TITLE: &str = "REQUEST TO JOIN A KEY DOMAIN";
const WHAT: &str = "join request";
const WHAT_FILE: &str = "the file of a join request";
